//! Recognises by its first bytes what kind of file an upload is, for messages and for the choice of a decoder.

use std::fmt::Write as _;

use hush_listener::spool::Spooled;

const HEAD_BYTES: usize = 1_024;
const SHOWN_BYTES: usize = 8;

/// Signatures: position, bytes, and the kind of file. The first match counts.
const SIGNATURES: &[(usize, &[u8], &str)] = &[
    (0, b"%PDF", "a PDF document"),
    (0, b"\x89PNG", "a PNG image"),
    (0, b"\xff\xd8\xff", "a JPEG image"),
    (0, b"GIF8", "a GIF image"),
    (8, b"WEBP", "a WebP image"),
    (0, b"BM", "a BMP image"),
    (0, b"II*\0", "a TIFF image"),
    (0, b"MM\0*", "a TIFF image"),
    (4, b"ftyphei", "a HEIF image"),
    (4, b"ftypavif", "an AVIF image"),
    (0, b"PK\x03\x04", "a ZIP archive, or an office document"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"BZh", "a bzip2 archive"),
    (0, b"\xfd7zXZ", "an xz archive"),
    (0, b"\x28\xb5\x2f\xfd", "a Zstandard archive"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (0, b"Rar!", "a RAR archive"),
    (257, b"ustar", "a tar archive"),
    (0, b"\xd0\xcf\x11\xe0", "an old office document"),
    (0, b"{\\rtf", "an RTF document"),
    (0, b"SQLite format 3", "an SQLite database"),
    (0, b"\x7fELF", "a program"),
    (0, b"MZ", "a program"),
    (0, b"MThd", "a MIDI file, which holds notes and no sound"),
    (4, b"ftypaax", "an Audible book, which is encrypted"),
    (0, b"\x03ds2", "a DS2 dictation, which only the maker's software reads"),
    (0, b"\x02dss", "a DSS dictation"),
    (0, b"NIST_1A", "a NIST SPHERE file"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "a Windows Media (ASF) file"),
    (0, b"\x1a\x45\xdf\xa3", "a Matroska or WebM file"),
    (4, b"ftyp", "an MP4 file"),
    (4, b"moov", "a QuickTime file"),
    (4, b"mdat", "a QuickTime file"),
    (4, b"moof", "a fragment of an MP4 file, without its beginning"),
    (8, b"AVI ", "an AVI file"),
    (8, b"WAVE", "a WAV file"),
    (0, b"RF64", "a WAV file of more than 4 GiB (RF64)"),
    (0, b"riff\x2e\x91\xcf\x11", "a Wave64 file"),
    (0, b"FORM", "an AIFF or IFF file"),
    (0, b"OggS", "an Ogg file"),
    (0, b"fLaC", "a FLAC file"),
    (0, b"ID3", "an MP3 file"),
    (0, b"FLV\x01", "a Flash video"),
    (0, b".RMF", "a RealMedia file"),
    (0, b"#!AMR", "an AMR file"),
    (0, b"MAC ", "a Monkey's Audio file"),
    (0, b"wvpk", "a WavPack file"),
    (0, b"TTA1", "a True Audio file"),
    (0, b"DSD ", "a DSD file"),
    (0, b"caff", "a Core Audio file"),
    (0, b".snd", "an AU file"),
    (0, b"\0\0\x01\xba", "an MPEG program stream"),
];

/// How text files begin, in lower case, and their kind.
const TEXT_SIGNATURES: &[(&str, &str)] = &[
    ("#extm3u", "a playlist (M3U), which names other files; send the audio itself"),
    ("[playlist]", "a playlist (PLS), which names other files; send the audio itself"),
    ("ffconcat", "a list of files; send the audio itself"),
    ("v=0", "a session description (SDP), which names a stream; send the audio itself"),
    ("webvtt", "subtitles (WebVTT)"),
    ("<!doctype html", "a web page (HTML)"),
    ("<html", "a web page (HTML)"),
    ("<svg", "an SVG image"),
    ("<?xml", "an XML document"),
    ("<", "an XML document"),
    ("{", "JSON"),
    ("[", "JSON"),
    ("data:", "a data URL; send the bytes themselves"),
    ("http://", "an address; send the audio itself"),
    ("https://", "an address; send the audio itself"),
];

/// Containers that the built-in decoders do not know. They would find frames of an MP3 or AAC track in them, and lose
/// the times of these frames.
const FFMPEG_FIRST: &[&str] = &[
    "an AVI file",
    "a Flash video",
    "a RealMedia file",
    "a Windows Media (ASF) file",
    "an MPEG program stream",
    TRANSPORT,
];
const TRANSPORT: &str = "an MPEG transport stream";

/// Whether ffmpeg decodes this kind of file before the built-in decoders try it.
pub(super) fn needs_ffmpeg_first(input: &Spooled) -> bool {
    let mut head = [0; HEAD_BYTES];

    let length = HEAD_BYTES.min(usize::try_from(input.len_bytes()).unwrap_or(HEAD_BYTES));
    let is_read = input.read_exact_at(&mut head[..length], 0).is_ok();
    is_read && kind_of(&head[..length]).is_some_and(|kind| FFMPEG_FIRST.contains(&kind))
}

/// Decoders search a shorter text fast enough.
const LONG_TEXT_BYTES: u64 = 64 << 10;

/// Whether the file is text, judged by samples of its beginning, middle and end, and so long that decoders would search
/// in it for a long time.
pub(super) fn is_long_text(input: &Spooled) -> bool {
    let whole = input.len_bytes();
    if whole < LONG_TEXT_BYTES {
        return false;
    }

    let length = (HEAD_BYTES as u64).min(whole);
    [0, (whole - length) / 2, whole - length].into_iter().all(|at| {
        let mut bytes = [0; HEAD_BYTES];
        let Some(piece) = usize::try_from(length).ok().and_then(|length| bytes.get_mut(..length)) else { return false };

        if input.read_exact_at(piece, at).is_err() {
            return false;
        }

        if at == 0 && SIGNATURES.iter().any(|(at, sign, _)| piece.get(*at..).is_some_and(|rest| rest.starts_with(sign)))
        {
            return false;
        }

        // The piece may begin within a character, too.
        let cut = if at == 0 { 0 } else { piece.iter().take(3).take_while(|byte| **byte & 0xc0 == 0x80).count() };
        text_of(&piece[cut..]).is_some()
    })
}

/// The kind of the file, the name that the client sent, and the first bytes.
pub(super) fn describe(input: &Spooled, file_name: Option<&str>) -> String {
    let mut head = [0; HEAD_BYTES];
    let length = HEAD_BYTES.min(usize::try_from(input.len_bytes()).unwrap_or(HEAD_BYTES));
    let name = file_name.map(|name| format!("named `{name}`, ")).unwrap_or_default();

    if input.read_exact_at(&mut head[..length], 0).is_err() {
        return format!("{name}cannot be read");
    }

    let head = &head[..length];
    let mut text = kind_of(head).map(|kind| format!("it looks like {kind}; ")).unwrap_or_default();
    text.push_str(&name);

    text.push_str("starts with");
    for byte in &head[..length.min(SHOWN_BYTES)] {
        // Writing to a string cannot fail.
        let _ = write!(text, " {byte:02x}");
    }

    text
}

fn kind_of(head: &[u8]) -> Option<&'static str> {
    if !head.is_empty() && head.iter().all(|byte| *byte == 0) {
        return Some("a file of zeros");
    }

    let fits = |&&(at, sign, _): &&(usize, &[u8], &str)| head.get(at..).is_some_and(|rest| rest.starts_with(sign));
    if let Some((_, _, name)) = SIGNATURES.iter().find(fits) {
        return Some(name);
    }

    // Blu-ray has a timestamp of four bytes before each packet.
    let is_transport = |at: usize, packet: usize| (0..4).all(|n| head.get(at + n * packet) == Some(&0x47));
    if is_transport(0, 188) || is_transport(4, 192) {
        return Some(TRANSPORT);
    }

    let text = text_of(head)?;
    let start = text.trim_start_matches(['\u{feff}', ' ', '\n', '\r', '\t']).to_lowercase();
    let known = TEXT_SIGNATURES.iter().find(|(sign, _)| start.starts_with(sign)).map(|(_, name)| *name);

    let is_subtitle = || start.lines().take(3).any(|line| line.contains(" --> "));
    known.or_else(|| is_subtitle().then_some("subtitles (SubRip)")).or(Some("text"))
}

