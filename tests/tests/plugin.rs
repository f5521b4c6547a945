//! `kubectl hush` with a controller that it speaks to directly. Server, model, commands and controller are real; the way
//! through an API server is in `cluster/plugin.rs`.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use hush_nvml::ProcessMemory;
use hush_tests::gpus::{GIB, Gpus, SOON, UUID};
use hush_tests::wait::wait_for;
use hush_tests::{Controller, Server, http, plugin};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};
use serde_json::{Value, json};

#[path = "plugin/hostile_servers.rs"]
mod hostile_servers;

const TOKEN: &str = "0123456789abcdef0123456789abcdef";
const POLICIES: &str = "\
apiVersion: gpu.hush.dev/v1beta1
kind: ClusterGpuModelPolicy
metadata: {name: floor}
spec:
  selector: {matchExpressions: [{key: gpu.hush.dev/server, operator: Exists}]}
  residency: {idleTimeout: 1h}
  pressure: {hard: {availableBelow: 1Gi}}
---
apiVersion: gpu.hush.dev/v1beta1
kind: GpuModelPolicy
metadata: {name: own, namespace: media}
spec:
  selector: {matchLabels: {gpu.hush.dev/server: \"true\"}}
  residency: {mode: Idle, idleTimeout: 2h}
  priority: 7
";

/// A server whose model is in memory, and a controller that has seen it.
struct LocalPluginFixture {
    gpus: Gpus,
    server: Server,
    controller: Controller,
    url: String,
    token: String,
}

impl LocalPluginFixture {
    fn new(args: &[&str]) -> Result<Self> {
        let mut gpus = Gpus::one()?;
        let file = gpus.folder().join("page-token");
        std::fs::write(&file, format!("{TOKEN}\n"))?;
        let token = file.to_string_lossy().into_owned();
        let server = gpus.server(ProcessMemory { bytes: 3 * GIB, ..ProcessMemory::default() }, &[])?;
        let answer = server.asr("?language=en", "en-1.wav")?;
        ensure!(answer.status == 200, "{}", answer.text());
        let target = format!("media/subtitles=http://{}", server.ops);
        let args = [&["--target", target.as_str(), "--page-token-file", &token], args].concat();
        let controller = Controller::start(POLICIES, &args)?;
        let url = format!("http://{}", controller.ops);
        let stage = Self { gpus, server, controller, url, token };
        stage.until("the model is seen", |state| state["models"][0]["state"] == "Ready")?;
        Ok(stage)
    }

    fn until(&self, what: &str, holds: impl Fn(&Value) -> bool) -> Result<Value> {
        wait_for(what, SOON, || {
            Ok(Some(http::get(self.controller.ops, "/api/v1/state")?.json()?).filter(|state| holds(state)))
        })
    }

    fn with<'a>(&'a self, args: &[&'a str]) -> Vec<&'a str> {
        [args, &["--controller", &self.url]].concat()
    }

    fn said(&self, args: &[&str]) -> Result<String> {
        plugin::said(&self.with(args))
    }

    fn complaint(&self, args: &[&str]) -> Result<String> {
        plugin::complaint(&self.with(args))
    }

    /// With the token.
    fn acted(&self, args: &[&str]) -> Result<String> {
        self.said(&[args, &["--token-file", &self.token]].concat())
    }
}

fn json(text: &str) -> Result<Value> {
    Ok(serde_json::from_str(text)?)
}

#[test]
fn top_and_explain_tell_who_holds_what_and_why() -> Result<()> {
    let stage = LocalPluginFixture::new(&[])?;
    let top = stage.said(&["top", "--once"])?;
    let line = |part: &str| top.lines().find(|line| line.contains(part)).with_context(|| top.clone());
    let gpu = line(&UUID[..12])?;
    // 3 GiB of 8; pressure begins where less than one is free.
    assert!(
        gpu.contains("[#########............!..]") && gpu.contains("5.00Gi") && gpu.contains("hard 1.00Gi"),
        "{gpu}"
    );
    let model = line("media/subtitles")?;
    for part in ["hush-tiny", "Ready", "3.00Gi", "/floor, media/own", "NotIdle"] {
        assert!(model.contains(part), "{part}: {model}");
    }
    assert_eq!(stage.said(&["top"])?.lines().count(), top.lines().count(), "no terminal: printed once");
    let state = json(&stage.said(&["top", "-o", "json"])?)?;
    assert_eq!((&state["controllers"][0]["acting"], &state["gpus"][0]["uuid"]), (&json!(true), &json!(UUID)));
    assert_eq!(state["models"][0]["rules"]["policies"], json!(["/floor", "media/own"]));
    let elsewhere = json(&stage.said(&["top", "-o", "json", "-n", "other"])?)?;
    assert_eq!((&elsewhere["models"], elsewhere["gpus"].as_array().map(Vec::len)), (&json!([]), Some(1)));

    for target in ["subtitles", "media/subtitles", "pod/subtitles", "hush-tiny"] {
        let told = stage.said(&["explain", target])?;
        for part in [
            "media/subtitles on 127.0.0.1: answering (asked: http://",
            "hard pressure below 1.00Gi, by /floor",
            "an idle timeout of 1h by /floor",
            "Selected by /floor, media/own.",
        ] {
            assert!(told.contains(part), "{part}: {told}");
        }
        let words = |field: &str| {
            let line = told.lines().find(|line| line.trim_start().starts_with(field));
            line.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        };
        // The operator's floor is stricter, and what it leaves out bounds the tenant's priority; no policy asks for a drain.
        let expected = "residency.idleTimeout 1h /floor 2h by media/own";
        assert_eq!(words("residency.idleTimeout").as_deref(), Some(expected), "{told}");
        assert_eq!(words("residency.mode").as_deref(), Some("residency.mode Idle /floor Idle by media/own"), "{told}");
        assert_eq!(words("priority").as_deref(), Some("priority 0 /floor's default 7 by media/own"), "{told}");
        assert_eq!(words("drainTimeout").as_deref(), Some("drainTimeout 30s default -"), "{told}");
    }
    let explained = json(&stage.said(&["explain", "subtitles", "-o", "json"])?)?;
    assert_eq!(explained[0]["models"][0]["account"]["policies"][1]["policy"], "media/own");
    let complaint = stage.complaint(&["explain", "nothing", "-n", "media"])?;
    assert!(complaint.contains("`nothing` in the namespace `media`") && complaint.contains("media/subtitles"));
    Ok(())
}

#[test]
fn commands_carry_what_was_seen_and_a_refusal_says_why() -> Result<()> {
    let stage = LocalPluginFixture::new(&[])?;
    let would = stage.said(&["unload", "subtitles", "--dry-run"])?;
    assert_eq!(would, "would unload media/subtitles hush-tiny (3.00Gi) if it is still generation 1 and not busy\n");
    let complaint = stage.complaint(&["unload", "subtitles"])?;
    assert!(complaint.contains("asks for a token: give the file that holds it with --token-file"), "{complaint}");
    let wrong = stage.gpus.folder().join("wrong");
    std::fs::write(&wrong, "another-token-of-a-user")?;
    let complaint = stage.complaint(&["unload", "subtitles", "--token-file", &wrong.to_string_lossy()])?;
    assert!(complaint.contains("not the token of --page-token-file"), "{complaint}");
    assert!(stage.controller.audit()?.is_empty(), "nothing was commanded so far");

    let done = stage.acted(&["unload", "hush-tiny", "--hold", "10m"])?;
    assert_eq!(done, "media/subtitles hush-tiny unloaded, 3.00Gi came back\n");
    stage.server.wait_for_state("unloaded", SOON)?;
    let audit = stage.controller.wait_for_audit(1, SOON)?;
    assert_eq!((&audit[0]["ifGeneration"], &audit[0]["ifIdleSeconds"]), (&json!(1), &json!(0)), "{audit:?}");
    assert_eq!((&audit[0]["reason"], &audit[0]["holdSeconds"]), (&json!("Manual"), &json!(600)), "{audit:?}");
    stage.until("the controller sees it", |state| state["models"][0]["state"] == "Unloaded")?;
    assert_eq!(stage.acted(&["unload", "subtitles"])?, "media/subtitles hush-tiny is not loaded\n");
    let refused = stage.complaint(&["load", "subtitles", "--token-file", &stage.token])?;
    assert!(refused.contains("refused (held)"), "{refused}");
    let lately = stage.said(&["explain", "subtitles"])?;
    assert!(lately.contains("is not loaded and is held for 9m"), "{lately}");
    assert!(lately.contains("unload media/subtitles hush-tiny (Manual): unloaded, 3.00Gi came back"), "{lately}");

    let complaint = stage.complaint(&["unload", "subtitles", "large"])?;
    assert!(complaint.contains("has no model `large`; there are: hush-tiny"), "{complaint}");
    Ok(())
}

#[test]
fn a_model_comes_back_by_hand() -> Result<()> {
    let stage = LocalPluginFixture::new(&[])?;
    stage.acted(&["unload", "subtitles"])?;
    let gone = stage.until("it is gone", |state| state["models"][0]["state"] == "Unloaded")?;
    assert_eq!(
        (&gone["models"][0]["vramBytes"], &gone["models"][0]["needBytes"]),
        (&json!(0), &json!(3 * GIB)),
        "{gone}"
    );
    let told = stage.said(&["explain", "subtitles"])?;
    assert!(
        told.contains("hush-tiny: Unloaded, needs 3.00Gi, generation 1\n  It is not loaded; the next request"),
        "{told}"
    );
    let top = stage.said(&["top"])?;
    assert!(top.lines().any(|line| line.contains("Unloaded") && !line.contains("Gi")), "{top}");
    assert_eq!(stage.acted(&["load", "subtitles"])?, "media/subtitles hush-tiny is being loaded\n");
    stage.server.wait_for_state("ready", SOON)?;
    let seen = stage.until("it is back", |state| state["models"][0]["state"] == "Ready")?;
    assert_eq!(seen["models"][0]["generation"], 2);
    assert_eq!(stage.acted(&["load", "subtitles"])?, "media/subtitles hush-tiny is loaded\n");
    Ok(())
}

#[test]
fn a_hold_is_told_with_its_end() -> Result<()> {
    let stage = LocalPluginFixture::new(&[])?;
    stage.acted(&["unload", "subtitles", "--hold", "10m"])?;
    let state = stage.until("the hold is seen", |state| state["models"][0]["heldUntil"].is_string())?;
    let until = state["models"][0]["heldUntil"].as_str().context("no end")?.parse::<jiff::Timestamp>()?;
    let left = until.duration_since(jiff::Timestamp::now()).as_secs();
    assert!((500..=600).contains(&left), "{left} s");
    let told = stage.said(&["explain", "subtitles"])?;
    assert!(
        told.contains("It is not loaded and is held for 9m") && told.contains("no request loads it before"),
        "{told}"
    );
    let top = stage.said(&["top"])?;
    assert!(top.lines().any(|line| line.contains("media/subtitles") && line.contains("held 9m")), "{top}");
    Ok(())
}

#[test]
fn several_models_are_commanded_only_in_so_many_words() -> Result<()> {
    let (server, folder) = (Server::start(&[])?, tempfile::tempdir()?);
    let token = folder.path().join("token");
    std::fs::write(&token, TOKEN)?;
    let token = token.to_string_lossy().into_owned();
    let targets = ["one", "two"].map(|name| format!("media/{name}=http://{}", server.ops));
    let args = ["--target", &targets[0], "--target", &targets[1], "--page-token-file", &token];
    let controller = Controller::start(POLICIES, &args)?;
    wait_for("both are seen", SOON, || {
        let state = http::get(controller.ops, "/api/v1/state")?.json()?;
        Ok((state["models"].as_array().map(Vec::len) == Some(2)).then_some(()))
    })?;
    let url = format!("http://{}", controller.ops);
    let with = |args: &[&'static str]| [args, &["--controller", url.as_str(), "--token-file", &token]].concat();
    let complaint = plugin::complaint(&with(&["load", "hush-tiny"]))?;
    assert!(complaint.contains("several models") && complaint.contains("  media/two hush-tiny"), "{complaint}");
    let complaint = plugin::complaint(&with(&["load", "hush-tiny", "--all"]))?;
    let asked = "load 2 models: media/one hush-tiny, media/two hush-tiny: give --yes, because without a terminal there is no confirmation";
    assert!(complaint.contains(asked), "{complaint}");
    assert!(controller.audit()?.is_empty(), "nothing was commanded so far");
    let would = plugin::said(&with(&["load", "hush-tiny", "--all", "--dry-run"]))?;
    assert_eq!(would.lines().filter(|line| line.starts_with("would load media/")).count(), 2, "{would}");
    let done = plugin::said(&with(&["load", "one"]))?;
    assert_eq!(done, "media/one hush-tiny is being loaded\n");
    server.wait_for_state("ready", SOON)
}

#[test]
fn a_plan_with_edited_policies_says_what_is_new() -> Result<()> {
    let stage = LocalPluginFixture::new(&[])?;
    let now = stage.said(&["plan"])?;
    assert!(now.contains("nothing to do") && now.contains("NotIdle"), "{now}");
    let file = stage.gpus.folder().join("edited.yaml");
    std::fs::write(&file, POLICIES.replace("idleTimeout: 1h", "mode: OnDemand"))?;
    let file = file.to_string_lossy().into_owned();
    let plan = stage.acted(&["plan", "--policy", &file])?;
    assert!(plan.contains("/floor is changed and selects 1 model\nmedia/own is same and selects 1 model\n"), "{plan}");
    let line = plan.lines().find(|line| line.starts_with("Unload")).with_context(|| plan.clone())?;
    assert!(line.contains("OnDemand") && line.contains("/floor") && line.ends_with("new"), "{line}");
    let whole = json(&stage.acted(&["plan", "--policy", &file, "-o", "json"])?)?;
    assert_eq!(whole["decisions"][0]["reason"], "OnDemand");
    std::fs::write(&file, POLICIES.replace("1h", "soon"))?;
    let complaint = stage.complaint(&["plan", "--policy", &file])?;
    assert!(complaint.contains("edited.yaml:6: ") && complaint.contains("must be a duration"), "{complaint}");
    assert!(stage.controller.audit()?.is_empty(), "a plan does nothing");
    Ok(())
}

#[test]
fn a_policy_is_paused_and_resumed() -> Result<()> {
    let stage = LocalPluginFixture::new(&[])?;
    let paused = stage.acted(&["pause", "own", "--for", "30m"])?;
    assert_eq!(paused, "media/own only shows what it would do, for 30m\n");
    let state = stage.until("the pause is seen", |state| state["policies"][1]["paused"].is_object())?;
    assert!(state["policies"][1]["paused"]["until"].is_string(), "{state}");
    let told = stage.said(&["explain", "subtitles"])?;
    assert!(told.contains("media/own (paused until 20") && told.contains(": only shows what it would do)"), "{told}");
    let top = stage.said(&["top"])?;
    assert!(top.contains("! media/own is paused until 20"), "{top}");
    assert_eq!(stage.acted(&["resume", "media/own"])?, "media/own is in force again\n");
    assert_eq!(stage.acted(&["resume", "/floor"])?, "/floor was not paused\n");
    // A pause without an end must be asked for in so many words.
    let endless = plugin::run(&stage.with(&["pause", "own"]))?;
    let complaint = String::from_utf8(endless.stderr)?;
    assert!(endless.status.code() == Some(2) && complaint.contains("--until-resumed"), "{complaint}");
    let complaint = stage.complaint(&["pause", "other", "--until-resumed"])?;
    assert!(complaint.contains("there is no policy `other`; there are: /floor, media/own"), "{complaint}");
    Ok(())
}

#[test]
fn who_only_observes_says_so() -> Result<()> {
    let stage = LocalPluginFixture::new(&["--dry-run"])?;
    let top = stage.said(&["top"])?;
    assert!(top.contains("1 controller, none acts"), "{top}");
    let complaint = stage.complaint(&["unload", "subtitles", "--token-file", &stage.token])?;
    assert!(complaint.contains("no controller may act on it now"), "{complaint}");
    let complaint = stage.complaint(&["pause", "own", "--for", "5m", "--token-file", &stage.token])?;
    assert!(complaint.contains("no controller acts now"), "{complaint}");
    stage.server.wait_for_state("ready", SOON)
}

#[test]
fn where_no_controller_is_it_is_said() -> Result<()> {
    let unreachable = plugin::complaint(&["top", "--controller", "http://127.0.0.1:9"])?;
    assert!(unreachable.contains("http://127.0.0.1:9 cannot be reached: connecting failed"), "{unreachable}");
    let typo = plugin::complaint(&["top", "--controller", "127.0.0.1:9002"])?;
    assert!(typo.contains("must be a URL such as http://127.0.0.1:9002"), "{typo}");
    let server = Server::start(&[])?;
    let another = plugin::complaint(&["top", "--controller", &format!("http://{}", server.ops)])?;
    assert!(another.contains("is not a controller, or its page is off (--web-ui)"), "{another}");
    let none = plugin::complaint(&["top", "--kubeconfig", "/nonexistent/config"])?;
    assert!(none.contains("/nonexistent/config"), "{none}");
    Ok(())
}

/// What a terminal shows, as it is written.
fn terminal() -> Result<(OwnedFd, File, Arc<Mutex<String>>)> {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let name = ptsname(&master, Vec::new())?;
    let terminal = File::options().read(true).write(true).open(name.to_str()?)?;
    tcsetwinsize(&terminal, Winsize { ws_row: 30, ws_col: 160, ws_xpixel: 0, ws_ypixel: 0 })?;
    let shown = Arc::new(Mutex::new(String::new()));
    let (mut reader, written) = (File::from(master.try_clone()?), Arc::clone(&shown));
    std::thread::spawn(move || {
        let mut part = [0; 4096];
        while let Ok(read @ 1..) = reader.read(&mut part) {
            let text = String::from_utf8_lossy(&part[..read]).into_owned();
            written.lock().unwrap_or_else(PoisonError::into_inner).push_str(&text);
        }
    });
    Ok((master, terminal, shown))
}

#[test]
fn on_a_terminal_it_is_live_until_a_key_and_leaves_it_as_it_was() -> Result<()> {
    let mut stage = LocalPluginFixture::new(&[])?;
    let (master, terminal, shown) = terminal()?;
    let before = tcgetattr(&terminal)?.local_modes;
    let mut command = plugin::command(&stage.with(&["top", "--interval", "200ms"]))?;
    command.stdin(terminal.try_clone()?).stdout(terminal.try_clone()?);
    let mut child = command.spawn()?;
    let text = || shown.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let until = |what: &str, part: &str| wait_for(what, SOON, || Ok(text().contains(part).then_some(())));
    until("the first frame", "media/subtitles")?;
    assert!(text().starts_with("\x1b[?1049h\x1b[?25l\x1b[H"), "on the other screen: {:?}", text());
    assert!(!tcgetattr(&terminal)?.local_modes.contains(LocalModes::ICANON), "keys without a line");
    stage.gpus.change(|gpu| gpu.used_bytes = 2 * GIB)?;
    until("a change on the GPU", "[#########======")?;
    File::from(master.try_clone()?).write_all(b"q")?;
    let status = wait_for("it ends", SOON, || Ok(child.try_wait()?))?;
    assert!(status.success(), "{status}");
    until("the screen as it was", "\x1b[?25h\x1b[?1049l")?;
    assert_eq!(tcgetattr(&terminal)?.local_modes, before);
    assert!(before.contains(LocalModes::ICANON));
    Ok(())
}
