//! Who may use a listener, and how it proves who it is: keys from a file, tokens that the Kubernetes API server confirms,
//! and certificates. Files are read again when they change. No credential is logged or kept; only its SHA-256 is kept.

mod keys;
mod review;
mod review_options;
mod tls;
mod watch;

use sha2::{Digest as _, Sha256};

pub use hush_listener::{AccessDenied, Authenticate, Caller};
pub use keys::{ApiKeys, InvalidKeys, KeyFile};
pub use review::{ApiServer, InvalidApiServer, InvalidServiceAccount, ReviewSettings, ServiceAccount, TokenReview};
pub use review_options::{ReviewOptions, ReviewOptionsError};
pub use tls::{Tls, TlsOptionsError};
pub use tokio_rustls::server::TlsStream;
pub use watch::{ContentError, WatchError, WatchedFiles};

/// SHA-256 of a credential.
type CredentialDigest = [u8; 32];

fn digest(credential: &str) -> CredentialDigest {
    Sha256::digest(credential.as_bytes()).into()
}
