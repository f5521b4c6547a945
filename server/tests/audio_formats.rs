//! Real files of every format that clients send.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test support, though no test itself")]

mod audio_support;

use std::path::Path;

use audio_support::*;
use hush_server::audio::{self, AudioError, DecodeOptions};

/// File, least likeness to the original, most samples that its length may differ by, samples that it may be late.
const BUILT_IN: &[(&str, f64, usize, isize)] = &[
    ("speech.flac", 1.0, 0, 0),
    ("speech-flac.mkv", 1.0, 0, 0),
    ("speech-alac.m4a", 1.0, 0, 0),
    ("speech.caf", 1.0, 0, 0),
    ("speech.aiff", 0.98, 1, 0),
    ("speech-mulaw.wav", 0.999, 0, 0),
    ("speech-alaw.wav", 0.999, 0, 0),
    ("speech-adpcm-ima.wav", 0.99, 2048, 0),
    ("speech-adpcm-ms.wav", 0.99, 2048, 0),
    ("speech.mp3", 0.99, 1, 1),
    ("speech-cover.mp3", 0.99, 1, 1),
    ("speech-aac.m4a", 0.99, 16, 0),
    // ADTS cannot say how much its encoder is late.
    ("speech.aac", 0.96, 1200, 400),
    ("speech-vorbis.ogg", 0.98, 1, 1),
    ("speech-vorbis.webm", 0.98, 400, 1),
    ("speech-opus.ogg", 0.97, 1, 8),
    ("speech-opus.webm", 0.97, 400, 8),
    ("speech-opus-live.webm", 0.97, 400, 8),
    ("two-tracks.mkv", 0.97, 500, 1),
];

