//! From decisions to commands, and what became of them.

mod audit;
mod backoff;
mod command;
mod credential;
mod executor;
mod limits;
mod presence;
mod unproven;

pub use audit::{Audit, Record};
pub use backoff::{Backoff, Verdict};
pub use command::Outcome;
pub use credential::{Credentials, NoToken, TokenFile};
pub use executor::{Closed, Executor, Gate, Open, Recipient};
pub use limits::{CommandLimits, LimitReached};
pub use presence::Presence;
pub use unproven::UnprovenUnloads;
