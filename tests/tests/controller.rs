//! A real controller over real servers: who leaves, when, why, and what it does when something is wrong. The GPU is the
//! double's; processes, models, requests and commands are real.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::time::{Duration, Instant};

use anyhow::Result;
use hush_nvml::ProcessMemory;
use hush_tests::fleet::StandInFleet;
use hush_tests::gpus::{GIB, Gpus, SOON};
use hush_tests::https::{Authority, HttpsServer, Validity};
use hush_tests::{Controller, Server, fixtures, http, process, wait::wait_for};
use rustix::process::Signal;

fn holds(gib: u64) -> ProcessMemory {
    ProcessMemory { bytes: gib * GIB, ..ProcessMemory::default() }
}

/// A policy of the namespace for all of its servers.
fn policy(namespace: &str, spec: &str) -> String {
    format!(
        "apiVersion: gpu.hush.dev/v1beta1\nkind: GpuModelPolicy\nmetadata: {{name: test, namespace: {namespace}}}\n\
         spec:\n  selector: {{matchLabels: {{gpu.hush.dev/server: \"true\"}}}}\n{spec}\n---\n"
    )
}

fn target(name: &str, server: &Server) -> String {
    format!("{name}=http://{}", server.ops)
}

fn transcribe(server: &Server) -> Result<()> {
    let answer = server.asr("?language=en", "en-1.wav")?;
    assert_eq!(answer.status, 200, "{}", answer.text());
    Ok(())
}

fn unloads(server: &Server, reason: &str) -> Result<f64> {
    let series = format!("hush_model_unloads_total{{model=\"{}\",reason=\"{reason}\"}}", fixtures::MODEL);
    Ok(server.metric(&series)?.unwrap_or(0.0))
}

/// The commands that were carried out, by server and reason.
fn done(controller: &Controller) -> Result<Vec<(String, String)>> {
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let records = controller.audit()?;
    let unloaded = records.iter().filter(|record| record["outcome"] == "Unloaded");
    Ok(unloaded.map(|record| (text(&record["server"]), text(&record["reason"]))).collect())
}

/// The same, once one is there: the server acts before the controller hears of it.
fn first_done(controller: &Controller) -> Result<Vec<(String, String)>> {
    wait_for("a command that was carried out", SOON, || Ok(Some(done(controller)?).filter(|done| !done.is_empty())))
}

#[test]
fn an_idle_model_leaves_at_its_timeout_and_never_before() -> Result<()> {
    let mut gpus = Gpus::one()?;
    let server = gpus.server(holds(3), &[])?;
    let residency = policy("a", "  residency: {mode: Idle, idleTimeout: 3s}");
    let controller = Controller::start(&residency, &["--target", &target("a/one", &server)])?;
    transcribe(&server)?;
    let idle_since = Instant::now();
    server.wait_for_state("unloaded", SOON)?;
    // The answer reaches the client a moment after the request has ended for the server.
    assert!(idle_since.elapsed() > Duration::from_millis(2900), "{:?}", idle_since.elapsed());
    assert_eq!(unloads(&server, "IdleTimeout")?, 1.0);
    let record = wait_for("the audit line", SOON, || Ok(controller.audit()?.into_iter().next()))?;
    assert_eq!((&record["server"], &record["outcome"]), (&"a/one".into(), &"Unloaded".into()), "{record}");
    assert_eq!((&record["ifIdleSeconds"], &record["policy"]), (&3.into(), &"a/test".into()), "{record}");
    assert_eq!(record["reclaimedBytes"], 3 * GIB, "{record}");
    // It comes back with speech, and leaves again.
    transcribe(&server)?;
    wait_for("it leaves again", SOON, || Ok((unloads(&server, "IdleTimeout")? == 2.0).then_some(())))
}

