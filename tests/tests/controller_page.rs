//! The JSON API of the controller's page: what it tells, who may act, and what a what-if answers.

use std::io::{BufRead, BufReader, Write};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hush_nvml::ProcessMemory;
use hush_tests::gpus::{GIB, Gpus, SOON};
use hush_tests::{Controller, Server, http, wait::wait_for};
use serde_json::{Value, json};

#[path = "controller_page/hostile_requests.rs"]
mod hostile_requests;

const TOKEN: &str = "0123456789abcdef0123456789abcdef";
const SPEC: &str = "  residency: {mode: Idle, idleTimeout: 1h}\n  pressure: {hard: {availableBelow: 1Gi}}\n";

fn policy(spec: &str) -> String {
    format!(
        "apiVersion: gpu.hush.dev/v1beta1\nkind: GpuModelPolicy\nmetadata: {{name: test, namespace: a}}\nspec:\n  \
         selector: {{matchLabels: {{gpu.hush.dev/server: \"true\"}}}}\n{spec}"
    )
}

/// A server whose model is in memory, and a controller that has seen it.
struct PageFixture {
    gpus: Gpus,
    server: Server,
    controller: Controller,
}

impl PageFixture {
    fn new(args: &[&str]) -> Result<Self> {
        Self::over(Gpus::one()?, args)
    }

    fn over(mut gpus: Gpus, args: &[&str]) -> Result<Self> {
        let server = gpus.server(ProcessMemory { bytes: 3 * GIB, ..ProcessMemory::default() }, &[])?;
        let answer = server.asr("?language=en", "en-1.wav")?;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let target = format!("a/one=http://{}", server.ops);
        let controller = Controller::start(&policy(SPEC), &[&["--target", target.as_str()], args].concat())?;
        let stage = Self { gpus, server, controller };
        stage.until("the model is seen", |state| state["models"][0]["state"] == "Ready")?;
        Ok(stage)
    }

    fn with_token() -> Result<Self> {
        let gpus = Gpus::one()?;
        let token = gpus.folder().join("page-token");
        std::fs::write(&token, format!("{TOKEN}\n"))?;
        Self::over(gpus, &["--page-token-file", &token.to_string_lossy()])
    }

    fn state(&self) -> Result<Value> {
        http::get(self.controller.ops, "/api/v1/state")?.json()
    }

    fn until(&self, what: &str, holds: impl Fn(&Value) -> bool) -> Result<Value> {
        wait_for(what, SOON, || Ok(Some(self.state()?).filter(|state| holds(state))))
    }

