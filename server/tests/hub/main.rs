//! The hub client against a local server that speaks the hub's protocol and serves the bundled checkpoint.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test support, though no test itself")]

mod hostile;
mod install;
mod model_support;
mod server;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hush_server::cli::Env;
use hush_server::hub::{DownloadEvent, DownloadedCheckpoint, HubConfig, HubError, Repo, RetryPolicy, download};

use server::{Hub, HubFault, HubOptions};

const REPO: &str = "hush/whisper-hush-tiny";
const FILES: [&str; 5] =
    ["config.json", "generation_config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json"];

fn checkpoint() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/model/whisper-hush-tiny")
}

fn config(hub: &Hub, variables: &[(&str, &str)]) -> HubConfig {
    let endpoint = hub.url();
    let env: Env = [("HF_ENDPOINT", endpoint.as_str())].iter().chain(variables).copied().collect();
    let retry = RetryPolicy {
        read_timeout: Duration::from_secs(2),
        connect_timeout: Duration::from_secs(2),
        pause: Duration::from_millis(5),
        longest_pause: Duration::from_millis(20),
        give_up_after: Duration::from_millis(400),
    };
    HubConfig { retry, ..HubConfig::from_env(&env).unwrap() }
}

fn get(hub: &Hub, into: &Path) -> Result<DownloadedCheckpoint, HubError> {
    get_with(&config(hub, &[]), "main", into, &mut |_| {})
}

fn get_with(
    config: &HubConfig,
    revision: &str,
    into: &Path,
    watch: &mut dyn FnMut(DownloadEvent<'_>),
) -> Result<DownloadedCheckpoint, HubError> {
    download(config, &REPO.parse::<Repo>().unwrap(), revision, into, watch)
}

fn assert_complete(dir: &Path) {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, FILES, "exactly what a checkpoint needs, and no leftovers");
    for name in FILES {
        assert!(fs::read(dir.join(name)).unwrap() == fs::read(checkpoint().join(name)).unwrap(), "{name} differs");
    }
}

#[test]
fn fetches_what_a_checkpoint_needs_and_reports_it() {
    let hub = Hub::start(&checkpoint(), HubOptions::default());
    let into = tempfile::tempdir().unwrap();
    let (mut planned, mut bytes, mut done) = (0, 0, 0);
    let got = get_with(&config(&hub, &[]), "main", into.path(), &mut |event| match event {
        DownloadEvent::Planned { files, total_bytes } => {
            assert_eq!(files, FILES.len());
            planned += total_bytes;
        }
        DownloadEvent::Bytes(count) => bytes += count,
        DownloadEvent::Done { .. } => done += 1,
        other => panic!("{other:?}"),
    })
    .unwrap();
    assert_eq!((got.repo.as_str(), got.commit.as_str()), (REPO, server::COMMIT));
    assert_complete(&got.dir);
    assert_eq!((planned, done), (bytes, FILES.len()));
    // A branch may move in between: the files are asked for by commit.
    assert!(hub.requests().iter().filter(|r| r.path.contains("/resolve/")).all(|r| r.path.contains(server::COMMIT)));
}

#[test]
fn what_is_there_is_not_fetched_again() {
    let hub = Hub::start(&checkpoint(), HubOptions::default());
    let into = tempfile::tempdir().unwrap();
    get(&hub, into.path()).unwrap();
    let before = hub.requests().len();
    assert_complete(&get(&hub, into.path()).unwrap().dir);
    assert_eq!(hub.requests().len(), before + 1, "only the listing is asked for");
}

#[test]
fn digests_come_from_headers_when_the_listing_has_none() {
    let hub = Hub::start(&checkpoint(), HubOptions { bare_listing: true, ..HubOptions::default() });
    let into = tempfile::tempdir().unwrap();
    assert_complete(&get(&hub, into.path()).unwrap().dir);
    let hub = Hub::start(&checkpoint(), HubOptions { bare_listing: true, ..HubOptions::default() });
    hub.fault("config.json", HubFault::Flip);
    let into = tempfile::tempdir().unwrap();
    assert!(matches!(get(&hub, into.path()), Err(HubError::WrongDigest { file, .. }) if file == "config.json"));
}

