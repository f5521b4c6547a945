#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test support, though no test itself")]

use std::io::{Read, Seek, SeekFrom};

use hush_listener::spool::{Spool, SpoolError, SpoolOptions, Spooled};
use hush_server::audio::{AudioError, decode_raw_s16le};
use hush_whisper::PcmSource;

fn bytes(n: usize) -> Vec<u8> {
    (0..n).map(|i| (i * 31 % 251) as u8).collect()
}

fn spooled(content: &[u8], memory_bytes: usize, piece: usize) -> Spooled {
    let mut spool = Spool::new(SpoolOptions { memory_bytes, ..SpoolOptions::default() });
    for piece in content.chunks(piece) {
        spool.write(piece).unwrap();
    }
    assert_eq!(spool.len_bytes(), content.len() as u64);
    spool.finish()
}

#[test]
fn content_is_the_same_on_both_sides_of_the_threshold() {
    for (n, in_memory) in [(0, true), (99, true), (100, true), (101, false), (5000, false)] {
        for piece in [1, 7, 5000] {
            let content = bytes(n);
            let spool = spooled(&content, 100, piece);
            assert_eq!(spool.is_in_memory(), in_memory, "{n}");
            assert_eq!(spool.len_bytes(), n as u64);
            let mut read = Vec::new();
            spool.open().read_to_end(&mut read).unwrap();
            assert!(read == content);
        }
    }
}

#[test]
fn readers_are_independent() {
    for memory_bytes in [10, 10_000] {
        let content = bytes(1000);
        let spool = spooled(&content, memory_bytes, 64);
        let (mut one, mut other) = (spool.open(), spool.open());
        let mut buffer = [0; 10];
        one.seek(SeekFrom::End(-10)).unwrap();
        one.read_exact(&mut buffer).unwrap();
        assert_eq!(buffer, content[990..]);
        assert_eq!(one.read(&mut buffer).unwrap(), 0);
        other.read_exact(&mut buffer).unwrap();
        assert_eq!(buffer, content[..10]);
        assert_eq!(other.seek(SeekFrom::Current(-3)).unwrap(), 7);
        assert!(other.seek(SeekFrom::Current(-8)).is_err());
        assert_eq!(other.stream_position().unwrap(), 7);
        other.seek(SeekFrom::Start(u64::MAX)).unwrap();
        assert_eq!(other.read(&mut buffer).unwrap_or(0), 0);
        assert!(spool.read_exact_at(&mut buffer, 995).is_err());
        assert!(spool.read_exact_at(&mut buffer, u64::MAX).is_err());
        // The content outlives the handle that made the readers.
        drop(spool);
        one.seek(SeekFrom::Start(500)).unwrap();
        one.read_exact(&mut buffer).unwrap();
        assert_eq!(buffer, content[500..510]);
    }
}

#[test]
fn the_limit_is_exact_and_told_apart() {
    let mut spool = Spool::new(SpoolOptions { memory_bytes: 4, limit_bytes: Some(10), ..SpoolOptions::default() });
    spool.write(&bytes(10)).unwrap();
    let error = spool.write(&[0]).unwrap_err();
    assert!(matches!(error, SpoolError::TooLarge { limit_bytes: 10 }), "{error:?}");
    assert!(!error.is_storage_full());
}

#[test]
fn files_have_no_name_and_a_missing_directory_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let options = SpoolOptions { memory_bytes: 0, dir: Some(dir.path().to_owned()), ..SpoolOptions::default() };
    let mut spool = Spool::new(options.clone());
    spool.write(&bytes(100)).unwrap();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    let spool = spool.finish();
    assert!(!spool.is_in_memory());
    drop(dir);
    let error = Spool::new(options.clone()).write(&[1]).unwrap_err();
    assert!(matches!(&error, SpoolError::Folder { dir, .. } if Some(dir) == options.dir.as_ref()), "{error}");
}

#[test]
fn raw_samples_are_the_upload_itself() {
    let values = [0, 1, -1, 255, -256, i16::MAX, i16::MIN];
    let content: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    for memory_bytes in [0, 100] {
        let pcm = decode_raw_s16le(spooled(&content, memory_bytes, 3), 60).unwrap();
        assert_eq!(pcm.len_samples(), 7);
        assert_eq!(pcm.duration_seconds(), 7.0 / 16_000.0);
        let mut source = pcm.source();
        assert_eq!(source.len(), 7);
        let mut out = [0.0; 7];
        source.read(0, &mut out).unwrap();
        assert_eq!(out, values.map(|value| f32::from(value) / 32_768.0));
        let mut out = [0.0; 2];
        source.read(5, &mut out).unwrap();
        assert_eq!(out, [32_767.0 / 32_768.0, -1.0]);
        assert!(source.read(6, &mut out).is_err());
        assert!(source.read(u64::MAX, &mut out).is_err());
    }
}

#[test]
fn raw_samples_are_refused_when_they_cannot_be_any() {
    let refused = |n: usize, limit| decode_raw_s16le(spooled(&bytes(n), 1 << 20, 4096), limit).unwrap_err();
    assert!(matches!(refused(0, 60), AudioError::Empty));
    assert!(matches!(refused(7, 60), AudioError::OddRawLength { bytes: 7 }));
    assert!(matches!(refused(32_002, 1), AudioError::TooLong { limit_seconds: 1 }));
    assert!(decode_raw_s16le(spooled(&bytes(32_000), 1 << 20, 4096), 1).is_ok());
}

#[test]
fn many_readers_at_once() {
    let content = bytes(2 << 20);
    let pcm = decode_raw_s16le(spooled(&content, 1 << 16, 9000), 3600).unwrap();
    assert!(!pcm.is_in_memory());
    std::thread::scope(|scope| {
        for thread in 0..8_u64 {
            let (pcm, content) = (&pcm, &content);
            scope.spawn(move || {
                let mut source = pcm.source();
                let mut out = vec![0.0; 3000];
                for round in 0..200 {
                    let offset = (thread * 7919 + round * 104_729) % (pcm.len_samples() - 3000);
                    source.read(offset, &mut out).unwrap();
                    for (i, sample) in out.iter().enumerate() {
                        let at = 2 * (offset as usize + i);
                        let value = i16::from_le_bytes([content[at], content[at + 1]]);
                        assert_eq!(*sample, f32::from(value) / 32_768.0);
                    }
                }
            });
        }
    });
}
