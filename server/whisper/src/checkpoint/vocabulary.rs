//! The tokenizer of a checkpoint, and the ids of Whisper's control tokens.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::Path;

use serde::{Deserialize, Serialize};
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer};

use super::json::JsonFile;
use super::{CheckpointError, Config, FieldProblem, InvalidVocabulary};
use crate::small_file;

/// Ids of the tokens that control decoding, and of those that are suppressed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpecialTokens {
    /// `<|endoftext|>`
    pub eot: u32,
    /// `<|startoftranscript|>`
    pub sot: u32,
    /// `<|startofprev|>`
    pub sot_prev: u32,
    /// `<|startoflm|>`
    pub sot_lm: u32,
    /// `<|nospeech|>`, in older vocabularies `<|nocaptions|>`
    pub no_speech: u32,
    /// `<|notimestamps|>`
    pub no_timestamps: u32,
    /// `<|0.00|>`; the following ids are 0.02 s apart.
    pub timestamp_begin: u32,
    pub transcribe: u32,
    pub translate: u32,
    /// Whisper language code to id; the reference uses the order of the ids.
    pub languages: BTreeMap<String, u32>,
    /// `false` for the `.en` models: no language and no task in their prompt.
    pub multilingual: bool,
    /// Never sampled.
    pub suppress: Vec<u32>,
    /// Not sampled as the first token.
    pub begin_suppress: Vec<u32>,
    /// Highest timestamp of a first token, counted from `timestamp_begin`.
    pub max_initial_timestamp_index: u32,
}

/// The facts about its tokens that a checkpoint states; the others follow from the tokenizer.
#[derive(Default)]
pub(super) struct DeclaredTokens {
    languages: Option<BTreeMap<String, u32>>,
    multilingual: Option<bool>,
    suppress: Option<Vec<u32>>,
    begin_suppress: Option<Vec<u32>>,
    max_initial_timestamp_index: Option<u32>,
}

impl DeclaredTokens {
    /// From `generation_config.json`, and from `config.json` for fields that it does not state.
    pub fn of_hugging_face(
        config: &Config,
        config_json: &JsonFile,
        generation: Option<&JsonFile>,
    ) -> Result<Self, CheckpointError> {
        let size = config.vocab_size;
        let tokens = |field: &str| match generation.map_or(Ok(None), |g| g.tokens(field, size))? {
            Some(given) => Ok(Some(given)),
            None => config_json.tokens(field, size),
        };

        let languages = generation.map_or(Ok(None), |g| g.token_map("lang_to_id", size))?;

        Ok(Self {
            languages: languages.map(|all| all.into_iter().map(|(name, id)| (bare(&name).to_owned(), id)).collect()),
            multilingual: generation.map_or(Ok(None), |g| g.flag("is_multilingual"))?,
            suppress: tokens("suppress_tokens")?,
            begin_suppress: tokens("begin_suppress_tokens")?,
            max_initial_timestamp_index: generation
                .map_or(Ok(None), |g| g.token("max_initial_timestamp_index", size))?,
        })
    }

    /// From CTranslate2's `config.json`.
    pub fn of_ctranslate2(config: &Config, json: &JsonFile) -> Result<Self, CheckpointError> {
        Ok(Self {
            suppress: json.tokens("suppress_ids", config.vocab_size)?,
            begin_suppress: json.tokens("suppress_ids_begin", config.vocab_size)?,
            ..Self::default()
        })
    }
}

/// The reference's default: 1.0 s.
const MAX_INITIAL_TIMESTAMP_INDEX: u32 = 50;

pub(super) const TOKENIZER: &str = "tokenizer.json";

/// The error of a vocabulary from which no tokenizer can be made.
pub(super) fn unusable(path: &Path) -> impl Fn(InvalidVocabulary) -> CheckpointError + '_ {
    move |source| CheckpointError::Vocabulary { path: path.to_owned(), source: Box::new(source) }
}

/// Reads `tokenizer.json`, or makes it from `vocab.json`, `merges.txt` and `added_tokens.json`. Returns it with its content.
pub(super) fn read_tokenizer(folder: &Path) -> Result<(Tokenizer, Vec<u8>), CheckpointError> {
    let path = folder.join(TOKENIZER);
    if path.exists() {
        let text = small_file::read(&path).map_err(CheckpointError::io(&path))?;
        let tokenizer =
            Tokenizer::from_bytes(&text).map_err(|error| unusable(&path)(InvalidVocabulary::Library(error)))?;
        return Ok((tokenizer, text));
    }

    let (vocab, merges) = (folder.join("vocab.json"), folder.join("merges.txt"));
    if !vocab.exists() || !merges.exists() {
        let hint = "a tokenizer is needed: tokenizer.json, or vocab.json with merges.txt";
        return Err(CheckpointError::MissingFile { path, hint });
    }

    let tokenizer = from_vocab(folder, &vocab, &merges)?;
    let text = tokenizer.to_string(false).map_err(|error| unusable(&vocab)(InvalidVocabulary::Library(error)))?;

    Ok((tokenizer, text.into_bytes()))
}

