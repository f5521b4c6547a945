//! The runner as a process, spoken to over its socket: what it says, how fast it is there, and how it ends.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test support, though no test itself")]

mod scripted;

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use hush_server::audio::{Pcm, PcmSpan};
use hush_server::job::{JobOutcome, JobTask};
use hush_server::runner::child::PARENT_VARIABLE;
use hush_server::runner::wire::{
    FailureKind, FrameDecoder, FromRunner, JobId, LoadSpec, ToRunner, VERSION, WireMessage, send,
};
use hush_whisper::Segment;
use scripted::{audio, pcm, samples, spec, sum, work};

#[test]
fn runner_child() {
    scripted::child_entry();
}

struct RunnerProcess {
    child: Child,
    socket: UnixStream,
    decoder: FrameDecoder,
}

impl RunnerProcess {
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
        Self { child, socket, decoder: FrameDecoder::default() }
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

    fn give(&mut self, id: JobId, work: JobTask, audio: &Pcm) {
        let (file, audio) = audio.to_file().unwrap();
        self.give_file(id, work, &file, audio);
    }

    fn give_file(&mut self, id: JobId, work: JobTask, file: &File, audio: PcmSpan) {
        let frame = ToRunner::Work { id, work, audio, request: None }.encode().unwrap();
        // Its first byte by itself: the file comes with that.
        assert_eq!(send(&self.socket, &frame[..1], Some(file.as_fd())).unwrap(), 1);
        self.socket.write_all(&frame[1..]).unwrap();
    }

    /// The next message except `FullyLoaded`, which may come at any time.
    fn hear(&mut self) -> FromRunner {
        loop {
            match self.decoder.message().unwrap() {
                Some(FromRunner::FullyLoaded { .. }) => continue,
                Some(message) => return message,
                None => {}
            }
            let mut piece = [0; 4096];
            let count = self.socket.read(&mut piece).unwrap();
            assert_ne!(count, 0, "the runner left");
            self.decoder.buffer().extend_from_slice(&piece[..count]);
        }
    }

