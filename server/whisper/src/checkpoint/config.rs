//! `config.json`: the dimensions of the model.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::CheckpointError;
use super::json::JsonFile;

/// Far above any Whisper (large has 32). It bounds the list of tensors that is made before any tensor is looked up.
const LAYERS_MAX: usize = 1024;
/// Far above any Whisper, and far below an overflow of the product of two dimensions.
pub(super) const SIZE_MAX: usize = 1 << 24;
/// A prompt alone has four tokens, and half of a window is reserved for the text before it.
const TARGET_POSITIONS_MIN: usize = 16;

/// A field with an impossible value, and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldProblem {
    pub field: String,
    pub problem: String,
}

impl FieldProblem {
    pub(crate) fn new(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { field: field.into(), problem: problem.into() }
    }
}

/// Dimensions, named as in Hugging Face's `config.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    pub d_model: usize,
    pub encoder_layers: usize,
    pub encoder_attention_heads: usize,
    pub encoder_ffn_dim: usize,
    pub decoder_layers: usize,
    pub decoder_attention_heads: usize,
    pub decoder_ffn_dim: usize,
    pub num_mel_bins: usize,
    /// Encoder frames of one window; the mel has twice as many.
    pub max_source_positions: usize,
    /// Tokens of one window, including the prompt.
    pub max_target_positions: usize,
    pub vocab_size: usize,
}

impl Config {
    pub(super) fn read(folder: &Path) -> Result<(Self, JsonFile), CheckpointError> {
        let path = folder.join("config.json");
        if !path.exists() {
            let hint = "a Whisper checkpoint folder holds config.json and model.safetensors";
            return Err(CheckpointError::MissingFile { path, hint });
        }

        let json = JsonFile::read(&path)?;
        match json.get("model_type") {
            Some(kind) if kind == "whisper" => {}
            found => {
                let found = found.map_or_else(|| "missing".to_owned(), ToString::to_string);
                return Err(CheckpointError::NotWhisper { path, found });
            }
        }

        match json.get("activation_function") {
            Some(name) if name == "gelu" => {}
            None => {}
            Some(other) => return Err(json.error("activation_function", format!("is {other}, expected \"gelu\""))),
        }

        if json.flag("scale_embedding")? == Some(true) {
            return Err(json.error("scale_embedding", "is true; no Whisper scales its embedding"));
        }

        if json.flag("tie_word_embeddings")? == Some(false) {
            return Err(json.error("tie_word_embeddings", "is false; Whisper ties them, untied ones are not supported"));
        }

        let config = Self {
            d_model: json.size("d_model")?,
            encoder_layers: json.size_up_to("encoder_layers", LAYERS_MAX)?,
            encoder_attention_heads: json.size("encoder_attention_heads")?,
            encoder_ffn_dim: json.size("encoder_ffn_dim")?,
            decoder_layers: json.size_up_to("decoder_layers", LAYERS_MAX)?,
            decoder_attention_heads: json.size("decoder_attention_heads")?,
            decoder_ffn_dim: json.size("decoder_ffn_dim")?,
            num_mel_bins: json.size("num_mel_bins")?,
            max_source_positions: json.size("max_source_positions")?,
            max_target_positions: json.size("max_target_positions")?,
            vocab_size: json.size("vocab_size")?,
        };

        config.check().map_err(|error| json.error(&error.field, error.problem))?;

        Ok((config, json))
    }

    /// Checks that a model can have each of these dimensions, whatever its weights are.
    pub fn check(&self) -> Result<(), FieldProblem> {
        let sizes = [
            ("d_model", self.d_model, 1..=SIZE_MAX),
            ("encoder_layers", self.encoder_layers, 1..=LAYERS_MAX),
            ("encoder_attention_heads", self.encoder_attention_heads, 1..=SIZE_MAX),
            ("encoder_ffn_dim", self.encoder_ffn_dim, 1..=SIZE_MAX),
            ("decoder_layers", self.decoder_layers, 1..=LAYERS_MAX),
            ("decoder_attention_heads", self.decoder_attention_heads, 1..=SIZE_MAX),
            ("decoder_ffn_dim", self.decoder_ffn_dim, 1..=SIZE_MAX),
            ("num_mel_bins", self.num_mel_bins, 1..=SIZE_MAX),
            ("max_source_positions", self.max_source_positions, 1..=SIZE_MAX),
            ("max_target_positions", self.max_target_positions, TARGET_POSITIONS_MIN..=SIZE_MAX),
            ("vocab_size", self.vocab_size, 1..=SIZE_MAX),
        ];

        for (field, size, possible) in sizes {
            if !possible.contains(&size) {
                let (least, most) = (possible.start(), possible.end());
                let problem = format!("is {size}, expected a whole number from {least} to {most}");
                return Err(FieldProblem::new(field, problem));
            }
        }

        for (field, heads) in [
            ("encoder_attention_heads", self.encoder_attention_heads),
            ("decoder_attention_heads", self.decoder_attention_heads),
        ] {
            if !self.d_model.is_multiple_of(heads) {
                let problem = format!("is {heads}, which does not divide `d_model` {}", self.d_model);
                return Err(FieldProblem::new(field, problem));
            }
        }

        Ok(())
    }

