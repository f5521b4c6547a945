//! A real Ollama on a tiny model.

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
use crate::process::{self, output_within};
use crate::wait::wait_for;

const DEADLINE: Duration = Duration::from_secs(120);
const MODEL: &str = "tiny";
/// At 7 to 30 ms a token: seconds, on a machine that has nothing else to do as well.
const LONG_TOKENS: u64 = 400;

pub struct OllamaServer {
    binary: PathBuf,
    folder: TempDir,
    address: SocketAddr,
    keep_alive: &'static str,
    program: Option<ChildProgram>,
    has_model: bool,
    /// Runners of a server that was killed: they stay.
    orphans: Vec<u32>,
}

impl OllamaServer {
    pub fn new(binary: &Path) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        write_tiny_llama(&folder.path().join("tiny.gguf"), TinyLlama::SLOW)?;
        // One thread: those of ggml spin, and on a busy machine several are many times slower than one.
        fs::write(
            folder.path().join("Modelfile"),
            "FROM ./tiny.gguf\nPARAMETER num_thread 1\nPARAMETER num_ctx 2048\n",
        )?;
        let address = http::free_address()?;
        Ok(Self {
            binary: binary.to_owned(),
            folder,
            address,
            keep_alive: "-1",
            program: None,
            has_model: false,
            orphans: Vec::new(),
        })
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.binary);
        let home = self.folder.path();
        command.current_dir(home).env("HOME", home).env("OLLAMA_HOST", self.address.to_string());
        command.env("OLLAMA_MODELS", home.join("models")).env("OLLAMA_NO_CLOUD", "1");
        command.env("OLLAMA_KEEP_ALIVE", self.keep_alive).env("OLLAMA_NUM_PARALLEL", "4");
        command
    }

    /// Children of `ollama serve`, each with a model.
    pub fn runners(&self) -> Result<Vec<u32>> {
        process::children(self.pid()?)
    }

    pub fn pid(&self) -> Result<u32> {
        Ok(self.program.as_ref().context("Ollama does not run")?.pid())
    }

    /// `models` of `/api/ps`.
    pub fn loaded(&self) -> Result<Vec<Value>> {
        let answer = http::get(self.address, "/api/ps")?.json()?;
        Ok(answer["models"].as_array().cloned().unwrap_or_default())
    }

    pub fn command_model(&self, keep_alive: i64) -> Result<Value> {
        let call = AppCall::json("/api/generate", &json!({"model": MODEL, "keep_alive": keep_alive, "stream": false}));
        let answer = post(self.address, &call, &[])?;
        ensure!(answer.status == 200, "{}", answer.text());
        answer.json()
    }
}

impl TestedApp for OllamaServer {
    fn name(&self) -> &'static str {
        "Ollama"
    }

    fn address(&self) -> SocketAddr {
        self.address
    }

    fn start(&mut self) -> Result<()> {
        let mut command = self.command();
        command.arg("serve");
        let program = self.program.insert(ChildProgram::start("ollama", command, &["OLLAMA_"])?);
        let address = self.address;
        program.wait_while_running("listens", DEADLINE, || {
            Ok(http::get(address, "/api/version").ok().filter(|answer| answer.status == 200).map(|_| ()))
        })?;
        if !self.has_model {
            let created = output_within(self.command().args(["create", MODEL, "-f", "Modelfile"]), DEADLINE)?;
            ensure!(created.status.success(), "ollama create: {}", String::from_utf8_lossy(&created.stderr));
            self.has_model = true;
        }
        Ok(())
    }

    fn kill(&mut self) -> Result<()> {
        self.orphans.extend(self.runners()?);
        let mut program = self.program.take().context("Ollama does not run")?;
        process::send(program.pid(), Signal::KILL)?;
        program.wait_for_exit(DEADLINE).map(|_| ())
    }

    fn terminate(&mut self) -> Result<()> {
        let mut program = self.program.take().context("Ollama does not run")?;
        process::send(program.pid(), Signal::TERM)?;
        program.wait_for_exit(DEADLINE).map(|_| ())
    }

    fn sidecar_args(&self) -> Vec<String> {
        let upstream = format!("http://{}", self.address);
        ["--app", "ollama", "--upstream", &upstream, "--model", MODEL].map(str::to_owned).to_vec()
    }

    fn model(&self) -> String {
        MODEL.to_owned()
    }

    fn short_call(&self) -> AppCall {
        AppCall::json(
            "/api/generate",
            &json!({"model": MODEL, "prompt": "hello", "stream": false,
            "options": {"num_predict": 2}}),
        )
    }

    fn long_call(&self) -> LongCall {
        let body = json!({"model": MODEL, "prompt": "hello", "options": {"num_predict": LONG_TOKENS}});
        LongCall { call: AppCall::json("/api/generate", &body), streams: true }
    }

    fn is_complete(&self, answer: &Response) -> Result<bool> {
        Ok(answer.status == 200 && answer.text().contains("\"done\":true"))
    }

    fn is_loaded(&self) -> Result<Option<bool>> {
        Ok(Some(!self.loaded()?.is_empty()))
    }

    fn load_directly(&self) -> Result<()> {
        self.command_model(-1).map(|_| ())
    }

    fn unload_directly(&self) -> Result<bool> {
        self.command_model(0)?;
        wait_for("the model is gone", DEADLINE, || Ok(self.loaded()?.is_empty().then_some(true)))
    }

    fn journal(&self) -> Result<Option<Vec<JournalEntry>>> {
        Ok(None)
    }
}

impl Drop for OllamaServer {
    fn drop(&mut self) {
        // By SIGTERM, because a killed server leaves its runners behind.
        if self.program.is_some() {
            let _ = self.terminate();
        }
        for orphan in &self.orphans {
            // A number may belong to another process by now.
            if std::fs::read_to_string(format!("/proc/{orphan}/comm")).is_ok_and(|name| name.trim() == "ollama") {
                let _ = process::send(*orphan, Signal::KILL);
            }
        }
    }
}
