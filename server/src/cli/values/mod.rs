//! Values of options, parsed once at the edge. The same parser reads the flag, the variable and the key of the
//! configuration file, and its message says what is expected.
//!
//! `read` of a type returns the plain value, for the settings; the type itself stands for the text of one.

mod amounts;
mod device;
#[cfg(test)]
mod tests;
mod words;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use axum::http::HeaderValue;
use axum::http::uri::Authority;
use hush_whisper::language::LanguageChoice;
use serde::{Serialize, Serializer};

pub use amounts::{ByteSize, DurationArg, Percent, WholeNumber, read_decimal};
pub use device::{ComputeDevice, DeviceChoice, GpuChoice};
pub use words::{
    AsrEngine, EncoderContextWord, LogFormat, OutputFormat, PrecisionChoice, PrecisionWord, ResidencyChoice, TaskWord,
};

/// What a value should have been, for the person who wrote it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ValueError(pub String);

fn expected<T>(what: impl Into<String>) -> Result<T, ValueError> {
    Err(ValueError(what.into()))
}

/// Implements `FromStr` for newtypes by their `read`.
macro_rules! reads_from_text {
    ($($name:ident),+) => {
        $(impl std::str::FromStr for $name {
            type Err = $crate::cli::values::ValueError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Self::read(text).map(Self)
            }
        })+
    };
}
use reads_from_text;

/// `true` or `false`, and the other usual spellings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Switch(pub bool);

impl Switch {
    pub fn read(text: &str) -> Result<bool, ValueError> {
        match text.to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" | "on" => Ok(true),
            "false" | "0" | "no" | "off" => Ok(false),
            _ => expected("expected true or false"),
        }
    }
}

/// An address to listen on: `0.0.0.0:9000`, `[::]:9000`, `localhost:9000`, or `:9000` for every IPv4 address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenAddress(pub SocketAddr);

impl ListenAddress {
    pub fn read(text: &str) -> Result<SocketAddr, ValueError> {
        let address = text.parse().ok().or_else(|| Self::of_short_host(text));

        match address {
            Some(address) => Ok(address),
            None => expected("expected an address and a port, such as 0.0.0.0:9000, [::1]:9000 or :9000"),
        }
    }

    /// Host names other than `localhost` are not looked up.
    fn of_short_host(text: &str) -> Option<SocketAddr> {
        let (host, port) = text.rsplit_once(':')?;
        let host = match host {
            "" => Ipv4Addr::UNSPECIFIED,
            "localhost" => Ipv4Addr::LOCALHOST,
            _ => return None,
        };
        Some(SocketAddr::new(IpAddr::V4(host), port.parse().ok()?))
    }
}

/// A filter of log lines, see [`hush_log::check_filter`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFilter(pub String);

impl LogFilter {
    pub fn read(text: &str) -> Result<String, ValueError> {
        hush_log::check_filter(text).map_err(|error| ValueError(error.to_string()))?;
        Ok(text.to_owned())
    }
}

/// The language that is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Language(pub LanguageChoice);

impl Language {
    /// An empty text is `auto`.
    pub fn read(text: &str) -> Result<LanguageChoice, ValueError> {
        if text.trim().is_empty() {
            return Ok(LanguageChoice::Auto);
        }
        match LanguageChoice::parse(text) {
            Some(choice) => Ok(choice),
            None => expected("expected a code such as en, an English name such as english, or auto"),
        }
    }
}

/// Where a page comes from, as browsers spell it: `https://app.example.com`, or `*` for anywhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CorsOrigin(pub HeaderValue);

impl CorsOrigin {
    pub fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }

    /// In the spelling of browsers: in lower case, without a slash at the end and without the port that the scheme has.
    fn read(text: &str) -> Result<HeaderValue, ValueError> {
        let origin = Self::normalized(&text.trim().to_ascii_lowercase());

        match origin.and_then(|origin| HeaderValue::try_from(origin).ok()) {
            Some(origin) => Ok(origin),
            None => expected(
                "expected an origin such as https://app.example.com or http://localhost:5173 (a scheme, a host and a port, \
                 without a path), or * for all",
            ),
        }
    }

    fn normalized(text: &str) -> Option<String> {
        // `null` is a page from a file.
        if matches!(text, "*" | "null") {
            return Some(text.to_owned());
        }

        let (scheme, authority) = text.split_once("://")?;
        let authority = authority.strip_suffix('/').unwrap_or(authority);
        let authority = match scheme {
            "http" => authority.strip_suffix(":80").unwrap_or(authority),
            "https" => authority.strip_suffix(":443").unwrap_or(authority),
            _ => authority,
        };

        let parsed: Authority = authority.parse().ok()?;
        let is_plain = parsed.host() != "" && !authority.contains(['@', '*']) && !authority.ends_with(':');
        (!scheme.is_empty() && is_plain).then(|| format!("{scheme}://{authority}"))
    }
}

impl Serialize for CorsOrigin {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

reads_from_text!(Switch, ListenAddress, LogFilter, Language, CorsOrigin);
