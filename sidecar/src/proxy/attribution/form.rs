//! Finds the model in a form: `multipart/form-data`, or `application/x-www-form-urlencoded`.

use hush_listener::multipart::{MultipartError, MultipartEvent, MultipartParser};
use percent_encoding::percent_decode;

use super::{BodyScanError, FoundName, NameValue};

/// The longest model name, and the longest name of a field that is compared.
const TEXT_LIMIT_BYTES: usize = 4 << 10;

/// The scanner of a multipart body.
pub struct MultipartScanner {
    parser: MultipartParser,
    field: String,
    /// The content of the part that is being read, if it is the model.
    captured: Option<Vec<u8>>,
    found: FoundName,
}

impl MultipartScanner {
    pub fn new(boundary: &str, field: &str) -> Self {
        let parser = MultipartParser::new(boundary);
        Self { parser, field: field.to_owned(), captured: None, found: FoundName::default() }
    }

    /// Scans the next piece of the body.
    ///
    /// # Errors
    /// If the body is no multipart form, or names two models.
    pub fn push(&mut self, piece: &[u8]) -> Result<(), BodyScanError> {
        let Self { parser, field, captured, found } = self;

        parser.push(piece, |event| match event {
            MultipartEvent::Begin { name, file_name, .. } => {
                *captured = (name == *field && file_name.is_none()).then(Vec::new);
                Ok(())
            }
            MultipartEvent::Data(data) => match captured {
                Some(text) if text.len() + data.len() > TEXT_LIMIT_BYTES => {
                    Err(BodyScanError::NameTooLong { limit_bytes: TEXT_LIMIT_BYTES })
                }
                Some(text) => {
                    text.extend_from_slice(data);
                    Ok(())
                }
                None => Ok(()),
            },
            MultipartEvent::End => match captured.take() {
                Some(text) => found.note(text_value(text)?),
                None => Ok(()),
            },
        })
    }

    pub fn model(&self) -> Option<&str> {
        self.found.get()
    }
}

impl From<MultipartError> for BodyScanError {
    fn from(_: MultipartError) -> Self {
        Self::Multipart
    }
}

fn text_value(text: Vec<u8>) -> Result<NameValue, BodyScanError> {
    let name = String::from_utf8(text).map_err(|_| BodyScanError::NameNotText)?;
    Ok(if name.is_empty() { NameValue::Null } else { NameValue::Text(name) })
}

/// The scanner of a body of `name=value` pairs.
#[derive(Debug)]
pub struct UrlencodedScanner {
    field: String,
    /// The pair that is being read; not beyond what may matter.
    pair: Vec<u8>,
    found: FoundName,
}

impl UrlencodedScanner {
    pub fn new(field: &str) -> Self {
        Self { field: field.to_owned(), pair: Vec::new(), found: FoundName::default() }
    }

    /// Scans the next piece of the body.
    ///
    /// # Errors
    /// If the body names two models.
    pub fn push(&mut self, piece: &[u8]) -> Result<(), BodyScanError> {
        let mut parts = piece.split(|byte| *byte == b'&');

        if let Some(first) = parts.next() {
            self.extend_pair(first);
        }
        for part in parts {
            self.end_pair()?;
            self.extend_pair(part);
        }
        Ok(())
    }

    /// Reads the last pair.
    ///
    /// # Errors
    /// If the body names two models.
    pub fn finish(&mut self) -> Result<(), BodyScanError> {
        self.end_pair()
    }

    pub fn model(&self) -> Option<&str> {
        self.found.get()
    }

    fn extend_pair(&mut self, bytes: &[u8]) {
        let room = (3 * TEXT_LIMIT_BYTES).saturating_sub(self.pair.len());
        self.pair.extend_from_slice(&bytes[..room.min(bytes.len())]);
    }

