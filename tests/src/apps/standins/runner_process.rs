//! A child process that holds the memory of one model, as the runners of Ollama, llama-server and LocalAI are: this program
//! again, with `HUSH_STANDIN_RUNNER` set to what it shall do.

use std::io::Read;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::io::AsyncReadExt;
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::memory::DeviceMemory;

/// `BYTES GPU ORPHAN`, where ORPHAN is `stays` or `ends`.
const RUNNER_VARIABLE: &str = "HUSH_STANDIN_RUNNER";
/// An orphan of a test that was killed must not stay for ever.
const LONGEST_ORPHAN: Duration = Duration::from_secs(120);

/// What becomes of the child when its parent is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OrphanBehaviour {
    /// It stays, with its memory (Ollama).
    Stays,
    /// It sees the end of its standard input and ends (llama-server).
    Ends,
}

#[derive(Debug)]
pub struct StandInRunner {
    pub pid: u32,
    stop: mpsc::Sender<()>,
    exited: CancellationToken,
}

impl StandInRunner {
    /// Starts a child and waits until it holds its memory; `None`: the device has no room for it.
    pub async fn start(bytes: u64, gpu: Option<&str>, orphan: OrphanBehaviour) -> Result<Option<Self>> {
        let orphan = if orphan == OrphanBehaviour::Stays { "stays" } else { "ends" };
        let mut child = Command::new(std::env::current_exe()?)
            .env(RUNNER_VARIABLE, format!("{bytes} {} {orphan}", gpu.unwrap_or("-")))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdin = child.stdin.take().context("no standard input")?;
        let stdout = child.stdout.take().context("no standard output")?;
        if !has_room(stdout).await? {
            child.wait().await?;
            return Ok(None);
        }

        let pid = child.id().context("the runner has ended at once")?;
        let (stop, stopped) = mpsc::channel(1);
        let exited = CancellationToken::new();
        tokio::spawn(keep(child, stdin, stopped, exited.clone()));
        Ok(Some(Self { pid, stop, exited }))
    }

    /// Cancelled when the child has ended, for whatever reason.
    pub fn exited(&self) -> CancellationToken {
        self.exited.clone()
    }

    pub async fn stop(self) {
        // It may have ended already.
        let _ = self.stop.send(()).await;
        self.exited.cancelled().await;
    }
}

async fn has_room(mut stdout: ChildStdout) -> Result<bool> {
    let mut word = [0];
    stdout.read_exact(&mut word).await.context("the runner says nothing")?;
    Ok(word == *b"y")
}

async fn keep(mut child: Child, stdin: ChildStdin, mut stopped: mpsc::Receiver<()>, exited: CancellationToken) {
    tokio::select! {
        _ = child.wait() => {}
        // Without a sender it lives on.
        Some(()) = stopped.recv() => {
            // Fails only when it has just ended.
            let _ = child.kill().await;
        }
    }
    drop(stdin);
    exited.cancel();
}

/// The child's side. `None`: this process is none.
pub fn run_as_runner() -> Option<Result<()>> {
    let order = std::env::var(RUNNER_VARIABLE).ok()?;
    Some(hold(&order))
}

fn hold(order: &str) -> Result<()> {
    let words: Vec<&str> = order.split(' ').collect();
    ensure!(words.len() == 3, "{RUNNER_VARIABLE} is malformed: {order}");
    let memory = DeviceMemory::new(Some(words[1]).filter(|gpu| *gpu != "-"));

    let fits = memory.take(words[0].parse()?)?;
    std::io::Write::write_all(&mut std::io::stdout(), if fits { b"y" } else { b"n" })?;
    std::io::Write::flush(&mut std::io::stdout())?;
    if !fits {
        return Ok(());
    }

    // Ends when the parent has.
    std::io::stdin().read_to_end(&mut Vec::new())?;
    if words[2] == "stays" {
        std::thread::sleep(LONGEST_ORPHAN);
    }
    Ok(())
}
