//! llama-server with its router, as of 0c1e57098: it answers before it acts, cuts streams with a clean end, and parks a
//! request that arrives while a model stops, to load it again.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use axum::response::Response;
use serde_json::{Value, json};

use super::core::{Phase, StandIn};
use super::incoming::Incoming;
use super::journal::ViolationKind;
use super::openai::{CutAnswer, complete, error_answer, json_answer, text_answer};
use super::options::Manner;
use super::serve::AppRoutes;
use super::stream::CutStyle;

const WORK: [&str; 14] = [
    "/completion",
    "/completions",
    "/v1/completions",
    "/chat/completions",
    "/v1/chat/completions",
    "/v1/responses",
    "/v1/messages",
    "/infill",
    "/embedding",
    "/embeddings",
    "/v1/embeddings",
    "/tokenize",
    "/detokenize",
    "/apply-template",
];
/// With `?model=` they are the instance's.
const INSTANCE_GETS: [&str; 4] = ["/metrics", "/slots", "/props", "/lora-adapters"];

pub struct LlamaRouterStandIn {
    app: Arc<StandIn>,
    /// Models whose last instance was killed instead of ending by itself.
    killed: Mutex<BTreeSet<String>>,
}

impl LlamaRouterStandIn {
    pub fn new(app: Arc<StandIn>) -> Arc<Self> {
        Arc::new(Self { app, killed: Mutex::default() })
    }

    fn set_killed(&self, name: &str, is_killed: bool) {
        let mut killed = self.killed.lock().unwrap_or_else(PoisonError::into_inner);
        if is_killed {
            killed.insert(name.to_owned());
        } else {
            killed.remove(name);
        }
    }

    fn list(&self) -> Response {
        let killed = self.killed.lock().unwrap_or_else(PoisonError::into_inner);
        let status = |name: &str| {
            // The router says `loaded` until the child has ended.
            let value = match self.app.phase(name) {
                Phase::Away => "unloaded",
                Phase::Loading => "loading",
                Phase::Loaded | Phase::Unloading => "loaded",
            };
            if value == "unloaded" && killed.contains(name) {
                json!({"value": value, "args": [], "failed": true, "exit_code": 1})
            } else {
                json!({"value": value, "args": []})
            }
        };
        let names = self.app.names();
        let data: Vec<Value> = names
            .iter()
            .map(|name| json!({"id": name, "aliases": [], "object": "model", "owned_by": "llamacpp", "status": status(name)}))
            .collect();
        json_answer(200, &json!({"data": data, "object": "list"}))
    }

    fn answer_load(self: &Arc<Self>, request: &Incoming) -> Response {
        let name = request.model().unwrap_or_default();
        if !self.app.is_known(&name) {
            return error_answer(404, "model is not found");
        }
        // The state is changed before the answer, so that a second load is refused however soon it comes.
        let (before, cut) = self.app.begin_load(&name);
        if before != Phase::Away {
            return error_answer(400, "model is already running");
        }

        self.set_killed(&name, false);
        let router = Arc::clone(self);
        tokio::spawn(async move {
            if router.app.finish_load(&name, cut).await.is_err() {
                // The child ended with a status other than 0.
                router.set_killed(&name, true);
            }
        });
        json_answer(200, &json!({"success": true}))
    }

    fn answer_unload(self: &Arc<Self>, request: &Incoming) -> Response {
        let name = request.model().unwrap_or_default();
        if !self.app.is_known(&name) {
            return error_answer(400, "model is not found");
        }

        // The state is changed before the answer, so that a request that comes after it waits for the next child.
        match self.begin_stop(&name) {
            Phase::Away => return error_answer(400, "model is not running"),
            // Says success and does nothing.
            Phase::Unloading => self.app.journal.violation(ViolationKind::UnloadTwice, name),
            Phase::Loading => self.app.judge_idleness(&name),
            Phase::Loaded => {
                self.app.judge_idleness(&name);
                let router = Arc::clone(self);
                tokio::spawn(async move { router.finish_stop(&name).await });
            }
        }
        json_answer(200, &json!({"success": true}))
    }