#[test]
fn under_pressure_the_right_model_leaves_and_no_other() -> Result<()> {
    let mut gpus = Gpus::one()?;
    let dear = gpus.server(holds(3), &[])?;
    let cheap = gpus.server(holds(2), &[])?;
    let pressure = "  residency: {mode: Resident}\n  pressure: {hard: {availableBelow: 1Gi}, minReclaim: 512Mi}\n";
    let policies = policy("dear", &format!("{pressure}  priority: 10")) + &policy("cheap", pressure);
    let targets = [target("dear/one", &dear), target("cheap/two", &cheap)];
    let controller = Controller::start(&policies, &["--target", &targets[0], "--target", &targets[1]])?;
    transcribe(&cheap)?;
    transcribe(&dear)?;
    controller.wait_for_metric("hush_controller_gpus{pressure=\"None\"}", 1.0, SOON)?;
    assert!(done(&controller)?.is_empty());
    // Another app takes what was left.
    gpus.change(|gpu| gpu.used_bytes = 2 * GIB + GIB / 2)?;
    cheap.wait_for_state("unloaded", SOON)?;
    first_done(&controller)?;
    assert_eq!(unloads(&cheap, "HardPressure")?, 1.0);
    // Ten more looks change nothing.
    // The server knows of the controller from its first request, which may be a stream of events before any sample.
    let scrapes = "hush_controller_scrape_duration_seconds_count{result=\"success\"}";
    let seen = wait_for("a first look", SOON, || controller.metric(scrapes))?;
    wait_for("more looks", SOON, || Ok(controller.metric(scrapes)?.filter(|now| *now > seen + 20.0)))?;
    assert_eq!(done(&controller)?, [("cheap/two".to_owned(), "HardPressure".to_owned())]);
    dear.wait_for_state("ready", SOON)
}

#[test]
fn a_waiting_model_of_higher_priority_gets_room() -> Result<()> {
    let mut gpus = Gpus::one()?;
    gpus.script.devices[0].total_bytes = 4 * GIB;
    let low = gpus.server(ProcessMemory { bytes: 7 * GIB / 2, ..ProcessMemory::default() }, &[])?;
    let high = gpus.server(holds(3), &[])?;
    let resident = "  residency: {mode: Resident}\n";
    let policies = policy("low", resident) + &policy("high", &format!("{resident}  priority: 5"));
    let targets = [target("low/one", &low), target("high/two", &high)];
    transcribe(&low)?;
    let controller = Controller::start(&policies, &["--target", &targets[0], "--target", &targets[1]])?;
    transcribe(&high)?;
    low.wait_for_state("unloaded", SOON)?;
    assert_eq!(first_done(&controller)?, [("low/one".to_owned(), "MakeRoom".to_owned())]);
    Ok(())
}

#[test]
fn a_bad_new_version_of_the_policies_is_refused_and_the_old_one_stays() -> Result<()> {
    let mut gpus = Gpus::one()?;
    let server = gpus.server(holds(3), &[])?;
    let controller = Controller::start(
        &policy("a", "  residency: {mode: Idle, idleTimeout: 2s}"),
        &["--target", &target("a/one", &server)],
    )?;
    std::fs::write(controller.policies(), policy("a", "  residency: {mode: Idle, idleTimeout: soon}"))?;
    controller.wait_for_log(&["refused", "policies.yaml:6", "residency.idleTimeout"], SOON)?;
    assert_eq!(controller.metric("hush_controller_source_valid{source=\"policies\"}")?, Some(0.0));
    transcribe(&server)?;
    server.wait_for_state("unloaded", SOON)?;
    std::fs::write(controller.policies(), policy("a", "  residency: {mode: Resident}"))?;
    controller.wait_for_log(&["a new version is in force", "policies"], SOON)?;
    controller.wait_for_metric("hush_controller_source_valid{source=\"policies\"}", 1.0, SOON)?;
    transcribe(&server)?;
    controller.wait_for_metric("hush_controller_skipped_models{reason=\"Resident\"}", 1.0, SOON)?;
    Ok(())
}