#[test]
fn the_token_reaches_the_hub_and_not_the_store() {
    let hub = Hub::start(&checkpoint(), HubOptions { token: Some("secret"), ..HubOptions::default() });
    let into = tempfile::tempdir().unwrap();
    let error = get(&hub, into.path()).unwrap_err();
    assert!(matches!(error, HubError::Forbidden { status: 401, had_token: false, .. }), "{error:?}");
    assert!(error.to_string().contains("HF_TOKEN"), "{error}");

    let wrong = get_with(&config(&hub, &[("HF_TOKEN", "wrong")]), "main", into.path(), &mut |_| {}).unwrap_err();
    assert!(matches!(wrong, HubError::Forbidden { status: 403, had_token: true, .. }), "{wrong:?}");
    assert!(!wrong.to_string().contains("wrong"), "the token is not shown: {wrong}");

    let right = config(&hub, &[("HF_TOKEN", "secret")]);
    assert_complete(&get_with(&right, "main", into.path(), &mut |_| {}).unwrap().dir);
    let to_store: Vec<_> = hub.requests().into_iter().filter(|request| request.store).collect();
    assert!(!to_store.is_empty());
    for request in to_store {
        assert_eq!(request.header("authorization"), None, "{} got the token", request.path);
    }
}

#[test]
fn a_broken_connection_goes_on_where_it_stopped() {
    let hub = Hub::start(&checkpoint(), HubOptions::default());
    let size = fs::metadata(checkpoint().join("model.safetensors")).unwrap().len();
    hub.fault("model.safetensors", HubFault::CutAfter(size / 3));
    hub.fault("model.safetensors", HubFault::CutAfter(size / 5));
    let into = tempfile::tempdir().unwrap();
    let (mut retries, mut bytes) = (0, 0);
    let got = get_with(&config(&hub, &[]), "main", into.path(), &mut |event| match event {
        DownloadEvent::Retry { .. } => retries += 1,
        DownloadEvent::Bytes(count) => bytes += count,
        _ => {}
    })
    .unwrap();
    assert_complete(&got.dir);
    assert_eq!(retries, 2);
    let total: u64 = FILES.iter().map(|name| fs::metadata(checkpoint().join(name)).unwrap().len()).sum();
    assert_eq!(bytes, total, "no byte is counted twice");
    let ranges: Vec<u64> = hub.requests().iter().filter(|r| r.store).filter_map(|r| r.range_start()).collect();
    assert_eq!(ranges, [size / 3, size / 3 + size / 5], "each try goes on from where the last ended");
}

#[test]
fn a_later_run_goes_on_where_the_first_gave_up() {
    let hub = Hub::start(&checkpoint(), HubOptions::default());
    let size = fs::metadata(checkpoint().join("model.safetensors")).unwrap().len();
    hub.fault("model.safetensors", HubFault::CutAfter(size / 2));
    hub.fault_forever("model.safetensors", HubFault::Status(503));
    let into = tempfile::tempdir().unwrap();
    let error = get(&hub, into.path()).unwrap_err();
    assert!(matches!(error, HubError::GaveUp { .. }), "{error:?}");
    hub.clear_faults();
    assert_complete(&get(&hub, into.path()).unwrap().dir);
    let last = hub.requests().iter().rev().find_map(server::HubRequest::range_start);
    assert_eq!(last, Some(size / 2));
}

#[test]
fn a_store_without_ranges_starts_again() {
    let hub = Hub::start(&checkpoint(), HubOptions { no_ranges: true, ..HubOptions::default() });
    hub.fault("model.safetensors", HubFault::CutAfter(100_000));
    let into = tempfile::tempdir().unwrap();
    let (mut restarted, mut bytes) = (0, 0);
    let got = get_with(&config(&hub, &[]), "main", into.path(), &mut |event| match event {
        DownloadEvent::Restart { bytes: count } => {
            restarted += count;
            bytes -= count;
        }
        DownloadEvent::Bytes(count) => bytes += count,
        _ => {}
    })
    .unwrap();
    assert_complete(&got.dir);
    assert_eq!(restarted, 100_000);
    assert_eq!(bytes, FILES.iter().map(|name| fs::metadata(checkpoint().join(name)).unwrap().len()).sum::<u64>());
}

