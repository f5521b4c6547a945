//! Text to tokens and back, from the `tokenizer.json` of the checkpoint.
//!
//! Decoding is a table look-up and is needed by every request; encoding needs the merges, which take ten times longer to
//! read, and is needed only by requests with a prompt. So the merges are read for the first prompt.

use std::{
    borrow::Cow,
    collections::HashMap,
    io,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use serde::Deserialize;
use tokenizers::{Model, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

use crate::small_file;

/// Why a tokenizer cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    #[error("{}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{}: not a tokenizer in the format of Hugging Face: {source}", path.display())]
    Parse { path: PathBuf, source: serde_json::Error },
    #[error("{}: token {token:?} has id {id}, but the vocabulary of the model has {vocab_size} tokens (`vocab_size`)", path.display())]
    Id { path: PathBuf, token: String, id: u32, vocab_size: usize },
    #[error("{}: {cause}", path.display())]
    Merges { path: PathBuf, cause: String },
    #[error("text could not be cut into tokens: {0}")]
    Encode(String),
}

pub struct Tokenizer {
    path: PathBuf,
    /// The bytes of all tokens; token `i` is `bytes[offsets[i]..offsets[i + 1]]`.
    bytes: Vec<u8>,
    offsets: Vec<u32>,
    encoder: OnceLock<tokenizers::Tokenizer>,
}

#[derive(Deserialize)]
struct TokenizerFile<'a> {
    #[serde(borrow)]
    added_tokens: Vec<AddedToken<'a>>,
    #[serde(borrow)]
    model: VocabularyModel<'a>,
}

#[derive(Deserialize)]
struct AddedToken<'a> {
    id: u32,
    #[serde(borrow)]
    content: Cow<'a, str>,
}

#[derive(Deserialize)]
struct VocabularyModel<'a> {
    #[serde(borrow)]
    vocab: HashMap<Cow<'a, str>, u32>,
}

impl<'a> TokenizerFile<'a> {
    fn parse(path: &Path, json: &'a [u8], vocab_size: usize) -> Result<Self, TokenizerError> {
        let file: Self =
            serde_json::from_slice(json).map_err(|source| TokenizerError::Parse { path: path.into(), source })?;
        match file.last() {
            Some((token, id)) if id as usize >= vocab_size => {
                Err(TokenizerError::Id { path: path.into(), token: shortened(token), id, vocab_size })
            }
            _ => Ok(file),
        }
    }

    /// The token with the highest id.
    fn last(&self) -> Option<(&str, u32)> {
        let vocabulary = self.model.vocab.iter().map(|(content, id)| (&**content, *id));
        let added = self.added_tokens.iter().map(|added| (&*added.content, added.id));
        vocabulary.chain(added).max_by_key(|(_, id)| *id)
    }
}

/// The beginning of a token for a message: the file may be hostile.
fn shortened(token: &str) -> String {
    const LONGEST_CHARS: usize = 40;

    token.chars().take(LONGEST_CHARS).collect()
}

/// Checks that `json`, the content of the file at `path`, is a tokenizer without tokens beyond the model's vocabulary.
pub(crate) fn check(path: &Path, json: &[u8], vocab_size: usize) -> Result<(), TokenizerError> {
    TokenizerFile::parse(path, json, vocab_size).map(drop)
}

impl Tokenizer {
    /// `vocab_size`: tokens of the model; the file must not have others.
    pub fn open(path: &Path, vocab_size: usize) -> Result<Self, TokenizerError> {
        let unreadable = |source| TokenizerError::Read { path: path.into(), source };
        let json = small_file::read(path).map_err(unreadable)?;
        let file = TokenizerFile::parse(path, &json, vocab_size)?;
        let size = file.last().map_or(0, |(_, id)| id as usize + 1);
        let mut contents: Vec<&str> = vec![""; size];

        for (content, id) in &file.model.vocab {
            contents[*id as usize] = content;
        }

        for added in &file.added_tokens {
            contents[added.id as usize] = &added.content;
        }

        let table = byte_of_char();
        let mut bytes = Vec::with_capacity(json.len() / 8);
        let mut offsets = Vec::with_capacity(size + 1);
        offsets.push(0);

        for content in contents {
            for letter in content.chars() {
                match table.get(letter as usize).copied().flatten() {
                    Some(byte) => bytes.push(byte),
                    None => bytes.extend_from_slice(letter.encode_utf8(&mut [0; 4]).as_bytes()),
                }
            }

            offsets.push(bytes.len() as u32);
        }

        Ok(Self { path: path.into(), bytes, offsets, encoder: OnceLock::new() })
    }

    /// Number of tokens.
    pub fn size(&self) -> usize {
        self.offsets.len() - 1
    }

    /// The bytes of one token; empty for a token that does not exist.
    pub fn bytes(&self, token: u32) -> &[u8] {
        let token = token as usize;
        match (self.offsets.get(token), self.offsets.get(token + 1)) {
            (Some(start), Some(end)) => &self.bytes[*start as usize..*end as usize],
            _ => &[],
        }
    }

