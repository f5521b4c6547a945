//! Access to the fields of a JSON file. Errors name the file, the field, and the value that was found.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::CheckpointError;
use super::config::SIZE_MAX;
use crate::small_file;

pub(super) struct JsonFile {
    pub path: PathBuf,
    fields: Map<String, Value>,
}

impl JsonFile {
    pub fn read(path: &Path) -> Result<Self, CheckpointError> {
        let text = small_file::read(path).map_err(CheckpointError::io(path))?;
        let value =
            serde_json::from_slice(&text).map_err(|source| CheckpointError::Json { path: path.to_owned(), source })?;
        match value {
            Value::Object(fields) => Ok(Self { path: path.to_owned(), fields }),
            _ => Err(CheckpointError::field(path, "", "must be a JSON object")),
        }
    }

    pub fn read_if_exists(path: &Path) -> Result<Option<Self>, CheckpointError> {
        if path.exists() { Self::read(path).map(Some) } else { Ok(None) }
    }

    /// The value of a field; `None` if it is absent or `null`.
    pub fn get(&self, field: &str) -> Option<&Value> {
        self.fields.get(field).filter(|value| !value.is_null())
    }

    pub fn entries(&self) -> impl Iterator<Item = (&String, &Value)> {
        self.fields.iter()
    }

    pub fn error(&self, field: &str, problem: impl Into<String>) -> CheckpointError {
        CheckpointError::field(&self.path, field, problem)
    }

    pub fn size(&self, field: &str) -> Result<usize, CheckpointError> {
        self.size_up_to(field, SIZE_MAX)
    }

    pub fn size_up_to(&self, field: &str, most: usize) -> Result<usize, CheckpointError> {
        let value = self.get(field).ok_or_else(|| self.error(field, "is missing, expected a whole number"))?;
        value
            .as_u64()
            .and_then(|n| usize::try_from(n).ok())
            .filter(|n| (1..=most).contains(n))
            .ok_or_else(|| self.error(field, format!("is {value}, expected a whole number from 1 to {most}")))
    }

    pub fn flag(&self, field: &str) -> Result<Option<bool>, CheckpointError> {
        self.get(field)
            .map(|v| v.as_bool().ok_or_else(|| self.error(field, format!("is {v}, expected true or false"))))
            .transpose()
    }

    pub fn token(&self, field: &str, vocab_size: usize) -> Result<Option<u32>, CheckpointError> {
        self.get(field).map(|v| self.as_token(field, v, vocab_size)).transpose()
    }

    pub fn tokens(&self, field: &str, vocab_size: usize) -> Result<Option<Vec<u32>>, CheckpointError> {
        let Some(value) = self.get(field) else { return Ok(None) };
        let list = value.as_array().ok_or_else(|| self.error(field, "must be a list of token ids"))?;
        list.iter().map(|v| self.as_token(field, v, vocab_size)).collect::<Result<_, _>>().map(Some)
    }

    /// A map of names to token ids.
    pub fn token_map(&self, field: &str, vocab_size: usize) -> Result<Option<Vec<(String, u32)>>, CheckpointError> {
        let Some(value) = self.get(field) else { return Ok(None) };
        let map = value.as_object().ok_or_else(|| self.error(field, "must map names to token ids"))?;
        map.iter()
            .map(|(name, v)| Ok((name.clone(), self.as_token(&format!("{field}.{name}"), v, vocab_size)?)))
            .collect::<Result<_, _>>()
            .map(Some)
    }

    fn as_token(&self, field: &str, value: &Value, vocab_size: usize) -> Result<u32, CheckpointError> {
        value
            .as_u64()
            .and_then(|n| u32::try_from(n).ok())
            .filter(|n| (*n as usize) < vocab_size)
            .ok_or_else(|| self.error(field, format!("holds {value}, expected a token id below {vocab_size}")))
    }
}
