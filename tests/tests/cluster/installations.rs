//! Two installations for the whole cluster in two namespaces, each with the settings that hold where none are named: one
//! acts, and the other says why it does not.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hush_tests::cluster::{ControlPlane, Namespace, Rights};
use hush_tests::{Controller, process};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::fixture::{
    AppSpec, CONTROLLER, ClusterFixture, SOON, own_plane, pulse, returning, wait_until_acting, wait_until_missing,
    wait_until_ready,
};

/// In this time two controllers that overwrite each other write some forty times.
const WATCHED: Duration = Duration::from_secs(4);

/// A namespace with a controller for the whole cluster, and what starts it.
struct Installation {
    namespace: Namespace,
    kubeconfig: String,
    args: Vec<String>,
}

impl Installation {
    async fn new(plane: &ControlPlane, name: &str) -> Result<Self> {
        let namespace = plane.namespace(name, &[]).await?;
        plane.grant(&namespace, Rights::Controller)?;
        let kubeconfig = plane.kubeconfig(&namespace, CONTROLLER, &plane.url()).await?;
        let account = format!("{}:{CONTROLLER}", namespace.name);
        // Neither a lease nor an installation is named. The lease is short so that the test is.
        let args = ["--scope", "cluster", "--lease-duration", "6s", "--service-account", &account];
        Ok(Self { namespace, kubeconfig, args: args.map(str::to_owned).to_vec() })
    }

