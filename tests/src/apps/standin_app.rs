//! A stand-in as a process of its own.

use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hush_nvml::SCRIPT_VARIABLE;
use rustix::process::Signal;
use serde_json::json;
use tempfile::TempDir;

use super::client::post;
use super::standins::{JournalEntry, JournalEvent, StandInKind, ViolationKind};
use super::tested_app::{AppCall, LongCall, TestedApp};
use crate::child::ChildProgram;
use crate::gpus::UUID;
use crate::http::{self, Response};
use crate::wait::wait_for;
use crate::{fixtures, process};

const DEADLINE: Duration = Duration::from_secs(60);
const TOKEN: Duration = Duration::from_millis(20);

pub struct StandInApp {
    kind: StandInKind,
    address: SocketAddr,
    folder: TempDir,
    args: Vec<String>,
    gpus: Option<PathBuf>,
    program: Option<ChildProgram>,
}

impl StandInApp {
    /// Not started yet, with these arguments of `hush-app-standin` beside those that every stand-in needs.
    pub fn new(kind: StandInKind, args: &[&str]) -> Result<Self> {
        Ok(Self {
            kind,
            address: http::free_address()?,
            folder: tempfile::tempdir()?,
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            gpus: None,
            program: None,
        })
    }

    /// Its models hold memory of the first GPU of this script.
    pub fn on_gpus(mut self, script: PathBuf) -> Self {
        self.gpus = Some(script);
        self
    }

    fn arguments(&self) -> Vec<String> {
        let (port, journal) = (self.address.port().to_string(), self.journal_path().to_string_lossy().into_owned());
        let (model, token_ms) = (format!("{}={}", self.model(), 2_u64 << 30), TOKEN.as_millis().to_string());

        let fixed = ["--app", self.kind.name(), "--port", &port, "--model", &model];
        let mut arguments = fixed.map(str::to_owned).to_vec();
        arguments.extend(["--journal", &journal, "--token-ms", &token_ms].map(str::to_owned));
        arguments.extend(self.args.iter().cloned());
        if self.gpus.is_some() {
            arguments.extend(["--gpu", UUID].map(str::to_owned));
        }
        arguments
    }

    /// The arguments of a sidecar that starts the stand-in itself, in the place of [`TestedApp::start`].
    pub fn sidecar_args_with_command(&self) -> Result<Vec<String>> {
        let mut arguments = self.sidecar_args();
        arguments.extend(["--".to_owned(), "/usr/bin/env".to_owned()]);

        // An app inherits no variable of the sidecar.
        let script = self.gpus.as_ref().map(|script| format!("{SCRIPT_VARIABLE}={}", script.display()));
        arguments.extend(script);
        arguments.push(fixtures::app_standin()?.to_string_lossy().into_owned());
        arguments.extend(self.arguments());
        Ok(arguments)
    }

    pub const fn kind(&self) -> StandInKind {
        self.kind
    }

    pub fn pid(&self) -> Result<u32> {
        Ok(self.program.as_ref().context("the stand-in does not run")?.pid())
    }

    /// Whether the process has ended by itself.
    pub fn has_ended(&mut self) -> Result<bool> {
        match &mut self.program {
            Some(program) => Ok(program.exit_status()?.is_some()),
            None => Ok(true),
        }
    }

    fn journal_path(&self) -> PathBuf {
        self.folder.path().join("journal")
    }

    pub fn entries(&self) -> Result<Vec<JournalEntry>> {
        JournalEntry::read_all(&self.journal_path())
    }

    /// What must not happen, in its order.
    pub fn violations(&self) -> Result<Vec<(ViolationKind, String)>> {
        let entries = self.entries()?.into_iter();
        Ok(entries
            .filter_map(|entry| match entry.event {
                JournalEvent::Violation { kind, detail } => Some((kind, detail)),
                _ => None,
            })
            .collect())
    }

    /// Children that held a model, also those that have ended.
    pub fn runners(&self) -> Result<Vec<u32>> {
        let entries = self.entries()?.into_iter();
        Ok(entries
            .filter_map(|entry| match entry.event {
                JournalEvent::RunnerStarted { pid } => Some(pid),
                _ => None,
            })
            .collect())
    }