fn from_vocab(folder: &Path, vocab_path: &Path, merges_path: &Path) -> Result<Tokenizer, CheckpointError> {
    let vocab: Vocab = JsonFile::read(vocab_path)?.all_tokens()?.into_iter().collect();
    let text = fs::read_to_string(merges_path).map_err(CheckpointError::io(merges_path))?;
    let mut merges = Vec::new();

    for (number, line) in text.lines().enumerate() {
        if line.starts_with("#version") || line.is_empty() {
            continue;
        }
        let (a, b) =
            line.split_once(' ').ok_or_else(|| unusable(merges_path)(InvalidVocabulary::MergeLine(number + 1)))?;
        merges.push((a.to_owned(), b.to_owned()));
    }

    let bpe = BPE::builder()
        .vocab_and_merges(vocab, merges)
        .build()
        .map_err(|error| unusable(vocab_path)(InvalidVocabulary::Library(error)))?;
    let mut tokenizer = Tokenizer::new(bpe);
    let bytes = ByteLevel::new(false, true, true);

    tokenizer.with_pre_tokenizer(Some(bytes)).with_decoder(Some(bytes));

    let added_path = folder.join("added_tokens.json");
    if let Some(added) = JsonFile::read_if_exists(&added_path)? {
        let mut added = added.all_tokens()?;
        added.sort_by_key(|(_, id)| *id);

        for (token, id) in added {
            let is_timestamp = token.strip_prefix("<|").is_some_and(|t| t.starts_with(|c: char| c.is_ascii_digit()));
            tokenizer
                .add_tokens([AddedToken::from(token.clone(), !is_timestamp).normalized(false)])
                .map_err(|error| unusable(&added_path)(InvalidVocabulary::Library(error)))?;

            let assigned = tokenizer.token_to_id(&token);
            if assigned != Some(id) {
                return Err(unusable(&added_path)(InvalidVocabulary::AddedTokenId { token, id, assigned }));
            }
        }
    }

    Ok(tokenizer)
}

impl JsonFile {
    fn all_tokens(&self) -> Result<Vec<(String, u32)>, CheckpointError> {
        self.entries()
            .map(|(token, id)| {
                let id = id.as_u64().and_then(|n| u32::try_from(n).ok());
                Ok((token.clone(), id.ok_or_else(|| self.error(token, "must be a token id"))?))
            })
            .collect()
    }
}

