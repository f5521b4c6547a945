//! The command line, the configuration file, and the life of the sidecar.

mod args;
mod check;
mod config;
mod gpu;
mod limits;
mod ops;
mod run;
mod values;

pub use args::{SidecarArgs, SidecarCli, SidecarCommand};
pub use check::{check_description, describe};
pub use config::{SidecarConfigError, SidecarFile};
pub use run::run;
