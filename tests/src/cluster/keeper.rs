//! Clears up after a control plane, however the test ends: a panic, a signal, a killed process.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

use anyhow::{Context, Result};

/// Each line that it reads names all processes that live; when there are no more lines, they and the folder go.
const SCRIPT: &str = r#"
pids=
while read -r line; do pids=$line; done
[ -z "$pids" ] || kill -KILL $pids 2>/dev/null
tries=0
until rm -rf -- "$1" 2>/dev/null || [ $tries -ge 50 ]; do tries=$((tries + 1)); sleep 0.1; done
"#;

/// A shell in a process group of its own that holds the other end of a pipe. When this process is gone the pipe is closed.
pub struct Keeper {
    shell: Child,
    pipe: Option<ChildStdin>,
    folder: PathBuf,
}

impl Keeper {
    pub fn start() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("hush-control-plane-").tempdir()?;
        let mut shell = Command::new("sh")
            .args(["-c", SCRIPT, "sh"])
            .arg(folder.path())
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let pipe = Some(shell.stdin.take().context("no pipe to the keeper")?);
        Ok(Self { shell, pipe, folder: folder.keep() })
    }

    /// Lives as long as the keeper.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// All processes that are to be ended.
    pub fn keep(&mut self, pids: &[u32]) -> Result<()> {
        let line = pids.iter().map(u32::to_string).collect::<Vec<_>>().join(" ");
        writeln!(self.pipe.as_mut().context("the keeper is gone")?, "{line}").context("telling the keeper")
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.pipe.take());
        // Fails only when it has been reaped already.
        let _ = self.shell.wait();
    }
}
