//! Hours of audio in bounded memory. Slow and alone in its process, since it reads the peak of the whole process:
//! `cargo test --release -p hush-server --test audio_memory -- --ignored --nocapture --test-threads 1`
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test support, though no test itself")]

mod audio_support;

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use audio_support::*;
use hush_listener::spool::{Spool, SpoolOptions};
use hush_server::audio::{self, DecodeOptions};

const SECONDS: u64 = 3 * 3600;
const LIMIT_KIB: u64 = 120_000;

fn peak_rss_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Spools the file as the server does with an upload, decodes it, and prints what that took.
fn measure(name: &str, path: &Path) {
    use std::io::Read;
    let mut spool = Spool::new(SpoolOptions::default());
    let mut file = std::fs::File::open(path).unwrap();
    let mut buffer = vec![0; 64 << 10];
    loop {
        match file.read(&mut buffer).unwrap() {
            0 => break,
            n => spool.write(&buffer[..n]).unwrap(),
        }
    }
    let input = spool.finish();
    // Forget the peak of what came before.
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = peak_rss_kib();
    let start = Instant::now();
    let options = DecodeOptions { ffmpeg: audio::Ffmpeg::Off, ..DecodeOptions::default() };
    let pcm = audio::decode(&input, Some(name), &options, &|| true).unwrap();
    println!(
        "{name}: {} MiB upload, {:.0} s of audio in {:.1} s, peak RSS {} MiB ({} MiB before)",
        input.len_bytes() >> 20,
        pcm.duration_seconds(),
        start.elapsed().as_secs_f64(),
        peak_rss_kib() >> 10,
        before >> 10
    );
    // Encoders add some milliseconds to each of the minutes.
    assert!((pcm.duration_seconds() - SECONDS as f64).abs() < 30.0 && !pcm.is_in_memory());
    assert!(peak_rss_kib() < LIMIT_KIB, "{name}: {} KiB", peak_rss_kib());
}

fn ffmpeg(before: &[&str], input: &Path, after: &[&str], output: &Path) {
    let command = Command::new("ffmpeg")
        .args(["-nostdin", "-v", "fatal"])
        .args(before)
        .arg("-i")
        .arg(input)
        .args(after)
        .arg(output)
        .status();
    assert!(command.unwrap().success());
}

#[test]
#[ignore = "writes gigabytes and runs for a minute"]
fn three_hours_in_bounded_memory() {
    let dir = tempfile::tempdir().unwrap();
    // 16-bit stereo at 44.1 kHz: 1.9 GB.
    let path = dir.path().join("long.wav");
    {
        use std::io::Write;
        let data_bytes = u32::try_from(SECONDS * 44_100 * 4).unwrap();
        let mut file = std::io::BufWriter::new(std::fs::File::create(&path).unwrap());
        file.write_all(&wav_with_header(Header { format: 1, channels: 2, hertz: 44_100, bits: 16, data_bytes }, &[]))
            .unwrap();
        let second: Vec<u8> = (0..44_100)
            .flat_map(|i| {
                let sample = (tone(300.0, 44_100.0, i) * 8_000.0) as i16 + (i * 7919 % 601) as i16;
                [sample.to_le_bytes(), (-sample / 2).to_le_bytes()].concat()
            })
            .collect();
        for _ in 0..SECONDS {
            file.write_all(&second).unwrap();
        }
    }
    measure("wav", &path);
    if !has_ffmpeg() {
        return;
    }
    for (name, codec) in
        [("flac", "flac"), ("mp3", "libmp3lame"), ("m4a", "aac"), ("ogg", "libvorbis"), ("webm", "libopus")]
    {
        let encoded = dir.path().join(format!("long.{name}"));
        // Opus has no 44.1 kHz.
        let rate = if codec == "libopus" { "48000" } else { "44100" };
        let minute = dir.path().join(format!("minute.{name}"));
        if codec == "flac" {
            // Its frames are numbered: they cannot be joined. It is quick to encode.
            ffmpeg(&[], &path, &["-c:a", codec], &encoded);
        } else {
            ffmpeg(&["-t", "60"], &path, &["-c:a", codec, "-ar", rate], &minute);
            ffmpeg(&["-stream_loop", "179"], &minute, &["-c", "copy"], &encoded);
        }
        measure(name, &encoded);
        std::fs::remove_file(&encoded).unwrap();
    }
}
