//! The rules, one per file, in the order in which a step applies them to each GPU. `docs/policies.md` has them in words.

pub mod budget;
pub mod idle;
pub mod make_room;
pub mod pressure;
pub mod warm;
