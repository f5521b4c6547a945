//! Values that are written as on the command line: texts, numbers and switches, without regard to quotes.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer};

use crate::cli::values::ValueError;

/// A `T` that is read from its text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Checked<T>(pub T);

impl<'de, T: FromStr<Err = ValueError>> Deserialize<'de> for Checked<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ScalarVisitor(|text: &str| text.parse().map(Self)))
    }
}

/// Reads a scalar by a parser of its text. The deserializer adds to an error where the scalar stands.
pub struct ScalarVisitor<F>(pub F);

impl<V, F: FnOnce(&str) -> Result<V, ValueError>> Visitor<'_> for ScalarVisitor<F> {
    type Value = V;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text, a number or a switch")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<V, E> {
        let text = text.trim();
        (self.0)(text).map_err(|error| E::custom(format!("`{text}` cannot be used: {error}")))
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<V, E> {
        self.visit_str(&value.to_string())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<V, E> {
        self.visit_str(&value.to_string())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<V, E> {
        self.visit_str(&value.to_string())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<V, E> {
        self.visit_str(&value.to_string())
    }
}

impl<T> JsonSchema for Checked<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Scalar".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": ["string", "integer", "boolean"]})
    }
}
