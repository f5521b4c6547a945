//! `make demo-apps`: a real llama.cpp server behind `hush-sidecar` and a real `hush-server` share a scripted GPU under one
//! policy; what happens is told as it happens.

use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hush_nvml::ProcessMemory;
use hush_tests::apps::{
    AppCall, LiveAnswer, LlamaProcess, LlamaRouter, RealApp, RunningSidecar, SidecarOptions, TestedApp, find_real_app,
    post_bytes,
};
use hush_tests::gpus::{GIB, Gpus, UUID};
use hush_tests::http::{self, Response};
use hush_tests::wait::wait_for;
use hush_tests::{Controller, Server, fixtures};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(60);
const LLM_GIB: u64 = 6;
const SPEECH_GIB: u64 = 3;

/// The language model's server, in the form that this machine has.
struct LanguageModel {
    app: Box<dyn TestedApp>,
    /// Which processes hold its memory.
    memory: ProcessMemory,
    description: &'static str,
}

impl LanguageModel {
    fn find() -> Result<Self> {
        let bytes = LLM_GIB * GIB;
        if let Some(binary) = find_real_app(RealApp::LlamaServer)? {
            let mut app = LlamaRouter::new(&binary, &[])?;
            app.start()?;
            // The router starts a child for each model.
            let router = Some(app.pid()?);
            let memory = ProcessMemory {
                process: "llama-server".to_owned(),
                parent_pid: router,
                bytes,
                ..ProcessMemory::default()
            };
            let description = "a real llama-server with its router: the sidecar loads and unloads through its API";
            return Ok(Self { app: Box::new(app), memory, description });
        }

        let package = find_real_app(RealApp::Xllamacpp)?.context("run `make apps` first")?;
        let app = LlamaProcess::new(&package)?;
        let mapped = Some("xllamacpp".to_owned());
        let memory = ProcessMemory { process: "python3".to_owned(), mapped, bytes, ..ProcessMemory::default() };
        let description = "a real llama.cpp server: the sidecar starts and ends its process";
        Ok(Self { app: Box::new(app), memory, description })
    }
}

/// Prints a line per event, with the seconds since the start.
struct AppEventPrinter<'a> {
    start: Instant,
    speech: &'a Server,
    sidecar: &'a RunningSidecar,
    controller: &'a Controller,
    speech_state: String,
    llm_state: String,
    told: usize,
}

impl AppEventPrinter<'_> {
    fn tell(&self, who: &str, what: &str) {
        println!("{:6.1} s  {who:<14} {what}", self.start.elapsed().as_secs_f64());
    }

    /// Tells what has changed since the last look.
    fn look(&mut self) -> Result<()> {
        let list = http::get(self.speech.ops, "/admin/v1/models")?.json()?;
        let now = state_of(&list["models"][0]);
        if now != self.speech_state {
            self.tell("speech model", explain(&now));
            self.speech_state = now;
        }
        let now = state_of(&self.sidecar.status()?);
        if now != self.llm_state {
            self.tell("language model", explain(&now));
            self.llm_state = now;
        }
        let records = self.controller.audit()?;
        for record in &records[self.told.min(records.len())..] {
            self.tell("controller", &verdict(record));
        }
        self.told = records.len();
        Ok(())
    }

    fn watch_until<T>(&mut self, what: &str, mut holds: impl FnMut(&Self) -> Result<Option<T>>) -> Result<T> {
        wait_for(what, PATIENCE, || {
            self.look()?;
            holds(self)
        })
    }

    /// Sends a recording and prints the transcript.
    fn speak(&mut self, file: &'static str) -> Result<()> {
        let api = self.speech.api;
        let recording = fixtures::audio(file)?;
        self.tell("a client", &format!("sends the recording {file}"));
        let asked = Instant::now();
        let request = std::thread::spawn(move || http::upload(api, "/asr?output=txt", file, &recording));
        self.watch_until("a transcript", |_| Ok(request.is_finished().then_some(())))?;
        let answer = request.join().map_err(|_| anyhow::anyhow!("the client failed"))??;
        self.tell("a client", &format!("reads after {:.1} s: {}", asked.elapsed().as_secs_f64(), answer.text().trim()));
        Ok(())
    }

    /// Sends a chat and prints how long its answer took.
    fn chat(&mut self, tokens: u32, remark: &str) -> Result<()> {
        self.tell("a client", &format!("chats{remark}"));
        let asked = Instant::now();
        let stream = open_chat(self.sidecar.api, tokens)?;
        self.watch_until("an answer", |_| Ok(stream.has_ended().then_some(())))?;
        let words = count_words(&stream.finish()?)?;
        self.tell("a client", &format!("has an answer of {words} pieces after {:.1} s", asked.elapsed().as_secs_f64()));
        Ok(())
    }
}