    /// Asks the child to stop, kills one that loads, and gives the phase from before.
    fn begin_stop(&self, name: &str) -> Phase {
        let before = self.app.change(name, |entry| {
            let before = entry.phase;
            match before {
                Phase::Loaded => entry.phase = Phase::Unloading,
                Phase::Loading => entry.cut.cancel(),
                Phase::Away | Phase::Unloading => {}
            }
            before
        });
        let before = before.unwrap_or(Phase::Away);

        if matches!(before, Phase::Loaded | Phase::Loading) {
            self.set_killed(name, before == Phase::Loading);
        }
        before
    }

    /// Waits for the end of the child, and kills it where it is busy for too long.
    async fn finish_stop(&self, name: &str) {
        if self.app.inflight(name) > 0 {
            // Streams stop at once; the child hangs until it is killed.
            self.app.change(name, |entry| entry.cut.cancel());
            tokio::time::sleep(self.app.options.stop_time()).await;
            self.set_killed(name, true);
        }
        self.app.finish_unload(name).await;
    }

    fn loads_by_itself(&self, request: &Incoming) -> bool {
        let asked = request.parameter("autoload");
        asked.map_or(self.app.options.has(Manner::Autoload), |value| value == "true" || value == "1")
    }

    /// Loads the model where the router does so by itself. An error is the answer.
    async fn make_ready(&self, name: &str, request: &Incoming) -> Result<(), Response> {
        if !self.app.is_known(name) {
            return Err(error_answer(400, &format!("model '{name}' not found")));
        }
        let phase = self.app.phase(name);
        if phase == Phase::Away && !self.loads_by_itself(request) {
            return Err(error_answer(400, "model is not loaded"));
        }
        // Also one that is stopping: the request waits for the next instance.
        if phase != Phase::Loaded {
            self.set_killed(name, false);
            self.app.load(name).await.map_err(|problem| error_answer(500, &format!("{problem:?}")))?;
        }
        Ok(())
    }

    async fn answer_work(&self, request: Incoming) -> Response {
        let name = request.model().unwrap_or_default();
        self.app.judge_presence(&name, &request.path);
        if let Err(refusal) = self.make_ready(&name, &request).await {
            return refusal;
        }
        let work = self.app.begin(&name, &request.path);
        let cut = CutAnswer { stream: CutStyle::CleanEnd, whole: error_answer(500, "proxy error: Could not read") };
        complete(&request, work, "word", cut).await
    }

    async fn answer_instance(&self, name: &str, request: &Incoming) -> Response {
        if self.app.phase(name) == Phase::Away && self.loads_by_itself(request) {
            self.app.journal.violation(ViolationKind::GetLoads, request.path.clone());
        }
        if let Err(refusal) = self.make_ready(name, request).await {
            return refusal;
        }
        let busy = self.app.inflight(name);
        match request.path.as_str() {
            "/metrics" => {
                text_answer(200, format!("llamacpp:requests_processing {busy}\nllamacpp:requests_deferred 0\n"))
            }
            "/slots" => json_answer(200, &json!([{"id": 0, "is_processing": busy > 0}])),
            _ => json_answer(200, &json!({"is_sleeping": false, "build_info": "b1-standin"})),
        }
    }
}

impl AppRoutes for LlamaRouterStandIn {
    async fn answer(self: Arc<Self>, request: Incoming) -> Response {
        let instance = request.parameter("model").filter(|_| INSTANCE_GETS.contains(&request.path.as_str()));
        if let ("GET", Some(name)) = (request.method.as_str(), instance) {
            return self.answer_instance(&name, &request).await;
        }
        match (request.method.as_str(), request.path.as_str()) {
            ("GET", "/health" | "/v1/health") => json_answer(200, &json!({"status": "ok"})),
            ("GET", "/models" | "/v1/models") => self.list(),
            ("GET", "/props") => json_answer(
                200,
                &json!({"role": "router", "max_instances": 0,
                "models_autoload": self.app.options.has(Manner::Autoload), "model_alias": "llama-server",
                "model_path": "none", "default_generation_settings": {"params": {}, "n_ctx": 0}, "build_info": "b1-standin"}),
            ),
            ("POST", "/models/load") => self.answer_load(&request),
            ("POST", "/models/unload") => self.answer_unload(&request),
            ("POST", path) if WORK.contains(&path) => self.answer_work(request).await,
            _ => error_answer(404, "File Not Found"),
        }
    }
}
