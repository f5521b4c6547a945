//! Parser of `multipart/form-data` that takes pieces of any size. Accepts and refuses what the parser of
//! whisper-asr-webservice (python-multipart under Starlette) accepts and refuses, and buffers no more than one boundary
//! or the headers of one part.

use memchr::memmem;

use crate::header::HeaderParameters;

/// Limit for the headers of one part; far more than any client sends.
const HEADERS_LIMIT_BYTES: usize = 16 << 10;

#[derive(Debug, PartialEq, Eq)]
pub enum MultipartEvent<'a> {
    Begin {
        name: String,
        /// Present for files, also when empty.
        file_name: Option<String>,
        /// In lower case, without parameters.
        content_type: Option<String>,
    },
    Data(&'a [u8]),
    /// The part is complete.
    End,
}

/// The texts are those of whisper-asr-webservice.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum MultipartError {
    #[error("There was an error parsing the body")]
    Malformed,
    #[error("The Content-Disposition header field \"name\" must be provided.")]
    NoName,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ParserState {
    /// Before the first boundary.
    Start,
    AfterBoundary,
    Headers,
    Data,
    /// Behind the closing boundary; all further bytes are ignored.
    Done,
}

pub struct MultipartParser {
    /// CR LF, two hyphens and the boundary, as they follow the data of a part.
    delimiter: Vec<u8>,
    state: ParserState,
    /// Bytes that were pushed and not consumed yet.
    unparsed: Vec<u8>,
}

impl MultipartParser {
    pub fn new(boundary: &str) -> Self {
        Self { delimiter: format!("\r\n--{boundary}").into_bytes(), state: ParserState::Start, unparsed: Vec::new() }
    }

