//! What must hold in every world: properties of one step, of many steps, and of the merge of policies.

mod merge;
mod one_step;
mod over_time;
mod residency;
mod support;
