//! Who somebody is: keys from a file, or tokens that Kubernetes vouches for. No credential is ever logged or kept; what
//! is kept is its SHA-256.

mod keys;
mod review;

use sha2::{Digest as _, Sha256};

pub use hush_listener::{Authenticate, Caller, Denied};
pub use keys::{KeyFile, Keys};
pub use review::{Account, ApiServer, InvalidApiServer, ReviewSettings, TokenReview};

/// What is kept of a credential.
type Digest = [u8; 32];

fn digest(credential: &str) -> Digest {
    Sha256::digest(credential.as_bytes()).into()
}
