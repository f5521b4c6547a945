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
        let visitor = WorldValueVisitor {
            expected: "a quantity such as `24Gi`, or bytes",
            parse: hush_crds::quantity,
            from_integer: Some,
        };
        deserializer.deserialize_any(visitor).map(Self)
    }
}

impl<'de> Deserialize<'de> for DurationValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let visitor = WorldValueVisitor {
            expected: "a duration such as `90s`, or seconds",
            parse: hush_crds::parse_duration,
            from_integer: |seconds| Some(Duration::from_secs(seconds)),
        };
        deserializer.deserialize_any(visitor).map(Self)
    }
}

struct WorldValueVisitor<T> {
    expected: &'static str,
    parse: fn(&str) -> Option<T>,
    from_integer: fn(u64) -> Option<T>,
}

impl<T> Visitor<'_> for WorldValueVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        (self.parse)(text).ok_or_else(|| E::invalid_value(serde::de::Unexpected::Str(text), &self))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<T, E> {
        (self.from_integer)(number).ok_or_else(|| E::invalid_value(serde::de::Unexpected::Unsigned(number), &self))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<T, E> {
        let value = u64::try_from(number).ok().and_then(self.from_integer);
        value.ok_or_else(|| E::invalid_value(serde::de::Unexpected::Signed(number), &self))
    }
}