/// A listener that takes every connection and answers like this; `None`: never.
fn impostor(answer: Option<String>) -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let url = format!("http://{}", listener.local_addr()?);
    std::thread::spawn(move || {
        let mut held = Vec::new();
        for mut stream in listener.incoming().flatten() {
            if let Some(body) = &answer {
                // Closing with an unread request would reset the connection.
                let mut head = BufReader::new(&stream).lines().map_while(Result::ok);
                let _ = head.find(String::is_empty);
                let length = body.len();
                let _ =
                    write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}");
            } else {
                held.push(stream);
            }
        }
    });
    Ok(url)
}

#[test]
fn servers_that_hang_are_gone_lie_or_talk_nonsense_delay_no_other_server() -> Result<()> {
    let mut gpus = Gpus::one()?;
    let server = gpus.server(holds(3), &[])?;
    let closed = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    // It reports the GPU as ten times as large as the other servers see it, and full.
    let lie = http::get(server.ops, "/metrics")?.text();
    let lie = lie.lines().map(|line| match line.split_once(' ') {
        Some((name, _)) if name.starts_with("hush_gpu_memory_used_bytes") => format!("{name} 8589934592\n"),
        _ => format!("{line}\n"),
    });
    let targets = [
        target("a/real", &server),
        format!("a/hangs={}", impostor(None)?),
        format!("a/gone=http://{closed}"),
        format!("a/nonsense={}", impostor(Some("<html>welcome</html>".to_owned()))?),
        format!("a/malformed={}", impostor(Some("hush_model_generation{model=\"x 1\n".to_owned()))?),
        format!("a/liar={}", impostor(Some(lie.collect()))?),
    ];
    let mut args = vec!["--scrape-timeout", "500ms"];
    targets.iter().for_each(|target| args.extend(["--target", target]));
    let spec = "  residency: {mode: Idle, idleTimeout: 2s}\n  pressure: {hard: {availableBelow: 1Gi}}";
    let controller = Controller::start(&policy("a", spec), &args)?;
    controller.wait_for_metric("hush_controller_targets{state=\"failing\"}", 4.0, SOON)?;
    for (server, why) in [
        ("a/hangs", "no answer within 500ms"),
        ("a/gone", "connecting failed"),
        ("a/nonsense", "contain no model"),
        ("a/malformed", "line 1 of the metrics"),
    ] {
        controller.wait_for_log(&[server, "cannot be observed", why], SOON)?;
    }
    transcribe(&server)?;
    let idle_since = Instant::now();
    server.wait_for_state("unloaded", SOON)?;
    assert!(idle_since.elapsed() < Duration::from_secs(10), "{:?}", idle_since.elapsed());
    assert_eq!(
        first_done(&controller)?,
        [("a/real".to_owned(), "IdleTimeout".to_owned())],
        "the false report unloaded no model"
    );
    assert_eq!(http::get(controller.ops, "/healthz")?.status, 200);
    Ok(())
}

#[test]
fn a_server_that_refuses_commands_is_no_candidate_for_a_while() -> Result<()> {
    let mut gpus = Gpus::one()?;
    let tokens = gpus.folder().join("tokens");
    std::fs::write(&tokens, "secret-of-the-servers\n")?;
    let locked = gpus.server(holds(2), &["--admin-token-file", &tokens.to_string_lossy()])?;
    let open = gpus.server(holds(3), &[])?;
    let pressure = "  residency: {mode: Resident}\n  pressure: {hard: {availableBelow: 1Gi}}\n";
    let policies = policy("locked", pressure) + &policy("open", &format!("{pressure}  priority: 9"));
    let targets = [target("locked/one", &locked), target("open/two", &open)];
    let mine = gpus.folder().join("mine");
    std::fs::write(&mine, "wrong")?;
    let token = mine.to_string_lossy().into_owned();
    let args = ["--target", &targets[0], "--target", &targets[1], "--token-file", &token];
    let controller = Controller::start(&policies, &args)?;
    // Known before anything is commanded.
    controller.wait_for_metric("hush_controller_targets_refusing", 1.0, SOON)?;
    transcribe(&locked)?;
    transcribe(&open)?;
    gpus.change(|gpu| gpu.used_bytes = 2 * GIB + GIB / 2)?;
    open.wait_for_state("unloaded", SOON)?;
    let failed = wait_for("it was asked", SOON, || {
        Ok(controller.audit()?.into_iter().find(|record| record["server"] == "locked/one"))
    })?;
    assert_eq!((&failed["outcome"], &failed["code"]), (&"Failed".into(), &"unauthorized".into()), "{failed}");
    locked.wait_for_state("ready", SOON)?;
    // The token is read again: with the right one it obeys.
    std::fs::write(&mine, "secret-of-the-servers\n")?;
    gpus.change(|gpu| gpu.used_bytes = 5 * GIB + GIB / 2)?;
    locked.wait_for_state("unloaded", Duration::from_secs(90))
}