    fn command(&self, action: &str) -> Option<AppCall> {
        let model = self.model();
        let named = json!({"model": model});
        let call = match (self.kind, action) {
            (StandInKind::Ollama, "load") => AppCall::json("/api/generate", &json!({"model": model, "keep_alive": -1})),
            (StandInKind::Ollama, _) => AppCall::json("/api/generate", &json!({"model": model, "keep_alive": 0})),
            (StandInKind::LlamaServer, action) => AppCall::json(&format!("/models/{action}"), &named),
            (StandInKind::Vllm, "load") => AppCall::json("/wake_up", &json!({})),
            (StandInKind::Vllm, _) => AppCall::json("/sleep?level=1&mode=wait", &json!({})),
            (StandInKind::Sglang, "load") => AppCall::json("/resume_memory_occupation", &json!({})),
            (StandInKind::Sglang, _) => AppCall::json("/release_memory_occupation", &json!({})),
            (StandInKind::Triton, action) => {
                AppCall::json(&format!("/v2/repository/models/{model}/{action}"), &json!({}))
            }
            (StandInKind::Comfyui, "load") => self.short_call(),
            (StandInKind::Comfyui, _) => AppCall::json("/free", &json!({"unload_models": true, "free_memory": true})),
            (StandInKind::Localai, "load") => AppCall::json("/backend/load", &named),
            (StandInKind::Localai, _) => AppCall::json("/backend/shutdown", &named),
            (StandInKind::Speaches, "load") => AppCall::json(&format!("/api/ps/{model}"), &json!({})),
            (StandInKind::Speaches, _) => AppCall { method: "DELETE", ..AppCall::get(&format!("/api/ps/{model}")) },
            (StandInKind::A1111, "load") => AppCall::json("/sdapi/v1/reload-checkpoint", &json!({})),
            (StandInKind::A1111, _) => AppCall::json("/sdapi/v1/unload-checkpoint", &json!({})),
        };
        Some(call)
    }

    /// Whether the model is loaded, as the last change in the journal says.
    fn has_model(&self) -> Result<bool> {
        let entries = self.entries()?.into_iter();
        let mut changes = entries.rev().filter_map(|entry| match entry.event {
            JournalEvent::Started { .. } => Some(false),
            JournalEvent::Loaded { .. } => Some(true),
            JournalEvent::Unloaded { .. } => Some(false),
            _ => None,
        });
        Ok(changes.next().unwrap_or(false))
    }

    fn act_directly(&self, action: &str) -> Result<()> {
        let call = self.command(action).context("no such command")?;
        let answer = post(self.address, &call, &[])?;
        ensure!(answer.status < 300, "{action}: {} {}", answer.status, answer.text());
        wait_for(action, DEADLINE, || Ok((self.has_model()? == (action == "load")).then_some(())))
    }
}

