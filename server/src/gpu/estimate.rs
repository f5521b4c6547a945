//! The first guess of the device memory that a Whisper model needs.

use hush_whisper::{ModelDir, Precision};

/// CUDA's context and its libraries, before any weight: 0.25 to 0.6 GB where it was measured.
const RUNTIME_BYTES: u64 = 600 << 20;

/// Rows of one search that have caches of their own: the reference's `best_of` and `beam_size`.
const SEARCH_ROWS: u64 = 5;

/// An estimate for a model that has never been loaded on a device: its files, the runtime, its caches and activations.
/// `max_batch`: windows that the model may hold at once; the engine takes the memory of all of them when it loads.
pub fn estimate_bytes(model: &ModelDir, max_batch: usize) -> u64 {
    let manifest = model.manifest();
    let config = &manifest.config;
    let real_bytes: u64 = if manifest.precision == Precision::Fp16 { 2 } else { 4 };
    let [layers, width, heads, source_positions, target_positions] = [
        config.decoder_layers,
        config.d_model,
        config.encoder_attention_heads,
        config.max_source_positions,
        config.max_target_positions,
    ]
    .map(|size| size as u64);

    // One window more, which the engine needs to swap two of them.
    let windows = if max_batch > 1 { max_batch as u64 + 1 } else { 1 };

    // A search over several rows has a copy of its window.
    let cross_attention_cache = 2 * layers * source_positions * width * real_bytes * (windows + 1);
    let self_attention_cache = 2 * layers * target_positions * width * real_bytes * (SEARCH_ROWS + windows);

    // The scores of one layer's attention, and its widest activations, in and out.
    let attention_scores = heads * source_positions * source_positions * real_bytes;
    let activations = 2 * 4 * source_positions * width * real_bytes;

    model.bytes() + RUNTIME_BYTES + cross_attention_cache + self_attention_cache + attention_scores + activations
}
