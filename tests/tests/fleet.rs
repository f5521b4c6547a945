//! Several models in one server process: named by requests, crowded by `--max-loaded`, changed by SIGHUP.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use hush_tests::{Server, ServerOptions, fixtures, http, process, wait::wait_for};
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(60);
const SAID: &str = "Clean the light.";

/// The bundled model under several names, and a configuration.
struct ModelsFolder {
    dir: TempDir,
}

impl ModelsFolder {
    fn new(names: &[&str]) -> Result<Self> {
        let shared = fixtures::models_dir("int8")?;
        // Beside it, so that the files can be links.
        let dir = tempfile::Builder::new().prefix("fleet").tempdir_in(shared.parent().context("no parent")?)?;
        let source = shared.join(fixtures::MODEL).join("int8");
        for name in names {
            let target = dir.path().join("models").join(name).join("int8");
            fs::create_dir_all(&target)?;
            for file in fs::read_dir(&source)? {
                let file = file?;
                fs::hard_link(file.path(), target.join(file.file_name()))?;
            }
        }
        Ok(Self { dir })
    }

    fn config(&self) -> PathBuf {
        self.dir.path().join("hush.yaml")
    }

    fn write(&self, text: &str) -> Result<()> {
        Ok(fs::write(self.config(), text)?)
    }

    fn start(&self, config: &str, args: &[&str]) -> Result<Server> {
        self.write(config)?;
        let mut all = vec!["--config".to_owned(), self.config().display().to_string()];
        all.extend(args.iter().map(|arg| (*arg).to_owned()));
        let models_dir = Some(self.dir.path().join("models"));
        Server::start_with(ServerOptions { args: all, models_dir, names_models: true, ..ServerOptions::default() })
    }
}

/// A form of the OpenAI API.
fn transcribe(server: &Server, model: &str, audio: &str) -> Result<http::Response> {
    let content = fixtures::audio(audio)?;
    let mut body = Vec::new();
    for (name, value) in [("model", model), ("language", "en"), ("temperature", "0.01")] {
        body.extend(format!("--B\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n").bytes());
    }
    body.extend(b"--B\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\r\n");
    body.extend(content);
    body.extend(b"\r\n--B--\r\n");
    let head = format!(
        "POST /v1/audio/transcriptions HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Type: multipart/form-data; \
         boundary=B\r\nContent-Length: {}\r\n\r\n",
        server.api,
        body.len()
    );
    http::exchange(server.api, &[head.as_bytes(), &body].concat())
}

fn said(server: &Server, model: &str) -> Result<()> {
    let answer = transcribe(server, model, "en-1.wav")?;
    ensure!(answer.status == 200 && answer.json()?["text"] == SAID, "{model}: {} {}", answer.status, answer.text());
    Ok(())
}

/// What the admin API says of one model.
fn listed(server: &Server, model: &str) -> Result<Option<Value>> {
    let listing = http::get(server.ops, "/admin/v1/models")?.json()?;
    let models = listing["models"].as_array().context("no models")?;
    Ok(models.iter().find(|entry| entry["model"] == model).cloned())
}

fn states(server: &Server) -> Result<Vec<(String, String)>> {
    let listing = http::get(server.ops, "/admin/v1/models")?.json()?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let models = listing["models"].as_array().context("no models")?;
    Ok(models.iter().map(|entry| (text(&entry["model"]), text(&entry["state"]))).collect())
}

fn hang_up(server: &Server) -> Result<()> {
    process::send(server.pid(), Signal::HUP)
}

fn logged(server: &Server, words: &str) -> usize {
    server.log().iter().filter(|line| line.contains(words)).count()
}

#[test]
fn requests_name_the_model_that_they_want() -> Result<()> {
    let folder = ModelsFolder::new(&["one", "two", "three"])?;
    let config = "models:\n  - name: one\n  - name: two\n    aliases: [second]\n    defaults: {language: de}\n";
    let server = folder.start(config, &["--serve-installed", "true"])?;
    for model in ["two", "second", "three", "whisper-1"] {
        said(&server, model)?;
    }
    let answer = transcribe(&server, "four", "en-1.wav")?;
    assert_eq!((answer.status, &answer.json()?["error"]["code"]), (404, &json!("model_not_found")));
    let cards = http::get(server.api, "/v1/models")?.json()?;
    let ids: Vec<&Value> = cards["data"].as_array().context("no data")?.iter().map(|card| &card["id"]).collect();
    assert_eq!(ids, ["one", "two", "three"]);
    let all = ["one", "three", "two"].map(|name| (name.to_owned(), "ready".to_owned()));
    assert_eq!(states(&server)?, all);
    assert_eq!(server.runners()?.len(), 3, "each in a process of its own");
    Ok(())
}

