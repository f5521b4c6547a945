//! The runner as a process, spoken to over its socket: what it says, how fast it is there, and how it ends.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test support, though no test itself")]

mod scripted;

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use hush_server::job::{Outcome, Work};
use hush_server::runner::child::PARENT_VARIABLE;
use hush_server::runner::wire::{
    Decoder, FailureKind, FromRunner, JobId, LoadSpec, MAX_SAMPLES, Message, ToRunner, VERSION,
};
use scripted::{audio, spec, work};

#[test]
fn runner_child() {
    scripted::child_entry();
}

struct Runner {
    child: Child,
    socket: UnixStream,
    decoder: Decoder,
}

impl Runner {
    fn start_under(parent: u32) -> Self {
        let (socket, theirs) = UnixStream::pair().unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let child = Command::new("/proc/self/exe")
            .args(["--exact", "runner_child", "--nocapture", "--test-threads=1", "-q"])
            .env(PARENT_VARIABLE, parent.to_string())
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, socket, decoder: Decoder::default() }
    }

    fn start() -> Self {
        Self::start_under(std::process::id())
    }

    /// One that has loaded its model.
    fn loaded() -> Self {
        let mut runner = Self::start();
        runner.say(&ToRunner::Load(spec("")));
        assert!(matches!(runner.hear(), FromRunner::Hello { .. }));
        assert!(matches!(runner.hear(), FromRunner::Loaded { .. }));
        runner
    }

    fn say(&mut self, message: &ToRunner) {
        self.socket.write_all(&message.encode().unwrap()).unwrap();
    }

    /// Whatever it says but that its load has settled: that may come at any time.
    fn hear(&mut self) -> FromRunner {
        loop {
            match self.decoder.message().unwrap() {
                Some(FromRunner::Settled { .. }) => continue,
                Some(message) => return message,
                None => {}
            }
            let mut piece = [0; 4096];
            let count = self.socket.read(&mut piece).unwrap();
            assert_ne!(count, 0, "the runner left");
            self.decoder.buffer().extend_from_slice(&piece[..count]);
        }
    }

    fn ended_within(&mut self, limit: Duration) -> ExitStatus {
        let since = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(since.elapsed() < limit, "still there after {limit:?}");
            std::thread::sleep(Duration::from_micros(200));
        }
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whose audio has to be asked for, all of it.
fn job(id: JobId, work: Work, len_samples: u64) -> ToRunner {
    ToRunner::Work { id, work, len_samples, first_samples: 0, request: None }
}

fn bytes(samples: &[i16]) -> Vec<u8> {
    samples.iter().flat_map(|sample| sample.to_le_bytes()).collect()
}

#[test]
fn it_is_there_fast_and_gone_fast() {
    let (mut hello, mut gone) = (Vec::new(), Vec::new());
    for _ in 0..20 {
        let started = Instant::now();
        let mut runner = Runner::start();
        let FromRunner::Hello { version, pid, runtime, .. } = runner.hear() else { panic!("no hello") };
        hello.push(started.elapsed());
        assert_eq!((version, pid, runtime.as_deref()), (VERSION, runner.child.id(), Some("scripted")));
        let asked = Instant::now();
        runner.say(&ToRunner::Exit);
        runner.ended_within(Duration::from_secs(2));
        gone.push(asked.elapsed());
    }
    hello.sort();
    gone.sort();
    println!("spawn -> hello: median {:?}, worst {:?}", hello[10], hello[19]);
    println!("exit asked -> reaped: median {:?}, worst {:?}", gone[10], gone[19]);
}

#[test]
fn it_ends_with_its_socket_and_on_nonsense_whatever_its_engine_does() {
    let mut closed = Runner::loaded();
    closed.socket.shutdown(std::net::Shutdown::Both).unwrap();
    closed.ended_within(Duration::from_secs(2));

    let mut garbage = Runner::loaded();
    garbage.socket.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    garbage.ended_within(Duration::from_secs(2));

    let mut loading = Runner::start();
    loading.say(&ToRunner::Load(spec("sleep=60000")));
    assert!(matches!(loading.hear(), FromRunner::Hello { .. }));
    loading.say(&ToRunner::Exit);
    assert_eq!(loading.ended_within(Duration::from_secs(2)).signal(), Some(9));

    let mut working = Runner::loaded();
    working.say(&job(1, work("hang"), 0));
    assert!(matches!(working.hear(), FromRunner::FirstToken { id: 1, .. }));
    drop(working.socket.shutdown(std::net::Shutdown::Write));
    working.ended_within(Duration::from_secs(2));
}

#[test]
fn it_does_not_live_without_its_server() {
    let mut orphan = Runner::start_under(1);
    assert_eq!(orphan.ended_within(Duration::from_secs(5)).code(), Some(1));
}

