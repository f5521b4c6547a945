//! Servers whose names and messages hold control characters for the terminal, the log and the page.

use std::io::BufRead as _;
use std::io::{BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};

use hush_log::is_printable;

use super::*;

/// Sets the title of a terminal, clears it, begins a line of its own, and turns the order of letters round.
const WORDS: &str = "\u{1b}]0;owned\u{7}\u{1b}[2J\nINFO all is well\u{9b}31m\u{202e}";

/// Answers every scrape with these metrics, and every command with a refusal in such words.
struct Hostile(SocketAddr);

impl Hostile {
    fn start(metrics: String) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        // It ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // A client that is gone needs no answer.
                let _ = answer(stream, &metrics);
            }
        });
        Ok(Self(address))
    }
}

fn answer(stream: TcpStream, metrics: &str) -> Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let line = line.trim_end().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse()?;
        }
    }
    reader.read_exact(&mut vec![0; length])?;
    let (status, body) = if first.starts_with("GET /metrics") {
        ("200 OK", metrics.to_owned())
    } else {
        let message = format!("{WORDS}{}", "A".repeat(30_000));
        ("409 Conflict", json!({"code": format!("busy{WORDS}"), "message": message}).to_string())
    };
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    let mut stream = stream;
    stream.write_all(head.as_bytes())?;
    Ok(stream.write_all(body.as_bytes())?)
}

/// A model that has been idle for long, as a server says it.
fn model(name: &str, gpu: &str, state: &str) -> String {
    let quoted = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    let (name, gpu, state) = (quoted(name), quoted(gpu), quoted(state));
    format!(
        "hush_model_state{{model=\"{name}\",state=\"{state}\"}} 1\nhush_model_idle_seconds{{model=\"{name}\"}} 100000\n\
         hush_model_inflight_requests{{model=\"{name}\"}} 0\nhush_model_queued_requests{{model=\"{name}\"}} 0\n\
         hush_model_generation{{model=\"{name}\"}} 1\nhush_model_loaded_seconds{{model=\"{name}\"}} 100000\n\
         hush_model_vram_bytes{{model=\"{name}\",gpu_uuid=\"{gpu}\"}} 1000\n\
         hush_gpu_memory_total_bytes{{gpu_uuid=\"{gpu}\"}} 8000\nhush_gpu_memory_used_bytes{{gpu_uuid=\"{gpu}\"}} 1000\n\
         hush_gpu_sample_age_seconds{{gpu_uuid=\"{gpu}\"}} 0\n"
    )
}

fn strings<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
    match value {
        Value::String(text) => found.push(text),
        Value::Array(items) => items.iter().for_each(|item| strings(item, found)),
        Value::Object(fields) => fields.iter().for_each(|(key, value)| {
            found.push(key);
            strings(value, found);
        }),
        _ => {}
    }
}

/// Everything in it may be printed, and nothing is longer than what a person reads.
fn is_harmless(what: &str, json: &Value) {
    let mut found = Vec::new();
    strings(json, &mut found);
    for text in found {
        assert!(text.chars().all(is_printable) && text.chars().count() <= 400, "{what}: {text:?}");
    }
}

#[test]
fn what_a_hostile_server_says_is_harmless_wherever_it_is_shown() -> Result<()> {
    let metrics = [
        model("base", "GPU-a", "ready"),
        model(WORDS, "GPU-a", "ready"),
        model(&"a".repeat(7000), "GPU-a", "ready"),
        model("card", &format!("GPU-{WORDS}"), "ready"),
        model("state", "GPU-a", WORDS),
    ];
    let more = (0..400).map(|n| format!("hush_model_generation{{model=\"{}{n}\"}} NaN\n", "b".repeat(150)));
    let hostile = Hostile::start(metrics.into_iter().chain(more).collect())?;
    let broken = Hostile::start(format!("hush_model_generation{{model=\"{WORDS}\"}} {WORDS}\n"))?;
    let targets = [format!("media/hostile=http://{}", hostile.0), format!("media/broken=http://{}", broken.0)];
    let policies = POLICIES.replace("mode: Idle, idleTimeout: 2h", "mode: OnDemand");
    let controller = Controller::start(&policies, &["--target", &targets[0], "--target", &targets[1]])?;
    let state = wait_for("the refusal of the server", SOON, || {
        let state = http::get(controller.ops, "/api/v1/state")?.json()?;
        let refused = state["records"].as_array().is_some_and(|all| all.iter().any(|r| r["outcome"] == "Refused"));
        Ok(refused.then_some(state))
    })?;
    is_harmless("the state", &state);
    let models: Vec<&Value> = state["models"].as_array().context("no models")?.iter().map(|m| &m["model"]).collect();
    assert_eq!(models, [&json!("base"), &json!("card")], "{state}");
    let problems = state["problems"].as_array().context("no problems")?;
    assert!((3..=12).contains(&problems.len()), "{problems:?}");
    assert!(problems.iter().any(|p| p.to_string().contains("its name must have at most")), "{problems:?}");

    for line in controller.log() {
        is_harmless("the log", &serde_json::from_str(&line).with_context(|| line.clone())?);
    }
    is_harmless("the audit log", &Value::Array(controller.audit()?));
    let url = format!("http://{}", controller.ops);
    for args in [&["top", "--once"][..], &["explain", "hostile"], &["explain", "broken"], &["plan"]] {
        let said = plugin::said(&[args, &["--controller", &url]].concat())?;
        for line in said.lines() {
            assert!(line.chars().all(is_printable) && line.chars().count() < 1000, "{args:?}: {line:?}");
        }
        assert!(!said.lines().any(|line| line.starts_with("INFO")), "{said}");
    }
    let metrics = http::get(controller.ops, "/metrics")?.text();
    assert!(metrics.chars().all(|c| c == '\n' || is_printable(c)), "the metrics");
    Ok(())
}
