//! A whole recording, window by window: `transcribe` of openai/whisper (`whisper/transcribe.py`).

use std::{io, sync::Arc, time::Instant};

use crate::{
    abilities::Abilities,
    bounds::BoundedSink,
    decoding::{DecodeError, Decoded, Frame, Prompt, Rules, language_probabilities, sampling},
    engine::{Engine, Window},
    fallback::{self, FallbackBudget, most_tokens},
    language,
    mel::{FRAMES_PER_SECOND, HOP, ScanError, Spectrogram, WINDOW_FRAMES},
    parallel,
    segments::{Advance, Piece, is_finished, split},
    sound::{self, Hearing},
    task::{FirstToken, LanguageProbability, PcmSource, Segment, Sink, TranscribeOptions, Transcript},
    timing::{self, Aligned, Verdict},
    tokenizer::{TokenizerError, strip},
    vad::{self, Chunk, ChunkMap, SpeechModel, VadError, VadOptions},
};

pub use crate::options::MOST_CANDIDATES;

/// At higher temperatures than this, text is too wild to be the next window's prompt.
const CALM: f32 = 0.5;
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
    /// Writes what is said. Segments go to `sink` as each window is done. May be called on several threads at once:
    /// the requests share the decoder's steps.
    pub fn transcribe(
        &self,
        source: &mut dyn PcmSource,
        options: &TranscribeOptions,
        sink: &mut dyn Sink,
    ) -> Result<Transcript, TranscribeError> {
        options.validate()?;
        Abilities::new(self.config(), self.special()).check(options)?;
        let samples = source.len();
        let sink: &mut dyn Sink = &mut BoundedSink::new(sink, samples);
        let Some(vad) = &options.vad else { return self.transcribe_all(source, options, sink) };
        let chunks = self.spoken_chunks(source, vad, sink)?;
        if vad.parallel && !chunks.is_empty() {
            return parallel::transcribe(self, source, chunks, options, sink);
        }
        let map = ChunkMap::new(chunks, samples);
        let transcript = self.transcribe_all(&mut map.spoken(source), options, &mut map.restored(sink))?;
        Ok(Transcript { duration_seconds: samples as f64 / f64::from(crate::SAMPLE_RATE), ..transcript })
    }

    fn spoken_chunks(
        &self,
        source: &mut dyn PcmSource,
        options: &VadOptions,
        sink: &mut dyn Sink,
    ) -> Result<Vec<Chunk>, VadError> {
        let mut options = options.clone();
        if options.parallel {
            // What is one window is one piece of work.
            let longest = options.max_speech_duration_seconds.unwrap_or(parallel::LONGEST_SECONDS);
            options.max_speech_duration_seconds = Some(longest.min(parallel::LONGEST_SECONDS));
        }
        let mut model = SpeechModel::open(self.vad_model().ok_or(VadError::NoModel)?)?;
        vad::chunks(source, &mut model, &options, &mut || sink.keep_going())
    }

    /// Writes what is said in all of `source`.
    pub(crate) fn transcribe_all(
        &self,
        source: &mut dyn PcmSource,
        options: &TranscribeOptions,
        sink: &mut dyn Sink,
    ) -> Result<Transcript, TranscribeError> {
        let samples = source.len();
        let mut mel = self.log_mel();
        let started = Instant::now();
        let spectrogram = Spectrogram::scan(source, &mut mel, &mut || sink.keep_going())?;
        let timings = FirstToken { mel_seconds: started.elapsed().as_secs_f64(), ..FirstToken::default() };
        let mut run = Run {
            rules: Arc::new(Rules::new(self.special(), options.without_timestamps)),
            mel: vec![0.0; self.config().num_mel_bins * WINDOW_FRAMES],
            heard: None,
            content_frames: spectrogram.content_frames(),
            spectrogram,
            engine: self,
            options,
            timings: Some(timings),
            history: History::default(),
            language: None,
            speech_model: None,
        };
        let (language, language_probability) = run.language(sink)?;
        if let Some(prompt) = &options.initial_prompt {
            run.history.tokens = self.tokenizer()?.encode(&format!(" {}", strip(prompt)))?;
        }
        run.windows(&language, sink)?;
        Ok(Transcript {
            language,
            language_probability,
            duration_seconds: samples as f64 / f64::from(crate::SAMPLE_RATE),
        })
    }

    /// The languages that the first 30 s may be in, most probable first.
    pub fn detect_language(&self, source: &mut dyn PcmSource) -> Result<Vec<LanguageProbability>, TranscribeError> {
        if !self.special().multilingual {
            return Err(TranscribeError::EnglishOnly);
        }
        let mut mel = self.log_mel();
        let mut window = vec![0.0; self.config().num_mel_bins * WINDOW_FRAMES];
        Spectrogram::scan_start(source, &mut mel, &mut || true)?.window(0, WINDOW_FRAMES, &mut window)?;
        Ok(self.spoken(&mut self.listen(&mut window)?)?)
    }

    /// The languages that a window may be in.
    fn spoken(&self, window: &mut Window) -> Result<Vec<LanguageProbability>, ort::Error> {
        let logits = window.feed(&[self.special().sot], true)?;
        Ok(language_probabilities(self.special(), &logits))
    }
}

