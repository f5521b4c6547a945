//! Checkpoints from the Hugging Face hub, or from anything that speaks its protocol.
//!
//! ```text
//! name -> Repo -> Listing (which files, which digests) -> download: resume, verify, rename -> checkpoint folder
//! ```
//!
//! Blocking: call it from a thread of its own.

mod client;
mod config;
mod digest;
mod download;
mod error;
mod listing;
mod local;
mod names;

pub use config::{HubConfig, Patience, Token};
pub use download::{Checkpoint, Event, download};
pub use error::HubError;
pub use local::local_copies;
pub use names::{Repo, folder_of, short_names};