    /// What a job heard, and for how long; nothing else may come.
    fn finish(&mut self, job: JobId) -> (i64, f64) {
        let mut sum = 0;
        loop {
            match self.hear() {
                FromRunner::Segment { id, segment } if id == job => sum += heard(&segment),
                FromRunner::Done { id, outcome: JobOutcome::Transcribed(transcript) } if id == job => {
                    return (sum, transcript.duration_seconds);
                }
                FromRunner::FirstToken { .. } | FromRunner::Beat => {}
                other => panic!("{other:?}"),
            }
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

impl Drop for RunnerProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The sum of its samples, which a scripted engine writes.
fn heard(segment: &Segment) -> i64 {
    segment.text.split_once(' ').unwrap().1.parse().unwrap()
}

#[test]
fn it_is_there_fast_and_gone_fast() {
    let (mut hello, mut gone) = (Vec::new(), Vec::new());
    for _ in 0..20 {
        let started = Instant::now();
        let mut runner = RunnerProcess::start();
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
    let mut closed = RunnerProcess::loaded();
    closed.socket.shutdown(std::net::Shutdown::Both).unwrap();
    closed.ended_within(Duration::from_secs(2));

    let mut garbage = RunnerProcess::loaded();
    garbage.socket.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    garbage.ended_within(Duration::from_secs(2));

    let mut loading = RunnerProcess::start();
    loading.say(&ToRunner::Load(spec("sleep=60000")));
    assert!(matches!(loading.hear(), FromRunner::Hello { .. }));
    loading.say(&ToRunner::Exit);
    assert_eq!(loading.ended_within(Duration::from_secs(2)).signal(), Some(9));

    let mut working = RunnerProcess::loaded();
    working.give(1, work("hang"), &audio(1));
    assert!(matches!(working.hear(), FromRunner::FirstToken { id: 1, .. }));
    drop(working.socket.shutdown(std::net::Shutdown::Write));
    working.ended_within(Duration::from_secs(2));
}

#[test]
fn it_does_not_live_without_its_server() {
    let mut orphan = RunnerProcess::start_under(1);
    assert_eq!(orphan.ended_within(Duration::from_secs(5)).code(), Some(1));
}

#[test]
fn it_reads_the_audio_that_comes_with_its_work_and_nothing_around_it() {
    let samples = samples(100);
    let bytes: Vec<u8> = samples.iter().flat_map(|sample| sample.to_le_bytes()).collect();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&[0x55; 45]).unwrap();
    file.write_all(&bytes).unwrap();
    file.write_all(&[0x55; 1001]).unwrap();
    let mut runner = RunnerProcess::loaded();
    for (id, piece) in [(1, "piece=1000"), (2, "piece=10000000")] {
        let audio = PcmSpan { start_bytes: 45, len_samples: samples.len() as u64 };
        runner.give_file(id, work(piece), &file, audio);
        let (heard, seconds) = runner.finish(id);
        assert_eq!((heard, seconds), (sum(&samples), 100.0));
    }
    // Shorter than was said: its own fault, and the next is done.
    let audio = PcmSpan { start_bytes: 45, len_samples: 2 * samples.len() as u64 };
    runner.give_file(3, work(""), &file, audio);
    assert!(matches!(runner.hear(), FromRunner::Failed { id: 3, kind: FailureKind::Engine, .. }));
    let audio = PcmSpan { start_bytes: u64::MAX, len_samples: u64::MAX };
    runner.give_file(4, JobTask::DetectLanguage, &file, audio);
    assert!(matches!(runner.hear(), FromRunner::Failed { id: 4, kind: FailureKind::Engine, .. }));
    runner.give(5, work(""), &scripted::audio(10));
    assert_eq!(runner.finish(5).1, 10.0);
    // Work without audio: the other side is not what it says.
    runner.say(&ToRunner::Work { id: 6, work: work(""), audio, request: None });
    runner.ended_within(Duration::from_secs(2));
}

#[test]
fn cancelled_work_ends_wherever_it_is_and_the_next_is_done() {
    let mut runner = RunnerProcess::loaded();
    let cancelled = |message| matches!(message, FromRunner::Failed { kind: FailureKind::Cancelled, .. });
    // Between tokens; and one that has not begun.
    runner.give(2, work("each=60000"), &audio(1));
    runner.give(3, work("each=60000"), &audio(1));
    assert!(matches!(runner.hear(), FromRunner::FirstToken { id: 2, .. }));
    runner.say(&ToRunner::Cancel { id: 3 });
    runner.say(&ToRunner::Cancel { id: 2 });
    assert!(cancelled(runner.hear()) && cancelled(runner.hear()));
    runner.give(4, work(""), &audio(1));
    assert!(matches!(runner.hear(), FromRunner::FirstToken { id: 4, .. }));
    assert!(matches!(runner.hear(), FromRunner::Segment { id: 4, .. }));
    assert!(matches!(runner.hear(), FromRunner::Done { id: 4, .. }));
}

#[test]
fn several_jobs_have_their_own_audio_and_their_own_end() {
    let mut runner = RunnerProcess::start();
    runner.say(&ToRunner::Load(LoadSpec { max_batch: 3, ..spec("") }));
    assert!(matches!(runner.hear(), FromRunner::Hello { .. }));
    assert!(matches!(runner.hear(), FromRunner::Loaded { .. }));
    // The fourth waits for one of the others.
    for id in 1..=4 {
        let samples: Vec<i16> = (0..200_000_u64).map(|n| (n % 5 * id) as i16).collect();
        runner.give(id, work(if id == 2 { "each=60000" } else { "each=30" }), &pcm(&samples));
    }
    let (mut done, mut sums, mut begun) = (Vec::new(), HashMap::new(), Vec::new());
    let mut cancelled = false;
    while done.len() < 3 || !cancelled {
        match runner.hear() {
            FromRunner::FirstToken { id, .. } => {
                begun.push(id);
                assert!(begun.len() < 4 || cancelled || !done.is_empty(), "four at once");
                if id == 2 {
                    runner.say(&ToRunner::Cancel { id: 2 });
                }
            }
            FromRunner::Segment { id, segment } => drop(sums.insert(id, heard(&segment))),
            FromRunner::Done { id, .. } => done.push(id),
            FromRunner::Failed { id: 2, kind: FailureKind::Cancelled, .. } => cancelled = true,
            FromRunner::Beat => {}
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
    let mut runner = RunnerProcess::loaded();
    runner.give(1, work("each=900"), &audio(1));
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
