//! Metric families of `hush-server`, in base units (seconds, bytes). Gauges that mirror state are computed at scrape time.

/// Where they are, on the operations listener.
pub const PATH: &str = "/metrics";

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
/// Gauge `{model}`: seconds since this generation became ready; 0 when it is not.
pub const MODEL_LOADED_SECONDS: &str = "hush_model_loaded_seconds";
/// Gauge `{model}`: what the last load took; 0 before the first.
pub const MODEL_LAST_LOAD_SECONDS: &str = "hush_model_last_load_seconds";
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

// Device memory. Absent, not zero, where nothing measures it.

/// Gauge `{model, gpu_uuid}`: device memory that the model holds; 0 when it is not loaded.
pub const MODEL_VRAM_BYTES: &str = "hush_model_vram_bytes";
/// Gauge `{model, gpu_uuid}`: device memory that the next load is expected to take.
pub const MODEL_NEED_BYTES: &str = "hush_model_need_bytes";
/// Gauge `{model}`: what must be free before the model loads, while it waits for that; 0 while it does not.
pub const MODEL_MEMORY_DEMAND_BYTES: &str = "hush_model_memory_demand_bytes";
/// Counter `{model}`: device memory that unloads gave back.
pub const MODEL_RECLAIMED_BYTES_TOTAL: &str = "hush_model_reclaimed_bytes_total";
/// Gauge `{model}`: what the last unload has not given back yet.
pub const MODEL_RESIDUAL_BYTES: &str = "hush_model_residual_bytes";
/// Counter `{model}`: loads and requests that the device had too little memory for.
pub const MODEL_OUT_OF_MEMORY_TOTAL: &str = "hush_model_out_of_memory_total";
/// Histogram `{model}`: seconds from the end of a runner until its memory was back.
pub const MODEL_RECLAIM_DURATION_SECONDS: &str = "hush_model_reclaim_duration_seconds";
/// Gauge: 1 while NVML answers, 0 while it does not.
pub const GPU_UP: &str = "hush_gpu_up";
/// Gauge `{gpu_uuid}`: 1 while the device answers, 0 since it does not.
pub const GPU_DEVICE_UP: &str = "hush_gpu_device_up";
/// Gauge `{gpu_uuid}`.
pub const GPU_MEMORY_TOTAL_BYTES: &str = "hush_gpu_memory_total_bytes";
/// Gauge `{gpu_uuid}`: by anybody.
pub const GPU_MEMORY_USED_BYTES: &str = "hush_gpu_memory_used_bytes";
/// Gauge `{gpu_uuid}`.
pub const GPU_MEMORY_FREE_BYTES: &str = "hush_gpu_memory_free_bytes";
/// Gauge `{gpu_uuid}`: used by others than this server's models: what unloading them cannot help.
pub const GPU_MEMORY_FOREIGN_BYTES: &str = "hush_gpu_memory_foreign_bytes";
/// Gauge `{gpu_uuid}`: seconds since the device's figures were read.
pub const GPU_SAMPLE_AGE_SECONDS: &str = "hush_gpu_sample_age_seconds";
/// Gauge, always 1, `{gpu_uuid, index, name, driver}`.
pub const GPU_INFO: &str = "hush_gpu_info";
/// Gauge, always 1, `{model, gpu_uuid, method}`: how a model's memory is measured ([`METHOD_PROCESS`],
/// [`METHOD_DEVICE_DELTA`]).
pub const MODEL_VRAM_METHOD_INFO: &str = "hush_model_vram_method_info";
/// Gauge, always 1, `{model, asked, device, reason}`: where a model runs, and why elsewhere than it was asked to.
pub const DEVICE_INFO: &str = "hush_device_info";

/// NVML lists the runner's process and what it holds.
pub const METHOD_PROCESS: &str = "process";
/// What the device's used memory grew by while the model loaded: in a container NVML lists the host's process numbers.
pub const METHOD_DEVICE_DELTA: &str = "device_delta";

pub const LABEL_GPU_UUID: &str = "gpu_uuid";
pub const LABEL_METHOD: &str = "method";
pub const LABEL_INDEX: &str = "index";
pub const LABEL_NAME: &str = "name";
pub const LABEL_DRIVER: &str = "driver";
pub const LABEL_ASKED: &str = "asked";
pub const LABEL_DEVICE: &str = "device";
pub const LABEL_MODEL: &str = "model";
pub const LABEL_STATE: &str = "state";
pub const LABEL_PHASE: &str = "phase";
pub const LABEL_RESULT: &str = "result";
pub const LABEL_REASON: &str = "reason";
pub const LABEL_ROUTE: &str = "route";
pub const LABEL_CODE: &str = "code";
pub const LABEL_CAUSE: &str = "cause";