    pub fn push<E: From<MultipartError>>(
        &mut self,
        piece: &[u8],
        mut on_event: impl FnMut(MultipartEvent<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut rest = std::mem::take(&mut self.unparsed);
        // Most of a file is parsed without a copy.
        let input = if rest.is_empty() {
            piece
        } else {
            rest.extend_from_slice(piece);
            &rest
        };

        let mut at = 0;
        while let Some(used) = self.parse_next(&input[at..], &mut on_event)? {
            at += used;
        }

        self.unparsed = input[at..].to_vec();
        Ok(())
    }

    /// Parses the beginning of `input`. Returns the number of bytes that it consumed, or `None` when it needs more.
    fn parse_next<E: From<MultipartError>>(
        &mut self,
        input: &[u8],
        on_event: &mut impl FnMut(MultipartEvent<'_>) -> Result<(), E>,
    ) -> Result<Option<usize>, E> {
        match self.state {
            ParserState::Start => {
                let line_ends = input.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
                if line_ends > 0 {
                    // Any number of line ends may come first.
                    return Ok(Some(line_ends));
                }

                let boundary = &self.delimiter[2..];
                let Some(found) = input.get(..boundary.len()) else {
                    return if boundary.starts_with(input) { Ok(None) } else { Err(MultipartError::Malformed.into()) };
                };

                if found != boundary {
                    return Err(MultipartError::Malformed.into());
                }

                self.state = ParserState::AfterBoundary;
                Ok(Some(boundary.len()))
            }
            ParserState::AfterBoundary => match boundary_end(input) {
                BoundaryEnd::Incomplete => Ok(None),
                BoundaryEnd::NotABoundary => Err(MultipartError::Malformed.into()),
                BoundaryEnd::Next(used) => {
                    self.state = ParserState::Headers;
                    Ok(Some(used))
                }
                BoundaryEnd::Last => {
                    self.state = ParserState::Done;
                    Ok(Some(input.len()))
                }
            },
            ParserState::Headers => {
                let end = if input.starts_with(b"\r\n") { Some(0) } else { memmem::find(input, b"\r\n\r\n") };
                let Some(end) = end else {
                    return if input.len() > HEADERS_LIMIT_BYTES {
                        Err(MultipartError::Malformed.into())
                    } else {
                        Ok(None)
                    };
                };

                on_event(begin_event(&input[..end])?)?;
                self.state = ParserState::Data;
                Ok(Some(if end == 0 { 2 } else { end + 4 }))
            }
            ParserState::Data => self.parse_data(input, on_event),
            ParserState::Done => Ok(if input.is_empty() { None } else { Some(input.len()) }),
        }
    }

    fn parse_data<E>(
        &mut self,
        input: &[u8],
        on_event: &mut impl FnMut(MultipartEvent<'_>) -> Result<(), E>,
    ) -> Result<Option<usize>, E> {
        let (used, ended) = match memmem::find(input, &self.delimiter) {
            Some(found) => {
                let behind = found + self.delimiter.len();
                match boundary_end(&input[behind..]) {
                    BoundaryEnd::Incomplete => (found, false),
                    // A boundary that is the beginning of a longer text is data.
                    BoundaryEnd::NotABoundary => (behind, false),
                    BoundaryEnd::Next(_) | BoundaryEnd::Last => (found, true),
                }
            }
            None => {
                // A delimiter may begin at the end of the input.
                let kept = (0..self.delimiter.len().min(input.len() + 1)).rev();
                let begun = kept.into_iter().find(|len| input.ends_with(&self.delimiter[..*len]));
                (input.len() - begun.unwrap_or(0), false)
            }
        };

        if used > 0 {
            on_event(MultipartEvent::Data(&input[..used]))?;
        }

        if ended {
            on_event(MultipartEvent::End)?;
            self.state = ParserState::AfterBoundary;
            return Ok(Some(used + self.delimiter.len()));
        }
        Ok(if used > 0 { Some(used) } else { None })
    }
}

enum BoundaryEnd {
    /// More input is needed.
    Incomplete,
    /// The bytes are not a boundary.
    NotABoundary,
    /// A part follows after this many bytes.
    Next(usize),
    /// The closing boundary.
    Last,
}

/// Classifies what follows a boundary: padding (RFC 2046) and a line end, or two hyphens.
fn boundary_end(input: &[u8]) -> BoundaryEnd {
    let padding = input.iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
    match &input[padding..] {
        [b'\r', b'\n', ..] => BoundaryEnd::Next(padding + 2),
        [b'-', b'-', ..] if padding == 0 => BoundaryEnd::Last,
        [] | [b'\r'] if padding < HEADERS_LIMIT_BYTES => BoundaryEnd::Incomplete,
        [b'-'] if padding == 0 => BoundaryEnd::Incomplete,
        _ => BoundaryEnd::NotABoundary,
    }
}

fn begin_event(headers: &[u8]) -> Result<MultipartEvent<'static>, MultipartError> {
    let (mut disposition, mut content_type) = (None, None);

    for line in headers.split(|byte| *byte == b'\n') {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            continue;
        }

        let colon = line.iter().position(|byte| *byte == b':').ok_or(MultipartError::Malformed)?;
        if line[..colon].eq_ignore_ascii_case(b"content-disposition") {
            disposition = Some(HeaderParameters::parse(&line[colon + 1..]));
        } else if line[..colon].eq_ignore_ascii_case(b"content-type") {
            content_type = Some(HeaderParameters::parse(&line[colon + 1..]).value);
        }
    }

    let disposition = disposition.ok_or(MultipartError::NoName)?;
    let name = disposition.get("name").ok_or(MultipartError::NoName)?.to_owned();
    Ok(MultipartEvent::Begin { name, file_name: disposition.get("filename").map(str::to_owned), content_type })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Default, PartialEq, Eq)]
    struct ParsedPart {
        name: String,
        file_name: Option<String>,
        data: Vec<u8>,
        is_whole: bool,
    }

    fn parse(boundary: &str, pieces: &[&[u8]]) -> Result<Vec<ParsedPart>, MultipartError> {
        let mut parts: Vec<ParsedPart> = Vec::new();
        let mut parser = MultipartParser::new(boundary);
        for piece in pieces {
            parser.push(piece, |event| {
                match event {
                    MultipartEvent::Begin { name, file_name, .. } => {
                        parts.push(ParsedPart { name, file_name, ..ParsedPart::default() })
                    }
                    MultipartEvent::Data(data) => parts.last_mut().unwrap().data.extend_from_slice(data),
                    MultipartEvent::End => parts.last_mut().unwrap().is_whole = true,
                }

                Ok::<_, MultipartError>(())
            })?;
        }
        Ok(parts)
    }

    fn file(data: &[u8]) -> Vec<ParsedPart> {
        let name = "audio_file".to_owned();
        vec![ParsedPart { name: name.clone(), file_name: Some(name), data: data.to_vec(), is_whole: true }]
    }

    const HEAD: &[u8] = b"--B\r\nContent-Disposition: form-data; name=\"audio_file\"; filename=\"audio_file\"\r\n\r\n";

    fn body(data: &[u8], end: &[u8]) -> Vec<u8> {
        [HEAD, data, end].concat()
    }

    #[test]
    fn bodies_that_whisper_asr_webservice_accepts() {
        let whole_body = body(b"abcd", b"\r\n--B--\r\n");
        assert_eq!(parse("B", &[&whole_body]).unwrap(), file(b"abcd"));
        assert_eq!(parse("B", &[&body(b"abcd", b"\r\n--B--")]).unwrap(), file(b"abcd"));
        assert_eq!(parse("B", &[b"\r\n", &whole_body]).unwrap(), file(b"abcd"));
        assert_eq!(parse("B", &[&whole_body, b"epilogue"]).unwrap(), file(b"abcd"));
        assert_eq!(parse("B", &[b"--B--\r\n"]).unwrap(), []);
        assert_eq!(parse("B", &[]).unwrap(), []);
        assert_eq!(parse("B", &[&body(b"", b"\r\n--B--")]).unwrap(), file(b""));

        let truncated = parse("B", &[&body(b"abcd", b"\r\n--")]).unwrap();
        assert_eq!((truncated.len(), truncated[0].is_whole), (1, false));
    }

    #[test]
    fn bodies_that_whisper_asr_webservice_refuses() {
        let whole_body = body(b"abcd", b"\r\n--B--\r\n");
        assert_eq!(parse("C", &[&whole_body]), Err(MultipartError::Malformed));
        assert_eq!(parse("B", &[b"garbage"]), Err(MultipartError::Malformed));
        assert_eq!(parse("B", &[b"preamble\r\n", &whole_body]), Err(MultipartError::Malformed));

        let bare: Vec<u8> = whole_body.iter().copied().filter(|byte| *byte != b'\r').collect();
        assert_eq!(parse("B", &[&bare]), Err(MultipartError::Malformed));
        assert_eq!(parse("B", &[b"--B\r\nX: y\r\n\r\nabc\r\n--B--\r\n"]), Err(MultipartError::NoName));
        let unnamed = b"--B\r\nContent-Disposition: form-data; filename=\"x\"\r\n\r\nabc\r\n--B--\r\n";
        assert_eq!(parse("B", &[unnamed]), Err(MultipartError::NoName));
        assert_eq!(parse("B", &[b"--B\r\n", &[b'x'; 20_000]]), Err(MultipartError::Malformed));
    }

    #[test]
    fn data_that_looks_like_a_boundary_is_data() {
        for data in [&b"\r\n--BB--"[..], b"\r\n-", b"\r\n\r\n--C\r", b"--B--", b"\r\n--B-x", b"\r\n--B\rx", b"\r\r\n--"]
        {
            assert_eq!(parse("B", &[&body(data, b"\r\n--B--\r\n")]).unwrap(), file(data), "{data:?}");
        }
    }

    proptest! {
        /// The pieces in which the network delivers a body do not change the parts.
        #[test]
        fn pieces_do_not_matter(
            data in prop::collection::vec(prop::sample::select(b"\r\n-B x".to_vec()), 0..60),
            mut cuts in prop::collection::vec(0usize..200, 0..12),
        ) {
            let body = body(&data, b"\r\n--B\r\nContent-Disposition: form-data; name=output\r\n\r\nsrt\r\n--B--\r\n");
            let expected = parse("B", &[&body]);

            cuts.retain(|cut| *cut < body.len());
            cuts.sort_unstable();

            let bounds: Vec<usize> = [vec![0], cuts, vec![body.len()]].concat();
            let pieces: Vec<&[u8]> = bounds.windows(2).map(|window| &body[window[0]..window[1]]).collect();
            prop_assert_eq!(parse("B", &pieces), expected);
        }

        #[test]
        fn any_data_comes_through(data in prop::collection::vec(any::<u8>(), 0..4096)) {
            prop_assert_eq!(parse("B", &[&body(&data, b"\r\n--B--\r\n")]).unwrap(), file(&data));
        }
    }
}
