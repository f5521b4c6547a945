//! Both listeners of the sidecar over TLS: a client of the app, a scrape, and a controller that commands by https.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use hush_tests::apps::standins::StandInKind;
use hush_tests::apps::{TestedApp, post_bytes};
use hush_tests::child::ChildProgram;
use hush_tests::https::{Authority, Validity};
use hush_tests::wait::wait_for;
use hush_tests::{Controller, fixtures, http};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::Value;

use crate::support::{SOON, standin};

/// Sends the bytes of a request, which must end its connection, and returns the answer.
fn ask(address: SocketAddr, authority: &Authority, request: &[u8]) -> Result<String> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.certificate.as_bytes()).context("the authority")?)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let config = config.with_root_certificates(roots).with_no_client_auth();

    let session = ClientConnection::new(Arc::new(config), ServerName::try_from("127.0.0.1")?)?;
    let socket = TcpStream::connect_timeout(&address, SOON)?;
    socket.set_read_timeout(Some(SOON))?;
    let mut stream = StreamOwned::new(session, socket);
    stream.write_all(request)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn get(address: SocketAddr, authority: &Authority, path: &str) -> Result<String> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    ask(address, authority, request.as_bytes())
}

fn state(ops: SocketAddr, authority: &Authority) -> Result<String> {
    let answer = get(ops, authority, "/admin/v1/models")?;
    let (_, body) = answer.split_once("\r\n\r\n").context("no body")?;
    let models: Value = serde_json::from_str(body).with_context(|| answer.clone())?;
    Ok(models["models"][0]["state"].as_str().unwrap_or_default().to_owned())
}

/// The configuration file names the certificate of clients, the command line the other one.
fn start(app: &dyn TestedApp, folder: &Path, listeners: (SocketAddr, SocketAddr)) -> Result<ChildProgram> {
    let file = |name: &str| folder.join(name).display().to_string();
    let config = format!("tlsCert: {}\ntlsKey: {}\ncoldHold: 30s\n", file("tls.crt"), file("tls.key"));
    std::fs::write(folder.join("config.yaml"), config)?;

    let mut command = Command::new(fixtures::sidecar()?);
    command.args(["--listen", &listeners.0.to_string(), "--ops-listen", &listeners.1.to_string()]);
    command.args([
        "--config",
        &file("config.yaml"),
        "--ops-tls-cert",
        &file("tls.crt"),
        "--ops-tls-key",
        &file("tls.key"),
    ]);
    command.args(["--log-format", "json", "--poll-interval", "200ms"]).args(app.sidecar_args());
    ChildProgram::start("hush-sidecar", command, &["HUSH_"])
}

#[test]
fn clients_scrapes_and_a_controller_come_by_https() -> Result<()> {
    let authority = Authority::new("one box")?;
    let folder = tempfile::tempdir()?;
    authority.sign(&["127.0.0.1"], Validity::Now)?.write(folder.path())?;
    let app = standin(StandInKind::Ollama, &[])?;
    let (clients, ops) = (http::free_address()?, http::free_address()?);
    let mut sidecar = start(&app, folder.path(), (clients, ops))?;
    sidecar.wait_while_running("listens", SOON, || Ok(get(ops, &authority, "/healthz").ok().map(|_| ())))?;

    let call = post_bytes(clients, &app.short_call(), &[]);
    let answer = ask(clients, &authority, &call)?;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert_eq!(state(ops, &authority)?, "ready");
    let metrics = get(ops, &authority, "/metrics")?;
    assert!(metrics.contains("hush_model_state{"), "{metrics}");
    for address in [clients, ops] {
        let plain = http::get(address, "/healthz");
        assert!(plain.as_ref().map_or(true, |answer| answer.status != 200), "{plain:?}");
    }

    let ca_file = folder.path().join("ca.crt");
    std::fs::write(&ca_file, &authority.certificate)?;
    let policy = "apiVersion: gpu.hush.dev/v1beta1\nkind: GpuModelPolicy\nmetadata: {name: test, namespace: a}\nspec:\n  \
                  selector: {matchLabels: {gpu.hush.dev/server: \"true\"}}\n  residency: {mode: OnDemand}\n";
    let target = format!("a/app=https://{ops}");
    let controller = Controller::start(policy, &["--target", &target, "--ca-file", &ca_file.to_string_lossy()])?;
    let unloaded = wait_for("the controller unloads it", SOON, || {
        Ok(controller.audit()?.into_iter().find(|record| record["outcome"] == "Unloaded"))
    });
    let record = unloaded.with_context(|| format!("{:?}\n{:?}", controller.log(), sidecar.log()))?;
    assert_eq!((&record["server"], &record["reason"]), (&Value::from("a/app"), &Value::from("OnDemand")));
    ensure!(sidecar.exit_status()?.is_none(), "the sidecar has ended: {:?}", sidecar.log());
    Ok(())
}
