//! Decodes files with symphonia: container -> packets -> samples -> mono -> 16 kHz.

use std::io::Read;
use std::path::Path;
use std::sync::LazyLock;

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
use super::file_kind;
use super::headers::{self, ByteSpan};
use super::media_source::{SourceFailure, SpoolMediaSource};
use super::mp4::{self, TrackTiming};
use super::output::{MAX_CHANGES, MonoOutput, too_many_changes};
use super::pcm::{Pcm, PcmWriter};
use super::{AudioError, KeepGoing};
use hush_listener::spool::Spooled;

/// Errors of a demuxer in a row after which its stream counts as ended.
const MAX_DEMUX_ERRORS: usize = 16;

/// A file is given up after this many packets that could not be decoded, if they are also this many times more than the
/// good ones: bytes that sometimes look like the beginning of a packet are not audio, however many there are.
const MAX_BAD_PACKETS: u64 = 256;
const MAX_BAD_PER_GOOD: u64 = 4;

/// A file is refused when its headers announce this much more than the limit.
const DECLARED_TOLERANCE_SECONDS: f64 = 60.0;

const FIX: &str =
    "install ffmpeg on the server, or convert the file to WAV, FLAC, MP3, AAC (LC), Vorbis or mono/stereo Opus";

static CODECS: LazyLock<CodecRegistry> = LazyLock::new(|| {
    let mut registry = CodecRegistry::new();
    symphonia::default::register_enabled_codecs(&mut registry);
    registry.register_audio_decoder::<symphonia_adapter_libopus::OpusDecoder>();
    registry
});

pub(super) struct DecodedAudio {
    pub pcm: Pcm,
    /// `false` when the audio is much shorter or longer than the headers say.
    pub is_whole: bool,
}

/// Decodes a file with the built-in decoders. `file_name` is only a hint.
pub(super) fn decode(
    input: &Spooled,
    file_name: Option<&str>,
    writer: PcmWriter,
    keep_going: &KeepGoing<'_>,
) -> Result<DecodedAudio, AudioError> {
    if let Some(files) = headers::wav_files(input) {
        return decode_wav_files(input, &files, writer, keep_going);
    }

    let failure = SourceFailure::default();
    let whole = ByteSpan { start: 0, end: input.len_bytes() };
    let format = open(input, whole, file_name, keep_going, &failure)?;
    let track = AudioTrack::open(&*format, Some(input))?;
    if track.is_wanted && format.format_info().format == FORMAT_ID_WAVE && track.declared_frames != Some(0) {
        // The reader is positioned where the samples begin.
        let start_bytes = format.into_inner().pos();
        let pcm = writer.sample_range(input, start_bytes, track.declared_frames)?.ok_or(AudioError::NoSamples)?;
        return Ok(DecodedAudio { pcm, is_whole: true });
    }

    let timing =
        (format.format_info().format == FORMAT_ID_ISOMP4).then(|| mp4::track_timing(input, track.id)).flatten();
    let is_cut = timing.as_ref().is_some_and(|timing| !timing.cuts.is_empty());

    let (declared_seconds, is_pcm) = (track.declared_seconds, track.is_pcm);
    let has_length_in_header = [FORMAT_ID_FLAC, FORMAT_ID_ISOMP4, FORMAT_ID_MKV].contains(&format.format_info().format);
    if let Some(seconds) = declared_seconds.filter(|_| has_length_in_header && !is_cut) {
        // The samples are counted as well; this check only avoids decoding that many of them.
        refuse_declared(seconds, writer.limit_seconds())?;
    }

    let mut output = MonoOutput::new(writer);
    let stopped_early = decode_track(format, track, timing, Some(input), &mut output, &failure, keep_going)?;
    let is_full = output.is_full();
    let pcm = output.finish()?;
    if is_full {
        return Ok(DecodedAudio { pcm, is_whole: true });
    }

    // A demuxer may lose its way without an error, so the length is compared with the headers also after a clean end,
    // unless an edit list hides a range. PCM has no more to find.
    let expected = declared_seconds.filter(|_| !is_pcm && (stopped_early || !is_cut));
    let is_whole =
        expected.is_none_or(|seconds| (0.9 * seconds..=1.1 * seconds + 1.0).contains(&pcm.duration_seconds()));
    Ok(DecodedAudio { pcm, is_whole })
}

fn refuse_declared(seconds: f64, limit_seconds: u64) -> Result<(), AudioError> {
    if seconds > limit_seconds as f64 + DECLARED_TOLERANCE_SECONDS {
        return Err(AudioError::TooLong { limit_seconds });
    }
    Ok(())
}

