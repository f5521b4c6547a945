//! What the app does by itself: the sidecar's record follows.

use anyhow::Result;
use hush_tests::apps::standins::ViolationKind;

use super::fixture::{LONG_DRAIN, Subject};
use crate::support::SOON;

pub fn loaded_model_is_adopted(subject: Subject) -> Result<()> {
    let Some(mut governed) = subject.prepare()? else { return Ok(()) };
    governed.app.start()?;
    if governed.app.is_loaded()? != Some(true) {
        governed.app.load_directly()?;
    }
    let loads_before = governed.journal()?.len();
    governed.start_sidecar(&[])?;
    governed.sidecar()?.wait_for_state("ready", SOON)?;
    assert_eq!(governed.sidecar()?.generation()?, 1);
    governed.short()?;
    assert_eq!(governed.sidecar()?.generation()?, 1, "it was not loaded again");
    governed.sidecar()?.unload_after_drain(LONG_DRAIN)?;
    governed.wait_until_app_has_model(false)?;
    assert!(governed.journal()?.len() >= loads_before);
    // A direct load is a request that comes while the model is away, where a request is the only way to load.
    governed.assert_no_violation_but(&[ViolationKind::RequestWhileAway])
}

pub fn model_that_left_by_itself_comes_back_as_a_new_generation(subject: Subject) -> Result<()> {
    let Some(governed) = subject.govern()? else { return Ok(()) };
    governed.make_ready()?;
    let before = governed.sidecar()?.generation()?;
    if !governed.app.unload_directly()? {
        return Ok(());
    }
    governed.sidecar()?.wait_for_state("unloaded", SOON)?;
    governed.short()?;
    assert_eq!(governed.sidecar()?.generation()?, before + 1);
    governed.assert_no_violation()
}

pub fn model_that_came_by_itself_is_a_new_generation(subject: Subject) -> Result<()> {
    let Some(governed) = subject.govern()? else { return Ok(()) };
    governed.make_away()?;
    let before = governed.sidecar()?.generation()?;
    governed.app.load_directly()?;
    governed.sidecar()?.wait_for_state("ready", SOON)?;
    assert_eq!(governed.sidecar()?.generation()?, before + 1);
    Ok(())
}
