//! Files through symphonia: container -> packets -> samples -> mono -> 16 kHz.

use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use hush_whisper::SAMPLE_RATE;
use symphonia::core::codecs::CodecParameters;
use symphonia::core::codecs::audio::well_known::*;
use symphonia::core::codecs::audio::{AudioCodecId, AudioDecoder, AudioDecoderOptions, CODEC_ID_NULL_AUDIO};
use symphonia::core::codecs::registry::CodecRegistry;
use symphonia::core::common::Limit;
use symphonia::core::errors::Error as SymphoniaError;
use symphonia::core::formats::probe::Hint;
use symphonia::core::formats::well_known::{FORMAT_ID_FLAC, FORMAT_ID_ISOMP4, FORMAT_ID_MKV, FORMAT_ID_WAVE};
use symphonia::core::formats::{FormatOptions, FormatReader, TrackType};
use symphonia::core::io::{MediaSource, MediaSourceStream, ReadBytes, ReadOnlySource};
use symphonia::core::meta::MetadataOptions;
use symphonia::core::packet::Packet;
use symphonia::core::units::{Duration, TimeBase, Timestamp};

use super::clock::ContainerClock;
use super::headers::{self, Span};
use super::likeness;
use super::mp4::{self, TrackTiming};
use super::output::{MAX_CHANGES, Output, too_many_changes};
use super::pcm::{Pcm, PcmWriter};
use super::{AudioError, KeepGoing};
use crate::spool::{SpoolReader, Spooled};

/// Errors in a row from a demuxer before its stream counts as ended.
const MAX_DEMUX_ERRORS: usize = 16;

/// Packets that could not be decoded after which the file is given up, where they are so many times more than the good
/// ones: bytes that look like the beginning of a packet now and then are no audio, however many they are.
const MAX_BAD_PACKETS: u64 = 256;
const MAX_BAD_PER_GOOD: u64 = 4;

/// What a header may say beyond the limit before a file is refused for it.
const DECLARED_TOLERANCE_SECONDS: f64 = 60.0;

const FIX: &str =
    "install ffmpeg on the server, or convert the file to WAV, FLAC, MP3, AAC (LC), Vorbis or mono/stereo Opus";

static CODECS: LazyLock<CodecRegistry> = LazyLock::new(|| {
    let mut registry = CodecRegistry::new();
    symphonia::default::register_enabled_codecs(&mut registry);
    registry.register_audio_decoder::<symphonia_adapter_libopus::OpusDecoder>();
    registry
});

pub(super) struct Decoded {
    pub pcm: Pcm,
    /// `false` when there is much less, or more, than the headers tell of.
    pub is_whole: bool,
}

pub(super) fn decode(
    input: &Spooled,
    file_name: Option<&str>,
    writer: PcmWriter,
    keep_going: &KeepGoing<'_>,
) -> Result<Decoded, AudioError> {
    if let Some(files) = headers::wav_files(input) {
        return decode_wav_files(input, &files, writer, keep_going);
    }
    let failure = Failure::default();
    let whole = Span { start: 0, end: input.len_bytes() };
    let format = open(input, whole, file_name, keep_going, &failure)?;
    let track = Track::open(&*format, Some(input))?;
    if track.is_wanted && format.format_info().format == FORMAT_ID_WAVE && track.declared_frames != Some(0) {
        // Its reader stands where the samples begin.
        let start_bytes = format.into_inner().pos();
        let pcm = writer.found(input, start_bytes, track.declared_frames)?.ok_or(AudioError::NoSamples)?;
        return Ok(Decoded { pcm, is_whole: true });
    }
    let timing =
        (format.format_info().format == FORMAT_ID_ISOMP4).then(|| mp4::track_timing(input, track.id)).flatten();
    let is_cut = timing.as_ref().is_some_and(|timing| !timing.cuts.is_empty());
    let (declared_seconds, is_pcm) = (track.declared_seconds, track.is_pcm);
    let says_its_length = [FORMAT_ID_FLAC, FORMAT_ID_ISOMP4, FORMAT_ID_MKV].contains(&format.format_info().format);
    if let Some(seconds) = declared_seconds.filter(|_| says_its_length && !is_cut) {
        // The samples are counted as well: this only spares the time of decoding so many of them.
        refuse_declared(seconds, writer.limit_seconds())?;
    }
    let mut output = Output::new(writer);
    let stopped_early = listen(format, track, timing, Some(input), &mut output, &failure, keep_going)?;
    let is_full = output.is_full();
    let pcm = output.finish()?;
    if is_full {
        return Ok(Decoded { pcm, is_whole: true });
    }
    // A demuxer may lose its way without a word, so a clean end is compared with the headers as well, unless an edit
    // hides a part. PCM has nothing more to find.
    let expected = declared_seconds.filter(|_| !is_pcm && (stopped_early || !is_cut));
    let is_whole =
        expected.is_none_or(|seconds| (0.9 * seconds..=1.1 * seconds + 1.0).contains(&pcm.duration_seconds()));
    Ok(Decoded { pcm, is_whole })
}

