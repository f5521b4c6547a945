//! Keys, certificates and tokens of one control plane.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rcgen::{CertifiedKey, KeyPair, generate_simple_self_signed};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use serde_json::json;

pub const ISSUER: &str = "https://kubernetes.default.svc";
/// The token of a user with all rights, in an API server that only this machine reaches.
pub const ADMIN_TOKEN: &str = "the-tests-may-do-everything";

/// What `write` has put into a folder.
pub struct PlaneCredentials {
    /// Signed by itself, so it is also what a client trusts.
    pub certificate: PathBuf,
    pub certificate_der: Vec<u8>,
    pub key: PathBuf,
    /// Signs the tokens of service accounts.
    pub account_key: PathBuf,
    /// What those signatures are checked with: the API server takes no private key in this form for it.
    pub account_public_key: PathBuf,
    account_key_pkcs8: Vec<u8>,
    /// Tokens of users who are no service accounts.
    pub users: PathBuf,
}

/// A token that the API server itself would not make.
pub struct ForgedToken<'a> {
    pub namespace: &'a str,
    pub account: &'a str,
    pub account_uid: &'a str,
    pub audience: &'a str,
    /// Negative: it has expired.
    pub expires_in_seconds: i64,
}

impl PlaneCredentials {
    pub fn write(folder: &Path) -> Result<Self> {
        let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed(names)?;
        let account_key = KeyPair::generate()?;
        let file = |name: &str, content: &str| -> Result<PathBuf> {
            let path = folder.join(name);
            std::fs::write(&path, content).with_context(|| format!("writing {}", path.display()))?;
            Ok(path)
        };
        Ok(Self {
            certificate: file("api-server.crt", &cert.pem())?,
            certificate_der: cert.der().to_vec(),
            key: file("api-server.key", &signing_key.serialize_pem())?,
            account_key: file("accounts.key", &account_key.serialize_pem())?,
            account_public_key: file("accounts.pub", &account_key.public_key_pem())?,
            account_key_pkcs8: account_key.serialize_der(),
            users: file("users.csv", &format!("{ADMIN_TOKEN},admin,admin,system:masters\n"))?,
        })
    }

    /// A token as the API server makes them, but for any time.
    pub fn sign(&self, claims: &ForgedToken<'_>) -> Result<String> {
        let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())?;
        let ForgedToken { namespace, account, account_uid, audience, expires_in_seconds } = claims;
        let expiry = now + expires_in_seconds;
        let payload = json!({
            "iss": ISSUER,
            "sub": format!("system:serviceaccount:{namespace}:{account}"),
            "aud": [audience],
            "iat": expiry - 600,
            "nbf": expiry - 600,
            "exp": expiry,
            "kubernetes.io": {"namespace": namespace, "serviceaccount": {"name": account, "uid": account_uid}},
        });
        let part = |json: &serde_json::Value| URL_SAFE_NO_PAD.encode(json.to_string());
        let signed = format!("{}.{}", part(&json!({"alg": "ES256", "typ": "JWT"})), part(&payload));
        let random = SystemRandom::new();
        let failed = |_| anyhow::anyhow!("signing failed");
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &self.account_key_pkcs8, &random)
            .map_err(|error| anyhow::anyhow!("the key of the accounts: {error}"))?;
        let signature = key.sign(&random, signed.as_bytes()).map_err(failed)?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}
