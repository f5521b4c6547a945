//! Text inside a URL: everything but the unreserved characters of RFC 3986 as `%XX`.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, PercentEncode, utf8_percent_encode};

const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// Slashes mean nothing there.
const QUERY_VALUE: &AsciiSet = &SEGMENT.remove(b'/');

/// As one segment of a path.
pub fn segment(text: &str) -> PercentEncode<'_> {
    utf8_percent_encode(text, SEGMENT)
}

/// As a value of a query.
pub fn query_value(text: &str) -> PercentEncode<'_> {
    utf8_percent_encode(text, QUERY_VALUE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_means_something_in_a_url_is_written_out() {
        assert_eq!(segment("media/a b&c=d%ü").to_string(), "media%2Fa%20b%26c%3Dd%25%C3%BC");
        assert_eq!(query_value("media/a b&c=d%ü").to_string(), "media/a%20b%26c%3Dd%25%C3%BC");
        let unreserved = "aZ09-._~";
        assert_eq!(segment(unreserved).to_string(), unreserved);
    }
}
