//! The log level of running programs: changed over HTTP and by the plugin of kubectl, for a time or until they end, also in
//! runners that are there already.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use hush_tests::wait::wait_for;
use hush_tests::{Controller, Server, http, plugin};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(60);
const TOKEN: &str = "0123456789abcdef0123456789abcdef";
const POLICY: &str = "\
apiVersion: gpu.hush.dev/v1beta1
kind: GpuModelPolicy
metadata: {name: speech, namespace: a}
spec:
  selector: {matchLabels: {app: w}}
";

fn ask(ops: SocketAddr, method: &str, path: &str, token: &str, body: &Value) -> Result<http::Response> {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let authorization = if token.is_empty() { String::new() } else { format!("Authorization: Bearer {token}\r\n") };
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {ops}\r\nContent-Type: application/json\r\n{authorization}Content-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    );
    http::exchange(ops, request.as_bytes())
}

/// Log lines of this level from this module.
fn lines(log: &[String], level: &str, target: &str) -> usize {
    let entries = log.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let is_of = |entry: &Value| {
        entry["level"] == level && entry["target"].as_str().is_some_and(|module| module.starts_with(target))
    };
    entries.filter(is_of).count()
}

const CHILD: &str = "hush_server::runner::child";
const SUPERVISOR: &str = "hush_server::runner::supervisor";

fn transcribe(server: &Server) -> Result<()> {
    let answer = server.asr("?language=en", "en-1.wav")?;
    ensure!(answer.status == 200, "{}", answer.text());
    Ok(())
}

fn unload(server: &Server) -> Result<()> {
    let path = format!("/admin/v1/models/{}/unload", hush_tests::fixtures::MODEL);
    let answer = ask(server.ops, "POST", &path, TOKEN, &json!({}))?;
    ensure!(answer.status == 200, "{}", answer.text());
    Ok(())
}

#[test]
fn a_server_and_its_runners_log_by_the_new_level_and_return_to_the_old() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("token");
    std::fs::write(&file, TOKEN)?;
    let server = Server::start(&["--admin-token-file", &file.to_string_lossy()])?;
    let path = "/admin/v1/log-level";
    let put = |body: &Value| ask(server.ops, "PUT", path, TOKEN, body);

    let level = ask(server.ops, "GET", path, TOKEN, &Value::Null)?.json()?;
    assert_eq!(level, json!({"level": "info", "configured_level": "info"}));
    transcribe(&server)?;
    assert_eq!(lines(&server.log(), "DEBUG", "hush_server"), 0);

    // The runner that is there takes it up, and so does the next one.
    let answer = put(&json!({"level": "info,hush_server=debug"}))?;
    ensure!(answer.status == 200, "{}", answer.text());
    assert_eq!(answer.json()?, json!({"level": "info,hush_server=debug", "configured_level": "info"}));
    wait_for("the runner that is there logs its work", SOON, || {
        transcribe(&server)?;
        Ok((lines(&server.log(), "DEBUG", CHILD) > 0).then_some(()))
    })?;
    unload(&server)?;
    let (before, child) = (lines(&server.log(), "DEBUG", SUPERVISOR), lines(&server.log(), "DEBUG", CHILD));
    wait_for("a new runner logs its work", SOON, || {
        transcribe(&server)?;
        Ok((lines(&server.log(), "DEBUG", CHILD) > child).then_some(()))
    })?;
    assert!(lines(&server.log(), "DEBUG", SUPERVISOR) > before, "the server tells of the new runner");
    let who = server.log().into_iter().filter(|line| line.contains("the log level was changed")).collect::<Vec<_>>();
    assert!(who.len() == 1 && who[0].contains("\"caller\":"), "{who:?}");

    // For a time: a later change takes the place of the end of an earlier one.
    assert_eq!(put(&json!({"level": "trace", "for_seconds": 0.2}))?.status, 200);
    let level = put(&json!({"level": "debug", "for_seconds": 1.5}))?.json()?;
    assert!(level["remaining_seconds"].as_f64().is_some_and(|seconds| seconds > 0.2 && seconds <= 1.5), "{level}");
    std::thread::sleep(Duration::from_millis(400));
    assert_eq!(ask(server.ops, "GET", path, TOKEN, &Value::Null)?.json()?["level"], "debug");
    let level = wait_for("its time is over", SOON, || {
        let level = ask(server.ops, "GET", path, TOKEN, &Value::Null)?.json()?;
        Ok((level["level"] == "info").then_some(level))
    })?;
    assert_eq!(level, json!({"level": "info", "configured_level": "info"}));
    // A request that the runner begins after it has heard of the old level leaves no line of it.
    wait_for("the runner logs no more than before", SOON, || {
        let before = lines(&server.log(), "DEBUG", "hush_server");
        transcribe(&server)?;
        Ok((lines(&server.log(), "DEBUG", "hush_server") == before).then_some(()))
    })?;

    // Back at once, by a body without a level.
    assert_eq!(put(&json!({"level": "off"}))?.status, 200);
    assert_eq!(put(&json!({}))?.json()?, json!({"level": "info", "configured_level": "info"}));
    Ok(())
}

