//! Triton 2.51 with `--model-control-mode=explicit`: an unload answers at once and waits for requests, a load of what is
//! loaded makes a second copy first, an unload of an unknown model says success.

use std::sync::Arc;

use axum::response::Response;
use serde_json::{Value, json};

use super::core::{LoadProblem, Phase, StandIn};
use super::incoming::Incoming;
use super::journal::ViolationKind;
use super::openai::{json_answer, text_answer};
use super::options::Manner;
use super::serve::AppRoutes;

pub struct Triton {
    app: Arc<StandIn>,
}

impl Triton {
    pub fn new(app: Arc<StandIn>) -> Arc<Self> {
        Arc::new(Self { app })
    }

    fn index(&self) -> Response {
        let entry = |name: String| match self.app.phase(&name) {
            // Never loaded: only its name.
            Phase::Away if self.app.look(&name, |entry| entry.instance) == Some(0) => json!({"name": name}),
            Phase::Away => json!({"name": name, "version": "1", "state": "UNAVAILABLE", "reason": "unloaded"}),
            Phase::Loading => json!({"name": name, "version": "1", "state": "LOADING"}),
            Phase::Loaded => json!({"name": name, "version": "1", "state": "READY"}),
            Phase::Unloading => json!({"name": name, "version": "1", "state": "UNLOADING"}),
        };
        json_answer(200, &Value::Array(self.app.names().into_iter().map(entry).collect()))
    }

    async fn load(&self, name: &str) -> Response {
        let bytes = self.app.look(name, |entry| entry.bytes).unwrap_or(0);
        if self.app.phase(name) == Phase::Loaded {
            // The second copy, and then the first goes.
            self.app.journal.violation(ViolationKind::LoadWhileLoaded, name);
            let fits = self.app.memory.take(bytes).unwrap_or(false);
            tokio::time::sleep(self.app.options.load_time()).await;
            if !fits {
                return json_answer(400, &json!({"error": format!("failed to load '{name}', out of memory")}));
            }
            return match self.app.memory.give_back(bytes) {
                Ok(()) => text_answer(200, ""),
                Err(error) => json_answer(500, &json!({"error": format!("{error:#}")})),
            };
        }

        match self.app.load(name).await {
            Ok(()) => text_answer(200, ""),
            Err(LoadProblem::Unknown) => json_answer(
                400,
                &json!({"error": format!("failed to load '{name}', failed to poll from model repository")}),
            ),
            Err(problem) => json_answer(400, &json!({"error": format!("failed to load '{name}', {problem:?}")})),
        }
    }

    fn unload(&self, name: &str) -> Response {
        self.app.judge_idleness(name);
        let (app, name) = (Arc::clone(&self.app), name.to_owned());
        tokio::spawn(async move {
            // An unload during a load waits for it.
            app.wait_until(&name, |entry| entry.phase != Phase::Loading).await;
            let begun = app.change(&name, |entry| {
                let is_loaded = entry.phase == Phase::Loaded;
                if is_loaded {
                    entry.phase = Phase::Unloading;
                }
                is_loaded
            });
            if begun == Some(true) {
                app.wait_until(&name, |entry| entry.inflight == 0).await;
                app.finish_unload(&name).await;
            }
        });
        text_answer(200, "")
    }

    async fn infer(&self, name: &str, request: &Incoming) -> Response {
        if self.app.phase(name) != Phase::Loaded {
            self.app.judge_presence(name, &request.path);
            let error = format!("Request for unknown model: '{name}' has no available versions");
            return json_answer(404, &json!({"error": error}));
        }
        let mut work = self.app.begin(name, &request.path);
        // Goes on though its client leaves.
        let seconds = request.json["inputs"][0]["data"][0].as_f64();
        let time = seconds.map_or(self.app.options.request_time(), std::time::Duration::from_secs_f64);
        let ended = tokio::spawn(async move {
            let is_there = work.last(time).await;
            if is_there {
                work.finish();
            }
            is_there
        });
        match ended.await {
            Ok(true) => json_answer(
                200,
                &json!({"model_name": name, "model_version": "1", "outputs":
                [{"name": "y", "datatype": "FP32", "shape": [1], "data": [time.as_secs_f64()]}]}),
            ),
            _ => json_answer(503, &json!({"error": "Server is stopping"})),
        }
    }

    /// Only loaded models have series.
    fn metrics(&self) -> Response {
        let loaded = self.app.names().into_iter().filter(|name| self.app.phase(name) == Phase::Loaded);
        let line = |name: String| {
            let busy = self.app.inflight(&name);
            format!("nv_inference_pending_request_count{{model=\"{name}\",version=\"1\"}} {busy}\n")
        };
        text_answer(200, loaded.map(line).collect::<String>())
    }
}

impl AppRoutes for Triton {
    async fn answer(self: Arc<Self>, request: Incoming) -> Response {
        let parts: Vec<&str> = request.path.trim_matches('/').split('/').collect();
        match (request.method.as_str(), parts.as_slice()) {
            ("GET", ["v2"]) => json_answer(
                200,
                &json!({"name": "triton", "version": "2.51.0",
                "extensions": ["classification", "model_repository", "statistics"]}),
            ),
            ("GET", ["v2", "health", "ready" | "live"]) => text_answer(200, ""),
            ("GET", ["metrics"]) => self.metrics(),
            ("GET", ["v2", "repository", "index"]) => text_answer(405, ""),
            ("POST", ["v2", "repository", "index"]) => self.index(),
            ("POST", ["v2", "repository", "models", name, action @ ("load" | "unload")]) => {
                if self.app.options.has(Manner::NoModelControl) {
                    let error = "explicit model load / unload is not allowed if polling is enabled";
                    return json_answer(400, &json!({"error": error}));
                }
                if *action == "load" { self.load(name).await } else { self.unload(name) }
            }
            ("GET", ["v2", "models", name, "ready"]) => {
                text_answer(if self.app.phase(name) == Phase::Loaded { 200 } else { 400 }, "")
            }
            ("POST", ["v2", "models", name, "infer"] | ["v2", "models", name, "versions", _, "infer"]) => {
                self.infer(name, &request).await
            }
            _ => json_answer(404, &json!({"error": "Not Found"})),
        }
    }
}
