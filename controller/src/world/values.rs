//! Quantities and durations in a world file: `24Gi` or bytes, `90s` or seconds.

use std::fmt;
use std::time::Duration;

use serde::de::{Deserialize, Deserializer, Error, Visitor};

#[derive(Clone, Copy, Debug, Default)]
pub struct BytesValue(pub u64);

#[derive(Clone, Copy, Debug, Default)]
pub struct DurationValue(pub Duration);

impl<'de> Deserialize<'de> for BytesValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let scalar =
            ScalarVisitor { what: "a quantity such as `24Gi`, or bytes", read: hush_crds::quantity, whole: Some };
        deserializer.deserialize_any(scalar).map(Self)
    }
}

impl<'de> Deserialize<'de> for DurationValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let scalar = ScalarVisitor {
            what: "a duration such as `90s`, or seconds",
            read: hush_crds::parse_duration,
            whole: |seconds| Some(Duration::from_secs(seconds)),
        };
        deserializer.deserialize_any(scalar).map(Self)
    }
}

struct ScalarVisitor<T> {
    what: &'static str,
    read: fn(&str) -> Option<T>,
    whole: fn(u64) -> Option<T>,
}

impl<T> Visitor<'_> for ScalarVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        (self.read)(text).ok_or_else(|| E::invalid_value(serde::de::Unexpected::Str(text), &self))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<T, E> {
        (self.whole)(number).ok_or_else(|| E::invalid_value(serde::de::Unexpected::Unsigned(number), &self))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<T, E> {
        let whole = u64::try_from(number).ok().and_then(self.whole);
        whole.ok_or_else(|| E::invalid_value(serde::de::Unexpected::Signed(number), &self))
    }
}
