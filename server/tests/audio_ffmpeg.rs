//! The ffmpeg path with programs that stand in for ffmpeg and do what the real one does on a bad day; and the real one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test support, though no test itself")]

mod audio_support;

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

#[test]
fn samples_are_read_as_a_stream() {
    // 40,001 samples, one byte at a time at the end.
    let program = Program::new("head -c 80001 /dev/zero; sleep 0.1; printf '\\001'; cat <&0 >/dev/null");
    let pcm = decode_with(unknown(), &program.options()).unwrap();
    assert_eq!(pcm.len_samples(), 40_001);
    assert_eq!(samples(&pcm)[40_000], 256.0 / 32_768.0);
}

#[test]
fn it_gets_the_upload_from_memory_and_from_disk() {
    let program = Program::new("cat /proc/self/fd/0 /proc/self/fd/0");
    for memory_bytes in [0, 1 << 20] {
        let mut spool = Spool::new(SpoolOptions { memory_bytes, ..SpoolOptions::default() });
        spool.write(b"no audio at all.").unwrap();
        let pcm = audio::decode(&spool.finish(), None, &program.options(), &|| true).unwrap();
        assert_eq!(pcm.len_samples(), 16);
        assert_eq!(samples(&pcm)[..8], samples(&pcm)[8..]);
    }
}

#[test]
fn its_last_words_are_in_the_error() {
    let program =
        Program::new("for i in 1 2 3 4 5 6; do echo line $i >&2; done; echo 'file:/proc/self/fd/0: bad' >&2; exit 1");
    let error = decode_with(unknown(), &program.options()).unwrap_err();
    assert!(
        matches!(&error, AudioError::Ffmpeg { stderr } if stderr == "line 5; line 6; the upload: bad"),
        "{error:?}"
    );
    let program = Program::new("kill -SEGV $$");
    let error = decode_with(unknown(), &program.options()).unwrap_err();
    assert!(matches!(&error, AudioError::Ffmpeg { stderr } if stderr.contains("signal")), "{error:?}");
}

#[test]
fn samples_before_a_failure_do_not_count() {
    let program = Program::new("head -c 1000 /dev/zero; exit 1");
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
    let program = Program::new("exec cat /dev/zero");
    let options = DecodeOptions { limit_seconds: 100, ..program.options() };
    assert!(matches!(decode_with(unknown(), &options), Err(AudioError::TooLong { limit_seconds: 100 })));
    assert!(program.is_gone());
}

#[test]
fn endless_complaints_do_not_block_it() {
    let program = Program::new("head -c 3000000 /dev/zero | tr '\\000' 'x' >&2; head -c 100 /dev/zero");
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
        let AudioError::Ffmpeg { stderr } = &error else { panic!("{script}: {error:?}") };
        // Refused for what it is, before any name in it is looked at.
        assert!(stderr.contains("not on whitelist") || script.starts_with("v=0"), "{script}: {stderr}");
    }
}

#[test]
fn the_real_one_refuses_nonsense_in_its_own_words() {
    if !has_ffmpeg() {
        return;
    }
    let error = decode_with(unknown(), &DecodeOptions::default()).unwrap_err();
    assert!(
        matches!(&error, AudioError::Ffmpeg { stderr } if stderr.contains("the upload: Invalid data")),
        "{error:?}"
    );
    assert!(error.is_client_fault());
}