#[test]
fn it_pulls_audio_in_bounded_blocks_and_every_sample_once() {
    let samples = audio(100);
    let mut runner = Runner::loaded();
    runner.say(&job(5, work("piece=1000"), samples.len() as u64));
    let (mut next, mut asked) = (0, 0);
    loop {
        match runner.hear() {
            FromRunner::NeedAudio { id: 5, offset, samples: count } => {
                assert_eq!(offset, next, "in order, without a gap");
                assert!(count <= MAX_SAMPLES);
                let block = bytes(&samples[offset as usize..][..count]);
                next += count as u64;
                asked += 1;
                // A late answer to an earlier job is not taken for this one.
                runner.say(&ToRunner::Audio { id: 4, offset, s16le: vec![9; 2 * count] });
                runner.say(&ToRunner::Audio { id: 5, offset, s16le: block });
            }
            FromRunner::Done { id: 5, outcome: Outcome::Transcribed(transcript) } => {
                assert_eq!(transcript.duration_seconds, 100.0);
                break;
            }
            FromRunner::Segment { segment, .. } => {
                let heard: i64 = segment.text.split_once(' ').unwrap().1.parse().unwrap();
                assert_eq!(heard, scripted::sum(&samples));
            }
            FromRunner::FirstToken { .. } | FromRunner::Beat => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(next, samples.len() as u64);
    assert!(asked <= 20, "{asked} round trips for 100 s: small reads are gathered");
}

#[test]
fn the_beginning_of_the_audio_comes_unasked() {
    let samples = audio(10);
    let mut runner = Runner::loaded();
    for (id, first_samples) in [(1, samples.len()), (2, 30_000), (3, 1)] {
        let len_samples = samples.len() as u64;
        runner.say(&ToRunner::Work { id, work: work(""), len_samples, first_samples, request: None });
        runner.say(&ToRunner::Audio { id, offset: 0, s16le: bytes(&samples[..first_samples]) });
        let mut next = first_samples;
        loop {
            match runner.hear() {
                FromRunner::NeedAudio { offset, samples: count, .. } => {
                    assert_eq!(offset, next as u64, "only what did not come");
                    runner.say(&ToRunner::Audio { id, offset, s16le: bytes(&samples[next..][..count]) });
                    next += count;
                }
                FromRunner::Segment { segment, .. } => {
                    assert!(segment.text.ends_with(&format!(" {}", scripted::sum(&samples))), "{}", segment.text);
                }
                FromRunner::Done { .. } => break,
                FromRunner::FirstToken { .. } | FromRunner::Beat => {}
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(next, samples.len());
    }
    // Cancelled while it waits for what was promised.
    runner.say(&ToRunner::Work { id: 4, work: work(""), len_samples: 9, first_samples: 9, request: None });
    runner.say(&ToRunner::Cancel { id: 4 });
    assert!(matches!(runner.hear(), FromRunner::Failed { id: 4, kind: FailureKind::Cancelled, .. }));
}

#[test]
fn cancelled_work_ends_wherever_it_is_and_the_next_is_done() {
    let mut runner = Runner::loaded();
    let cancelled = |message| matches!(message, FromRunner::Failed { kind: FailureKind::Cancelled, .. });
    // Waiting for audio.
    runner.say(&job(1, work(""), 16_000));
    assert!(matches!(runner.hear(), FromRunner::NeedAudio { id: 1, .. }));
    runner.say(&ToRunner::Cancel { id: 1 });
    assert!(cancelled(runner.hear()));
    // Between tokens; and one that has not begun.
    runner.say(&job(2, work("each=60000"), 0));
    runner.say(&job(3, work("each=60000"), 0));
    assert!(matches!(runner.hear(), FromRunner::FirstToken { id: 2, .. }));
    runner.say(&ToRunner::Cancel { id: 3 });
    runner.say(&ToRunner::Cancel { id: 2 });
    assert!(cancelled(runner.hear()) && cancelled(runner.hear()));
    runner.say(&job(4, work(""), 0));
    assert!(matches!(runner.hear(), FromRunner::FirstToken { id: 4, .. }));
    assert!(matches!(runner.hear(), FromRunner::Segment { id: 4, .. }));
    assert!(matches!(runner.hear(), FromRunner::Done { id: 4, .. }));
}

#[test]
fn several_jobs_have_their_own_audio_and_their_own_end() {
    let mut runner = Runner::start();
    runner.say(&ToRunner::Load(LoadSpec { max_batch: 3, ..spec("") }));
    assert!(matches!(runner.hear(), FromRunner::Hello { .. }));
    assert!(matches!(runner.hear(), FromRunner::Loaded { .. }));
    // The fourth waits for one of the others.
    for id in 1..=4 {
        runner.say(&job(id, work("each=30"), 200_000));
    }
    let (mut done, mut sums, mut cancelled) = (Vec::new(), HashMap::new(), false);
    while done.len() < 3 || !cancelled {
        match runner.hear() {
            FromRunner::NeedAudio { id: 2, .. } => runner.say(&ToRunner::Cancel { id: 2 }),
            FromRunner::NeedAudio { id, offset, samples } => {
                assert!(id != 4 || cancelled || !done.is_empty(), "four at once");
                let block =
                    (offset..offset + samples as u64).flat_map(|n| ((n % 5 * id) as i16).to_le_bytes()).collect();
                runner.say(&ToRunner::Audio { id, offset, s16le: block });
            }
            FromRunner::Segment { id, segment } => {
                let heard: i64 = segment.text.split_once(' ').unwrap().1.parse().unwrap();
                sums.insert(id, heard);
            }
            FromRunner::Done { id, .. } => done.push(id),
            FromRunner::Failed { id: 2, kind: FailureKind::Cancelled, .. } => cancelled = true,
            FromRunner::FirstToken { .. } | FromRunner::Beat => {}
            other => panic!("{other:?}"),
        }
    }
    done.sort_unstable();
    assert_eq!(done, [1, 3, 4]);
    for (id, heard) in sums {
        assert_eq!(heard, 400_000 * id as i64, "job {id}");
    }
}

#[test]
fn signs_of_life_come_while_it_works() {
    let mut runner = Runner::loaded();
    runner.say(&job(1, work("each=900"), 0));
    let mut beats = 0;
    loop {
        match runner.hear() {
            FromRunner::Beat => beats += 1,
            FromRunner::Done { .. } => break,
            _ => {}
        }
    }
    assert!((2..=4).contains(&beats), "{beats}");
}