    /// The dimensions that follow from a shape: the field, its value, and a tensor with the axis of the same length.
    pub(super) fn dimensions_in_shapes(&self) -> [(&'static str, usize, &'static str, usize); 7] {
        [
            ("d_model", self.d_model, "encoder.conv1.bias", 0),
            ("num_mel_bins", self.num_mel_bins, "encoder.conv1.weight", 1),
            ("max_source_positions", self.max_source_positions, "encoder.embed_positions.weight", 0),
            ("max_target_positions", self.max_target_positions, "decoder.embed_positions.weight", 0),
            ("vocab_size", self.vocab_size, "decoder.embed_tokens.weight", 0),
            ("encoder_ffn_dim", self.encoder_ffn_dim, "encoder.layers.0.fc1.weight", 0),
            ("decoder_ffn_dim", self.decoder_ffn_dim, "decoder.layers.0.fc1.weight", 0),
        ]
    }

    /// Width of one decoder head.
    pub const fn head_width(&self) -> usize {
        self.d_model / self.decoder_attention_heads
    }

    /// Frames of the mel of one window, 10 ms each.
    pub const fn mel_frames(&self) -> usize {
        2 * self.max_source_positions
    }

    /// Name (without the `model.` prefix) and shape of every tensor that the model must have. The projection to the
    /// vocabulary is not among them, because it is the embedding.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let d = self.d_model;
        let mut all = vec![
            ("encoder.conv1.weight".to_owned(), vec![d, self.num_mel_bins, 3]),
            ("encoder.conv1.bias".to_owned(), vec![d]),
            ("encoder.conv2.weight".to_owned(), vec![d, d, 3]),
            ("encoder.conv2.bias".to_owned(), vec![d]),
            ("encoder.embed_positions.weight".to_owned(), vec![self.max_source_positions, d]),
            ("decoder.embed_positions.weight".to_owned(), vec![self.max_target_positions, d]),
            ("decoder.embed_tokens.weight".to_owned(), vec![self.vocab_size, d]),
        ];

        all.extend(self.norm_tensors());
        all.extend(self.linear_tensors());
        all
    }

    fn norm_tensors(&self) -> Vec<(String, Vec<usize>)> {
        let mut all = Vec::new();
        let mut norm = |name: String| {
            all.push((format!("{name}.weight"), vec![self.d_model]));
            all.push((format!("{name}.bias"), vec![self.d_model]));
        };

        norm("encoder.layer_norm".to_owned());
        norm("decoder.layer_norm".to_owned());

        for i in 0..self.encoder_layers {
            norm(format!("encoder.layers.{i}.self_attn_layer_norm"));
            norm(format!("encoder.layers.{i}.final_layer_norm"));
        }

        for i in 0..self.decoder_layers {
            norm(format!("decoder.layers.{i}.self_attn_layer_norm"));
            norm(format!("decoder.layers.{i}.encoder_attn_layer_norm"));
            norm(format!("decoder.layers.{i}.final_layer_norm"));
        }

        all
    }

    fn linear_tensors(&self) -> Vec<(String, Vec<usize>)> {
        let d = self.d_model;
        let mut all = Vec::new();
        let mut linear = |name: String, out: usize, inner: usize, bias: bool| {
            all.push((format!("{name}.weight"), vec![out, inner]));
            if bias {
                all.push((format!("{name}.bias"), vec![out]));
            }
        };

        let mut attention = |name: String| {
            linear(format!("{name}.q_proj"), d, d, true);
            linear(format!("{name}.k_proj"), d, d, false);
            linear(format!("{name}.v_proj"), d, d, true);
            linear(format!("{name}.out_proj"), d, d, true);
        };

        for i in 0..self.encoder_layers {
            attention(format!("encoder.layers.{i}.self_attn"));
        }

        for i in 0..self.decoder_layers {
            attention(format!("decoder.layers.{i}.self_attn"));
            attention(format!("decoder.layers.{i}.encoder_attn"));
        }

        let mut mlp = |layer: String, ffn: usize| {
            linear(format!("{layer}.fc1"), ffn, d, true);
            linear(format!("{layer}.fc2"), d, ffn, true);
        };

        for i in 0..self.encoder_layers {
            mlp(format!("encoder.layers.{i}"), self.encoder_ffn_dim);
        }

        for i in 0..self.decoder_layers {
            mlp(format!("decoder.layers.{i}"), self.decoder_ffn_dim);
        }

        all
    }
}
