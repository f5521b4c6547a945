//! Whisper checkpoints in their published formats: Hugging Face folders, CTranslate2 folders, OpenAI's `.pt` files and
//! whisper.cpp's ggml files. For every format the tensors here have the names and shapes of Hugging Face.

mod blocks;
mod byte_reader;
mod config;
mod ctranslate2;
mod error;
mod family;
mod ggml;
mod json;
mod malformed;
mod openai;
mod openai_names;
mod pickle;
mod safetensors;
mod tensor;
mod tiktoken;
mod vocabulary;

use std::fs::File;
use std::io::Read;
use std::path::Path;

pub use config::{Config, FieldProblem};
pub use error::CheckpointError;
pub use malformed::{InvalidVocabulary, MalformedFile};
pub use pickle::{PickleError, PickleProblem};
pub use tensor::{CheckpointTensor, Weights};
pub use vocabulary::SpecialTokens;

use tokenizers::Tokenizer;

use crate::tokenizer;
use json::JsonFile;
use tiktoken::VocabularyFamily;
use vocabulary::DeclaredTokens;

/// A checkpoint whose tensors are all present with the expected shapes. Their values are read later.
pub struct Checkpoint {
    pub config: Config,
    pub tokens: SpecialTokens,
    /// `[layer, head]` of the decoder whose cross-attention follows the speech.
    pub alignment_heads: Vec<[usize; 2]>,
    /// The content of a `tokenizer.json`.
    pub tokenizer_json: Vec<u8>,
    pub weights: Weights,
}

/// The formats in which checkpoints are published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckpointFormat {
    /// A folder with `config.json` and safetensors.
    HuggingFace,
    /// A folder with `model.bin`.
    CTranslate2,
    /// A `.pt` file.
    OpenAi,
    /// A `ggml-*.bin` file.
    Ggml,
}

impl CheckpointFormat {
    /// The format of a folder or file, determined by its content and not by its name.
    pub fn of(path: &Path) -> Result<Self, CheckpointError> {
        if path.is_dir() {
            let ctranslate2 = !safetensors::is_in(path) && ctranslate2::is_in(path);
            return Ok(if ctranslate2 { Self::CTranslate2 } else { Self::HuggingFace });
        }

        if !path.is_file() {
            return Err(CheckpointError::NotACheckpoint(path.to_owned()));
        }

        let mut start = Vec::new();
        let file = File::open(path).map_err(CheckpointError::io(path))?;
        file.take(16).read_to_end(&mut start).map_err(CheckpointError::io(path))?;
        if start.starts_with(openai::MAGIC) {
            return Ok(Self::OpenAi);
        }

        if start.starts_with(ggml::MAGIC) {
            return Ok(Self::Ggml);
        }

        let problem = if start.starts_with(b"GGUF") {
            "a GGUF file; of whisper.cpp's models the `ggml-*.bin` files are read"
        } else if start.starts_with(&[0x80]) {
            "a PyTorch file from before version 1.6; load it and save it again with torch.save"
        } else {
            return Err(CheckpointError::NotACheckpoint(path.to_owned()));
        };

        Err(CheckpointError::UnknownFile { path: path.to_owned(), problem })
    }
}