/// The head as text, where it is text; its end may be within a character.
fn text_of(head: &[u8]) -> Option<&str> {
    let text = match std::str::from_utf8(head) {
        Ok(text) => text,
        Err(error) if error.error_len().is_none() => std::str::from_utf8(&head[..error.valid_up_to()]).ok()?,
        Err(_) => return None,
    };

    let is_plain = |letter: char| !letter.is_control() || matches!(letter, '\n' | '\r' | '\t' | '\u{c}');
    (!text.is_empty() && text.chars().all(is_plain)).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_of_files_are_recognised() {
        for (head, expected) in [
            (&b"%PDF-1.7\n"[..], Some("a PDF document")),
            (b"PK\x03\x04\x14\0", Some("a ZIP archive, or an office document")),
            (b"\0\0\0\x20ftypheic", Some("a HEIF image")),
            (b"\0\0\0\x20ftypM4A ", Some("an MP4 file")),
            (b"#EXTM3U\n", Some("a playlist (M3U), which names other files; send the audio itself")),
            (b"\xef\xbb\xbf\r\n  <!DOCTYPE html>", Some("a web page (HTML)")),
            (b"1\r\n00:00:01,000 --> 00:00:02,000\r\nHi\r\n", Some("subtitles (SubRip)")),
            ("Grüße".as_bytes(), Some("text")),
            // Cut within a character.
            (&"Grüße".as_bytes()[..3], Some("text")),
            (b"\0\0\0\0", Some("a file of zeros")),
            (&[[0x47; 1].as_slice(), &[0; 187]].concat().repeat(4), Some(TRANSPORT)),
            (b"\x01\x02\x03\x04", None),
            (b"", None),
        ] {
            assert_eq!(kind_of(head), expected, "{head:?}");
        }
    }
}
