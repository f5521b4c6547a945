//! Names and dimensions of openai/whisper, which its `.pt` files and whisper.cpp's ggml files share.

use std::path::Path;

use super::config::SIZE_MAX;
use super::{CheckpointError, Config};

/// `ModelDimensions` of `whisper/model.py`, as stated by a file.
pub(super) struct OpenAiDimensions {
    pub n_mels: i64,
    pub n_vocab: i64,
    pub n_audio_ctx: i64,
    pub n_audio_state: i64,
    pub n_audio_head: i64,
    pub n_audio_layer: i64,
    pub n_text_ctx: i64,
    pub n_text_state: i64,
    pub n_text_head: i64,
    pub n_text_layer: i64,
}

impl OpenAiDimensions {
    /// The same dimensions with the names of Hugging Face, within the bounds that a Whisper can have.
    pub fn config(&self, path: &Path) -> Result<Config, CheckpointError> {
        let size = |field: &str, value: i64| {
            let valid = usize::try_from(value).ok().filter(|n| (1..=SIZE_MAX).contains(n));
            valid.ok_or_else(|| {
                CheckpointError::field(path, field, format!("is {value}, expected a whole number from 1 to {SIZE_MAX}"))
            })
        };

        if self.n_audio_state != self.n_text_state {
            let problem = format!("is {}, but `n_audio_state` is {}", self.n_text_state, self.n_audio_state);
            return Err(CheckpointError::field(path, "n_text_state", problem));
        }

        let width = size("n_audio_state", self.n_audio_state)?;
        let config = Config {
            d_model: width,
            encoder_layers: size("n_audio_layer", self.n_audio_layer)?,
            encoder_attention_heads: size("n_audio_head", self.n_audio_head)?,
            encoder_ffn_dim: 4 * width,
            decoder_layers: size("n_text_layer", self.n_text_layer)?,
            decoder_attention_heads: size("n_text_head", self.n_text_head)?,
            decoder_ffn_dim: 4 * width,
            num_mel_bins: size("n_mels", self.n_mels)?,
            max_source_positions: size("n_audio_ctx", self.n_audio_ctx)?,
            max_target_positions: size("n_text_ctx", self.n_text_ctx)?,
            vocab_size: size("n_vocab", self.n_vocab)?,
        };

        let stored_name = |field: &str| match field {
            "encoder_attention_heads" => "n_audio_head".to_owned(),
            "decoder_attention_heads" => "n_text_head".to_owned(),
            "encoder_layers" => "n_audio_layer".to_owned(),
            "decoder_layers" => "n_text_layer".to_owned(),
            other => other.to_owned(),
        };

        config.check().map_err(|error| CheckpointError::field(path, &stored_name(&error.field), error.problem))?;

        Ok(config)
    }
}

/// The name that openai/whisper gives to a tensor of [`Config::tensors`].
pub(super) fn openai_name(canonical: &str) -> String {
    let parts: Vec<&str> = canonical.split('.').collect();

    match parts.as_slice() {
        ["encoder", "layer_norm", kind] => format!("encoder.ln_post.{kind}"),
        ["decoder", "layer_norm", kind] => format!("decoder.ln.{kind}"),
        [side, "embed_positions", "weight"] => format!("{side}.positional_embedding"),
        ["decoder", "embed_tokens", "weight"] => "decoder.token_embedding.weight".to_owned(),
        [side, "layers", index, rest @ ..] => {
            let rest: Vec<&str> = rest
                .iter()
                .map(|part| match *part {
                    "self_attn" => "attn",
                    "encoder_attn" => "cross_attn",
                    "self_attn_layer_norm" => "attn_ln",
                    "encoder_attn_layer_norm" => "cross_attn_ln",
                    "final_layer_norm" => "mlp_ln",
                    "q_proj" => "query",
                    "k_proj" => "key",
                    "v_proj" => "value",
                    "out_proj" => "out",
                    "fc1" => "mlp.0",
                    "fc2" => "mlp.2",
                    other => other,
                })
                .collect();

            format!("{side}.blocks.{index}.{}", rest.join("."))
        }
        _ => canonical.to_owned(),
    }
}
