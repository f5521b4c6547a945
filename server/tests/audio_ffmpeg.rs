//! The ffmpeg path with programs that stand in for ffmpeg and do what the real one does on a bad day; and the real one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test support, though no test itself")]

mod audio_support;

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use audio_support::*;
use hush_server::audio::{self, AudioError, DecodeOptions, Ffmpeg};
use hush_server::spool::{Spool, SpoolOptions};

struct Program {
    dir: tempfile::TempDir,
}

impl Program {
    fn new(script: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ffmpeg");
        std::fs::write(&path, format!("#!/bin/sh\necho $$ > {}/pid\n{script}\n", dir.path().display())).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        Self { dir }
    }

    /// Finds `$dir/film`, what ffmpeg would write for these samples, and `$dir/more`, more of the same.
    fn with_samples(script: &str, samples: &[f32]) -> Self {
        let program = Self::new(&format!("dir=${{0%/*}}\n{script}"));
        let write = |name: &str, bytes: &[u8]| std::fs::write(program.dir.path().join(name), bytes).unwrap();
        write("film", &Matroska::BUILT_IN.film(0, &[(0.0, samples)]));
        let bytes = samples.iter().flat_map(|sample| ((sample * 32_768.0) as i16).to_le_bytes()).collect();
        write("more", &Matroska::cluster(&(1, 0, bytes)));
        program
    }

    fn options(&self) -> DecodeOptions {
        DecodeOptions { ffmpeg: Ffmpeg::At(self.dir.path().join("ffmpeg")), ..DecodeOptions::default() }
    }

    fn is_gone(&self) -> bool {
        let pid = std::fs::read_to_string(self.dir.path().join("pid")).unwrap();
        !PathBuf::from(format!("/proc/{}", pid.trim())).exists()
    }
}

fn unknown() -> Vec<u8> {
    b"nothing that the built-in decoders know".to_vec()
}

fn some_samples(count: usize) -> Vec<f32> {
    (0..count).map(|i| (i % 1_000) as f32 / 2_048.0).collect()
}

#[test]
fn samples_are_read_as_a_stream() {
    let expected = some_samples(40_001);
    let script = "head -c 70001 $dir/film; sleep 0.1; tail -c +70002 $dir/film; cat <&0 >/dev/null";
    let pcm = decode_with(unknown(), &Program::with_samples(script, &expected).options()).unwrap();
    assert_eq!(samples(&pcm), expected);
}

#[test]
fn it_gets_the_upload_from_memory_and_from_disk() {
    let expected = some_samples(1_000);
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(&Matroska::BUILT_IN.film(0, &[(0.0, &expected)])).unwrap();
    let packed = packed.finish().unwrap();
    // Read twice: it can seek in it.
    let program = Program::new("cat /proc/self/fd/0 >/dev/null; exec gzip -dc < /proc/self/fd/0");
    for memory_bytes in [0, 1 << 20] {
        let mut spool = Spool::new(SpoolOptions { memory_bytes, ..SpoolOptions::default() });
        spool.write(&packed).unwrap();
        let pcm = audio::decode(&spool.finish(), None, &program.options(), &|| true).unwrap();
        assert_eq!(samples(&pcm), expected);
    }
}

#[test]
fn its_last_words_are_in_the_error_without_its_parts() {
    let program = Program::new(
        "for i in 1 2 3 4 5 6; do echo \"[mov,mp4 @ 0x55d0] [aac @ 0x7f] line $i\" >&2; done
         echo 'file:/proc/self/fd/0: bad' >&2; exit 1",
    );
    let error = decode_with(unknown(), &program.options()).unwrap_err();
    assert!(
        matches!(&error, AudioError::Ffmpeg { stderr, .. } if stderr == "line 5; line 6; the upload: bad"),
        "{error:?}"
    );
    assert!(error.to_string().contains("it looks like text; starts with 6e 6f"), "{error}");
    let program = Program::new("kill -SEGV $$");
    let error = decode_with(unknown(), &program.options()).unwrap_err();
    assert!(matches!(&error, AudioError::Ffmpeg { stderr, .. } if stderr.contains("signal")), "{error:?}");
}

#[test]
fn samples_before_a_failure_do_not_count() {
    let program = Program::with_samples("cat $dir/film; exit 1", &some_samples(1_000));
    assert!(matches!(decode_with(unknown(), &program.options()), Err(AudioError::Ffmpeg { .. })));
}

#[test]
fn silence_from_it_leaves_the_first_error() {
    let program = Program::new("exit 0");
    assert!(matches!(decode_with(unknown(), &program.options()), Err(AudioError::Unrecognised { .. })));
}

#[test]
fn it_is_killed_when_it_hangs_or_nobody_waits() {
    let program = Program::new("exec sleep 100");
    let start = Instant::now();
    let options = DecodeOptions { ffmpeg_timeout: Duration::from_millis(600), ..program.options() };
    let error = decode_with(unknown(), &options).unwrap_err();
    assert!(matches!(error, AudioError::FfmpegTimeout { .. }) && !error.is_client_fault(), "{error:?}");
    assert!(program.is_gone());

    let program = Program::new("exec sleep 100");
    let input = spooled(&unknown());
    let started = program.dir.path().join("pid");
    let result = audio::decode(&input, None, &program.options(), &|| !started.exists());
    assert!(matches!(result, Err(AudioError::Cancelled)), "{result:?}");
    assert!(program.is_gone());

    // Closed its output, does not exit.
    let program = Program::new("exec sleep 100 >&- 2>&-");
    let options = DecodeOptions { ffmpeg_timeout: Duration::from_millis(600), ..program.options() };
    assert!(matches!(decode_with(unknown(), &options), Err(AudioError::FfmpegTimeout { .. })));
    assert!(program.is_gone());
    assert!(start.elapsed() < Duration::from_secs(20));
}

#[test]
fn endless_output_meets_the_limit() {
    let program =
        Program::with_samples("cat $dir/film; while :; do cat $dir/more || exit; done", &some_samples(160_000));
    let options = DecodeOptions { limit_seconds: 100, ..program.options() };
    assert!(matches!(decode_with(unknown(), &options), Err(AudioError::TooLong { limit_seconds: 100 })));
    assert!(program.is_gone());
}

#[test]
fn endless_complaints_do_not_block_it() {
    let script = "head -c 3000000 /dev/zero | tr '\\000' 'x' >&2; cat $dir/film";
    let program = Program::with_samples(script, &some_samples(50));
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
    let program = Program::new("head -c 100 /dev/zero");
    let nan = wav(16_000, 1, Width::F32, 10, |_, _| f64::NAN);
    assert!(matches!(decode_with(nan, &program.options()), Err(AudioError::NonFinite { .. })));
    assert!(!program.dir.path().join("pid").exists());
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
