//! What a scenario needs to know of an app.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use serde_json::Value;

use super::standins::JournalEntry;
use crate::http::Response;

/// A request to an app.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppCall {
    pub method: &'static str,
    pub path: String,
    pub content_type: &'static str,
    pub body: Vec<u8>,
}

impl AppCall {
    pub fn json(path: &str, body: &Value) -> Self {
        Self { method: "POST", path: path.to_owned(), content_type: "application/json", body: body.to_string().into() }
    }

    pub fn get(path: &str) -> Self {
        Self { method: "GET", path: path.to_owned(), content_type: "text/plain", body: Vec::new() }
    }
}

/// Work that lasts about [`LongCall::DURATION`].
#[derive(Clone, Debug)]
pub struct LongCall {
    pub call: AppCall,
    /// Its answer comes piece by piece from the beginning.
    pub streams: bool,
}

impl LongCall {
    pub const DURATION: Duration = Duration::from_secs(3);
}

/// A model server that the sidecar governs. Each has a port of its own, which stays the same over restarts.
pub trait TestedApp: Send + Sync {
    /// For messages.
    fn name(&self) -> &'static str;

    fn address(&self) -> SocketAddr;

    /// Starts the app and waits until it answers. Nothing to do where the sidecar starts it.
    fn start(&mut self) -> Result<()>;

    /// SIGKILL, to the process that listens.
    fn kill(&mut self) -> Result<()>;

    /// SIGTERM, and waits for the end.
    fn terminate(&mut self) -> Result<()>;

    /// The arguments of `hush-sidecar` beside those of its listeners and of the GPU. The first model is the default.
    fn sidecar_args(&self) -> Vec<String>;

    fn model(&self) -> String;

    /// Done in a fraction of a second, once the model is loaded.
    fn short_call(&self) -> AppCall;

    fn long_call(&self) -> LongCall;

    /// Whether the answer to [`Self::long_call`] has all of its parts, and the work is done.
    fn is_complete(&self, answer: &Response) -> Result<bool>;

    /// What the app itself says; `None`: it does not say.
    fn is_loaded(&self) -> Result<Option<bool>>;

    /// Loads the model without the sidecar.
    fn load_directly(&self) -> Result<()>;

    /// Unloads the idle model without the sidecar, and waits until it is gone; `false`: the app cannot.
    fn unload_directly(&self) -> Result<bool>;

    /// What reached a stand-in; `None`: the app is real.
    fn journal(&self) -> Result<Option<Vec<JournalEntry>>>;
}
