//! ComfyUI: a short POST queues work that goes on without its client, `/free` is a flag that is obeyed between two prompts,
//! the next prompt of the queue loads again. The queue and the history die with the process.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::response::Response;
use serde_json::{Value, json};
use tokio::sync::{Notify, broadcast};

use super::core::{Phase, StandIn};
use super::incoming::Incoming;
use super::journal::{JournalEvent, ViolationKind};
use super::openai::{json_answer, text_answer};
use super::serve::AppRoutes;
use super::websocket::{self, ServerSocket};

#[derive(Clone, Debug)]
struct QueuedPrompt {
    id: String,
    duration: Duration,
}

#[derive(Debug, Default)]
struct PromptQueue {
    pending: VecDeque<QueuedPrompt>,
    running: Option<QueuedPrompt>,
    done: Vec<String>,
    number: u64,
    wants_free: bool,
}

pub struct ComfyUi {
    app: Arc<StandIn>,
    queue: Mutex<PromptQueue>,
    queued: Notify,
    /// What display sockets are told.
    events: broadcast::Sender<String>,
}

impl ComfyUi {
    pub fn new(app: Arc<StandIn>) -> Arc<Self> {
        let comfy =
            Arc::new(Self { app, queue: Mutex::default(), queued: Notify::new(), events: broadcast::channel(64).0 });
        tokio::spawn(Arc::clone(&comfy).work_off());
        comfy
    }

    fn queue(&self) -> MutexGuard<'_, PromptQueue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, kind: &str, data: &Value) {
        // Fails only when no socket is open.
        let _ = self.events.send(json!({"type": kind, "data": data}).to_string());
    }

    fn tell_status(&self) {
        let remaining = self.remaining();
        self.tell("status", &json!({"status": {"exec_info": {"queue_remaining": remaining}}}));
    }

    fn remaining(&self) -> usize {
        let queue = self.queue();
        queue.pending.len() + usize::from(queue.running.is_some())
    }

    /// The worker of the queue.
    async fn work_off(self: Arc<Self>) {
        let model = self.app.first_name();
        loop {
            let queued = self.queued.notified();
            let next = {
                let mut queue = self.queue();
                queue.running = queue.pending.pop_front();
                queue.running.clone()
            };
            match next {
                Some(prompt) => self.run(&model, prompt).await,
                None if std::mem::take(&mut self.queue().wants_free) => self.app.unload(&model).await,
                None => queued.await,
            }
        }
    }

    async fn run(&self, model: &str, prompt: QueuedPrompt) {
        self.tell_status();
        self.tell("executing", &json!({"node": "1", "prompt_id": prompt.id}));
        let mut work = self.app.begin(model, "/prompt");
        let loaded = self.app.load(model).await;
        if loaded.is_ok() && work.last(prompt.duration).await {
            work.finish();
        }
        {
            let mut queue = self.queue();
            queue.running = None;
            queue.done.push(prompt.id.clone());
        }
        self.tell("executing", &json!({"node": null, "prompt_id": prompt.id}));
        self.tell_status();

        if std::mem::take(&mut self.queue().wants_free) {
            self.app.unload(model).await;
        }
    }

    fn enqueue(&self, request: &Incoming) -> Response {
        if request.json["prompt"].is_null() {
            return json_answer(
                400,
                &json!({"error": {"type": "no_prompt", "message": "No prompt provided"}, "node_errors": {}}),
            );
        }
        // A graph of a test may say how long it takes.
        let asked = request.json["prompt"]["seconds"].as_f64();
        let duration = asked.map_or(self.app.options.request_time(), Duration::from_secs_f64);
        let (id, number) = {
            let mut queue = self.queue();
            queue.number += 1;
            let id = format!("prompt-{}", queue.number);
            queue.pending.push_back(QueuedPrompt { id: id.clone(), duration });
            (id, queue.number)
        };
        self.queued.notify_waiters();
        json_answer(200, &json!({"prompt_id": id, "number": number, "node_errors": {}}))
    }

    fn free(&self, request: &Incoming) -> Response {
        if self.remaining() > 0 {
            self.app
                .journal
                .violation(ViolationKind::UnloadWhileBusy, format!("{} prompts in the queue", self.remaining()));
        }
        // Only `true` is stored.
        if request.flag("unload_models") == Some(true) || request.flag("free_memory") == Some(true) {
            self.queue().wants_free = true;
            self.queued.notify_waiters();
        }
        text_answer(200, "")
    }

    fn list_queue(&self) -> Response {
        let queue = self.queue();
        let entry = |prompt: &QueuedPrompt| json!([0, prompt.id, {}, {}, []]);
        let running: Vec<Value> = queue.running.iter().map(entry).collect();
        let pending: Vec<Value> = queue.pending.iter().map(entry).collect();
        json_answer(200, &json!({"queue_running": running, "queue_pending": pending}))
    }

    fn history(&self, id: &str) -> Response {
        let is_done = self.queue().done.iter().any(|done| done == id);
        let entry = json!({"status": {"status_str": "success", "completed": true}, "outputs": {}});
        json_answer(200, &if is_done { json!({ id: entry }) } else { json!({}) })
    }

    fn system_stats(&self) -> Response {
        let held = match self.app.phase(&self.app.first_name()) {
            Phase::Loaded | Phase::Unloading => self.app.look(&self.app.first_name(), |entry| entry.bytes).unwrap_or(0),
            Phase::Away | Phase::Loading => 0,
        };
        let device = json!({"name": "cuda:0", "type": "cuda", "index": 0, "vram_total": 8_u64 << 30,
            "vram_free": (8_u64 << 30) - held, "torch_vram_total": held, "torch_vram_free": 0});
        json_answer(200, &json!({"system": {"os": "posix", "comfyui_version": "0.3.75"}, "devices": [device]}))
    }
}

