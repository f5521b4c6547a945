//! Checks that the graphs have the dimensions that `model.json` states: the engine lays out memory by the file, and the
//! graphs read and write that memory.

use super::EngineLoadError;
use super::encoder::WindowLengths;
use crate::graph::decoder::LAST_FRAME;
use crate::model_dir::{DECODER, ENCODER, ModelDir};
use crate::onnx::GraphFile;

/// The initialisers with one row for each position.
const ENCODER_POSITIONS: &str = "encoder.embed_positions.weight";
const POSITIONS: &str = "decoder.embed_positions.weight";

/// Compares the files, before any memory is allocated. Returns the lengths of windows that the graphs accept.
pub fn check(model: &ModelDir) -> Result<WindowLengths, EngineLoadError> {
    let read = |graph| GraphFile::read(&model.file(graph)).map_err(|source| EngineLoadError::Graph { graph, source });
    let config = &model.manifest().config;

    let encoder = read(ENCODER)?;
    let (mel, hidden) = (encoder.dimensions("mel"), encoder.dimensions("hidden"));
    let frames = at(&mel, 2).map(|frames| frames / 2);

    expect(ENCODER, "num_mel_bins", config.num_mel_bins, at(&mel, 1))?;
    expect(ENCODER, "max_source_positions", config.max_source_positions, frames.or(encoder.rows(ENCODER_POSITIONS)))?;
    expect(ENCODER, "d_model", config.d_model, at(&hidden, 2))?;

    let decoder = read(DECODER)?;
    let (cache, logits) = (decoder.dimensions("self_k_0"), decoder.dimensions("logits"));
    let layers = i64::try_from(decoder.count_inputs("self_k_")).ok();

    expect(DECODER, "decoder_layers", config.decoder_layers, layers)?;
    expect(DECODER, "decoder_attention_heads", config.decoder_attention_heads, at(&cache, 1))?;
    expect(DECODER, "vocab_size", config.vocab_size, at(&logits, 1))?;

    expect(DECODER, "max_target_positions", config.max_target_positions, decoder.rows(POSITIONS))?;

    let has_last_frame = decoder.count_inputs(LAST_FRAME) == 1;

    Ok(WindowLengths {
        mel_bins: config.num_mel_bins,
        longest: config.max_source_positions,
        accepts_shorter: frames.is_none() && has_last_frame,
        has_last_frame,
    })
}

fn at(dimensions: &[Option<i64>], axis: usize) -> Option<i64> {
    dimensions.get(axis).copied().flatten()
}

/// Compares one dimension. A dimension that the graph does not state is not checked.
fn expect(graph: &'static str, field: &'static str, stated: usize, found: Option<i64>) -> Result<(), EngineLoadError> {
    match found {
        Some(found) if i64::try_from(stated) != Ok(found) => {
            Err(EngineLoadError::Dimension { graph, field, stated, found })
        }
        _ => Ok(()),
    }
}
