//! Finds out which model a request is for, without changing the request.

mod cut;
mod form;
mod json;

use std::fmt;
use std::ops::Range;

use http::HeaderMap;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use hush_listener::header::HeaderParameters;

use crate::app::{BodyCommand, DisguisedCommand, ModelNameSource, RouteMatch};

pub use cut::{kept_bytes, kept_slices};
pub use form::{query_parameter, query_without};
pub use json::{JsonNames, JsonScanner};

use form::{MultipartScanner, UrlencodedScanner};

/// How much of a body is looked at for JSON in another encoding than UTF-8.
const WIDE_START_BYTES: usize = 256;

/// Why a body does not tell its model. The texts are sent to the client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyScanError {
    #[error("the body is no valid JSON: the character {} at byte {position} cannot stand there", describe(*.byte))]
    Unexpected { byte: u8, position: u64 },
    #[error("the body is no valid JSON: it ends after {position} bytes, in the middle of a value")]
    EndsEarly { position: u64 },
    #[error("the body names two models, `{first}` and `{second}`; name one")]
    TwoNames { first: NameValue, second: NameValue },
    #[error("the name of the model must be a text")]
    NameNotText,
    #[error("the name of the model is longer than {limit_bytes} bytes")]
    NameTooLong { limit_bytes: usize },
    #[error("the body repeats members that this server takes out more than {limit} times")]
    TooManyRemoved { limit: usize },
    #[error("the body is no valid `multipart/form-data`: compare its first line with the `boundary` of `Content-Type`")]
    Multipart,
    #[error("the header `Content-Type` has no `boundary`")]
    NoBoundary,
    #[error("the header `Content-Type` is there more than once; send one")]
    TwoTypes,
    #[error("the body is JSON in UTF-16 or UTF-32; send it in UTF-8")]
    WideJson,
}

fn describe(byte: u8) -> String {
    if byte.is_ascii_graphic() { format!("`{}`", char::from(byte)) } else { format!("0x{byte:02x}") }
}

/// What a request gives as the name of its model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NameValue {
    Text(String),
    /// `null` or nothing: the same as no name.
    Null,
}

impl fmt::Display for NameValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(name) => f.write_str(name),
            Self::Null => f.write_str("null"),
        }
    }
}

/// The name of the model that a scanner has found. Apps differ in which of several names they take, so all must be the
/// same.
#[derive(Debug, Default)]
pub(crate) struct FoundName(Option<NameValue>);

impl FoundName {
    fn note(&mut self, value: NameValue) -> Result<(), BodyScanError> {
        match &self.0 {
            Some(first) if *first != value => Err(BodyScanError::TwoNames { first: first.clone(), second: value }),
            _ => {
                self.0 = Some(value);
                Ok(())
            }
        }
    }

    fn get(&self) -> Option<&str> {
        match &self.0 {
            Some(NameValue::Text(name)) => Some(name),
            _ => None,
        }
    }
}

/// A body that this server would have to read is compressed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompressedBody {
    pub encoding: String,
}

/// Scans a body as it arrives.
pub struct BodyScanner {
    kind: ScannerKind,
    /// The member or field that names the model.
    member: Option<String>,
    removed: Vec<String>,
    command: Option<DisguisedCommand>,
    content_type: ContentKind,
    /// The pieces that were nothing but space, while the kind is undecided.
    space_bytes: u64,
    is_finished: bool,
}

enum ScannerKind {
    /// Nothing of the body matters.
    Opaque,
    /// The first byte that is no space decides: `curl -d` sends JSON as a form.
    Undecided {
        /// What came of a body that may be JSON in UTF-16 or UTF-32.
        start: Vec<u8>,
    },
    Json(Box<JsonScanner>),
    Multipart(Box<MultipartScanner>),
    Urlencoded(UrlencodedScanner),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ContentKind {
    Json,
    Urlencoded,
    Other,
}

impl BodyScanner {
    /// Nothing of the body matters.
    pub const fn opaque() -> Self {
        Self {
            kind: ScannerKind::Opaque,
            member: None,
            removed: Vec::new(),
            command: None,
            content_type: ContentKind::Other,
            space_bytes: 0,
            is_finished: false,
        }
    }

    /// The scanner for a request of this route.
    ///
    /// # Errors
    /// If the form has no boundary.
    pub fn new(route: &RouteMatch, headers: &HeaderMap) -> Result<Self, BodyScanError> {
        let member = match &route.model {
            ModelNameSource::Body { member } => Some(member.clone()),
            ModelNameSource::None
            | ModelNameSource::Query { .. }
            | ModelNameSource::Earlier { .. }
            | ModelNameSource::Path { .. } => None,
        };
        let removed = route.removed_members.clone();
        let command = route.command.clone();
        if member.is_none() && removed.is_empty() && command.is_none() {
            return Ok(Self::opaque());
        }

        if headers.get_all(CONTENT_TYPE).iter().nth(1).is_some() {
            return Err(BodyScanError::TwoTypes);
        }
        let content_type = headers.get(CONTENT_TYPE).map(|value| HeaderParameters::parse(value.as_bytes()));
        let media_type = content_type.as_ref().map_or("application/json", |value| value.value.as_str());
        let kind = match (&content_type, &member) {
            (Some(form), Some(field)) if media_type == "multipart/form-data" => {
                let boundary = form.get("boundary").filter(|boundary| !boundary.is_empty());
                let scanner = MultipartScanner::new(boundary.ok_or(BodyScanError::NoBoundary)?, field);
                ScannerKind::Multipart(Box::new(scanner))
            }
            // Also of other types: Go's apps read a JSON body whatever its type says.
            _ => ScannerKind::Undecided { start: Vec::new() },
        };

        let content_type = match media_type {
            "application/x-www-form-urlencoded" => ContentKind::Urlencoded,
            json if json == "application/json" || json.ends_with("+json") => ContentKind::Json,
            _ => ContentKind::Other,
        };
        Ok(Self { kind, member, removed, command, content_type, space_bytes: 0, is_finished: false })
    }

