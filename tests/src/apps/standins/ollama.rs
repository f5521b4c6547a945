//! Ollama as of fb30760: an unload is a wish that a later request may take back, NDJSON streams by default, a runner per
//! model that outlives a killed server.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::response::Response;
use serde_json::{Value, json};

use super::core::{LoadProblem, Phase, StandIn};
use super::incoming::Incoming;
use super::journal::ViolationKind;
use super::openai::{CutAnswer, complete, json_answer, model_list, text_answer};
use super::serve::AppRoutes;
use super::stream::{CutStyle, StreamPlan};
use super::work::Work;

const DEFAULT_CONTEXT: u64 = 4096;
const WORK: [&str; 9] = [
    "/api/generate",
    "/api/chat",
    "/api/embed",
    "/api/embeddings",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/messages",
];

/// How long a model stays after its last request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum KeepAlive {
    Forever,
    Time(Duration),
}

/// What the scheduler remembers of a model.
#[derive(Clone, Copy, Debug)]
struct OllamaSession {
    keep_alive: KeepAlive,
    context_length: u64,
    /// Grows with each request: a timer that began before does nothing.
    use_count: u64,
}

pub struct Ollama {
    app: Arc<StandIn>,
    sessions: Mutex<BTreeMap<String, OllamaSession>>,
}

impl Ollama {
    pub fn new(app: Arc<StandIn>) -> Arc<Self> {
        let own_idle = app.options.own_idle_ms.map(Duration::from_millis);
        let keep_alive = own_idle.map_or(KeepAlive::Forever, KeepAlive::Time);
        let session = OllamaSession { keep_alive, context_length: DEFAULT_CONTEXT, use_count: 0 };
        let sessions = Mutex::new(app.names().into_iter().map(|name| (name, session)).collect());
        Arc::new(Self { app, sessions })
    }

    fn sessions(&self) -> MutexGuard<'_, BTreeMap<String, OllamaSession>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn session(&self, name: &str) -> Option<OllamaSession> {
        self.sessions().get(name).copied()
    }

    /// `tiny:latest` is `tiny`.
    fn known_name(&self, request: &Incoming) -> Option<String> {
        let asked = request.model()?;
        let bare = asked.strip_suffix(":latest").unwrap_or(&asked);
        self.app.names().into_iter().find(|name| name == bare || *name == asked)
    }

    fn list_loaded(&self) -> Response {
        let loaded = self.app.names().into_iter().filter(|name| self.app.phase(name) != Phase::Away);
        let entry = |name: String| {
            let session = self.session(&name)?;
            let bytes = self.app.look(&name, |entry| entry.bytes)?;
            let expires_at = match session.keep_alive {
                KeepAlive::Forever => "2319-01-01T00:00:00Z",
                KeepAlive::Time(_) => "2026-01-01T00:00:00Z",
            };
            Some(json!({"name": tagged(&name), "model": tagged(&name), "size": bytes, "size_vram": bytes,
                "context_length": session.context_length, "expires_at": expires_at}))
        };
        json_answer(200, &json!({"models": loaded.filter_map(entry).collect::<Vec<_>>()}))
    }

    /// Makes the model ready for a request, as the scheduler does: loads it, or restarts its runner with other options.
    async fn schedule(&self, name: &str, request: &Incoming) -> Result<(), LoadProblem> {
        let asked = request.json["options"]["num_ctx"].as_u64();
        let differs = |session: &OllamaSession| asked.is_some_and(|asked| asked != session.context_length);
        if self.session(name).is_some_and(|session| differs(&session)) {
            // The request itself counts already.
            self.app.wait_until(name, |entry| entry.inflight <= 1).await;
            self.app.unload(name).await;
            if let (Some(session), Some(asked)) = (self.sessions().get_mut(name), asked) {
                session.context_length = asked;
            }
        }
        self.app.load(name).await
    }

    /// Takes over a request's keep-alive; without one the last value stays.
    fn note_use(&self, name: &str, keep_alive: Option<KeepAlive>) {
        if let Some(session) = self.sessions().get_mut(name) {
            session.use_count += 1;
            session.keep_alive = keep_alive.unwrap_or(session.keep_alive);
        }
    }

    /// Unloads the model when its keep-alive has run out after the last request.
    fn arm_expiry(self: &Arc<Self>, name: &str) {
        let (ollama, name) = (Arc::clone(self), name.to_owned());
        tokio::spawn(async move {
            ollama.app.wait_until(&name, |entry| entry.inflight == 0).await;
            let Some(before) = ollama.session(&name) else { return };
            let KeepAlive::Time(time) = before.keep_alive else { return };
            tokio::time::sleep(time).await;

            let is_unused = ollama.session(&name).is_some_and(|now| now.use_count == before.use_count);
            if is_unused && ollama.app.inflight(&name) == 0 {
                ollama.app.unload(&name).await;
            }
        });
    }

    async fn answer_work(self: Arc<Self>, request: Incoming) -> Response {
        let Some(name) = self.known_name(&request) else {
            return json_answer(
                404,
                &json!({"error": format!("model '{}' not found", request.model().unwrap_or_default())}),
            );
        };
        let is_native = request.path.starts_with("/api/");
        let keep_alive = parse_keep_alive(&request.json["keep_alive"]).filter(|_| is_native);
        if is_native && has_no_input(&request) {
            return self.answer_command(&name, &request, keep_alive).await;
        }

        if keep_alive.is_some() {
            self.app.journal.violation(ViolationKind::ClientKeepAlive, request.json["keep_alive"].to_string());
        }
        self.app.judge_presence(&name, &request.path);
        let work = self.app.begin(&name, &request.path);
        self.note_use(&name, keep_alive);
        if let Err(problem) = self.schedule(&name, &request).await {
            return json_answer(500, &json!({"error": format!("{problem:?}")}));
        }
        self.arm_expiry(&name);
        self.generate(&request, work.join_instance()).await
    }

    /// A request without a prompt: it loads or unloads the model.
    async fn answer_command(
        self: &Arc<Self>,
        name: &str,
        request: &Incoming,
        keep_alive: Option<KeepAlive>,
    ) -> Response {
        let done = |reason: &str| {
            json_answer(200, &json!({"model": name, "response": "", "done": true, "done_reason": reason}))
        };
        if keep_alive == Some(KeepAlive::Time(Duration::ZERO)) && !request.path.ends_with("/embed") {
            self.app.judge_idleness(name);
            self.note_use(name, keep_alive);
            if self.app.phase(name) == Phase::Loaded {
                self.arm_expiry(name);
            }
            return done("unload");
        }

        self.note_use(name, keep_alive);
        match self.schedule(name, request).await {
            Ok(()) => {
                self.arm_expiry(name);
                done("load")
            }
            Err(problem) => json_answer(500, &json!({"error": format!("{problem:?}")})),
        }
    }

    async fn generate(&self, request: &Incoming, mut work: Work) -> Response {
        let pause = self.app.options.token_time();
        if request.path.starts_with("/v1/") {
            let cut = CutAnswer { stream: CutStyle::Abort, whole: text_answer(500, "runner has ended") };
            return complete(request, work, "word", cut).await;
        }

        let tokens = request.tokens();
        let model = work.model.clone();
        if request.path.contains("embed") || request.flag("stream") == Some(false) {
            if !work.last(pause.saturating_mul(u32::try_from(tokens).unwrap_or(u32::MAX))).await {
                return json_answer(500, &json!({"error": "the runner has ended"}));
            }
            work.finish();
            let words = "word ".repeat(tokens);
            return json_answer(200, &json!({"model": model, "response": words, "done": true, "embeddings": [[0.5]]}));
        }

        let line = |value: Value| format!("{value}\n").into();
        let end = line(json!({"model": model, "response": "", "done": true, "done_reason": "length"}));
        let piece = move |index| line(json!({"model": model, "response": format!("word{index} "), "done": false}));
        let plan = StreamPlan {
            content_type: "application/x-ndjson",
            tokens,
            pause,
            piece: Box::new(piece),
            end,
            cut: CutStyle::Abort,
        };
        plan.answer(work)
    }
}

