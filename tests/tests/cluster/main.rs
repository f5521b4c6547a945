//! Against a real API server: what only it knows. One control plane for all tests, except for those that do harm to it
//! or whose controller looks at everything in it.

mod all_faults;
mod app_processes;
mod apps;
mod busy;
mod definitions;
mod edits;
mod expired;
mod faults;
mod fixture;
mod governs;
mod harness;
mod hostile;
mod hostile_leases;
mod hostile_reviews;
mod hostile_tls;
mod hostile_tokens;
mod installations;
mod leaders;
mod lease;
mod missing_rights;
mod pauses;
mod plugin;
mod policies;
mod refusals;
mod review;
mod rights;
mod scopes;
mod tenants;
mod tls;
mod versions;
