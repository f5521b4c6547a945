//! Real llama.cpp servers on a tiny model: one model per process (the wheel xllamacpp), and llama-server with its router.

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
use super::gguf::{TinyLlama, write_tiny_llama};
use super::standins::JournalEntry;
use super::tested_app::{AppCall, LongCall, TestedApp};
use crate::child::ChildProgram;
use crate::http::{self, Response};
use crate::process;
use crate::wait::wait_for;

const DEADLINE: Duration = Duration::from_secs(120);
const MODEL: &str = "tiny";
/// At 7 to 30 ms a token: seconds, on a machine that has nothing else to do as well.
const LONG_TOKENS: u64 = 400;

/// One model per process: argument 1 is the model's file, 2 the port.
const PROCESS_SCRIPT: &str = "\
import sys, time, xllamacpp
parameters = xllamacpp.CommonParams()
parameters.model.path = sys.argv[1]
parameters.hostnames = ['127.0.0.1']
parameters.port = int(sys.argv[2])
parameters.n_ctx = 8192
parameters.endpoint_metrics = True
parameters.endpoint_slots = True
parameters.cpuparams.n_threads = 1
parameters.cpuparams_batch.n_threads = 1
server = xllamacpp.Server(parameters)
while True:
    time.sleep(1)
";

fn chat(tokens: u64, streams: bool) -> AppCall {
    let body = json!({"model": MODEL, "max_tokens": tokens, "stream": streams, "ignore_eos": true,
        "messages": [{"role": "user", "content": "hello"}]});
    AppCall::json("/v1/chat/completions", &body)
}

/// A model that is slow enough for streams, in a folder of its own.
fn write_model(folder: &Path) -> Result<PathBuf> {
    let models = folder.join("models");
    fs::create_dir(&models)?;
    let file = models.join(format!("{MODEL}.gguf"));
    write_tiny_llama(&file, TinyLlama::SLOW)?;
    Ok(file)
}

/// The library's server for process mode: the sidecar starts and stops it.
pub struct LlamaProcess {
    packages: PathBuf,
    folder: TempDir,
    address: SocketAddr,
    program: Option<ChildProgram>,
}

impl LlamaProcess {
    /// `package` is the file of [`super::RealApp::Xllamacpp`].
    pub fn new(package: &Path) -> Result<Self> {
        let packages = package.ancestors().nth(2).context("no folder of packages")?.to_owned();
        let folder = tempfile::tempdir()?;
        write_model(folder.path())?;
        fs::write(folder.path().join("server.py"), PROCESS_SCRIPT)?;
        Ok(Self { packages, folder, address: http::free_address()?, program: None })
    }

    /// The command, with the port as an argument at its end.
    fn command(&self, port: &str) -> Vec<String> {
        let path = |name: &str| self.folder.path().join(name).to_string_lossy().into_owned();
        let packages = format!("PYTHONPATH={}", self.packages.display());
        let model = path(&format!("models/{MODEL}.gguf"));
        ["env", &packages, "python3", &path("server.py"), &model, port].map(str::to_owned).to_vec()
    }

    /// The file that every process of this server names in its command line.
    pub fn script(&self) -> PathBuf {
        self.folder.path().join("server.py")
    }

    /// Starts it without a sidecar and waits for a status of `/health`.
    pub fn start_alone(&mut self) -> Result<()> {
        let command = self.command(&self.address.port().to_string());
        let mut program = Command::new(&command[0]);
        program.args(&command[1..]);
        let program = self.program.insert(ChildProgram::start("xllamacpp", program, &["LLAMA_"])?);
        let address = self.address;
        program.wait_while_running("is ready", DEADLINE, || {
            Ok(http::get(address, "/health").ok().filter(|answer| answer.status == 200).map(|_| ()))
        })
    }
}

impl TestedApp for LlamaProcess {
    fn name(&self) -> &'static str {
        "llama.cpp in process mode"
    }

    fn address(&self) -> SocketAddr {
        self.address
    }

    fn start(&mut self) -> Result<()> {
        Ok(())
    }

    fn kill(&mut self) -> Result<()> {
        let mut program = self.program.take().context("the server does not run")?;
        process::send(program.pid(), Signal::KILL)?;
        program.wait_for_exit(DEADLINE).map(|_| ())
    }

    fn terminate(&mut self) -> Result<()> {
        self.kill()
    }

    fn sidecar_args(&self) -> Vec<String> {
        let fixed = ["--app", "process", "--model", MODEL, "--ready", "/health", "--"].map(str::to_owned);
        fixed.into_iter().chain(self.command("{port}")).collect()
    }

    fn model(&self) -> String {
        MODEL.to_owned()
    }

    fn short_call(&self) -> AppCall {
        chat(2, false)
    }

    fn long_call(&self) -> LongCall {
        LongCall { call: chat(LONG_TOKENS, true), streams: true }
    }

    fn is_complete(&self, answer: &Response) -> Result<bool> {
        Ok(answer.status == 200 && answer.text().contains("data: [DONE]"))
    }

    fn is_loaded(&self) -> Result<Option<bool>> {
        Ok(None)
    }

    fn load_directly(&self) -> Result<()> {
        Ok(())
    }

    fn unload_directly(&self) -> Result<bool> {
        Ok(false)
    }

    fn journal(&self) -> Result<Option<Vec<JournalEntry>>> {
        Ok(None)
    }
}