/// Decodes WAV files that follow each other. A file after the first one that cannot be read is left out.
fn decode_wav_files(
    input: &Spooled,
    files: &[ByteSpan],
    writer: PcmWriter,
    keep_going: &KeepGoing<'_>,
) -> Result<DecodedAudio, AudioError> {
    let failure = SourceFailure::default();
    let mut output = MonoOutput::new(writer);

    for (index, file) in files.iter().enumerate() {
        let mut decode_file = || {
            let format = open(input, *file, None, keep_going, &failure)?;
            let track = AudioTrack::open(&*format, None)?;
            decode_track(format, track, None, None, &mut output, &failure, keep_going)
        };

        match decode_file() {
            Ok(_) => {}
            Err(error) if index > 0 && error.is_worth_ffmpeg() => {
                tracing::warn!(%error, file = index + 1, "one of several WAV files in an upload is left out");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(DecodedAudio { pcm: output.finish()?, is_whole: true })
}

/// Decodes the output of ffmpeg: Matroska with one track of samples, on the clock of the upload. The `bool` says
/// whether the writer is full, so that the rest of the stream is not needed.
pub(super) fn decode_stream(
    stream: impl Read + Send + Sync,
    writer: PcmWriter,
    keep_going: &KeepGoing<'_>,
) -> Result<(Pcm, bool), AudioError> {
    let failure = SourceFailure::default();
    let source = Box::new(ReadOnlySource::new(stream));
    let format = probe(source, None).map_err(|error| match error {
        SymphoniaError::IoError(error) => AudioError::from(error),
        _ => AudioError::NoSamples,
    })?;

    let track = AudioTrack::open(&*format, None)?;
    let mut output = MonoOutput::new(writer);
    let timing = Some(TrackTiming::default());
    decode_track(format, track, timing, None, &mut output, &failure, keep_going)?;
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

    // Pictures and lyrics are not needed: pictures are skipped, tags are kept short.
    let metadata =
        MetadataOptions::default().limit_visual_bytes(Limit::Maximum(0)).limit_tag_bytes(Limit::Maximum(64 << 10));
    symphonia::default::get_probe().probe(&hint, stream, FormatOptions::default(), metadata)
}

fn open<'a>(
    input: &'a Spooled,
    range: ByteSpan,
    file_name: Option<&str>,
    keep_going: &'a KeepGoing<'a>,
    failure: &SourceFailure,
) -> Result<Box<dyn FormatReader + 'a>, AudioError> {
    let source = |is_seekable| Box::new(SpoolMediaSource::new(input, range, is_seekable, keep_going, failure.clone()));
    let probed = match probe(source(true), file_name) {
        Ok(format) => Ok(format),
        Err(error) => {
            failure.check()?;
            // A truncated file fails on its index, which is at the end. In a stream of unknown length symphonia does
            // not look for an index.
            probe(source(false), file_name).map_err(|_| error)
        }
    };

    probed.or_else(|error| {
        failure.check()?;
        Err(match error {
            // The container was recognised and is malformed.
            SymphoniaError::DecodeError(reason) => AudioError::Malformed { reason: reason.to_owned() },
            _ => AudioError::Unrecognised { hint: file_kind::describe(input, file_name) },
        })
    })
}

/// Decodes a track to its end. Returns whether the end came too early. `timing`: when the headers say that the track is
/// heard; `input`: the file in which the default track of a further stream is looked up.
fn decode_track(
    format: Box<dyn FormatReader + '_>,
    track: AudioTrack,
    timing: Option<TrackTiming>,
    input: Option<&Spooled>,
    output: &mut MonoOutput,
    failure: &SourceFailure,
    keep_going: &KeepGoing<'_>,
) -> Result<bool, AudioError> {
    let clock = match &timing {
        Some(timing) => ContainerClock::starting_at(timing.origin),
        None => ContainerClock::default(),
    };

    let mut timing = timing.unwrap_or_default();
    output.set_cuts(std::mem::take(&mut timing.cuts));

    let mut decoding = TrackDecoding::new(format, track, clock, timing, input, failure);
    loop {
        if !keep_going() {
            return Err(AudioError::Cancelled);
        }

        if output.is_full() || decoding.has_too_many_bad_packets() {
            break;
        }

        match decoding.next_packet()? {
            NextPacket::Packet(packet) => decoding.decode(&packet, output)?,
            NextPacket::TryAgain => {}
            NextPacket::End => break,
        }
    }

    decoding.finish()
}

/// The state of [`decode_track`].
struct TrackDecoding<'a> {
    format: Box<dyn FormatReader + 'a>,
    track: AudioTrack,
    other_tracks: Vec<(u32, TimeBase)>,
    clock: ContainerClock,
    timing: TrackTiming,
    input: Option<&'a Spooled>,
    failure: &'a SourceFailure,
    good_packets: u64,
    bad_packets: u64,
    /// Errors of the demuxer in a row.
    demux_errors: usize,
    stream_changes: usize,
    stopped_early: bool,
    last_error: Option<String>,
}

enum NextPacket {
    Packet(Packet),
    /// The demuxer skipped damaged data, or another stream begins.
    TryAgain,
    End,
}

