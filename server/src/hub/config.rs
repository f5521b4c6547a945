//! Which hub is used, and with which token: read from the variables that the hub's own Python client reads.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::HubError;

/// The environment variables of the process.
pub trait HubEnvironment {
    /// The value of a variable; `None` where it is absent or empty.
    fn variable(&self, name: &str) -> Option<OsString>;
}

/// The value of a variable that is a path.
pub(super) fn path_variable(env: &dyn HubEnvironment, name: &str) -> Option<PathBuf> {
    env.variable(name).map(PathBuf::from)
}

/// How long a download continues when the network fails.
#[derive(Clone, Debug)]
pub struct RetryPolicy {
    /// A connection without a byte for this long is closed and opened again.
    pub read_timeout: Duration,
    pub connect_timeout: Duration,
    /// The pause before the second attempt. It doubles with each attempt, up to `longest_pause`.
    pub pause: Duration,
    pub longest_pause: Duration,
    /// The download fails when no byte has arrived for this long.
    pub give_up_after: Duration,
}

impl Default for RetryPolicy {
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

/// The token for the hub, which no log shows.
#[derive(Clone, PartialEq, Eq)]
pub struct HubToken(String);

impl HubToken {
    pub(super) fn header(&self) -> String {
        format!("Bearer {}", self.0)
    }
}

impl fmt::Debug for HubToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HubToken(...)")
    }
}

/// The hub and how it is used.
#[derive(Clone, Debug)]
pub struct HubConfig {
    /// URL of the hub, without a slash at the end.
    pub endpoint: String,
    pub token: Option<HubToken>,
    pub offline: bool,
    pub retry: RetryPolicy,
}

impl HubConfig {
    /// Reads `HF_ENDPOINT`, `HF_TOKEN`, `HUGGING_FACE_HUB_TOKEN`, `HF_TOKEN_PATH`, `HF_HOME`, `HF_HUB_DISABLE_IMPLICIT_TOKEN` and
    /// `HF_HUB_OFFLINE`, and the token file, if there is one.
    pub fn from_env(env: &dyn HubEnvironment) -> Result<Self, HubError> {
        let text = |name: &str| env.variable(name).map(|value| value.to_string_lossy().trim().to_owned());
        let is_on = |name: &str| {
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
            if is_on("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
                return None;
            }
            std::fs::read_to_string(token_file(env)?).ok().map(|token| token.trim().to_owned())
        });

        let token = token.filter(|token| !token.is_empty()).map(HubToken);
        Ok(Self { endpoint, token, offline: is_on("HF_HUB_OFFLINE"), retry: RetryPolicy::default() })
    }
}

fn token_file(env: &dyn HubEnvironment) -> Option<PathBuf> {
    if let Some(file) = path_variable(env, "HF_TOKEN_PATH") {
        return Some(file);
    }

    let home = path_variable(env, "HF_HOME").or_else(|| {
        let cache =
            path_variable(env, "XDG_CACHE_HOME").or_else(|| Some(path_variable(env, "HOME")?.join(".cache")))?;
        Some(cache.join("huggingface"))
    })?;
    Some(home.join("token"))
}

#[cfg(test)]
pub(super) mod test_environment {
    use std::collections::HashMap;

    use super::*;

    /// Environment variables of a test.
    pub struct TestEnvironment(HashMap<String, OsString>);

    impl<V: Into<OsString>, const N: usize> From<[(&str, V); N]> for TestEnvironment {
        fn from(variables: [(&str, V); N]) -> Self {
            variables.into_iter().collect()
        }
    }

    impl<'a, V: Into<OsString>> FromIterator<(&'a str, V)> for TestEnvironment {
        fn from_iter<I: IntoIterator<Item = (&'a str, V)>>(variables: I) -> Self {
            Self(variables.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect())
        }
    }

    impl HubEnvironment for TestEnvironment {
        fn variable(&self, name: &str) -> Option<OsString> {
            self.0.get(name).cloned()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::test_environment::TestEnvironment;
    use super::*;

    fn config(variables: &[(&str, &str)]) -> HubConfig {
        HubConfig::from_env(&variables.iter().copied().collect::<TestEnvironment>()).unwrap()
    }

    #[test]
    fn endpoint_and_offline() {
        assert_eq!(config(&[]).endpoint, "https://huggingface.co");
        assert_eq!(config(&[("HF_ENDPOINT", "http://mirror:8080/hf/")]).endpoint, "http://mirror:8080/hf");
        assert!(!config(&[]).offline && !config(&[("HF_HUB_OFFLINE", "0")]).offline);
        assert!(config(&[("HF_HUB_OFFLINE", "1")]).offline && config(&[("HF_HUB_OFFLINE", "true")]).offline);
        for bad in ["huggingface.co", "ftp://x", "https://", "https:///x", "http://a b"] {
            assert!(HubConfig::from_env(&TestEnvironment::from([("HF_ENDPOINT", bad)])).is_err(), "{bad}");
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
        assert_eq!(format!("{:?}", config(&[("HF_TOKEN", "given")]).token), "Some(HubToken(...))");
    }
}