fn open_chat(api: SocketAddr, tokens: u32) -> Result<LiveAnswer> {
    let body = json!({"model": "tiny", "stream": true, "max_tokens": tokens, "ignore_eos": true,
        "messages": [{"role": "user", "content": "hello"}]});
    LiveAnswer::open(api, &post_bytes(api, &AppCall::json("/v1/chat/completions", &body), &[]))
}

/// The pieces of a whole stream.
fn count_words(answer: &Response) -> Result<usize> {
    let text = answer.text();
    ensure!(answer.status == 200 && text.contains("data: [DONE]"), "the answer is not whole: {text}");
    Ok(text.matches("data: {").count())
}

fn state_of(status: &Value) -> String {
    status["state"].as_str().unwrap_or("unknown").to_owned()
}

fn explain(state: &str) -> &str {
    match state {
        "unloaded" => "is not in memory",
        "loading" => "is being loaded",
        "ready" => "is on the GPU",
        "draining" => "takes no new request and finishes the old ones",
        "unloading" => "leaves",
        "waiting_for_memory" => "is wanted and waits: there is no room, or it was asked to stay away for a while",
        other => other,
    }
}

fn verdict(record: &Value) -> String {
    let text = |field: &str| record[field].as_str().unwrap_or("?").to_owned();
    let seconds = record["seconds"].as_f64().unwrap_or_default();
    match record["outcome"].as_str() {
        Some("Unloaded") => {
            let back = record["reclaimedBytes"].as_u64().unwrap_or(0) as f64 / GIB as f64;
            format!(
                "has unloaded {}: {}, by policy {}; {back:.2} GiB are free again after {seconds:.2} s",
                text("server"),
                text("reason"),
                text("policy")
            )
        }
        _ => format!("{} {}: {}: {}", text("action"), text("server"), text("reason"), text("outcome")),
    }
}

fn main() -> Result<()> {
    let policies = fs::read_to_string(fixtures::workspace().join("tests/demo/apps-policies.yaml"))?;
    let llm = LanguageModel::find()?;
    println!("One scripted GPU of 8 GiB ({UUID}) is shared by\n- hush-server with a speech model of {SPEECH_GIB} GiB");
    println!("- {}; its model has {LLM_GIB} GiB\nunder these policies:\n\n{policies}", llm.description);

    let mut gpus = Gpus::one()?;
    let speech = gpus.server(ProcessMemory { bytes: SPEECH_GIB * GIB, ..ProcessMemory::default() }, &[])?;
    gpus.change(|gpu| gpu.guests.push(llm.memory.clone()))?;
    let need = format!("{LLM_GIB}GiB");
    let options = SidecarOptions { args: ["--need-bytes", &need].map(str::to_owned).to_vec(), gpus: Some(gpus.path()) };
    let sidecar = RunningSidecar::start(llm.app.as_ref(), &options)?;
    sidecar.wait_until_ready()?;
    let targets = [format!("media/speech=http://{}", speech.ops), format!("chat/llm=http://{}", sidecar.ops)];
    let controller = Controller::start(&policies, &["--target", &targets[0], "--target", &targets[1]])?;

    let mut story = AppEventPrinter {
        start: Instant::now(),
        speech: &speech,
        sidecar: &sidecar,
        controller: &controller,
        speech_state: String::new(),
        llm_state: String::new(),
        told: 0,
    };
    tell_story(&mut story)
}

fn tell_story(story: &mut AppEventPrinter<'_>) -> Result<()> {
    story.look()?;
    story.tell("GPU", "empty: all programs run, and no model is in memory");
    story.speak("en-1.wav")?;

    story.tell("GPU", "5 of 8 GiB are free, and the language model needs 6");
    story.chat(20, ": its request waits in the sidecar until the speech model has been idle for 6 s")?;

    story.tell("a client", "begins a long chat");
    let stream = open_chat(story.sidecar.api, 200)?;
    stream.wait_for_body(PATIENCE)?;
    let refused = story.sidecar.unload(&json!({"drain_seconds": 1}))?;
    let code = refused.json()?["code"].as_str().unwrap_or_default().to_owned();
    story
        .tell("an operator", &format!("orders an unload that waits for 1 s; it is refused: {} {code}", refused.status));
    story.watch_until("the long chat ends", |_| Ok(stream.has_ended().then_some(())))?;
    let words = count_words(&stream.finish()?)?;
    story.tell("a client", &format!("has its whole answer of {words} pieces: no unload cuts a stream"));

    story.tell("GPU", "2 of 8 GiB are free, and the speech model needs 3");
    story.speak("de-1.wav")?;
    story.chat(20, ": the language model comes back when there is room")?;
    story.tell("GPU", "both models took turns; no request was lost, and no app was changed");
    Ok(())
}