fn refuse_declared(seconds: f64, limit_seconds: u64) -> Result<(), AudioError> {
    if seconds > limit_seconds as f64 + DECLARED_TOLERANCE_SECONDS {
        return Err(AudioError::TooLong { limit_seconds });
    }
    Ok(())
}

/// One behind the other. What comes after the first and cannot be read is left out.
fn decode_wav_files(
    input: &Spooled,
    files: &[Span],
    writer: PcmWriter,
    keep_going: &KeepGoing<'_>,
) -> Result<Decoded, AudioError> {
    let failure = Failure::default();
    let mut output = Output::new(writer);
    for (index, file) in files.iter().enumerate() {
        let mut hear = || {
            let format = open(input, *file, None, keep_going, &failure)?;
            let track = Track::open(&*format, None)?;
            listen(format, track, None, None, &mut output, &failure, keep_going)
        };
        match hear() {
            Ok(_) => {}
            Err(error) if index > 0 && error.is_worth_ffmpeg() => {
                tracing::warn!(%error, file = index + 1, "one of several WAV files in an upload is left out");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(Decoded { pcm: output.finish()?, is_whole: true })
}

/// What ffmpeg writes: Matroska with one track of samples, on the clock of the upload. Whether the writer has all that it
/// keeps before the end.
pub(super) fn decode_stream(
    stream: impl Read + Send + Sync,
    writer: PcmWriter,
    keep_going: &KeepGoing<'_>,
) -> Result<(Pcm, bool), AudioError> {
    let failure = Failure::default();
    let source = Box::new(ReadOnlySource::new(stream));
    let format = probe(source, None).map_err(|error| match error {
        SymphoniaError::IoError(error) => AudioError::from(error),
        _ => AudioError::NoSamples,
    })?;
    let track = Track::open(&*format, None)?;
    let mut output = Output::new(writer);
    let timing = Some(TrackTiming::default());
    listen(format, track, timing, None, &mut output, &failure, keep_going)?;
    let is_full = output.is_full();
    Ok((output.finish()?, is_full))
}

fn probe<'a>(
    source: Box<dyn MediaSource + 'a>,
    file_name: Option<&str>,
) -> Result<Box<dyn FormatReader + 'a>, SymphoniaError> {
    let stream = MediaSourceStream::new(source, Default::default());
    let mut hint = Hint::new();
    if let Some(extension) = file_name.and_then(|name| Path::new(name).extension()).and_then(|ext| ext.to_str()) {
        hint.with_extension(extension);
    }
    // Covers and lyrics are of no use here: pictures are skipped, tags kept short.
    let metadata =
        MetadataOptions::default().limit_visual_bytes(Limit::Maximum(0)).limit_tag_bytes(Limit::Maximum(64 << 10));
    symphonia::default::get_probe().probe(&hint, stream, FormatOptions::default(), metadata)
}

fn open<'a>(
    input: &'a Spooled,
    part: Span,
    file_name: Option<&str>,
    keep_going: &'a KeepGoing<'a>,
    failure: &Failure,
) -> Result<Box<dyn FormatReader + 'a>, AudioError> {
    let source = |is_seekable| Box::new(Input::new(input, part, is_seekable, keep_going, failure.clone()));
    let probed = match probe(source(true), file_name) {
        Ok(format) => Ok(format),
        Err(error) => {
            failure.check()?;
            // A file that was cut off fails on its index, which is at the end. As a stream of unknown length, nobody
            // looks for it.
            probe(source(false), file_name).map_err(|_| error)
        }
    };
    probed.or_else(|error| {
        failure.check()?;
        Err(match error {
            // A container that was recognised and makes no sense.
            SymphoniaError::DecodeError(reason) => AudioError::Malformed { reason: reason.to_owned() },
            _ => AudioError::Unrecognised { hint: likeness::describe(input, file_name) },
        })
    })
}

