//! Harm to etcd, in which the API server keeps everything.

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustix::process::Signal;
use serde_json::{Value, json};

use super::plane::ControlPlane;
use crate::{http, process};

impl ControlPlane {
    /// Freezes etcd, or lets it go on.
    pub fn freeze_etcd(&self, frozen: bool) -> Result<()> {
        let pid = self.lock().etcd.as_ref().context("etcd does not run")?.id();
        process::send(pid, if frozen { Signal::STOP } else { Signal::CONT })
    }

    /// Ends it at once; nothing listens on its port.
    pub fn stop_etcd(&self) -> Result<()> {
        self.end(Signal::KILL, |running| &mut running.etcd)
    }

    /// Starts it again, on the same port and with the same data.
    pub fn start_etcd(&self) -> Result<()> {
        self.spawn_etcd()
    }

    /// Lets etcd forget how everything came to be as it is. Gives the revision from which on it knows.
    pub fn forget_history(&self) -> Result<u64> {
        let first = json!({"key": "AA==", "range_end": "AA==", "limit": 1, "keys_only": true});
        let revision = self.ask_etcd("range", &first)?["header"]["revision"].clone();
        self.ask_etcd("compaction", &json!({"revision": revision, "physical": true}))?;
        revision.as_str().context("no revision")?.parse().context("no number")
    }

    /// A custom resource as the API server keeps it, by its path below `/registry/`.
    pub fn stored(&self, path: &str) -> Result<Value> {
        let key = STANDARD.encode(format!("/registry/{path}"));
        let answer = self.ask_etcd("range", &json!({"key": key}))?;
        let value = answer["kvs"][0]["value"].as_str().with_context(|| format!("{path} is not stored"))?;
        Ok(serde_json::from_slice(&STANDARD.decode(value)?)?)
    }

    /// By its gateway from JSON to its own protocol.
    fn ask_etcd(&self, what: &str, body: &Value) -> Result<Value> {
        let (host, body) = (self.etcd, body.to_string());
        let request = format!(
            "POST /v3/kv/{what} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
        let answer = http::exchange(host, request.as_bytes())?;
        ensure!(answer.status == 200, "etcd {what}: {} {}", answer.status, answer.text());
        answer.json()
    }
}
