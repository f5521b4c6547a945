//! The ways in which an app may read a path. A client writes `/api/%70s`, `//api/ps`, `/x/../api/ps/` or `/API/ps;a=b`
//! where it means `/api/ps`; which of these an app takes for the same route differs from server to server. So a path is
//! matched in every way that is known, and the strictest result counts.

use percent_encoding::percent_decode_str;

/// A server that decodes, and then hands the path to another one that decodes again, is known (reverse proxies in
/// front of an app); three times is one more than that.
const DECODINGS_MAX: usize = 3;

/// The segments of a path in one reading of it.
pub(super) type Segments = Vec<String>;

/// Every reading of a path. The first is the usual one: split at slashes, then decoded, without empty segments and with
/// dot segments resolved.
pub(super) fn readings(path: &str) -> Vec<Segments> {
    let decoded_parts: Segments = path.split('/').map(decode).collect();
    let mut readings = vec![resolve_dots(without_empty(decoded_parts.clone()))];
    let is_plain = !path.contains(['%', ';', '\\']) && !path.contains("//") && !path.contains("/.");
    if is_plain {
        return readings;
    }

    let mut text = path.to_owned();
    for _ in 0..=DECODINGS_MAX {
        add_readings_of(&text, &mut readings);
        let decoded = decode(&text);
        if decoded == text {
            break;
        }
        text = decoded;
    }
    readings
}

fn add_readings_of(text: &str, readings: &mut Vec<Segments>) {
    let text = text.replace('\\', "/");
    // What follows is a query, a fragment, or the end of a C string for a server that decodes before it splits.
    let cut = text.split(['?', '#', '\0']).next().unwrap_or_default();

    for text in [text.as_str(), cut] {
        let parts: Segments = text.split('/').map(str::to_owned).collect();
        // Parameters of segments, as servlets have them.
        let without_parameters: Segments = parts
            .iter()
            .map(|part| part.split(';').next().unwrap_or_default().trim_matches(is_blank).to_owned())
            .collect();

        for parts in [parts, without_parameters] {
            add(without_empty(parts.clone()), readings);
            add(resolve_dots(without_empty(parts.clone())), readings);
            add(without_empty(resolve_dots(parts)), readings);
        }
    }
}

fn add(reading: Segments, readings: &mut Vec<Segments>) {
    if !readings.contains(&reading) {
        readings.push(reading);
    }
}

fn is_blank(c: char) -> bool {
    c.is_whitespace() || c.is_control()
}

fn decode(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

fn without_empty(segments: Segments) -> Segments {
    segments.into_iter().filter(|segment| !segment.is_empty()).collect()
}

fn resolve_dots(segments: Segments) -> Segments {
    let mut resolved = Vec::with_capacity(segments.len());
    for segment in segments {
        match segment.as_str() {
            "." => {}
            ".." => drop(resolved.pop()),
            _ => resolved.push(segment),
        }
    }
    resolved
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined(path: &str) -> Vec<String> {
        readings(path).into_iter().map(|reading| reading.join("/")).collect()
    }

    #[test]
    fn a_plain_path_has_one_reading() {
        assert_eq!(joined("/api/ps"), ["api/ps"]);
        assert_eq!(joined("/api/ps/"), ["api/ps"]);
        assert_eq!(joined("/"), [""]);
        assert_eq!(joined(""), [""]);
        assert_eq!(joined("/v1/models/a.b-c"), ["v1/models/a.b-c"]);
    }

    #[test]
    fn the_usual_reading_keeps_an_encoded_slash_within_its_segment() {
        assert_eq!(readings("/m/org%2Fname/infer")[0], ["m", "org/name", "infer"]);
        assert_eq!(readings("/a/./b/../c")[0], ["a", "c"]);
    }

    #[test]
    fn hidden_forms_are_among_the_readings() {
        for hidden in [
            "//api//ps",
            "/api/%70s",
            "/api%2fps",
            "/api%252Fps",
            "/x/../api/ps",
            "/x/%2e%2e/api/ps",
            "/api/./ps/",
            "/api\\ps",
            "/api%5cps",
            "/api;v=1/ps;x",
            "/api/ps%00.png",
            "/api/ps%3Fa=b",
            "/api/ps%23",
            "/api/ps%20",
            "/api/%09ps",
            "/api/ps/x/..",
            "/../../api/ps",
            "/api//../ps",
        ] {
            assert!(joined(hidden).contains(&"api/ps".to_owned()), "{hidden}: {:?}", joined(hidden));
        }
    }
}
