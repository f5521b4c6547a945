//! The ffmpeg path with programs that stand in for ffmpeg and do what the real one does on a bad day; and the real one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test support, though no test itself")]

mod audio_support;

use std::io::Write;
use std::time::{Duration, Instant};

use audio_support::stand_in::{FfmpegStandIn, has_python};
use audio_support::*;
use hush_listener::spool::{Spool, SpoolOptions};
use hush_server::audio::{self, AudioError, DecodeOptions, Ffmpeg};

fn unknown() -> Vec<u8> {
    b"nothing that the built-in decoders know".to_vec()
}

fn some_samples(count: usize) -> Vec<f32> {
    (0..count).map(|i| (i % 1_000) as f32 / 2_048.0).collect()
}

#[test]
fn samples_are_read_as_a_stream() {
    if !has_python() {
        return;
    }
    let expected = some_samples(40_001);
    let script = "out.write(film[:70001]); out.flush(); time.sleep(0.1); out.write(film[70001:])";
    let pcm = decode_with(unknown(), &FfmpegStandIn::with_samples(script, &expected).options()).unwrap();
    assert_eq!(samples(&pcm), expected);
}

#[test]
fn it_gets_the_upload_from_memory_and_from_disk() {
    if !has_python() {
        return;
    }
    let expected = some_samples(1_000);
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(&Matroska::BUILT_IN.film(0, &[(0.0, &expected)])).unwrap();
    let packed = packed.finish().unwrap();
    // Read twice: it can seek in it.
    let program = FfmpegStandIn::new(
        "import gzip
open('/proc/self/fd/0', 'rb').read()
out.write(gzip.decompress(open('/proc/self/fd/0', 'rb').read()))",
    );
    for memory_bytes in [0, 1 << 20] {
        let mut spool = Spool::new(SpoolOptions { memory_bytes, ..SpoolOptions::default() });
        spool.write(&packed).unwrap();
        let pcm = audio::decode(&spool.finish(), None, &program.options(), &|| true).unwrap();
        assert_eq!(samples(&pcm), expected);
    }
}

#[test]
fn its_last_words_are_in_the_error_without_its_parts() {
    if !has_python() {
        return;
    }
    let program = FfmpegStandIn::new(
        "for i in range(1, 7): say(f'[mov,mp4 @ 0x55d0] [aac @ 0x7f] line {i}')
say('file:/proc/self/fd/0: bad')
sys.exit(1)",
    );
    let error = decode_with(unknown(), &program.options()).unwrap_err();
    assert!(
        matches!(&error, AudioError::Ffmpeg { stderr, .. } if stderr == "line 5; line 6; the upload: bad"),
        "{error:?}"
    );
    assert!(error.to_string().contains("it looks like text; starts with 6e 6f"), "{error}");
    let program = FfmpegStandIn::new("import signal; signal.raise_signal(signal.SIGSEGV)");
    assert!(program.last_words(unknown()).contains("signal"));
}

#[test]
fn samples_before_a_failure_do_not_count() {
    if !has_python() {
        return;
    }
    let program = FfmpegStandIn::with_samples("out.write(film); out.flush(); sys.exit(1)", &some_samples(1_000));
    assert!(matches!(decode_with(unknown(), &program.options()), Err(AudioError::Ffmpeg { .. })));
}

#[test]
fn silence_from_it_leaves_the_first_error() {
    if !has_python() {
        return;
    }
    let program = FfmpegStandIn::new("");
    assert!(matches!(decode_with(unknown(), &program.options()), Err(AudioError::Unrecognised { .. })));
}

#[test]
fn it_is_killed_when_it_hangs_or_its_request_is_gone() {
    if !has_python() {
        return;
    }
    let program = FfmpegStandIn::new("time.sleep(100)");
    let start = Instant::now();
    let options = DecodeOptions { ffmpeg_timeout: Duration::from_millis(600), ..program.options() };
    let error = decode_with(unknown(), &options).unwrap_err();
    assert!(matches!(error, AudioError::FfmpegTimeout { .. }) && !error.is_client_fault(), "{error:?}");
    assert!(!program.is_running());

    let program = FfmpegStandIn::new("time.sleep(100)");
    let input = spooled(&unknown());
    let result = audio::decode(&input, None, &program.options(), &|| !program.is_running());
    assert!(matches!(result, Err(AudioError::Cancelled)), "{result:?}");
    assert!(!program.is_running());

    // Closed its output, does not exit.
    let program = FfmpegStandIn::new("os.close(1); os.close(2); time.sleep(100)");
    let options = DecodeOptions { ffmpeg_timeout: Duration::from_millis(600), ..program.options() };
    assert!(matches!(decode_with(unknown(), &options), Err(AudioError::FfmpegTimeout { .. })));
    assert!(!program.is_running());
    assert!(start.elapsed() < Duration::from_secs(20));
}

