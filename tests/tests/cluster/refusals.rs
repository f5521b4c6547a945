//! An API server that refuses: too busy, and a watch that is too old. This one is a stand-in that answers from a list, so
//! that each request can be counted; a real one does both in `busy` and `expired`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use axum::Router;
use axum::extract::{Query, State};
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use hush_tests::cluster::SERVERS_LABEL;
use hush_tests::wait::wait_for;
use hush_tests::{Controller, http};
use serde_json::{Value, json};

use crate::fixture::SOON;

#[derive(Clone, Default)]
struct ApiServerStandIn(Arc<Mutex<ReceivedRequests>>);

#[derive(Default)]
struct ReceivedRequests {
    /// By path.
    lists: BTreeMap<String, usize>,
    watches: BTreeMap<String, usize>,
}

fn status(code: u16, reason: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": reason, "code": code, "message": reason})
}

fn refused(code: StatusCode, reason: &str) -> Response {
    (code, axum::Json(status(code.as_u16(), reason))).into_response()
}

fn pod(name: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "a", "uid": name, "resourceVersion": "1", "labels": {"gpu.hush.dev/server": "true"}},
        "spec": {"nodeName": "n", "containers": [{"name": "server", "ports": [{"name": "ops", "containerPort": 1}]}]},
        "status": {"phase": "Running", "podIP": "127.0.0.1"},
    })
}

async fn answer(
    State(stand_in): State<ApiServerStandIn>,
    uri: Uri,
    Query(query): Query<BTreeMap<String, String>>,
) -> Response {
    match stand_in.say(uri.path(), query.contains_key("watch")) {
        Some(answer) => answer,
        // Nothing changes any more.
        None => std::future::pending().await,
    }
}

impl ApiServerStandIn {
    fn say(&self, path: &str, watch: bool) -> Option<Response> {
        let pods = path.ends_with("/pods");
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let counts = if watch { &mut seen.watches } else { &mut seen.lists };
        let count = counts.entry(path.to_owned()).or_default();
        *count += 1;
        if watch {
            let gone = json!({"type": "ERROR", "object": status(410, "Expired")});
            return (pods && *count == 1).then(|| format!("{gone}\n").into_response());
        }
        if pods && *count == 1 {
            return Some(refused(StatusCode::TOO_MANY_REQUESTS, "TooManyRequests"));
        }
        // The second pod was created while no watch was open.
        let names = ["one", "two"].iter().take(*count - 1);
        let namespace = json!({"metadata": {"name": "a", "uid": "0b8a-3", "labels": {SERVERS_LABEL: "true"}}});
        let items: Vec<Value> = match path {
            _ if pods => names.map(|name| pod(name)).collect(),
            "/api/v1/namespaces" => vec![namespace],
            _ => Vec::new(),
        };
        let list = json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": "7"}, "items": items});
        Some(axum::Json(list).into_response())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn too_busy_and_too_old_are_waited_out() -> Result<()> {
    let stand_in = ApiServerStandIn::default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    let router = Router::new().fallback(answer).with_state(stand_in.clone());
    tokio::spawn(async move { axum::serve(listener, router).await });
    let kubeconfig = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        "clusters": [{"name": "test", "cluster": {"server": url}}],
        "users": [{"name": "test", "user": {}}],
    });
    // It stands for no lease.
    let controller = Controller::in_cluster(&kubeconfig.to_string(), &["--scope", "cluster", "--dry-run"])?;
    // What was missed is found by a list.
    controller.wait_for_metric("hush_controller_targets{state=\"failing\"}", 2.0, SOON)?;
    controller.wait_for_log(&["the watch of the pods was too old and begins anew"], SOON)?;
    let seen = stand_in.0.lock().unwrap_or_else(PoisonError::into_inner);
    assert_eq!(seen.lists["/api/v1/pods"], 3, "busy, then one pod, then both");
    assert_eq!(seen.lists["/api/v1/namespaces"], 1, "the others had no reason to ask again");
    drop(seen);
    let restarts =
        |resource: &str| controller.metric(&format!("hush_controller_watch_restarts_total{{resource=\"{resource}\"}}"));
    assert_eq!((restarts("pods")?, restarts("namespaces")?), (Some(2.0), Some(0.0)));
    let listed = |result: &str| {
        let labels = format!("resource=\"pods\",result=\"{result}\",verb=\"list\"");
        controller.metric(&format!("hush_controller_api_requests_total{{{labels}}}"))
    };
    assert_eq!((listed("busy")?, listed("success")?), (Some(1.0), Some(2.0)));
    // No server answers: that is all that it waits for.
    let said = wait_for("it waits for servers alone", SOON, || {
        let said = http::get(controller.ops, "/readyz")?.text();
        Ok((!said.contains("pods:")).then_some(said))
    })?;
    assert!(said.contains("no server has answered yet"), "{said}");
    Ok(())
}
