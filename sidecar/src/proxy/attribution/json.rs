//! Finds members of the outermost object of a JSON text, while the text arrives in pieces of any size.
//!
//! Nothing is parsed into values, so a large body costs no memory, and everything that is not cut out stays as the client
//! wrote it. The scanner is exact for every valid text. It accepts some invalid ones, which the app then refuses.
//!
//! Go's `encoding/json` compares names without regard to case, also where a letter has an unusual lower case (U+212A is
//! `k`, U+017F is `s`), so that `Keep_Alive` means `keep_alive` to Ollama. The scanner compares in the same way for all
//! apps: a name that another app would ignore is only cut out.

use std::ops::Range;

use memchr::memchr2;

use super::{BodyScanError, FoundName, NameValue};

/// The longest model name.
const VALUE_LIMIT_BYTES: usize = 4 << 10;
/// The longest spelling of one character of a name: a pair of escapes.
const ESCAPED_CHARACTER_BYTES: usize = 12;
/// The beginning of a value that is looked at; enough to tell whether it is empty, or 0.
const OBSERVED_BYTES: usize = 64;
/// The most members that are cut out of one body.
const CUTS_MAX: usize = 256;

/// The names that are looked for.
#[derive(Clone, Debug, Default)]
pub struct JsonNames {
    /// The member that names the model.
    pub model: Option<String>,
    /// The members that are cut out.
    pub removed: Vec<String>,
    /// The members whose values are looked at.
    pub observed: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ScanState {
    BeforeTop,
    /// In the object, before a name or before its end.
    BeforeKey,
    InKey {
        escaped: bool,
    },
    AfterKey,
    BeforeValue,
    InString {
        escaped: bool,
    },
    InScalar,
    InContainer {
        depth: u32,
    },
    InNestedString {
        depth: u32,
        escaped: bool,
    },
    AfterValue,
    /// After the outermost value, or in a text whose outermost value is no object.
    Done,
}

/// What is done with the current member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum MemberRole {
    Model,
    Removed,
    Other,
}

/// What the current value is, as far as it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum JsonValueKind {
    String,
    /// A number or a word.
    Scalar,
    Container,
}

/// The scanner of one body.
#[derive(Debug)]
pub struct JsonScanner {
    names: JsonNames,
    key_limit_bytes: usize,
    state: ScanState,
    /// Bytes that were scanned.
    position: u64,
    /// The name or the value that is being read, without its quotes; only as much as may matter.
    captured: Vec<u8>,
    role: MemberRole,
    /// The current member is this one of the observed ones.
    observed: Option<usize>,
    /// The JSON text of the last value of each observed member, without spaces, as far as it matters.
    values: Vec<Option<Vec<u8>>>,
    key_start: u64,
    /// The comma before the current member.
    comma: Option<u64>,
    has_kept_member: bool,
    cuts: Vec<Range<u64>>,
    found: FoundName,
}

impl JsonScanner {
    /// `position`: the number of bytes of the body before the first piece, all of them spaces.
    pub fn new(names: JsonNames, position: u64) -> Self {
        let names = JsonNames {
            model: names.model.as_deref().map(fold_case),
            removed: names.removed.iter().map(|name| fold_case(name)).collect(),
            observed: names.observed.iter().map(|name| fold_case(name)).collect(),
        };
        let all = names.removed.iter().chain(&names.observed).chain(&names.model);
        let longest = all.map(|name| name.chars().count()).max();

        Self {
            key_limit_bytes: longest.unwrap_or(0) * ESCAPED_CHARACTER_BYTES,
            values: vec![None; names.observed.len()],
            observed: None,
            names,
            state: ScanState::BeforeTop,
            position,
            captured: Vec::new(),
            role: MemberRole::Other,
            key_start: 0,
            comma: None,
            has_kept_member: false,
            cuts: Vec::new(),
            found: FoundName::default(),
        }
    }

    /// Scans the next piece of the text.
    ///
    /// # Errors
    /// If the text is no JSON, or names two models.
    pub fn push(&mut self, piece: &[u8]) -> Result<(), BodyScanError> {
        let mut rest = piece;

        while !rest.is_empty() && self.state != ScanState::Done {
            let before = self.state;
            let used = match before {
                ScanState::InKey { escaped } => self.scan_key(rest, escaped)?,
                ScanState::InString { escaped } => self.scan_string(rest, escaped)?,
                ScanState::InNestedString { depth, escaped } => self.scan_nested_string(rest, depth, escaped),
                ScanState::InContainer { depth } => self.scan_container(rest, depth)?,
                _ => self.scan_byte(rest[0])?,
            };
            self.observe(before, &rest[..used]);
            self.position += used as u64;
            rest = &rest[used..];
        }

        self.position += rest.len() as u64;
        Ok(())
    }

    /// Checks that the text was complete. A text without any byte is complete, too.
    ///
    /// # Errors
    /// If the text ended early.
    pub fn finish(&self) -> Result<(), BodyScanError> {
        match self.state {
            ScanState::Done | ScanState::BeforeTop => Ok(()),
            _ => Err(BodyScanError::EndsEarly { position: self.position }),
        }
    }

