//! Metric families of `hush-server` and `hush-sidecar`, in base units (seconds, bytes). Gauges that mirror state are computed at scrape
//! time.

/// Path of the metrics on the operations listener.
pub const PATH: &str = "/metrics";

/// Description of a metric family. `docs/reference/metrics.md` is made of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FamilySpec {
    pub name: &'static str,
    pub kind: MetricKind,
    pub labels: &'static [&'static str],
    /// One or more sentences, for `# HELP` and for the documentation.
    pub help: &'static str,
}

/// The buckets of [`REQUEST_DURATION_SECONDS`], in seconds: requests take milliseconds (`/healthz`) up to an hour (a film on
/// a small CPU, a long generation).
pub const REQUEST_DURATION_BUCKETS: &[f64] =
    &[0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0];

/// The type of a metric family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    Counter,
    Gauge,
    Histogram,
}

impl MetricKind {
    /// The name of the type in the exposition format.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// Declares a constant with the name of each family, and a slice of all of them.
macro_rules! families {
    ($(#[$meta:meta])* $all:ident: $($(#[doc = $help:literal])+ $constant:ident = $name:literal, $kind:ident [$($label:ident),*];)+) => {
        $($(#[doc = $help])+ pub const $constant: &str = $name;)+

        $(#[$meta])*
        pub const $all: &[FamilySpec] = &[
            $(FamilySpec { name: $constant, kind: MetricKind::$kind, labels: &[$($label),*], help: concat!($($help),+) }),+
        ];
    };
    }

/// The help text of a family; empty for an unknown name.
pub fn help(name: &str) -> &'static str {
    family(name).map_or("", |family| family.help.trim_start())
}

/// The labels of a family, in the order in which their values are given.
pub fn labels(name: &str) -> &'static [&'static str] {
    family(name).map_or(&[], |family| family.labels)
}

fn family(name: &str) -> Option<&'static FamilySpec> {
    FAMILIES.iter().chain(APP_FAMILIES).chain(PROGRAM_FAMILIES).find(|family| family.name == name)
}

families! {
    /// The families of a server's models and of its devices.
    FAMILIES:

    /// 1 for the state that the model is in, 0 for the others.
    MODEL_STATE = "hush_model_state", Gauge [LABEL_MODEL, LABEL_STATE];
    /// Seconds since the last request (or the load) ended; 0 while the model is busy or not loaded.
    MODEL_IDLE_SECONDS = "hush_model_idle_seconds", Gauge [LABEL_MODEL];
    /// When the last request (or the load) ended, in Unix time; 0 while the model is busy or not loaded.
    MODEL_IDLE_SINCE_TIMESTAMP_SECONDS = "hush_model_idle_since_timestamp_seconds", Gauge [LABEL_MODEL];
    /// Requests that hold the model.
    MODEL_INFLIGHT_REQUESTS = "hush_model_inflight_requests", Gauge [LABEL_MODEL];
    /// Requests that wait for the model.
    MODEL_QUEUED_REQUESTS = "hush_model_queued_requests", Gauge [LABEL_MODEL];
    /// The generation of the model, which increases by one with each load.
    MODEL_GENERATION = "hush_model_generation", Gauge [LABEL_MODEL];
    /// Seconds since this generation became ready; 0 while the model is not loaded.
    MODEL_LOADED_SECONDS = "hush_model_loaded_seconds", Gauge [LABEL_MODEL];
    /// Duration of the last load; 0 before the first.
    MODEL_LAST_LOAD_SECONDS = "hush_model_last_load_seconds", Gauge [LABEL_MODEL];
    /// Seconds until the model may be loaded again, after an unload with a hold; 0 without one.
    MODEL_HOLD_SECONDS = "hush_model_hold_seconds", Gauge [LABEL_MODEL];
    /// Seconds per phase of a load (`spawn`, `libraries`, `sessions`, `total`).
    MODEL_LOAD_DURATION_SECONDS = "hush_model_load_duration_seconds", Histogram [LABEL_MODEL, LABEL_PHASE];
    /// Loads, by result (`success`, `failure`).
    MODEL_LOADS_TOTAL = "hush_model_loads_total", Counter [LABEL_MODEL, LABEL_RESULT];
    /// How often the model was found in memory although neither a request nor a command had loaded it.
    MODEL_APPEARED_TOTAL = "hush_model_appeared_total", Counter [LABEL_MODEL];
    /// Seconds from the decision to unload until the runner is reaped.
    MODEL_UNLOAD_DURATION_SECONDS = "hush_model_unload_duration_seconds", Histogram [LABEL_MODEL];
    /// Unloads, by reason.
    MODEL_UNLOADS_TOTAL = "hush_model_unloads_total", Counter [LABEL_MODEL, LABEL_REASON];
    /// Unload commands that changed nothing, by the condition that no longer held.
    MODEL_UNLOAD_REFUSED_TOTAL = "hush_model_unload_refused_total", Counter [LABEL_MODEL, LABEL_REASON];
    /// Seconds between the arrivals of requests.
    MODEL_INTERARRIVAL_SECONDS = "hush_model_interarrival_seconds", Histogram [LABEL_MODEL];
    /// Seconds that a request waited because the model was not loaded.
    COLD_START_WAIT_SECONDS = "hush_cold_start_wait_seconds", Histogram [LABEL_MODEL];
    /// Seconds from the head of a request to the end of its answer.
    REQUEST_DURATION_SECONDS = "hush_request_duration_seconds", Histogram [LABEL_ROUTE, LABEL_CODE];
    /// Requests of a GPU sidecar that got no whole answer of the app, by cause (`refused`: no connection, nothing was sent;
    /// `broken`: the connection broke before the answer; `cut`: it broke within the answer; `timed_out`).
    UPSTREAM_FAILURES_TOTAL = "hush_upstream_failures_total", Counter [LABEL_CAUSE];
    /// Connections of clients that a GPU sidecar broke off, because nothing was read of what it sent for as long as
    /// `--client-stall`.
    CLIENT_STALLS_TOTAL = "hush_client_stalls_total", Counter [];
    /// Websockets that are open through a GPU sidecar, by kind (`display`: counts as nothing; `work`: uses the model).
    OPEN_WEBSOCKETS = "hush_open_websockets", Gauge [LABEL_KIND];
    /// Seconds of audio that were transcribed.
    AUDIO_SECONDS_TOTAL = "hush_audio_seconds_total", Counter [LABEL_MODEL];
    /// Windows of audio that the encoder heard, by context: `short`, without most of the silence after the sound;
    /// `repeated`, in full after a short context whose text was doubtful; `full`, 30 s at once.
    ENCODER_WINDOWS_TOTAL = "hush_encoder_windows_total", Counter [LABEL_MODEL, LABEL_CONTEXT];
    /// Runners that had to be replaced (`exited`, `killed`, `hung`, `load_timeout`).
    RUNNER_RESTARTS_TOTAL = "hush_runner_restarts_total", Counter [LABEL_MODEL, LABEL_CAUSE];
    /// Resident memory of the runner process; 0 when there is none.
    RUNNER_RESIDENT_BYTES = "hush_runner_resident_bytes", Gauge [LABEL_MODEL];

    /// Log lines that could not be written, of the server and its runners, because standard error was closed, full or
    /// stuck.
    LOG_LINES_DROPPED_TOTAL = "hush_log_lines_dropped_total", Counter [];

    /// 1 where the kernel confines ffmpeg with this mechanism (`landlock`, `seccomp`), 0 where it does not offer it.
    FFMPEG_CONFINED = "hush_ffmpeg_confined", Gauge [LABEL_MECHANISM];

    /// 1 when the configuration file was valid the last time it was read, 0 when it was refused.
    CONFIG_LAST_RELOAD_SUCCESSFUL = "hush_config_last_reload_successful", Gauge [];
    /// When the configuration was last applied, in Unix time.
    CONFIG_LAST_RELOAD_SUCCESS_TIMESTAMP_SECONDS = "hush_config_last_reload_success_timestamp_seconds", Gauge [];

    // Device memory. A family is absent, not zero, where its value cannot be measured.

    /// Device memory that the model holds; 0 when it is not loaded.
    MODEL_VRAM_BYTES = "hush_model_vram_bytes", Gauge [LABEL_MODEL, LABEL_GPU_UUID];
    /// Device memory that the next load is expected to take.
    MODEL_NEED_BYTES = "hush_model_need_bytes", Gauge [LABEL_MODEL, LABEL_GPU_UUID];
    /// Device memory that must be free before the model loads, while it waits for that; 0 while it does not wait.
    MODEL_MEMORY_DEMAND_BYTES = "hush_model_memory_demand_bytes", Gauge [LABEL_MODEL];
    /// Device memory that unloads returned.
    MODEL_RECLAIMED_BYTES_TOTAL = "hush_model_reclaimed_bytes_total", Counter [LABEL_MODEL];
    /// Device memory that the last unload has not returned yet.
    MODEL_RESIDUAL_BYTES = "hush_model_residual_bytes", Gauge [LABEL_MODEL];
    /// Loads and requests that the device had too little memory for.
    MODEL_OUT_OF_MEMORY_TOTAL = "hush_model_out_of_memory_total", Counter [LABEL_MODEL];
    /// Seconds from the end of a runner until its device memory was returned, or until the server stopped waiting for
    /// it.
    MODEL_RECLAIM_DURATION_SECONDS = "hush_model_reclaim_duration_seconds", Histogram [LABEL_MODEL];
    /// 1 while NVML answers, 0 while it does not.
    GPU_UP = "hush_gpu_up", Gauge [];
    /// 1 while the device answers, 0 while it does not.
    GPU_DEVICE_UP = "hush_gpu_device_up", Gauge [LABEL_GPU_UUID];
    /// Memory of the device, or of the MIG instance, that processes can use, without what the driver reserves for
    /// itself.
    GPU_MEMORY_TOTAL_BYTES = "hush_gpu_memory_total_bytes", Gauge [LABEL_GPU_UUID];
    /// Memory of the device that processes use, whether they belong to this server or not.
    GPU_MEMORY_USED_BYTES = "hush_gpu_memory_used_bytes", Gauge [LABEL_GPU_UUID];
    /// Memory of the device that is free.
    GPU_MEMORY_FREE_BYTES = "hush_gpu_memory_free_bytes", Gauge [LABEL_GPU_UUID];
    /// Memory of the device that processes other than this server's models use; unloading these models does not free
    /// it.
    GPU_MEMORY_FOREIGN_BYTES = "hush_gpu_memory_foreign_bytes", Gauge [LABEL_GPU_UUID];
    /// Seconds since the device's memory was measured.
    GPU_SAMPLE_AGE_SECONDS = "hush_gpu_sample_age_seconds", Gauge [LABEL_GPU_UUID];
    /// Always 1: the device and its driver.
    GPU_INFO = "hush_gpu_info", Gauge [LABEL_GPU_UUID, LABEL_INDEX, LABEL_NAME, LABEL_DRIVER];
    /// Always 1: how a model's memory is measured: `process`, where NVML lists the runner; `device_delta`, by how much
    /// the device's used memory grew while the model loaded.
    MODEL_VRAM_METHOD_INFO = "hush_model_vram_method_info", Gauge [LABEL_MODEL, LABEL_GPU_UUID, LABEL_METHOD];
    /// Always 1: the device that a model runs on, and why it is not the requested one.
    DEVICE_INFO = "hush_device_info", Gauge [LABEL_MODEL, LABEL_ASKED, LABEL_DEVICE, LABEL_REASON];
}

families! {
    /// The families that `hush-sidecar` has beside those of models and devices. `hush-server` has none of them.
    APP_FAMILIES:

    /// Always 1: the kind of the app (`ollama`), its version, empty until the app has said it, and how its models are loaded
    /// (`api`, `process`).
    APP_INFO = "hush_app_info", Gauge [LABEL_APP, LABEL_VERSION, LABEL_MODE];
    /// 1 while the app answers, 0 while it does not; also 1 while the sidecar has ended the app because its models are
    /// unloaded.
    APP_UP = "hush_app_up", Gauge [LABEL_APP];
    /// 1 with the reason `governed` while the sidecar loads and unloads the app's models; 0 while it does not, with the
    /// reason.
    APP_GOVERNED = "hush_app_governed", Gauge [LABEL_APP, LABEL_REASON];
    /// Always 1: why the app is not governed, in words, such as the flag that must be set. Absent while it is governed.
    APP_PROBLEM_INFO = "hush_app_problem_info", Gauge [LABEL_APP, LABEL_PROBLEM];
    /// 1 while the app's own port accepts connections at an address of the pod other than the loopback, so that clients
    /// can pass by the sidecar; 0 while it does not.
    APP_PORT_EXPOSED = "hush_app_port_exposed", Gauge [LABEL_APP];
    /// 1 where an unload can end the process of the app too, because the sidecar starts the app; 0 where it cannot, so that an
    /// unload is that of the app and what the process itself holds stays. In process mode every unload ends the process.
    APP_PROCESS_UNLOAD = "hush_app_process_unload", Gauge [LABEL_APP];
    /// Processes of the app that are left although they were killed some seconds ago. They may keep device memory.
    APP_SURVIVING_PROCESSES = "hush_app_surviving_processes", Gauge [LABEL_APP];
    /// Polls in which the app reported work although the sidecar had no request in flight: a client passes by the
    /// sidecar. Absent where the app does not report its work.
    APP_UNATTRIBUTED_WORK_TOTAL = "hush_app_unattributed_work_total", Counter [LABEL_MODEL];
    /// How often the app loaded the model by itself although a hold or an unload of the sidecar was in force.
    APP_LOADS_BEHIND_HOLD_TOTAL = "hush_app_loads_behind_hold_total", Counter [LABEL_MODEL];
    /// Unloads after which the app still listed the model, or its memory did not come back, when the time for it had ended.
    APP_UNLOADS_UNCONFIRMED_TOTAL = "hush_app_unloads_unconfirmed_total", Counter [LABEL_MODEL];
}

pub const BUILD_INFO: &str = "hush_build_info";
pub const PROCESS_CPU_SECONDS_TOTAL: &str = "process_cpu_seconds_total";
pub const PROCESS_OPEN_FDS: &str = "process_open_fds";
pub const PROCESS_MAX_FDS: &str = "process_max_fds";
pub const PROCESS_VIRTUAL_MEMORY_BYTES: &str = "process_virtual_memory_bytes";
pub const PROCESS_RESIDENT_MEMORY_BYTES: &str = "process_resident_memory_bytes";
pub const PROCESS_START_TIME_SECONDS: &str = "process_start_time_seconds";
pub const PROCESS_THREADS: &str = "process_threads";

/// The families of every program of Hush, under the names that Prometheus clients use for them.
pub const PROGRAM_FAMILIES: &[FamilySpec] = &[
    FamilySpec {
        name: BUILD_INFO,
        kind: MetricKind::Gauge,
        labels: &[LABEL_VERSION, LABEL_REVISION],
        help: "Always 1: the build of the program; the revision is `unknown` where the build did not set it.",
    },
    FamilySpec {
        name: PROCESS_CPU_SECONDS_TOTAL,
        kind: MetricKind::Counter,
        labels: &[],
        help: "Processor time of the process, in user and system mode together.",
    },
    FamilySpec { name: PROCESS_OPEN_FDS, kind: MetricKind::Gauge, labels: &[], help: "Open file descriptors." },
    FamilySpec {
        name: PROCESS_MAX_FDS,
        kind: MetricKind::Gauge,
        labels: &[],
        help: "The limit of open file descriptors.",
    },
    FamilySpec { name: PROCESS_VIRTUAL_MEMORY_BYTES, kind: MetricKind::Gauge, labels: &[], help: "Virtual memory." },
    FamilySpec { name: PROCESS_RESIDENT_MEMORY_BYTES, kind: MetricKind::Gauge, labels: &[], help: "Resident memory." },
    FamilySpec {
        name: PROCESS_START_TIME_SECONDS,
        kind: MetricKind::Gauge,
        labels: &[],
        help: "When the process was started, in Unix time.",
    },
    FamilySpec { name: PROCESS_THREADS, kind: MetricKind::Gauge, labels: &[], help: "Threads of the process." },
];

/// NVML lists the runner's process with its memory.
pub const METHOD_PROCESS: &str = "process";
/// How much the device's used memory grew while the model loaded: in a container NVML lists process numbers of the
/// host.
pub const METHOD_DEVICE_DELTA: &str = "device_delta";

pub const LABEL_GPU_UUID: &str = "gpu_uuid";
pub const LABEL_METHOD: &str = "method";
pub const LABEL_MECHANISM: &str = "mechanism";
pub const LABEL_INDEX: &str = "index";
pub const LABEL_NAME: &str = "name";
pub const LABEL_DRIVER: &str = "driver";
pub const LABEL_ASKED: &str = "asked";
pub const LABEL_DEVICE: &str = "device";
pub const LABEL_MODEL: &str = "model";
pub const LABEL_STATE: &str = "state";
pub const LABEL_KIND: &str = "kind";
pub const LABEL_PHASE: &str = "phase";
pub const LABEL_RESULT: &str = "result";
pub const LABEL_REASON: &str = "reason";
pub const LABEL_ROUTE: &str = "route";
pub const LABEL_CODE: &str = "code";
pub const LABEL_CONTEXT: &str = "context";
pub const LABEL_CAUSE: &str = "cause";
pub const LABEL_APP: &str = "app";
pub const LABEL_MODE: &str = "mode";
pub const LABEL_PROBLEM: &str = "problem";
pub const LABEL_VERSION: &str = "version";
pub const LABEL_REVISION: &str = "revision";
