//! Samples, channels and rates, measured on WAV files written by hand.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test support, though no test itself")]

mod audio_support;

use audio_support::*;
use hush_server::audio::{AudioError, DecodeOptions};

const RATES: [u32; 10] = [8_000, 11_025, 12_000, 22_050, 24_000, 32_000, 44_100, 48_000, 96_000, 384_000];
/// With no common divisor with 16,000: the longest filters.
const ODD_RATES: [u32; 4] = [7_919, 44_101, 191_999, 383_999];

#[test]
fn mono_16_khz_passes_to_the_bit() {
    let value = |i: usize| (i.wrapping_mul(40_503) as i16).wrapping_add((i / 3) as i16);
    let heard = decoded(wav(16_000, 1, Width::S16, 70_000, |i, _| f64::from(value(i)) / 32_768.0));
    assert_eq!(heard.len(), 70_000);
    for (i, sample) in heard.iter().enumerate() {
        assert_eq!(*sample, f32::from(value(i)) / 32_768.0, "{i}");
    }
}

/// Nothing is copied: what stands around the samples must not be heard, whatever the header says of their number.
#[test]
fn samples_that_lie_in_the_file_as_they_are_wanted_are_found_there() {
    let plain = wav(16_000, 1, Width::S16, 1_000, |i, _| i as f64 / 32_768.0);
    let expected: Vec<f32> = (0..1_000).map(|i| i as f32 / 32_768.0).collect();
    assert_eq!(&plain[36..40], b"data");
    let (head, data) = plain.split_at(36);
    let chunk = |tag: &[u8], content: &[u8]| [tag, &(content.len() as u32).to_le_bytes(), content].concat();
    let riff = |chunks: &[Vec<u8>], declared: Option<u32>| {
        let mut file = [head, &chunks.concat()].concat();
        let length = declared.unwrap_or(file.len() as u32 - 8);
        file[4..8].copy_from_slice(&length.to_le_bytes());
        file
    };
    let data = data.to_vec();
    let tail = chunk(b"LIST", b"INFOISFT\x04\0\0\0Lavf");
    assert!(decoded(plain.clone()) == expected);
    assert!(decoded(riff(&[tail.clone(), data.clone(), tail.clone()], None)) == expected, "chunks around it");
    // A stream whose writer never learnt the length; then half a sample that was cut off.
    let mut endless = data.clone();
    endless[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
    let mut file = riff(&[endless], Some(u32::MAX));
    assert!(decoded(file.clone()) == expected, "of unknown length");
    file.push(7);
    assert!(decoded(file) == expected, "half a sample");
    // A file that is shorter than it says.
    assert!(decoded(plain[..44 + 2 * 600 + 1].to_vec()) == expected[..600], "cut off");
    assert!(matches!(decode(plain[..45].to_vec()), Err(AudioError::NoSamples)));
    let limited = DecodeOptions { limit_seconds: 1, ..built_in() };
    let long = wav(16_000, 1, Width::S16, 16_001, |_, _| 0.0);
    assert!(matches!(decode_with(long, &limited), Err(AudioError::TooLong { limit_seconds: 1 })));
}

#[test]
fn every_width_carries_the_same_sound() {
    let sound = |i: usize| 0.5 * tone(440.0, 16_000.0, i);
    for width in Width::ALL {
        for channels in [1, 2, 6] {
            let heard = decoded(wav(16_000, channels, width, 4_000, |i, _| sound(i)));
            assert_eq!(heard.len(), 4_000);
            let step = if width == Width::U8 { 1.0 / 128.0 } else { 1.0 / 32_768.0 };
            for (i, sample) in heard.iter().enumerate() {
                assert!((f64::from(*sample) - sound(i)).abs() < 0.51 * step + 1e-5, "{width:?} {channels} {i}");
            }
        }
    }
}

#[test]
fn floats_beyond_full_scale_are_clipped() {
    let heard = decoded(wav(16_000, 1, Width::F32, 3, |i, _| [2.0, -1e30, 0.25][i]));
    assert_eq!(heard, [32_767.0 / 32_768.0, -1.0, 0.25]);
}

#[test]
fn stereo_is_the_mean() {
    let heard = decoded(wav(16_000, 2, Width::S16, 100, |_, channel| if channel == 0 { 0.5 } else { 0.25 }));
    assert!(heard.iter().all(|sample| *sample == 0.375));
}

#[test]
fn surround_is_mixed_as_by_ffmpeg() {
    // FL FR FC LFE and a rear or side pair.
    for (loud, weight) in [(0, 0.207_107), (1, 0.207_107), (2, 0.292_893), (3, 0.0), (4, 0.146_447), (5, 0.146_447)] {
        let heard = decoded(wav(16_000, 6, Width::F32, 10, |_, channel| if channel == loud { 0.9 } else { 0.0 }));
        assert!(heard.iter().all(|sample| (f64::from(*sample) - 0.9 * weight).abs() < 2e-5), "{loud} {heard:?}");
    }
}

#[test]
fn lengths_are_exact() {
    for hertz in RATES.into_iter().chain(ODD_RATES) {
        for frames in [1_usize, 2, 100, 1_023, 1_024, 44_100, 65_537] {
            let bytes = wav(hertz, 1, Width::S16, frames, |_, _| 0.1);
            let expected = (frames as f64 * 16_000.0 / f64::from(hertz)).round() as u64;
            let length = match decode(bytes) {
                Ok(pcm) => pcm.len_samples(),
                Err(AudioError::NoSamples) => 0,
                Err(error) => panic!("{hertz} {frames}: {error}"),
            };
            assert_eq!(length, expected, "{hertz} Hz, {frames} frames");
        }
    }
}

/// The passband: every tone comes out at its place, in phase, as loud as before, and with nothing else.
#[test]
fn tones_below_7_khz_are_kept() {
    for hertz in RATES.into_iter().chain(ODD_RATES) {
        let rate = f64::from(hertz);
        for frequency in [50.0, 440.0, 1_000.0, 3_333.0, 5_000.0, 6_950.0] {
            // Upsampling: below what the source itself can carry.
            if frequency > 0.43 * rate {
                continue;
            }
            let frames = 3 * hertz as usize;
            let heard = decoded(wav(hertz, 1, Width::F32, frames, |i, _| soft_tone(frequency, 3.0, i as f64 / rate)));
            let ideal = |i: usize| soft_tone(frequency, 3.0, i as f64 / 16_000.0);
            let error = rms((0..heard.len()).map(|i| f64::from(heard[i]) - ideal(i)));
            let snr = decibels(rms((0..heard.len()).map(ideal)) / error);
            assert!(snr > 80.0, "{hertz} Hz, tone of {frequency} Hz: {snr:.1} dB");
        }
    }
}

#[test]
fn a_sweep_stays_in_time() {
    // 100 Hz to 6.5 kHz in two seconds; the phase is the integral of the frequency.
    let sweep =
        |seconds: f64| 0.8 * (std::f64::consts::TAU * (100.0 * seconds + 0.5 * 3_200.0 * seconds * seconds)).sin();
    for hertz in [22_050, 44_100, 48_000, 96_000, 44_101] {
        let heard = decoded(wav(hertz, 1, Width::F32, 2 * hertz as usize, |i, _| sweep(i as f64 / f64::from(hertz))));
        assert_eq!(heard.len(), 32_000);
        let range = 800..31_200;
        let error = rms(range.clone().map(|i| f64::from(heard[i]) - sweep(i as f64 / 16_000.0)));
        let snr = decibels(rms(range.map(|i| sweep(i as f64 / 16_000.0))) / error);
        assert!(snr > 80.0, "{hertz} Hz: {snr:.1} dB");
    }
}

#[test]
fn a_click_stays_where_it_is() {
    for hertz in [8_000, 11_025, 44_100, 48_000, 96_000] {
        for seconds in [0.0, 0.25, 0.9] {
            let at = (seconds * f64::from(hertz)) as usize;
            let heard = decoded(wav(hertz, 1, Width::F32, hertz as usize, |i, _| if i == at { 0.9 } else { 0.0 }));
            let loudest = (0..heard.len()).max_by(|a, b| heard[*a].abs().total_cmp(&heard[*b].abs())).unwrap();
            let expected = (seconds * 16_000.0) as usize;
            assert!(loudest.abs_diff(expected) <= 1, "{hertz} Hz at {seconds} s: {loudest}");
        }
    }
}

/// What is above 8 kHz must vanish, not fold back into speech.
#[test]
fn tones_above_8_khz_are_gone() {
    for hertz in [22_050, 44_100, 48_000, 96_000, 44_101] {
        let rate = f64::from(hertz);
        for frequency in [8_100.0, 8_500.0, 9_000.0, 10_500.0, 12_000.0, 15_900.0, 20_000.0, 31_000.0] {
            if frequency > 0.49 * rate {
                continue;
            }
            let frames = 3 * hertz as usize;
            let heard = decoded(wav(hertz, 1, Width::F32, frames, |i, _| soft_tone(frequency, 3.0, i as f64 / rate)));
            let left = rms(heard.iter().map(|sample| f64::from(*sample)));
            let rejection = decibels(0.9 / std::f64::consts::SQRT_2 / left.max(1e-9));
            assert!(rejection > 80.0, "{hertz} Hz, tone of {frequency} Hz: {rejection:.1} dB");
        }
    }
}

#[test]
fn images_of_low_rates_are_gone() {
    // 3 kHz at 8 kHz must not come out at 5 kHz as well.
    let heard = decoded(wav(8_000, 1, Width::F32, 16_000, |i, _| 0.9 * tone(3_000.0, 8_000.0, i)));
    let at = |frequency: f64| {
        let (sin, cos) = heard[1_000..17_000].iter().enumerate().fold((0.0, 0.0), |(sin, cos), (i, sample)| {
            let angle = std::f64::consts::TAU * frequency * i as f64 / 16_000.0;
            (sin + f64::from(*sample) * angle.sin(), cos + f64::from(*sample) * angle.cos())
        });
        f64::hypot(sin, cos)
    };
    let rejection = decibels(at(3_000.0) / at(5_000.0));
    assert!(rejection > 80.0, "{rejection:.1} dB");
}

#[test]
fn samples_that_are_no_numbers_are_refused_with_their_place() {
    for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        for (width, hertz, channels) in [(Width::F32, 16_000, 1), (Width::F64, 48_000, 2)] {
            let at = 3 * hertz as usize / 2;
            let bytes = wav(hertz, channels, width, 2 * hertz as usize, |i, channel| {
                if i == at && channel + 1 == channels { bad } else { 0.1 }
            });
            match decode(bytes) {
                Err(AudioError::NonFinite { seconds }) => assert!((seconds - 1.5).abs() < 1e-9, "{seconds}"),
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn too_long_is_refused_and_the_limit_is_not() {
    let options = DecodeOptions { limit_seconds: 2, ..built_in() };
    for hertz in [16_000, 48_000] {
        let seconds = |frames: usize| wav(hertz, 1, Width::U8, frames, |_, _| 0.0);
        assert_eq!(decode_with(seconds(2 * hertz as usize), &options).unwrap().len_samples(), 32_000);
        let error = decode_with(seconds(2 * hertz as usize + 3), &options).unwrap_err();
        assert!(matches!(error, AudioError::TooLong { limit_seconds: 2 }), "{error:?}");
    }
}

#[test]
fn long_audio_goes_to_a_file_and_sounds_the_same() {
    let bytes = wav(48_000, 1, Width::S16, 480_000, |i, _| 0.5 * tone(300.0, 48_000.0, i));
    let in_memory = decode(bytes.clone()).unwrap();
    let in_file = decode_with(bytes, &DecodeOptions { memory_bytes: 100_000, ..built_in() }).unwrap();
    assert!(in_memory.is_in_memory() && !in_file.is_in_memory());
    assert!(samples(&in_memory) == samples(&in_file));
    let no_dir = DecodeOptions { memory_bytes: 0, dir: Some("/nonexistent".into()), ..built_in() };
    let error = decode_with(wav(48_000, 1, Width::S16, 10, |_, _| 0.0), &no_dir).unwrap_err();
    assert!(matches!(error, AudioError::Spool(_)) && !error.is_client_fault(), "{error:?}");
}

#[test]
fn wav_files_one_behind_the_other_are_all_heard() {
    let (first, second) = (fixture("audio/en-1.wav"), fixture("audio/en-3.wav"));
    let expected = [decoded(first.clone()), decoded(second.clone())].concat();
    assert!(decoded([first.clone(), second.clone()].concat()) == expected);
    // Another rate and sample format; an odd length, with and without its padding byte.
    let stereo = wav(8_000, 2, Width::S16, 4_000, |i, _| 0.3 * tone(440.0, 8_000.0, i));
    let heard = decoded([first.clone(), stereo.clone(), second.clone()].concat());
    assert_eq!(heard.len(), expected.len() + 8_000);
    for padding in [&b""[..], b"\0"] {
        let odd = wav(16_000, 1, Width::U8, 1_001, |_, _| 0.1);
        assert_eq!(decoded([&odd, padding, &second].concat()).len(), 1_001 + decoded(second.clone()).len());
    }
    // What follows and is none, or is damaged, takes nothing away.
    let whole = decoded(first.clone());
    assert!(decoded([&first[..], b"RIFF\x10\0\0\0WAVEjunk"].concat()) == whole);
    assert!(decoded([&first[..], b"and more"].concat()) == whole);
    let cut = [&first[..], &second[..second.len() / 2]].concat();
    assert!(decoded(cut).len() > whole.len());
}

#[test]
fn channels_that_cancel_out_are_heard() {
    let original = decoded(fixture("audio/en-3.wav"));
    let inverted = wav(16_000, 2, Width::S16, original.len(), |i, channel| {
        let sample = f64::from(original[i]);
        if channel == 0 { sample } else { -sample }
    });
    let heard = decoded(inverted);
    let level = |samples: &[f32]| rms(samples.iter().copied().map(f64::from));
    assert!((level(&heard) / level(&original) - 1.0).abs() < 0.05, "{} {}", level(&heard), level(&original));
    assert!(correlation(&original, &heard, 0).abs() > 0.98);
}
