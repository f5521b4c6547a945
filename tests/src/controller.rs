//! One `hush-controller run` process over static targets; killed when the test lets go of it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tempfile::TempDir;

use crate::server::START_DEADLINE;
use crate::wait::wait_for;
use crate::{fixtures, http};

pub struct Controller {
    child: Child,
    pub ops: SocketAddr,
    log: Arc<Mutex<Vec<String>>>,
    folder: TempDir,
}

impl Controller {
    /// By these policies; looks five times a second unless the arguments say otherwise.
    pub fn start(policies: &str, args: &[&str]) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        fs::write(folder.path().join("policies.yaml"), policies)?;
        let mut command = Command::new(fixtures::controller()?);
        command
            .args(["run", "--listen", "127.0.0.1:0", "--log-format", "json", "--policy"])
            .arg(folder.path().join("policies.yaml"))
            .arg("--audit-log")
            .arg(folder.path().join("audit.jsonl"))
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        if !args.contains(&"--interval") {
            command.args(["--interval", "200ms"]);
        }
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("HUSH_CONTROLLER_") {
                command.env_remove(name);
            }
        }
        let mut child = command.spawn()?;
        let stderr = child.stderr.take().context("no stderr")?;
        let log = Arc::new(Mutex::new(Vec::new()));
        let lines = Arc::clone(&log);
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                lines.lock().unwrap_or_else(PoisonError::into_inner).push(line);
            }
        });
        let mut controller = Self { child, ops: SocketAddr::from(([0, 0, 0, 0], 0)), log, folder };
        controller.ops = wait_for("the controller says where it listens", START_DEADLINE, || {
            if let Some(status) = controller.child.try_wait()? {
                bail!("hush-controller ended with {status}:\n{}", controller.log().join("\n"));
            }
            let address = |line: &String| serde_json::from_str::<Value>(line).ok()?["ops"].as_str()?.parse().ok();
            Ok(controller.log().iter().find_map(address))
        })?;
        Ok(controller)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A JSON object a line.
    pub fn log(&self) -> Vec<String> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn policies(&self) -> PathBuf {
        self.folder.path().join("policies.yaml")
    }

    /// Every command so far and how it ended.
    pub fn audit(&self) -> Result<Vec<Value>> {
        let text = fs::read_to_string(self.folder.path().join("audit.jsonl")).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
    }

    pub fn metric(&self, series: &str) -> Result<Option<f64>> {
        http::series(&http::get(self.ops, "/metrics")?.text(), series)
    }

    pub fn wait_for_metric(&self, series: &str, expected: f64, deadline: Duration) -> Result<()> {
        let waited = wait_for(&format!("{series} {expected}"), deadline, || {
            Ok(self.metric(series)?.filter(|value| (value - expected).abs() < 1e-9).map(|_| ()))
        });
        waited.with_context(|| format!("log of the controller:\n{}", self.log().join("\n")))
    }

    /// Waits for a line of the log that holds all of these.
    pub fn wait_for_log(&self, parts: &[&str], deadline: Duration) -> Result<String> {
        let waited = wait_for(&format!("a line with {parts:?}"), deadline, || {
            Ok(self.log().into_iter().find(|line| parts.iter().all(|part| line.contains(part))))
        });
        waited.with_context(|| format!("log of the controller:\n{}", self.log().join("\n")))
    }

    /// Waits until the process has ended by itself.
    pub fn wait_for_exit(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let child = &mut self.child;
        wait_for("hush-controller ends", deadline, || Ok(child.try_wait()?))
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("log of the controller:\n{}", self.log().join("\n"));
        }
        // Both fail only when the process has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