#[test]
fn the_servers_own_reclaimer_stands_back_while_a_controller_decides() -> Result<()> {
    let mut gpus = Gpus::one()?;
    let server = gpus.server(holds(3), &["--memory-reclaimer", "50%"])?;
    let targets = target("a/one", &server);
    let controller = Controller::start(&policy("a", "  residency: {mode: Resident}"), &["--target", &targets])?;
    let said = |words: &str| server.log().iter().any(|line| line.contains(words));
    wait_for("it stands back", SOON, || Ok(said("a controller governs this server").then_some(())))?;
    transcribe(&server)?;
    gpus.change(|gpu| gpu.used_bytes = 4 * GIB + GIB / 2)?;
    // Ten more looks of the controller at what the reclaimer sees too: more than half is used.
    // The server knows of the controller from its first request, which may be a stream of events before any sample.
    let scrapes = "hush_controller_scrape_duration_seconds_count{result=\"success\"}";
    let seen = wait_for("a first look", SOON, || controller.metric(scrapes))?;
    wait_for("more looks", SOON, || Ok(controller.metric(scrapes)?.filter(|now| *now > seen + 10.0)))?;
    server.wait_for_state("ready", SOON)?;
    assert_eq!(unloads(&server, "MemoryReclaimer")?, 0.0);
    Ok(())
}

#[test]
fn a_dry_run_decides_and_sends_nothing() -> Result<()> {
    let mut gpus = Gpus::one()?;
    let server = gpus.server(holds(3), &[])?;
    transcribe(&server)?;
    let residency = policy("a", "  residency: {mode: Idle, idleTimeout: 1s}");
    let target = target("a/one", &server);
    let mut controller = Controller::start(&residency, &["--target", &target, "--dry-run"])?;
    let decided = "hush_controller_decisions_total{action=\"Unload\",dry_run=\"false\",reason=\"IdleTimeout\"}";
    wait_for("it decides", SOON, || controller.metric(decided))?;
    assert_eq!(controller.metric("hush_controller_acting")?, Some(0.0));
    assert_eq!(server.metric(&format!("hush_model_unload_refused_total{{model=\"{}\"}}", fixtures::MODEL))?, None);
    server.wait_for_state("ready", SOON)?;
    assert!(controller.audit()?.iter().all(|record| record["outcome"] == "Withheld"));

    let plan = std::process::Command::new(fixtures::controller()?)
        .args(["plan", "--target", &target, "--policy"])
        .arg(controller.policies())
        .output()?;
    let text = String::from_utf8_lossy(&plan.stdout);
    assert!(
        plan.status.success() && text.contains("Unload a/one hush-tiny: IdleTimeout, 3.00Gi by a/test"),
        "{plan:?}"
    );
    server.wait_for_state("ready", SOON)?;

    process::send(controller.pid(), Signal::TERM)?;
    assert!(controller.wait_for_exit(SOON)?.success());
    Ok(())
}