    /// The name of the model, as far as the text was scanned.
    pub fn model(&self) -> Option<&str> {
        self.found.get()
    }

    /// The JSON text of the last value of an observed member, without spaces, as far as it matters.
    pub fn observed(&self, name: &str) -> Option<&[u8]> {
        let name = fold_case(name);

        let at = self.names.observed.iter().position(|known| *known == name)?;
        self.values[at].as_deref()
    }

    /// Keeps what was just scanned, if it belongs to the value of an observed member.
    fn observe(&mut self, before: ScanState, scanned: &[u8]) {
        let is_value = match before {
            ScanState::InString { .. } | ScanState::InScalar => true,
            ScanState::InContainer { .. } | ScanState::InNestedString { .. } => true,
            ScanState::BeforeValue => self.state != before,
            _ => false,
        };
        let Some(Some(value)) = self.observed.filter(|_| is_value).map(|at| &mut self.values[at]) else { return };

        let room = OBSERVED_BYTES.saturating_sub(value.len());
        value.extend(scanned.iter().filter(|byte| !byte.is_ascii_whitespace()).take(room));
    }

    /// The ranges of bytes that are to be cut out, in ascending order. They are complete when the text is.
    pub fn take_cuts(&mut self) -> Vec<Range<u64>> {
        std::mem::take(&mut self.cuts)
    }

    /// Handles one byte of a state that looks at each byte. Returns how many were used: 0 where the byte ends a number
    /// or a word, and is looked at again.
    fn scan_byte(&mut self, byte: u8) -> Result<usize, BodyScanError> {
        let is_space = matches!(byte, b' ' | b'\t' | b'\n' | b'\r');

        match (self.state, byte) {
            (ScanState::BeforeTop, b'{') => self.state = ScanState::BeforeKey,
            (ScanState::BeforeTop, 0xef | 0xbb | 0xbf) if self.position < 3 => {}
            (ScanState::BeforeTop, b'[' | b'"' | b'-' | b'0'..=b'9' | b't' | b'f' | b'n') => {
                self.state = ScanState::Done;
            }
            (ScanState::InScalar, b',' | b'}' | b' ' | b'\t' | b'\n' | b'\r') => {
                self.end_value(self.position, JsonValueKind::Scalar)?;
                return Ok(0);
            }
            (ScanState::InScalar, b'"' | b'{' | b'[' | b']' | b':') => return Err(self.unexpected(byte)),
            (ScanState::InScalar, _) => self.capture_value(&[byte])?,
            (_, _) if is_space => {}
            (ScanState::BeforeKey, b'"') => {
                self.captured.clear();
                self.key_start = self.position;
                self.state = ScanState::InKey { escaped: false };
            }
            (ScanState::BeforeKey | ScanState::AfterValue, b'}') => self.state = ScanState::Done,
            (ScanState::AfterKey, b':') => self.state = ScanState::BeforeValue,
            (ScanState::BeforeValue, b'"') => self.state = ScanState::InString { escaped: false },
            (ScanState::BeforeValue, b'{' | b'[') => self.state = ScanState::InContainer { depth: 1 },
            (ScanState::BeforeValue, b'-' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z') => {
                self.capture_value(&[byte])?;
                self.state = ScanState::InScalar;
            }
            (ScanState::AfterValue, b',') => {
                self.comma = Some(self.position);
                self.state = ScanState::BeforeKey;
            }
            _ => return Err(self.unexpected(byte)),
        }
        Ok(1)
    }

    const fn unexpected(&self, byte: u8) -> BodyScanError {
        BodyScanError::Unexpected { byte, position: self.position }
    }

    fn scan_key(&mut self, rest: &[u8], escaped: bool) -> Result<usize, BodyScanError> {
        let (used, end) = string_part(rest, escaped);

        let text = if end == StringEnd::Closed { &rest[..used - 1] } else { &rest[..used] };
        // One byte more than the limit, so that a longer name is known to be longer.
        let room = (self.key_limit_bytes + 1).saturating_sub(self.captured.len());
        self.captured.extend_from_slice(&text[..room.min(text.len())]);

        match end {
            StringEnd::Closed => self.begin_member()?,
            StringEnd::Open { escaped } => self.state = ScanState::InKey { escaped },
        }
        Ok(used)
    }

    /// The name of a member is known: decides what becomes of the member and of the comma before it.
    fn begin_member(&mut self) -> Result<(), BodyScanError> {
        let key = self.captured_key();
        self.role = self.role_of(key.as_deref());
        self.observed = key.and_then(|key| self.names.observed.iter().position(|name| *name == key));
        if let Some(at) = self.observed {
            self.values[at] = Some(Vec::new());
        }
        self.captured.clear();

        let comma = self.comma.take();
        if self.role == MemberRole::Removed || !self.has_kept_member {
            // A comma is kept only between two members that are kept.
            if let Some(comma) = comma {
                self.cut(comma..comma + 1)?;
            }
        }

        self.has_kept_member |= self.role != MemberRole::Removed;
        self.state = ScanState::AfterKey;
        Ok(())
    }

