//! The times of an MP4 track, which symphonia 0.6 does not evaluate: the edit list (which hides the encoder delay and
//! what was cut away, and has the pause before a track that starts late), and the decode times of fragments.

use super::clock::LONGEST_GAP_SECONDS;
use super::headers::{ByteSpan, EditCut, MAX_ELEMENTS, bytes_at, u32_at, u64_at};
use hush_listener::spool::Spooled;

/// Limit for boxes at the top level: a file has two for each fragment, and about one fragment for each second.
const MAX_TOP_BOXES: usize = 500_000;
const MAX_EDITS: u64 = 1_024;
/// Limit for the sample table of one fragment; longer tables are not read.
const MAX_RUN_BYTES: u64 = 16 << 20;
const FLAG_SAMPLE_DURATION: u32 = 0x100;

/// When a track is heard, on the clock of its movie.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct TrackTiming {
    /// The parts of the track that are heard; empty: all of it.
    pub cuts: Vec<EditCut>,
    /// From each of these timestamps on, in symphonia's count, the samples are this many seconds later than symphonia
    /// says.
    shifts: Vec<(u64, f64)>,
    /// Where the movie's time begins, in the seconds that [`Self::seconds`] returns.
    pub origin: f64,
}

impl TrackTiming {
    /// Corrects `seconds`, the time of a packet by its timestamp.
    pub(super) fn seconds(&self, timestamp: i64, seconds: f64) -> f64 {
        let timestamp = u64::try_from(timestamp).unwrap_or(0);
        let before = self.shifts.partition_point(|(from, _)| *from <= timestamp);
        seconds + before.checked_sub(1).and_then(|at| self.shifts.get(at)).map_or(0.0, |(_, shift)| *shift)
    }
}

// Boxes have a 32-bit size (1: a 64-bit size follows, 0: to the end of the file), a name and a body.

fn boxes(input: &Spooled, within: ByteSpan) -> impl Iterator<Item = ([u8; 4], ByteSpan)> + '_ {
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
        let body = ByteSpan { start: at + header, end };
        at = end;
        Some((name, body))
    })
}

fn child(input: &Spooled, within: ByteSpan, name: &[u8; 4]) -> Option<ByteSpan> {
    boxes(input, within).take(MAX_ELEMENTS).find(|(found, _)| found == name).map(|(_, body)| body)
}

fn children<'a>(input: &'a Spooled, within: ByteSpan, name: &'static [u8; 4]) -> impl Iterator<Item = ByteSpan> + 'a {
    boxes(input, within).take(MAX_ELEMENTS).filter(move |(found, _)| found == name).map(|(_, body)| body)
}

/// The position of a field in a box with a version: at `plain`, or at `long` in version 1.
fn versioned(input: &Spooled, body: ByteSpan, plain: u64, long: u64) -> Option<u64> {
    Some(body.start + if bytes_at::<1>(input, body.start)?[0] == 1 { long } else { plain })
}

fn timescale(input: &Spooled, header: ByteSpan) -> Option<f64> {
    u32_at(input, versioned(input, header, 12, 20)?).filter(|scale| *scale > 0).map(f64::from)
}

struct Movie<'a> {
    input: &'a Spooled,
    moov: ByteSpan,
    tracks: Vec<MovieTrack>,
}

/// A track with sound or pictures.
struct MovieTrack {
    id: u32,
    scale: f64,
    edits: Vec<EditListEntry>,
}

/// An entry of an edit list, in seconds. An entry without a media time is a pause.
#[derive(Clone, Copy)]
struct EditListEntry {
    seconds: f64,
    media_seconds: Option<f64>,
}

impl<'a> Movie<'a> {
    fn read(input: &'a Spooled) -> Option<Self> {
        let top = ByteSpan { start: 0, end: input.len_bytes() };
        let (_, moov) = boxes(input, top).take(MAX_TOP_BOXES).find(|(name, _)| name == b"moov")?;
        let scale = timescale(input, child(input, moov, b"mvhd")?)?;
        let tracks = children(input, moov, b"trak").filter_map(|trak| Self::track(input, trak, scale)).collect();
        Some(Self { input, moov, tracks })
    }

    fn track(input: &Spooled, trak: ByteSpan, movie_scale: f64) -> Option<MovieTrack> {
        let id = u32_at(input, versioned(input, child(input, trak, b"tkhd")?, 12, 20)?)?;

        let media = child(input, trak, b"mdia")?;
        let kind = bytes_at::<4>(input, child(input, media, b"hdlr")?.start + 8)?;
        if !matches!(&kind, b"soun" | b"vide") {
            return None;
        }

        let scale = timescale(input, child(input, media, b"mdhd")?)?;

        let list = child(input, trak, b"edts").and_then(|edts| child(input, edts, b"elst"));
        let edits = list.and_then(|list| Self::edits(input, list, movie_scale, scale)).unwrap_or_default();
        Some(MovieTrack { id, scale, edits })
    }

    fn edits(input: &Spooled, list: ByteSpan, movie_scale: f64, track_scale: f64) -> Option<Vec<EditListEntry>> {
        let is_long = bytes_at::<1>(input, list.start)?[0] == 1;
        let entry_bytes = if is_long { 20 } else { 12 };
        let count = u64::from(u32_at(input, list.start + 4)?).min(MAX_EDITS);
        let entry = |index: u64| {
            let at = list.start + 8 + index * entry_bytes;
            let (duration, media_time) = if is_long {
                (u64_at(input, at)?, u64_at(input, at + 8)?.cast_signed())
            } else {
                (u64::from(u32_at(input, at)?), i64::from(u32_at(input, at + 4)?.cast_signed()))
            };

            let media_seconds = (media_time >= 0).then_some(media_time as f64 / track_scale);
            Some(EditListEntry { seconds: duration as f64 / movie_scale, media_seconds })
        };

        (0..count).map(entry).collect()
    }

