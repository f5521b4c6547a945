//! Lays out subtitles word by word, as `SubtitlesWriter` of openai/whisper does (`whisper/utils.py`), segment by segment.

use hush_whisper::{Segment, Word};

use super::{strip, timestamp::milliseconds};

/// A pause of this many seconds ends a subtitle although it has room.
const LONG_PAUSE_SECONDS: f64 = 3.0;
/// The reference's value for no limit.
const NO_LIMIT: usize = 1000;

/// How words become subtitles; the reference has options of the same names. With both a width and a count of lines, words flow
/// over the ends of segments; otherwise each segment begins a new subtitle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SubtitleLayout {
    /// Underlines each word while it is spoken.
    pub highlight_words: bool,
    /// The most characters in a line.
    pub max_line_width: Option<usize>,
    /// The most lines in a subtitle; only with `max_line_width`.
    pub max_line_count: Option<usize>,
    /// The most words in a subtitle; not with both limits above.
    pub max_words_per_line: Option<usize>,
}

impl SubtitleLayout {
    /// The layout that whisper-asr-webservice passes to the writers of openai/whisper.
    pub const PEER: Self =
        Self { highlight_words: false, max_line_width: Some(1000), max_line_count: Some(10), max_words_per_line: None };

    fn flows(&self) -> bool {
        self.max_line_count.is_some() && self.max_line_width.is_some()
    }
}

/// One subtitle, with times in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cue {
    pub start: u64,
    pub end: u64,
    pub text: String,
}

/// Makes cues of segments. Buffers one subtitle.
#[derive(Debug)]
pub struct CueComposer {
    layout: SubtitleLayout,
    /// The words of the current subtitle, with white space and line breaks.
    words: Vec<Word>,
    line_length: usize,
    line_count: usize,
    /// Start of the last word in seconds.
    last_start: Option<f64>,
}

impl CueComposer {
    pub fn new(layout: SubtitleLayout) -> Self {
        Self { layout, words: Vec::new(), line_length: 0, line_count: 1, last_start: None }
    }

    /// Adds a segment and returns the cues that it completes.
    pub fn segment(&mut self, segment: &Segment) -> Vec<Cue> {
        let width = self.layout.max_line_width.unwrap_or(NO_LIMIT);
        let flows = self.layout.flows();
        let group = self.layout.max_words_per_line.unwrap_or(NO_LIMIT).max(1);
        let mut cues = Vec::new();

        for (index, word) in segment.words.iter().enumerate() {
            let length = word.text.chars().count();
            let last_start = *self.last_start.get_or_insert(word.start_seconds);
            let is_after_pause = flows && word.start_seconds - last_start > LONG_PAUSE_SECONDS;
            let has_room = self.line_length + length <= width;
            let starts_new_cue = !flows && index % group == 0 && !self.words.is_empty();
            let mut word = word.clone();

            if self.line_length > 0 && has_room && !is_after_pause && !starts_new_cue {
                self.line_length += length;
            } else {
                word.text = strip(&word.text).to_owned();
                let is_full = self.layout.max_line_count.is_some_and(|most| is_after_pause || self.line_count >= most);
                if !self.words.is_empty() && is_full || starts_new_cue {
                    self.complete_cue(&mut cues);
                } else if self.line_length > 0 {
                    self.line_count += 1;
                    word.text.insert(0, '\n');
                }
                self.line_length = strip(&word.text).chars().count();
            }

            self.last_start = Some(word.start_seconds);
            self.words.push(word);
        }
        cues
    }

    /// Returns the cues of the last subtitle.
    pub fn finish(mut self) -> Vec<Cue> {
        let mut cues = Vec::new();
        self.complete_cue(&mut cues);
        cues
    }

    fn complete_cue(&mut self, cues: &mut Vec<Cue>) {
        let words = std::mem::take(&mut self.words);
        self.line_count = 1;
        let (Some(first), Some(final_word)) = (words.first(), words.last()) else { return };

        let text = |marked: Option<usize>| -> String {
            let parts = words.iter().enumerate().map(|(index, word)| match marked == Some(index) {
                true => underlined(&word.text),
                false => word.text.clone(),
            });
            // Players would read an arrow in a subtitle as times.
            parts.collect::<String>().replace("-->", "->")
        };

        let start = milliseconds(first.start_seconds);
        if !self.layout.highlight_words {
            cues.push(Cue { start, end: milliseconds(final_word.end_seconds), text: text(None) });
            return;
        }
        let mut last_end = start;
        for (index, word) in words.iter().enumerate() {
            let (start, end) = (milliseconds(word.start_seconds), milliseconds(word.end_seconds));
            if last_end != start {
                cues.push(Cue { start: last_end, end: start, text: text(None) });
            }
            cues.push(Cue { start, end, text: text(Some(index)) });
            last_end = end;
        }
    }
}

/// Underlines a word without the white space before it.
fn underlined(word: &str) -> String {
    let bare = word.trim_start_matches(|c: char| c.is_whitespace() || ('\x1c'..='\x1f').contains(&c));
    let blanks = &word[..word.len() - bare.len()];

    match bare.strip_suffix('\n').unwrap_or(bare) {
        // The reference's pattern does not match across a line break.
        lines if lines.contains('\n') => word.to_owned(),
        line => format!("{blanks}<u>{line}</u>{}", &bare[line.len()..]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blanks_are_not_underlined() {
        // Expected values: python3 -c 'import re; print(re.sub(r"^(\s*)(.*)$", r"\1<u>\2</u>", ...))'
        let cases = [(" word", " <u>word</u>"), ("\nword", "\n<u>word</u>"), ("", "<u></u>"), (" ", " <u></u>")];
        for (word, expected) in
            cases.into_iter().chain([("a\n", "<u>a</u>\n"), ("a\nb", "a\nb"), ("a b", "<u>a b</u>")])
        {
            assert_eq!(underlined(word), expected);
        }
    }

    #[test]
    fn a_segment_without_words_has_no_subtitle() {
        let mut composer = CueComposer::new(SubtitleLayout::PEER);
        assert!(composer.segment(&Segment::default()).is_empty());
        assert!(composer.finish().is_empty());
    }
}
