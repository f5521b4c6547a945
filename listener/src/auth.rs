//! Who is at the other end of a connection, and who is behind a bearer token.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use futures_util::future::BoxFuture;

/// The other end of the connection; an extension of each request.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionPeer {
    pub address: SocketAddr,
}

/// The client that gave a command, for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller(pub String);

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a client is refused. The texts are sent to the client and contain nothing of the credential.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denied {
    /// The credential is not known.
    Invalid(String),
    /// The credential is valid, and its owner has no permission.
    Forbidden(String),
    /// The service that checks the credential does not answer.
    Unavailable(String),
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Invalid(message) | Self::Forbidden(message) | Self::Unavailable(message)) = self;
        f.write_str(message)
    }
}

impl std::error::Error for Denied {}

/// Checks a bearer token.
pub trait Authenticate: Send + Sync + 'static {
    /// `peer`: the address that the request comes from, where it is known.
    fn authenticate<'a>(&'a self, token: &'a str, peer: Option<IpAddr>) -> BoxFuture<'a, Result<Caller, Denied>>;
}
