//! Leader election by a Kubernetes Lease: one of several controllers may act.
//!
//! The holder renews the lease every few seconds. Its claim lasts for two thirds of the lease duration, counted from the
//! moment at which it *sent* its last successful write. Another candidate waits for the whole lease duration, counted from
//! the moment at which it *observed* the last change. Each of them uses only its own clock, and a write is sent before it
//! can be observed. So a claim ends before another can begin, however the clocks differ and however long messages take.
//!
//! [`candidate`] decides, without a clock and without a cluster; [`elector`] carries out the decisions.

pub mod candidate;
mod changes;
mod claim;
mod clock;
mod elector;
mod observer;

pub use candidate::{ClaimLoss, LeaseTiming};
pub use claim::{Claim, Standing};
pub use clock::BootInstant;
pub use elector::{Contender, Elector, LeaseName, identity};
pub use observer::LeaderWatcher;