/// What was written so far, as far as the next prompt wants it.
#[derive(Default)]
struct History {
    tokens: Vec<u32>,
    /// Where the prompt of the next window begins.
    prompt_from: usize,
    segments: usize,
    /// Where the last word ended, seconds.
    last_speech: f64,
}

struct Run<'a> {
    spectrogram: Spectrogram<'a>,
    engine: &'a Engine,
    options: &'a TranscribeOptions,
    rules: Arc<Rules>,
    mel: Vec<f32>,
    heard: Option<Heard>,
    content_frames: u64,
    /// Until the first token is out.
    timings: Option<FirstToken>,
    history: History,
    /// Language code and token that is written; the code also tells how words are set apart.
    language: Option<(String, u32)>,
    /// For doubtful windows; opened with the first.
    speech_model: Option<SpeechModel>,
}

/// Whether anything is said in a window that has a text.
enum Doubt {
    None,
    Perhaps,
    Silence,
}

/// The window that was listened to last.
struct Heard {
    seek: u64,
    size: usize,
    window: Window,
}

impl Run<'_> {
    /// The language to write, and its probability if it was detected.
    fn language(&mut self, sink: &mut dyn Sink) -> Result<(String, Option<f32>), TranscribeError> {
        if !self.engine.special().multilingual {
            return Ok(("en".into(), None));
        }

        if let Some(given) = &self.options.language {
            let code = language::code(given).filter(|code| self.engine.special().languages.contains_key(*code));
            return match code {
                Some(code) => Ok((code.to_owned(), None)),
                None => Err(TranscribeError::UnknownLanguage {
                    given: given.clone(),
                    hint: "this model was not trained on it".into(),
                }),
            };
        }

        if !sink.keep_going() {
            return Err(TranscribeError::Cancelled);
        }

        // As the reference: silence up to 30 s, where a window to be written ends in zeros.
        let engine = self.engine;

        match engine.spoken(self.listen(0, WINDOW_FRAMES)?)?.into_iter().next() {
            Some(LanguageProbability { code, probability }) => Ok((code, Some(probability))),
            None => Err(TranscribeError::EnglishOnly),
        }
    }

    fn windows(&mut self, language: &str, sink: &mut dyn Sink) -> Result<(), TranscribeError> {
        let special = self.engine.special();
        let token = special.languages.get(language).copied().filter(|_| special.multilingual);
        self.language = token.map(|token| (language.to_owned(), token));
        let total = seconds(self.content_frames);
        let mut seek = 0;
        while seek < self.content_frames {
            let size = (self.content_frames - seek).min(WINDOW_FRAMES as u64);
            let next = self.window(seek, size, sink)?;

            // A model may say that nothing is done, and words may end where they began: the reference would try for ever.
            seek = if next > seek { next } else { seek + size };
            sink.progress(seconds(seek.min(self.content_frames)), total);
        }

        Ok(())
    }

    /// Writes what a window says; gives the frame where the next one begins.
    fn window(&mut self, seek: u64, size: u64, sink: &mut dyn Sink) -> Result<u64, TranscribeError> {
        let samples = self.spectrogram.samples(seek, size as usize)?;
        if let Hearing::Skip(frames) = sound::look(&samples, seek + size >= self.content_frames) {
            if !sink.keep_going() {
                return Err(TranscribeError::Cancelled);
            }
            return Ok(seek + frames as u64);
        }

        let decoded = self.decode(seek, size as usize, sink)?;

        match self.doubt(&decoded) {
            Doubt::Silence => Ok(seek + size),
            Doubt::Perhaps if !self.has_speech(samples, sink)? => Ok(seek + size),
            Doubt::Perhaps | Doubt::None => self.write(&decoded, seek, size, sink),
        }
    }

    fn listen(&mut self, seek: u64, size: usize) -> Result<&mut Window, TranscribeError> {
        // Its place first, or two jobs could each hold one and wait for another.
        let heard = match self.heard.take().filter(|heard| (heard.seek, heard.size) == (seek, size)) {
            Some(heard) => heard,
            None => {
                let started = Instant::now();
                self.spectrogram.window(seek, size, &mut self.mel)?;
                let cut = Instant::now();
                let window = self.engine.listen(&mut self.mel)?;
                if let Some(timings) = &mut self.timings {
                    timings.mel_seconds += (cut - started).as_secs_f64();
                    timings.encode_seconds += cut.elapsed().as_secs_f64();
                }

                Heard { seek, size, window }
            }
        };

        Ok(&mut self.heard.insert(heard).window)
    }

    /// Tries the temperatures until an attempt is good enough; the last one counts whatever it is.
    fn decode(&mut self, seek: u64, size: usize, sink: &mut dyn Sink) -> Result<Decoded, TranscribeError> {
        if !sink.keep_going() {
            return Err(TranscribeError::Cancelled);
        }

        let (engine, options, rules) = (self.engine, self.options, self.rules.clone());
        let (special, context) = (engine.special(), engine.config().max_target_positions);
        let previous = &self.history.tokens[self.history.prompt_from..];
        let language = self.language_token();
        let prompt = Prompt::new(special, context, previous, language, options.task, options.without_timestamps);
        let window = self.listen(seek, size)?;

        // The place in the queue may have cost as much time as the window itself.
        if !sink.keep_going() {
            return Err(TranscribeError::Cancelled);
        }

        let started = Instant::now();
        let (before, after) = prompt.parts();
        let at_sot = window.feed(before, true)?;
        let no_speech_prob = sampling::log_probability(&at_sot, special.no_speech as usize).exp();

        if !after.is_empty() {
            window.feed(after, false)?;
        }

        let prefill_seconds = started.elapsed().as_secs_f64();
        let prompt_length = prompt.tokens().len();
        let most = most_tokens(seconds(size as u64), context / 2);
        let frame = Frame { rules, end_of_text: special.eot, prompt_length, context, most_sampled: most };

        if let Some(timings) = self.timings.take() {
            sink.first_token(FirstToken { prefill_seconds, ..timings });
        }

        let tokenizer = engine.tokenizer()?;
        let window = self.listen(seek, size)?;
        let mut attempts = Vec::new();
        let mut budget: Option<FallbackBudget> = None;
        let mut is_cut = false;

        for (attempt, temperature) in options.temperatures.iter().copied().enumerate() {
            let rows = options.rows(temperature);
            let most_sampled = match &budget {
                None => most,
                Some(budget) => {
                    let Some(most) = budget.tokens_for(rows, most) else {
                        is_cut = true;
                        break;
                    };
                    most
                }
            };

            let search = options.search(&Frame { most_sampled, ..frame.clone() }, temperature, seek, attempt);
            let mut is_late = false;
            let candidates = window.decode(search, &mut || {
                is_late = budget.as_ref().is_some_and(FallbackBudget::is_out_of_time);
                !is_late && sink.keep_going()
            });

            let candidates = match candidates {
                Err(DecodeError::Cancelled) if is_late => {
                    // What words are aligned with is heard anew: the engine may still be leaving this search.
                    self.heard = None;
                    is_cut = true;
                    break;
                }
                candidates => candidates?,
            };

            let longest = candidates.iter().map(|candidate| candidate.tokens.len()).max().unwrap_or(0);

            budget.get_or_insert_with(|| {
                // Of a whole window; less audio has less text.
                let tokens =
                    options.fallback_tokens.map(|tokens| tokens.saturating_mul(most).div_ceil((context / 2).max(1)));
                FallbackBudget::new(tokens, options.fallback_seconds)
            });

            if attempt > 0
                && let Some(budget) = &mut budget
            {
                budget.spend(rows, longest);
            }

            let decoded = Decoded::best(candidates, options.length_penalty, special, tokenizer);

            // Cut in the middle of its text, and not where the reference would cut it.
            if most_sampled < most && decoded.tokens.len() >= most_sampled {
                is_cut = true;
                break;
            }

            let decoded = Decoded { no_speech_prob, temperature, ..decoded };
            let is_enough = !needs_fallback(&decoded, options);
            attempts.push(decoded);
            if is_enough {
                break;
            }
        }

        let tried = attempts.len();
        let chosen =
            if is_cut { fallback::best_of(attempts, options.compression_ratio_threshold) } else { attempts.pop() };

        if let Some(chosen) = chosen.as_ref().filter(|_| is_cut) {
            tracing::info!(
                window_seconds = seconds(seek),
                tried,
                of = options.temperatures.len(),
                temperature = chosen.temperature,
                "a window was hard: its fallback to higher temperatures was cut short, and the best attempt is taken"
            );
        }

        chosen.ok_or_else(|| TranscribeError::InvalidOption { option: "temperatures", problem: "is empty".into() })
    }

    /// Whether the model may have written a text for a window without speech.
    fn doubt(&self, decoded: &Decoded) -> Doubt {
        let options = self.options;
        let Some(threshold) = options.no_speech_threshold.map(f64::from) else { return Doubt::None };
        let confident = options.logprob_threshold.is_some_and(|least| decoded.avg_logprob > f64::from(least));
        let speechless = decoded.no_speech_prob > threshold;

        // No temperature gave a text that is likely and does not repeat itself.
        let unsure = options.temperatures.len() > 1 && needs_fallback(decoded, options);

        if speechless && !confident || unsure && decoded.no_speech_prob > threshold / 2.0 {
            Doubt::Silence
        } else if speechless || unsure {
            Doubt::Perhaps
        } else {
            Doubt::None
        }
    }

    /// Asks the model for voice activity, where there is one.
    fn has_speech(&mut self, mut samples: Vec<f32>, sink: &mut dyn Sink) -> Result<bool, TranscribeError> {
        // With it, only speech is heard in the first place.
        let Some(path) = self.engine.vad_model().filter(|_| self.options.vad.is_none()) else { return Ok(true) };
        let model = match &mut self.speech_model {
            Some(model) => model,
            none => none.insert(SpeechModel::open(path)?),
        };
        Ok(!vad::chunks(&mut samples, model, &VadOptions::default(), &mut || sink.keep_going())?.is_empty())
    }

    fn language_token(&self) -> Option<u32> {
        self.language.as_ref().map(|(_, token)| *token)
    }

    /// Sends the segments of a window; gives the frame where the next one begins.
    fn write(&mut self, decoded: &Decoded, seek: u64, size: u64, sink: &mut dyn Sink) -> Result<u64, TranscribeError> {
        let begin = self.engine.special().timestamp_begin;
        let (pieces, advance) = split(&decoded.tokens, begin);
        let segments = pieces.iter().map(|piece| self.segment(piece, decoded, seek, size));
        let mut segments = segments.collect::<Result<Vec<_>, _>>()?;
        let mut next = match advance {
            Advance::To(timestamp) => seek + u64::from(timestamp) * MEL_FRAMES_PER_TIMESTAMP,
            Advance::WholeWindow => seek + size,
        };

        if self.options.word_timestamps {
            self.add_words(&mut segments, seek, size)?;
            let finished = is_finished(&decoded.tokens, begin);
            let verdict = self.judge(&segments, seek, size, finished, next);
            next = verdict.next;
            let Some(keep) = verdict.keep else { return Ok(next) };
            segments.truncate(keep);
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

        if !self.options.condition_on_previous_text || decoded.temperature > CALM {
            self.history.prompt_from = self.history.tokens.len();
        }

        Ok(next)
    }

    /// Finds when each word of a window is spoken. The text is heard once more, without what came before it.
    fn add_words(&mut self, segments: &mut [Segment], seek: u64, size: u64) -> Result<(), TranscribeError> {
        let (engine, options) = (self.engine, self.options);
        let special = engine.special();
        let context = engine.config().max_target_positions;
        let prompt = Prompt::new(special, context, &[], self.language_token(), options.task, true);
        let text = segments.iter().flat_map(|segment| &segment.tokens).copied().filter(|token| *token < special.eot);
        let text: Vec<u32> = text.collect();
        let timings = if text.is_empty() {
            Vec::new()
        } else {
            let row = [prompt.tokens(), &text, &[special.eot]].concat();
            let alignment = engine.align(self.listen(seek, size as usize)?, row)?;
            let aligned = Aligned {
                attention: &alignment.attention,
                logprobs: &alignment.logprobs,
                frames: (size / MEL_FRAMES_PER_TIMESTAMP) as usize,
                prompt: prompt.tokens().len(),
            };

            let language = self.language.as_ref().map(|(code, _)| code.as_str());
            timing::align(&aligned, engine.tokenizer()?, &text, special.eot, language)
        };

        let marks = [&options.prepend_punctuations, &options.append_punctuations].map(String::as_str);

        timing::add_words(segments, timings, special.eot, marks, seconds(seek), self.history.last_speech);

        Ok(())
    }

    /// What words say of where the window ends, and of what is to be believed.
    fn judge(&self, segments: &[Segment], seek: u64, size: u64, finished: bool, next: u64) -> Verdict {
        let heard = timing::Heard {
            seek,
            size,
            content_frames: self.content_frames,
            finished,
            next,
            last_speech: self.history.last_speech,
            threshold: self.options.hallucination_silence_threshold.map(f64::from),
        };

        timing::judge(segments, &heard)
    }

    fn segment(&self, piece: &Piece, decoded: &Decoded, seek: u64, size: u64) -> Result<Segment, TranscribeError> {
        let offset = seconds(seek);
        let start_seconds = offset + f64::from(piece.start) * SECONDS_PER_TIMESTAMP;
        let lasts = piece.end.map_or(seconds(size), |end| f64::from(end) * SECONDS_PER_TIMESTAMP);
        let end_seconds = offset + lasts;
        let eot = self.engine.special().eot;
        let text = self.engine.tokenizer()?.text(piece.tokens.iter().copied().filter(|token| *token < eot));
        let tokens = piece.tokens.to_vec();
        let token_logprobs = decoded.token_logprobs[piece.from..][..tokens.len()].to_vec();

        Ok(Segment {
            // Given when it is sent.
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

fn above(value: f64, threshold: Option<f32>) -> bool {
    threshold.is_some_and(|threshold| value > f64::from(threshold))
}

fn below(value: f64, threshold: Option<f32>) -> bool {
    threshold.is_some_and(|threshold| value < f64::from(threshold))
}

/// Whether an attempt repeats itself or is unlikely; silence is left as it is.
fn needs_fallback(decoded: &Decoded, options: &TranscribeOptions) -> bool {
    let unlikely = below(decoded.avg_logprob, options.logprob_threshold);
    let silent = above(decoded.no_speech_prob, options.no_speech_threshold) && unlikely;
    let repetitive = above(decoded.compression_ratio, options.compression_ratio_threshold);
    (repetitive || unlikely) && !silent
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(compression_ratio: f64, avg_logprob: f64, no_speech_prob: f64) -> Decoded {
        Decoded {
            tokens: vec![],
            token_logprobs: vec![],
            text: String::new(),
            avg_logprob,
            no_speech_prob,
            temperature: 0.0,
            compression_ratio,
        }
    }

    #[test]
    fn falls_back_as_the_reference_does() {
        let options = TranscribeOptions::default();

        assert!(!needs_fallback(&decoded(2.0, -0.5, 0.9), &options));
        assert!(needs_fallback(&decoded(2.5, -0.5, 0.9), &options));
        assert!(needs_fallback(&decoded(2.0, -1.5, 0.1), &options));
        assert!(!needs_fallback(&decoded(2.5, -1.5, 0.9), &options), "silence");

        let none = TranscribeOptions { logprob_threshold: None, ..options.clone() };

        assert!(needs_fallback(&decoded(2.5, -1.5, 0.9), &none), "silence is told by both");

        let none = TranscribeOptions { no_speech_threshold: None, ..options.clone() };

        assert!(needs_fallback(&decoded(2.0, -1.5, 0.9), &none));

        let none = TranscribeOptions { compression_ratio_threshold: None, ..options };

        assert!(!needs_fallback(&decoded(9.0, -0.5, 0.0), &none));
    }
}