    /// The fragments of a track: symphonia's count of the time of each, and its decode time, both in units of the
    /// track.
    fn fragments(&self, id: u32) -> Option<Vec<(u64, u64)>> {
        let input = self.input;
        let extends = child(input, self.moov, b"mvex")?;
        let defaults = children(input, extends, b"trex").find(|trex| u32_at(input, trex.start + 4) == Some(id))?;
        let default_duration = u32_at(input, defaults.start + 12)?;
        let top = ByteSpan { start: 0, end: input.len_bytes() };
        let mut fragments = Vec::new();
        let mut counted = 0;

        let moofs = boxes(input, top).take(MAX_TOP_BOXES).filter(|(name, _)| name == b"moof");
        for traf in moofs.flat_map(|(_, moof)| children(input, moof, b"traf")) {
            let header = child(input, traf, b"tfhd")?;
            if u32_at(input, header.start + 4)? != id {
                continue;
            }

            if let Some(tfdt) = child(input, traf, b"tfdt") {
                let time = match bytes_at::<1>(input, tfdt.start)?[0] {
                    0 => u64::from(u32_at(input, tfdt.start + 4)?),
                    _ => u64_at(input, tfdt.start + 4)?,
                };

                fragments.push((counted, time));
            }

            let flags = u32_at(input, header.start)? & 0x00ff_ffff;
            let optional = [(0x1, 8), (0x2, 4)].into_iter().filter(|(flag, _)| flags & flag != 0);
            let at = header.start + 8 + optional.map(|(_, bytes)| bytes).sum::<u64>();
            let duration = if flags & 0x8 == 0 { default_duration } else { u32_at(input, at)? };

            for run in children(input, traf, b"trun") {
                counted += Self::run_duration(input, run, duration)?;
            }
        }
        Some(fragments)
    }

    fn run_duration(input: &Spooled, run: ByteSpan, default: u32) -> Option<u64> {
        let flags = u32_at(input, run.start)? & 0x00ff_ffff;
        let count = u64::from(u32_at(input, run.start + 4)?);
        if flags & FLAG_SAMPLE_DURATION == 0 {
            return count.checked_mul(u64::from(default));
        }

        let head = 8 + [0x1, 0x4].into_iter().filter(|flag| flags & flag != 0).count() as u64 * 4;
        let entry =
            [FLAG_SAMPLE_DURATION, 0x200, 0x400, 0x800].into_iter().filter(|flag| flags & flag != 0).count() * 4;

        let bytes = count.checked_mul(entry as u64).filter(|bytes| *bytes <= MAX_RUN_BYTES)?;
        let mut entries = vec![0; usize::try_from(bytes).ok()?];
        input.read_exact_at(&mut entries, run.start + head).ok()?;

        let durations = entries.chunks_exact(entry).filter_map(|entry| entry.first_chunk::<4>());
        Some(durations.map(|duration| u64::from(u32::from_be_bytes(*duration))).sum())
    }
}

/// The cuts of an edit list whose media times increase; `None` for every other list.
fn cuts(edits: &[EditListEntry]) -> Option<Vec<EditCut>> {
    let (mut pause_seconds, mut end, mut cuts) = (0.0, 0.0, Vec::new());

    for edit in edits {
        let Some(media) = edit.media_seconds else {
            pause_seconds += edit.seconds;
            continue;
        };

        if media < end - 1e-6 {
            return None;
        }

        // Zero means a fragmented file whose length was not known.
        let keep_seconds = (edit.seconds > 0.0).then_some(edit.seconds);
        cuts.push(EditCut { pause_seconds, skip_seconds: (media - end).max(0.0), keep_seconds });
        pause_seconds = 0.0;
        end = keep_seconds.map_or(f64::INFINITY, |seconds| media + seconds);
    }
    Some(cuts)
}

/// The seconds of pause before a track.
fn leading_pause(track: &MovieTrack) -> f64 {
    track.edits.iter().take_while(|edit| edit.media_seconds.is_none()).map(|edit| edit.seconds).sum()
}

/// The times of a track; `None` where the file has none that are understood here.
pub(super) fn track_timing(input: &Spooled, track_id: u32) -> Option<TrackTiming> {
    let movie = Movie::read(input)?;
    let own = movie.tracks.iter().find(|track| track.id == track_id)?;
    let mut cuts = cuts(&own.edits).unwrap_or_default();
    // The movie begins with the track that starts first, whether it is sound or picture.
    let earliest = movie.tracks.iter().map(leading_pause).fold(f64::INFINITY, f64::min);
    if let Some(first) = cuts.first_mut() {
        first.pause_seconds = (first.pause_seconds - earliest).max(0.0);
    }

    cuts.iter_mut().filter(|cut| cut.pause_seconds > LONGEST_GAP_SECONDS).for_each(|cut| cut.pause_seconds = 0.0);

    let fragments = movie.fragments(track_id).unwrap_or_default();
    let shift = |&(counted, time): &(u64, u64)| (counted, (time as f64 - counted as f64) / own.scale);
    let first_times = movie.tracks.iter().filter(|_| !fragments.is_empty()).filter_map(|track| {
        let (_, time) = *movie.fragments(track.id)?.first()?;
        Some(time as f64 / track.scale)
    });

    let origin = first_times.fold(f64::INFINITY, f64::min);

    let origin = if origin.is_finite() { origin } else { 0.0 };
    Some(TrackTiming { cuts, shifts: fragments.iter().map(shift).collect(), origin })
}
