//! An app whose needed flags are off is not governed, and the sidecar says which flag.

use std::time::Duration;

use anyhow::Result;
use hush_tests::apps::standins::StandInKind;
use hush_tests::apps::{RunningSidecar, SidecarOptions, StandInApp, TestedApp};
use hush_tests::wait::wait_for;

use super::fixture::Governed;
use crate::support::SOON;

fn assert_refused(kind: StandInKind, manner: &str, flag: &str) -> Result<()> {
    let governed = Governed::standin(kind, &["--manner", manner])?;
    let sidecar = governed.sidecar()?;
    wait_for(&format!("the sidecar names {flag}"), SOON, || {
        let readiness = sidecar.readiness()?;
        let says = readiness.text().contains(flag) || sidecar.log().iter().any(|line| line.contains(flag));
        Ok((readiness.status != 200 && says).then_some(()))
    })?;
    let answer = governed.send(&governed.app.short_call())?;
    assert_eq!(answer.status, 503, "{}", answer.text());
    Ok(())
}

#[test]
fn a_llama_server_with_autoload_is_refused() -> Result<()> {
    assert_refused(StandInKind::LlamaServer, "autoload", "--no-models-autoload")
}

#[test]
fn a_vllm_without_dev_mode_is_refused() -> Result<()> {
    assert_refused(StandInKind::Vllm, "no-dev-mode", "VLLM_SERVER_DEV_MODE")
}

#[test]
fn a_vllm_without_sleep_mode_is_refused() -> Result<()> {
    assert_refused(StandInKind::Vllm, "no-sleep-mode", "--enable-sleep-mode")
}

#[test]
fn a_triton_without_model_control_is_refused() -> Result<()> {
    assert_refused(StandInKind::Triton, "no-model-control", "--model-control-mode=explicit")
}

#[test]
fn an_sglang_without_memory_saver_is_refused() -> Result<()> {
    assert_refused(StandInKind::Sglang, "no-memory-saver", "--enable-memory-saver")
}

#[test]
fn an_sglang_without_a_backup_of_its_weights_is_refused() -> Result<()> {
    assert_refused(StandInKind::Sglang, "no-weights-backup", "--enable-weights-cpu-backup")
}

#[test]
fn another_program_on_the_port_is_not_taken_for_the_app() -> Result<()> {
    let mut other = StandInApp::new(StandInKind::Triton, &[])?;
    other.start()?;
    let upstream = format!("http://{}", other.address());
    let args = ["--app", "ollama", "--upstream", &upstream, "--model", "tiny"].map(str::to_owned).to_vec();
    let sidecar = RunningSidecar::start_with("tiny", &args, &SidecarOptions::default())?;
    wait_for("the sidecar is not ready", SOON, || Ok((sidecar.readiness()?.status == 503).then_some(())))?;
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(sidecar.readiness()?.status, 503);
    Ok(())
}
