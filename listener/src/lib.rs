//! What every HTTP listener of Hush does the same, in the server and in the controller:
//!
//! ```text
//! accept -> ConnectionLimit (how many at a time) -> GuardedIo (time and shape of a head) -> hyper
//!        -> GuardedService (Host, Authorization, path) -> router -> shape_errors
//! ```
//! A refusal that is decided before the router is asked has the same body as those of the router: the listener says how
//! its errors look with a [`Shape`].

mod auth;
mod connections;
mod head;
mod holding_body;
mod io;
mod refusal;
mod serve;
mod service;

pub use auth::{Authenticate, Caller, ConnectionPeer, Denied};
pub use connections::{Admission, ConnectionLimit, Place};
pub use head::{HeadFault, check_head};
pub use holding_body::HoldingBody;
pub use io::GuardedIo;
pub use refusal::{Refusal, Shape, ShapeErrors, code, shape_errors};
pub use serve::{ListenOptions, serve};
pub use service::{GuardedService, RequestPhase, Route};

use std::time::Duration;

/// What a head may hold, and what a connection buffers of a body: more is answered with 431.
pub const HEAD_LIMIT_BYTES: usize = 64 << 10;

/// From the first byte of a head to its last. A client has all of it when it begins.
pub const HEAD_PATIENCE: Duration = Duration::from_secs(20);

/// Probes are answered also by a listener that has no place for further connections.
pub const PROBE_PATHS: [&str; 2] = ["/healthz", "/readyz"];

/// In the `Retry-After` of a listener without a free place.
pub const RETRY_AFTER_SECONDS: u64 = 5;

/// How long a connection without a place may take to ask.
pub const OVERFLOW_PATIENCE: Duration = Duration::from_secs(2);
