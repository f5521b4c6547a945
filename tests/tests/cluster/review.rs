//! Who may command a server: tokens of service accounts, looked at by a real API server.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hush_tests::cluster::{ControlPlane, ForgedToken, Namespace, PodAt, Rights};
use hush_tests::wait::wait_for;
use hush_tests::{Server, ServerOptions, fixtures, http as plain};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::DeleteParams;
use tempfile::TempDir;

const CONTROLLER: &str = "hush-controller";
const SOON: Duration = Duration::from_secs(60);

/// The account of the server's pod, under which a controller beside it acts.
const SERVER: &str = "hush-server";
const POD: &str = "server";

/// A server in the cluster: it lets in the account of the controller, and that of its own pod.
pub struct ReviewingServer {
    pub server: Server,
    pub namespace: Namespace,
    /// The audience of tokens for this server.
    pub audience: String,
    own_token: PathBuf,
    _folder: TempDir,
}

fn pod(name: &str, account: &str) -> PodAt<'static> {
    let (name, account) = (name.to_owned().leak(), account.to_owned().leak());
    PodAt { name, node: "n1", account, labels: &[], annotations: &[], ports: &[], ip: Ipv4Addr::LOCALHOST }
}

impl ReviewingServer {
    pub async fn start(plane: &ControlPlane) -> Result<Self> {
        let namespace = plane.namespace("review", &[]).await?;
        plane.grant(&namespace, Rights::Server)?;
        plane.grant(&namespace, Rights::Controller)?;
        let folder = tempfile::tempdir()?;
        let own_token = folder.path().join("token");
        fs::write(&own_token, namespace.token(SERVER, None).await?)?;
        let accounts = [CONTROLLER, SERVER].map(|account| format!("{}:{account}", namespace.name)).join(",");
        let pod_uid = namespace.create_pod(&pod(POD, SERVER)).await?;
        let (url, text) = (plane.url(), |path: &std::path::Path| path.to_string_lossy().into_owned());
        let args = [
            "--admin-token-review",
            "--kubernetes-api",
            &url,
            "--kubernetes-ca",
            &text(plane.ca_file()),
            "--kubernetes-token",
            &text(&own_token),
            "--pod-namespace",
            &namespace.name,
            "--pod-uid",
            &pod_uid,
        ];
        let server = Server::start_with(ServerOptions {
            args: args.map(str::to_owned).to_vec(),
            env: vec![("HUSH_ADMIN_ACCOUNT".to_owned(), accounts)],
            ..ServerOptions::default()
        })?;
        let audience = format!("hush-server/{}/{pod_uid}", namespace.name);
        Ok(Self { server, namespace, audience, own_token, _folder: folder })
    }

    /// A command that changes nothing: the model is not loaded. Gives the status and the code of the refusal.
    pub fn command(&self, token: Option<&str>) -> Result<(u16, String)> {
        let answer = command(self.server.ops, token)?;
        let code = answer.json()?["code"].as_str().unwrap_or_default().to_owned();
        Ok((answer.status, code))
    }

    /// A token of the controller for this server.
    pub async fn good_token(&self) -> Result<String> {
        self.namespace.token(CONTROLLER, Some(&self.audience)).await
    }

    fn refused(&self, what: &str, token: Option<&str>, status: u16, code: &str) -> Result<()> {
        let found = self.command(token)?;
        ensure!(found == (status, code.to_owned()), "{what}: {found:?}");
        Ok(())
    }
}