#[test]
fn a_silent_connection_is_made_again() {
    let hub = Hub::start(&checkpoint(), HubOptions::default());
    hub.fault("model.safetensors", HubFault::HangAfter(50_000));
    let into = tempfile::tempdir().unwrap();
    let mut config = config(&hub, &[]);
    config.retry.read_timeout = Duration::from_millis(150);
    assert_complete(&get_with(&config, "main", into.path(), &mut |_| {}).unwrap().dir);
}

#[test]
fn a_passing_error_is_tried_again_and_a_lasting_one_is_not() {
    let hub = Hub::start(&checkpoint(), HubOptions::default());
    hub.fault("config.json", HubFault::Status(503));
    hub.fault("config.json", HubFault::Status(429));
    let into = tempfile::tempdir().unwrap();
    assert_complete(&get(&hub, into.path()).unwrap().dir);

    let hub = Hub::start(&checkpoint(), HubOptions::default());
    hub.fault_forever("config.json", HubFault::Status(400));
    let into = tempfile::tempdir().unwrap();
    assert!(matches!(get(&hub, into.path()), Err(HubError::Status { status: 400, .. })));
    assert_eq!(hub.requests().iter().filter(|r| r.path.ends_with("/config.json")).count(), 1);
}

#[test]
fn a_wrong_digest_is_refused_and_nothing_stays() {
    let hub = Hub::start(&checkpoint(), HubOptions::default());
    hub.fault_forever("model.safetensors", HubFault::Flip);
    let into = tempfile::tempdir().unwrap();
    let error = get(&hub, into.path()).unwrap_err();
    assert!(matches!(&error, HubError::WrongDigest { file, algorithm: "SHA-256", .. } if file == "model.safetensors"));
    let dir = into.path().join("hush--whisper-hush-tiny").join(server::COMMIT);
    assert!(!dir.join("model.safetensors").exists() && !dir.join("model.safetensors.part").exists());

    let hub = Hub::start(&checkpoint(), HubOptions::default());
    hub.fault_forever("config.json", HubFault::Flip);
    let into = tempfile::tempdir().unwrap();
    let error = get(&hub, into.path()).unwrap_err();
    assert!(matches!(error, HubError::WrongDigest { algorithm: "git blob id", .. }), "{error:?}");
}

#[test]
fn a_foreign_beginning_is_thrown_away_once() {
    let hub = Hub::start(&checkpoint(), HubOptions::default());
    let into = tempfile::tempdir().unwrap();
    let dir = into.path().join("hush--whisper-hush-tiny").join(server::COMMIT);
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("model.safetensors.part"), vec![7; 5000]).unwrap();
    fs::write(dir.join("tokenizer.json.part"), vec![7; 50_000_000]).unwrap();
    assert_complete(&get(&hub, into.path()).unwrap().dir);
}

#[test]
fn shards_are_those_that_the_index_names() {
    let folder = tempfile::tempdir().unwrap();
    for name in FILES.iter().filter(|name| **name != "model.safetensors") {
        fs::copy(checkpoint().join(name), folder.path().join(name)).unwrap();
    }
    for (name, content) in [
        ("model-00001-of-00002.safetensors", "one"),
        ("model-00002-of-00002.safetensors", "two"),
        ("model-other.safetensors", "not named"),
        (
            "model.safetensors.index.json",
            r#"{"weight_map":{"a":"model-00001-of-00002.safetensors","b":"model-00002-of-00002.safetensors"}}"#,
        ),
    ] {
        fs::write(folder.path().join(name), content).unwrap();
    }
    let hub = Hub::start(folder.path(), HubOptions::default());
    let into = tempfile::tempdir().unwrap();
    let dir = get(&hub, into.path()).unwrap().dir;
    assert_eq!(fs::read(dir.join("model-00002-of-00002.safetensors")).unwrap(), b"two");
    assert!(!dir.join("model-other.safetensors").exists());
}

