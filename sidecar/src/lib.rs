//! `hush-sidecar`: governs another model server from outside, so that it gives its device memory back as `hush-server`
//! does. It is a reverse proxy in front of an app. Requests wait in the sidecar while their model is away; the sidecar
//! loads and unloads models through the app's own API, or by starting and stopping the app.
//!
//! ```text
//! client -> proxy -> ModelHandle (hush-residency: gate, leases, conditions, holds) -> upstream -> app
//!                    SidecarRunners -> app's API (app + upstream) or the app's process (process)
//!                    watch: polls the app, so that what it does by itself becomes known
//! ```
//!
//! | module | holds |
//! |---|---|
//! | `app` | what each kind of app says and understands: pure, described by one YAML file per app |
//! | `upstream` | HTTP connections to the app |
//! | `proxy` | the public listener: attribution of requests to models, waiting, streaming, websockets |
//! | `process` | an app that the sidecar starts itself: process group, readiness, end, escaped children |
//! | `status` | what is known of the app as a whole |
//! | `runner` | the runners that are plugged into the life of a model, and the watch over the app |
//! | `cli` | options, configuration file, start and end |

pub mod app;
pub mod cli;
pub mod process;
pub mod proxy;
pub mod runner;
pub mod status;
pub mod upstream;
