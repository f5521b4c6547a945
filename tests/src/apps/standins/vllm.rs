//! vLLM 0.32 with sleep mode: one model per process, requests that arrive while it is asleep queue unseen, a sleep in the
//! middle of a request aborts it, a wake-up without memory ends the engine.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::response::Response;
use serde_json::{Value, json};

use super::core::{LoadProblem, Phase, StandIn};
use super::incoming::Incoming;
use super::openai::{CutAnswer, complete, error_answer, event, json_answer, model_list, text_answer};
use super::options::Manner;
use super::serve::AppRoutes;
use super::stream::CutStyle;
use super::websocket;

pub struct Vllm {
    app: Arc<StandIn>,
    /// Level 2 threw the weights away, and they have not been reloaded.
    has_garbage: AtomicBool,
}

impl Vllm {
    pub fn new(app: Arc<StandIn>) -> Arc<Self> {
        Arc::new(Self { app, has_garbage: AtomicBool::new(false) })
    }

    fn model(&self) -> String {
        self.app.first_name()
    }

    fn frees_memory(&self) -> bool {
        !self.app.options.has(Manner::NoSleepMode)
    }

    async fn sleep(&self, request: &Incoming) -> Response {
        let model = self.model();
        let mode = request.parameter("mode").unwrap_or_else(|| "abort".to_owned());
        let level = request.parameter("level").unwrap_or_else(|| "1".to_owned());
        let answer = json_answer(200, &json!({"status": "sleeping", "level": level.parse::<u64>().unwrap_or(1)}));
        if !self.frees_memory() {
            return answer;
        }

        self.app.judge_idleness(&model);
        if self.app.inflight(&model) > 0 && self.app.options.has(Manner::DiesWhenBusy) {
            self.app.die("EngineCore died: sleep while requests were running");
        }
        if mode == "wait" {
            self.app.wait_until(&model, |entry| entry.inflight == 0).await;
        } else {
            self.app.change(&model, |entry| entry.cut.cancel());
        }
        self.app.unload(&model).await;
        self.has_garbage.store(level == "2", Ordering::Relaxed);
        answer
    }

    async fn wake(&self, request: &Incoming) -> Response {
        // Part by part: only the last part makes it whole.
        if request.parameter("tags").is_none_or(|tags| tags == "kv_cache") && self.frees_memory() {
            let model = self.model();
            if self.app.load(&model).await == Err(LoadProblem::OutOfMemory) {
                self.app.die("torch.OutOfMemoryError: CUDA out of memory in wake_up");
            }
        }
        json_answer(200, &json!({"status": "awake"}))
    }

    async fn answer_work(&self, request: Incoming) -> Response {
        let model = self.model();
        if request.model().is_some_and(|asked| asked != model) {
            return error_answer(404, "The model does not exist.");
        }
        self.app.judge_presence(&model, &request.path);
        let work = self.app.begin(&model, &request.path);
        // Asleep: it waits in the engine, and no metric but the number of waiting requests tells of it.
        self.app.wait_until(&model, |entry| entry.phase == Phase::Loaded).await;

        let words = if self.has_garbage.load(Ordering::Relaxed) { "garbage" } else { "word" };
        let on_cut = CutAnswer {
            stream: CutStyle::LastWords(
                [event(&model, &json!({}), Some("abort")), "data: [DONE]\n\n".into()].concat().into(),
            ),
            whole: json_answer(200, &json!({"choices": [{"index": 0, "finish_reason": "abort"}]})),
        };
        complete(&request, work.join_instance(), words, on_cut).await
    }

    fn metrics(&self) -> Response {
        let model = self.model();
        let busy = self.app.inflight(&model);
        let asleep = u8::from(self.app.phase(&model) != Phase::Loaded);
        let (running, waiting) = if asleep == 1 { (0, busy) } else { (busy, 0) };
        text_answer(
            200,
            format!(
                "vllm:num_requests_running{{engine=\"0\",model_name=\"{model}\"}} {running}.0\n\
                 vllm:num_requests_waiting{{engine=\"0\",model_name=\"{model}\"}} {waiting}.0\n\
                 vllm:engine_sleep_state{{engine=\"0\",model_name=\"{model}\",sleep_state=\"awake\"}} {}.0\n\
                 vllm:engine_sleep_state{{engine=\"0\",model_name=\"{model}\",sleep_state=\"weights_offloaded\"}} {asleep}.0\n",
                1 - asleep
            ),
        )
    }
}

impl AppRoutes for Vllm {
    async fn answer(self: Arc<Self>, mut request: Incoming) -> Response {
        if request.path == "/v1/realtime" && request.upgrade.is_some() {
            let model = self.model();
            self.app.judge_presence(&model, "/v1/realtime");
            let work = self.app.begin(&model, "/v1/realtime");
            return websocket::accept(&mut request, move |socket| websocket::echo(socket, work));
        }
        let has_dev_mode = !self.app.options.has(Manner::NoDevMode);
        match (request.method.as_str(), request.path.as_str()) {
            ("GET", "/health" | "/ping") => text_answer(200, ""),
            ("GET", "/version") => json_answer(200, &json!({"version": "0.32.0"})),
            ("GET", "/v1/models") => model_list(&self.app.names()),
            ("GET", "/metrics") => self.metrics(),
            ("GET", "/is_sleeping") if has_dev_mode => json_answer(
                200,
                &json!({"is_sleeping": self.app.phase(&self.model()) != Phase::Loaded && self.frees_memory()}),
            ),
            ("GET", "/server_info") if has_dev_mode => json_answer(
                200,
                &json!({"vllm_config":
                {"model_config": {"enable_sleep_mode": self.frees_memory()}}}),
            ),
            ("POST", "/sleep") if has_dev_mode => self.sleep(&request).await,
            ("POST", "/wake_up") if has_dev_mode => self.wake(&request).await,
            ("POST", "/collective_rpc") if has_dev_mode => {
                self.has_garbage.store(request.text("method") != Some("reload_weights"), Ordering::Relaxed);
                json_answer(200, &json!({"results": [Value::Null]}))
            }
            ("POST", path) if path.starts_with("/v1/") => self.answer_work(request).await,
            _ => json_answer(404, &json!({"detail": "Not Found"})),
        }
    }
}