#[test]
fn what_is_not_there_is_said() {
    let hub = Hub::start(&checkpoint(), HubOptions::default());
    let into = tempfile::tempdir().unwrap();
    let missing = download(&config(&hub, &[]), &"hush/none".parse().unwrap(), "main", into.path(), &mut |_| {});
    assert!(matches!(missing, Err(HubError::NoRepository { repo, .. }) if repo == "hush/none"));
    let revision = get_with(&config(&hub, &[]), "v9/odd name", into.path(), &mut |_| {}).unwrap_err();
    assert!(matches!(&revision, HubError::NoRevision { revision, .. } if revision == "v9/odd name"), "{revision:?}");

    let folder = tempfile::tempdir().unwrap();
    for name in ["config.json", "tokenizer.json"] {
        fs::copy(checkpoint().join(name), folder.path().join(name)).unwrap();
    }
    fs::write(folder.path().join("pytorch_model.bin"), "pytorch").unwrap();
    let hub = Hub::start(folder.path(), HubOptions::default());
    let error = get(&hub, into.path()).unwrap_err().to_string();
    assert!(error.contains("model.safetensors") && error.contains("model.bin"), "{error}");
}

#[test]
fn offline_sends_no_request() {
    let hub = Hub::start(&checkpoint(), HubOptions::default());
    let into = tempfile::tempdir().unwrap();
    let error = get_with(&config(&hub, &[("HF_HUB_OFFLINE", "1")]), "main", into.path(), &mut |_| {}).unwrap_err();
    assert!(matches!(error, HubError::Offline { .. }));
    assert!(error.to_string().contains("hush-server install DIR"), "{error}");
    assert!(hub.requests().is_empty());
}

#[test]
fn an_address_without_a_server_ends_within_its_deadline() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let env: Env = [("HF_ENDPOINT", format!("http://{free}"))].into_iter().collect();
    let hub = Hub::start(&checkpoint(), HubOptions::default());
    let config = HubConfig { retry: config(&hub, &[]).retry, ..HubConfig::from_env(&env).unwrap() };
    let into = tempfile::tempdir().unwrap();
    let started = std::time::Instant::now();
    let error = get_with(&config, "main", into.path(), &mut |_| {}).unwrap_err();
    assert!(matches!(error, HubError::GaveUp { .. }), "{error:?}");
    assert!(started.elapsed() < Duration::from_secs(5));
}

#[test]
fn what_tls_refuses_is_not_tried_again() {
    // A plain server behind an https URL answers in the wrong language.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut hello = [0; 64];
        std::io::Read::read(&mut stream, &mut hello).unwrap();
        std::io::Write::write_all(&mut stream, b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
        // Read to the end, or closing would reset the connection under the answer.
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
    });
    let hub = Hub::start(&checkpoint(), HubOptions::default());
    let env: Env = [("HF_ENDPOINT", url)].into_iter().collect();
    let config = HubConfig { retry: config(&hub, &[]).retry, ..HubConfig::from_env(&env).unwrap() };
    let into = tempfile::tempdir().unwrap();
    let mut retries = 0;
    let error = get_with(&config, "main", into.path(), &mut |event| {
        retries += i32::from(matches!(event, DownloadEvent::Retry { .. }));
    })
    .unwrap_err();
    assert!(matches!(error, HubError::Transport { .. }), "{error:?}");
    assert_eq!(retries, 0);
    server.join().unwrap();
}

#[test]
fn two_at_once_do_the_work_once() {
    let hub = Hub::start(&checkpoint(), HubOptions::default());
    let into = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert_complete(&get(&hub, into.path()).unwrap().dir));
        }
    });
    let weights = hub.requests().iter().filter(|r| r.store && r.path.ends_with("/model.safetensors")).count();
    assert_eq!(weights, 1);
}