impl SpecialTokens {
    /// The ids from the checkpoint's declarations and its tokenizer.
    pub(super) fn read(
        tokenizer: &Tokenizer,
        tokenizer_path: &Path,
        config: &Config,
        declared: DeclaredTokens,
    ) -> Result<Self, CheckpointError> {
        let size = config.vocab_size;
        let error = unusable(tokenizer_path);
        let rejected = |cause| error(InvalidVocabulary::Library(cause));
        let find = |names: &[&'static str]| token_id(tokenizer, size, names).map_err(&error);

        let eot = find(&["<|endoftext|>"])?;
        let sot = find(&["<|startoftranscript|>"])?;
        let sot_prev = find(&["<|startofprev|>"])?;
        let sot_lm = find(&["<|startoflm|>"])?;
        let no_speech = find(&["<|nospeech|>", "<|nocaptions|>"])?;
        let no_timestamps = find(&["<|notimestamps|>"])?;
        let transcribe = find(&["<|transcribe|>"])?;
        let translate = find(&["<|translate|>"])?;

        // Older tokenizers do not name the timestamps, but in every vocabulary they follow this token.
        let timestamp_begin = no_timestamps + 1;
        if timestamp_begin as usize >= size {
            return Err(error(InvalidVocabulary::TimestampsOutOfRange { begin: timestamp_begin, vocab_size: size }));
        }

        // The languages are between <|startoftranscript|> and the tasks.
        let language_ids = sot + 1..translate.min(transcribe);
        let languages = declared.languages.unwrap_or_else(|| languages(tokenizer, language_ids));

        // Like in the reference: the .en vocabulary has one token less.
        let multilingual = declared.multilingual.unwrap_or(size >= 51_865);

        let control = [translate, transcribe, sot_lm, sot_prev, sot, no_speech];
        let suppress = match declared.suppress {
            Some(given) => given,
            None => suppressed(tokenizer, &control).map_err(rejected)?,
        };

        let begin_suppress = match declared.begin_suppress {
            Some(given) => given,
            None => suppressed_at_begin(tokenizer, eot).map_err(rejected)?,
        };

        Ok(Self {
            eot,
            sot,
            sot_prev,
            sot_lm,
            no_speech,
            no_timestamps,
            timestamp_begin,
            transcribe,
            translate,
            languages,
            multilingual,
            suppress: sorted(suppress),
            begin_suppress: sorted(begin_suppress),
            max_initial_timestamp_index: declared.max_initial_timestamp_index.unwrap_or(MAX_INITIAL_TIMESTAMP_INDEX),
        })
    }

    /// Checks that the ids are tokens of a vocabulary of this size.
    pub(crate) fn check(&self, vocab_size: usize) -> Result<(), FieldProblem> {
        let named = [
            ("eot", self.eot),
            ("sot", self.sot),
            ("sot_prev", self.sot_prev),
            ("sot_lm", self.sot_lm),
            ("no_speech", self.no_speech),
            ("no_timestamps", self.no_timestamps),
            ("timestamp_begin", self.timestamp_begin),
            ("transcribe", self.transcribe),
            ("translate", self.translate),
            ("max_initial_timestamp_index", self.max_initial_timestamp_index),
        ];

        let named = named.into_iter().map(|(field, id)| (field.to_owned(), id));
        let languages = self.languages.iter().map(|(language, id)| (format!("languages.{language}"), *id));
        let lists = [("suppress", &self.suppress), ("begin_suppress", &self.begin_suppress)];
        let listed = lists.iter().flat_map(|(field, ids)| ids.iter().map(|id| ((*field).to_owned(), *id)));

        for (field, id) in named.chain(languages).chain(listed) {
            if id as usize >= vocab_size {
                return Err(FieldProblem::new(field, format!("holds {id}, expected a token id below {vocab_size}")));
            }
        }

        if self.timestamp_begin != self.no_timestamps + 1 {
            let (begin, before) = (self.timestamp_begin, self.no_timestamps);
            let problem = format!("is {begin}, expected the id behind `no_timestamps` {before}");
            return Err(FieldProblem::new("timestamp_begin", problem));
        }

        if self.multilingual && self.languages.is_empty() {
            return Err(FieldProblem::new("languages", "is empty, though `multilingual` is true"));
        }

        Ok(())
    }
}

/// The id of the first of `names` that the tokenizer has.
fn token_id(tokenizer: &Tokenizer, vocab_size: usize, names: &[&'static str]) -> Result<u32, InvalidVocabulary> {
    let id = names.iter().find_map(|name| tokenizer.token_to_id(name));
    match id {
        None => Err(InvalidVocabulary::MissingToken(names[0])),
        Some(id) if id as usize >= vocab_size => {
            Err(InvalidVocabulary::TokenOutOfRange { token: names[0], id, vocab_size })
        }
        Some(id) => Ok(id),
    }
}

/// The languages whose tokens have these ids.
fn languages(tokenizer: &Tokenizer, ids: Range<u32>) -> BTreeMap<String, u32> {
    ids.filter_map(|id| Some((bare(&tokenizer.id_to_token(id)?).to_owned(), id))).collect()
}

/// The reference's default for [`SpecialTokens::suppress`].
fn suppressed(tokenizer: &Tokenizer, control: &[u32]) -> tokenizers::Result<Vec<u32>> {
    let mut all = non_speech(tokenizer)?;
    all.extend(control);
    Ok(all)
}

/// The reference's default for [`SpecialTokens::begin_suppress`]: a blank, and the end of the text.
fn suppressed_at_begin(tokenizer: &Tokenizer, eot: u32) -> tokenizers::Result<Vec<u32>> {
    let blank = tokenizer.encode(" ", false)?;
    Ok(blank.get_ids().first().copied().into_iter().chain([eot]).collect())
}

/// The name of a token without `<|` and `|>`.
fn bare(token: &str) -> &str {
    token.strip_prefix("<|").and_then(|t| t.strip_suffix("|>")).unwrap_or(token)
}

fn sorted(mut ids: Vec<u32>) -> Vec<u32> {
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// Tokens without a sound: speaker tags, brackets, notes. The list of the reference (`Tokenizer.non_speech_tokens` in
/// openai/whisper), computed in the same way.
fn non_speech(tokenizer: &Tokenizer) -> tokenizers::Result<Vec<u32>> {
    const SIGNS: &str = "\"#()*+/:;<=>@[\\]^_`{|}~「」『』";
    const GROUPS: &str = "<< >> <<< >>> -- --- -( -[ (' (\" (( )) ((( ))) [[ ]] {{ }} ♪♪ ♪♪♪";

    // Several of these have the same first bytes, and so the same first token.
    const NOTES: &str = "♩♪♫♬♭♮♯";

    let mut ids = Vec::new();

    // A hyphen and an apostrophe may be between letters, but not begin a word.
    for text in [" -", " '"] {
        ids.extend(tokenizer.encode(text, false)?.get_ids().first());
    }

    let signs = SIGNS.chars().map(String::from).chain(GROUPS.split(' ').map(str::to_owned)).map(|s| (s, false));
    for (sign, note) in signs.chain(NOTES.chars().map(|c| (c.to_string(), true))) {
        for text in [sign.clone(), format!(" {sign}")] {
            let encoding = tokenizer.encode(text, false)?;
            match encoding.get_ids() {
                [first, rest @ ..] if note || rest.is_empty() => ids.push(*first),
                _ => {}
            }
        }
    }

    Ok(ids)
}
