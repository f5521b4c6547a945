//! A hostile hub: lengths that are not those of its files, and redirects to where only this machine can go.

use std::io::{BufRead, BufReader, Read, Write, copy};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use hush_server::hub::HubError;

use crate::server::{COMMIT, Hub, HubFault, HubOptions};
use crate::{REPO, assert_complete, checkpoint, config, get, get_with};

/// Bytes of everything below the folder.
fn bytes_below(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| if path.is_dir() { bytes_below(&path) } else { path.metadata().unwrap().len() }).sum()
}

#[test]
fn a_body_is_cut_at_the_listed_length_and_refused() {
    const SURPLUS: u64 = 400 << 20;
    for file in ["config.json", "model.safetensors"] {
        let hub = Hub::start(&checkpoint(), HubOptions::default());
        hub.fault_forever(file, HubFault::More(SURPLUS));
        let into = tempfile::tempdir().unwrap();
        let error = get(&hub, into.path()).unwrap_err();
        let listed = checkpoint().join(file).metadata().unwrap().len();
        assert!(
            matches!(&error, HubError::TooLong { file: named, expected, .. } if named == file && *expected == listed),
            "{error:?}"
        );
        // What buffers of the system hold, and not all that the hub tries to send.
        assert!(hub.surplus() < SURPLUS / 4, "{} bytes were taken", hub.surplus());
        let dir = into.path().join("hush--whisper-hush-tiny").join(COMMIT);
        assert!(!dir.join(file).exists() && !dir.join(format!("{file}.part")).exists());
        // A later run gets what is right.
        hub.clear_faults();
        assert_complete(&get(&hub, into.path()).unwrap().dir);
    }
}

#[test]
fn a_body_that_is_shorter_than_listed_is_refused() {
    let hub = Hub::start(&checkpoint(), HubOptions::default());
    hub.fault_forever("model.safetensors", HubFault::Less(100));
    let into = tempfile::tempdir().unwrap();
    let error = get(&hub, into.path()).unwrap_err();
    assert!(matches!(&error, HubError::WrongSize { file, .. } if file == "model.safetensors"), "{error:?}");
    let dir = into.path().join("hush--whisper-hush-tiny").join(COMMIT);
    assert!(!dir.join("model.safetensors").exists() && !dir.join("model.safetensors.part").exists());
}

#[test]
fn absurd_lengths_are_refused_before_anything_is_fetched() {
    for size in [u64::MAX, 1 << 63, 1 << 40] {
        let hub = Hub::start(&checkpoint(), HubOptions { listed_size: Some(size), ..HubOptions::default() });
        let into = tempfile::tempdir().unwrap();
        let error = get(&hub, into.path()).unwrap_err();
        assert!(matches!(&error, HubError::InvalidAnswer { problem, .. } if problem.contains("`size`")), "{error:?}");
        assert!(error.to_string().contains(&size.to_string()), "{error}");
        assert!(hub.requests().iter().all(|request| !request.path.contains("/resolve/")));
        assert_eq!(bytes_below(into.path()), 0);
    }
}

/// Bytes that only come again are no progress.
#[test]
fn a_store_that_never_ends_a_file_is_given_up() {
    let hub = Hub::start(&checkpoint(), HubOptions { no_ranges: true, ..HubOptions::default() });
    hub.fault_forever("model.safetensors", HubFault::CutAfter(50_000));
    let into = tempfile::tempdir().unwrap();
    assert!(matches!(get(&hub, into.path()), Err(HubError::GaveUp { .. })));
}

#[test]
fn a_mirror_on_this_machine_may_use_a_store_on_this_machine_and_no_metadata() {
    // The store of the tests is another port: every other test shows that it is followed.
    let options = HubOptions { store: Some("http://169.254.169.254/latest/meta-data/"), ..HubOptions::default() };
    let hub = Hub::start(&checkpoint(), options);
    let into = tempfile::tempdir().unwrap();
    let error = get_with(&config(&hub, &[]), "main", into.path(), &mut |_| {}).unwrap_err();
    assert!(matches!(&error, HubError::Inward { to, .. } if to == "http://169.254.169.254"), "{error:?}");
}

/// A proxy that reaches `hub.example`, which no resolver knows.
struct HubProxy {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
}

impl HubProxy {
    fn to(hub: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&connections);
        thread::spawn(move || {
            for stream in listener.incoming() {
                counter.fetch_add(1, Ordering::SeqCst);
                thread::spawn(move || drop(relay(stream.unwrap(), hub)));
            }
        });
        Self { address, connections }
    }
}

fn relay(mut client: TcpStream, hub: SocketAddr) -> std::io::Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head)? == 0 {
            return Ok(());
        }
    }
    if !head.starts_with("CONNECT hub.example:80 ") {
        return client.write_all(b"HTTP/1.1 403 x\r\nContent-Length: 0\r\n\r\n");
    }
    let mut server = TcpStream::connect(hub)?;
    client.write_all(b"HTTP/1.1 200 x\r\n\r\n")?;
    let mut back = client.try_clone()?;
    let mut answers = server.try_clone()?;
    thread::spawn(move || {
        let _ = copy(&mut answers, &mut back);
        let _ = back.shutdown(std::net::Shutdown::Both);
    });
    copy(&mut reader.by_ref(), &mut server)?;
    Ok(())
}

/// The program, with a public hub that is reached through a proxy and redirects to a service on this machine.
#[test]
fn a_hub_outside_cannot_send_the_server_inwards() {
    let victim = TcpListener::bind("127.0.0.1:0").unwrap();
    victim.set_nonblocking(true).unwrap();
    let port = victim.local_addr().unwrap().port();
    for target in [
        format!("http://127.0.0.1:{port}/admin"),
        format!("http://localhost:{port}/admin"),
        format!("http://[::ffff:127.0.0.1]:{port}/admin"),
        format!("http://0x7f.1:{port}/admin"),
    ] {
        let store: &'static str = Box::leak(target.clone().into_boxed_str());
        let hub = Hub::start(&checkpoint(), HubOptions { store: Some(store), ..HubOptions::default() });
        let proxy = HubProxy::to(hub.address());
        let models = tempfile::tempdir().unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_hush-server"))
            .args(["install", REPO, "--models-dir"])
            .arg(models.path())
            .env_clear()
            .env("ORT_DISABLE_TELEMETRY", "1")
            .env("HOME", models.path())
            .env("HF_ENDPOINT", "http://hub.example")
            .env("HTTP_PROXY", format!("http://{}", proxy.address))
            .env("NO_PROXY", "127.0.0.1,localhost,0x7f.1,[::ffff:127.0.0.1]")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{target}: {text}");
        assert!(text.contains("redirects to") && text.contains("HF_ENDPOINT"), "{target}: {text}");
        assert!(victim.accept().is_err(), "{target}: the service was asked");
        assert!(proxy.connections.load(Ordering::SeqCst) > 0 && !hub.requests().is_empty(), "{target}: {text}");
    }
}
