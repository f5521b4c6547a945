//! Figures of a whole controller process over stand-ins for `make bench`: the time from the moment at which pressure
//! crosses the hard threshold to the unload command's arrival, when an idle model leaves, and what watching costs.
//!
//! `hush-controller-latency SERVERS GPUS INTERVAL_MS ROUNDS`, `... cluster SERVERS GPUS INTERVAL_MS ROUNDS` (the stand-ins
//! are pods of a real API server), `... idle SERVERS INTERVAL_MS`, or `... takeover ROUNDS` (from the death of a leader of a
//! lease of 15 s until another acts).

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hush_tests::cluster::{ControlPlane, Namespace, PodAt, Rights};
use hush_tests::controller::Controller;
use hush_tests::fleet::{ReceivedCommand, StandInFleet};
use hush_tests::process;
use hush_tests::wait::wait_for;
use rustix::process::Signal;
use tokio::runtime::Runtime;

const GIB: u64 = 1 << 30;
const POLICIES: &str = "\
apiVersion: gpu.hush.dev/v1beta1
kind: ClusterGpuModelPolicy
metadata: {name: floor}
spec:
  selector: {matchLabels: {gpu.hush.dev/server: \"true\"}}
  residency: {mode: Resident}
  pressure: {hard: {availableBelow: 1Gi}, transitionPeriod: 1s}
  holdAfterEviction: 0s
";

const IDLE: &str = "\
apiVersion: gpu.hush.dev/v1beta1
kind: ClusterGpuModelPolicy
metadata: {name: floor}
spec:
  selector: {matchLabels: {gpu.hush.dev/server: \"true\"}}
  residency: {mode: Idle, idleTimeout: 5s}
";
const IDLE_TIMEOUT: Duration = Duration::from_secs(5);

fn main() -> Result<()> {
    let usage = "usage: hush-controller-latency [cluster] SERVERS GPUS INTERVAL_MS ROUNDS, or idle SERVERS INTERVAL_MS, or \
                 takeover ROUNDS";
    let words: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let numbers =
        |words: &[String]| words.iter().map(|word| word.parse()).collect::<Result<Vec<usize>, _>>().context(usage);
    match words.split_first() {
        Some((first, rest)) if first == "idle" => match numbers(rest)?[..] {
            [servers, interval_ms] => idle(&runtime, servers, interval_ms),
            _ => anyhow::bail!(usage),
        },
        Some((first, rest)) if first == "takeover" => match numbers(rest)?[..] {
            [rounds] => takeover(&runtime, rounds),
            _ => anyhow::bail!(usage),
        },
        Some((first, rest)) if first == "cluster" => match numbers(rest)?[..] {
            [servers, gpus, interval_ms, rounds] => pressure(&runtime, servers, gpus, interval_ms, rounds, true),
            _ => anyhow::bail!(usage),
        },
        _ => match numbers(&words)?[..] {
            [servers, gpus, interval_ms, rounds] => pressure(&runtime, servers, gpus, interval_ms, rounds, false),
            _ => anyhow::bail!(usage),
        },
    }
}

/// A controller that sees the whole fleet.
fn control(fleet: &StandInFleet, servers: usize, interval_ms: usize, policies: &str) -> Result<Controller> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("targets.yaml");
    let entry = |n| format!("- {{url: \"{}\", name: fleet/s{n:05}, node: n{}}}\n", fleet.url(n), fleet.gpu_of(n));
    std::fs::write(&file, format!("targets:\n{}", (0..servers).map(entry).collect::<String>()))?;
    let file = file.to_string_lossy().into_owned();
    let controller = Controller::start(policies, &["--targets", &file, "--interval", &format!("{interval_ms}ms")])?;
    let answering = "hush_controller_targets{state=\"answering\"}";
    controller.wait_for_metric(answering, servers as f64, Duration::from_secs(120))?;
    Ok(controller)
}

/// How long after its timeout each idle model is told to leave; a refused command came too early.
fn idle(runtime: &Runtime, servers: usize, interval_ms: usize) -> Result<()> {
    let fleet = runtime.block_on(StandInFleet::start(servers, servers, 8 * GIB, 2 * GIB))?;
    let _controller = control(&fleet, servers, interval_ms, IDLE)?;
    let mut late = Vec::new();
    let deadline = Instant::now() + IDLE_TIMEOUT * 3;
    while late.len() < servers && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
        for command in fleet.take_received() {
            ensure!(command.accepted, "a command came before the timeout");
            late.push(command.idle.saturating_sub(IDLE_TIMEOUT).as_secs_f64() * 1e3);
        }
    }
    ensure!(late.len() == servers, "{} of {servers} models left", late.len());
    let text = spread(&mut late);
    println!("servers {servers} interval_ms {interval_ms} {text}");
    Ok(())
}

fn spread(values: &mut [f64]) -> String {
    values.sort_by(f64::total_cmp);
    let at = |share: f64| values[((values.len() - 1) as f64 * share).round() as usize];
    format!("p50_ms {:.0} p99_ms {:.0} most_ms {:.0}", at(0.5), at(0.99), at(1.0))
}

/// An API server with the definitions and a policy, and the rights of the controller.
struct ApiServerSetup {
    plane: ControlPlane,
    system: Namespace,
}

impl ApiServerSetup {
    async fn start(policies: &str) -> Result<Self> {
        let plane = ControlPlane::start().await?.context("there is no API server: run `make control-plane` first")?;
        plane.apply_definitions().await?;
        plane.kubectl_text(&["apply", "--filename", "-"], policies)?;
        let system = plane.namespace("hush", &[]).await?;
        plane.grant(&system, Rights::Controller)?;
        Ok(Self { plane, system })
    }

    async fn controller(&self, args: &[&str]) -> Result<Controller> {
        let kubeconfig = self.plane.kubeconfig(&self.system, "hush-controller", &self.plane.url()).await?;
        let account = format!("{}:hush-controller", self.system.name);
        let scope = ["--scope", "cluster", "--service-account", &account];
        Controller::in_cluster(&kubeconfig, &[&scope, args].concat())
    }

    /// Each stand-in as a pod.
    async fn pods(&self, fleet: &StandInFleet, servers: usize) -> Result<()> {
        let namespace = self.plane.namespace("fleet", &[]).await?;
        for server in 0..servers {
            let address = fleet.address(server);
            let std::net::IpAddr::V4(ip) = address.ip() else { continue };
            let pod = PodAt {
                name: &format!("s{server:05}"),
                node: &format!("n{}", fleet.gpu_of(server)),
                account: "default",
                labels: &[("gpu.hush.dev/server", "true")],
                annotations: &[],
                ports: &[("ops", address.port())],
                ip,
            };
            namespace.pod(&pod).await?;
        }
        Ok(())
    }

    fn requests(&self) -> Result<usize> {
        Ok(self.plane.requests_of(&self.system.name, "hush-controller")?.len())
    }
}

/// From the death of a leader until another may act.
fn takeover(runtime: &Runtime, rounds: usize) -> Result<()> {
    let cluster = runtime.block_on(ApiServerSetup::start(POLICIES))?;
    let acts = |controller: &Controller| Ok((controller.metric("hush_controller_acting")? == Some(1.0)).then_some(()));
    let begin = || runtime.block_on(cluster.controller(&[]));
    let mut leader = begin()?;
    wait_for("the first leads", Duration::from_secs(60), || acts(&leader))?;
    let mut took = Vec::new();
    for round in 0..rounds {
        let next = begin()?;
        next.wait_for_log(&["controlling"], Duration::from_secs(60))?;
        // At moments that have nothing to do with when it writes the lease.
        std::thread::sleep(Duration::from_millis(3000 + (round as u64 * 1700) % 5000));
        process::send(leader.pid(), Signal::KILL)?;
        let killed = Instant::now();
        wait_for("the next leads", Duration::from_secs(60), || acts(&next))?;
        took.push(killed.elapsed().as_secs_f64() * 1e3);
        leader = next;
    }
    println!("rounds {rounds} {}", spread(&mut took));
    Ok(())
}

fn pressure(
    runtime: &Runtime,
    servers: usize,
    gpus: usize,
    interval_ms: usize,
    rounds: usize,
    in_cluster: bool,
) -> Result<()> {
    // Each model holds 2 GiB; with all of them there, 2 GiB are left on a card.
    let total = (servers.div_ceil(gpus) as u64 + 1) * 2 * GIB;
    let fleet = runtime.block_on(StandInFleet::start(servers, gpus, total, 2 * GIB))?;
    let (cluster, controller) = if in_cluster {
        let (cluster, controller) = start_in_cluster(runtime, &fleet, servers, interval_ms)?;
        (Some(cluster), controller)
    } else {
        (None, control(&fleet, servers, interval_ms, POLICIES)?)
    };
    let rest = measure_at_rest(&controller, cluster.as_ref())?;

    let mut latencies = Vec::new();
    for round in 0..rounds {
        fleet.load_all();
        (0..gpus).for_each(|gpu| fleet.set_foreign(gpu, 0));
        std::thread::sleep(Duration::from_millis(3 * interval_ms as u64 + 1500));
        fleet.take_received();
        latencies.extend(measure_crossings(&fleet, gpus, interval_ms, round)?);
    }

    let commands = latencies.len();
    let text = spread(&mut latencies);
    let RestingLoad { cpu_share, resident_bytes, requests_per_minute } = rest;
    let per_minute = requests_per_minute.map_or_else(String::new, |count| format!(" requests_per_minute {count:.0}"));
    println!(
        "servers {servers} gpus {gpus} interval_ms {interval_ms} commands {commands} {text} cpu_share {cpu_share:.3} \
         resident_mb {:.1}{per_minute}",
        resident_bytes as f64 / 1e6
    );
    Ok(())
}

/// A controller in a cluster that observes every server and acts.
fn start_in_cluster(
    runtime: &Runtime,
    fleet: &StandInFleet,
    servers: usize,
    interval_ms: usize,
) -> Result<(ApiServerSetup, Controller)> {
    let cluster = runtime.block_on(ApiServerSetup::start(POLICIES))?;
    runtime.block_on(cluster.pods(fleet, servers))?;
    let controller = runtime.block_on(cluster.controller(&["--interval", &format!("{interval_ms}ms")]))?;

    let answering = "hush_controller_targets{state=\"answering\"}";
    controller.wait_for_metric(answering, servers as f64, Duration::from_secs(120))?;
    controller.wait_for_metric("hush_controller_acting", 1.0, Duration::from_secs(60))?;
    Ok((cluster, controller))
}

/// What a controller costs while no threshold is crossed.
struct RestingLoad {
    /// Seconds of processor time in a second.
    cpu_share: f64,
    resident_bytes: u64,
    /// Requests to the API server; `None`: there is none.
    requests_per_minute: Option<f64>,
}

fn measure_at_rest(controller: &Controller, cluster: Option<&ApiServerSetup>) -> Result<RestingLoad> {
    let (settle, measured) = if cluster.is_some() { (5, 60) } else { (0, 10) };
    // What is written once at the beginning is not rest.
    std::thread::sleep(Duration::from_secs(settle));

    let requests = cluster.map(ApiServerSetup::requests).transpose()?;
    let (cpu, start) = (process::cpu_seconds(controller.pid())?, Instant::now());
    std::thread::sleep(Duration::from_secs(measured));
    let requests_per_minute = match (cluster, requests) {
        (Some(cluster), Some(before)) => {
            Some((cluster.requests()? - before) as f64 * 60.0 / start.elapsed().as_secs_f64())
        }
        _ => None,
    };

    let cpu_share = (process::cpu_seconds(controller.pid())? - cpu) / start.elapsed().as_secs_f64();
    Ok(RestingLoad { cpu_share, resident_bytes: process::resident_bytes(controller.pid())?, requests_per_minute })
}

/// Lets every card cross its threshold once; returns the milliseconds until the command for each.
fn measure_crossings(fleet: &StandInFleet, gpus: usize, interval_ms: usize, round: usize) -> Result<Vec<f64>> {
    let mut crossed = vec![Instant::now(); gpus];
    for (gpu, crossed) in crossed.iter_mut().enumerate() {
        // The moments are independent of the controller's interval.
        let pause_us = ((gpu * 7919 + round * 104_729) % 1000) * interval_ms / gpus.max(1);
        std::thread::sleep(Duration::from_micros(pause_us as u64));
        *crossed = Instant::now();
        fleet.set_foreign(gpu, GIB + GIB / 2);
    }

    let deadline = Instant::now() + Duration::from_millis(4 * interval_ms as u64 + 4000);
    let mut received = Vec::new();
    while received.len() < gpus && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
        received.extend(fleet.take_received());
    }

    // Were there a second command for a card, it would come with the next samples.
    std::thread::sleep(Duration::from_millis(interval_ms as u64 * 3 / 2));
    received.extend(fleet.take_received());
    ensure!(received.len() == gpus, "{} commands for {gpus} cards", received.len());
    ensure!(received.iter().all(|command| command.accepted), "a command was refused");

    let latency_ms = |command: &ReceivedCommand| {
        command.at.saturating_duration_since(crossed[fleet.gpu_of(command.server)]).as_secs_f64() * 1e3
    };
    Ok(received.iter().map(latency_ms).collect())
}