#[test]
fn the_least_recently_used_idle_model_makes_room() -> Result<()> {
    let folder = ModelsFolder::new(&["one", "two", "three"])?;
    let server = folder.start("maxLoaded: 2\nmodels: [{name: one}, {name: two}, {name: three}]\n", &[])?;
    let state = |name: &str, state: &str| (name.to_owned(), state.to_owned());
    for model in ["one", "two", "one", "three"] {
        said(&server, model)?;
    }
    assert_eq!(states(&server)?, [state("one", "ready"), state("three", "ready"), state("two", "unloaded")]);
    assert_eq!(server.runners()?.len(), 2);
    said(&server, "two")?;
    assert_eq!(states(&server)?, [state("one", "unloaded"), state("three", "ready"), state("two", "ready")]);
    assert_eq!(server.metric("hush_model_unloads_total{model=\"one\",reason=\"MaxLoaded\"}")?, Some(1.0));
    Ok(())
}

/// Requests for three models compete for one load slot: every request is served, and two models are never in memory.
#[test]
fn a_crowd_before_one_place_is_served() -> Result<()> {
    let folder = ModelsFolder::new(&["one", "two", "three"])?;
    let server = folder.start("maxLoaded: 1\nmodels: [{name: one}, {name: two}, {name: three}]\n", &[])?;
    let done = AtomicBool::new(false);
    let most = std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut most = 0;
            while !done.load(Ordering::Relaxed) {
                let living = server.runners()?.into_iter().filter(|pid| process::state(*pid) != Some('Z')).count();
                most = most.max(living);
                std::thread::sleep(Duration::from_millis(5));
            }
            anyhow::Ok(most)
        });
        let clients: Vec<_> = ["one", "two", "three", "one", "two", "three"]
            .into_iter()
            .map(|model| scope.spawn(|| (0..4).try_for_each(|_| said(&server, model))))
            .collect();
        let served =
            clients.into_iter().try_for_each(|client| client.join().map_err(|_| anyhow!("a client panicked"))?);
        done.store(true, Ordering::Relaxed);
        let most = watch.join().map_err(|_| anyhow!("the watch panicked"))??;
        served.map(|()| most)
    })?;
    assert_eq!(most, 1, "processes at the same time");
    Ok(())
}

#[test]
fn a_hangup_reads_the_models_again() -> Result<()> {
    let folder = ModelsFolder::new(&["one", "two", "three"])?;
    let server = folder.start("models:\n  - name: one\n  - name: two\n", &["--drain-timeout", "120s"])?;
    said(&server, "one")?;
    // A model that leaves finishes what it has begun.
    let (api, content) = (server.api, fixtures::audio("long-en.flac")?);
    let long = std::thread::spawn(move || http::upload(api, "/asr?language=en", "long-en.flac", &content));
    server.wait_for_metric("hush_model_inflight_requests{model=\"one\"}", 1.0, SOON)?;
    folder.write("models:\n  - name: two\n    aliases: [fast]\n    idleTimeout: 7s\n  - name: three\n")?;
    hang_up(&server)?;
    wait_for("the configuration is read", SOON, || Ok((logged(&server, "was read again") == 1).then_some(())))?;
    let answer = transcribe(&server, "one", "en-1.wav")?;
    assert_eq!(answer.status, 404, "{}", answer.text());
    said(&server, "fast")?;
    said(&server, "three")?;
    assert_eq!(listed(&server, "two")?.context("two is gone")?["idle_timeout_seconds"], json!(7.0));
    let long = long.join().map_err(|_| anyhow!("the client panicked"))??;
    assert_eq!(long.status, 200, "{}", long.text());
    wait_for("the model that is not named any more is gone", SOON, || {
        Ok((listed(&server, "one")?.is_none() && server.runners()?.len() == 2).then_some(()))
    })?;
    assert_eq!(server.metric("hush_config_last_reload_successful")?, Some(1.0));
    // The default is the first of the new list.
    assert_eq!(server.asr("?language=en", "en-1.wav")?.status, 200);
    assert_eq!(listed(&server, "two")?.context("two is gone")?["state"], "ready");
    Ok(())
}

#[test]
fn a_configuration_that_cannot_be_used_changes_nothing() -> Result<()> {
    let folder = ModelsFolder::new(&["one"])?;
    let server = folder.start("models:\n  - name: one\n    aliases: [first]\n", &[])?;
    for (broken, words) in [
        ("models:\n  - name: one\n    alias: x\n", "did you mean `aliases`?"),
        ("models:\n  - name: no-such-model\n", "no-such-model"),
    ] {
        folder.write(broken)?;
        let before = logged(&server, "the new configuration is refused");
        hang_up(&server)?;
        wait_for("it is refused", SOON, || {
            Ok((logged(&server, "the new configuration is refused") > before).then_some(()))
        })?;
        let line = server
            .log()
            .into_iter()
            .rfind(|line| line.contains("the new configuration is refused"))
            .context("no line")?;
        assert!(line.contains(words), "{line}");
        assert_eq!(server.metric("hush_config_last_reload_successful")?, Some(0.0));
        said(&server, "first")?;
    }
    folder.write("models:\n  - name: one\n")?;
    hang_up(&server)?;
    server.wait_for_metric("hush_config_last_reload_successful", 1.0, SOON)
}

