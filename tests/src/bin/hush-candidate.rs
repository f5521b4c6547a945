//! Stands for a lease and, while its claim is current, does something that is seen: a line with the time and its name in
//! a file that all candidates share.
//!
//! usage: hush-candidate URL CA_FILE TOKEN NAMESPACE LEASE LEASE_SECONDS NAME FILE

use std::fs::OpenOptions;
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use hush_controller::lease::{BootInstant, Contender, Elector, LeaseName, LeaseTiming, identity};
use kube::config::AuthInfo;
use kube::{Client, Config};
use tokio::signal::unix::{SignalKind, signal};

const PAUSE: Duration = Duration::from_millis(10);

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [url, ca_file, token, namespace, name, seconds, own, file] = args.as_slice() else {
        anyhow::bail!("usage: hush-candidate URL CA_FILE TOKEN NAMESPACE LEASE LEASE_SECONDS NAME FILE");
    };
    let mut config = Config::new(url.parse()?);
    config.root_cert_file = Some(ca_file.into());
    config.auth_info = AuthInfo { token: Some(token.clone().into()), ..AuthInfo::default() };
    let terms = LeaseTiming::new(Duration::from_secs(seconds.parse()?)).context("LEASE_SECONDS is out of bounds")?;
    let lease = LeaseName { namespace: namespace.clone(), name: name.clone() };
    let contender = Contender { identity: identity()?, installation: namespace.clone() };
    let (elector, claim) = Elector::new(Client::try_from(config)?, lease, contender, terms);
    let mut ends = signal(SignalKind::terminate())?;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let election = tokio::spawn(elector.run(async {
        let _ = stopped.await;
    }));
    let mut acts = OpenOptions::new().create(true).append(true).open(file)?;
    while !election.is_finished() {
        if claim.is_current() {
            writeln!(acts, "{} {own}", BootInstant::now().since_boot().as_micros())?;
        }
        tokio::select! {
            _ = ends.recv() => break,
            () = tokio::time::sleep(PAUSE) => {}
        }
    }
    // The last act is behind us.
    let _ = stop.send(());
    Ok(election.await??)
}
