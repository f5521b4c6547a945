//! Harness of the end-to-end tests: a real `hush-server` process, a plain HTTP/1.1 client that writes exactly the bytes
//! it is given, the fixtures, and a look into `/proc`. One topic per file in `tests/`. `cluster` has a real API server.

pub mod apps;
pub mod cases;
pub mod child;
pub mod cluster;
pub mod controller;
pub mod cuda_double;
pub mod fixtures;
pub mod fleet;
pub mod gpus;
pub mod http;
pub mod https;
pub mod plugin;
pub mod process;
pub mod reference;
pub mod server;
pub mod wait;

pub use controller::Controller;
pub use server::{Server, ServerOptions};
