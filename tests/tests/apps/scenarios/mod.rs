//! The sidecar in front of apps: the same scenarios for each of them, and those of some apps alone.

mod adoption;
mod app_metrics;
mod every_app;
mod faults;
mod fixture;
mod life;
mod process_mode;
mod process_unload;
mod proxy_rules;
mod wrong_flags;
