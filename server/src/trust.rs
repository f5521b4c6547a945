//! HTTPS as a client: certificates that the system trusts, checked by the one provider of this program.

use std::sync::Arc;

use ureq::tls::{RootCerts, TlsConfig};

pub fn tls() -> TlsConfig {
    TlsConfig::builder()
        .root_certs(RootCerts::PlatformVerifier)
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .build()
}
