//! From decisions to commands, and what became of them.

mod audit;
mod backoff;
mod command;
mod executor;
mod presence;

pub use audit::{Audit, Record};
pub use backoff::{Backoff, Verdict};
pub use command::Outcome;
pub use executor::{Closed, Executor, Gate, Open};
pub use presence::Presence;
