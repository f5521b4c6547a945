//! How the proxy treats requests.

use std::collections::BTreeMap;
use std::time::Duration;

use hush_access::Tls;
use hush_listener::open_files::FileBudget;
use hush_listener::spool::SpoolOptions;

use crate::process::AppActivity;

/// The settings of a proxy.
#[derive(Clone, Debug)]
pub struct ProxySettings {
    /// The longest wait for a model that is not in memory, from the end of the request's body; `None`: as long as it
    /// takes.
    pub cold_hold: Option<Duration>,
    /// A body is held in plain memory up to this size, and in the spool beyond it.
    pub attribution_bytes: usize,
    /// The spool of the bodies of work, with their limit.
    pub spool: SpoolOptions,
    /// A body from which nothing comes for this long is given up with 408.
    pub body_stall: Duration,
    /// A client that reads nothing of what is sent to it for this long is cut off; `None`: no limit.
    pub client_stall: Option<Duration>,
    /// A socket that works holds its model until no message went either way for this long.
    pub socket_idle: Duration,
    /// Until the head of the app's answer; `None`: no limit, because a long prompt takes minutes.
    pub first_byte_timeout: Option<Duration>,
    /// Between two pieces of an answer; `None`: no limit.
    pub between_bytes_timeout: Option<Duration>,
    /// From the head of a request to the end of its answer; `None`: no limit.
    pub request_timeout: Option<Duration>,
    /// The model of a request that names none; `None`: the first one.
    pub default_model: Option<String>,
    /// Other names that the app gives its models: from the name to the model.
    pub aliases: BTreeMap<String, String>,
    /// `None`: plain HTTP.
    pub tls: Option<Tls>,
    pub max_connections: usize,
    /// The open files of connections, requests and bodies.
    pub files: FileBudget,
    /// How long a connection may be without a request.
    pub keep_alive: Duration,
    /// How long requests may go on once the shutdown has begun.
    pub drain_deadline: Duration,
    /// Learns when the app sends something, so that an app that streams is not taken for a hung one.
    pub activity: AppActivity,
}

impl Default for ProxySettings {
    fn default() -> Self {
        Self {
            cold_hold: Some(Duration::from_secs(60)),
            attribution_bytes: 1 << 20,
            spool: SpoolOptions { limit_bytes: Some(4 << 30), ..SpoolOptions::default() },
            body_stall: Duration::from_secs(30),
            client_stall: Some(Duration::from_secs(600)),
            socket_idle: Duration::from_secs(30),
            first_byte_timeout: None,
            between_bytes_timeout: None,
            request_timeout: None,
            default_model: None,
            aliases: BTreeMap::new(),
            tls: None,
            max_connections: 16 << 10,
            files: FileBudget::new(usize::MAX),
            // Long, because a client that reuses a connection just when it is closed gets an error.
            keep_alive: Duration::from_secs(120),
            drain_deadline: Duration::from_secs(30),
            activity: AppActivity::new(),
        }
    }
}