#[test]
fn what_is_no_level_is_refused_by_a_server_and_changes_nothing() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("token");
    std::fs::write(&file, TOKEN)?;
    let server = Server::start(&["--admin-token-file", &file.to_string_lossy()])?;
    let path = "/admin/v1/log-level";
    for (body, field, says) in [
        (json!({"level": "debgu"}), "level", "`debgu` is not a level"),
        (json!({"level": ""}), "level", "it is empty"),
        (json!({"level": "hush_server=loud"}), "level", "must be error, warn"),
        (json!({"level": 7}), "level", "string"),
        (json!({"level": "debug", "for_seconds": 0}), "for_seconds", "more than 0"),
        (json!({"level": "debug", "for_seconds": -1}), "for_seconds", "from 0 to 604800"),
        (json!({"level": "debug", "for_seconds": 1e7}), "for_seconds", "from 0 to 604800"),
        (json!({"for_seconds": 60}), "for_seconds", "needs `level`"),
        (json!({"levle": "debug"}), "levle", "unknown field"),
    ] {
        let answer = ask(server.ops, "PUT", path, TOKEN, &body)?;
        let error = answer.json()?;
        assert_eq!((answer.status, &error["field"]), (400, &json!(field)), "{body}: {error}");
        assert!(error["message"].as_str().is_some_and(|message| message.contains(says)), "{body}: {error}");
    }
    for token in ["", "another-token-of-them"] {
        for method in ["GET", "PUT"] {
            let answer = ask(server.ops, method, path, token, &json!({"level": "trace"}))?;
            assert_eq!(answer.status, 401, "{method}: {}", answer.text());
        }
    }
    assert_eq!(ask(server.ops, "DELETE", path, TOKEN, &Value::Null)?.status, 405);
    let level = ask(server.ops, "GET", path, TOKEN, &Value::Null)?.json()?;
    assert_eq!(level, json!({"level": "info", "configured_level": "info"}));
    Ok(())
}

/// What is not a level, no duration or comes without the token is refused, and the answer says why.
fn expect_refusals(controller: SocketAddr) -> Result<()> {
    for (body, says) in [
        (json!({"level": "debgu"}), "`level` must be error, warn"),
        (json!({"level": "debug", "duration": "soon"}), "`duration` must be a duration"),
        (json!({"level": "debug", "duration": "0s"}), "`duration` must be more than 0"),
        (json!({"level": "debug", "duration": "169h"}), "`duration` must be more than 0"),
        (json!({"duration": "1h"}), "`duration` needs `level`"),
    ] {
        let answer = ask(controller, "PUT", "/api/v1/log-level", TOKEN, &body)?;
        let error = answer.json()?;
        assert!(
            answer.status == 400 && error["message"].as_str().is_some_and(|text| text.contains(says)),
            "{body}: {error}"
        );
    }
    for token in ["", "another-token-of-them"] {
        let answer = ask(controller, "PUT", "/api/v1/log-level", token, &json!({"level": "trace"}))?;
        assert_eq!(answer.status, 401, "{}", answer.text());
    }
    Ok(())
}

#[test]
fn a_controller_logs_by_the_level_that_the_plugin_sets() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("token");
    std::fs::write(&file, TOKEN)?;
    let token = file.to_string_lossy().into_owned();
    let target = format!("a/w=http://{}", http::free_address()?);
    let controller = Controller::start(POLICY, &["--target", &target, "--page-token-file", &token])?;
    let url = format!("http://{}", controller.ops);
    let with = |args: &[&str]| -> Vec<String> {
        let more = ["--controller", url.as_str(), "--token-file", token.as_str()];
        [&["log-level"], args, &more].concat().into_iter().map(str::to_owned).collect()
    };
    let run = |args: &[&str], good: bool| -> Result<String> {
        let args = with(args);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        if good { plugin::said(&args) } else { plugin::complaint(&args) }
    };

    let said = run(&[], true)?;
    assert!(said.ends_with("logs info\n"), "{said}");
    let said = run(&["debug"], true)?;
    assert!(said.ends_with("logs debug instead of info\n"), "{said}");
    let level = http::get(controller.ops, "/api/v1/log-level")?.json()?;
    assert_eq!(level, json!({"level": "debug", "configuredLevel": "info"}));
    let has_debug = || controller.log().iter().any(|line| line.contains("\"DEBUG\""));
    // The HTTP client tells of every connection to the server, which does not answer.
    wait_for("debug lines", SOON, || Ok(has_debug().then_some(())))?;
    let said = run(&["trace", "--for", "1s"], true)?;
    assert!(said.contains("logs trace until 2") && said.ends_with("Z, then info\n"), "{said}");
    wait_for("its time is over", SOON, || {
        let level = http::get(controller.ops, "/api/v1/log-level")?.json()?;
        Ok((level == json!({"level": "info", "configuredLevel": "info"})).then_some(()))
    })?;
    run(&["warn"], true)?;
    assert!(run(&["--reset"], true)?.ends_with("logs info\n"));

    // The plugin checks before it asks; the controller checks for itself.
    let output = plugin::run(&["log-level", "debgu", "--controller", &url])?;
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("`debgu` is not a level"));
    expect_refusals(controller.ops)?;
    assert_eq!(http::get(controller.ops, "/api/v1/log-level")?.json()?["level"], "info");
    Ok(())
}

/// A misspelt level would silence the whole log.
#[test]
fn a_controller_does_not_start_with_what_is_no_level() -> Result<()> {
    let mut command = std::process::Command::new(hush_tests::fixtures::controller()?);
    let output =
        command.args(["run", "--log-level", "debgu", "--target", "http://127.0.0.1:9", "--policy", "x"]).output()?;
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        !output.status.success() && error.contains("--log-level") && error.contains("`debgu` is not a level"),
        "{error}"
    );
    Ok(())
}
