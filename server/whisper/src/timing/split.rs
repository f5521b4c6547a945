//! Splitting tokens into words, like the reference's tokenizer.

use crate::tokenizer::{Tokenizer, strip};

/// Python's `string.punctuation`.
const PUNCTUATION: &str = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~";
/// Languages that are written without spaces.
const WITHOUT_SPACES: [&str; 6] = ["zh", "ja", "th", "lo", "my", "yue"];
const REPLACEMENT: char = '\u{fffd}';

/// Text and number of tokens of each word of `tokens`; every token below `eot` is text. `language` is a Whisper code,
/// `None` for a model that knows only English.
pub fn split(tokenizer: &Tokenizer, tokens: &[u32], eot: u32, language: Option<&str>) -> Vec<(String, usize)> {
    let units = units(tokenizer, tokens);
    if language.is_some_and(|language| WITHOUT_SPACES.contains(&language)) {
        return units;
    }

    let mut words: Vec<(String, usize)> = Vec::new();
    let mut at = 0;

    for (unit, length) in units {
        let special = tokens[at] >= eot;
        at += length;

        match words.last_mut() {
            // Like in Python, an empty string is contained in every string, also in the list of marks.
            Some((word, tokens)) if !(special || unit.starts_with(' ') || PUNCTUATION.contains(strip(&unit))) => {
                word.push_str(&unit);
                *tokens += length;
            }
            _ => words.push((unit, length)),
        }
    }

    words
}

/// The shortest runs of tokens that form whole characters. Tokens whose bytes never form a character stay together up to
/// the position where the whole text has a replacement character too.
fn units(tokenizer: &Tokenizer, tokens: &[u32]) -> Vec<(String, usize)> {
    let whole: Vec<char> = tokenizer.decode(tokens.iter().copied()).chars().collect();
    let mut units = Vec::new();
    let (mut from, mut offset) = (0, 0);

    for to in 1..=tokens.len() {
        let unit = tokenizer.decode(tokens[from..to].iter().copied());
        let incomplete = unit.chars().position(|letter| letter == REPLACEMENT);
        if incomplete.is_none_or(|index| whole.get(offset + index) == Some(&REPLACEMENT)) {
            offset += unit.chars().count();
            units.push((unit, to - from));
            from = to;
        }
    }

    units
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const EOT: u32 = 50_257;

    fn bundled() -> Tokenizer {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/model/whisper-hush-tiny/tokenizer.json");
        Tokenizer::open(Path::new(path), 51_865).unwrap()
    }

    fn words(text: &str, language: &str) -> Vec<String> {
        let tokenizer = bundled();
        let mut tokens = tokenizer.encode(text).unwrap();
        tokens.push(EOT);
        let words = split(&tokenizer, &tokens, EOT, Some(language));
        assert_eq!(words.iter().map(|(_, tokens)| tokens).sum::<usize>(), tokens.len());
        words.into_iter().map(|(word, _)| word).collect()
    }

    #[test]
    fn words_begin_with_a_space() {
        let expected = [" Die", " Größe", ",", " bitte", "!", "<|endoftext|>"];
        assert_eq!(words(" Die Größe, bitte!", "de"), expected);
    }

    #[test]
    fn characters_are_words_where_there_are_no_spaces() {
        assert_eq!(words("今天是", "ja").concat(), "今天是<|endoftext|>");
        assert!(words("今天是", "ja").len() >= 3);
        // The same text in a language with spaces is one word.
        assert_eq!(words("今天是", "de"), ["今天是", "<|endoftext|>"]);
    }

    #[test]
    fn a_character_of_several_tokens_is_not_cut() {
        assert_eq!(words(" a 🎉 b", "en"), [" a", " 🎉", " b", "<|endoftext|>"]);
    }

    #[test]
    fn half_a_character_ends_somewhere() {
        let tokenizer = bundled();
        let party = tokenizer.encode("🎉").unwrap();
        for tokens in [vec![party[0]], vec![party[0], EOT], vec![party[0], party[0], 440, EOT]] {
            let words = split(&tokenizer, &tokens, EOT, Some("en"));
            assert!(words.iter().map(|(_, length)| length).sum::<usize>() <= tokens.len(), "{words:?}");
        }
    }
}