#[test]
fn every_format_sounds_like_the_original() {
    let original = decoded(fixture("audio/en-3.wav"));
    let mut wrong = Vec::new();
    for &(name, likeness, length, late) in BUILT_IN {
        let pcm = decode(fixture(&format!("formats/{name}"))).unwrap_or_else(|error| panic!("{name}: {error}"));
        let heard = samples(&pcm);
        let (shift, like) = best_shift(&original, &heard, 500);
        let difference = heard.len().abs_diff(original.len());
        let line = format!("{name}: like {like:.5}, late {shift}, length differs by {difference}");
        println!("{line}");
        if like < likeness - 1e-9 || shift.abs() > late || difference > length {
            wrong.push(line);
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn lossless_formats_give_the_samples_of_the_wav() {
    let original = decoded(fixture("audio/en-3.wav"));
    for name in ["speech.flac", "speech-flac.mkv", "speech-alac.m4a", "speech.caf"] {
        assert!(decoded(fixture(&format!("formats/{name}"))) == original, "{name}");
    }
}

#[test]
fn long_flac_fixtures_have_their_known_lengths() {
    for (name, length) in [("long-de", 729_445), ("noise", 128_000), ("silence", 96_000), ("pauses-es", 983_296)] {
        assert_eq!(decode(fixture(&format!("audio/{name}.flac"))).unwrap().len_samples(), length, "{name}");
    }
}

#[test]
fn names_lie_and_do_not_matter() {
    for name in ["x.mp3", "x.wav", "x", "", "ü.\u{0}", "../../etc/passwd"] {
        let input = spooled(&fixture("formats/speech.flac"));
        let pcm = audio::decode(&input, Some(name), &built_in(), &|| true).unwrap();
        assert_eq!(pcm.len_samples(), 18_494, "{name}");
    }
}

#[test]
fn what_is_not_supported_says_what_to_do() {
    for (name, codec) in [("speech-ac3.mkv", "AC-3"), ("speech-opus-5.1.ogg", "Opus")] {
        let error = decode(fixture(&format!("formats/{name}"))).unwrap_err();
        assert!(matches!(error, AudioError::UnsupportedCodec { .. }), "{name}: {error:?}");
        let text = error.to_string();
        assert!(text.contains(codec) && text.contains("install ffmpeg"), "{text}");
        assert!(error.is_client_fault());
    }
    let error = decode(fixture("formats/speech.wma")).unwrap_err();
    assert!(matches!(error, AudioError::Unrecognised { .. }), "{error:?}");
    let text = error.to_string();
    assert!(
        text.contains("30 26 b2 75") && text.contains("ffmpeg, which reads more formats, is not available"),
        "{text}"
    );
}

#[test]
fn ffmpeg_reads_what_the_built_in_decoders_cannot() {
    if !has_ffmpeg() {
        return;
    }
    let original = decoded(fixture("audio/en-3.wav"));
    for name in ["speech-ac3.mkv", "speech.wma", "speech-opus-5.1.ogg"] {
        let pcm = decode_with(fixture(&format!("formats/{name}")), &DecodeOptions::default())
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let (shift, like) = best_shift(&original, &samples(&pcm), 2500);
        println!("{name}: like {like:.5}, late {shift}");
        assert!(like > 0.95, "{name}: {like}");
    }
}

/// Formats that only ffmpeg reads, as ffmpeg writes or as their makers describe them.
#[test]
fn ffmpeg_reads_rare_formats_too() {
    if !has_ffmpeg() {
        return;
    }
    let original = decoded(fixture("audio/en-3.wav"));
    let pcm = |swap: bool| -> Vec<u8> {
        let bytes = original.iter().map(|sample| ((sample * 32_768.0) as i16).to_le_bytes());
        bytes.flat_map(|[low, high]| if swap { [high, low] } else { [low, high] }).collect()
    };
    let text = |text: &str, length: usize| {
        let mut bytes = text.as_bytes().to_vec();
        bytes.resize(length, b'\n');
        bytes
    };
    let rate = 16_000_u32;
    let count = original.len() as u32;
    // NIST SPHERE (TIMIT, LDC).
    let sphere = text(
        &format!(
            "NIST_1A\n   1024\nsample_count -i {count}\nsample_n_bytes -i 2\nchannel_count -i 1\n\
             sample_byte_format -s2 01\nsample_rate -i {rate}\nsample_coding -s3 pcm\nend_head\n"
        ),
        1_024,
    );
    // Portable Voice Format (vgetty).
    let pvf = format!("PVF1\n1 {rate} 16\n").into_bytes();
    // Audio Visual Research (Atari): 128 bytes of header, big-endian.
    let mut avr = b"2BIT".to_vec();
    avr.resize(12, 0);
    for word in [0_u16, 16, 0xffff] {
        avr.extend_from_slice(&word.to_be_bytes());
    }
    avr.resize(22, 0);
    avr.extend_from_slice(&rate.to_be_bytes());
    avr.extend_from_slice(&count.to_be_bytes());
    avr.resize(128, 0);
    // Ensoniq Paris: a header of 2 KiB.
    let words = [0_u32, 1, rate, 0, 1].map(u32::to_le_bytes).concat();
    let mut paf = [&b"fap "[..], &words].concat();
    paf.resize(2_048, 0);
    // Psion: A-law at 8 kHz.
    let halved: Vec<u8> = original.chunks_exact(2).map(|two| a_law((two[0] + two[1]) / 2.0)).collect();
    let length = (halved.len() as u32).to_be_bytes();
    let mut wve = [&b"ALawSoundFile**\0\x0f\x10"[..], &length, b"\0\0\0\x01"].concat();
    wve.resize(32, 0);
    let files = [
        ("SPHERE", [sphere, pcm(false)]),
        ("PVF", [pvf, pcm(true)]),
        ("AVR", [avr, pcm(true)]),
        ("PAF", [paf, pcm(false)]),
        ("WVE", [wve, halved]),
    ];
    for (name, parts) in files {
        let bytes = parts.concat();
        let heard = decode_with(bytes, &DecodeOptions::default()).unwrap_or_else(|error| panic!("{name}: {error}"));
        let (late, like) = shift_near(&original, &samples(&heard), 0, 50);
        assert!(like > 0.9, "{name}: like {like}, late {late}");
    }
}

/// As ITU-T G.711 has it.
fn a_law(sample: f32) -> u8 {
    let magnitude = (sample.abs() * 4_096.0).min(4_095.0) as u32;
    let exponent = (32 - magnitude.leading_zeros()).saturating_sub(5).min(7);
    let mantissa = (magnitude >> exponent.max(1)) & 0x0f;
    let sign = if sample < 0.0 { 0 } else { 0x80 };
    (sign | (exponent as u8) << 4 | mantissa as u8) ^ 0x55
}

/// Formats that ffmpeg itself can write and that keep sound: extension and options.
const WRITTEN_BY_FFMPEG: [(&str, &str); 29] = [
    ("dv", "-f lavfi -i color=red:s=720x576:r=25:d=1.2 -target pal-dv"),
    ("au", ""),
    ("w64", ""),
    ("rm", "-c:a ac3 -ar 32000"),
    ("asf", "-c:a wmav1 -ar 32000"),
    ("avi", "-c:a mp2"),
    ("flv", "-c:a mp3 -ar 22050"),
    ("mpg", "-c:a mp2"),
    ("nut", "-c:a pcm_s16le"),
    ("mxf", "-f mxf_opatom -ar 48000"),
    ("wv", ""),
    ("tta", ""),
    ("voc", ""),
    ("sox", ""),
    ("ircam", ""),
    ("spdif", "-c:a ac3 -ar 48000 -f spdif"),
    ("gsm", "-c:a libgsm -ar 8000"),
    ("oma", "-c:a atrac3 -ar 44100"),
    ("amr", "-c:a libopencore_amrnb -ar 8000"),
    ("dts", "-c:a dca -strict -2 -ar 48000"),
    ("rso", "-c:a pcm_u8"),
    ("dfpwm", "-c:a dfpwm"),
    ("eac3", "-c:a eac3 -ar 48000"),
    ("truehd", "-c:a truehd -strict -2 -ar 48000"),
    ("mka", "-c:a wavpack"),
    ("wtv", "-c:a mp2 -ar 48000"),
    ("swf", "-c:a mp3 -ar 44100"),
    ("caf", "-c:a adpcm_ima_qt"),
    ("g722", "-c:a g722"),
];

/// Formats whose raw streams do not say what they are, so that they may be refused.
const RAW_STREAMS: [&str; 4] = ["dfpwm", "g722", "gsm", "rso"];

/// Writes a recording in a format; `false` if this ffmpeg cannot write it.
fn write_with_ffmpeg(recording: &Path, options: &str, path: &Path) -> bool {
    let status = std::process::Command::new("ffmpeg")
        .args(["-nostdin", "-v", "quiet", "-y", "-i"])
        .arg(recording)
        .args(options.split_whitespace())
        .arg(path)
        .status();

    status.is_ok_and(|status| status.success())
}

#[test]
fn ffmpeg_reads_what_it_writes() {
    if !has_ffmpeg() {
        return;
    }

    let original = decoded(fixture("audio/en-3.wav"));
    let dir = tempfile::tempdir().unwrap();
    let wav = fixtures().join("audio/en-3.wav");
    let mut heard_kinds = 0;

    for (extension, options) in WRITTEN_BY_FFMPEG {
        let path = dir.path().join(format!("speech.{extension}"));
        if !write_with_ffmpeg(&wav, options, &path) {
            println!("{extension}: not written here");
            continue;
        }

        let bytes = std::fs::read(&path).unwrap();
        match decode_with(bytes, &DecodeOptions::default()) {
            Ok(pcm) => {
                // Some encoders are late and some containers early.
                let heard = [vec![0.0; 2_500], samples(&pcm)].concat();
                let (late, like) = shift_near(&original, &heard, 2_500, 1_200);
                println!("{extension}: like {like:.3}, late {late}");
                assert!(like > 0.8, "{extension}: like {like}");
                heard_kinds += 1;
            }
            Err(error) => assert!(RAW_STREAMS.contains(&extension), "{extension}: {error}"),
        }
    }

    assert!(heard_kinds >= 12, "{heard_kinds}");
}