    fn start(&self) -> Result<Controller> {
        Controller::in_cluster(&self.kubeconfig, &self.args.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn account(&self) -> String {
        format!("system:serviceaccount:{}:{CONTROLLER}", self.namespace.name)
    }
}

fn acts(controller: &Controller) -> Result<bool> {
    Ok(controller.metric("hush_controller_acting")? == Some(1.0))
}

/// What a controller wrote, its own leases left out.
fn written_by(plane: &ControlPlane, installation: &Installation) -> Result<Vec<Value>> {
    let mut requests = plane.requests_of(&installation.namespace.name, CONTROLLER)?;
    let reads = |entry: &Value| ["get", "list", "watch"].iter().any(|verb| entry["verb"] == *verb);
    requests.retain(|entry| !reads(entry) && entry["objectRef"]["resource"] != "leases");
    Ok(requests)
}

/// Starts the controllers of both installations at once; returns them and the index of the one that acts.
fn start_both(installations: &[Installation; 2]) -> Result<([Controller; 2], usize)> {
    let started = thread::scope(|scope| {
        let begun = installations.each_ref().map(|one| scope.spawn(|| one.start()));
        begun.map(|one| one.join().map_err(|_| anyhow::anyhow!("a start panicked"))?)
    });
    let [first, second] = started;
    let (first, second) = (first?, second?);

    let acting = hush_tests::wait::wait_for("one of them acts", SOON, || {
        Ok(match (acts(&first)?, acts(&second)?) {
            (true, true) => anyhow::bail!("both act"),
            (false, false) => None,
            (true, false) => Some(0),
            (false, true) => Some(1),
        })
    })?;
    Ok(([first, second], acting))
}

#[tokio::test]
async fn of_two_installations_one_acts_and_the_other_says_so() -> Result<()> {
    let Some(plane) = own_plane().await? else { return Ok(()) };
    let mut stage = ClusterFixture::new(&plane).await?;
    let installations = [Installation::new(&plane, "first").await?, Installation::new(&plane, "second").await?];
    // The servers would obey either.
    let accounts = installations.each_ref().map(|one| format!("{}:{CONTROLLER}", one.namespace.name));
    let args = ["--admin-account", accounts[0].as_str(), "--admin-account", accounts[1].as_str()];
    let app = stage.server(AppSpec { args: &args, ..AppSpec::new("speech", 2, 0) }).await?;
    app.apply(&plane, returning("speech", 0))?;
    app.transcribe()?;

    let ([first, second], found) = start_both(&installations)?;
    let (leader, waiting) = if found == 0 { (first, second) } else { (second, first) };
    let (leads, waits) = (&installations[found], &installations[1 - found]);

    wait_until_ready(&leader)?;
    let reason = format!("the controllers of the installation `{}` act for this cluster", leads.namespace.name);
    wait_until_missing(&waiting, &reason)?;
    waiting.wait_for_log(&[&reason], SOON)?;
    wait_until_acting(&waiting, false)?;

    // One command by one of them.
    pulse(&mut stage, &app)?;
    assert_eq!(app.server.unloads_ordered(), [leads.account()]);
    app.transcribe()?;
    app.wait_for_status(&plane, "loaded", 1)?;

    // One status, which is not written again and again: what the command has left is written, and then nothing.
    let before = written_by(&plane, leads)?.len();
    thread::sleep(WATCHED);
    let writes = written_by(&plane, leads)?.len() - before;
    assert!(before > 0 && writes <= 4, "{before} writes, then {writes} within {WATCHED:?}");
    assert_eq!(written_by(&plane, waits)?, Vec::<Value>::new(), "and the other one nothing");
    let said = waiting.log().iter().filter(|line| line.contains(&reason)).count();
    assert_eq!(said, 1, "once: {:?}", waiting.log());

    // A second replica of what acts is no second installation.
    let replica = leads.start()?;
    wait_until_ready(&replica)?;
    wait_until_acting(&replica, false)?;
    process::send(replica.pid(), Signal::KILL)?;

    // The one that waited takes over, and is ready then.
    process::send(leader.pid(), Signal::TERM)?;
    wait_until_acting(&waiting, true)?;
    wait_until_ready(&waiting)?;
    waiting.wait_for_log(&["no other installation acts any more"], SOON)?;
    ensure!(waiting.metric("hush_controller_leader_transitions_total")? >= Some(1.0), "it has seen itself lead");
    pulse(&mut stage, &app)?;
    assert_eq!(app.server.unloads_ordered(), [leads.account(), waits.account()]);
    Ok(())
}

/// Everything that is written is owned by one name, and every request says by which program it is sent.
#[tokio::test]
async fn one_field_manager_and_one_user_agent() -> Result<()> {
    let Some(plane) = own_plane().await? else { return Ok(()) };
    let mut stage = ClusterFixture::new(&plane).await?;
    let app = stage.app(AppSpec::new("speech", 2, 0)).await?;
    app.transcribe()?;
    let controller = stage.controller(&["--scope", "cluster"]).await?;
    wait_until_acting(&controller, true)?;
    pulse(&mut stage, &app)?;
    app.wait_for_status(&plane, "loaded", 0)?;
    hush_tests::wait::wait_for("the Events are written", SOON, || Ok((app.events(&plane)?.len() >= 2).then_some(())))?;

    // Its own figures.
    for queue in ["commands", "requests", "events"] {
        controller.wait_for_metric(&format!("hush_controller_queue_length{{queue=\"{queue}\"}}"), 0.0, SOON)?;
    }
    let counted = |labels: &str| controller.metric(&format!("hush_controller_api_requests_total{{{labels}}}"));
    let status = "resource=\"gpumodelpolicies/status\",result=\"success\",verb=\"patch\"";
    assert!(counted(status)? >= Some(1.0), "the status was written");
    assert!(counted("resource=\"leases\",result=\"success\",verb=\"update\"")? >= Some(1.0), "it took the lease");
    assert!(counted("resource=\"events\",result=\"success\",verb=\"create\"")? >= Some(2.0));
    assert_eq!(counted("resource=\"pods\",result=\"success\",verb=\"watch\"")?, Some(1.0));
    assert!(controller.metric("hush_controller_step_duration_seconds_count")? > Some(1.0));
    let version = concat!("hush_build_info{revision=\"unknown\",version=\"", env!("CARGO_PKG_VERSION"), "\"}");
    assert_eq!(controller.metric(version)?, Some(1.0));
    assert!(controller.metric("process_resident_memory_bytes")? > Some(1e6));

    let managers = |object: &Value| -> Vec<Value> {
        let fields = object["metadata"]["managedFields"].as_array().into_iter().flatten();
        fields.map(|entry| entry["manager"].clone()).collect()
    };
    let get = |args: &[&str]| -> Result<Value> {
        let args = [args, &["--output", "json", "--show-managed-fields"]].concat();
        Ok(serde_json::from_str(&plane.kubectl_text(&args, "")?)?)
    };
    let lease = get(&["get", "lease", "hush-controller", "--namespace", "kube-system"])?;
    assert_eq!(managers(&lease), [json!("hush-controller")], "{lease}");
    let events = get(&["get", "events.events.k8s.io", "--namespace", &app.namespace.name])?;
    let events = events["items"].as_array().context("no Events")?;
    assert!(events.len() >= 2 && events.iter().all(|event| managers(event) == [json!("hush-controller")]));
    let policy = get(&["get", "gmp", "speech", "--namespace", &app.namespace.name])?;
    let mut of_status = policy["metadata"]["managedFields"].as_array().context("no fields")?.iter();
    let of_status = of_status.find(|entry| entry["subresource"] == "status").context("no status")?;
    assert_eq!(of_status["manager"], "hush-controller", "{policy}");

    // The plugin too, as the same account, whose requests are recorded.
    let kubeconfig = stage.path("kubeconfig-of-the-plugin");
    std::fs::write(&kubeconfig, stage.kubeconfig(CONTROLLER, &plane.url()).await?)?;
    let before = plane.requests_of(&stage.system.name, CONTROLLER)?.len();
    let mut plugin = std::process::Command::new(hush_tests::fixtures::controller()?);
    let output = plugin.args(["kubectl", "top"]).env("KUBECONFIG", kubeconfig).output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("there is no controller"), "{said}");
    let requests = plane.requests_of(&stage.system.name, CONTROLLER)?;
    assert!(requests.len() > before);
    let expected = concat!("hush-controller/", env!("CARGO_PKG_VERSION"));
    for request in &requests {
        assert_eq!(request["userAgent"], expected, "{request}");
    }
    Ok(())
}
