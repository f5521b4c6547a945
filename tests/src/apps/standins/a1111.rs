//! A1111's web UI as of 1a51b16: an unload is not locked against a running image, and after it the next image fails until the
//! checkpoint is reloaded.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::response::Response;
use serde_json::{Value, json};

use super::core::{Phase, StandIn};
use super::incoming::Incoming;
use super::openai::json_answer;
use super::serve::AppRoutes;

pub struct A1111 {
    app: Arc<StandIn>,
    /// The checkpoint was unloaded by a request: it lies in the host's memory.
    is_unloaded: AtomicBool,
}

impl A1111 {
    pub fn new(app: Arc<StandIn>) -> Arc<Self> {
        Arc::new(Self { app, is_unloaded: AtomicBool::new(false) })
    }

    async fn unload(&self) -> Response {
        let model = self.app.first_name();
        self.app.judge_idleness(&model);
        // An image that is being made fails.
        self.app.change(&model, |entry| entry.cut.cancel());
        if self.app.phase(&model) == Phase::Loaded {
            self.app.unload(&model).await;
            self.is_unloaded.store(true, Ordering::Relaxed);
        }
        json_answer(200, &json!({}))
    }

    async fn reload(&self) -> Response {
        match self.app.load(&self.app.first_name()).await {
            Ok(()) => {
                self.is_unloaded.store(false, Ordering::Relaxed);
                json_answer(200, &json!({}))
            }
            Err(problem) => json_answer(500, &json!({"error": format!("{problem:?}")})),
        }
    }

    async fn answer_work(&self, request: &Incoming) -> Response {
        let model = self.app.first_name();
        self.app.judge_presence(&model, &request.path);
        let work = self.app.begin(&model, &request.path);
        if self.is_unloaded.load(Ordering::Relaxed) {
            return json_answer(
                500,
                &json!({"error": "RuntimeError",
                "errors": "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!"}),
            );
        }
        if let Err(problem) = self.app.load(&model).await {
            return json_answer(500, &json!({"error": format!("{problem:?}")}));
        }

        // Goes on though its client leaves.
        let mut work = work.join_instance();
        let steps = request.number("steps").and_then(|steps| u32::try_from(steps).ok());
        let time = steps.map_or(self.app.options.request_time(), |steps| self.app.options.token_time() * steps);
        let ended = tokio::spawn(async move {
            let is_there = work.last(time).await;
            if is_there {
                work.finish();
            }
            is_there
        });
        match ended.await {
            Ok(true) => json_answer(200, &json!({"images": ["iVBORw0KGgo="], "parameters": {}, "info": "{}"})),
            _ => json_answer(500, &json!({"error": "RuntimeError", "errors": "the model was moved away"})),
        }
    }

    fn progress(&self) -> Response {
        let jobs = self.app.inflight(&self.app.first_name());
        json_answer(
            200,
            &json!({"progress": 0.0, "state": {"job_count": jobs, "job_no": 0}, "current_image": Value::Null}),
        )
    }

    fn memory(&self) -> Response {
        let held = self.app.memory.held_bytes();
        json_answer(
            200,
            &json!({"ram": {}, "cuda": {"system": {"total": 8_u64 << 30}, "allocated": {"current": held}}}),
        )
    }
}

impl AppRoutes for A1111 {
    async fn answer(self: Arc<Self>, request: Incoming) -> Response {
        match (request.method.as_str(), request.path.as_str()) {
            ("GET", "/sdapi/v1/progress") => self.progress(),
            ("GET", "/sdapi/v1/memory") => self.memory(),
            ("GET", "/sdapi/v1/options") => json_answer(200, &json!({"sd_model_checkpoint": self.app.first_name()})),
            ("GET", "/sdapi/v1/sd-models") => json_answer(200, &json!([{"title": self.app.first_name()}])),
            ("GET", "/internal/progress" | "/internal/ping") => json_answer(200, &json!({})),
            ("POST", "/sdapi/v1/unload-checkpoint") => self.unload().await,
            ("POST", "/sdapi/v1/reload-checkpoint") => self.reload().await,
            ("POST", "/sdapi/v1/txt2img" | "/sdapi/v1/img2img" | "/sdapi/v1/extra-single-image") => {
                self.answer_work(&request).await
            }
            _ => json_answer(404, &json!({"detail": "Not Found"})),
        }
    }
}