    /// Refuses a compressed body of which something matters.
    ///
    /// # Errors
    /// If there is a `Content-Encoding`.
    pub fn check_encoding(&self, headers: &HeaderMap) -> Result<(), CompressedBody> {
        if matches!(self.kind, ScannerKind::Opaque) {
            return Ok(());
        }

        let encodings = headers.get_all(CONTENT_ENCODING).iter();
        let is_identity = |value: &[u8]| value.is_empty() || value.eq_ignore_ascii_case(b"identity");
        match encodings.map(|value| value.as_bytes().trim_ascii()).find(|value| !is_identity(value)) {
            Some(value) => Err(CompressedBody { encoding: String::from_utf8_lossy(value).into_owned() }),
            None => Ok(()),
        }
    }

    /// Scans the next piece.
    ///
    /// # Errors
    /// If the body does not tell its model.
    pub fn push(&mut self, piece: &[u8]) -> Result<(), BodyScanError> {
        if matches!(self.kind, ScannerKind::Undecided { .. }) {
            self.decide(piece)?;
        }

        match &mut self.kind {
            ScannerKind::Opaque | ScannerKind::Undecided { .. } => Ok(()),
            ScannerKind::Json(json) => json.push(piece),
            ScannerKind::Multipart(form) => form.push(piece),
            ScannerKind::Urlencoded(form) => form.push(piece),
        }
    }

    fn decide(&mut self, piece: &[u8]) -> Result<(), BodyScanError> {
        if let ScannerKind::Undecided { start } = &mut self.kind
            && !start.is_empty()
        {
            return self.decide_wide(piece);
        }
        let Some(first) = piece.iter().find(|byte| !byte.is_ascii_whitespace()) else {
            self.space_bytes += piece.len() as u64;
            return Ok(());
        };
        if self.content_type != ContentKind::Json && matches!(first, 0 | 0xfe | 0xff) {
            return self.decide_wide(piece);
        }

        self.kind = match (first, self.content_type, &self.member) {
            (b'{' | 0xef, ..) | (_, ContentKind::Json, _) => {
                let names = JsonNames {
                    model: self.member.clone(),
                    removed: self.removed.clone(),
                    observed: self.command.as_ref().map_or_else(Vec::new, observed_members),
                };
                ScannerKind::Json(Box::new(JsonScanner::new(names, self.space_bytes)))
            }
            (_, ContentKind::Urlencoded, Some(field)) => ScannerKind::Urlencoded(UrlencodedScanner::new(field)),
            _ => ScannerKind::Opaque,
        };
        Ok(())
    }

    /// Python's apps read JSON in any Unicode encoding, whatever its type says, and the scanner only UTF-8.
    fn decide_wide(&mut self, piece: &[u8]) -> Result<(), BodyScanError> {
        let ScannerKind::Undecided { start } = &mut self.kind else { return Ok(()) };
        start.extend_from_slice(&piece[..piece.len().min(WIDE_START_BYTES)]);

        let is_padding = |byte: &u8| matches!(byte, 0 | 0xfe | 0xff) || byte.is_ascii_whitespace();
        match start.iter().find(|byte| !is_padding(byte)) {
            Some(b'{') => Err(BodyScanError::WideJson),
            None if start.len() < WIDE_START_BYTES => Ok(()),
            _ => {
                self.kind = ScannerKind::Opaque;
                Ok(())
            }
        }
    }

    /// Ends the body.
    ///
    /// # Errors
    /// If it ended early.
    pub fn finish(&mut self) -> Result<(), BodyScanError> {
        self.is_finished = true;

        match &mut self.kind {
            ScannerKind::Json(json) => json.finish(),
            ScannerKind::Urlencoded(form) => form.finish(),
            ScannerKind::Opaque | ScannerKind::Undecided { .. } | ScannerKind::Multipart(_) => Ok(()),
        }
    }

    /// The name of the model, as far as the body was scanned.
    pub fn model(&self) -> Option<&str> {
        match &self.kind {
            ScannerKind::Opaque | ScannerKind::Undecided { .. } => None,
            ScannerKind::Json(json) => json.model(),
            ScannerKind::Multipart(form) => form.model(),
            ScannerKind::Urlencoded(form) => form.model(),
        }
    }

    /// Whether the request can be forwarded with the part that was scanned: its model is known, or matters not, and
    /// nothing has to be cut out further behind.
    pub fn is_decided(&self) -> bool {
        if self.is_finished {
            return true;
        }

        match &self.kind {
            ScannerKind::Opaque => true,
            ScannerKind::Undecided { .. } => false,
            ScannerKind::Json(_) => self.removed.is_empty() && self.command.is_none() && self.model().is_some(),
            ScannerKind::Multipart(_) | ScannerKind::Urlencoded(_) => self.model().is_some(),
        }
    }

    /// What a body without work asks the app to do. The body must have ended.
    pub fn command(&self) -> Option<BodyCommand> {
        let command = self.command.as_ref()?;

        match &self.kind {
            ScannerKind::Json(json) => command.find(|name| json.observed(name)),
            _ => None,
        }
    }

    /// The ranges of the body that are cut out.
    pub fn take_cuts(&mut self) -> Vec<Range<u64>> {
        match &mut self.kind {
            ScannerKind::Json(json) => json.take_cuts(),
            _ => Vec::new(),
        }
    }
}

fn observed_members(command: &DisguisedCommand) -> Vec<String> {
    command.work_members.iter().chain(&command.unload_member).cloned().collect()
}
