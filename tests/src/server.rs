//! One `hush-server serve` process on free loopback ports; killed when the test lets go of it.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::http::{self, Response};
use crate::wait::wait_for;
use crate::{fixtures, process};

pub const START_DEADLINE: Duration = Duration::from_secs(60);

#[derive(Default)]
pub struct ServerOptions {
    /// Further arguments of `serve`.
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    /// Instead of the shared one with the bundled model.
    pub models_dir: Option<PathBuf>,
    /// A configuration file says which models are served.
    pub names_models: bool,
}

pub struct Server {
    child: Child,
    pub api: SocketAddr,
    pub ops: SocketAddr,
    log: Arc<Mutex<Vec<String>>>,
}

impl Server {
    /// The bundled model, int8, and these arguments.
    pub fn start(args: &[&str]) -> Result<Self> {
        let args = args.iter().map(|a| (*a).to_owned()).collect();
        Self::start_with(ServerOptions { args, ..ServerOptions::default() })
    }

    pub fn start_with(options: ServerOptions) -> Result<Self> {
        let models_dir = match options.models_dir {
            Some(dir) => dir,
            None => fixtures::models_dir("int8")?,
        };
        let mut command = Command::new(fixtures::binary()?);
        command
            .args(["serve", "--listen", "127.0.0.1:0", "--log-format", "json"])
            .arg("--models-dir")
            .arg(models_dir)
            .arg("--ort-lib")
            .arg(fixtures::onnxruntime())
            .args(options.args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        if !command.get_args().any(|a| a == "--ops-listen") {
            command.args(["--ops-listen", "127.0.0.1:0"]);
        }
        // A variable of the person who runs the tests must not steer the server under test.
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy();
            if name.starts_with("HUSH_") || name.starts_with("ASR_") || name == "MODEL_IDLE_TIMEOUT" {
                command.env_remove(name.as_ref());
            }
        }
        let names_models = options.names_models || command.get_args().any(|a| a == "--model");
        if !names_models && !options.env.iter().any(|(n, _)| n == "ASR_MODEL") {
            command.args(["--model", fixtures::MODEL]);
        }
        let mut child = command.envs(options.env).spawn()?;
        let stderr = child.stderr.take().context("no stderr")?;
        let log = Arc::new(Mutex::new(Vec::new()));
        let lines = Arc::clone(&log);
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                lines.lock().unwrap_or_else(PoisonError::into_inner).push(line);
            }
        });
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        let mut server = Self { child, api: nowhere, ops: nowhere, log };
        (server.api, server.ops) = wait_for("the server says where it listens", START_DEADLINE, || {
            if let Some(status) = server.child.try_wait()? {
                anyhow::bail!("hush-server ended with {status}:\n{}", server.log().join("\n"));
            }
            Ok(server.log().iter().find_map(|line| listening(line)))
        })?;
        Ok(server)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What the server wrote to its log so far, a JSON object a line.
    pub fn log(&self) -> Vec<String> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Process ids of the runners that live.
    pub fn runners(&self) -> Result<Vec<u32>> {
        process::children(self.pid())
    }

    pub fn asr(&self, query: &str, file_name: &str) -> Result<Response> {
        http::upload(self.api, &format!("/asr{query}"), file_name, &fixtures::audio(file_name)?)
    }

    /// The value of one series of `/metrics`, `name{label="value",...}` as it is printed there; `None` when absent.
    pub fn metric(&self, series: &str) -> Result<Option<f64>> {
        let text = http::get(self.ops, "/metrics")?.text();
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.map(|value| value.parse().with_context(|| format!("{series} {value}"))).transpose()
    }

    pub fn wait_for_metric(&self, series: &str, expected: f64, deadline: Duration) -> Result<()> {
        let mut last = None;
        let waited = wait_for(&format!("{series} {expected}"), deadline, || {
            last = self.metric(series)?;
            Ok(last.filter(|value| (value - expected).abs() < 1e-9).map(|_| ()))
        });
        waited.with_context(|| format!("it is {last:?}; log of the server:\n{}", self.log().join("\n")))
    }

    pub fn wait_for_state(&self, state: &str, deadline: Duration) -> Result<()> {
        let series = format!("hush_model_state{{model=\"{}\",state=\"{state}\"}}", fixtures::MODEL);
        self.wait_for_metric(&series, 1.0, deadline)
    }

    /// Waits until the process has ended by itself.
    pub fn wait_for_exit(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let child = &mut self.child;
        wait_for("hush-server ends", deadline, || Ok(child.try_wait()?))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("log of the server:\n{}", self.log().join("\n"));
        }
        // Both fail only when the process has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn listening(line: &str) -> Option<(SocketAddr, SocketAddr)> {
    let entry: Value = serde_json::from_str(line).ok()?;
    let field = |name: &str| entry[name].as_str()?.parse().ok();
    Some((field("api")?, field("ops")?))
}
