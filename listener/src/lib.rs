//! The common part of all HTTP listeners of Hush, in the server and in the controller:
//!
//! ```text
//! accept -> ConnectionLimit (number of connections) -> GuardedIo (time and size of a head) -> hyper
//!        -> GuardedService (Host, Authorization, path) -> router -> format_errors
//! ```
//! A refusal before the router has the same body as the router's own errors: the listener defines the body of its errors with an
//! [`ErrorFormat`].

mod accept;
mod auth;
pub mod budget;
mod connections;
mod free_port;
mod head;
pub mod header;
mod holding_body;
mod io;
pub mod multipart;
pub mod open_files;
mod refusal;
mod request_id;
mod serve;
mod service;
pub mod spool;

pub use accept::{AcceptOptions, AcceptedConnection, accept_connections};
pub use auth::{AccessDenied, Authenticate, Caller, ConnectionPeer};
pub use connections::{ConnectionAdmission, ConnectionLimit, ConnectionSlot};
pub use free_port::free_port;
pub use head::{HeadFault, check_head};
pub use holding_body::HoldingBody;
pub use io::GuardedIo;
pub use refusal::{ErrorFormat, FormatErrors, ListenerRefusal, code, format_errors};
pub use request_id::{REQUEST_ID, request_id};
pub use serve::{ListenOptions, serve, serve_after_handshake};
pub use service::{GuardedService, InRequest, RequestPhase, RouteScope};

use std::time::Duration;

/// Limit for a request head, and for what a connection buffers of a body. A larger head is answered with 431.
pub const HEAD_LIMIT_BYTES: usize = 64 << 10;

/// Timeout from the first to the last byte of a head. A client has the whole head when it begins to send.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(20);

/// Paths of probes, which are answered also when no connection slot is free.
pub const PROBE_PATHS: [&str; 2] = ["/healthz", "/readyz"];

/// Value of `Retry-After` in the answer of a listener without a free slot.
pub const RETRY_AFTER_SECONDS: u64 = 5;

/// Timeout for the request of a connection without a slot.
pub const OVERFLOW_TIMEOUT: Duration = Duration::from_secs(2);