#[test]
fn endless_output_meets_the_limit() {
    if !has_python() {
        return;
    }
    let program = FfmpegStandIn::with_samples("out.write(film)\nwhile True: out.write(more)", &some_samples(160_000));
    let options = DecodeOptions { limit_seconds: 100, ..program.options() };
    assert!(matches!(decode_with(unknown(), &options), Err(AudioError::TooLong { limit_seconds: 100 })));
    assert!(!program.is_running());
}

#[test]
fn endless_complaints_do_not_block_it() {
    if !has_python() {
        return;
    }
    let script = "sys.stderr.write('x' * 3_000_000); sys.stderr.flush(); out.write(film)";
    let program = FfmpegStandIn::with_samples(script, &some_samples(50));
    assert_eq!(decode_with(unknown(), &program.options()).unwrap().len_samples(), 50);
}

#[test]
fn a_program_that_is_not_there_is_an_error_only_when_it_was_named() {
    let options = DecodeOptions { ffmpeg: Ffmpeg::At("/nonexistent/ffmpeg".into()), ..DecodeOptions::default() };
    let error = decode_with(unknown(), &options).unwrap_err();
    assert!(matches!(error, AudioError::FfmpegSpawn(_)) && !error.is_client_fault(), "{error:?}");
    // What the built-in decoders read never gets there.
    assert!(decode_with(fixture("audio/en-1.wav"), &options).is_ok());
}

#[test]
fn bad_samples_and_limits_are_not_asked_twice() {
    // To ask it would be another error.
    let options = DecodeOptions { ffmpeg: Ffmpeg::At("/nonexistent/ffmpeg".into()), ..DecodeOptions::default() };
    let nan = wav(16_000, 1, Width::F32, 10, |_, _| f64::NAN);
    assert!(matches!(decode_with(nan, &options), Err(AudioError::NonFinite { .. })));
}

#[test]
fn an_upload_cannot_name_other_files() {
    if !has_ffmpeg() {
        return;
    }
    let secret = fixtures().join("audio/en-1.wav").canonicalize().unwrap();
    let secret = secret.display();
    for script in [
        format!("ffconcat version 1.0\nfile '{secret}'\n"),
        format!("ffconcat version 1.0\nfile 'file:{secret}'\n"),
        format!("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:{secret}\n#EXT-X-ENDLIST\n"),
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:1/x.ts\n#EXT-X-ENDLIST\n".to_owned(),
        "v=0\nc=IN IP4 127.0.0.1\nm=audio 9 RTP/AVP 0\n".to_owned(),
    ] {
        let error = decode_with(script.clone().into_bytes(), &DecodeOptions::default()).unwrap_err();
        // Refused for what it is, before any name in it is looked at, and said in our own words.
        let text = error.to_string();
        let likeness = ["a list of files", "a playlist (M3U)", "a session description (SDP)"];
        assert!(matches!(error, AudioError::Unrecognised { .. }), "{script}: {error:?}");
        assert!(likeness.iter().any(|likeness| text.contains(likeness)), "{script}: {text}");
        assert!(!text.contains("whitelist") && !text.contains(" @ 0x"), "{script}: {text}");
    }
}

#[test]
fn what_is_no_audio_is_named() {
    if !has_ffmpeg() {
        return;
    }
    for (bytes, expected) in [
        (unknown(), "it looks like text"),
        (b"%PDF-1.7 and so on".repeat(50), "a PDF document"),
        (b"PK\x03\x04\x14\0\0\0\x08\0".repeat(50), "a ZIP archive"),
        (b"<!DOCTYPE html><title>Not found</title>".to_vec(), "a web page"),
        (vec![0; 5_000], "a file of zeros"),
        (fixture("../../docs/images/page.webp"), "a WebP image"),
    ] {
        let error = decode_with(bytes, &DecodeOptions::default()).unwrap_err();
        assert!(error.is_client_fault());
        let text = error.to_string();
        assert!(text.contains(expected), "{text}");
        assert!(!text.contains(" @ 0x") && !text.contains("whitelist") && text.len() < 200, "{text}");
    }
}

/// `cargo test --workspace --test audio_ffmpeg -- --ignored --nocapture`: what the start of the process costs.
#[test]
#[ignore = "prints a figure and checks nothing"]
fn what_a_decode_by_ffmpeg_takes() {
    let file = fixture("formats/speech.wma");
    let options = DecodeOptions::default();
    let mut times: Vec<Duration> = (0..60)
        .map(|_| {
            let start = Instant::now();
            decode_with(file.clone(), &options).unwrap();
            start.elapsed()
        })
        .collect();
    times.sort_unstable();
    println!("median {:?}, fastest {:?}, slowest {:?}", times[times.len() / 2], times[0], times[times.len() - 1]);
}
