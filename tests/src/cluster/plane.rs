//! The processes of a control plane.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use kube::config::AuthInfo;
use kube::{Client, Config};
use rustix::process::Signal;
use serde_json::Value;
use tokio::sync::OnceCell;

use super::credentials::{ADMIN_TOKEN, ForgedToken, ISSUER, PlaneCredentials};
use super::keeper::Keeper;
use super::programs::Programs;
use crate::http::free_address;
use crate::process;
use crate::wait::eventually;

/// Who asked for what: of service accounts alone, when they were answered.
const AUDIT_POLICY: &str = "\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived, ResponseStarted]
rules:
- {level: Metadata, userGroups: ['system:serviceaccounts']}
- {level: None}
";
const START_DEADLINE: Duration = Duration::from_secs(120);
/// Attempts to start, since another process may take a port between its choice and its use.
const TRIES: usize = 3;

pub struct ControlPlane {
    pub(super) programs: Programs,
    pub(super) credentials: PlaneCredentials,
    pub(super) etcd: SocketAddr,
    etcd_peers: SocketAddr,
    address: SocketAddr,
    /// Arguments of the API server, besides those that every test needs.
    args: Vec<String>,
    pub(super) running: Mutex<PlaneProcesses>,
    // Last: it clears up when the processes have ended.
    keeper: Mutex<Keeper>,
}

#[derive(Default)]
pub(super) struct PlaneProcesses {
    pub(super) etcd: Option<Child>,
    pub(super) api_server: Option<Child>,
}

