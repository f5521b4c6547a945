//! `multipart/form-data`, pushed in pieces of any size. Accepts and refuses what the peer's parser (python-multipart
//! under Starlette) accepts and refuses, and holds no more than one boundary or one part's headers.

use memchr::memmem;

use super::header::Parameters;

/// One part's headers; far more than any client sends.
const HEADERS_LIMIT_BYTES: usize = 16 << 10;

#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    Begin {
        name: String,
        /// Present for files, also when empty.
        file_name: Option<String>,
        /// In lower case, without parameters.
        content_type: Option<String>,
    },
    Data(&'a [u8]),
    /// The part is whole.
    End,
}

/// The texts are the peer's.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum MultipartError {
    #[error("There was an error parsing the body")]
    Malformed,
    #[error("The Content-Disposition header field \"name\" must be provided.")]
    NoName,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Before the first boundary.
    Start,
    AfterBoundary,
    Headers,
    Data,
    /// Behind the closing boundary: whatever follows is ignored.
    Done,
}

pub struct Parser {
    /// CR LF, two hyphens, the boundary: as it stands behind a part.
    delimiter: Vec<u8>,
    stage: Stage,
    /// What has been pushed and not been understood yet.
    rest: Vec<u8>,
}

impl Parser {
    pub fn new(boundary: &str) -> Self {
        Self { delimiter: format!("\r\n--{boundary}").into_bytes(), stage: Stage::Start, rest: Vec::new() }
    }

