//! One `hush-server serve` process on free loopback ports; killed when the test lets go of it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::child::ChildProgram;
use crate::http::{self, Response};
use crate::wait::wait_for;
use crate::{fixtures, process};

#[derive(Default)]
pub struct ServerOptions {
    /// Further arguments of `serve`.
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    /// Instead of the shared one with the bundled model.
    pub models_dir: Option<PathBuf>,
    /// Instead of the CPU's ONNX Runtime.
    pub ort_lib: Option<PathBuf>,
    /// A configuration file says which models are served.
    pub names_models: bool,
    /// The soft limit of open files that it starts with.
    pub open_files: Option<u32>,
}

pub struct Server {
    program: ChildProgram,
    pub api: SocketAddr,
    pub ops: SocketAddr,
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
        let binary = fixtures::binary()?;
        let mut command = match options.open_files {
            Some(limit) => {
                let mut shell = Command::new("sh");
                shell.arg("-c").arg(format!("ulimit -Sn {limit} && exec \"$0\" \"$@\"")).arg(binary);
                shell
            }
            None => Command::new(binary),
        };
        command
            .args(["serve", "--listen", "127.0.0.1:0", "--log-format", "json"])
            .arg("--models-dir")
            .arg(models_dir)
            .arg("--ort-lib")
            .arg(options.ort_lib.unwrap_or_else(fixtures::onnxruntime))
            .args(options.args);
        if !command.get_args().any(|a| a == "--ops-listen") {
            command.args(["--ops-listen", "127.0.0.1:0"]);
        }
        let names_models = options.names_models || command.get_args().any(|a| a == "--model");
        if !names_models && !options.env.iter().any(|(n, _)| n == "ASR_MODEL") {
            command.args(["--model", fixtures::MODEL]);
        }
        command.envs(options.env);
        let cleared = ["HUSH_", "ASR_", "MODEL_IDLE_TIMEOUT"];
        let mut program = ChildProgram::start("hush-server", command, &cleared)?;
        let [api, ops] = program.wait_for_addresses(["api", "ops"])?;
        Ok(Self { program, api, ops })
    }

    pub fn pid(&self) -> u32 {
        self.program.pid()
    }

    /// What the server wrote to its log so far, a JSON object a line.
    pub fn log(&self) -> Vec<String> {
        self.program.log()
    }

    /// Who ordered each unload that it received so far, also of those that it then refused.
    pub fn unloads_ordered(&self) -> Vec<String> {
        let entries = self.log().into_iter().filter_map(|line| serde_json::from_str::<serde_json::Value>(&line).ok());
        let orders = entries.filter(|entry| entry["message"] == "unload ordered");
        orders.map(|entry| entry["caller"].as_str().unwrap_or_default().to_owned()).collect()
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
        http::series(&text, series)
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
        self.program.wait_for_exit(deadline)
    }
}