impl AppRoutes for ComfyUi {
    async fn answer(self: Arc<Self>, mut request: Incoming) -> Response {
        // Every route exists twice.
        let path = request.path.strip_prefix("/api").unwrap_or(&request.path).to_owned();
        if path == "/ws" && request.upgrade.is_some() {
            return websocket::accept(&mut request, move |socket| push(self, socket));
        }
        match (request.method.as_str(), path.as_str()) {
            ("GET", "/system_stats") => self.system_stats(),
            ("GET", "/queue") => self.list_queue(),
            ("GET", "/prompt") => json_answer(200, &json!({"exec_info": {"queue_remaining": self.remaining()}})),
            ("POST", "/prompt") => self.enqueue(&request),
            ("POST", "/free") => self.free(&request),
            ("POST", "/upload/image") => {
                json_answer(200, &json!({"name": "upload.png", "subfolder": "", "type": "input"}))
            }
            ("GET", "/object_info") => json_answer(200, &json!({})),
            ("GET", path) if path.starts_with("/history/") => self.history(&path["/history/".len()..]),
            _ => text_answer(404, "404: Not Found"),
        }
    }
}

/// A display socket: it is told what happens for as long as it is open.
async fn push(comfy: Arc<ComfyUi>, mut socket: ServerSocket) {
    let mut events = comfy.events.subscribe();
    let status = json!({"type": "status", "data": {"status": {"exec_info": {"queue_remaining": comfy.remaining()}}, "sid": "1"}});
    if socket.send(&status.to_string()).await.is_err() {
        return;
    }
    loop {
        tokio::select! {
            event = events.recv() => {
                let Ok(event) = event else { return };
                if socket.send(&event).await.is_err() {
                    return;
                }
            }
            text = socket.receive() => {
                if text.is_none() {
                    comfy.app.journal.write(JournalEvent::ClientGone { path: "/ws".to_owned() });
                    return;
                }
            }
        }
    }
}
