//! The messages between server and runner, over a socket pair that is the runner's standard input.
//!
//! A frame is a length (`u32`, little endian, in bytes, of what follows) and JSON. The samples of the audio are not in
//! frames: a job comes with the open file that holds them (in memory or on a disk, see `spool`), and the runner reads from
//! it what it needs when it needs it, so that neither side holds hours of audio.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use hush_whisper::{FirstToken, Segment};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::audio::PcmSpan;
use crate::job::{JobOutcome, JobTask};

/// The version of the protocol. Both sides are the same binary, unless it was replaced on disk under a running server.
pub const VERSION: u32 = 8;

/// Bytes of the longest frame, without its length. A segment is a few kB; a prompt may be as long as a request allows.
pub const MAX_FRAME: usize = 4 << 20;

const LENGTH_BYTES: usize = 4;

/// Files that one read may receive.
const MAX_FILES: usize = 8;

/// The number of a job on one runner.
pub type JobId = u64;

/// The model to load, and how to load it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadSpec {
    pub model_dir: PathBuf,
    /// `cpu`, `cuda`, `cuda:1`; read by the engine.
    pub device: String,
    /// Threads of the engine; `None`: as many as the machine has processors.
    pub threads: Option<usize>,
    /// Whether the weights are rearranged during the load, which then takes longer, and jobs are faster.
    pub prepack: bool,
    /// Jobs that use the model at the same time; more jobs wait.
    pub max_batch: usize,
    /// Device memory for each session; `None`: as much as the device has.
    #[serde(default)]
    pub memory_limit_bytes: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToRunner {
    Load(LoadSpec),
    /// The open file with the audio is sent with this message, see [`send`].
    Work {
        id: JobId,
        work: JobTask,
        audio: PcmSpan,
        /// The id of the request, for the log.
        request: Option<String>,
    },
    Cancel {
        id: JobId,
    },
    /// The runner logs only the lines that this filter lets through.
    LogLevel {
        filter: String,
    },
    Exit,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromRunner {
    Hello {
        version: u32,
        pid: u32,
        /// Name and version of the inference library; `None`: it could not be loaded, and the next load fails with the reason.
        runtime: Option<String>,
        libraries_seconds: f64,
    },
    /// Jobs may begin.
    Loaded {
        sessions_seconds: f64,
    },
    /// The model is loaded completely; the time is counted from the same moment as that of [`Self::Loaded`]. Instead of this,
    /// a [`Self::LoadFailed`] may follow.
    FullyLoaded {
        seconds: f64,
    },
    LoadFailed {
        kind: FailureKind,
        message: String,
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
    /// The engine has decoded the first token of a job.
    FirstToken {
        id: JobId,
        timings: FirstToken,
    },
    /// A sign of life of the engine.
    Beat,
    /// Log lines that the runner could not write since the last such message.
    LogLinesDropped {
        count: u64,
    },
    Done {
        id: JobId,
        outcome: JobOutcome,
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
    /// The model cannot do what the request wants.
    Invalid,
    Engine,
    /// The device has too little free memory.
    OutOfMemory,
    /// The device fails every further call of this process; a new runner may work.
    DeviceLost,
}

#[derive(Debug, thiserror::Error)]
pub enum WireError {
    #[error("a frame of {0} bytes; the limit is {MAX_FRAME}")]
    TooLong(usize),
    #[error("a frame that is not what the protocol says: {0}")]
    Json(#[from] serde_json::Error),
}

/// The messages of one direction.
pub trait WireMessage: Serialize + DeserializeOwned {
    /// The frame of the message.
    ///
    /// # Errors
    /// If the frame is longer than [`MAX_FRAME`].
    fn encode(&self) -> Result<Bytes, WireError> {
        let json = serde_json::to_vec(self)?;
        let length = u32::try_from(json.len()).ok().filter(|_| json.len() <= MAX_FRAME);

        let mut frame = BytesMut::with_capacity(LENGTH_BYTES + json.len());
        frame.put_u32_le(length.ok_or(WireError::TooLong(json.len()))?);
        frame.put_slice(&json);
        Ok(frame.freeze())
    }
}

impl WireMessage for ToRunner {}

impl WireMessage for FromRunner {}

/// Sends the beginning of `bytes` and returns its length in bytes. The open file is sent with the first byte.
pub fn send(socket: impl AsFd, bytes: &[u8], file: Option<BorrowedFd<'_>>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if let Some(file) = &file {
        ancillary.push(SendAncillaryMessage::ScmRights(std::slice::from_ref(file)));
    }

    Ok(sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)?)
}

/// Waits for bytes and for the files that were sent with them. Returns the number of bytes; 0: the other side has ended.
pub fn receive(socket: impl AsFd, into: &mut [u8], files: &mut VecDeque<OwnedFd>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(socket, &mut [IoSliceMut::new(into)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;

    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(sent) = message {
            files.extend(sent);
        }
    }

    if received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(io::Error::other("an open file was lost on its way: is the limit of open files too low?"));
    }
    Ok(received.bytes)
}

/// Decodes messages from the bytes of a stream. After an error the rest of the stream cannot be decoded.
#[derive(Debug, Default)]
pub struct FrameDecoder {
    buffer: BytesMut,
}

impl FrameDecoder {
    /// The buffer to which received bytes are appended.
    pub fn buffer(&mut self) -> &mut BytesMut {
        self.buffer.reserve(16 << 10);
        &mut self.buffer
    }

    /// The next message; `None`: more bytes are needed.
    ///
    /// # Errors
    /// If the frame is too long or is not the JSON of a message.
    pub fn message<M: WireMessage>(&mut self) -> Result<Option<M>, WireError> {
        let Some((mut prefix, _)) = self.buffer.split_at_checked(LENGTH_BYTES) else { return Ok(None) };
        let length = prefix.get_u32_le() as usize;
        if length > MAX_FRAME {
            return Err(WireError::TooLong(length));
        }

        if self.buffer.len() < LENGTH_BYTES + length {
            self.buffer.reserve(LENGTH_BYTES + length - self.buffer.len());
            return Ok(None);
        }

        let frame = self.buffer.split_to(LENGTH_BYTES + length);
        Ok(Some(serde_json::from_slice(&frame[LENGTH_BYTES..])?))
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    use std::os::unix::net::UnixStream;

    use hush_whisper::{LanguageProbability, TranscribeOptions, Transcript};
    use proptest::prelude::*;
    use rustix::fs::{MemfdFlags, memfd_create};

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
            (any::<u64>(), options, any::<[u64; 2]>(), proptest::option::of(".{0,30}")).prop_map(
                |(id, options, [start_bytes, len_samples], request)| {
                    let (work, audio) = (JobTask::Transcribe(options), PcmSpan { start_bytes, len_samples });
                    ToRunner::Work { id, work, audio, request }
                }
            ),
            any::<u64>().prop_map(|id| ToRunner::Cancel { id }),
            any::<String>().prop_map(|filter| ToRunner::LogLevel { filter }),
            Just(ToRunner::Exit),
        ]
    }

    fn from_runner() -> impl Strategy<Value = FromRunner> {
        let languages = proptest::collection::vec(("[a-z]{2,3}", 0.0_f32..1.0), 0..5).prop_map(|languages| {
            let probability = |(code, probability)| LanguageProbability { code, probability };
            JobOutcome::Languages(languages.into_iter().map(probability).collect())
        });

        let transcript = (0.0_f64..1e6, proptest::option::of(0.0_f32..1.0)).prop_map(|(duration_seconds, p)| {
            let language = "yue".to_owned();
            JobOutcome::Transcribed(Transcript {
                language,
                language_probability: p,
                duration_seconds,
                ..Transcript::default()
            })
        });

        prop_oneof![
            (any::<u32>(), proptest::option::of(".{0,20}"), 0.0_f64..9.0).prop_map(|(pid, runtime, seconds)| {
                FromRunner::Hello { version: VERSION, pid, runtime, libraries_seconds: seconds }
            }),
            ".{0,80}".prop_map(|message| FromRunner::LoadFailed { kind: FailureKind::OutOfMemory, message }),
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

    /// Decodes `bytes` in pieces, as a socket may deliver them.
    fn decode_in_pieces<M: WireMessage>(bytes: &[u8], piece: usize) -> Result<Vec<M>, WireError> {
        let mut decoder = FrameDecoder::default();
        let mut messages = Vec::new();

        for piece in bytes.chunks(piece) {
            decoder.buffer().extend_from_slice(piece);
            while let Some(message) = decoder.message()? {
                messages.push(message);
            }
        }
        Ok(messages)
    }

    fn encode_all<M: WireMessage>(messages: &[M]) -> Vec<u8> {
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
    fn each_file_comes_with_its_frame_also_where_the_socket_takes_little_at_a_time() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let writer = std::thread::spawn(move || {
            for number in 0..50_u64 {
                let file = File::from(memfd_create("wire", MemfdFlags::CLOEXEC).unwrap());
                file.write_all_at(&number.to_le_bytes(), 0).unwrap();
                let mut bytes = vec![number as u8; 1 + number as usize * 9000];
                let mut file = (number % 3 != 0).then_some(file);
                while !bytes.is_empty() {
                    let sent = send(&ours, &bytes, file.as_ref().map(AsFd::as_fd)).unwrap();
                    file = None;
                    bytes.drain(..sent);
                }
            }
        });

        let mut files = VecDeque::new();
        let mut read = Vec::new();
        let mut piece = vec![0; 10_000];
        loop {
            let known = files.len();
            let count = receive(&theirs, &mut piece, &mut files).unwrap();
            read.extend_from_slice(&piece[..count]);
            for file in files.range(known..) {
                let mut number = [0; 8];
                File::from(file.try_clone().unwrap()).read_exact_at(&mut number, 0).unwrap();
                assert!(read.contains(&number[0]), "before the first byte of its frame");
            }
            if count == 0 {
                break;
            }
        }

        writer.join().unwrap();
        assert_eq!(files.len(), (0..50).filter(|number| number % 3 != 0).count());
        assert_eq!(read.len(), (0..50).map(|number| 1 + number * 9000).sum::<usize>());
    }

    #[test]
    fn a_frame_is_bounded_on_both_ends() {
        let message = |length| FromRunner::LoadFailed { kind: FailureKind::Engine, message: "x".repeat(length) };
        assert!(matches!(message(MAX_FRAME).encode(), Err(WireError::TooLong(_))));
        assert!(message(MAX_FRAME - 100).encode().is_ok());

        let mut decoder = FrameDecoder::default();
        decoder.buffer().extend_from_slice(&u32::MAX.to_le_bytes());
        assert!(matches!(decoder.message::<FromRunner>(), Err(WireError::TooLong(_))));
        assert!(decoder.buffer.capacity() < 1 << 20, "a length alone allocates nothing");
    }
}