#[test]
fn it_says_what_it_waits_for_and_tells_of_itself() -> Result<()> {
    let closed = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let residency = policy("a", "  residency: {mode: OnDemand}");
    let controller = Controller::start(&residency, &["--target", &format!("http://{closed}")])?;
    let ready = http::get(controller.ops, "/readyz")?;
    assert_eq!((ready.status, ready.text().contains("no server has answered yet")), (503, true), "{}", ready.text());
    assert_eq!(http::get(controller.ops, "/healthz")?.status, 200);
    controller.wait_for_metric("hush_controller_targets{state=\"failing\"}", 1.0, SOON)?;
    assert_eq!(controller.metric("hush_controller_policies")?, Some(1.0));
    Ok(())
}

#[test]
fn what_cannot_work_is_said_at_the_start() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("p.yaml");
    std::fs::write(&file, policy("a", "  residency: {mode: Sometimes}"))?;
    let file = file.to_string_lossy().into_owned();
    for (args, complaint) in [
        (vec!["--target", "http://h:1"], "give a file with --policy"),
        (vec!["--policy", &file], "--target"),
        (vec!["--policy", &file, "--target", "h:1"], "such as http://127.0.0.1:9001"),
        (vec!["--policy", &file, "--target", "http://h:1"], "p.yaml:6"),
        (vec!["--policy", "/nonexistent.yaml", "--target", "http://h:1"], "/nonexistent.yaml"),
        (vec!["--policy", &file, "--target", "http://h:1", "--interval", "10s"], "--stale-after"),
        (vec!["--policy", &file, "--target", "http://h:1", "--interval", "0s"], "longer than 0"),
    ] {
        let output = std::process::Command::new(fixtures::controller()?).arg("run").args(&args).output()?;
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && text.contains(complaint), "{args:?}: {text}");
    }
    Ok(())
}

/// A target with `https://` is checked for the host of its URL, by the authorities of `--ca-file`.
#[tokio::test(flavor = "multi_thread")]
async fn a_target_with_https_shows_a_certificate_for_its_host() -> Result<()> {
    let authority = Authority::new("one box")?;
    let stand_ins = StandInFleet::start(2, 2, 8 * GIB, 2 * GIB).await?;
    let own = authority.sign(&["127.0.0.1"], Validity::Now)?;
    let own = HttpsServer::start(Ipv4Addr::LOCALHOST, stand_ins.router_of(0), &own).await?;
    let other = authority.sign(&["gpu-2.example"], Validity::Now)?;
    let other = HttpsServer::start(Ipv4Addr::LOCALHOST, stand_ins.router_of(1), &other).await?;
    let folder = tempfile::tempdir()?;
    let ca_file = folder.path().join("ca.crt");
    std::fs::write(&ca_file, &authority.certificate)?;
    let (own_target, other_target) =
        (format!("a/own=https://{}", own.address), format!("a/other=https://{}", other.address));
    let targets = ["--target", &own_target, "--target", &other_target];

    let on_demand = policy("a", "  residency: {mode: OnDemand}");
    let ca_file = ca_file.to_string_lossy();
    let with_ca = [&targets[..], &["--ca-file", &ca_file]].concat();
    let controller = Controller::start(&on_demand, &with_ca)?;
    assert_eq!(first_done(&controller)?, [("a/own".to_owned(), "OnDemand".to_owned())]);
    let reason = "its certificate does not have the name `127.0.0.1`; it has gpu-2.example";
    controller.wait_for_log(&["a/other", reason], SOON)?;
    assert!(other.requests().is_empty(), "{:?}", other.requests());
    drop(controller);

    // The authorities of the system know neither.
    let received = own.requests().len();
    let controller = Controller::start(&on_demand, &targets)?;
    controller.wait_for_metric("hush_controller_targets{state=\"failing\"}", 2.0, SOON)?;
    controller.wait_for_log(&["a/own", "its certificate is not signed by an authority"], SOON)?;
    assert_eq!(own.requests().len(), received);
    Ok(())
}