    /// The name that was read, in lower case; `None`: it is none of those that are looked for.
    fn captured_key(&self) -> Option<String> {
        if self.captured.len() > self.key_limit_bytes {
            return None;
        }
        decode(&self.captured).map(|key| fold_case(&key))
    }

    fn role_of(&self, key: Option<&str>) -> MemberRole {
        let Some(key) = key else { return MemberRole::Other };

        if self.names.removed.iter().any(|removed| removed == key) {
            MemberRole::Removed
        } else if self.names.model.as_deref() == Some(key) {
            MemberRole::Model
        } else {
            MemberRole::Other
        }
    }

    fn scan_string(&mut self, rest: &[u8], escaped: bool) -> Result<usize, BodyScanError> {
        let (used, end) = string_part(rest, escaped);

        match end {
            StringEnd::Closed => {
                self.capture_value(&rest[..used - 1])?;
                self.end_value(self.position + used as u64, JsonValueKind::String)?;
            }
            StringEnd::Open { escaped } => {
                self.capture_value(&rest[..used])?;
                self.state = ScanState::InString { escaped };
            }
        }
        Ok(used)
    }

    fn scan_nested_string(&mut self, rest: &[u8], depth: u32, escaped: bool) -> usize {
        let (used, end) = string_part(rest, escaped);

        self.state = match end {
            StringEnd::Closed => ScanState::InContainer { depth },
            StringEnd::Open { escaped } => ScanState::InNestedString { depth, escaped },
        };
        used
    }

    fn scan_container(&mut self, rest: &[u8], mut depth: u32) -> Result<usize, BodyScanError> {
        for (at, byte) in rest.iter().enumerate() {
            match byte {
                b'"' => {
                    self.state = ScanState::InNestedString { depth, escaped: false };
                    return Ok(at + 1);
                }
                b'{' | b'[' => depth = depth.saturating_add(1),
                b'}' | b']' => depth -= 1,
                _ => {}
            }

            if depth == 0 {
                self.end_value(self.position + at as u64 + 1, JsonValueKind::Container)?;
                return Ok(at + 1);
            }
        }

        self.state = ScanState::InContainer { depth };
        Ok(rest.len())
    }

    fn capture_value(&mut self, bytes: &[u8]) -> Result<(), BodyScanError> {
        if self.role != MemberRole::Model {
            return Ok(());
        }
        if self.captured.len() + bytes.len() > VALUE_LIMIT_BYTES {
            return Err(BodyScanError::NameTooLong { limit_bytes: VALUE_LIMIT_BYTES });
        }

        self.captured.extend_from_slice(bytes);
        Ok(())
    }

    /// A value ends before `end`.
    fn end_value(&mut self, end: u64, kind: JsonValueKind) -> Result<(), BodyScanError> {
        match (self.role, kind) {
            (MemberRole::Model, JsonValueKind::String) => {
                let name = decode(&self.captured).ok_or(BodyScanError::NameNotText)?;
                self.found.note(NameValue::Text(name))?;
            }
            (MemberRole::Model, JsonValueKind::Scalar) if self.captured == b"null" => {
                self.found.note(NameValue::Null)?
            }
            (MemberRole::Model, _) => return Err(BodyScanError::NameNotText),
            (MemberRole::Removed, _) => self.cut(self.key_start..end)?,
            (MemberRole::Other, _) => {}
        }

        self.captured.clear();
        self.state = ScanState::AfterValue;
        Ok(())
    }

    fn cut(&mut self, range: Range<u64>) -> Result<(), BodyScanError> {
        match self.cuts.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => self.cuts.push(range),
        }

        if self.cuts.len() > CUTS_MAX { Err(BodyScanError::TooManyRemoved { limit: CUTS_MAX }) } else { Ok(()) }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StringEnd {
    Closed,
    Open { escaped: bool },
}

/// Reads the inside of a string. Returns the number of bytes that belong to it, with the closing quote, and whether the
/// string ends there.
fn string_part(rest: &[u8], mut escaped: bool) -> (usize, StringEnd) {
    let mut at = 0;

    while at < rest.len() {
        if escaped {
            escaped = false;
            at += 1;
            continue;
        }

        match memchr2(b'"', b'\\', &rest[at..]) {
            None => return (rest.len(), StringEnd::Open { escaped: false }),
            Some(found) if rest[at + found] == b'"' => return (at + found + 1, StringEnd::Closed),
            Some(found) => {
                escaped = true;
                at += found + 1;
            }
        }
    }
    (rest.len(), StringEnd::Open { escaped })
}

/// The text between the quotes of a JSON string; `None`: it is not valid.
fn decode(raw: &[u8]) -> Option<String> {
    if !raw.contains(&b'\\') {
        return std::str::from_utf8(raw).ok().map(str::to_owned);
    }
    serde_json::from_slice(&[b"\"", raw, b"\""].concat()).ok()
}

/// The lower case in which Go compares names of members.
fn fold_case(name: &str) -> String {
    let fold = |c: char| match c {
        '\u{212a}' => 'k',
        '\u{17f}' => 's',
        c => c.to_ascii_lowercase(),
    };
    name.chars().map(fold).collect()
}

#[cfg(test)]
mod tests;
