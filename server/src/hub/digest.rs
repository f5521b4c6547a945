//! The digests by which the hub identifies the content of a file: SHA-256 for large files, the git blob id for small ones.

use std::fmt::Write as _;

use sha1::Sha1;
use sha2::{Digest as _, Sha256};

/// The expected digest of a file, in lower-case hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContentDigest {
    Sha256(String),
    /// SHA-1 of `blob <length>\0` and the content.
    GitBlob(String),
}

impl ContentDigest {
    /// Parses an `ETag` or `X-Linked-Etag`. A weak or foreign tag does not identify the content.
    pub fn from_etag(tag: &str) -> Option<Self> {
        let tag = tag.trim();
        if tag.starts_with("W/") {
            return None;
        }

        let tag = tag.trim_matches('"');
        let hex = tag.bytes().all(|byte| byte.is_ascii_hexdigit());
        match tag.len() {
            64 if hex => Some(Self::Sha256(tag.to_ascii_lowercase())),
            40 if hex => Some(Self::GitBlob(tag.to_ascii_lowercase())),
            _ => None,
        }
    }

    pub const fn algorithm(&self) -> &'static str {
        match self {
            Self::Sha256(_) => "SHA-256",
            Self::GitBlob(_) => "git blob id",
        }
    }

    pub fn hex(&self) -> &str {
        match self {
            Self::Sha256(hex) | Self::GitBlob(hex) => hex,
        }
    }

    /// A hasher for a file of `length` bytes.
    pub fn hasher(&self, length: u64) -> ContentHasher {
        match self {
            Self::Sha256(_) => ContentHasher::Sha256(Sha256::new()),
            Self::GitBlob(_) => {
                let mut hasher = Sha1::new();
                hasher.update(format!("blob {length}\0"));
                ContentHasher::GitBlob(hasher)
            }
        }
    }
}

/// Computes a digest of the same kind.
pub enum ContentHasher {
    Sha256(Sha256),
    GitBlob(Sha1),
}

impl ContentHasher {
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::GitBlob(hasher) => hasher.update(bytes),
        }
    }

    pub fn hex(self) -> String {
        let bytes = match self {
            Self::Sha256(hasher) => hasher.finalize().to_vec(),
            Self::GitBlob(hasher) => hasher.finalize().to_vec(),
        };
        bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags() {
        let sha256 = "a".repeat(64);
        assert_eq!(ContentDigest::from_etag(&format!("\"{sha256}\"")), Some(ContentDigest::Sha256(sha256)));
        let blob = "0123456789abcdef0123456789ABCDEF01234567";
        assert_eq!(ContentDigest::from_etag(blob), Some(ContentDigest::GitBlob(blob.to_ascii_lowercase())));
        assert_eq!(ContentDigest::from_etag("W/\"0123456789abcdef0123456789abcdef01234567\""), None);
        assert_eq!(ContentDigest::from_etag("\"d41d8cd98f00b204e9800998ecf8427e-3\""), None);
    }

    #[test]
    fn known_digests() {
        let digest = |kind: ContentDigest, content: &[u8]| {
            let mut hasher = kind.hasher(content.len() as u64);
            hasher.update(content);
            hasher.hex()
        };

        // `printf 'hello\n' | git hash-object --stdin`
        assert_eq!(
            digest(ContentDigest::GitBlob(String::new()), b"hello\n"),
            "ce013625030ba8dba906f756967f9e9ca394464a"
        );
        assert_eq!(
            digest(ContentDigest::Sha256(String::new()), b"abc"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }
}
