//! The reference is what the code says, and what running programs show.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use hush_contract::metrics::{FAMILIES, PROGRAM_FAMILIES};
use hush_nvml::ProcessMemory;
use hush_tests::gpus::{GIB, Gpus, SOON, of_both};
use hush_tests::reference::{PAGES, folder};
use hush_tests::{Controller, Server, fixtures, http};

const POLICY: &str = "\
apiVersion: gpu.hush.dev/v1beta1
kind: GpuModelPolicy
metadata: {name: all}
spec: {selector: {matchLabels: {app: whisper}}}
";

#[test]
fn the_pages_are_up_to_date() -> Result<()> {
    for (name, content) in PAGES {
        let committed = std::fs::read_to_string(folder().join(name)).unwrap_or_default();
        assert!(committed == content()?, "docs/reference/{name} is not what the code says: run `make reference`");
    }
    Ok(())
}

/// `family -> (kind, labels)`, of what a program shows.
fn shown(exposition: &str) -> Result<BTreeMap<String, (String, Vec<String>)>> {
    let mut families: BTreeMap<String, (String, Vec<String>)> = BTreeMap::new();
    for line in exposition.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').context("a type without a kind")?;
            families.insert(name.to_owned(), (kind.to_owned(), Vec::new()));
            continue;
        }
        let (series, labels) = line.split_once('{').unwrap_or((line, ""));
        let suffixes = ["_bucket", "_sum", "_count"];
        let base = suffixes.iter().find_map(|suffix| series.strip_suffix(suffix)).unwrap_or(series);
        let Some((_, known)) = families.get_mut(base).filter(|_| !line.starts_with('#')) else { continue };
        let names = labels.split("\",").filter_map(|label| label.split_once("=\"")).map(|(name, _)| name.to_owned());
        for name in names.filter(|name| name != "le") {
            if !known.contains(&name) {
                known.push(name);
            }
        }
    }
    Ok(families)
}

fn unload(server: &Server) -> Result<http::Response> {
    let (path, body) = (format!("/admin/v1/models/{}/unload", fixtures::MODEL), r#"{"if_generation":1}"#);
    let head = "Content-Type: application/json\r\nConnection: close";
    let request =
        format!("POST {path} HTTP/1.1\r\nHost: localhost\r\n{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    http::exchange(server.ops, request.as_bytes())
}

#[test]
fn what_a_server_and_a_controller_show_is_in_it() -> Result<()> {
    let mut gpus = Gpus::one()?;
    let config = gpus.folder().join("hush.yaml");
    std::fs::write(&config, "maxQueue: 8\n")?;
    let config = config.to_string_lossy().into_owned();
    let server = gpus.server(ProcessMemory { bytes: GIB, ..ProcessMemory::default() }, &["--config", &config])?;
    assert_eq!(server.asr("?language=en", "en-1.wav")?.status, 200);
    // The second is refused.
    for _ in 0..2 {
        unload(&server)?;
    }
    // Some families are there only while the model is, and after a second request.
    assert_eq!(server.asr("?language=en", "en-1.wav")?.status, 200);
    server.wait_for_metric(&of_both("hush_model_vram_bytes"), GIB as f64, SOON)?;
    let page = std::fs::read_to_string(folder().join("metrics.md"))?;
    let mut seen = shown(&http::get(server.ops, "/metrics")?.text())?;
    let families = PROGRAM_FAMILIES.iter().chain(FAMILIES);
    let told: BTreeMap<_, _> = families.map(|family| (family.name.to_owned(), family)).collect();
    for (name, (kind, labels)) in &mut seen {
        let family = told.get(name).with_context(|| format!("{name} is not in the contract"))?;
        let mut expected: Vec<String> = family.labels.iter().map(|label| (*label).to_owned()).collect();
        expected.sort_unstable();
        labels.sort_unstable();
        assert_eq!((kind.as_str(), &*labels), (family.kind.as_str(), &expected), "{name}");
    }
    let missing: Vec<_> = told.keys().filter(|name| !seen.contains_key(*name)).collect();
    let not_shown = [
        "hush_client_stalls_total",
        "hush_model_appeared_total",
        "hush_model_out_of_memory_total",
        "hush_open_websockets",
        "hush_runner_restarts_total",
        "hush_upstream_failures_total",
    ];
    assert_eq!(missing, not_shown, "not shown by a server");
    let controller = Controller::start(POLICY, &["--target", &format!("http://{}", server.ops)])?;
    // Families with labels are there from the first step on that has seen something.
    controller.wait_for_metric("hush_controller_targets{state=\"answering\"}", 1.0, SOON)?;
    let shown = shown(&http::get(controller.ops, "/metrics")?.text())?;
    ensure!(shown.len() > 8, "a controller shows {} families", shown.len());
    for name in shown.keys() {
        assert!(page.contains(&format!("| `{name}` |")), "{name} is not in docs/reference/metrics.md");
    }
    Ok(())
}
