//! A Whisper checkpoint as everybody publishes it: a Hugging Face folder.

mod config;
mod error;
mod json;
mod vocabulary;
mod weights;

use std::path::{Path, PathBuf};

pub use config::{Config, FieldProblem};
pub use error::CheckpointError;
pub use vocabulary::SpecialTokens;
pub use weights::{Tensor, Weights};

use json::JsonFile;

use crate::tokenizer;

/// A checkpoint that was read and found whole: every tensor is there in its shape. Values are read later.
pub struct Checkpoint {
    pub folder: PathBuf,
    pub config: Config,
    pub tokens: SpecialTokens,
    /// `[layer, head]` of the decoder whose cross-attention follows the speech.
    pub alignment_heads: Vec<[usize; 2]>,
    /// Text of a `tokenizer.json`.
    pub tokenizer_json: Vec<u8>,
    pub weights: Weights,
}

impl Checkpoint {
    pub fn open(folder: &Path) -> Result<Self, CheckpointError> {
        if !folder.is_dir() {
            return Err(CheckpointError::NotAFolder(folder.to_owned()));
        }
        let (config, config_json) = Config::read(folder)?;
        if let Some(features) = JsonFile::read_if_there(&folder.join("preprocessor_config.json"))?
            && features.get("feature_size").is_some()
        {
            let bins = features.size("feature_size")?;
            if bins != config.num_mel_bins {
                let problem = format!("is {bins}, but `num_mel_bins` in config.json is {}", config.num_mel_bins);
                return Err(features.error("feature_size", problem));
            }
        }
        let weights = Weights::open(folder, &config)?;
        let generation = JsonFile::read_if_there(&folder.join("generation_config.json"))?;
        let (tokenizer, tokenizer_json) = vocabulary::read_tokenizer(folder)?;
        let tokenizer_path = folder.join("tokenizer.json");
        // As it is read when the model is loaded.
        tokenizer::check(&tokenizer_path, &tokenizer_json, config.vocab_size)?;
        let tokens = SpecialTokens::read(&tokenizer, &tokenizer_path, &config, &config_json, generation.as_ref())?;
        let alignment_heads = alignment_heads(&config, generation.as_ref())?;
        Ok(Self { folder: folder.to_owned(), config, tokens, alignment_heads, tokenizer_json, weights })
    }
}

/// The heads that `generation_config.json` names. Distilled models carry the list of their teacher, whose layers they
/// do not have: such heads are left out. With none left, the reference's rule: every head of the last half of the layers.
fn alignment_heads(config: &Config, generation: Option<&JsonFile>) -> Result<Vec<[usize; 2]>, CheckpointError> {
    const FIELD: &str = "alignment_heads";
    let (layers, heads) = (config.decoder_layers, config.decoder_attention_heads);
    let mut named = Vec::new();
    if let Some((generation, value)) = generation.and_then(|g| Some((g, g.get(FIELD)?))) {
        let pairs: Vec<[usize; 2]> = serde_json::from_value(value.clone())
            .map_err(|_| generation.error(FIELD, "must be a list of [layer, head]"))?;
        let total = pairs.len();
        named.extend(pairs.into_iter().filter(|[layer, head]| *layer < layers && *head < heads));
        if named.len() < total {
            let dropped = total - named.len();
            tracing::warn!(dropped, layers, heads, "alignment heads that this decoder does not have");
        }
        // A list of which only a part fits was made for another decoder: that part means nothing here.
        if named.len() < total {
            named.clear();
        }
    }
    if named.is_empty() {
        named.extend((layers / 2..layers).flat_map(|layer| (0..heads).map(move |head| [layer, head])));
    }
    named.sort_unstable();
    named.dedup();
    Ok(named)
}
