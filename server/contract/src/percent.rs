//! Percent-encoding of text in a URL: every byte but those of the unreserved characters of RFC 3986 becomes `%XX`.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, PercentEncode, utf8_percent_encode};

const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// A slash has no special meaning in a query.
const QUERY_VALUE: &AsciiSet = &SEGMENT.remove(b'/');

/// Encodes text as one segment of a path.
pub fn segment(text: &str) -> PercentEncode<'_> {
    utf8_percent_encode(text, SEGMENT)
}

/// Encodes text as a value of a query.
pub fn query_value(text: &str) -> PercentEncode<'_> {
    utf8_percent_encode(text, QUERY_VALUE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_characters_are_encoded() {
        assert_eq!(segment("media/a b&c=d%ü").to_string(), "media%2Fa%20b%26c%3Dd%25%C3%BC");
        assert_eq!(query_value("media/a b&c=d%ü").to_string(), "media/a%20b%26c%3Dd%25%C3%BC");
        let unreserved = "aZ09-._~";
        assert_eq!(segment(unreserved).to_string(), unreserved);
    }
}
