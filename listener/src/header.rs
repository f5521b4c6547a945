//! Parsing of header values with parameters (`form-data; name="a"; filename="b"`) as whisper-asr-webservice's stack
//! parses them (python-multipart's `parse_options_header`), and quoting of file names for answers.

/// A header value and its parameters. The names are in lower case; the last parameter of a name wins.
#[derive(Debug, PartialEq, Eq)]
pub struct HeaderParameters {
    pub value: String,
    parameters: Vec<(String, String)>,
}

impl HeaderParameters {
    pub fn parse(header: &[u8]) -> Self {
        let header = decode(header);
        let mut pieces = split_unquoted(&header);
        let value = pieces.next().unwrap_or_default().trim().to_ascii_lowercase();

        let parameters = pieces.filter_map(|piece| {
            let (name, value) = piece.split_once('=')?;
            Some(parameter(name.trim().to_ascii_lowercase(), value.trim()))
        });
        Self { value, parameters: parameters.collect() }
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        let with_charset = self.parameters.iter().rfind(|(known, _)| known.strip_suffix('*') == Some(name));

        let plain = || self.parameters.iter().rfind(|(known, _)| known == name);
        with_charset.or_else(plain).map(|(_, value)| value.as_str())
    }
}

/// Decodes UTF-8, or Latin-1 where the bytes are not UTF-8.
pub fn decode(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => latin1(bytes),
    }
}

fn latin1(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| char::from(*byte)).collect()
}

/// Splits at semicolons outside of quotes.
fn split_unquoted(header: &str) -> impl Iterator<Item = &str> {
    let (mut quoted, mut escaped) = (false, false);
    header.split(move |c| {
        let splits = c == ';' && !quoted;
        if c == '"' && !escaped {
            quoted = !quoted;
        }

        escaped = c == '\\' && !escaped;
        splits
    })
}

fn parameter(name: String, value: &str) -> (String, String) {
    let quoted = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
    let unescaped = match quoted {
        Some(value) => value.replace(r"\\", r"\").replace("\\\"", "\""),
        None => value.to_owned(),
    };

    let value = match name.as_str() {
        "filename" => without_folders(&unescaped).to_owned(),
        name if name.ends_with('*') => decode_extended(&unescaped),
        _ => unescaped,
    };

    (name, value)
}

/// Removes the folders of a Windows path: Internet Explorer sent whole paths.
fn without_folders(file_name: &str) -> &str {
    let is_windows_path = file_name.get(1..3) == Some(r":\") || file_name.starts_with(r"\\");
    if is_windows_path { file_name.rsplit('\\').next().unwrap_or(file_name) } else { file_name }
}

/// Decodes an decode_extended value of RFC 5987: `charset'language'percent-encoded`.
fn decode_extended(value: &str) -> String {
    let mut pieces = value.splitn(3, '\'');
    let (Some(charset), Some(_), Some(encoded)) = (pieces.next(), pieces.next(), pieces.next()) else {
        return value.to_owned();
    };

    let bytes = percent_decode(encoded);
    if charset.eq_ignore_ascii_case("iso-8859-1") { latin1(&bytes) } else { decode(&bytes) }
}

fn percent_decode(text: &str) -> Vec<u8> {
    let hex = |byte: Option<&u8>| byte.and_then(|byte| char::from(*byte).to_digit(16));

    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        match (byte, hex(bytes.get(at + 1)), hex(bytes.get(at + 2))) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                at += 3;
            }
            _ => {
                out.push(*byte);
                at += 1;
            }
        }
    }

    out
}

/// Python's `urllib.parse.quote`: keeps letters, digits, `_.-~` and `/`.
pub fn quote(text: &str) -> String {
    quote_unless(text, |byte| byte.is_ascii_alphanumeric() || b"_.-~/".contains(&byte))
}

/// Percent-encodes only what may not stand between the quotes of a header parameter.
pub fn quote_unprintable(text: &str) -> String {
    quote_unless(text, |byte| matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\')
}

fn quote_unless(text: &str, is_kept: impl Fn(u8) -> bool) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if is_kept(byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }

    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Measured: FastAPI 0.115.14, python-multipart 0.0.20.
    #[test]
    fn file_names_are_parsed_as_whisper_asr_webservice_parses_them() {
        let cases = [
            (r#"filename="audio_file""#, "audio_file"),
            (r#"filename="a b é.wav""#, "a b é.wav"),
            ("filename=token.wav", "token.wav"),
            ("filename*=UTF-8''a%20b%20%C3%A9.wav", "a b é.wav"),
            (r#"filename="x.wav"; filename*=UTF-8''a%20b%20%C3%A9.wav"#, "a b é.wav"),
            ("filename*=iso-8859-1''%e9.wav", "é.wav"),
            (r#"filename="a\"b.wav""#, r#"a"b.wav"#),
            (r#"filename="C:\\x\\a.wav""#, "a.wav"),
            (r#"filename="C:\x\a.wav""#, "a.wav"),
            (r#"filename="a;b/c~d-e_f.g%h+i'(j)!.wav""#, "a;b/c~d-e_f.g%h+i'(j)!.wav"),
            (r#"filename="../../etc/passwd""#, "../../etc/passwd"),
            (r#"FILENAME="a""#, "a"),
            (r#"filename= "sp""#, "sp"),
            (r#"filename="a%22b.wav""#, "a%22b.wav"),
            (r#"filename="""#, ""),
        ];
        for (given, expected) in cases {
            let header = format!(r#"form-data; name="audio_file"; {given}"#);
            let parsed = HeaderParameters::parse(header.as_bytes());
            assert_eq!(parsed.get("filename"), Some(expected), "{given}");
            assert_eq!(parsed.get("name"), Some("audio_file"), "{given}");
            assert_eq!(parsed.value, "form-data");
        }

        let latin1 = HeaderParameters::parse(b"form-data; name=\"audio_file\"; filename=\"\xe9.wav\"");
        assert_eq!(latin1.get("filename"), Some("é.wav"));

        assert_eq!(HeaderParameters::parse(b"form-data; name=\"a\"").get("filename"), None);
    }

    #[test]
    fn the_boundary_is_a_parameter_of_the_content_type() {
        let boundary = |header: &str| HeaderParameters::parse(header.as_bytes()).get("boundary").map(str::to_owned);
        assert_eq!(boundary("multipart/form-data; boundary=B"), Some("B".to_owned()));
        assert_eq!(boundary(r#"multipart/form-data;boundary="B C""#), Some("B C".to_owned()));
        assert_eq!(boundary("multipart/form-data"), None);
    }

    #[test]
    fn names_are_quoted_as_urllib_quotes() {
        // python3 -c 'from urllib.parse import quote; print(quote("..."))'
        assert_eq!(quote("a b é.wav"), "a%20b%20%C3%A9.wav");
        assert_eq!(quote("a;b/c~d-e_f.g%h+i'(j)!"), "a%3Bb/c~d-e_f.g%25h%2Bi%27%28j%29%21");
        assert_eq!(quote("日本 😀\t\"\r\n"), "%E6%97%A5%E6%9C%AC%20%F0%9F%98%80%09%22%0D%0A");
        assert_eq!(quote_unprintable("srt"), "srt");
        assert_eq!(quote_unprintable("a b\"\\\r\né"), "a b%22%5C%0D%0A%C3%A9");
    }
}
