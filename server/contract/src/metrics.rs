//! Metric families of `hush-server`, in base units (seconds, bytes). Gauges that mirror state are computed at scrape time.

/// Gauge `{model, state}`: 1 for the state the model is in, 0 for the others.
pub const MODEL_STATE: &str = "hush_model_state";
/// Gauge `{model}`: seconds since the last request (or the load) ended; 0 while busy or not loaded.
pub const MODEL_IDLE_SECONDS: &str = "hush_model_idle_seconds";
/// Gauge `{model}`: requests that hold the model.
pub const MODEL_INFLIGHT_REQUESTS: &str = "hush_model_inflight_requests";
/// Gauge `{model}`: requests that wait for the model.
pub const MODEL_QUEUED_REQUESTS: &str = "hush_model_queued_requests";
/// Gauge `{model}`: grows by one at each load.
pub const MODEL_GENERATION: &str = "hush_model_generation";
/// Histogram `{model, phase}`: seconds per phase of a load (`spawn`, `libraries`, `sessions`, `total`).
pub const MODEL_LOAD_DURATION_SECONDS: &str = "hush_model_load_duration_seconds";
/// Counter `{model, result}`.
pub const MODEL_LOADS_TOTAL: &str = "hush_model_loads_total";
/// Histogram `{model}`: seconds from the decision to unload until the runner is reaped.
pub const MODEL_UNLOAD_DURATION_SECONDS: &str = "hush_model_unload_duration_seconds";
/// Counter `{model, reason}`.
pub const MODEL_UNLOADS_TOTAL: &str = "hush_model_unloads_total";
/// Counter `{model, reason}`: unload commands whose condition no longer held.
pub const MODEL_UNLOAD_REFUSED_TOTAL: &str = "hush_model_unload_refused_total";
/// Histogram `{model}`: seconds between the arrivals of requests.
pub const MODEL_INTERARRIVAL_SECONDS: &str = "hush_model_interarrival_seconds";
/// Histogram `{model}`: seconds that a request waited because the model was not loaded.
pub const COLD_START_WAIT_SECONDS: &str = "hush_cold_start_wait_seconds";
/// Histogram `{route, code}`.
pub const REQUEST_DURATION_SECONDS: &str = "hush_request_duration_seconds";
/// Counter `{model}`: seconds of audio that were transcribed.
pub const AUDIO_SECONDS_TOTAL: &str = "hush_audio_seconds_total";
/// Counter `{model, cause}`: runners that had to be replaced (`exited`, `killed`, `hung`, `load_timeout`).
pub const RUNNER_RESTARTS_TOTAL: &str = "hush_runner_restarts_total";
/// Gauge `{model}`: resident memory of the runner process; 0 when there is none.
pub const RUNNER_RESIDENT_BYTES: &str = "hush_runner_resident_bytes";

/// Gauge: 1 when the configuration file was good the last time it was read, 0 when it was refused.
pub const CONFIG_LAST_RELOAD_SUCCESSFUL: &str = "hush_config_last_reload_successful";
/// Gauge: Unix time of the last time that the configuration was taken over.
pub const CONFIG_LAST_RELOAD_SUCCESS_TIMESTAMP_SECONDS: &str = "hush_config_last_reload_success_timestamp_seconds";

pub const LABEL_MODEL: &str = "model";
pub const LABEL_STATE: &str = "state";
pub const LABEL_PHASE: &str = "phase";
pub const LABEL_RESULT: &str = "result";
pub const LABEL_REASON: &str = "reason";
pub const LABEL_ROUTE: &str = "route";
pub const LABEL_CODE: &str = "code";
pub const LABEL_CAUSE: &str = "cause";