impl TestedApp for StandInApp {
    fn name(&self) -> &'static str {
        self.kind.name()
    }

    fn address(&self) -> SocketAddr {
        self.address
    }

    fn start(&mut self) -> Result<()> {
        let mut command = Command::new(fixtures::app_standin()?);
        command.args(self.arguments());
        if let Some(script) = &self.gpus {
            command.env(SCRIPT_VARIABLE, script);
        }
        let program = self.program.insert(ChildProgram::start("hush-app-standin", command, &["HUSH_STANDIN"])?);

        let address = self.address;
        program.wait_while_running("listens", DEADLINE, || Ok(TcpStream::connect(address).ok().map(|_| ())))
    }

    fn kill(&mut self) -> Result<()> {
        let mut program = self.program.take().context("the stand-in does not run")?;
        process::send(program.pid(), Signal::KILL)?;
        program.wait_for_exit(DEADLINE).map(|_| ())
    }

    fn terminate(&mut self) -> Result<()> {
        let mut program = self.program.take().context("the stand-in does not run")?;
        process::send(program.pid(), Signal::TERM)?;
        program.wait_for_exit(DEADLINE).map(|_| ())
    }

    fn sidecar_args(&self) -> Vec<String> {
        let upstream = format!("http://{}", self.address);
        let args = ["--app", self.kind.name(), "--upstream", &upstream, "--model", &self.model()];
        let mut args = args.map(str::to_owned).to_vec();
        if self.kind == StandInKind::Triton {
            // The stand-in has its metrics on its one port.
            args.extend(["--busy-port".to_owned(), self.address.port().to_string()]);
        }
        args
    }

    fn model(&self) -> String {
        match self.kind {
            StandInKind::Speaches => "Systran/faster-whisper-tiny".to_owned(),
            _ => "tiny".to_owned(),
        }
    }

    fn short_call(&self) -> AppCall {
        let model = self.model();
        match self.kind {
            StandInKind::Ollama => AppCall::json(
                "/api/generate",
                &json!({"model": model, "prompt": "hello", "stream": false,
                "options": {"num_predict": 2}}),
            ),
            StandInKind::Triton => AppCall::json(&format!("/v2/models/{model}/infer"), &infer_body(0.05)),
            StandInKind::Comfyui => AppCall::json("/prompt", &json!({"prompt": {"seconds": 0.05}})),
            StandInKind::Speaches => {
                AppCall::json("/v1/audio/speech", &json!({"model": model, "input": "two words", "voice": "x"}))
            }
            StandInKind::A1111 => AppCall::json("/sdapi/v1/txt2img", &json!({"prompt": "a cat", "steps": 2})),
            _ => AppCall::json(
                "/v1/chat/completions",
                &json!({"model": model, "max_tokens": 2,
                "messages": [{"role": "user", "content": "hello"}]}),
            ),
        }
    }

    fn long_call(&self) -> LongCall {
        let model = self.model();
        let seconds = LongCall::DURATION.as_secs_f64();
        let tokens = LongCall::DURATION.as_millis() / TOKEN.as_millis();
        let call = match self.kind {
            StandInKind::Ollama => AppCall::json(
                "/api/generate",
                &json!({"model": model, "prompt": "hello",
                "options": {"num_predict": tokens}}),
            ),
            StandInKind::Triton => AppCall::json(&format!("/v2/models/{model}/infer"), &infer_body(seconds)),
            StandInKind::Comfyui => AppCall::json("/prompt", &json!({"prompt": {"seconds": seconds}})),
            StandInKind::Speaches => AppCall::json(
                "/v1/audio/speech",
                &json!({"model": model, "voice": "x",
                "input": "word ".repeat(usize::try_from(tokens).unwrap_or(0))}),
            ),
            StandInKind::A1111 => AppCall::json("/sdapi/v1/txt2img", &json!({"prompt": "a cat", "steps": tokens})),
            _ => AppCall::json(
                "/v1/chat/completions",
                &json!({"model": model, "max_tokens": tokens, "stream": true,
                "messages": [{"role": "user", "content": "hello"}]}),
            ),
        };
        let streams = !matches!(self.kind, StandInKind::Triton | StandInKind::Comfyui | StandInKind::A1111);
        LongCall { call, streams }
    }

    fn is_complete(&self, answer: &Response) -> Result<bool> {
        let text = answer.text();
        let end = match self.kind {
            StandInKind::Ollama => "\"done\":true",
            StandInKind::Triton => "outputs",
            StandInKind::Speaches => "silence",
            StandInKind::A1111 => "images",
            StandInKind::Comfyui => {
                let id = answer.json()?["prompt_id"].as_str().context("no prompt_id")?.to_owned();
                return wait_for("the prompt is in the history", DEADLINE, || {
                    let history = http::get(self.address, &format!("/history/{id}"))?.json()?;
                    Ok(history.get(&id).map(|_| true))
                });
            }
            _ => "data: [DONE]",
        };
        Ok(answer.status == 200 && text.contains(end) && !text.contains("\"abort\""))
    }

    fn is_loaded(&self) -> Result<Option<bool>> {
        self.has_model().map(Some)
    }

    fn load_directly(&self) -> Result<()> {
        self.act_directly("load")
    }

    fn unload_directly(&self) -> Result<bool> {
        self.act_directly("unload").map(|()| true)
    }

    fn journal(&self) -> Result<Option<Vec<JournalEntry>>> {
        self.entries().map(Some)
    }
}

impl Drop for StandInApp {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let entries = self.entries().unwrap_or_default();
            let lines = entries.iter().filter_map(|entry| serde_json::to_string(entry).ok());
            eprintln!("journal of {}:\n{}", self.name(), lines.collect::<Vec<_>>().join("\n"));
        }
        drop(self.program.take());
        // Runners that outlived the stand-in, as some do.
        for runner in self.runners().unwrap_or_default() {
            if is_stand_in(runner) {
                let _ = process::send(runner, Signal::KILL);
            }
        }
    }
}

/// A number may belong to another process by now.
fn is_stand_in(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.starts_with("hush-app-standi"))
}

/// A request of Triton whose model works for this long.
fn infer_body(seconds: f64) -> serde_json::Value {
    json!({"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [seconds]}]})
}