/// Decodes a track to its end; whether that came too early. `timing`: what the headers say of when it is heard; `input`:
/// where the default track of a further stream can be looked up.
fn listen(
    mut format: Box<dyn FormatReader + '_>,
    mut track: Track,
    timing: Option<TrackTiming>,
    input: Option<&Spooled>,
    output: &mut Output,
    failure: &Failure,
    keep_going: &KeepGoing<'_>,
) -> Result<bool, AudioError> {
    let mut clock = match &timing {
        Some(timing) => ContainerClock::starting_at(timing.origin),
        None => ContainerClock::default(),
    };
    let mut timing = timing.unwrap_or_default();
    output.show_only(std::mem::take(&mut timing.cuts));
    let other_tracks = other_tracks(&*format, track.id);
    let mut stopped_early = false;
    let (mut good, mut bad, mut demux_errors, mut changes) = (0_u64, 0_u64, 0, 0);
    let mut last_error = None;
    loop {
        if !keep_going() {
            return Err(AudioError::Cancelled);
        }
        if output.is_full() || bad >= MAX_BAD_PACKETS && bad / MAX_BAD_PER_GOOD > good {
            break;
        }
        // Metadata in the stream would pile up.
        while format.metadata().pop().is_some() {}
        let packet = match format.next_packet() {
            Ok(Some(packet)) => packet,
            Ok(None) => break,
            // Another chained stream begins.
            Err(SymphoniaError::ResetRequired) => {
                changes += 1;
                if changes > MAX_CHANGES {
                    return Err(too_many_changes());
                }
                track = Track::open(&*format, input)?;
                clock.restart();
                continue;
            }
            // The file is shorter than it says: what there is counts, as for ffmpeg.
            Err(SymphoniaError::IoError(_)) => {
                failure.check()?;
                stopped_early = true;
                break;
            }
            Err(error) => {
                demux_errors += 1;
                last_error = Some(error.to_string());
                if demux_errors >= MAX_DEMUX_ERRORS {
                    stopped_early = true;
                    break;
                }
                continue;
            }
        };
        demux_errors = 0;
        if packet.track_id != track.id {
            let base = other_tracks.iter().find(|(id, _)| *id == packet.track_id);
            if let Some((_, base)) = base {
                clock.saw_other_track(time_of(*base, packet.pts));
            }
            continue;
        }
        match track.decoder.decode(&packet) {
            Ok(buffer) => {
                good += 1;
                if buffer.frames() > 0 {
                    let silence = track.time_base.map_or(0.0, |base| {
                        let time = timing.seconds(packet.pts.get(), time_of(base, packet.pts));
                        clock.silence_before(time, output.position_seconds())
                    });
                    output.take(&buffer, track.is_float_pcm, silence)?;
                }
            }
            Err(SymphoniaError::ResetRequired) => track.decoder.reset(),
            Err(error) => {
                bad += 1;
                tracing::debug!(%error, "damaged audio packet");
                last_error = Some(error.to_string());
                output.conceal(track.seconds_of(&packet))?;
            }
        }
    }
    failure.check()?;
    if bad > good {
        let reason = format!(
            "{bad} of {} packets could not be decoded{}",
            good + bad,
            last_error.map(|error| format!(" ({error})")).unwrap_or_default()
        );
        return Err(AudioError::Malformed { reason });
    }
    Ok(stopped_early)
}

/// Tracks whose first packet may begin the container's time: not subtitles, which may begin anywhere.
fn other_tracks(format: &dyn FormatReader, heard: u32) -> Vec<(u32, TimeBase)> {
    let tracks = format.tracks().iter().filter(|track| track.id != heard);
    let tracks = tracks.filter(|track| track.track_type() != Some(TrackType::Subtitle));
    tracks.filter_map(|track| Some((track.id, track.time_base?))).collect()
}

fn time_of(base: TimeBase, timestamp: Timestamp) -> f64 {
    timestamp.get() as f64 * f64::from(base.numer.get()) / f64::from(base.denom.get())
}

/// The track that is listened to.
struct Track {
    id: u32,
    time_base: Option<TimeBase>,
    decoder: Box<dyn AudioDecoder>,
    declared_seconds: Option<f64>,
    declared_frames: Option<u64>,
    is_pcm: bool,
    /// Samples as [`Pcm`] has them.
    is_wanted: bool,
    is_float_pcm: bool,
}

