//! Which hub, with which token: the variables of the hub's own Python client.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::HubError;
use crate::cli::Env;

/// How long to go on when the network fails.
#[derive(Clone, Debug)]
pub struct Patience {
    /// A connection that gives no byte for this long is given up and made again.
    pub read_timeout: Duration,
    pub connect_timeout: Duration,
    /// First pause between two tries; it doubles up to `longest_pause`.
    pub pause: Duration,
    pub longest_pause: Duration,
    /// The end of all tries, counted from the last byte that arrived.
    pub give_up_after: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            read_timeout: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(15),
            pause: Duration::from_millis(500),
            longest_pause: Duration::from_secs(15),
            give_up_after: Duration::from_secs(120),
        }
    }
}

/// A secret that no log shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    pub(super) fn header(&self) -> String {
        format!("Bearer {}", self.0)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(...)")
    }
}

#[derive(Clone, Debug)]
pub struct HubConfig {
    /// Without a slash at the end.
    pub endpoint: String,
    pub token: Option<Token>,
    pub offline: bool,
    pub patience: Patience,
}

impl HubConfig {
    /// From `HF_ENDPOINT`, `HF_TOKEN`, `HUGGING_FACE_HUB_TOKEN`, `HF_TOKEN_PATH`, `HF_HOME`,
    /// `HF_HUB_DISABLE_IMPLICIT_TOKEN` and `HF_HUB_OFFLINE`. Reads the token file, if there is one.
    pub fn from_env(env: &Env) -> Result<Self, HubError> {
        let text = |name: &str| env.os(name).map(|value| value.to_string_lossy().trim().to_owned());
        let on = |name: &str| {
            text(name).is_some_and(|value| matches!(value.to_ascii_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE"))
        };
        let endpoint = text("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned());
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        let host = endpoint.strip_prefix("https://").or(endpoint.strip_prefix("http://"));
        if host.is_none_or(|host| host.is_empty() || host.starts_with('/')) || endpoint.contains(['?', '#', ' ']) {
            return Err(HubError::BadEndpoint(endpoint));
        }

        let given = text("HF_TOKEN").or_else(|| text("HUGGING_FACE_HUB_TOKEN"));
        let token = given.or_else(|| {
            if on("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
                return None;
            }
            std::fs::read_to_string(token_file(env)?).ok().map(|token| token.trim().to_owned())
        });
        let token = token.filter(|token| !token.is_empty()).map(Token);
        Ok(Self { endpoint, token, offline: on("HF_HUB_OFFLINE"), patience: Patience::default() })
    }
}

fn token_file(env: &Env) -> Option<PathBuf> {
    env.path("HF_TOKEN_PATH").or_else(|| {
        let home = env.path("HF_HOME").or_else(|| {
            let cache = env.path("XDG_CACHE_HOME").or_else(|| Some(env.path("HOME")?.join(".cache")))?;
            Some(cache.join("huggingface"))
        })?;
        Some(home.join("token"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(variables: &[(&str, &str)]) -> HubConfig {
        HubConfig::from_env(&variables.iter().copied().collect()).unwrap()
    }

    #[test]
    fn endpoint_and_offline() {
        assert_eq!(config(&[]).endpoint, "https://huggingface.co");
        assert_eq!(config(&[("HF_ENDPOINT", "http://mirror:8080/hf/")]).endpoint, "http://mirror:8080/hf");
        assert!(!config(&[]).offline && !config(&[("HF_HUB_OFFLINE", "0")]).offline);
        assert!(config(&[("HF_HUB_OFFLINE", "1")]).offline && config(&[("HF_HUB_OFFLINE", "true")]).offline);
        for bad in ["huggingface.co", "ftp://x", "https://", "https:///x", "http://a b"] {
            assert!(HubConfig::from_env(&[("HF_ENDPOINT", bad)].into_iter().collect()).is_err(), "{bad}");
        }
    }

    #[test]
    fn token_from_variable_or_file() {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(home.path().join(".cache/huggingface")).unwrap();
        std::fs::write(home.path().join(".cache/huggingface/token"), "from-file\n").unwrap();
        let home = home.path().to_str().unwrap();
        let header = |variables: &[(&str, &str)]| config(variables).token.map(|token| token.header());
        assert_eq!(header(&[]), None);
        assert_eq!(header(&[("HOME", home)]).as_deref(), Some("Bearer from-file"));
        assert_eq!(header(&[("HOME", home), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]), None);
        assert_eq!(header(&[("HOME", home), ("HF_TOKEN", "given")]).as_deref(), Some("Bearer given"));
        let file = format!("{home}/.cache/huggingface/token");
        assert_eq!(header(&[("HF_TOKEN_PATH", &file)]).as_deref(), Some("Bearer from-file"));
        assert_eq!(format!("{:?}", config(&[("HF_TOKEN", "given")]).token), "Some(Token(...))");
    }
}
