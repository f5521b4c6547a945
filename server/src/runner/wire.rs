//! What server and runner say to each other, over a socket pair that is the runner's standard input.
//!
//! A frame is `u32` length (little endian, of what follows), `u8` kind, payload: JSON, or 16-bit samples. The first
//! window of audio follows its work unasked, which saves the way there and back; the runner **pulls** the rest window by
//! window, so that neither side holds hours of it.

use std::path::PathBuf;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use hush_whisper::{FirstToken, Segment};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::job::{Outcome, Work};

/// Both sides are the same binary, until somebody replaces it on disk under a running server.
pub const VERSION: u32 = 5;

/// The most samples in one audio frame: one window of Whisper, 960 kB.
pub const MAX_SAMPLES: usize = 480_000;

/// The longest frame, without its length. Larger than any audio frame; a segment is a few kB.
pub const MAX_FRAME: usize = 4 << 20;

const KIND_JSON: u8 = 1;
const KIND_AUDIO: u8 = 2;
const HEADER: usize = 5;
const AUDIO_HEADER: usize = 16;
pub(crate) const BYTES_PER_SAMPLE: usize = 2;

/// Names one job on one runner.
pub type JobId = u64;

/// What to load, and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadSpec {
    pub model_dir: PathBuf,
    /// `cpu`, `cuda`, `cuda:1`; read by the engine.
    pub device: String,
    /// Of the engine; `None` lets it choose.
    pub threads: Option<usize>,
    /// Rearrange the weights at load time: slower to load, faster to run.
    pub prepack: bool,
    /// Jobs that hold the model at the same time; more wait.
    pub max_batch: usize,
    /// Of the device, for each session; `None`: as much as there is.
    #[serde(default)]
    pub memory_limit_bytes: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToRunner {
    Load(LoadSpec),
    Work {
        id: JobId,
        work: Work,
        len_samples: u64,
        /// So much of the audio's beginning comes unasked, in the next frame; 0: none.
        first_samples: usize,
        /// The id of the request that this is for; for the log.
        request: Option<String>,
    },
    #[serde(skip)]
    Audio {
        id: JobId,
        /// In samples.
        offset: u64,
        s16le: Vec<u8>,
    },
    Cancel {
        id: JobId,
    },
    Exit,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromRunner {
    Hello {
        version: u32,
        pid: u32,
        /// Name and version of the inference library; `None`: it could not be loaded, the next load says why.
        runtime: Option<String>,
        libraries_seconds: f64,
    },
    /// Work may begin.
    Loaded {
        sessions_seconds: f64,
    },
    /// All of it is loaded, counted from the same moment. A load may also still fail after [`Self::Loaded`].
    Settled {
        seconds: f64,
    },
    LoadFailed {
        kind: FailureKind,
        message: String,
    },
    NeedAudio {
        id: JobId,
        offset: u64,
        samples: usize,
    },
    Segment {
        id: JobId,
        segment: Segment,
    },
    Progress {
        id: JobId,
        done_seconds: f64,
        total_seconds: f64,
    },
    /// The first token of a job is out.
    FirstToken {
        id: JobId,
        timings: FirstToken,
    },
    /// The engine is alive.
    Beat,
    Done {
        id: JobId,
        outcome: Outcome,
    },
    Failed {
        id: JobId,
        kind: FailureKind,
        message: String,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    Cancelled,
    /// The request asks for what the model cannot do.
    Invalid,
    Engine,
    /// The device has too little memory for it.
    OutOfMemory,
}

#[derive(Debug, thiserror::Error)]
pub enum WireError {
    #[error("a frame of {0} bytes; the limit is {MAX_FRAME}")]
    TooLong(usize),
    #[error("an empty frame")]
    Empty,
    #[error("a frame of unknown kind {0}")]
    UnknownKind(u8),
    #[error("an audio frame of {0} bytes")]
    AudioLength(usize),
    #[error("a frame that is not what the protocol says: {0}")]
    Json(#[from] serde_json::Error),
}

/// A message of one direction.
pub trait Message: Sized {
    fn encode(&self) -> Result<Bytes, WireError>;

    fn decode(kind: u8, payload: &[u8]) -> Result<Self, WireError>;
}

impl Message for FromRunner {
    fn encode(&self) -> Result<Bytes, WireError> {
        encode_json(self)
    }

    fn decode(kind: u8, payload: &[u8]) -> Result<Self, WireError> {
        decode_json(kind, payload)
    }
}

impl Message for ToRunner {
    fn encode(&self) -> Result<Bytes, WireError> {
        match self {
            Self::Audio { id, offset, s16le } => encode_audio(*id, *offset, s16le),
            control => encode_json(control),
        }
    }

    fn decode(kind: u8, mut payload: &[u8]) -> Result<Self, WireError> {
        if kind != KIND_AUDIO {
            return decode_json(kind, payload);
        }
        if payload.len() < AUDIO_HEADER || !payload.len().is_multiple_of(BYTES_PER_SAMPLE) {
            return Err(WireError::AudioLength(payload.len()));
        }
        let id = payload.get_u64_le();
        let offset = payload.get_u64_le();
        Ok(Self::Audio { id, offset, s16le: payload.to_vec() })
    }
}

fn encode_json<T: Serialize>(message: &T) -> Result<Bytes, WireError> {
    let json = serde_json::to_vec(message)?;
    let mut frame = header(KIND_JSON, json.len())?;
    frame.put_slice(&json);
    Ok(frame.freeze())
}

fn encode_audio(id: JobId, offset: u64, s16le: &[u8]) -> Result<Bytes, WireError> {
    let mut frame = header(KIND_AUDIO, AUDIO_HEADER + s16le.len())?;
    frame.put_u64_le(id);
    frame.put_u64_le(offset);
    frame.put_slice(s16le);
    Ok(frame.freeze())
}

fn header(kind: u8, payload: usize) -> Result<BytesMut, WireError> {
    let length = payload + 1;
    let prefix = u32::try_from(length).ok().filter(|_| length <= MAX_FRAME).ok_or(WireError::TooLong(length))?;
    let mut frame = BytesMut::with_capacity(HEADER + payload);
    frame.put_u32_le(prefix);
    frame.put_u8(kind);
    Ok(frame)
}

fn decode_json<T: DeserializeOwned>(kind: u8, payload: &[u8]) -> Result<T, WireError> {
    if kind != KIND_JSON {
        return Err(WireError::UnknownKind(kind));
    }
    Ok(serde_json::from_slice(payload)?)
}

/// Turns bytes as they come into messages. After an error the stream has no meaning any more.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: BytesMut,
}

impl Decoder {
    /// Where to put more bytes.
    pub fn buffer(&mut self) -> &mut BytesMut {
        // Room for an audio frame in few reads; kept small while only control frames come.
        self.buffer.reserve(64 << 10);
        &mut self.buffer
    }

    /// The next whole message, if its last byte is here.
    pub fn message<M: Message>(&mut self) -> Result<Option<M>, WireError> {
        let Some((mut prefix, _)) = self.buffer.split_at_checked(4) else { return Ok(None) };
        let length = prefix.get_u32_le() as usize;
        if length > MAX_FRAME {
            return Err(WireError::TooLong(length));
        }
        if length == 0 {
            return Err(WireError::Empty);
        }
        if self.buffer.len() < 4 + length {
            self.buffer.reserve(4 + length - self.buffer.len());
            return Ok(None);
        }
        let frame = self.buffer.split_to(4 + length);
        let kind = frame[4];
        M::decode(kind, &frame[HEADER..]).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use hush_whisper::{LanguageProbability, TranscribeOptions, Transcript};
    use proptest::prelude::*;

    use super::*;

    fn segments() -> impl Strategy<Value = Segment> {
        let numbers = (any::<f32>(), -1e9_f64..1e9, 0.0_f64..1e3, 0.0_f64..1.0);
        (
            any::<usize>(),
            any::<usize>(),
            0.0_f64..1e6,
            ".{0,40}",
            proptest::collection::vec(any::<u32>(), 0..8),
            numbers,
        )
            .prop_map(|(id, seek, start, text, tokens, (temperature, logprob, ratio, no_speech))| Segment {
                id,
                seek,
                start_seconds: start,
                end_seconds: start + 1.5,
                text,
                tokens,
                temperature: if temperature.is_finite() { temperature } else { 0.2 },
                avg_logprob: logprob,
                compression_ratio: ratio,
                no_speech_prob: no_speech,
                ..Segment::default()
            })
    }

    fn to_runner() -> impl Strategy<Value = ToRunner> {
        let options = (proptest::option::of("[a-z]{2}"), ".{0,60}", any::<u64>(), any::<bool>()).prop_map(
            |(language, prompt, seed, condition)| TranscribeOptions {
                language,
                initial_prompt: Some(prompt),
                seed,
                condition_on_previous_text: condition,
                ..TranscribeOptions::default()
            },
        );
        prop_oneof![
            (".{0,30}", proptest::option::of(any::<usize>()), any::<bool>(), any::<usize>()).prop_map(
                |(dir, threads, prepack, max_batch)| {
                    let (device, limit) = ("cpu".to_owned(), Some(1 << 40));
                    let model_dir = dir.into();
                    let spec = LoadSpec { model_dir, device, threads, prepack, max_batch, memory_limit_bytes: limit };
                    ToRunner::Load(spec)
                }
            ),
            (any::<u64>(), options, any::<u64>(), any::<usize>(), proptest::option::of(".{0,30}")).prop_map(
                |(id, options, len_samples, first_samples, request)| {
                    ToRunner::Work { id, work: Work::Transcribe(options), len_samples, first_samples, request }
                }
            ),
            (any::<u64>(), any::<u64>(), proptest::collection::vec(any::<[u8; 2]>(), 0..3000))
                .prop_map(|(id, offset, samples)| ToRunner::Audio { id, offset, s16le: samples.concat() }),
            any::<u64>().prop_map(|id| ToRunner::Cancel { id }),
            Just(ToRunner::Exit),
        ]
    }

    fn from_runner() -> impl Strategy<Value = FromRunner> {
        let languages = proptest::collection::vec(("[a-z]{2,3}", 0.0_f32..1.0), 0..5).prop_map(|languages| {
            let probability = |(code, probability)| LanguageProbability { code, probability };
            Outcome::Languages(languages.into_iter().map(probability).collect())
        });
        let transcript = (0.0_f64..1e6, proptest::option::of(0.0_f32..1.0)).prop_map(|(duration_seconds, p)| {
            let language = "yue".to_owned();
            Outcome::Transcribed(Transcript { language, language_probability: p, duration_seconds })
        });
        prop_oneof![
            (any::<u32>(), proptest::option::of(".{0,20}"), 0.0_f64..9.0).prop_map(|(pid, runtime, seconds)| {
                FromRunner::Hello { version: VERSION, pid, runtime, libraries_seconds: seconds }
            }),
            ".{0,80}".prop_map(|message| FromRunner::LoadFailed { kind: FailureKind::OutOfMemory, message }),
            (any::<u64>(), any::<u64>(), any::<usize>()).prop_map(|(id, offset, samples)| FromRunner::NeedAudio {
                id,
                offset,
                samples
            }),
            (any::<u64>(), segments()).prop_map(|(id, segment)| FromRunner::Segment { id, segment }),
            (any::<u64>(), prop_oneof![languages, transcript])
                .prop_map(|(id, outcome)| FromRunner::Done { id, outcome }),
            (any::<u64>(), ".{0,80}").prop_map(|(id, message)| FromRunner::Failed {
                id,
                kind: FailureKind::Invalid,
                message
            }),
            Just(FromRunner::Beat),
        ]
    }

    /// Feeds `bytes` in pieces as a socket may deliver them.
    fn decode_in_pieces<M: Message>(bytes: &[u8], piece: usize) -> Result<Vec<M>, WireError> {
        let mut decoder = Decoder::default();
        let mut messages = Vec::new();
        for piece in bytes.chunks(piece) {
            decoder.buffer().extend_from_slice(piece);
            while let Some(message) = decoder.message()? {
                messages.push(message);
            }
        }
        Ok(messages)
    }

    fn encode_all<M: Message>(messages: &[M]) -> Vec<u8> {
        messages.iter().flat_map(|message| message.encode().unwrap()).collect()
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out_however_it_is_cut(
            to in proptest::collection::vec(to_runner(), 0..6),
            from in proptest::collection::vec(from_runner(), 0..6),
            piece in 1_usize..5000,
        ) {
            prop_assert_eq!(decode_in_pieces::<ToRunner>(&encode_all(&to), piece).unwrap(), to);
            prop_assert_eq!(decode_in_pieces::<FromRunner>(&encode_all(&from), piece).unwrap(), from);
        }

        #[test]
        fn garbage_is_an_error_or_waits_for_more_but_never_a_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            flip in any::<prop::sample::Index>(),
            message in to_runner(),
        ) {
            let _ = decode_in_pieces::<ToRunner>(&bytes, 7);
            let _ = decode_in_pieces::<FromRunner>(&bytes, 7);
            let mut frame = message.encode().unwrap().to_vec();
            let at = flip.index(frame.len());
            frame[at] ^= 0xff;
            let _ = decode_in_pieces::<ToRunner>(&frame, 64);
        }
    }

    #[test]
    fn a_frame_is_bounded_on_both_ends() {
        let long = ToRunner::Audio { id: 1, offset: 0, s16le: vec![0; MAX_FRAME] };
        assert!(matches!(long.encode(), Err(WireError::TooLong(_))));
        let window = ToRunner::Audio { id: 1, offset: 0, s16le: vec![0; MAX_SAMPLES * BYTES_PER_SAMPLE] };
        assert!(window.encode().is_ok());
        let mut decoder = Decoder::default();
        decoder.buffer().extend_from_slice(&u32::MAX.to_le_bytes());
        assert!(matches!(decoder.message::<FromRunner>(), Err(WireError::TooLong(_))));
        assert!(decoder.buffer.capacity() < 1 << 20, "nothing is allocated on the word of a length");
    }
}
