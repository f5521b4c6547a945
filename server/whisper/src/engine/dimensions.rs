//! Whether the graphs are those that `model.json` describes: memory is laid out by the file, and the graphs read and write it.

use super::LoadError;
use crate::model_dir::{DECODER, ENCODER, ModelDir};
use crate::onnx::GraphFile;

/// The table of positions in the weights of the decoder.
const POSITIONS: &str = "decoder.embed_positions.weight";

/// Looks at the files alone, before anything is taken for them.
pub fn check(model: &ModelDir) -> Result<(), LoadError> {
    let read = |graph| GraphFile::read(&model.file(graph)).map_err(|source| LoadError::Graph { graph, source });
    let config = &model.manifest().config;

    let encoder = read(ENCODER)?;
    let (mel, hidden) = (encoder.dimensions("mel"), encoder.dimensions("hidden"));
    let frames = at(&mel, 2).map(|frames| frames / 2);

    expect(ENCODER, "num_mel_bins", config.num_mel_bins, at(&mel, 1))?;
    expect(ENCODER, "max_source_positions", config.max_source_positions, frames)?;
    expect(ENCODER, "d_model", config.d_model, at(&hidden, 2))?;

    let decoder = read(DECODER)?;
    let (cache, logits) = (decoder.dimensions("self_k_0"), decoder.dimensions("logits"));
    let layers = i64::try_from(decoder.count_inputs("self_k_")).ok();

    expect(DECODER, "decoder_layers", config.decoder_layers, layers)?;
    expect(DECODER, "decoder_attention_heads", config.decoder_attention_heads, at(&cache, 1))?;
    expect(DECODER, "vocab_size", config.vocab_size, at(&logits, 1))?;

    expect(DECODER, "max_target_positions", config.max_target_positions, decoder.rows(POSITIONS))
}

fn at(dimensions: &[Option<i64>], axis: usize) -> Option<i64> {
    dimensions.get(axis).copied().flatten()
}

/// What a graph does not tell, it is not asked for again.
fn expect(graph: &'static str, field: &'static str, stated: usize, found: Option<i64>) -> Result<(), LoadError> {
    match found {
        Some(found) if i64::try_from(stated) != Ok(found) => Err(LoadError::Dimension { graph, field, stated, found }),
        _ => Ok(()),
    }
}