fn command(ops: SocketAddr, token: Option<&str>) -> Result<plain::Response> {
    let authorization = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
    let (model, body) = (fixtures::MODEL, "{}");
    let request = format!(
        "POST /admin/v1/models/{model}/unload HTTP/1.1\r\nHost: {ops}\r\nContent-Type: application/json\r\n\
         {authorization}Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    plain::exchange(ops, request.as_bytes())
}

#[tokio::test]
async fn only_the_controllers_token_for_servers_commands_a_server() -> Result<()> {
    let Some(plane) = ControlPlane::shared().await? else { return Ok(()) };
    let guarded = ReviewingServer::start(plane).await?;
    let namespace = &guarded.namespace;
    let uid = namespace.api::<ServiceAccount>().get(CONTROLLER).await?.metadata.uid.context("no uid")?;
    assert_eq!(guarded.command(Some(&guarded.good_token().await?))?, (200, String::new()));
    guarded.refused("no token", None, 401, "unauthenticated")?;
    guarded.refused("no token at all", Some("of-my-own-making"), 401, "invalid_token")?;
    let other_server = format!("{}-2", guarded.audience);
    for (what, audience) in [
        ("another audience", Some("another-server")),
        ("the audience of all servers", Some("hush-server")),
        ("another server's audience", Some(other_server.as_str())),
        ("the API server's own audience", None),
    ] {
        guarded.refused(what, Some(&namespace.token(CONTROLLER, audience).await?), 401, "invalid_token")?;
    }
    namespace.service_account("tenant").await?;
    let other = namespace.token("tenant", Some(&guarded.audience)).await?;
    guarded.refused("another account", Some(&other), 403, "forbidden")?;
    let elsewhere = plane.namespace("elsewhere", &[]).await?;
    elsewhere.service_account(CONTROLLER).await?;
    let other = elsewhere.token(CONTROLLER, Some(&guarded.audience)).await?;
    guarded.refused("the same name in another namespace", Some(&other), 403, "forbidden")?;
    // Signed here, since the API server makes no token that expires while a test waits. The same with time left is good.
    for (expires_in_seconds, status, code) in [(600, 200, ""), (-60, 401, "invalid_token")] {
        let claims = ForgedToken {
            namespace: &namespace.name,
            account: CONTROLLER,
            account_uid: &uid,
            audience: &guarded.audience,
            expires_in_seconds,
        };
        guarded.refused(&format!("{expires_in_seconds} s left"), Some(&plane.sign(&claims)?), status, code)?;
    }
    let log = guarded.server.log().join("\n");
    let caller = format!("system:serviceaccount:{}:{CONTROLLER}", namespace.name);
    assert!(log.contains(&caller), "the log says who gave the command");
    Ok(())
}

#[tokio::test]
async fn a_token_dies_with_its_pod_and_with_its_account() -> Result<()> {
    let Some(plane) = ControlPlane::shared().await? else { return Ok(()) };
    let guarded = ReviewingServer::start(plane).await?;
    let namespace = &guarded.namespace;
    namespace.pod(&pod("controller", CONTROLLER)).await?;
    // Never shown before, so that no verdict is remembered.
    let bound = namespace.token_of_pod(CONTROLLER, &guarded.audience, "controller").await?;
    let other = namespace.token_of_pod(CONTROLLER, &guarded.audience, "controller").await?;
    assert_eq!(guarded.command(Some(&bound))?.0, 200);
    namespace.delete_pod("controller").await?;
    // The API server itself knows of a deletion after a moment.
    let wait_until_refused = |token: String| {
        wait_for("the token is refused", SOON, || {
            Ok((guarded.command(Some(&token))? == (401, "invalid_token".to_owned())).then_some(()))
        })
    };
    wait_until_refused(other)?;
    let last = guarded.good_token().await?;
    namespace.api::<ServiceAccount>().delete(CONTROLLER, &DeleteParams::default()).await?;
    wait_until_refused(last)
}

/// As a controller beside the server has one: the audience is that of every server, and the pod that it is bound to is not.
#[tokio::test]
async fn a_token_of_the_servers_own_pod_commands_it_and_that_of_another_pod_does_not() -> Result<()> {
    let Some(plane) = ControlPlane::shared().await? else { return Ok(()) };
    let guarded = ReviewingServer::start(plane).await?;
    let namespace = &guarded.namespace;
    let own = namespace.token_of_pod(SERVER, "hush-server", POD).await?;
    assert_eq!(guarded.command(Some(&own))?, (200, String::new()));

    namespace.pod(&pod("another", SERVER)).await?;
    let other = namespace.token_of_pod(SERVER, "hush-server", "another").await?;
    guarded.refused("a token of another pod", Some(&other), 401, "invalid_token")?;
    let unbound = namespace.token(SERVER, Some("hush-server")).await?;
    guarded.refused("a token of no pod", Some(&unbound), 401, "invalid_token")
}

#[tokio::test]
async fn a_server_that_may_not_review_refuses_every_token_and_says_what_it_needs() -> Result<()> {
    let Some(plane) = ControlPlane::shared().await? else { return Ok(()) };
    let guarded = ReviewingServer::start(plane).await?;
    let namespace = &guarded.namespace;
    namespace.service_account("powerless").await?;
    // The server's own token is rotated, and the account of the new one may not review.
    let shipped = fs::read_to_string(&guarded.own_token)?;
    fs::write(&guarded.own_token, namespace.token("powerless", None).await?)?;
    let wait_for_status = |token: &str, status: u16| {
        wait_for(&format!("status {status}"), SOON, || {
            let answer = command(guarded.server.ops, Some(token))?;
            Ok((answer.status == status).then(|| answer.text()))
        })
    };
    let token = guarded.good_token().await?;
    // Each try with a token that no verdict is remembered of would be another; a refusal to answer is never remembered.
    let said = wait_for_status(&token, 503)?;
    assert!(said.contains("it is called `NAMESPACE-NAME-server`"), "{said}");
    fs::write(&guarded.own_token, shipped)?;
    wait_for_status(&token, 200).map(drop)
}

#[tokio::test]
async fn without_the_api_server_no_command_is_accepted() -> Result<()> {
    let Some(plane) = ControlPlane::start().await? else { return Ok(()) };
    let guarded = ReviewingServer::start(&plane).await?;
    let token = guarded.good_token().await?;
    plane.stop_api_server()?;
    guarded.refused("the API server is away", Some(&token), 503, "authentication_unavailable")?;
    plane.start_api_server().await?;
    assert_eq!(guarded.command(Some(&token))?.0, 200);
    // A good verdict holds for ten seconds, and no longer.
    plane.stop_api_server()?;
    wait_for("the verdict is forgotten", SOON, || Ok((guarded.command(Some(&token))?.0 == 503).then_some(())))
}
