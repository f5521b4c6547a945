//! Transcription of a whole recording, window by window: `transcribe` of openai/whisper (`whisper/transcribe.py`).

use std::{io, sync::Arc, time::Instant};

use crate::{
    abilities::Abilities,
    bounds::BoundedSink,
    decoding::{DecodeError, DecodedWindow, Prompt, TokenRules, language_probabilities},
    encoder_context::{self, EncoderContext, WindowCounts},
    engine::{EncodedWindow, Engine},
    mel::{FRAMES_PER_SECOND, HOP, ScanError, Spectrogram, WINDOW_FRAMES},
    parallel,
    segments::{SeekAdvance, TokenSpan, is_finished, split},
    sound::{self, WindowSound},
    task::{FirstToken, LanguageProbability, PcmSource, Segment, TranscribeOptions, Transcript, TranscriptSink},
    timing::{self, AlignedRow, WindowVerdict},
    tokenizer::{TokenizerError, strip},
    vad::{self, ChunkMap, SpeechChunk, SpeechModel, VadError, VadOptions},
};

mod attempts;
mod transcript_language;

use attempts::needs_fallback;
use transcript_language::TranscriptLanguage;

pub use crate::options::MAX_CANDIDATES;

/// Text that was sampled at a higher temperature than this is not the prompt of the next window.
const MAX_PROMPT_TEMPERATURE: f32 = 0.5;
const MEL_FRAMES_PER_TIMESTAMP: u64 = 2;
const SECONDS_PER_TIMESTAMP: f64 = MEL_FRAMES_PER_TIMESTAMP as f64 * HOP as f64 / crate::SAMPLE_RATE as f64;

