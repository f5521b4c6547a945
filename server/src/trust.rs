//! TLS as a client: trusts the certificates of the system, and uses the one crypto provider of this program.

use std::sync::Arc;

use ureq::tls::{RootCerts, TlsConfig};

pub fn tls() -> TlsConfig {
    TlsConfig::builder()
        .root_certs(RootCerts::PlatformVerifier)
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .build()
}
