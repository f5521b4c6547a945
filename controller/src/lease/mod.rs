//! Who may act: of several controllers one, by a Lease of Kubernetes.
//!
//! The holder writes the lease anew every few seconds. Its claim lasts for two thirds of the lease's duration from the
//! moment at which it *sent* its last successful write; whoever else wants the lease waits for the whole duration from
//! the moment at which it *saw* the last change. Both judge by their own clock alone, and what was sent was sent before
//! anybody saw it, so a claim is over before another can begin, whatever the clocks say and however long messages take.
//!
//! The decision is in [`candidate`], without a clock and without a cluster; [`elector`] carries it out.

pub mod candidate;
mod changes;
mod claim;
mod clock;
mod elector;
mod sight;

pub use candidate::{Loss, Terms};
pub use claim::{Claim, Standing};
pub use clock::Moment;
pub use elector::{Contender, Elector, LeaseName, identity};
pub use sight::{Leader, Sight};
