//! Downloads checkpoints from the Hugging Face hub, or from a server with the same protocol.
//!
//! ```text
//! name -> Repo -> RepositoryListing (files and digests) -> download: resume, verify, rename -> checkpoint folder
//! ```
//!
//! Everything here blocks, so it must be called from a thread of its own.

mod client;
mod config;
mod digest;
mod download;
mod error;
mod listing;
mod local;
mod names;
mod network_scope;

pub use config::{HubConfig, HubEnvironment, HubToken, RetryPolicy};
pub use download::{DownloadEvent, DownloadedCheckpoint, download};
pub use error::HubError;
pub use local::local_copies;
pub use names::{Repo, folder_of, short_names};
