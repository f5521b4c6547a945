//! speaches as of 870e1e1: an unload that is refused removes the model from the list all the same, so that it is in memory,
//! in no list, and never found again; the next load makes another copy.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use axum::response::Response;
use serde_json::{Value, json};

use super::core::{Phase, StandIn};
use super::incoming::Incoming;
use super::openai::{json_answer, model_list, text_answer};
use super::serve::AppRoutes;
use super::stream::{CutStyle, StreamPlan};
use super::work::Work;

pub struct Speaches {
    app: Arc<StandIn>,
    /// In memory, and in no list.
    lost: Mutex<BTreeSet<String>>,
}

impl Speaches {
    pub fn new(app: Arc<StandIn>) -> Arc<Self> {
        Arc::new(Self { app, lost: Mutex::default() })
    }

    fn is_lost(&self, name: &str) -> bool {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).contains(name)
    }

    fn is_listed(&self, name: &str) -> bool {
        self.app.phase(name) == Phase::Loaded && !self.is_lost(name)
    }

    /// A lost model is loaded again beside itself.
    async fn make_ready(&self, name: &str) -> Result<(), Response> {
        if self.is_lost(name) {
            let bytes = self.app.look(name, |entry| entry.bytes).unwrap_or(0);
            if !self.app.memory.take(bytes).unwrap_or(false) {
                return Err(json_answer(500, &json!({"detail": "CUDA failed with error out of memory"})));
            }
            self.lost.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
        }
        let loaded = self.app.load(name).await;
        loaded.map_err(|problem| json_answer(500, &json!({"detail": format!("{problem:?}")})))
    }

    async fn load(&self, name: &str) -> Response {
        if !self.app.is_known(name) {
            return json_answer(404, &json!({"detail": format!("Model {name} not found")}));
        }
        if self.is_listed(name) {
            return json_answer(409, &json!({"detail": "Model already loaded"}));
        }
        match self.make_ready(name).await {
            Ok(()) => text_answer(201, ""),
            Err(answer) => answer,
        }
    }

    async fn unload(&self, name: &str) -> Response {
        if !self.is_listed(name) {
            return json_answer(404, &json!({"detail": "Model not found"}));
        }
        self.app.judge_idleness(name);
        if self.app.inflight(name) > 0 {
            self.lost.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned());
            return json_answer(409, &json!({"detail": "Model is currently in use"}));
        }
        self.app.unload(name).await;
        text_answer(200, "")
    }

    async fn answer_work(&self, request: Incoming) -> Response {
        let name = request.model().unwrap_or_default();
        if !self.app.is_known(&name) {
            return json_answer(404, &json!({"detail": format!("Model '{name}' is not installed locally.")}));
        }
        self.app.judge_presence(&name, &request.path);
        let work = self.app.begin(&name, &request.path);
        if let Err(answer) = self.make_ready(&name).await {
            return answer;
        }

        let mut work = work.join_instance();
        if request.path == "/v1/audio/speech" {
            return self.speak(&request, work);
        }
        if !work.last(self.app.options.request_time()).await {
            return text_answer(500, "Internal Server Error");
        }
        work.finish();
        json_answer(200, &json!({"text": "a transcript"}))
    }

    /// Speech comes as it is made, a piece a word.
    fn speak(&self, request: &Incoming, work: Work) -> Response {
        let plan = StreamPlan {
            content_type: "audio/mpeg",
            tokens: request.text("input").unwrap_or_default().split_whitespace().count(),
            pause: self.app.options.token_time(),
            piece: Box::new(|index| format!("sound{index} ").into()),
            end: "silence".into(),
            cut: CutStyle::Abort,
        };
        plan.answer(work)
    }
}

impl AppRoutes for Speaches {
    async fn answer(self: Arc<Self>, request: Incoming) -> Response {
        if let Some(name) = request.path.strip_prefix("/api/ps/") {
            return match request.method.as_str() {
                "POST" => self.load(name).await,
                "DELETE" => self.unload(name).await,
                _ => text_answer(405, ""),
            };
        }
        match (request.method.as_str(), request.path.as_str()) {
            ("GET", "/health") => text_answer(200, "OK"),
            ("GET", "/api/ps") => {
                let listed: Vec<Value> =
                    self.app.names().into_iter().filter(|name| self.is_listed(name)).map(Value::String).collect();
                json_answer(200, &json!({"models": listed}))
            }
            ("GET", "/v1/models") => model_list(&self.app.names()),
            ("POST", path) if path.starts_with("/v1/audio/") => self.answer_work(request).await,
            _ => json_answer(404, &json!({"detail": "Not Found"})),
        }
    }
}
