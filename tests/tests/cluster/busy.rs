//! An API server that is too busy for the controller: it answers 429 to all that it is asked, for longer than the lease.

use std::time::Duration;

use anyhow::Result;
use hush_tests::cluster::{ControlPlane, Namespace};
use hush_tests::wait::eventually;
use hush_tests::{Controller, http as plain};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::fixture::{
    AppSpec, CONTROLLER, ClusterFixture, GovernedApp, SOON, own_plane_with, pulse, returning, wait_until_acting,
    wait_until_missing, wait_until_ready,
};

/// Few places, and no queue for them.
const ARGS: &[&str] = &[
    "--enable-priority-and-fairness=false",
    "--max-requests-inflight",
    READING,
    "--max-mutating-requests-inflight",
    WRITING,
];
const READING: &str = "6";
const WRITING: &str = "4";
/// Longer than it takes to notice that a renewal fails, also on a busy machine.
const LEASE: &str = "20s";
/// Together they are more than what fits between two who do not read what they are sent.
const OBJECTS: usize = 20;
const OBJECT_BYTES: usize = 900_000;

/// Clients that ask for much and read nothing of it: each keeps its place until it goes.
struct SlowClients {
    namespace: Namespace,
    token: String,
    members: JoinSet<Result<()>>,
}

impl SlowClients {
    async fn new(plane: &ControlPlane) -> Result<Self> {
        let namespace = plane.namespace("crowd", &[]).await?;
        namespace.service_account("crowd").await?;
        let account = format!("--serviceaccount={}:crowd", namespace.name);
        plane.kubectl_text(&["create", "clusterrolebinding", "crowd", "--clusterrole=cluster-admin", &account], "")?;
        let token = namespace.token("crowd", None).await?;
        for number in 0..OBJECTS {
            let object = json!({
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": format!("much-{number}"), "namespace": namespace.name},
                "data": {"much": "x".repeat(OBJECT_BYTES)},
            });
            plane.kubectl_text(&["create", "--filename", "-"], &object.to_string())?;
        }
        Ok(Self { namespace, token, members: JoinSet::new() })
    }

    /// Returns when every place is taken.
    async fn comes(&mut self, plane: &ControlPlane) -> Result<()> {
        let path = format!("/api/v1/namespaces/{}/configmaps", self.namespace.name);
        // Both answer with all of them.
        let ways =
            [("GET", READING, format!("{path}?pretty=false")), ("DELETE", WRITING, format!("{path}?dryRun=All"))];
        for (method, places, path) in &ways {
            for _ in 0..places.parse()? {
                self.members.spawn(stay(plane.client(&self.token)?, method, path.clone()));
            }
        }
        let stranger = plane.client(&self.token)?;
        eventually("every place is taken", SOON, async || {
            for (method, _, path) in &ways {
                let answer = stranger.send(request(method, path)?).await?;
                if answer.status() != 429 {
                    return Ok(None);
                }
            }
            Ok(Some(()))
        })
        .await
    }

    async fn goes(&mut self) {
        self.members.shutdown().await;
    }
}

fn request(method: &str, path: &str) -> Result<http::Request<Body>> {
    Ok(http::Request::builder().method(method).uri(path).body(Body::empty())?)
}

/// Comes back as soon as it is sent away.
async fn stay(client: Client, method: &str, path: String) -> Result<()> {
    loop {
        match client.send(request(method, &path)?).await {
            // A request whose response is not finished keeps its command; after a minute the API server would end it.
            Ok(answer) if answer.status() == 200 => {
                tokio::time::sleep(Duration::from_secs(50)).await;
                drop(answer);
            }
            _ => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// What the controllers were refused for want of a place.
fn refused(plane: &ControlPlane, stage: &ClusterFixture<'_>, verb: &str, resource: &str) -> Result<usize> {
    let asked = plane.requests_of(&stage.system.name, CONTROLLER)?;
    let these = asked.iter().filter(|entry| {
        entry["responseStatus"]["code"] == 429 && entry["verb"] == verb && entry["objectRef"]["resource"] == resource
    });
    Ok(these.count())
}

fn sent(controllers: &[&Controller]) -> Result<Vec<Value>> {
    let mut all = Vec::new();
    for controller in controllers {
        all.extend(controller.sent()?);
    }
    Ok(all)
}

fn orders(app: &GovernedApp) -> usize {
    app.server.unloads_ordered().len()
}

fn expect_one_acts(controllers: [&Controller; 2]) -> Result<()> {
    let acting = controllers.map(|controller| controller.metric("hush_controller_acting"));
    let acting: Vec<bool> = acting.into_iter().map(|acts| Ok(acts? == Some(1.0))).collect::<Result<_>>()?;
    assert!(acting == [true, false] || acting == [false, true], "{acting:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn too_busy_for_a_while_and_for_too_long() -> Result<()> {
    let Some(plane) = own_plane_with(ARGS).await? else { return Ok(()) };
    let mut stage = ClusterFixture::new(&plane).await?;
    let mut crowd = SlowClients::new(&plane).await?;
    let app = stage.server(AppSpec::new("app", 2, 0)).await?;
    app.apply(&plane, returning("app", 0))?;
    let command =
        stage.controller_command(CONTROLLER, &plane.url(), &["--scope", "cluster", "--lease-duration", LEASE]).await?;
    let mut first = command.start()?;
    wait_until_ready(&first)?;
    wait_until_acting(&first, true)?;
    let second = command.start()?;
    wait_until_ready(&second)?;
    wait_until_acting(&second, false)?;
    pulse(&mut stage, &app)?;

    // For less than the lease: the leader goes on to lead.
    crowd.comes(&plane).await?;
    wait_until_missing(&first, "the lease could not be written: the API server is busy")?;
    crowd.goes().await;
    assert!(refused(&plane, &stage, "update", "leases")? > 0, "its write was not refused");
    wait_until_ready(&first)?;
    wait_until_acting(&first, true)?;
    wait_until_acting(&second, false)?;
    pulse(&mut stage, &app)?;
    assert_eq!(sent(&[&second])?.len(), 0);

    // For longer: the leader ends rather than act without its lease, and no controller acts.
    app.transcribe()?;
    crowd.comes(&plane).await?;
    let status = first.wait_for_exit(SOON)?;
    assert!(!status.success(), "{status}");
    stage.others_hold(22)?;
    // As a kubelet does it.
    let third = command.start()?;
    wait_until_missing(&third, "the API server is busy; the pods are listed again soon")?;
    wait_until_missing(&second, "the lease could not be written: the API server is busy")?;
    assert!(refused(&plane, &stage, "list", "pods")? > 0, "its list was not refused");
    for controller in [&second, &third] {
        wait_until_acting(controller, false)?;
        assert_eq!(plain::get(controller.ops, "/healthz")?.status, 200);
    }
    assert_eq!(orders(&app), 2, "no controller leads");

    // Room again: one of them leads, and does what was to be done, once.
    crowd.goes().await;
    app.server.wait_for_state("unloaded", SOON)?;
    for controller in [&second, &third] {
        wait_until_ready(controller)?;
    }
    expect_one_acts([&second, &third])?;
    stage.others_hold(0)?;
    pulse(&mut stage, &app)?;
    let records = sent(&[&first, &second, &third])?;
    let mut lives: Vec<_> = records.iter().map(|record| record["ifGeneration"].as_u64()).collect();
    lives.sort_unstable();
    assert_eq!(lives, [1, 2, 3, 4].map(Some), "each life was ended once: {records:?}");
    assert_eq!(orders(&app), 4);
    Ok(())
}
