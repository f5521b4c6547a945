//! From decisions to commands, and the results of the commands.

mod audit;
mod backoff;
mod command;
mod credential;
mod executor;
mod gate;
mod heartbeat;
mod limits;
#[cfg(test)]
pub(crate) mod test_decision;
mod unverified;

pub use audit::{Audit, CommandRecord};
pub use backoff::{Backoff, CommandVerdict};
pub use command::CommandResult;
pub use credential::{NoToken, ServerCredentials, TokenFile};
pub use executor::{CommandTarget, Executor};
pub use gate::{ActionRefusal, DryRunGate, Gate, OpenGate};
pub use heartbeat::Heartbeat;
pub use limits::{CommandLimits, LimitReached};
pub use unverified::UnverifiedUnloads;
