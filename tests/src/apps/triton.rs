//! A real tritonserver whose models are a few lines of Python: slow at will in load, inference and unload.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::client::post;
use super::standins::JournalEntry;
use super::tested_app::{AppCall, LongCall, TestedApp};
use crate::child::ChildProgram;
use crate::http::{self, Response};
use crate::process;
use crate::wait::wait_for;

pub const TRITON_MODEL: &str = "slow";
const DEADLINE: Duration = Duration::from_secs(120);

const MODEL_CONFIG: &str = "\
backend: \"python\"
max_batch_size: 0
input [{name: \"x\" data_type: TYPE_FP32 dims: [1]}]
output [{name: \"y\" data_type: TYPE_FP32 dims: [1]}]
instance_group [{kind: KIND_CPU}]
";

/// Works for `x` seconds. The backend's Python ignores PYTHONPATH, and its utilities need numpy.
const MODEL_CODE: &str = "\
import sys
import time
sys.path.insert(0, 'PACKAGES')
import triton_python_backend_utils as utils

class TritonPythonModel:
    def initialize(self, args):
        time.sleep(LOAD)

    def execute(self, requests):
        answers = []
        for request in requests:
            x = utils.get_input_tensor_by_name(request, 'x')
            time.sleep(float(x.as_numpy()[0]))
            answers.append(utils.InferenceResponse(output_tensors=[utils.Tensor('y', x.as_numpy())]))
        return answers

    def finalize(self):
        time.sleep(UNLOAD)
";

pub struct TritonServer {
    binary: PathBuf,
    folder: TempDir,
    address: SocketAddr,
    /// gRPC and metrics.
    other_ports: [u16; 2],
    control_mode: &'static str,
    program: Option<ChildProgram>,
}

impl TritonServer {
    /// A model with these times; `binary` is the file of [`super::RealApp::Triton`].
    pub fn new(binary: &Path, load: Duration, unload: Duration) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let model = folder.path().join("repository").join(TRITON_MODEL);
        fs::create_dir_all(model.join("1"))?;
        fs::write(model.join("config.pbtxt"), MODEL_CONFIG)?;
        let packages = binary.ancestors().nth(4).context("no folder of packages")?;
        let code = MODEL_CODE.replace("PACKAGES", &packages.to_string_lossy());
        let code = code.replace("UNLOAD", &unload.as_secs_f64().to_string());
        fs::write(model.join("1/model.py"), code.replace("LOAD", &load.as_secs_f64().to_string()))?;
        let other_ports = [http::free_address()?.port(), http::free_address()?.port()];
        Ok(Self {
            binary: binary.to_owned(),
            folder,
            address: http::free_address()?,
            other_ports,
            control_mode: "explicit",
            program: None,
        })
    }

    /// The model's entry in the index: `state` is `READY`, `LOADING`, `UNLOADING`, `UNAVAILABLE`, or absent.
    pub fn entry(&self) -> Result<Value> {
        let answer = post(self.address, &AppCall::json("/v2/repository/index", &json!({})), &[])?;
        ensure!(answer.status == 200, "{}", answer.text());
        let index = answer.json()?;
        let entries = index.as_array().context("the index is no list")?;
        entries.iter().find(|entry| entry["name"] == TRITON_MODEL).cloned().context("the model is not in the index")
    }

    pub fn wait_for_model_state(&self, state: &str) -> Result<Value> {
        wait_for(&format!("Triton says {state}"), DEADLINE, || {
            Ok(Some(self.entry()?).filter(|entry| entry["state"] == state))
        })
    }

    /// `load` or `unload`.
    pub fn command_model(&self, action: &str) -> Result<Response> {
        post(self.address, &AppCall::json(&format!("/v2/repository/models/{TRITON_MODEL}/{action}"), &json!({})), &[])
    }

    pub fn infer(seconds: f64) -> AppCall {
        let input = json!({"name": "x", "shape": [1], "datatype": "FP32", "data": [seconds]});
        AppCall::json(&format!("/v2/models/{TRITON_MODEL}/infer"), &json!({"inputs": [input]}))
    }
}

impl TestedApp for TritonServer {
    fn name(&self) -> &'static str {
        "Triton"
    }

    fn address(&self) -> SocketAddr {
        self.address
    }

    fn start(&mut self) -> Result<()> {
        let home = self.binary.ancestors().nth(2).context("no folder of tritonserver")?;
        let [grpc, metrics] = self.other_ports;
        let mut command = Command::new(&self.binary);
        let repository = self.folder.path().join("repository");
        command.arg(format!("--model-repository={}", repository.display()));
        command.arg(format!("--backend-directory={}", home.join("backends").display()));
        command.arg(format!("--model-control-mode={}", self.control_mode));
        command.args(["--http-address=127.0.0.1", "--grpc-address=127.0.0.1", "--metrics-address=127.0.0.1"]);
        command.arg(format!("--http-port={}", self.address.port()));
        command.args([format!("--grpc-port={grpc}"), format!("--metrics-port={metrics}")]);
        command.arg("--allow-gpu-metrics=false");

        let program = self.program.insert(ChildProgram::start("tritonserver", command, &["TRITON"])?);
        let address = self.address;
        program.wait_while_running("is ready", DEADLINE, || {
            Ok(http::get(address, "/v2/health/ready").ok().filter(|answer| answer.status == 200).map(|_| ()))
        })
    }

    fn kill(&mut self) -> Result<()> {
        let mut program = self.program.take().context("Triton does not run")?;
        process::send(program.pid(), Signal::KILL)?;
        program.wait_for_exit(DEADLINE).map(|_| ())
    }

    fn terminate(&mut self) -> Result<()> {
        let mut program = self.program.take().context("Triton does not run")?;
        process::send(program.pid(), Signal::TERM)?;
        program.wait_for_exit(DEADLINE).map(|_| ())
    }

    fn sidecar_args(&self) -> Vec<String> {
        let upstream = format!("http://{}", self.address);
        let metrics_port = self.other_ports[1].to_string();
        let args = ["--app", "triton", "--upstream", &upstream, "--model", TRITON_MODEL, "--busy-port", &metrics_port];
        args.map(str::to_owned).to_vec()
    }

    fn model(&self) -> String {
        TRITON_MODEL.to_owned()
    }

    fn short_call(&self) -> AppCall {
        Self::infer(0.05)
    }

    fn long_call(&self) -> LongCall {
        LongCall { call: Self::infer(LongCall::DURATION.as_secs_f64()), streams: false }
    }

    fn is_complete(&self, answer: &Response) -> Result<bool> {
        Ok(answer.status == 200 && answer.text().contains("outputs"))
    }

    fn is_loaded(&self) -> Result<Option<bool>> {
        Ok(Some(self.entry()?["state"] == "READY"))
    }

    fn load_directly(&self) -> Result<()> {
        self.command_model("load")?;
        self.wait_for_model_state("READY").map(|_| ())
    }

    fn unload_directly(&self) -> Result<bool> {
        self.command_model("unload")?;
        self.wait_for_model_state("UNAVAILABLE").map(|_| true)
    }

    fn journal(&self) -> Result<Option<Vec<JournalEntry>>> {
        Ok(None)
    }
}
