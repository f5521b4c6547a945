//! LocalAI as of 82c191a: a process per model, an unload waits for requests and then refuses with 500, a request without a
//! model takes the first one, a child may outlive its stop.

use std::sync::Arc;

use axum::response::Response;
use serde_json::{Value, json};

use super::core::{LoadProblem, Phase, StandIn};
use super::incoming::Incoming;
use super::openai::{CutAnswer, complete, error_answer, json_answer, model_list, text_answer};
use super::serve::AppRoutes;
use super::stream::CutStyle;

pub struct LocalAi {
    app: Arc<StandIn>,
}

impl LocalAi {
    pub fn new(app: Arc<StandIn>) -> Arc<Self> {
        Arc::new(Self { app })
    }

    async fn load(&self, request: &Incoming) -> Response {
        let name = request.model().unwrap_or_default();
        match self.app.load(&name).await {
            Ok(()) => json_answer(200, &json!({"loaded": [name], "message": "model loaded"})),
            Err(LoadProblem::Unknown) => error_answer(404, "model not found"),
            Err(problem) => error_answer(500, &format!("could not load model: {problem:?}")),
        }
    }

    async fn shut_down(&self, request: &Incoming) -> Response {
        let name = request.model().unwrap_or_default();
        if self.app.phase(&name) != Phase::Loaded {
            return error_answer(404, &format!("model {name} not found"));
        }

        self.app.judge_idleness(&name);
        let idle = self.app.wait_until(&name, |entry| entry.inflight == 0);
        if tokio::time::timeout(self.app.options.stop_time(), idle).await.is_err() {
            return error_answer(500, &format!("model {name} is still busy"));
        }
        self.app.unload(&name).await;
        json_answer(200, &Value::Null)
    }

    async fn answer_work(&self, request: Incoming) -> Response {
        let name = request.model().filter(|name| !name.is_empty()).unwrap_or_else(|| self.app.first_name());
        if !self.app.is_known(&name) {
            return error_answer(404, &format!("model {name} not found"));
        }
        self.app.judge_presence(&name, &request.path);
        let mut work = self.app.begin(&name, &request.path);
        if let Err(problem) = self.app.load(&name).await {
            return error_answer(500, &format!("could not load model: {problem:?}"));
        }

        work = work.join_instance();
        let on_cut = CutAnswer { stream: CutStyle::Abort, whole: error_answer(500, "rpc error: code = Unavailable") };
        complete(&request, work, "word", on_cut).await
    }
}

impl AppRoutes for LocalAi {
    async fn answer(self: Arc<Self>, request: Incoming) -> Response {
        match (request.method.as_str(), request.path.as_str()) {
            ("GET", "/healthz" | "/readyz") => text_answer(200, "OK"),
            ("GET", "/version") => json_answer(200, &json!({"version": "v3.8.0"})),
            ("GET", "/system") => {
                let loaded = self.app.names().into_iter().filter(|name| self.app.phase(name) == Phase::Loaded);
                let loaded: Vec<Value> = loaded.map(|name| json!({"id": name})).collect();
                json_answer(200, &json!({"backends": ["llama-cpp"], "loaded_models": loaded}))
            }
            ("GET", "/models" | "/v1/models") => model_list(&self.app.names()),
            ("POST", "/backend/load") => self.load(&request).await,
            ("POST", "/backend/shutdown") => self.shut_down(&request).await,
            ("POST", path) if path.starts_with("/v1/") || path == "/tts" => self.answer_work(request).await,
            _ => error_answer(404, "Resource not found"),
        }
    }
}
