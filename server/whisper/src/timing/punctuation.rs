//! Merging punctuation into the word before or after it.

use super::words::WordTiming;
use crate::tokenizer::strip;

/// Marks that belong to the word after them.
pub const PREPEND_PUNCTUATIONS: &str = "\"'“¿([{-";
/// Marks that belong to the word before them.
pub const APPEND_PUNCTUATIONS: &str = "\"'.。,，!！?？:：”)]}、";

/// Moves the text of punctuation to the neighbouring word. Merged entries stay in the list without text and tokens.
pub fn merge(words: &mut [WordTiming], prepended: &str, appended: &str) {
    let mut following = words.len().saturating_sub(1);

    for previous in (0..following).rev() {
        let word = &words[previous].text;
        if word.starts_with(' ') && prepended.contains(strip(word)) {
            join(words, previous, following, Joins::Behind);
        } else {
            following = previous;
        }
    }

    let mut previous = 0;

    for following in 1..words.len() {
        if !words[previous].text.ends_with(' ') && appended.contains(&words[following].text) {
            join(words, previous, following, Joins::Before);
        } else {
            previous = following;
        }
    }
}

enum Joins {
    Before,
    Behind,
}

fn join(words: &mut [WordTiming], before: usize, behind: usize, joins: Joins) {
    let (kept, emptied) = match joins {
        Joins::Before => (before, behind),
        Joins::Behind => (behind, before),
    };
    words[kept].text = format!("{}{}", words[before].text, words[behind].text);
    words[kept].tokens += words[emptied].tokens;
    words[emptied].text.clear();
    words[emptied].tokens = 0;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(texts: &[&str]) -> Vec<(String, usize)> {
        let mut words: Vec<WordTiming> = texts
            .iter()
            .map(|text| WordTiming { text: (*text).to_owned(), tokens: 1, ..WordTiming::default() })
            .collect();
        merge(&mut words, PREPEND_PUNCTUATIONS, APPEND_PUNCTUATIONS);
        words.into_iter().map(|word| (word.text, word.tokens)).collect()
    }

    fn texts(words: &[(String, usize)]) -> Vec<&str> {
        words.iter().map(|(text, _)| text.as_str()).collect()
    }

    #[test]
    fn marks_go_to_their_words() {
        let words = merged(&[" ¿", "Qué", " hora", "?", "\""]);
        assert_eq!(texts(&words), ["", " ¿Qué", " hora?\"", "", ""]);
        assert_eq!(words.iter().map(|(_, tokens)| *tokens).collect::<Vec<_>>(), [0, 2, 3, 0, 0]);
    }

    #[test]
    fn several_marks_before_a_word_all_join_it() {
        assert_eq!(texts(&merged(&[" (", " \"", "a"])), ["", "", " ( \"a"]);
    }

    #[test]
    fn an_apostrophe_without_a_blank_is_appended() {
        assert_eq!(texts(&merged(&[" l", "'", "a"])), [" l'", "", "a"]);
    }

    #[test]
    fn short_lists_stay() {
        assert!(merged(&[]).is_empty());
        assert_eq!(texts(&merged(&[" a"])), [" a"]);
    }
}
