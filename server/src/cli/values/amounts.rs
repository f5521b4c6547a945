//! Numbers, times and sizes.

use std::time::Duration;

use hush_contract::{bytes, duration};
use serde::Serialize;

use super::{ValueError, expected, reads_from_text};

/// A duration in the form of the Gateway API (GEP-2257): `90s`, `1h30m`, `500ms`; a plain number is seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DurationArg(pub Duration);

impl DurationArg {
    pub fn read(text: &str) -> Result<Duration, ValueError> {
        let read = match text.bytes().all(|byte| byte.is_ascii_digit()) {
            true => text.parse().map(Duration::from_secs).ok(),
            // Four parts of five digits are what GEP-2257 allows.
            false => duration::parse(text, 5, 4),
        };

        match read {
            Some(duration) => Ok(duration),
            None => expected("expected a duration such as 90s, 5m, 1h30m or 500ms, or whole seconds"),
        }
    }
}

/// A size in bytes: `4GiB`, `512MiB`, `100MB`, Kubernetes' `4Gi`, or a plain number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteSize(pub u64);

impl ByteSize {
    pub fn read(text: &str) -> Result<u64, ValueError> {
        match bytes::parse(text) {
            Some(bytes) => Ok(bytes),
            None => expected("expected a size such as 4GiB, 512MiB or 100MB, or whole bytes"),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WholeNumber(pub usize);

impl WholeNumber {
    pub fn read(text: &str) -> Result<usize, ValueError> {
        text.parse().map_err(|_| ValueError("expected a whole number".to_owned()))
    }
}

/// A number that may have decimal places.
pub fn read_decimal(text: &str) -> Result<f32, ValueError> {
    text.parse().map_err(|_| ValueError("expected a number".to_owned()))
}

/// A share of a whole: `95%`; `off` is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Percent(pub Option<u8>);

impl Percent {
    pub fn read(text: &str) -> Result<Option<u8>, ValueError> {
        if text == "off" {
            return Ok(None);
        }

        let number: Option<u8> = text.strip_suffix('%').and_then(|number| number.parse().ok());
        match number {
            Some(number @ 1..=99) => Ok(Some(number)),
            _ => expected("expected a percentage from 1% to 99%, such as 95%, or off"),
        }
    }
}

reads_from_text!(DurationArg, ByteSize, WholeNumber, Percent);