    /// The text of `tokens`; bytes that are not UTF-8 become U+FFFD, like in Python.
    pub fn decode(&self, tokens: impl IntoIterator<Item = u32>) -> String {
        let mut text = Vec::new();
        for token in tokens {
            text.extend_from_slice(self.bytes(token));
        }
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Like [`Self::decode`], without incomplete characters: a token may be a part of one, and a text may end there.
    pub fn text(&self, tokens: impl IntoIterator<Item = u32>) -> String {
        whole_characters(&self.decode(tokens))
    }

    /// The tokens of `text`. Special tokens in it are treated as text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let encoder = self.encoder()?;
        let refused = |error: tokenizers::Error| TokenizerError::Encode(error.to_string());
        let mut pieces = PreTokenizedString::from(text);

        if let Some(splitter) = encoder.get_pre_tokenizer() {
            splitter.pre_tokenize(&mut pieces).map_err(refused)?;
        }

        pieces
            .get_splits(OffsetReferential::Original, OffsetType::None)
            .into_iter()
            .map(|(piece, ..)| encoder.get_model().tokenize(piece).map_err(refused))
            .try_fold(Vec::new(), |mut all, tokens| {
                all.extend(tokens?.into_iter().map(|token| token.id));
                Ok(all)
            })
    }

    fn encoder(&self) -> Result<&tokenizers::Tokenizer, TokenizerError> {
        if let Some(encoder) = self.encoder.get() {
            return Ok(encoder);
        }
        let loaded = tokenizers::Tokenizer::from_file(&self.path)
            .map_err(|error| TokenizerError::Merges { path: self.path.clone(), cause: error.to_string() })?;
        Ok(self.encoder.get_or_init(|| loaded))
    }
}

/// The byte that each character of a byte-level vocabulary represents: GPT-2's table, inverted.
fn byte_of_char() -> Vec<Option<u8>> {
    let mut table = vec![None; 512];
    let mut next = 256;
    for byte in 0..=255_u8 {
        if matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF) {
            table[usize::from(byte)] = Some(byte);
        } else {
            table[next] = Some(byte);
            next += 1;
        }
    }

    table
}

/// `text` without replacement characters.
pub fn whole_characters(text: &str) -> String {
    text.replace(char::REPLACEMENT_CHARACTER, "")
}

/// Python's `str.strip()`.
pub fn strip(text: &str) -> &str {
    text.trim_matches(|letter: char| letter.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&letter))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundled() -> Tokenizer {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/model/whisper-hush-tiny/tokenizer.json");
        Tokenizer::open(Path::new(path), 51_865).unwrap()
    }

    #[test]
    fn text_goes_to_tokens_and_back() {
        let tokenizer = bundled();

        assert_eq!(tokenizer.size(), 51_865);
        assert_eq!(tokenizer.encode(" ").unwrap(), [220]);
        assert_eq!(tokenizer.encode(" The server is open.").unwrap(), [440, 7154, 307, 1269, 13]);

        for text in ["", " hello", "Größe  ä\tö", "今天是星期二。", "naïve café 🎉", "it's 3.14 o'clock\n\n", "\u{0}a"]
        {
            let tokens = tokenizer.encode(text).unwrap();
            assert_eq!(tokenizer.decode(tokens), text);
        }
    }

    #[test]
    fn special_tokens_in_text_are_text() {
        let tokenizer = bundled();
        for text in ["<|endoftext|>", "a<|0.02|>b", "<|de|>"] {
            let tokens = tokenizer.encode(text).unwrap();
            assert!(tokens.iter().all(|token| *token < 50_257), "{tokens:?}");
            assert_eq!(tokenizer.decode(tokens), text);
        }
        assert_eq!(tokenizer.decode([50_259]), "<|en|>");
    }

    #[test]
    fn half_a_character_becomes_a_replacement_character() {
        let tokenizer = bundled();
        let party = tokenizer.encode("🎉").unwrap();
        assert!(party.len() > 1);
        assert_eq!(tokenizer.decode(party[..1].iter().copied()), "\u{fffd}");
        assert_eq!(tokenizer.text([440, party[0], 440]), tokenizer.text([440, 440]));
        assert_eq!(tokenizer.decode([u32::MAX, 60_000]), "");
    }

    #[test]
    fn strips_as_python_does() {
        assert_eq!(strip("\u{1c} \u{a0}a b\u{3000}\n"), "a b");
        assert_eq!(strip("\u{200b}"), "\u{200b}");
    }

    #[test]
    fn ids_beyond_the_vocabulary_are_refused() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/model/whisper-hush-tiny/tokenizer.json");
        let error = Tokenizer::open(Path::new(path), 51_864).err().unwrap().to_string();

        assert!(error.contains("\"<|30.00|>\" has id 51864") && error.contains("`vocab_size`"), "{error}");

        // The table is not allocated for four billion tokens.
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        let json = r#"{"added_tokens":[{"id":4294967295,"content":"x"}],"model":{"vocab":{"a":0}}}"#;

        std::fs::write(&path, json).unwrap();

        assert!(matches!(Tokenizer::open(&path, 51_865), Err(TokenizerError::Id { id: u32::MAX, .. })));

        rustix::fs::mknodat(rustix::fs::CWD, folder.path().join("pipe"), rustix::fs::FileType::Fifo, 0o600.into(), 0)
            .unwrap();

        for endless in [folder.path().join("pipe"), "/dev/zero".into()] {
            assert!(matches!(Tokenizer::open(&endless, 51_865), Err(TokenizerError::Read { .. })));
        }
    }

    #[test]
    fn errors_name_the_file() {
        let missing = Tokenizer::open(Path::new("/nowhere/tokenizer.json"), 1).err().unwrap();
        assert!(missing.to_string().contains("/nowhere/tokenizer.json"), "{missing}");
    }
}
