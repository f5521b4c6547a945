//! Against a real API server: what only it knows. One control plane for all tests, except for those that do harm to it
//! or whose controller looks at everything in it.

mod all_faults;
mod busy;
mod definitions;
mod edits;
mod expired;
mod faults;
mod governs;
mod harness;
mod hostile;
mod leaders;
mod lease;
mod plugin;
mod policies;
mod refusals;
mod review;
mod rights;
mod scopes;
mod stage;
mod tenants;
mod versions;