    fn post(&self, path: &str, token: Option<&str>, body: &str) -> Result<http::Response> {
        let authorization = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
        let request = format!(
            "POST /api/v1/{path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{authorization}Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        http::exchange(self.controller.ops, request.as_bytes())
    }

    /// The status and the code of the answer.
    fn refused(&self, path: &str, token: Option<&str>, body: &str) -> Result<(u16, String, String)> {
        let answer = self.post(path, token, body)?;
        let error = answer.json()?;
        let text = |field: &str| error[field].as_str().unwrap_or_default().to_owned();
        Ok((answer.status, text("code"), text("message")))
    }
}

const UNLOAD: &str = "unload?server=a/one&model=hush-tiny";
const LOAD: &str = "load?server=a/one&model=hush-tiny";

#[test]
fn the_state_tells_who_holds_what_and_who_governs_it() -> Result<()> {
    let stage = PageFixture::new(&[])?;
    let state = stage.state()?;
    let gpu = &state["gpus"][0];
    assert_eq!(
        (&gpu["oursBytes"], &gpu["othersBytes"], &gpu["freeBytes"], &gpu["totalBytes"]),
        (&json!(3 * GIB), &json!(0), &json!(5 * GIB), &json!(8 * GIB)),
        "{gpu}"
    );
    let threshold = json!({"level": "Hard", "belowBytes": GIB, "targetBytes": GIB, "policy": "a/test"});
    assert_eq!(gpu["thresholds"], json!([threshold]));
    let model = &state["models"][0];
    assert_eq!(model["rules"]["policies"], json!(["a/test"]), "{model}");
    assert_eq!(model["rules"]["residency"], json!({"value": "Idle", "policy": "a/test"}));
    assert_eq!(model["idleTimeoutMs"], json!({"value": 3_600_000, "policy": "a/test"}));
    assert_eq!(model["why"][0]["reason"], "NotIdle");
    assert_eq!((&state["acting"], &state["actions"]), (&json!(true), &json!(false)));
    let policies = json!([{"name": "a/test", "dryRun": false, "paused": null, "models": 1}]);
    assert_eq!(state["policies"], policies);
    Ok(())
}

#[test]
fn no_action_is_possible_without_the_token() -> Result<()> {
    let stage = PageFixture::new(&[])?;
    for path in [UNLOAD, LOAD, "plan", "pause?policy=a/test", "resume?policy=a/test"] {
        for token in [None, Some(TOKEN)] {
            let (status, code, message) = stage.refused(path, token, "{\"ifGeneration\":1}")?;
            assert_eq!((status, code.as_str()), (403, "forbidden"), "{path}");
            assert!(message.contains("--page-token-file"), "{message}");
        }
    }
    let stage = PageFixture::with_token()?;
    for path in [UNLOAD, LOAD, "plan", "pause?policy=a/test", "resume?policy=a/test"] {
        let (status, code, _) = stage.refused(path, None, "{\"ifGeneration\":1}")?;
        assert_eq!((status, code.as_str()), (401, "unauthenticated"), "{path}");
        let (status, code, _) =
            stage.refused(path, Some("0123456789abcdef0123456789abcdeX"), "{\"ifGeneration\":1}")?;
        assert_eq!((status, code.as_str()), (401, "invalid_token"), "{path}");
    }
    assert_eq!(stage.state()?["models"][0]["state"], "Ready");
    assert!(stage.controller.audit()?.is_empty());
    Ok(())
}

#[test]
fn a_model_is_unloaded_and_loaded_by_hand_and_it_is_written_down() -> Result<()> {
    let stage = PageFixture::with_token()?;
    let generation = stage.state()?["models"][0]["generation"].clone();
    // Another generation than the person saw stays.
    let (status, code, message) = stage.refused(UNLOAD, Some(TOKEN), "{\"ifGeneration\":99}")?;
    assert_eq!((status, code.as_str()), (409, "refused"), "{message}");
    assert!(message.contains("generation_changed"), "{message}");

    let done = stage.post(UNLOAD, Some(TOKEN), &json!({"ifGeneration": generation, "holdSeconds": 60}).to_string())?;
    assert_eq!(done.status, 200, "{}", done.text());
    let record = done.json()?;
    assert_eq!((&record["outcome"], &record["reason"]), (&json!("Unloaded"), &json!("Manual")), "{record}");
    assert_eq!(record["reclaimedBytes"], json!(3 * GIB));
    stage.server.wait_for_state("unloaded", SOON)?;
    let audit = wait_for("the audit line", SOON, || {
        Ok(stage.controller.audit()?.into_iter().find(|record| record["outcome"] == "Unloaded"))
    })?;
    assert_eq!((&audit["reason"], &audit["holdSeconds"]), (&json!("Manual"), &json!(60)), "{audit}");
    assert!(audit.get("policy").is_none(), "{audit}");
    stage.until("the timeline tells", |state| {
        state["records"].as_array().is_some_and(|all| all.iter().any(|record| record["outcome"] == "Unloaded"))
    })?;
    // A hold is in force: the server says so.
    let (status, _, message) = stage.refused(LOAD, Some(TOKEN), &json!({"ifGeneration": generation}).to_string())?;
    assert_eq!((status, message.contains("held")), (409, true), "{message}");
    Ok(())
}

#[test]
fn a_request_that_is_wrong_is_told_what_is_wrong() -> Result<()> {
    let stage = PageFixture::with_token()?;
    for (path, body, status, part) in [
        (UNLOAD, "", 400, "ifGeneration"),
        (UNLOAD, "{\"ifGeneration\":1,\"force\":true}", 400, "force"),
        (UNLOAD, "{\"ifGeneration\":1,\"drainSeconds\":100000}", 400, "at most 600"),
        (LOAD, "[]", 400, "the body"),
        ("unload?server=a/one&model=other", "{\"ifGeneration\":1}", 404, "no model `other`"),
        ("load?server=a%2Ftwo&model=hush-tiny", "{\"ifGeneration\":1}", 404, "server `a/two`"),
        ("pause?policy=a/other", "{\"untilResumed\":true}", 404, "no policy `a/other`"),
        ("pause?policy=a/test", "", 400, "`untilResumed`"),
        ("pause?policy=a/test", "{\"untilResumed\":true,\"duration\":\"5m\"}", 400, "give one of `duration`"),
        ("pause?policy=a/test", "{\"duration\":\"soon\"}", 400, "such as 30m"),
        ("pause?policy=a/test", "{\"duration\":\"0s\"}", 400, "longer than 0"),
        ("unload?server=a/one", "{\"ifGeneration\":1}", 400, "`model`"),
        ("pause", "", 400, "`policy`"),
        ("pause?policy=a/test&for=5m", "", 400, "`for`"),
    ] {
        let (got, _, message) = stage.refused(path, Some(TOKEN), body)?;
        assert_eq!((got, message.contains(part)), (status, true), "{path} {body}: {message}");
    }
    let missing = http::get(stage.controller.ops, "/api/v1/policy?policy=a/other")?;
    assert_eq!(missing.status, 404, "{}", missing.text());
    Ok(())
}

#[test]
fn a_paused_policy_only_shows_what_it_would_do() -> Result<()> {
    let mut stage = PageFixture::with_token()?;
    let endless = json!({"untilResumed": true, "claimedBy": "anna\u{1b}[2J"}).to_string();
    let paused = stage.post("pause?policy=a/test", Some(TOKEN), &endless)?;
    assert_eq!(paused.status, 200, "{}", paused.text());
    let paused = paused.json()?;
    assert_eq!((paused.get("until"), &paused["claimedBy"]), (None, &json!("anna\u{fffd}[2J")), "{paused}");
    stage.controller.wait_for_metric("hush_controller_policies_paused", 1.0, SOON)?;
    stage.until("the pause is seen", |state| state["policies"][0]["paused"].is_object())?;
    stage.gpus.change(|gpu| gpu.used_bytes = 9 * GIB / 2)?;
    let state = stage.until("it would unload", |state| {
        state["records"].as_array().is_some_and(|all| all.iter().any(|record| record["outcome"] == "Withheld"))
    })?;
    assert_eq!(state["records"].as_array().map(Vec::len), Some(1), "told once: {state}");
    assert_eq!((&state["decisions"][0]["dryRun"], &state["models"][0]["state"]), (&json!(true), &json!("Ready")));
    // For a while only: then it is in force by itself.
    let paused = stage.post("pause?policy=a/test", Some(TOKEN), "{\"duration\":\"1s\"}")?;
    assert!(paused.json()?["until"].is_string(), "{}", paused.text());
    stage.server.wait_for_state("unloaded", SOON)?;
    stage.until("it is not paused any more", |state| state["policies"][0]["paused"].is_null())?;
    let again = stage.post("resume?policy=a/test", Some(TOKEN), "")?;
    assert_eq!(again.json()?, json!({"resumed": false}));
    stage.controller.wait_for_metric("hush_controller_policies_paused", 0.0, SOON)?;
    // Pauses and their ends are written down, with who asked as they said it.
    let audit = stage.controller.audit()?;
    let pauses: Vec<_> = audit.iter().filter(|record| record["note"].is_string()).collect();
    let actions: Vec<_> = pauses.iter().map(|record| (&record["action"], record["claimedBy"].as_str())).collect();
    let (pause, resume) = (json!("Pause"), json!("Resume"));
    assert_eq!(actions, [(&pause, Some("anna\u{fffd}[2J")), (&pause, None), (&resume, None)], "{audit:?}");
    assert!(pauses[2]["note"].as_str().is_some_and(|note| note.contains("the time of its pause is over")), "{audit:?}");
    Ok(())
}

#[test]
fn a_what_if_is_a_plan_and_changes_nothing() -> Result<()> {
    let stage = PageFixture::with_token()?;
    let now = http::get(stage.controller.ops, "/api/v1/policy?policy=a%2Ftest")?;
    assert_eq!((now.status, now.header("content-type")), (200, Some("application/yaml")));
    let same = stage.post("plan", Some(TOKEN), &now.text())?;
    assert_eq!(same.status, 200, "{}", same.text());
    let same = same.json()?;
    assert_eq!(same["policies"], json!([{"name": "a/test", "is": "same", "models": 1}]), "{same}");
    assert_eq!(same["decisions"], json!([]));

    let edited = now.text().replace("mode: Idle", "mode: OnDemand").replace("1Gi", "6Gi");
    let plan = stage.post("plan", Some(TOKEN), &edited)?.json()?;
    assert_eq!(plan["policies"][0]["is"], "changed", "{plan}");
    let decision = &plan["decisions"][0];
    assert_eq!((&decision["action"], &decision["reason"]), (&json!("Unload"), &json!("OnDemand")), "{plan}");
    assert_eq!(
        (&plan["gpus"][0]["pressure"], &plan["gpus"][0]["thresholds"][0]["belowBytes"]),
        (&json!("Hard"), &json!(6 * GIB))
    );

    let added = policy("  residency: {mode: Resident}\n").replace("name: test", "name: other");
    let plan = stage.post("plan", Some(TOKEN), &added)?.json()?;
    assert_eq!(plan["policies"][0]["is"], "new");
    assert_eq!(plan["models"][0]["rules"]["policies"], json!(["a/other", "a/test"]));

    let state = stage.state()?;
    assert_eq!((&state["models"][0]["state"], &state["records"]), (&json!("Ready"), &json!([])));
    assert_eq!(state["models"][0]["idleTimeoutMs"]["value"], 3_600_000);
    Ok(())
}

#[test]
fn a_what_if_with_mistakes_names_line_and_fix() -> Result<()> {
    let stage = PageFixture::with_token()?;
    let wrong = policy("  residency: {mode: Sometimes}\n").replace("name: test", "name: Test");
    for (body, line, part) in [
        (wrong.as_str(), Some(6), "Sometimes"),
        (&policy("  residency:\n    idleTimeout: soon\n"), Some(7), "must be a duration such as"),
        (&policy("  residency:\n    idelTimeout: 5m\n"), Some(7), "idelTimeout"),
        ("kind: Pod\n", None, "`apiVersion` must be"),
        ("", None, "there is no policy in it"),
        (": [", Some(1), ""),
    ] {
        let answer = stage.post("plan", Some(TOKEN), body)?;
        let error = answer.json()?;
        assert_eq!((answer.status, &error["code"]), (400, &json!("invalid_request")), "{error}");
        let found = error["problems"].as_array().context("no problems")?;
        let fits = |problem: &Value| {
            (line.is_none() || problem["line"] == json!(line))
                && problem["message"].as_str().is_some_and(|m| m.contains(part))
        };
        assert!(found.iter().any(fits), "{body}: {error}");
    }
    let large = "#".repeat(300 << 10);
    assert_eq!(stage.post("plan", Some(TOKEN), &large)?.status, 413);
    Ok(())
}

/// Reads events until one fits; gives what it was and how many came before.
fn event(reader: &mut impl BufRead, fits: impl Fn(&str, &Value) -> bool) -> Result<(Value, usize)> {
    let (mut name, mut before) = (String::new(), 0);
    for line in reader.lines() {
        let line = line?;
        if let Some(event) = line.strip_prefix("event: ") {
            event.clone_into(&mut name);
        } else if let Some(data) = line.strip_prefix("data: ") {
            let data = serde_json::from_str(data)?;
            if fits(&name, &data) {
                return Ok((data, before));
            }
            before += 1;
        }
    }
    anyhow::bail!("the stream ended")
}

#[test]
fn the_events_tell_of_changes_and_not_of_time() -> Result<()> {
    let mut stage = PageFixture::new(&[])?;
    let mut stream = http::connect(stage.controller.ops)?;
    stream.write_all(b"GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
    let mut reader = BufReader::new(stream);
    let (first, before) = event(&mut reader, |name, _| name == "state")?;
    assert_eq!((before, &first["models"][0]["state"]), (0, &json!("Ready")), "at once");
    // On a busy machine a scrape may be so late that it looks like news; that time goes on never does, five times a
    // second.
    let quiet = wait_for("nothing between two heartbeats", SOON, || {
        let (beat, before) = event(&mut reader, |name, _| name == "heartbeat")?;
        Ok((before == 0).then_some(beat))
    });
    let beat = quiet?;
    assert!(beat["steppedAt"].is_string() && beat["at"].is_string(), "{beat}");
    let begun = Instant::now();
    stage.gpus.change(|gpu| gpu.used_bytes = GIB)?;
    let fits = |name: &str, data: &Value| name == "state" && data["gpus"][0]["othersBytes"] == json!(GIB);
    event(&mut reader, fits)?;
    println!("a change on a GPU is an event after {:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    Ok(())
}

#[test]
fn the_page_keeps_to_itself() -> Result<()> {
    let stage = PageFixture::new(&[])?;
    let page = http::get(stage.controller.ops, "/")?;
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    let allowed = page.header("content-security-policy").context("no policy")?;
    assert!(
        allowed.contains("default-src 'none'") && !allowed.contains("unsafe") && !allowed.contains("http"),
        "{allowed}"
    );
    for name in page.text().split('"').filter_map(|part| part.strip_prefix("ui/")) {
        let file = http::get(stage.controller.ops, &format!("/ui/{name}"))?;
        assert_eq!((file.status, file.header("x-content-type-options")), (200, Some("nosniff")), "{name}");
        assert!(!file.text().contains("https://"), "{name}");
        let tag = file.header("etag").context("no tag")?;
        let request =
            format!("GET /ui/{name} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nIf-None-Match: {tag}\r\n\r\n");
        assert_eq!(http::exchange(stage.controller.ops, request.as_bytes())?.status, 304, "{name}");
    }
    assert_eq!(http::get(stage.controller.ops, "/ui/other")?.status, 404);

    let without = Controller::start(&policy(SPEC), &["--target", "a/one=http://127.0.0.1:9", "--web-ui", "false"])?;
    for (path, status) in [("/", 404), ("/api/v1/state", 404), ("/metrics", 200)] {
        assert_eq!(http::get(without.ops, path)?.status, status, "{path}");
    }
    Ok(())
}

#[test]
fn a_token_file_that_is_no_secret_is_refused_at_the_start() -> Result<()> {
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), "short")?;
    let path = file.path().to_string_lossy().into_owned();
    let args = ["--target", "a/one=http://127.0.0.1:9", "--page-token-file", &path];
    let error = Controller::start(&policy(SPEC), &args).err().context("it started")?;
    assert!(format!("{error:#}").contains("at least 16 printable characters"), "{error:#}");
    Ok(())
}
