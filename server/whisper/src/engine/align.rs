//! Attention weights between a finished row of tokens and the audio, for the times of words. The session is opened when
//! words are first requested.

use std::path::PathBuf;

use ort::{
    environment::Environment,
    session::{Session, SessionInputValue},
    value::Tensor,
};

use super::{
    EngineOptions,
    encoder::CrossTensor,
    session::{self, SessionTarget},
};
use crate::{graph::decoder, timing::AlignmentAttention};

/// The output of the `align` graph for one row.
pub struct Alignment {
    pub attention: AlignmentAttention,
    /// The natural logarithm of the probability of each text token after the one before it; one fewer than tokens.
    pub logprobs: Vec<f32>,
}

pub struct Aligner {
    environment: Environment,
    path: PathBuf,
    options: EngineOptions,
    prepack: bool,
    // Dropped before the target, whose stream and weights the session uses.
    session: Option<Session>,
    target: SessionTarget,
    model_width: usize,
}

impl Aligner {
    pub fn new(
        environment: Environment,
        path: PathBuf,
        options: EngineOptions,
        prepack: bool,
        target: SessionTarget,
        model_width: usize,
    ) -> Self {
        Self { environment, path, options, prepack, target, model_width, session: None }
    }

    /// Aligns `tokens` (prompt, text, end) with the window that `cross` holds.
    pub fn align(&mut self, tokens: &[u32], cross: &[CrossTensor]) -> Result<Alignment, ort::Error> {
        let session = match &mut self.session {
            Some(session) => session,
            none => {
                none.insert(session::open(&self.environment, &self.path, &self.options, self.prepack, &self.target)?)
            }
        };

        let ids = tokens.iter().map(|token| *token as i32).collect::<Vec<_>>();
        let positions = (0..tokens.len() as i32).collect::<Vec<_>>();
        let mut inputs: Vec<(String, SessionInputValue<'_>)> = vec![
            ("input_ids".into(), Tensor::from_array(([1, tokens.len()], ids))?.into()),
            ("position_ids".into(), Tensor::from_array(([1, tokens.len()], positions))?.into()),
        ];

        if session.inputs().iter().any(|input| input.name() == decoder::SHAPES[0]) {
            // One row attends to one window, so both shapes are the same.
            for name in decoder::SHAPES {
                let shape = vec![1, tokens.len() as i64, self.model_width as i64];
                inputs.push((name.into(), Tensor::from_array(([shape.len()], shape))?.into()));
            }
        }

        for CrossTensor { name, tensor } in cross {
            if session.inputs().iter().any(|input| input.name() == name) {
                inputs.push((name.clone(), tensor.into()));
            }
        }

        let outputs = session.run(inputs)?;
        let (shape, weights) = outputs["weights"].try_extract_tensor::<f32>()?;
        let &[1, heads, rows, frames] = &**shape else {
            return Err(ort::Error::new(format!("weights of shape {shape}, expected [1, heads, tokens, frames]")));
        };

        let size = |side: i64| usize::try_from(side).unwrap_or_default();
        let attention = AlignmentAttention {
            weights: weights.to_vec(),
            heads: size(heads),
            tokens: size(rows),
            frames: size(frames),
        };
        let (_, logprobs) = outputs["logprobs"].try_extract_tensor::<f32>()?;

        Ok(Alignment { attention, logprobs: logprobs.to_vec() })
    }
}
