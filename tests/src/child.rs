//! A program under test: its log is read as it is written, and it is killed when the test lets go of it.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::wait::wait_for;

const START_DEADLINE: Duration = Duration::from_secs(60);
/// How long the last lines of a program that has ended may take. A child that it left behind may hold its standard error open.
const LAST_LINES_DEADLINE: Duration = Duration::from_secs(5);

pub struct ChildProgram {
    name: &'static str,
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
    log_reader: JoinHandle<()>,
}

impl ChildProgram {
    /// Variables that begin with one of `cleared` are those of the person who runs the tests: they must not steer what is
    /// tested.
    pub fn start(name: &'static str, mut command: Command, cleared: &[&str]) -> Result<Self> {
        for (variable, _) in std::env::vars_os() {
            let text = variable.to_string_lossy();
            let given = command.get_envs().any(|(known, _)| known == variable);
            if !given && cleared.iter().any(|prefix| text.starts_with(prefix)) {
                command.env_remove(&variable);
            }
        }
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        let stderr = child.stderr.take().context("no stderr")?;
        let log = Arc::new(Mutex::new(Vec::new()));
        let lines = Arc::clone(&log);
        let log_reader = thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                lines.lock().unwrap_or_else(PoisonError::into_inner).push(line);
            }
        });
        Ok(Self { name, child, log, log_reader })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it wrote to its log so far, a JSON object a line.
    pub fn log(&self) -> Vec<String> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until the log says where the program listens, and gives the addresses in these fields of that entry.
    pub fn wait_for_addresses(&mut self, fields: [&str; 2]) -> Result<[SocketAddr; 2]> {
        self.wait_for_entry("where it listens", |entry| {
            let address = |field: &str| entry[field].as_str()?.parse().ok();
            Some([address(fields[0])?, address(fields[1])?])
        })
    }

    /// Waits until an entry of the log says what is looked for.
    pub fn wait_for_entry<T>(&mut self, what: &str, found: impl Fn(&Value) -> Option<T>) -> Result<T> {
        wait_for(&format!("{} says {what}", self.name), START_DEADLINE, || {
            let ended = self.child.try_wait()?;
            if ended.is_some() {
                self.wait_for_last_lines();
            }
            let log = self.log();
            let entry = log.iter().filter_map(|line| serde_json::from_str(line).ok()).find_map(|entry| found(&entry));
            match (entry, ended) {
                (None, Some(status)) => bail!("{} ended with {status}:\n{}", self.name, log.join("\n")),
                (entry, _) => Ok(entry),
            }
        })
    }

    /// Waits for a condition; an error with the log if the program ends before.
    pub fn wait_while_running<T>(
        &mut self,
        what: &str,
        deadline: Duration,
        mut condition: impl FnMut() -> Result<Option<T>>,
    ) -> Result<T> {
        wait_for(&format!("{} {what}", self.name), deadline, || {
            if let Some(status) = self.child.try_wait()? {
                self.wait_for_last_lines();
                bail!("{} ended with {status}:\n{}", self.name, self.log().join("\n"));
            }
            condition()
        })
        .with_context(|| format!("log of {}:\n{}", self.name, self.log().join("\n")))
    }

    /// `None`: it runs.
    pub fn exit_status(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits until it has ended by itself.
    pub fn wait_for_exit(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let child = &mut self.child;
        let status = wait_for(&format!("{} ends", self.name), deadline, || Ok(child.try_wait()?))?;

        self.wait_for_last_lines();
        Ok(status)
    }

    /// Waits until the lines are read that a program wrote before it ended.
    fn wait_for_last_lines(&self) {
        // Without the end of its standard error the log is as far as it goes.
        let _ = wait_for("the last lines", LAST_LINES_DEADLINE, || Ok(self.log_reader.is_finished().then_some(())));
    }
}

impl Drop for ChildProgram {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("log of {}:\n{}", self.name, self.log().join("\n"));
        }
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