/// The listing says where a model is, and where it will be once it is not loaded any more.
#[test]
fn another_device_is_taken_from_the_next_load_on() -> Result<()> {
    let folder = ModelsFolder::new(&["one"])?;
    let server = folder.start("models:\n  - name: one\n    device: cpu\n", &["--idle-timeout", "0"])?;
    said(&server, "one")?;
    folder.write("models:\n  - name: one\n    device: cuda:0\n    precision: fp16\n")?;
    hang_up(&server)?;
    wait_for("the configuration is read", SOON, || Ok((logged(&server, "was read again") == 1).then_some(())))?;
    let now = listed(&server, "one")?.context("it is gone")?;
    assert_eq!((&now["device"], &now["state"]), (&json!("cpu"), &json!("ready")), "what is loaded stays where it is");
    said(&server, "one")?;
    let unload = http::exchange(
        server.ops,
        format!("POST /admin/v1/models/one/unload HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", server.ops)
            .as_bytes(),
    )?;
    assert_eq!(unload.status, 200, "{}", unload.text());
    wait_for("the listing names the device of the next load", SOON, || {
        Ok(listed(&server, "one")?.filter(|now| now["device"] == "cuda:0").map(|_| ()))
    })?;
    let infos = http::get(server.ops, "/metrics")?.text();
    let infos: Vec<&str> = infos.lines().filter(|line| line.starts_with("hush_device_info{")).collect();
    assert!(matches!(infos[..], [line] if line.contains("cuda:0")), "{infos:?}");
    Ok(())
}

#[test]
fn a_look_at_the_settings_fetches_nothing() -> Result<()> {
    let folder = ModelsFolder::new(&["one"])?;
    folder.write("models:\n  - name: one\n  - name: base\n")?;
    let hub = std::net::TcpListener::bind("127.0.0.1:0")?;
    hub.set_nonblocking(true)?;
    let mut command = Command::new(fixtures::binary()?);
    command.args(["serve", "--check-config", "--config"]).arg(folder.config()).arg("--models-dir");
    command.arg(folder.dir.path().join("models")).arg("--ort-lib").arg(fixtures::onnxruntime());
    let looked = command.env("HF_ENDPOINT", format!("http://{}", hub.local_addr()?)).output()?;
    let settled: Value = serde_json::from_slice(&looked.stdout)?;
    let installed = |at: usize| (&settled["models"][at]["name"], &settled["models"][at]["installed"]);
    assert_eq!((installed(0), installed(1)), ((&json!("one"), &json!(true)), (&json!("base"), &json!(false))));
    assert_eq!(hub.accept().map(|_| ()).map_err(|error| error.kind()), Err(std::io::ErrorKind::WouldBlock));
    let refused = command.arg("--install-missing=false").output()?;
    let error = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && error.contains("`base` is not installed"), "{error}");
    Ok(())
}

#[test]
fn a_default_that_needs_the_model_for_voice_activity_is_refused_without_it() -> Result<()> {
    let folder = ModelsFolder::new(&["one"])?;
    folder.write("models:\n  - name: one\n    defaults: {vadFilter: true, beamSize: 5}\n")?;
    // A folder of its own, so that nothing lies beside the library.
    let library = folder.dir.path().join("libonnxruntime.so");
    std::os::unix::fs::symlink(fs::canonicalize(fixtures::onnxruntime())?, &library)?;
    let check = |library: &Path| {
        let mut command = Command::new(fixtures::binary()?);
        command.args(["serve", "--check-config", "--config"]).arg(folder.config()).arg("--models-dir");
        anyhow::Ok(command.arg(folder.dir.path().join("models")).arg("--ort-lib").arg(library).output()?)
    };
    let refused = check(&library)?;
    let error = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && error.contains("`one`") && error.contains("--vad-model"), "{error}");
    let settled = check(&fixtures::onnxruntime())?;
    let settled: Value = serde_json::from_slice(&settled.stdout)?;
    // `--device auto` is the CPU where ONNX Runtime is its build.
    let model = &settled["models"][0];
    assert_eq!((&model["device"], &model["precision"]), (&json!("cpu"), &json!("int8")));
    assert!(model["deviceReason"].as_str().is_some_and(|reason| !reason.is_empty()), "{model}");
    assert_eq!(
        (&settled["models"][0]["defaults"]["vadFilter"], &settled["models"][0]["defaults"]["beamSize"]),
        (&json!(true), &json!(5))
    );
    Ok(())
}
