//! Authentication: keys from a file, or tokens that the Kubernetes API server confirms. No credential is logged or
//! kept; only its SHA-256 is kept.

mod keys;
mod review;

use sha2::{Digest as _, Sha256};

pub use hush_listener::{AccessDenied, Authenticate, Caller};
pub use keys::{ApiKeys, InvalidKeys, KeyFile};
pub use review::{ApiServer, InvalidApiServer, InvalidServiceAccount, ReviewSettings, ServiceAccount, TokenReview};

/// SHA-256 of a credential.
type CredentialDigest = [u8; 32];

fn digest(credential: &str) -> CredentialDigest {
    Sha256::digest(credential.as_bytes()).into()
}
