//! Two things that symphonia 0.6 does not take from the headers of a file: which Matroska track is the default one when
//! that is left unsaid (the value left out is "yes"), and the edit list of an MP4 (which hides the delay of the encoder,
//! and what its maker has cut away). Whatever looks odd here is left to symphonia: these functions only ever add.

use crate::spool::Spooled;

/// Elements looked at before giving up.
const MAX_ELEMENTS: usize = 10_000;

/// What an MP4 track shows of its samples.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Edit {
    pub skip_seconds: f64,
    /// All that follows when `None`.
    pub keep_seconds: Option<f64>,
}

fn bytes_at<const N: usize>(input: &Spooled, at: u64) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    input.read_exact_at(&mut bytes, at).ok()?;
    Some(bytes)
}

fn u32_at(input: &Spooled, at: u64) -> Option<u32> {
    bytes_at(input, at).map(u32::from_be_bytes)
}

fn u64_at(input: &Spooled, at: u64) -> Option<u64> {
    bytes_at(input, at).map(u64::from_be_bytes)
}

/// A part of the file.
#[derive(Clone, Copy, Debug)]
struct Span {
    start: u64,
    end: u64,
}

// MP4: boxes of a 32-bit size (1: a 64-bit one follows, 0: to the end), a name and a body.

fn boxes(input: &Spooled, within: Span) -> impl Iterator<Item = ([u8; 4], Span)> + '_ {
    let mut at = within.start;
    std::iter::from_fn(move || {
        if at >= within.end {
            return None;
        }
        let name = bytes_at::<4>(input, at + 4)?;
        let (size, header) = match u32_at(input, at)? {
            0 => (within.end - at, 8),
            1 => (u64_at(input, at + 8)?, 16),
            size => (u64::from(size), 8),
        };
        let end = at.checked_add(size).filter(|_| size >= header)?.min(within.end);
        let body = Span { start: at + header, end };
        at = end;
        Some((name, body))
    })
    .take(MAX_ELEMENTS)
}

fn child(input: &Spooled, within: Span, name: &[u8; 4]) -> Option<Span> {
    boxes(input, within).find(|(found, _)| found == name).map(|(_, body)| body)
}

/// The edit of the track with this id, when it is one stretch; lists of several are left alone.
pub(super) fn mp4_edit(input: &Spooled, track_id: u32) -> Option<Edit> {
    let moov = child(input, Span { start: 0, end: input.len_bytes() }, b"moov")?;
    let (_, trak) = boxes(input, moov).filter(|(name, _)| name == b"trak").find(|(_, trak)| {
        child(input, *trak, b"tkhd").and_then(|tkhd| {
            let version = bytes_at::<1>(input, tkhd.start)?[0];
            u32_at(input, tkhd.start + if version == 1 { 20 } else { 12 })
        }) == Some(track_id)
    })?;
    let timescale = |header: Span| {
        let version = bytes_at::<1>(input, header.start)?[0];
        u32_at(input, header.start + if version == 1 { 20 } else { 12 }).filter(|scale| *scale > 0).map(f64::from)
    };
    let movie_scale = timescale(child(input, moov, b"mvhd")?)?;
    let track_scale = timescale(child(input, child(input, trak, b"mdia")?, b"mdhd")?)?;
    let elst = child(input, child(input, trak, b"edts")?, b"elst")?;
    let version = bytes_at::<1>(input, elst.start)?[0];
    let entry_bytes = if version == 1 { 20 } else { 12 };
    let mut stretches = Vec::new();
    for i in 0..u64::from(u32_at(input, elst.start + 4)?).min(8) {
        let at = elst.start + 8 + i * entry_bytes;
        let (duration, media_time) = if version == 1 {
            (u64_at(input, at)?, u64_at(input, at + 8)?.cast_signed())
        } else {
            (u64::from(u32_at(input, at)?), i64::from(u32_at(input, at + 4)?.cast_signed()))
        };
        // An empty edit is a pause before the track, which `ffmpeg -f s16le` does not write either.
        if media_time >= 0 {
            stretches.push((duration, media_time));
        }
    }
    match stretches.as_slice() {
        [(duration, media_time)] => Some(Edit {
            skip_seconds: *media_time as f64 / track_scale,
            // Zero: a fragmented file, whose length was not known.
            keep_seconds: (*duration > 0).then_some(*duration as f64 / movie_scale),
        }),
        _ => None,
    }
}

// Matroska: elements of an id, a size (both of variable length) and a body.

const SEGMENT: u64 = 0x1853_8067;
const TRACKS: u64 = 0x1654_ae6b;
const TRACK_ENTRY: u64 = 0xae;
const TRACK_NUMBER: u64 = 0xd7;
const TRACK_TYPE: u64 = 0x83;
const FLAG_DEFAULT: u64 = 0x88;
const AUDIO: u64 = 2;

/// The number, and where it ends. `keep_marker` as for ids.
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

fn elements(input: &Spooled, within: Span) -> impl Iterator<Item = (u64, Span)> + '_ {
    let mut at = within.start;
    std::iter::from_fn(move || {
        if at >= within.end {
            return None;
        }
        let (id, after_id) = vint(input, at, true)?;
        let (size, start) = vint(input, after_id, false)?;
        let end = start.saturating_add(size).min(within.end);
        at = end;
        Some((id, Span { start, end }))
    })
    .take(MAX_ELEMENTS)
}

fn unsigned(input: &Spooled, span: Span) -> Option<u64> {
    (span.start..span.end.min(span.start + 8))
        .try_fold(0, |value, at| Some(value << 8 | u64::from(bytes_at::<1>(input, at)?[0])))
}

/// The number of the first audio track that is not declared to be no default.
pub(super) fn matroska_default_audio(input: &Spooled) -> Option<u32> {
    let whole = Span { start: 0, end: input.len_bytes() };
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
