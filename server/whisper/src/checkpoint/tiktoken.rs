//! Makes a tokenizer from ranked tokens, which is how OpenAI and whisper.cpp publish vocabularies: token bytes in the order
//! of their ids, without the list of merges that Hugging Face's tokenizers need.

use std::collections::HashMap;
use std::io::Read;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD_NO_PAD as BASE64;
use flate2::read::GzDecoder;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer};

use super::malformed::InvalidVocabulary;
use crate::language::LANGUAGES;
use crate::tokenizer::byte_characters;

const MULTILINGUAL: &[u8] = include_bytes!("../../assets/multilingual.tiktoken.gz");
const ENGLISH: &[u8] = include_bytes!("../../assets/gpt2.tiktoken.gz");

/// Timestamps from `<|0.00|>` to `<|30.00|>`.
const TIMESTAMPS: u32 = 1501;
/// Far above the longest token of Whisper's vocabularies (128 bytes): the time to find a token's merge grows with its square.
const TOKEN_BYTES_MAX: usize = 1024;

/// The published vocabularies of Whisper, distinguished by the size of the embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct VocabularyFamily {
    multilingual: bool,
    languages: usize,
}

impl VocabularyFamily {
    /// The family whose embedding has `vocab_size` rows.
    pub fn of(vocab_size: usize) -> Option<Self> {
        let (multilingual, languages) = match vocab_size {
            51_864 => (false, 99),
            51_865 => (true, 99),
            51_866 => (true, 100),
            _ => return None,
        };
        Some(Self { multilingual, languages })
    }

    /// Number of tokens that are text.
    pub const fn text_tokens(self) -> usize {
        if self.multilingual { 50_257 } else { 50_256 }
    }

    /// The tokens of the published vocabulary, in the order of their ids.
    pub fn published_tokens(self) -> Result<Vec<Vec<u8>>, InvalidVocabulary> {
        let packed = if self.multilingual { MULTILINGUAL } else { ENGLISH };
        let mut text = String::new();
        GzDecoder::new(packed).read_to_string(&mut text).map_err(InvalidVocabulary::Published)?;

        text.lines()
            .map(|line| {
                // The last token of the multilingual vocabulary is empty, and is written as padding alone.
                let token = line.split_ascii_whitespace().next().unwrap_or_default().trim_end_matches('=');
                BASE64
                    .decode(token)
                    .map_err(|source| InvalidVocabulary::PublishedToken { token: token.to_owned(), source })
            })
            .collect()
    }

    /// The tokenizer with `tokens`, in the order of their ids, followed by Whisper's control tokens.
    pub fn tokenizer(self, tokens: &[Vec<u8>]) -> Result<Tokenizer, InvalidVocabulary> {
        let bpe = byte_pair_encoding(tokens)?;
        let mut tokenizer = Tokenizer::new(bpe);
        let bytes = ByteLevel::new(false, true, true);

        tokenizer.with_pre_tokenizer(Some(bytes)).with_decoder(Some(bytes));

        let control = self.control_tokens().into_iter().map(|token| AddedToken::from(token, true).normalized(false));
        tokenizer.add_tokens(control.collect::<Vec<_>>()).map_err(InvalidVocabulary::Library)?;
        let times = (0..TIMESTAMPS).map(|n| format!("<|{}.{:02}|>", n / 50, n % 50 * 2));
        let times = times.map(|token| AddedToken::from(token, false).normalized(false));
        tokenizer.add_tokens(times.collect::<Vec<_>>()).map_err(InvalidVocabulary::Library)?;

        Ok(tokenizer)
    }

    /// The control tokens in the order of their ids (`get_encoding` in `whisper/tokenizer.py` of openai/whisper).
    fn control_tokens(self) -> Vec<String> {
        let mut names = vec!["endoftext".to_owned(), "startoftranscript".to_owned()];
        names.extend(LANGUAGES.iter().take(self.languages).map(|(code, _)| (*code).to_owned()));
        let rest = ["translate", "transcribe", "startoflm", "startofprev", "nospeech", "notimestamps"];
        names.extend(rest.map(str::to_owned));
        names.into_iter().map(|name| format!("<|{name}|>")).collect()
    }
}

/// A byte-pair encoding whose merges follow from the ranks: a token is the merge of the two parts that remain if its bytes
/// are merged as far as the tokens of lower rank allow.
fn byte_pair_encoding(tokens: &[Vec<u8>]) -> Result<BPE, InvalidVocabulary> {
    let mut ranks = HashMap::with_capacity(tokens.len());
    for (token, rank) in tokens.iter().zip(0_u32..) {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(InvalidVocabulary::TokenTooLong { token: rank, bytes: token.len(), max: TOKEN_BYTES_MAX });
        }
        if let Some(other) = ranks.insert(token.as_slice(), rank) {
            return Err(InvalidVocabulary::RepeatedToken { first: other, second: rank });
        }
    }

    let names = byte_characters();
    let name = |bytes: &[u8]| bytes.iter().filter_map(|byte| names.get(usize::from(*byte))).collect::<String>();
    let mut merges = Vec::with_capacity(tokens.len());

    for (token, rank) in tokens.iter().zip(0_u32..) {
        if token.len() < 2 {
            continue;
        }
        let (left, right) = split(token, rank, &ranks).ok_or(InvalidVocabulary::NotAMerge(rank))?;
        merges.push((name(left), name(right)));
    }

    let vocab: Vocab = tokens.iter().zip(0_u32..).map(|(token, id)| (name(token), id)).collect();

    BPE::builder().vocab_and_merges(vocab, merges).build().map_err(InvalidVocabulary::Library)
}

/// The two parts of `token` whose merge has the rank `rank`.
fn split<'t>(token: &'t [u8], rank: u32, ranks: &HashMap<&[u8], u32>) -> Option<(&'t [u8], &'t [u8])> {
    // The end of each part, in order.
    let mut ends: Vec<usize> = (1..=token.len()).collect();
    while ends.len() > 2 {
        let starts = std::iter::once(0).chain(ends.iter().copied());
        let pairs = starts.zip(ends.iter().skip(1)).enumerate();
        let ranked = pairs.filter_map(|(at, (start, end))| {
            let rank_of_pair = *ranks.get(token.get(start..*end)?)?;
            (rank_of_pair < rank).then_some((rank_of_pair, at))
        });
        let (_, at) = ranked.min()?;
        ends.remove(at);
    }

    token.split_at_checked(*ends.first()?)
}
