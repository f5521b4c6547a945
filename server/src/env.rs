//! The environment as a value, so that code which depends on it can be tested without changing the process.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

/// A copy of environment variables. An empty variable counts as not set.
#[derive(Clone, Debug, Default)]
pub struct Env(BTreeMap<OsString, OsString>);

/// A variable whose value is not valid UTF-8.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the variable {variable} is {value:?}: it is not valid UTF-8")]
pub struct VariableNotUtf8 {
    pub variable: String,
    /// The value, with a replacement character for what is not valid.
    pub value: String,
}

impl Env {
    pub fn from_process() -> Self {
        Self(std::env::vars_os().collect())
    }

    pub fn os(&self, name: &str) -> Option<&OsStr> {
        self.0.get(OsStr::new(name)).map(OsString::as_os_str).filter(|value| !value.is_empty())
    }

    pub fn path(&self, name: &str) -> Option<PathBuf> {
        self.os(name).map(PathBuf::from)
    }

    /// # Errors
    /// If the value is not valid UTF-8.
    pub fn text(&self, name: &str) -> Result<Option<&str>, VariableNotUtf8> {
        let Some(value) = self.os(name) else { return Ok(None) };
        value
            .to_str()
            .map(Some)
            .ok_or_else(|| VariableNotUtf8 { variable: name.to_owned(), value: value.to_string_lossy().into_owned() })
    }
}

impl<K: Into<OsString>, V: Into<OsString>> FromIterator<(K, V)> for Env {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(variables: I) -> Self {
        Self(variables.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}