#[derive(Debug, thiserror::Error)]
pub enum TranscribeError {
    #[error("cancelled")]
    Cancelled,
    #[error("unknown language `{given}`: {hint}")]
    UnknownLanguage { given: String, hint: String },
    #[error("`{option}` {problem}")]
    InvalidOption { option: &'static str, problem: String },
    #[error("this model knows only English, so it cannot tell languages apart")]
    EnglishOnly,
    #[error("this model knows only English, and was asked for `{code}` ({name}); take a model of all languages")]
    EnglishOnlyLanguage { name: String, code: String },
    #[error("this model knows only English, so it cannot translate; take a model of all languages")]
    CannotTranslate,
    #[error("reading the audio failed: {0}")]
    Source(#[from] io::Error),
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    #[error("the model failed: {0}")]
    Runtime(#[from] ort::Error),
    #[error(transparent)]
    Vad(VadError),
}

impl From<VadError> for TranscribeError {
    fn from(error: VadError) -> Self {
        match error {
            VadError::Source(error) => Self::Source(error),
            VadError::Cancelled => Self::Cancelled,
            error => Self::Vad(error),
        }
    }
}

impl From<ScanError> for TranscribeError {
    fn from(error: ScanError) -> Self {
        match error {
            ScanError::Source(error) => Self::Source(error),
            ScanError::Cancelled => Self::Cancelled,
        }
    }
}

impl From<DecodeError<ort::Error>> for TranscribeError {
    fn from(error: DecodeError<ort::Error>) -> Self {
        match error {
            DecodeError::Forward(error) => Self::Runtime(error),
            DecodeError::Cancelled => Self::Cancelled,
        }
    }
}

impl Engine {
    /// Transcribes a recording. Segments are sent to `sink` after each window. May be called on several threads at once:
    /// the requests share the decoder's steps.
    pub fn transcribe(
        &self,
        source: &mut dyn PcmSource,
        options: &TranscribeOptions,
        sink: &mut dyn TranscriptSink,
    ) -> Result<Transcript, TranscribeError> {
        options.validate()?;
        Abilities::new(self.config(), self.special()).check(options)?;

        let samples = source.len();
        let sink: &mut dyn TranscriptSink = &mut BoundedSink::new(sink, samples);

        let Some(vad) = &options.vad else { return self.transcribe_all(source, options, sink) };
        let chunks = self.speech_chunks(source, vad, sink)?;

        if vad.parallel && !chunks.is_empty() {
            return parallel::transcribe(self, source, chunks, options, sink);
        }

        let map = ChunkMap::new(chunks, samples);
        let transcript = self.transcribe_all(&mut map.spoken_source(source), options, &mut map.restoring_sink(sink))?;

        Ok(Transcript { duration_seconds: samples as f64 / f64::from(crate::SAMPLE_RATE), ..transcript })
    }

    fn speech_chunks(
        &self,
        source: &mut dyn PcmSource,
        options: &VadOptions,
        sink: &mut dyn TranscriptSink,
    ) -> Result<Vec<SpeechChunk>, VadError> {
        let mut options = options.clone();
        if options.parallel {
            // A chunk of at most one window is a unit of work.
            let longest = options.max_speech_duration_seconds.unwrap_or(parallel::LONGEST_SECONDS);
            options.max_speech_duration_seconds = Some(longest.min(parallel::LONGEST_SECONDS));
        }

        let mut model = SpeechModel::open(self.vad_model().ok_or(VadError::NoModel)?, self.threads())?;

        vad::speech_chunks(source, &mut model, &options, &mut || sink.keep_going())
    }

    /// Transcribes all of `source`, without voice activity detection.
    pub(crate) fn transcribe_all(
        &self,
        source: &mut dyn PcmSource,
        options: &TranscribeOptions,
        sink: &mut dyn TranscriptSink,
    ) -> Result<Transcript, TranscribeError> {
        let samples = source.len();

        let mut mel = self.log_mel();
        let started = Instant::now();
        let spectrogram = Spectrogram::scan(source, &mut mel, &mut || sink.keep_going())?;

        let language = TranscriptLanguage::given(options.language.as_deref(), self.special())?;
        let timings = FirstToken { mel_seconds: started.elapsed().as_secs_f64(), ..FirstToken::default() };
        let mut run = TranscriptionRun {
            rules: Arc::new(TokenRules::new(self.special(), options.without_timestamps)),
            mel: Vec::new(),
            current: None,
            content_frames: spectrogram.content_frames(),
            spectrogram,
            engine: self,
            options,
            timings: Some(timings),
            history: TranscriptHistory::default(),
            hears_short_windows: self.hears_short_windows(options.encoder_context),
            counts: WindowCounts::default(),
            language,
            speech_model: None,
        };

        if let Some(prompt) = &options.initial_prompt {
            run.history.tokens = self.tokenizer()?.encode(&format!(" {}", strip(prompt)))?;
        }

        run.windows(sink)?;
        run.detect_language_of_silence(sink)?;
        let TranscriptionRun { language, counts: windows, .. } = run;

        Ok(Transcript {
            language_probability: language.probability(),
            language: language.into_code().unwrap_or_default(),
            duration_seconds: samples as f64 / f64::from(crate::SAMPLE_RATE),
            windows,
        })
    }

    /// Whether windows that are mostly silence are encoded without most of it.
    fn hears_short_windows(&self, context: EncoderContext) -> bool {
        self.accepts_short_windows()
            && match context {
                EncoderContext::Auto => encoder_context::is_proven(self.config()),
                EncoderContext::Full => false,
                EncoderContext::Short => true,
            }
    }

    /// The probabilities of the languages of the first 30 s, the most probable first.
    pub fn detect_language(&self, source: &mut dyn PcmSource) -> Result<Vec<LanguageProbability>, TranscribeError> {
        if !self.special().multilingual {
            return Err(TranscribeError::EnglishOnly);
        }

        let mut mel = self.log_mel();
        let mut window = vec![0.0; self.config().num_mel_bins * WINDOW_FRAMES];
        Spectrogram::scan_start(source, &mut mel, &mut || true)?.window(0, WINDOW_FRAMES, &mut window)?;

        let logits = self.encode(&mut window)?.prefill(&[self.special().sot], true)?;

        Ok(language_probabilities(self.special(), &logits))
    }
}

/// The transcript so far, as far as the next windows depend on it.
#[derive(Default)]
struct TranscriptHistory {
    tokens: Vec<u32>,
    /// Index of the token with which the prompt of the next window begins.
    prompt_from: usize,
    segments: usize,
    /// End of the last word, seconds.
    last_speech: f64,
}

/// The state of one transcription.
struct TranscriptionRun<'a> {
    spectrogram: Spectrogram<'a>,
    engine: &'a Engine,
    options: &'a TranscribeOptions,
    rules: Arc<TokenRules>,
    mel: Vec<f32>,
    current: Option<CurrentWindow>,
    content_frames: u64,
    /// Taken when the first token is reported.
    timings: Option<FirstToken>,
    history: TranscriptHistory,
    /// Whether a window that is mostly silence is first encoded without most of it.
    hears_short_windows: bool,
    counts: WindowCounts,
    language: TranscriptLanguage,
    /// For windows that may have no speech; opened for the first of them.
    speech_model: Option<SpeechModel>,
}

/// Whether a window that has a text contains speech, by the text and its probabilities.
enum SpeechEvidence {
    Speech,
    Unclear,
    Silence,
}

/// The part of a recording that is encoded as one window.
#[derive(Clone, Copy, PartialEq, Eq)]
struct WindowSpan {
    seek: u64,
    /// Mel frames of the recording.
    size: usize,
    /// Mel frames that the encoder hears: the rest of them is silence.
    heard: usize,
}

/// The window that was encoded last.
struct CurrentWindow {
    span: WindowSpan,
    window: EncodedWindow,
    /// The logits after the first token, if the window's row has that token alone.
    sot_logits: Option<Vec<f32>>,
}

impl TranscriptionRun<'_> {
    /// Finds the language of the transcript in a window.
    fn detect_language(&mut self, span: WindowSpan, sink: &mut dyn TranscriptSink) -> Result<(), TranscribeError> {
        if !sink.keep_going() {
            return Err(TranscribeError::Cancelled);
        }

        let special = self.engine.special();
        let logits = self.encoded_window(span)?.prefill(&[special.sot], true)?;
        let likeliest = language_probabilities(special, &logits).into_iter().next();
        self.language = TranscriptLanguage::detected(likeliest.ok_or(TranscribeError::EnglishOnly)?, special)?;

        if let Some(current) = &mut self.current {
            current.sot_logits = Some(logits);
        }

        Ok(())
    }

    /// Without any window with sound the language is that of the silence, as in the reference.
    fn detect_language_of_silence(&mut self, sink: &mut dyn TranscriptSink) -> Result<(), TranscribeError> {
        if !matches!(self.language, TranscriptLanguage::Unknown) {
            return Ok(());
        }
        self.detect_language(WindowSpan { seek: 0, size: WINDOW_FRAMES, heard: WINDOW_FRAMES }, sink)
    }

    /// Transcribes all windows of the recording.
    fn windows(&mut self, sink: &mut dyn TranscriptSink) -> Result<(), TranscribeError> {
        let total = seconds(self.content_frames);
        let mut seek = 0;

        while seek < self.content_frames {
            let size = (self.content_frames - seek).min(WINDOW_FRAMES as u64);
            let next = self.window(seek, size, sink)?;

            // A window may end where it began, by its timestamps or its words: the reference would repeat it without end.
            seek = if next > seek { next } else { seek + size };
            sink.progress(seconds(seek.min(self.content_frames)), total);
        }

        Ok(())
    }

    /// Transcribes a window; returns the frame where the next window begins.
    fn window(&mut self, seek: u64, size: u64, sink: &mut dyn TranscriptSink) -> Result<u64, TranscribeError> {
        let samples = self.spectrogram.samples(seek, size as usize)?;
        if let WindowSound::Skip(frames) = sound::classify(&samples, seek + size >= self.content_frames) {
            if !sink.keep_going() {
                return Err(TranscribeError::Cancelled);
            }
            return Ok(seek + frames as u64);
        }

        let (decoded, span) = self.decode(seek, size as usize, sink)?;
        match self.speech_evidence(&decoded) {
            SpeechEvidence::Silence => Ok(seek + size),
            SpeechEvidence::Unclear if !self.has_speech(samples, sink)? => Ok(seek + size),
            SpeechEvidence::Unclear | SpeechEvidence::Speech => self.write(&decoded, span, sink),
        }
    }

    /// The encoder's output for a window; encodes it unless it is the current window.
    fn encoded_window(&mut self, span: WindowSpan) -> Result<&mut EncodedWindow, TranscribeError> {
        // The old window is released first: otherwise two requests could each hold one and wait for another.
        let current = match self.current.take().filter(|current| current.span == span) {
            Some(current) => current,
            None => {
                let started = Instant::now();
                self.mel.resize(self.engine.config().num_mel_bins * span.heard, 0.0);
                self.spectrogram.window(span.seek, span.size, &mut self.mel)?;
                let mel_done = Instant::now();
                let window = self.engine.encode(&mut self.mel)?;

                if let Some(timings) = &mut self.timings {
                    timings.mel_seconds += (mel_done - started).as_secs_f64();
                    timings.encode_seconds += mel_done.elapsed().as_secs_f64();
                }

                CurrentWindow { span, window, sot_logits: None }
            }
        };

        Ok(&mut self.current.insert(current).window)
    }

    /// Whether the model may have written a text for a window without speech.
    fn speech_evidence(&self, decoded: &DecodedWindow) -> SpeechEvidence {
        let options = self.options;
        let Some(threshold) = options.no_speech_threshold.map(f64::from) else { return SpeechEvidence::Speech };
        let is_likely = options.logprob_threshold.is_some_and(|least| decoded.avg_logprob > f64::from(least));
        let is_speechless = decoded.no_speech_prob > threshold;

        // No temperature gave a text that is likely and does not repeat itself.
        let has_failed = options.temperatures.len() > 1 && needs_fallback(decoded, options);
        if is_speechless && !is_likely || has_failed && decoded.no_speech_prob > threshold / 2.0 {
            SpeechEvidence::Silence
        } else if is_speechless || has_failed {
            SpeechEvidence::Unclear
        } else {
            SpeechEvidence::Speech
        }
    }

    /// Checks the window for voice activity; `true` if there is no model for it.
    fn has_speech(&mut self, mut samples: Vec<f32>, sink: &mut dyn TranscriptSink) -> Result<bool, TranscribeError> {
        // With the `vad` option the recording was reduced to speech already.
        let Some(path) = self.engine.vad_model().filter(|_| self.options.vad.is_none()) else { return Ok(true) };
        let model = match &mut self.speech_model {
            Some(model) => model,
            none => none.insert(SpeechModel::open(path, self.engine.threads())?),
        };
        Ok(!vad::speech_chunks(&mut samples, model, &VadOptions::default(), &mut || sink.keep_going())?.is_empty())
    }

    /// Sends the segments of a window to the sink; returns the frame where the next window begins.
    fn write(
        &mut self,
        decoded: &DecodedWindow,
        span: WindowSpan,
        sink: &mut dyn TranscriptSink,
    ) -> Result<u64, TranscribeError> {
        let (seek, size) = (span.seek, span.size as u64);
        let begin = self.engine.special().timestamp_begin;
        let (pieces, advance) = split(&decoded.tokens, begin);

        let segments = pieces.iter().map(|piece| self.segment(piece, decoded, seek, size));
        let mut segments = segments.collect::<Result<Vec<_>, _>>()?;

        let mut next = match advance {
            SeekAdvance::To(timestamp) => seek + u64::from(timestamp) * MEL_FRAMES_PER_TIMESTAMP,
            SeekAdvance::WholeWindow => seek + size,
        };

        if self.options.word_timestamps {
            self.add_words(&mut segments, span)?;
            let is_finished = is_finished(&decoded.tokens, begin);
            let verdict = self.judge(&segments, seek, size, is_finished, next);
            next = verdict.next;
            let Some(kept) = verdict.kept else { return Ok(next) };
            segments.truncate(kept);
            self.history.last_speech = timing::last_end(&segments).unwrap_or(self.history.last_speech);
        }

        for mut segment in segments {
            segment.id = self.history.segments;
            if segment.start_seconds == segment.end_seconds || strip(&segment.text).is_empty() {
                continue;
            }
            self.history.tokens.extend_from_slice(&segment.tokens);
            self.history.segments += 1;
            sink.segment(segment);
        }

        if !self.options.condition_on_previous_text || decoded.temperature > MAX_PROMPT_TEMPERATURE {
            self.history.prompt_from = self.history.tokens.len();
        }

        Ok(next)
    }

    /// Finds the times of a window's words, by aligning its text without the text before the window.
    fn add_words(&mut self, segments: &mut [Segment], span: WindowSpan) -> Result<(), TranscribeError> {
        let (engine, options) = (self.engine, self.options);
        let special = engine.special();
        let context = engine.config().max_target_positions;
        let prompt = Prompt::new(special, context, &[], self.language.token(), options.task, true);
        let text: Vec<u32> =
            segments.iter().flat_map(|segment| &segment.tokens).copied().filter(|token| *token < special.eot).collect();
        let timings = if text.is_empty() {
            Vec::new()
        } else {
            let row = [prompt.tokens(), &text, &[special.eot]].concat();
            let alignment = engine.align(self.encoded_window(span)?, row)?;
            let aligned = AlignedRow {
                attention: &alignment.attention,
                logprobs: &alignment.logprobs,
                frames: span.size / MEL_FRAMES_PER_TIMESTAMP as usize,
                prompt: prompt.tokens().len(),
            };

            timing::align(&aligned, engine.tokenizer()?, &text, special.eot, self.language.spoken())
        };

        let marks = [&options.prepend_punctuations, &options.append_punctuations].map(String::as_str);
        timing::add_words(segments, timings, special.eot, marks, seconds(span.seek), self.history.last_speech);

        Ok(())
    }

    /// Decides by the words where the next window begins, and which segments are hallucinations.
    fn judge(&self, segments: &[Segment], seek: u64, size: u64, is_finished: bool, next: u64) -> WindowVerdict {
        let window = timing::JudgedWindow {
            seek,
            size,
            content_frames: self.content_frames,
            is_finished,
            next,
            last_speech: self.history.last_speech,
            threshold: self.options.hallucination_silence_threshold.map(f64::from),
        };

        timing::judge(segments, &window)
    }

    fn segment(
        &self,
        piece: &TokenSpan,
        decoded: &DecodedWindow,
        seek: u64,
        size: u64,
    ) -> Result<Segment, TranscribeError> {
        let offset = seconds(seek);
        let start_seconds = offset + f64::from(piece.start) * SECONDS_PER_TIMESTAMP;
        let length = piece.end.map_or(seconds(size), |end| f64::from(end) * SECONDS_PER_TIMESTAMP);
        let end_seconds = offset + length;

        let eot = self.engine.special().eot;
        let text = self.engine.tokenizer()?.text(piece.tokens.iter().copied().filter(|token| *token < eot));
        let tokens = piece.tokens.to_vec();
        let token_logprobs = decoded.token_logprobs[piece.from..][..tokens.len()].to_vec();

        Ok(Segment {
            // The id is set when the segment is sent.
            id: 0,
            seek: seek as usize,
            start_seconds,
            end_seconds,
            text,
            tokens,
            token_logprobs,
            temperature: decoded.temperature,
            avg_logprob: decoded.avg_logprob,
            compression_ratio: decoded.compression_ratio,
            no_speech_prob: decoded.no_speech_prob,
            words: Vec::new(),
        })
    }
}

fn seconds(frames: u64) -> f64 {
    frames as f64 / FRAMES_PER_SECOND
}