impl Track {
    /// The default audio track, or the first one whose codec has a name.
    fn open(format: &dyn FormatReader, input: Option<&Spooled>) -> Result<Self, AudioError> {
        let marked = input
            .filter(|_| format.format_info().format == FORMAT_ID_MKV)
            .and_then(headers::matroska_default_audio)
            .and_then(|number| format.tracks().iter().find(|track| track.id == number))
            .filter(|track| track.track_type() == Some(TrackType::Audio));
        let track = marked
            .or_else(|| format.default_track(TrackType::Audio))
            .or_else(|| format.first_track(TrackType::Audio))
            .ok_or(AudioError::NoAudioTrack)?;
        let Some(CodecParameters::Audio(params)) = &track.codec_params else { return Err(AudioError::NoAudioTrack) };
        if params.channels.as_ref().is_some_and(|channels| channels.count() == 0) {
            return Err(AudioError::ZeroChannels);
        }
        let decoder = CODECS.make_audio_decoder(params, &AudioDecoderOptions::default()).map_err(|error| {
            let detail = match error {
                SymphoniaError::Unsupported(detail) if CODECS.get_audio_decoder(params.codec).is_some() => {
                    format!(" ({detail})")
                }
                _ => String::new(),
            };
            AudioError::UnsupportedCodec { codec: format!("{}{detail}", codec_name(params.codec)), fix: FIX }
        })?;
        Ok(Self {
            id: track.id,
            time_base: track.time_base,
            decoder,
            declared_seconds: track.time_base.zip(track.duration).map(|(base, duration)| seconds(base, duration)),
            declared_frames: track.num_frames,
            is_wanted: params.codec == CODEC_ID_PCM_S16LE
                && params.sample_rate == Some(SAMPLE_RATE)
                && params.channels.as_ref().is_some_and(|channels| channels.count() == 1),
            is_pcm: (CODEC_ID_PCM_S32LE..=CODEC_ID_PCM_MULAW).contains(&params.codec),
            is_float_pcm: (CODEC_ID_PCM_F32LE..=CODEC_ID_PCM_F64BE_PLANAR).contains(&params.codec),
        })
    }

    fn seconds_of(&self, packet: &Packet) -> f64 {
        self.time_base.map_or(0.0, |base| seconds(base, packet.dur))
    }
}

fn seconds(base: TimeBase, duration: Duration) -> f64 {
    duration.get() as f64 * f64::from(base.numer.get()) / f64::from(base.denom.get())
}

fn codec_name(codec: AudioCodecId) -> String {
    let known = match codec {
        CODEC_ID_OPUS => Some("Opus"),
        CODEC_ID_SPEEX => Some("Speex"),
        CODEC_ID_AC3 => Some("AC-3"),
        CODEC_ID_EAC3 => Some("E-AC-3"),
        CODEC_ID_AC4 => Some("AC-4"),
        CODEC_ID_DCA => Some("DTS"),
        CODEC_ID_TRUEHD => Some("TrueHD"),
        CODEC_ID_WMA => Some("WMA"),
        CODEC_ID_WAVPACK => Some("WavPack"),
        CODEC_ID_AAC => Some("AAC"),
        CODEC_ID_ADPCM_G722 => Some("G.722"),
        CODEC_ID_ADPCM_G726 | CODEC_ID_ADPCM_G726LE => Some("G.726"),
        CODEC_ID_NULL_AUDIO => Some("in an unknown codec"),
        _ => None,
    };
    match known.or_else(|| CODECS.get_audio_decoder(codec).map(|decoder| decoder.codec.info.long_name)) {
        Some(name) => name.to_owned(),
        None => format!("in codec {codec}"),
    }
}

/// What ended the reading, if it was not the audio's fault: symphonia flattens errors of its source.
#[derive(Clone, Default)]
struct Failure(Arc<Mutex<Option<AudioError>>>);

impl Failure {
    fn set(&self, error: AudioError) -> io::Error {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        io::Error::other("stopped")
    }

    fn check(&self) -> Result<(), AudioError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take().map_or(Ok(()), Err)
    }
}

/// A part of an upload as symphonia reads it.
struct Input<'a> {
    reader: SpoolReader,
    part: Span,
    /// Of the next byte, from the start of the part.
    position: u64,
    is_seekable: bool,
    keep_going: &'a KeepGoing<'a>,
    failure: Failure,
}

impl<'a> Input<'a> {
    fn new(input: &Spooled, part: Span, is_seekable: bool, keep_going: &'a KeepGoing<'a>, failure: Failure) -> Self {
        Self { reader: input.open(), part, position: 0, is_seekable, keep_going, failure }
    }

    fn len_bytes(&self) -> u64 {
        self.part.end - self.part.start
    }
}

impl Read for Input<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        // A demuxer may look for its next packet through the whole file.
        if !(self.keep_going)() {
            return Err(self.failure.set(AudioError::Cancelled));
        }
        let left = self.len_bytes().saturating_sub(self.position);
        let most = usize::try_from(left).map_or(out.len(), |left| left.min(out.len()));
        let read = (self.reader.seek(SeekFrom::Start(self.part.start + self.position)))
            .and_then(|_| self.reader.read(&mut out[..most]))
            .map_err(|error| self.failure.set(error.into()))?;
        self.position += read as u64;
        Ok(read)
    }
}

impl Seek for Input<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::End(delta) => self.len_bytes().checked_add_signed(delta),
            SeekFrom::Current(delta) => self.position.checked_add_signed(delta),
        };
        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

impl MediaSource for Input<'_> {
    fn is_seekable(&self) -> bool {
        self.is_seekable
    }

    fn byte_len(&self) -> Option<u64> {
        self.is_seekable.then(|| self.len_bytes())
    }
}