impl<'a> TrackDecoding<'a> {
    fn new(
        format: Box<dyn FormatReader + 'a>,
        track: AudioTrack,
        clock: ContainerClock,
        timing: TrackTiming,
        input: Option<&'a Spooled>,
        failure: &'a SourceFailure,
    ) -> Self {
        let other_tracks = other_tracks(&*format, track.id);

        Self {
            format,
            track,
            other_tracks,
            clock,
            timing,
            input,
            failure,
            good_packets: 0,
            bad_packets: 0,
            demux_errors: 0,
            stream_changes: 0,
            stopped_early: false,
            last_error: None,
        }
    }

    fn has_too_many_bad_packets(&self) -> bool {
        self.bad_packets >= MAX_BAD_PACKETS && self.bad_packets / MAX_BAD_PER_GOOD > self.good_packets
    }

    fn next_packet(&mut self) -> Result<NextPacket, AudioError> {
        // Metadata in the stream is dropped, so that it does not accumulate.
        while self.format.metadata().pop().is_some() {}

        match self.format.next_packet() {
            Ok(Some(packet)) => {
                self.demux_errors = 0;
                Ok(NextPacket::Packet(packet))
            }
            Ok(None) => Ok(NextPacket::End),
            Err(SymphoniaError::ResetRequired) => self.begin_chained_stream(),
            // The file is shorter than its headers say. What was decoded counts, as with ffmpeg.
            Err(SymphoniaError::IoError(_)) => {
                self.failure.check()?;
                self.stopped_early = true;
                Ok(NextPacket::End)
            }
            Err(error) => {
                self.demux_errors += 1;
                self.last_error = Some(error.to_string());
                if self.demux_errors < MAX_DEMUX_ERRORS {
                    return Ok(NextPacket::TryAgain);
                }

                self.stopped_early = true;
                Ok(NextPacket::End)
            }
        }
    }

    fn begin_chained_stream(&mut self) -> Result<NextPacket, AudioError> {
        self.stream_changes += 1;
        if self.stream_changes > MAX_CHANGES {
            return Err(too_many_changes());
        }

        self.track = AudioTrack::open(&*self.format, self.input)?;
        self.clock.restart();
        Ok(NextPacket::TryAgain)
    }

    fn decode(&mut self, packet: &Packet, output: &mut MonoOutput) -> Result<(), AudioError> {
        if packet.track_id != self.track.id {
            let base = self.other_tracks.iter().find(|(id, _)| *id == packet.track_id);
            if let Some((_, base)) = base {
                self.clock.note_other_track(time_of(*base, packet.pts));
            }

            return Ok(());
        }

        match self.track.decoder.decode(packet) {
            Ok(buffer) => {
                self.good_packets += 1;
                if buffer.frames() == 0 {
                    return Ok(());
                }

                let silence = self.track.time_base.map_or(0.0, |base| {
                    let time = self.timing.seconds(packet.pts.get(), time_of(base, packet.pts));
                    self.clock.silence_before(time, output.position_seconds())
                });
                output.push(&buffer, self.track.is_float_pcm, silence)
            }
            Err(SymphoniaError::ResetRequired) => {
                self.track.decoder.reset();
                Ok(())
            }
            Err(error) => {
                self.bad_packets += 1;
                tracing::debug!(%error, "damaged audio packet");
                self.last_error = Some(error.to_string());
                output.conceal(self.track.seconds_of(packet))
            }
        }
    }

    fn finish(self) -> Result<bool, AudioError> {
        self.failure.check()?;
        let (bad, good) = (self.bad_packets, self.good_packets);
        if bad <= good {
            return Ok(self.stopped_early);
        }

        let last_error = self.last_error.map(|error| format!(" ({error})")).unwrap_or_default();
        let reason = format!("{bad} of {} packets could not be decoded{last_error}", good + bad);
        Err(AudioError::Malformed { reason })
    }
}

/// Tracks whose first packet may be where the container's time begins. Subtitles are left out, because they may begin
/// anywhere.
fn other_tracks(format: &dyn FormatReader, decoded: u32) -> Vec<(u32, TimeBase)> {
    let tracks = format.tracks().iter().filter(|track| track.id != decoded);
    let tracks = tracks.filter(|track| track.track_type() != Some(TrackType::Subtitle));
    tracks.filter_map(|track| Some((track.id, track.time_base?))).collect()
}

fn time_of(base: TimeBase, timestamp: Timestamp) -> f64 {
    timestamp.get() as f64 * f64::from(base.numer.get()) / f64::from(base.denom.get())
}

/// The track that is decoded.
struct AudioTrack {
    id: u32,
    time_base: Option<TimeBase>,
    decoder: Box<dyn AudioDecoder>,
    declared_seconds: Option<f64>,
    declared_frames: Option<u64>,
    is_pcm: bool,
    /// Whether the samples have the form that [`Pcm`] needs.
    is_wanted: bool,
    is_float_pcm: bool,
}

impl AudioTrack {
    /// Opens the default audio track, or the first one whose codec has a name.
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