/// llama-server with its router, with the flags that governing it needs.
pub struct LlamaRouter {
    binary: PathBuf,
    folder: TempDir,
    address: SocketAddr,
    args: Vec<String>,
    program: Option<ChildProgram>,
}

impl LlamaRouter {
    /// With further arguments, which may take back the fixed ones.
    pub fn new(binary: &Path, args: &[&str]) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        write_model(folder.path())?;
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        Ok(Self { binary: binary.to_owned(), folder, address: http::free_address()?, args, program: None })
    }

    /// The model's status in the list: `unloaded`, `loading`, `loaded`.
    pub fn status(&self) -> Result<Value> {
        let list = http::get(self.address, "/models")?.json()?;
        let data = list["data"].as_array().context("no data in the list")?;
        let found = data.iter().find(|entry| entry["id"] == MODEL).context("the model is not listed")?;
        Ok(found["status"].clone())
    }

    pub fn wait_for_value(&self, value: &str) -> Result<Value> {
        wait_for(&format!("the router says {value}"), DEADLINE, || {
            Ok(Some(self.status()?).filter(|status| status["value"] == value))
        })
    }

    pub fn pid(&self) -> Result<u32> {
        Ok(self.program.as_ref().context("llama-server does not run")?.pid())
    }

    fn act(&self, action: &str) -> Result<()> {
        let answer = post(self.address, &AppCall::json(&format!("/models/{action}"), &json!({"model": MODEL})), &[])?;
        ensure!(answer.status == 200, "{action}: {}", answer.text());
        self.wait_for_value(if action == "load" { "loaded" } else { "unloaded" }).map(|_| ())
    }
}

impl TestedApp for LlamaRouter {
    fn name(&self) -> &'static str {
        "llama-server"
    }

    fn address(&self) -> SocketAddr {
        self.address
    }

    fn start(&mut self) -> Result<()> {
        let mut command = Command::new(&self.binary);
        command.args(["--host", "127.0.0.1", "--port", &self.address.port().to_string()]);
        command.arg("--models-dir").arg(self.folder.path().join("models"));
        command.args(["--no-models-autoload", "--models-max", "0", "--metrics", "--offline", "-c", "8192"]);
        command.args(["-t", "1", "-tb", "1", "-np", "4"]).args(&self.args).env("HOME", self.folder.path());
        let program = self.program.insert(ChildProgram::start("llama-server", command, &["LLAMA_"])?);
        let address = self.address;
        program.wait_while_running("listens", DEADLINE, || {
            Ok(http::get(address, "/health").ok().filter(|answer| answer.status == 200).map(|_| ()))
        })
    }

    fn kill(&mut self) -> Result<()> {
        let mut program = self.program.take().context("llama-server does not run")?;
        process::send(program.pid(), Signal::KILL)?;
        program.wait_for_exit(DEADLINE).map(|_| ())
    }

    fn terminate(&mut self) -> Result<()> {
        let mut program = self.program.take().context("llama-server does not run")?;
        process::send(program.pid(), Signal::TERM)?;
        program.wait_for_exit(DEADLINE).map(|_| ())
    }

    fn sidecar_args(&self) -> Vec<String> {
        let upstream = format!("http://{}", self.address);
        ["--app", "llama-server", "--upstream", &upstream, "--model", MODEL].map(str::to_owned).to_vec()
    }

    fn model(&self) -> String {
        MODEL.to_owned()
    }

    fn short_call(&self) -> AppCall {
        chat(2, false)
    }

    fn long_call(&self) -> LongCall {
        LongCall { call: chat(LONG_TOKENS, true), streams: true }
    }

    fn is_complete(&self, answer: &Response) -> Result<bool> {
        Ok(answer.status == 200 && answer.text().contains("data: [DONE]"))
    }

    fn is_loaded(&self) -> Result<Option<bool>> {
        Ok(Some(self.status()?["value"] == "loaded"))
    }

    fn load_directly(&self) -> Result<()> {
        self.act("load")
    }

    fn unload_directly(&self) -> Result<bool> {
        self.act("unload").map(|()| true)
    }

    fn journal(&self) -> Result<Option<Vec<JournalEntry>>> {
        Ok(None)
    }
}