impl ControlPlane {
    /// The one that the tests of this executable share. `None`: to be skipped.
    pub async fn shared() -> Result<Option<&'static Self>> {
        static SHARED: OnceCell<Option<ControlPlane>> = OnceCell::const_new();
        Ok(SHARED.get_or_try_init(Self::start).await?.as_ref())
    }

    /// One of its own, for a test that does harm to it.
    pub async fn start() -> Result<Option<Self>> {
        Self::start_with(&[]).await
    }

    /// The same with further arguments of the API server.
    pub async fn start_with(args: &[&str]) -> Result<Option<Self>> {
        let Some(programs) = Programs::find()? else { return Ok(None) };
        let mut tries = 1;
        loop {
            match Self::try_start(programs.clone(), args).await {
                Err(error) if tries < TRIES && format!("{error:#}").contains("address already in use") => tries += 1,
                started => return started.map(Some),
            }
        }
    }

    async fn try_start(programs: Programs, args: &[&str]) -> Result<Self> {
        let keeper = Keeper::start()?;
        let credentials = PlaneCredentials::write(keeper.folder())?;
        let [etcd, etcd_peers, address] = [free_address()?, free_address()?, free_address()?];
        let plane = Self {
            programs,
            credentials,
            etcd,
            etcd_peers,
            address,
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            running: Mutex::default(),
            keeper: Mutex::new(keeper),
        };
        plane.spawn_etcd()?;
        plane.spawn_api_server()?;
        plane.wait_until_ready().await?;
        Ok(plane)
    }

    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// What an account asked for so far: entries of the API server's audit log. A watch is there when it has ended.
    pub fn requests_of(&self, namespace: &str, account: &str) -> Result<Vec<Value>> {
        let user = format!("system:serviceaccount:{namespace}:{account}");
        let text = std::fs::read_to_string(self.folder().join("audit.jsonl"))?;
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let entries = whole.lines().map(|line| Ok(serde_json::from_str::<Value>(line)?));
        entries
            .filter(|entry| entry.as_ref().map_or(true, |entry| entry["user"]["username"] == user.as_str()))
            .collect()
    }

    /// PEM of what signed the API server's certificate.
    pub fn ca_file(&self) -> &Path {
        &self.credentials.certificate
    }

    /// Exists as long as the control plane.
    pub fn folder(&self) -> PathBuf {
        self.keeper.lock().unwrap_or_else(PoisonError::into_inner).folder().to_owned()
    }

    /// A client with all rights. A client belongs to the runtime of the test that made it.
    pub fn admin(&self) -> Result<Client> {
        self.client(ADMIN_TOKEN)
    }

    /// A client with the rights of the token's account.
    pub fn client(&self, token: &str) -> Result<Client> {
        Ok(Client::try_from(self.config(token)?)?)
    }

    pub fn config(&self, token: &str) -> Result<Config> {
        let mut config = Config::new(self.url().parse()?);
        config.root_cert = Some(vec![self.credentials.certificate_der.clone()]);
        config.auth_info = AuthInfo { token: Some(token.to_owned().into()), ..AuthInfo::default() };
        // A test wants to see each answer.
        config.default_retry = false;
        Ok(config)
    }

    /// A token as the API server makes them, for what it would not make itself.
    pub fn sign(&self, claims: &ForgedToken<'_>) -> Result<String> {
        self.credentials.sign(claims)
    }

    /// Ends the API server at once; nothing listens on its port.
    pub fn stop_api_server(&self) -> Result<()> {
        self.end(Signal::KILL, |running| &mut running.api_server)
    }

    /// Ends the API server with SIGTERM, so that it closes its connections in order.
    pub fn shut_api_server_down(&self) -> Result<()> {
        self.end(Signal::TERM, |running| &mut running.api_server)
    }

    /// Starts it again, on the same port and with the same data.
    pub async fn start_api_server(&self) -> Result<()> {
        self.spawn_api_server()?;
        self.wait_until_ready().await
    }

    /// The process ids of everything that runs.
    pub fn pids(&self) -> Vec<u32> {
        pids(&self.lock())
    }

    /// Waits until it has ended.
    pub(super) fn end(
        &self,
        signal: Signal,
        which: impl FnOnce(&mut PlaneProcesses) -> &mut Option<Child>,
    ) -> Result<()> {
        let mut running = self.lock();
        if let Some(mut child) = which(&mut running).take() {
            process::send(child.id(), signal)?;
            child.wait()?;
        }
        self.tell_keeper(&running)
    }

    pub(super) fn spawn_etcd(&self) -> Result<()> {
        let [clients, peers] = [self.etcd, self.etcd_peers].map(|address| format!("http://{address}"));
        let mut command = Command::new(&self.programs.etcd);
        command
            .arg("--data-dir")
            .arg(self.folder().join("etcd"))
            .args(["--listen-client-urls", &clients, "--advertise-client-urls", &clients])
            .args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers])
            .arg(format!("--initial-cluster=default={peers}"))
            .args(["--unsafe-no-fsync", "--log-level", "error"]);
        let mut running = self.lock();
        running.etcd = Some(self.spawn(command, "etcd.log")?);
        self.tell_keeper(&running)
    }

    fn spawn_api_server(&self) -> Result<()> {
        let PlaneCredentials { certificate, key, account_key, account_public_key, users, .. } = &self.credentials;
        let audit_policy = self.folder().join("audit-policy.yaml");
        std::fs::write(&audit_policy, AUDIT_POLICY)?;
        let mut command = Command::new(&self.programs.api_server);
        command
            .args(["--etcd-servers", &format!("http://{}", self.etcd), "--bind-address", "127.0.0.1"])
            .args(["--secure-port", &self.address.port().to_string()])
            .arg("--tls-cert-file")
            .arg(certificate)
            .arg("--tls-private-key-file")
            .arg(key)
            .arg("--cert-dir")
            .arg(self.folder())
            .arg("--audit-policy-file")
            .arg(audit_policy)
            .arg("--audit-log-path")
            .arg(self.folder().join("audit.jsonl"))
            .args(["--service-account-issuer", ISSUER, "--service-account-key-file"])
            .arg(account_public_key)
            .arg("--service-account-signing-key-file")
            .arg(account_key)
            .args(["--authorization-mode", "RBAC", "--token-auth-file"])
            .arg(users)
            .args(["--service-cluster-ip-range", "10.0.0.0/24", "--endpoint-reconciler-type", "none"])
            // Nothing here makes the secrets that it would wait for.
            .args(["--disable-admission-plugins", "ServiceAccount", "--profiling=false"])
            .args(&self.args);
        let mut running = self.lock();
        running.api_server = Some(self.spawn(command, "api-server.log")?);
        self.tell_keeper(&running)
    }

    fn spawn(&self, mut command: Command, log: &str) -> Result<Child> {
        let log = File::create(self.folder().join(log))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        command.spawn().with_context(|| format!("starting {:?}", command.get_program()))
    }

    async fn wait_until_ready(&self) -> Result<()> {
        let client = self.admin()?;
        eventually("the API server is ready", START_DEADLINE, async || {
            self.fail_if_ended()?;
            let request = http::Request::get("/readyz").body(Vec::new())?;
            Ok(client.request_text(request).await.ok().filter(|answer| answer == "ok").map(|_| ()))
        })
        .await
        .with_context(|| self.log_end("api-server.log"))
    }

    fn fail_if_ended(&self) -> Result<()> {
        let mut running = self.lock();
        let PlaneProcesses { etcd, api_server } = &mut *running;
        for (child, log) in [(etcd, "etcd.log"), (api_server, "api-server.log")] {
            if let Some(status) = child.as_mut().map(Child::try_wait).transpose()?.flatten() {
                bail!("it ended with {status}: {}", self.log_end(log));
            }
        }
        Ok(())
    }

    fn log_end(&self, name: &str) -> String {
        let text = std::fs::read_to_string(self.folder().join(name)).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    fn tell_keeper(&self, running: &PlaneProcesses) -> Result<()> {
        self.keeper.lock().unwrap_or_else(PoisonError::into_inner).keep(&pids(running))
    }

    pub(super) fn lock(&self) -> std::sync::MutexGuard<'_, PlaneProcesses> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        let running = self.running.get_mut().unwrap_or_else(PoisonError::into_inner);
        for child in [&mut running.api_server, &mut running.etcd].into_iter().flatten() {
            // Both fail only when it has ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
        // A process id may belong to another process by now, and that one must not be ended.
        let _ = self.keeper.get_mut().unwrap_or_else(PoisonError::into_inner).keep(&[]);
    }
}

fn pids(running: &PlaneProcesses) -> Vec<u32> {
    [&running.etcd, &running.api_server].into_iter().flatten().map(Child::id).collect()
}
