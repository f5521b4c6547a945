//! Why a download failed. The messages tell what the operator can do.

use std::path::PathBuf;
use std::time::Duration;

#[derive(Debug, thiserror::Error)]
pub enum HubError {
    #[error("{0:?} is not a name of a model on the hub; expected OWNER/NAME, such as openai/whisper-base")]
    BadName(String),
    #[error("HF_ENDPOINT is {0:?}; expected a URL such as https://huggingface.co")]
    BadEndpoint(String),
    #[error("HF_HUB_OFFLINE is set, so `{repo}` is not downloaded; give a checkpoint folder: hush-server install DIR")]
    Offline { repo: String },
    #[error(
        "the hub refuses `{repo}` ({status}): it does not exist, or it is private or gated. {advice}",
        advice = if *.had_token {
            "The token that was sent does not open it: check its rights, and accept the model's terms on its page"
        } else {
            "Accept the model's terms on its page if it has any, and set HF_TOKEN to a token that may read it"
        }
    )]
    Forbidden { repo: String, status: u16, had_token: bool },
    #[error("there is no model `{repo}` at {endpoint}")]
    NoRepository { repo: String, endpoint: String },
    #[error("`{repo}` has no revision `{revision}`; a branch, a tag or a commit is expected")]
    NoRevision { repo: String, revision: String },
    #[error("`{repo}` holds no {file}")]
    NoFile { repo: String, file: String },
    #[error(
        "`{repo}` holds neither model.safetensors nor model.safetensors.index.json nor the model.bin of CTranslate2, so it is \
         not a checkpoint that can be installed"
    )]
    NoWeights { repo: String },
    #[error("`{repo}` has neither tokenizer.json nor vocab.json with merges.txt")]
    NoTokenizer { repo: String },
    #[error("{file} of `{repo}` is damaged: {algorithm} {found}, expected {expected}; it was removed, try again")]
    WrongDigest { repo: String, file: String, algorithm: &'static str, expected: String, found: String },
    #[error("{file} of `{repo}` has {found} bytes, expected {expected}; it was removed, try again")]
    WrongSize { repo: String, file: String, expected: u64, found: u64 },
    #[error(
        "{file} of `{repo}` is longer than the {expected} bytes that the hub lists; the download was stopped and what came was \
         removed. If this is a mirror, it serves another file than it lists"
    )]
    TooLong { repo: String, file: String, expected: u64 },
    #[error(
        "{from} redirects to {to}, which is {place}: a redirect must not lead to an address that only this machine or its \
         network can reach. If a mirror of your own is meant, name it in HF_ENDPOINT"
    )]
    Inward { from: String, to: String, place: String },
    #[error("the hub's answer about {what} is not valid: {problem}")]
    InvalidAnswer { what: String, problem: String },
    #[error("{url} answered {status}{reason}")]
    Status { url: String, status: u16, reason: String },
    #[error("{cause}; gave up after {} s without a byte, the next run goes on from what is there", .tried.as_secs())]
    GaveUp {
        tried: Duration,
        #[source]
        cause: Box<HubError>,
    },
    #[error("{url}: the connection ended after {found} of {expected} bytes")]
    Truncated { url: String, expected: u64, found: u64 },
    #[error("{url}: {cause}")]
    Transport {
        url: String,
        #[source]
        cause: Box<ureq::Error>,
    },
    #[error("the download needs {needed} bytes in {}, where {free} are free", .dir.display())]
    DiskFull { dir: PathBuf, needed: u64, free: u64 },
    #[error("{}: {cause}", .path.display())]
    Disk {
        path: PathBuf,
        #[source]
        cause: std::io::Error,
    },
}

impl HubError {
    pub(super) fn disk(path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |cause| Self::Disk { path, cause }
    }

    /// Whether the hub has no checkpoint in this repository for this client: another repository may have one. The hub
    /// refuses to say whether a repository that does not exist is private.
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::NoRepository { .. } | Self::Forbidden { .. } | Self::NoWeights { .. })
    }

    /// Whether the same request may succeed later.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::Truncated { .. } => true,
            Self::Status { status, .. } => matches!(status, 408 | 425 | 429 | 500..=599),
            Self::Transport { cause, .. } => match &**cause {
                // What TLS refuses, such as a certificate, it refuses again.
                ureq::Error::Io(error) => error.kind() != std::io::ErrorKind::InvalidData,
                ureq::Error::Timeout(_)
                | ureq::Error::ConnectionFailed
                | ureq::Error::Protocol(_)
                | ureq::Error::HostNotFound => true,
                _ => false,
            },
            _ => false,
        }
    }
}
