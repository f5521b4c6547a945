//! SGLang 0.5.23: release of memory that is not idle, or that is released already, ends the whole server; `/health`
//! generates a token.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::response::Response;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::core::{LoadProblem, Phase, StandIn};
use super::incoming::Incoming;
use super::journal::ViolationKind;
use super::openai::{CutAnswer, complete, error_answer, json_answer, model_list, text_answer};
use super::options::Manner;
use super::serve::AppRoutes;
use super::stream::CutStyle;

pub struct Sglang {
    app: Arc<StandIn>,
    /// Weights came back without a backup in the host's memory.
    has_garbage: AtomicBool,
    /// Requests wait in the engine.
    is_paused: watch::Sender<bool>,
}

impl Sglang {
    pub fn new(app: Arc<StandIn>) -> Arc<Self> {
        Arc::new(Self { app, has_garbage: AtomicBool::new(false), is_paused: watch::Sender::new(false) })
    }

    fn frees_memory(&self) -> bool {
        !self.app.options.has(Manner::NoMemorySaver)
    }

    async fn release(&self) -> Response {
        let model = self.app.first_name();
        if !self.frees_memory() {
            return json_answer(200, &Value::Null);
        }

        self.app.judge_idleness(&model);
        if self.app.inflight(&model) > 0 {
            self.app.die("AssertionError: release_memory_occupation should be called only when server is idle.");
        }
        if self.app.phase(&model) != Phase::Loaded {
            self.app.die("AssertionError: memory is released already");
        }
        self.app.unload(&model).await;
        json_answer(200, &Value::Null)
    }

    async fn resume(&self) -> Response {
        let model = self.app.first_name();
        if !self.frees_memory() {
            return json_answer(200, &Value::Null);
        }

        if self.app.phase(&model) != Phase::Away {
            self.app.journal.violation(ViolationKind::LoadWhileLoaded, "resume_memory_occupation");
            self.app.die("KeyError: offload_tags.remove");
        }
        if self.app.load(&model).await == Err(LoadProblem::OutOfMemory) {
            self.app.die("torch.OutOfMemoryError: CUDA out of memory in resume_memory_occupation");
        }
        self.has_garbage.store(self.app.options.has(Manner::NoWeightsBackup), Ordering::Relaxed);
        json_answer(200, &Value::Null)
    }

    async fn answer_work(&self, request: Incoming) -> Response {
        let model = self.app.first_name();
        self.app.judge_presence(&model, &request.path);
        // Fails only without a sender, and this is one.
        let _ = self.is_paused.subscribe().wait_for(|is_paused| !is_paused).await;
        let work = self.app.begin(&model, &request.path);
        self.app.wait_until(&model, |entry| entry.phase == Phase::Loaded).await;

        let word = if self.has_garbage.load(Ordering::Relaxed) { "garbage" } else { "word" };
        let on_cut = CutAnswer { stream: CutStyle::Abort, whole: error_answer(500, "the server is shutting down") };
        complete(&request, work.join_instance(), word, on_cut).await
    }

    fn health(&self) -> Response {
        self.app.journal.violation(ViolationKind::ProbeGenerates, "/health");
        self.app.judge_presence(&self.app.first_name(), "/health");
        text_answer(200, "")
    }
}

impl AppRoutes for Sglang {
    async fn answer(self: Arc<Self>, request: Incoming) -> Response {
        let model = self.app.first_name();
        let has = |manner| self.app.options.has(manner);
        match (request.method.as_str(), request.path.as_str()) {
            ("GET", "/health" | "/health_generate") => self.health(),
            ("GET", "/ready") => text_answer(if *self.is_paused.borrow() { 503 } else { 200 }, ""),
            ("GET", "/ping") => text_answer(200, ""),
            ("GET", "/model_info" | "/get_model_info") => json_answer(200, &json!({"model_path": model})),
            ("GET", "/server_info" | "/get_server_info") => json_answer(
                200,
                &json!({"version": "0.5.23",
                "served_model_name": model, "enable_metrics": true, "enable_memory_saver": !has(Manner::NoMemorySaver),
                "enable_weights_cpu_backup": !has(Manner::NoWeightsBackup)}),
            ),
            ("GET", "/v1/models") => model_list(&self.app.names()),
            ("GET", "/metrics") => text_answer(
                200,
                format!(
                    "sglang:num_running_reqs{{model_name=\"{model}\"}} {}.0\nsglang:num_queue_reqs{{model_name=\"{model}\"}} 0.0\n",
                    self.app.inflight(&model)
                ),
            ),
            // A body is required with POST; GET does it too.
            ("POST", "/release_memory_occupation" | "/resume_memory_occupation") if request.json.is_null() => {
                json_answer(422, &json!({"detail": "Field required"}))
            }
            ("GET" | "POST", "/release_memory_occupation") => self.release().await,
            ("GET" | "POST", "/resume_memory_occupation") => self.resume().await,
            ("POST", path @ ("/pause_generation" | "/continue_generation")) => {
                self.is_paused.send_replace(path == "/pause_generation");
                json_answer(200, &json!({"status": "ok"}))
            }
            ("POST", path) if path.starts_with("/v1/") || path == "/generate" => self.answer_work(request).await,
            _ => json_answer(404, &json!({"detail": "Not Found"})),
        }
    }
}
