//! Parts of file headers that symphonia 0.6 does not evaluate: which Matroska track is the default one when the flag is
//! absent (its default value is "yes"), and where several WAV files follow each other in one file. For MP4 see
//! [`super::mp4`]. Headers that look malformed are left to symphonia.

use hush_listener::spool::Spooled;

const MAX_WAV_FILES: usize = 1_000;
/// Limit for the elements that are read of one header.
pub(super) const MAX_ELEMENTS: usize = 10_000;

/// One entry of an MP4 edit list: a pause, then samples that are hidden, then samples that are heard.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct EditCut {
    pub pause_seconds: f64,
    pub skip_seconds: f64,
    /// `None`: all samples that follow.
    pub keep_seconds: Option<f64>,
}

pub(super) fn bytes_at<const N: usize>(input: &Spooled, at: u64) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    input.read_exact_at(&mut bytes, at).ok()?;
    Some(bytes)
}

pub(super) fn u32_at(input: &Spooled, at: u64) -> Option<u32> {
    bytes_at(input, at).map(u32::from_be_bytes)
}

pub(super) fn u64_at(input: &Spooled, at: u64) -> Option<u64> {
    bytes_at(input, at).map(u64::from_be_bytes)
}

/// A range of bytes of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ByteSpan {
    pub start: u64,
    pub end: u64,
}

/// The WAV files that follow each other in `input`, where there are several: symphonia and ffmpeg decode only the first
/// one. The headers of streams have no length, so all data after such a header belongs to it.
pub(super) fn wav_files(input: &Spooled) -> Option<Vec<ByteSpan>> {
    let whole = input.len_bytes();
    let is_wav = |at: u64| {
        let (riff, form) = (bytes_at::<4>(input, at), at.checked_add(8).and_then(|at| bytes_at::<4>(input, at)));
        riff == Some(*b"RIFF") && form == Some(*b"WAVE")
    };

    let mut files = Vec::new();
    let mut start = 0;
    while files.len() < MAX_WAV_FILES && is_wav(start) {
        let size = u64::from(u32::from_le_bytes(bytes_at::<4>(input, start + 4)?));
        let end = start + 8 + size;
        // Chunks start at even positions, which not every writer respects.
        let next = [end + size % 2, end].into_iter().find(|at| is_wav(*at)).unwrap_or(whole);
        files.push(ByteSpan { start, end: next.min(whole) });
        start = next;
    }

    (files.len() > 1).then_some(files)
}

// Matroska: elements have an id, a size (both of variable length) and a body.

const SEGMENT: u64 = 0x1853_8067;
const TRACKS: u64 = 0x1654_ae6b;
const TRACK_ENTRY: u64 = 0xae;
const TRACK_NUMBER: u64 = 0xd7;
const TRACK_TYPE: u64 = 0x83;
const FLAG_DEFAULT: u64 = 0x88;
const AUDIO: u64 = 2;

/// Reads a number of variable length. Returns it and the position after it. `keep_marker`: as ids are read.
fn vint(input: &Spooled, at: u64, keep_marker: bool) -> Option<(u64, u64)> {
    let first = bytes_at::<1>(input, at)?[0];
    let len = first.leading_zeros() + 1;
    if len > 8 {
        return None;
    }

    let mut value = u64::from(first);
    if !keep_marker {
        value &= (1 << (8 - len)) - 1;
    }

    for i in 1..u64::from(len) {
        value = value << 8 | u64::from(bytes_at::<1>(input, at + i)?[0]);
    }

    let is_unknown = !keep_marker && value == (1 << (7 * len)) - 1;
    Some((if is_unknown { u64::MAX } else { value }, at + u64::from(len)))
}

fn elements(input: &Spooled, within: ByteSpan) -> impl Iterator<Item = (u64, ByteSpan)> + '_ {
    let mut at = within.start;
    std::iter::from_fn(move || {
        if at >= within.end {
            return None;
        }

        let (id, after_id) = vint(input, at, true)?;

        let (size, start) = vint(input, after_id, false)?;
        let end = start.saturating_add(size).min(within.end);
        at = end;
        Some((id, ByteSpan { start, end }))
    })
    .take(MAX_ELEMENTS)
}

fn unsigned(input: &Spooled, span: ByteSpan) -> Option<u64> {
    (span.start..span.end.min(span.start + 8))
        .try_fold(0, |value, at| Some(value << 8 | u64::from(bytes_at::<1>(input, at)?[0])))
}

/// The number of the first audio track whose default flag is not off.
pub(super) fn matroska_default_audio(input: &Spooled) -> Option<u32> {
    let whole = ByteSpan { start: 0, end: input.len_bytes() };
    let (_, segment) = elements(input, whole).find(|(id, _)| *id == SEGMENT)?;
    let (_, tracks) = elements(input, segment).find(|(id, _)| *id == TRACKS)?;
    elements(input, tracks).filter(|(id, _)| *id == TRACK_ENTRY).find_map(|(_, entry)| {
        let (mut number, mut kind, mut is_default) = (None, None, true);
        for (id, body) in elements(input, entry) {
            match id {
                TRACK_NUMBER => number = unsigned(input, body),
                TRACK_TYPE => kind = unsigned(input, body),
                FLAG_DEFAULT => is_default = unsigned(input, body) != Some(0),
                _ => {}
            }
        }

        (kind == Some(AUDIO) && is_default).then_some(number?).and_then(|number| u32::try_from(number).ok())
    })
}