    fn end_pair(&mut self) -> Result<(), BodyScanError> {
        let pair = std::mem::take(&mut self.pair);
        let at = pair.iter().position(|byte| *byte == b'=').unwrap_or(pair.len());

        if decode(&pair[..at]) != self.field.as_bytes() {
            return Ok(());
        }
        if pair.len() >= 3 * TEXT_LIMIT_BYTES {
            return Err(BodyScanError::NameTooLong { limit_bytes: TEXT_LIMIT_BYTES });
        }
        self.found.note(text_value(decode(pair.get(at + 1..).unwrap_or_default()))?)
    }
}

fn decode(encoded: &[u8]) -> Vec<u8> {
    let spaced: Vec<u8> = encoded.iter().map(|byte| if *byte == b'+' { b' ' } else { *byte }).collect();
    percent_decode(&spaced).collect()
}

/// The value of a parameter of a query.
///
/// # Errors
/// If the query has two different ones.
pub fn query_parameter(query: &str, parameter: &str) -> Result<Option<String>, BodyScanError> {
    let mut scanner = UrlencodedScanner::new(parameter);
    scanner.push(query.as_bytes())?;
    scanner.finish()?;
    Ok(scanner.model().map(str::to_owned))
}

/// The query without these parameters; `None`: nothing is left.
pub fn query_without(query: &str, removed: &[String]) -> Option<String> {
    let is_kept = |pair: &&str| {
        let name = pair.split('=').next().unwrap_or_default();
        !removed.iter().any(|removed| decode(name.as_bytes()) == removed.as_bytes())
    };

    let kept: Vec<&str> = query.split('&').filter(is_kept).collect();
    let is_empty = kept.iter().all(|pair| pair.is_empty());
    (!is_empty).then(|| kept.join("&"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn multipart(body: &str) -> Result<Option<String>, BodyScanError> {
        let mut scanner = MultipartScanner::new("B", "model");
        for piece in body.as_bytes().chunks(7) {
            scanner.push(piece)?;
        }
        Ok(scanner.model().map(str::to_owned))
    }

    fn part(disposition: &str, content: &str) -> String {
        format!("--B\r\nContent-Disposition: form-data; {disposition}\r\n\r\n{content}\r\n")
    }

    #[test]
    fn the_part_of_a_form() {
        let file = part(r#"name="file"; filename="model""#, "model=x");
        let model = part(r#"name="model""#, "a/b");

        assert_eq!(multipart(&format!("{model}{file}--B--\r\n")), Ok(Some("a/b".to_owned())));
        assert_eq!(multipart(&format!("{file}{model}--B--\r\n")), Ok(Some("a/b".to_owned())));
        assert_eq!(multipart(&format!("{file}--B--\r\n")), Ok(None));
        let other = part(r#"name="model""#, "c");
        assert!(matches!(multipart(&format!("{model}{file}{other}--B--")), Err(BodyScanError::TwoNames { .. })));
        assert_eq!(multipart("garbage"), Err(BodyScanError::Multipart));
    }

    #[test]
    fn the_pair_of_a_form() {
        let model = |body: &str| {
            let mut scanner = UrlencodedScanner::new("model");
            for piece in body.as_bytes().chunks(3) {
                scanner.push(piece)?;
            }
            scanner.finish()?;
            Ok(scanner.model().map(str::to_owned))
        };

        assert_eq!(model("a=1&mod%65l=x+%2fy&b=2"), Ok(Some("x /y".to_owned())));
        assert_eq!(model("model=a&model=a"), Ok(Some("a".to_owned())));
        assert_eq!(model("models=a&model="), Ok(None));
        assert!(matches!(model("model=a&model=b"), Err(BodyScanError::TwoNames { .. })));
        assert_eq!(model(&format!("x={}&model=a", "y".repeat(100_000))), Ok(Some("a".to_owned())));
    }

    #[test]
    fn parameters_are_cut_out_of_a_query() {
        let removed = ["autoload".to_owned()];
        let cut = |query| query_without(query, &removed);

        assert_eq!(cut("model=a&autoload=true&x=%2f").as_deref(), Some("model=a&x=%2f"));
        assert_eq!(cut("auto%6coad=1"), None);
        assert_eq!(cut("autoload"), None);
        assert_eq!(cut("autoloads=1").as_deref(), Some("autoloads=1"));
    }
}
