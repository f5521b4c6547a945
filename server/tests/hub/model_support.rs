//! The writers that the engine's tests of checkpoint formats use.

#![allow(dead_code, reason = "the rest is for the tests of the engine")]

#[path = "../../whisper/tests/model/support/checkpoints.rs"]
pub mod checkpoints;
#[path = "../../whisper/tests/model/support/formats.rs"]
pub mod formats;
#[path = "../../whisper/tests/model/support/random.rs"]
pub mod random;

pub fn bundled() -> std::path::PathBuf {
    crate::checkpoint()
}