    pub fn push<E: From<MultipartError>>(
        &mut self,
        piece: &[u8],
        mut on_event: impl FnMut(Event<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut rest = std::mem::take(&mut self.rest);
        // Most of a file is understood where it lies.
        let input = if rest.is_empty() {
            piece
        } else {
            rest.extend_from_slice(piece);
            &rest
        };
        let mut at = 0;
        while let Some(used) = self.step(&input[at..], &mut on_event)? {
            at += used;
        }
        self.rest = input[at..].to_vec();
        Ok(())
    }

    /// Understands the beginning of `input`: how many bytes of it, or `None` when more is needed.
    fn step<E: From<MultipartError>>(
        &mut self,
        input: &[u8],
        on_event: &mut impl FnMut(Event<'_>) -> Result<(), E>,
    ) -> Result<Option<usize>, E> {
        match self.stage {
            Stage::Start => {
                let line_ends = input.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
                if line_ends > 0 {
                    // However many: they are not kept.
                    return Ok(Some(line_ends));
                }
                let boundary = &self.delimiter[2..];
                let Some(found) = input.get(..boundary.len()) else {
                    return if boundary.starts_with(input) { Ok(None) } else { Err(MultipartError::Malformed.into()) };
                };
                if found != boundary {
                    return Err(MultipartError::Malformed.into());
                }
                self.stage = Stage::AfterBoundary;
                Ok(Some(boundary.len()))
            }
            Stage::AfterBoundary => match boundary_end(input) {
                BoundaryEnd::Unknown => Ok(None),
                BoundaryEnd::None => Err(MultipartError::Malformed.into()),
                BoundaryEnd::Next(used) => {
                    self.stage = Stage::Headers;
                    Ok(Some(used))
                }
                BoundaryEnd::Last => {
                    self.stage = Stage::Done;
                    Ok(Some(input.len()))
                }
            },
            Stage::Headers => {
                let end = if input.starts_with(b"\r\n") { Some(0) } else { memmem::find(input, b"\r\n\r\n") };
                let Some(end) = end else {
                    return if input.len() > HEADERS_LIMIT_BYTES {
                        Err(MultipartError::Malformed.into())
                    } else {
                        Ok(None)
                    };
                };
                on_event(begin(&input[..end])?)?;
                self.stage = Stage::Data;
                Ok(Some(if end == 0 { 2 } else { end + 4 }))
            }
            Stage::Data => self.data(input, on_event),
            Stage::Done => Ok(if input.is_empty() { None } else { Some(input.len()) }),
        }
    }

    fn data<E>(
        &mut self,
        input: &[u8],
        on_event: &mut impl FnMut(Event<'_>) -> Result<(), E>,
    ) -> Result<Option<usize>, E> {
        let (used, ended) = match memmem::find(input, &self.delimiter) {
            Some(found) => {
                let behind = found + self.delimiter.len();
                match boundary_end(&input[behind..]) {
                    BoundaryEnd::Unknown => (found, false),
                    // The boundary as a part of something longer is data.
                    BoundaryEnd::None => (behind, false),
                    BoundaryEnd::Next(_) | BoundaryEnd::Last => (found, true),
                }
            }
            None => {
                // A delimiter may have begun.
                let kept = (0..self.delimiter.len().min(input.len() + 1)).rev();
                let begun = kept.into_iter().find(|len| input.ends_with(&self.delimiter[..*len]));
                (input.len() - begun.unwrap_or(0), false)
            }
        };
        if used > 0 {
            on_event(Event::Data(&input[..used]))?;
        }
        if ended {
            on_event(Event::End)?;
            self.stage = Stage::AfterBoundary;
            return Ok(Some(used + self.delimiter.len()));
        }
        Ok(if used > 0 { Some(used) } else { None })
    }
}

enum BoundaryEnd {
    Unknown,
    /// Not a boundary after all.
    None,
    /// A part follows behind this many bytes.
    Next(usize),
    Last,
}

/// What stands behind a boundary: padding (RFC 2046) and a line end, or two hyphens.
fn boundary_end(input: &[u8]) -> BoundaryEnd {
    let padding = input.iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
    match &input[padding..] {
        [b'\r', b'\n', ..] => BoundaryEnd::Next(padding + 2),
        [b'-', b'-', ..] if padding == 0 => BoundaryEnd::Last,
        [] | [b'\r'] if padding < HEADERS_LIMIT_BYTES => BoundaryEnd::Unknown,
        [b'-'] if padding == 0 => BoundaryEnd::Unknown,
        _ => BoundaryEnd::None,
    }
}

fn begin(headers: &[u8]) -> Result<Event<'static>, MultipartError> {
    let (mut disposition, mut content_type) = (None, None);
    for line in headers.split(|byte| *byte == b'\n') {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            continue;
        }
        let colon = line.iter().position(|byte| *byte == b':').ok_or(MultipartError::Malformed)?;
        if line[..colon].eq_ignore_ascii_case(b"content-disposition") {
            disposition = Some(Parameters::parse(&line[colon + 1..]));
        } else if line[..colon].eq_ignore_ascii_case(b"content-type") {
            content_type = Some(Parameters::parse(&line[colon + 1..]).value);
        }
    }
    let disposition = disposition.ok_or(MultipartError::NoName)?;
    let name = disposition.get("name").ok_or(MultipartError::NoName)?.to_owned();
    Ok(Event::Begin { name, file_name: disposition.get("filename").map(str::to_owned), content_type })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Default, PartialEq, Eq)]
    struct Part {
        name: String,
        file_name: Option<String>,
        data: Vec<u8>,
        whole: bool,
    }

    fn parse(boundary: &str, pieces: &[&[u8]]) -> Result<Vec<Part>, MultipartError> {
        let mut parts: Vec<Part> = Vec::new();
        let mut parser = Parser::new(boundary);
        for piece in pieces {
            parser.push(piece, |event| {
                match event {
                    Event::Begin { name, file_name, .. } => parts.push(Part { name, file_name, ..Part::default() }),
                    Event::Data(data) => parts.last_mut().unwrap().data.extend_from_slice(data),
                    Event::End => parts.last_mut().unwrap().whole = true,
                }
                Ok::<_, MultipartError>(())
            })?;
        }
        Ok(parts)
    }

    fn file(data: &[u8]) -> Vec<Part> {
        let name = "audio_file".to_owned();
        vec![Part { name: name.clone(), file_name: Some(name), data: data.to_vec(), whole: true }]
    }

    const HEAD: &[u8] = b"--B\r\nContent-Disposition: form-data; name=\"audio_file\"; filename=\"audio_file\"\r\n\r\n";

    fn body(data: &[u8], end: &[u8]) -> Vec<u8> {
        [HEAD, data, end].concat()
    }

    #[test]
    fn what_the_peer_accepts() {
        let whole = body(b"abcd", b"\r\n--B--\r\n");
        assert_eq!(parse("B", &[&whole]).unwrap(), file(b"abcd"));
        assert_eq!(parse("B", &[&body(b"abcd", b"\r\n--B--")]).unwrap(), file(b"abcd"));
        assert_eq!(parse("B", &[b"\r\n", &whole]).unwrap(), file(b"abcd"));
        assert_eq!(parse("B", &[&whole, b"epilogue"]).unwrap(), file(b"abcd"));
        assert_eq!(parse("B", &[b"--B--\r\n"]).unwrap(), []);
        assert_eq!(parse("B", &[]).unwrap(), []);
        assert_eq!(parse("B", &[&body(b"", b"\r\n--B--")]).unwrap(), file(b""));
        let truncated = parse("B", &[&body(b"abcd", b"\r\n--")]).unwrap();
        assert_eq!((truncated.len(), truncated[0].whole), (1, false));
    }

    #[test]
    fn what_the_peer_refuses() {
        let whole = body(b"abcd", b"\r\n--B--\r\n");
        assert_eq!(parse("C", &[&whole]), Err(MultipartError::Malformed));
        assert_eq!(parse("B", &[b"garbage"]), Err(MultipartError::Malformed));
        assert_eq!(parse("B", &[b"preamble\r\n", &whole]), Err(MultipartError::Malformed));
        let bare: Vec<u8> = whole.iter().copied().filter(|byte| *byte != b'\r').collect();
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
        /// However the network cuts the body, the same parts come out.
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