impl AppRoutes for Ollama {
    async fn answer(self: Arc<Self>, request: Incoming) -> Response {
        let host = request.headers.get("host").and_then(|host| host.to_str().ok()).unwrap_or_default();
        let host_name = host.rsplit_once(':').map_or(host, |(name, _)| name);
        if !["127.0.0.1", "localhost", "[::1]"].contains(&host_name) {
            self.app.journal.violation(ViolationKind::ForeignHost, host);
            return text_answer(403, "");
        }

        if request.method == "POST" && WORK.contains(&request.path.as_str()) {
            return self.answer_work(request).await;
        }
        let names = self.app.names();
        match (request.method.as_str(), request.path.as_str()) {
            ("GET" | "HEAD", "/") => text_answer(200, "Ollama is running"),
            ("GET", "/api/version") => json_answer(200, &json!({"version": "0.17.4"})),
            ("GET", "/api/ps") => self.list_loaded(),
            ("GET", "/api/tags") => {
                let models: Vec<Value> =
                    names.iter().map(|name| json!({"name": tagged(name), "model": tagged(name)})).collect();
                json_answer(200, &json!({"models": models}))
            }
            ("GET", "/v1/models") => model_list(&names),
            ("POST", "/api/show") => json_answer(200, &json!({"details": {"family": "llama"}})),
            // It stays in memory.
            ("DELETE", "/api/delete") => json_answer(200, &Value::Null),
            _ => text_answer(404, "404 page not found"),
        }
    }
}

fn tagged(name: &str) -> String {
    if name.contains(':') { name.to_owned() } else { format!("{name}:latest") }
}

fn has_no_input(request: &Incoming) -> bool {
    let json = &request.json;
    match request.path.as_str() {
        "/api/generate" => json["prompt"].as_str().unwrap_or_default().is_empty(),
        "/api/chat" => json["messages"].as_array().is_none_or(Vec::is_empty),
        "/api/embed" => json["input"].as_array().is_some_and(Vec::is_empty),
        _ => false,
    }
}

/// A number of seconds, or a duration such as `5m`; what is negative means for ever.
fn parse_keep_alive(value: &Value) -> Option<KeepAlive> {
    let seconds = match value {
        Value::Number(number) => number.as_f64()?,
        Value::String(text) => {
            let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
            let unit = match &text[digits.len()..] {
                "ms" => 1e-3,
                "m" => 60.0,
                "h" => 3600.0,
                _ => 1.0,
            };
            digits.parse::<f64>().ok()? * unit
        }
        _ => return None,
    };
    Some(if seconds < 0.0 { KeepAlive::Forever } else { KeepAlive::Time(Duration::from_secs_f64(seconds)) })
}