impl Checkpoint {
    /// Opens a folder or file of any [`CheckpointFormat`].
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        match CheckpointFormat::of(path)? {
            CheckpointFormat::HuggingFace => Self::open_hugging_face(path),
            CheckpointFormat::CTranslate2 => Self::open_ctranslate2(path),
            CheckpointFormat::OpenAi => {
                let (config, weights) = openai::open(path)?;
                let family = vocabulary_family(path, &config)?;
                let tokens = family.published_tokens().map_err(vocabulary::unusable(path))?;
                Self::with_family(path, config, weights, family, &tokens, DeclaredTokens::default(), None)
            }
            CheckpointFormat::Ggml => {
                let (config, mut tokens, weights) = ggml::open(path)?;
                let family = vocabulary_family(path, &config)?;

                // Files that were converted from Hugging Face's checkpoints also list `<|endoftext|>`.
                tokens.truncate(family.text_tokens());

                if tokens.len() < family.text_tokens() {
                    let (found, expected) = (tokens.len(), family.text_tokens());
                    return Err(vocabulary::unusable(path)(InvalidVocabulary::TooFewTokens { found, expected }));
                }

                Self::with_family(path, config, weights, family, &tokens, DeclaredTokens::default(), None)
            }
        }
    }

    fn open_hugging_face(folder: &Path) -> Result<Self, CheckpointError> {
        let (config, config_json) = Config::read(folder)?;
        check_mel_bins(folder, &config)?;
        let weights = safetensors::open(folder, &config)?;
        let generation = JsonFile::read_if_exists(&folder.join("generation_config.json"))?;
        let (tokenizer, tokenizer_json) = checked_tokenizer(folder, &config)?;
        let declared = DeclaredTokens::of_hugging_face(&config, &config_json, generation.as_ref())?;
        let tokens = SpecialTokens::read(&tokenizer, &folder.join(vocabulary::TOKENIZER), &config, declared)?;
        let named = generation.as_ref().map_or(Ok(None), named_heads)?;
        let alignment_heads = alignment_heads(&config, named);

        Ok(Self { config, tokens, alignment_heads, tokenizer_json, weights })
    }

    fn open_ctranslate2(folder: &Path) -> Result<Self, CheckpointError> {
        let (config, weights) = ctranslate2::open(folder)?;
        check_mel_bins(folder, &config)?;
        let json = JsonFile::read_if_exists(&folder.join("config.json"))?;
        let declared = json
            .as_ref()
            .map_or(Ok(DeclaredTokens::default()), |json| DeclaredTokens::of_ctranslate2(&config, json))?;
        let named = json.as_ref().map_or(Ok(None), named_heads)?;

        if folder.join(vocabulary::TOKENIZER).exists() {
            let (tokenizer, tokenizer_json) = checked_tokenizer(folder, &config)?;
            let tokens = SpecialTokens::read(&tokenizer, &folder.join(vocabulary::TOKENIZER), &config, declared)?;
            let alignment_heads = alignment_heads(&config, named);
            return Ok(Self { config, tokens, alignment_heads, tokenizer_json, weights });
        }

        let family = vocabulary_family(folder, &config)?;
        let tokens = family.published_tokens().map_err(vocabulary::unusable(folder))?;

        Self::with_family(folder, config, weights, family, &tokens, declared, named)
    }

    /// Completes a checkpoint without a `tokenizer.json`: `tokens` are its text tokens, and what the files do not state is
    /// that of the family.
    fn with_family(
        path: &Path,
        config: Config,
        weights: Weights,
        family: VocabularyFamily,
        tokens: &[Vec<u8>],
        declared: DeclaredTokens,
        named: Option<Vec<[usize; 2]>>,
    ) -> Result<Self, CheckpointError> {
        let tokenizer = family.tokenizer(tokens).map_err(vocabulary::unusable(path))?;
        let tokenizer_json =
            tokenizer.to_string(false).map_err(|e| vocabulary::unusable(path)(InvalidVocabulary::Library(e)))?;
        let tokens = SpecialTokens::read(&tokenizer, path, &config, declared)?;

        let file_name = path.file_name().unwrap_or_default().to_string_lossy();
        let named = named.or_else(|| family::alignment_heads(&config, &file_name).map(<[_]>::to_vec));
        let alignment_heads = alignment_heads(&config, named);

        Ok(Self { config, tokens, alignment_heads, tokenizer_json: tokenizer_json.into_bytes(), weights })
    }
}

/// Checks that `preprocessor_config.json`, if it exists, states the number of mel bins of the model.
fn check_mel_bins(folder: &Path, config: &Config) -> Result<(), CheckpointError> {
    let Some(features) = JsonFile::read_if_exists(&folder.join("preprocessor_config.json"))? else { return Ok(()) };
    if features.get("feature_size").is_none() {
        return Ok(());
    }

    let bins = features.size("feature_size")?;
    if bins == config.num_mel_bins {
        return Ok(());
    }

    let problem = format!("is {bins}, but `num_mel_bins` in config.json is {}", config.num_mel_bins);

    Err(features.error("feature_size", problem))
}

/// The tokenizer of a folder and its content, which is checked in the same way as when the model is loaded.
fn checked_tokenizer(folder: &Path, config: &Config) -> Result<(Tokenizer, Vec<u8>), CheckpointError> {
    let (tokenizer, json) = vocabulary::read_tokenizer(folder)?;
    tokenizer::check(&folder.join(vocabulary::TOKENIZER), &json, config.vocab_size)?;
    Ok((tokenizer, json))
}

fn vocabulary_family(path: &Path, config: &Config) -> Result<VocabularyFamily, CheckpointError> {
    VocabularyFamily::of(config.vocab_size)
        .ok_or_else(|| vocabulary::unusable(path)(InvalidVocabulary::UnknownSize(config.vocab_size)))
}

/// The alignment heads that a JSON file states.
fn named_heads(file: &JsonFile) -> Result<Option<Vec<[usize; 2]>>, CheckpointError> {
    const FIELD: &str = "alignment_heads";

    let Some(value) = file.get(FIELD) else { return Ok(None) };
    let pairs = serde_json::from_value(value.clone());
    pairs.map(Some).map_err(|_| file.error(FIELD, "must be a list of [layer, head]"))
}

/// The alignment heads of the model. Distilled models have the list of their teacher, with layers that they do not have: a
/// list that only partly fits was made for another decoder and is ignored. Without a list the reference's default is used:
/// every head of the last half of the layers.
fn alignment_heads(config: &Config, named: Option<Vec<[usize; 2]>>) -> Vec<[usize; 2]> {
    let (layers, heads) = (config.decoder_layers, config.decoder_attention_heads);
    let mut named = named.unwrap_or_default();
    let absent = named.iter().filter(|[layer, head]| *layer >= layers || *head >= heads).count();

    if absent > 0 {
        tracing::warn!(dropped = absent, layers, heads, "alignment heads that this decoder does not have");
        named.clear();
    }

    if named.is_empty() {
        named.extend((layers / 2..layers).flat_map(|layer| (0..heads).map(move |head| [layer, head])));
    }

    named.sort_unstable();
    named.dedup();

    named
}
