//! The environment as a value, so that what depends on it is tested without changing the environment of the process.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use super::settings::SettingError;

/// A copy of environment variables. An empty variable counts as not set.
#[derive(Clone, Debug, Default)]
pub struct Env(BTreeMap<OsString, OsString>);

impl Env {
    pub fn from_process() -> Self {
        Self(std::env::vars_os().collect())
    }

    /// A variable as the system holds it, which need not be UTF-8.
    pub fn os(&self, name: &str) -> Option<&OsStr> {
        self.0.get(OsStr::new(name)).map(OsString::as_os_str).filter(|value| !value.is_empty())
    }

    pub fn path(&self, name: &str) -> Option<PathBuf> {
        self.os(name).map(PathBuf::from)
    }

    /// A variable that must be valid UTF-8.
    pub fn text(&self, name: &str) -> Result<Option<&str>, SettingError> {
        let Some(value) = self.os(name) else { return Ok(None) };

        value.to_str().map(Some).ok_or_else(|| SettingError::Variable {
            variable: name.to_owned(),
            value: value.to_string_lossy().into_owned(),
            problem: "it is not valid UTF-8".to_owned(),
        })
    }
}

impl<K: Into<OsString>, V: Into<OsString>> FromIterator<(K, V)> for Env {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(variables: I) -> Self {
        Self(variables.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}

impl crate::hub::HubEnvironment for Env {
    fn variable(&self, name: &str) -> Option<OsString> {
        self.os(name).map(OsStr::to_owned)
    }
}
