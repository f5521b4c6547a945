//! The two forward passes of Whisper, and the buffers between them.

use ort::{session::Session, value::TensorElementType};

use super::{Device, decoder::Decoder, encoder::Encoder, session::device_memory};
use crate::{
    checkpoint::{Config, SpecialTokens},
    decoding::Forward,
    graph::Precision,
    model_dir::Manifest,
};

/// Encoder and decoder of a model. The encoder writes a window's keys and values to buffers that the decoder reads.
pub struct Speech {
    encoder: Encoder,
    decoder: Decoder,
    config: Config,
    special: SpecialTokens,
}

impl Speech {
    pub(super) fn new(
        encoder: Session,
        decoder: Session,
        manifest: &Manifest,
        device: Device,
    ) -> Result<Self, ort::Error> {
        let config = manifest.config.clone();
        let real = match manifest.precision {
            Precision::Fp16 => TensorElementType::Float16,
            Precision::Fp32 | Precision::Int8 => TensorElementType::Float32,
        };
        let memory = device_memory(&encoder, device)?;
        let mut encoder = Encoder::new(encoder, &config, &memory)?;
        let memory = device_memory(&decoder, device)?;
        let decoder = Decoder::new(decoder, &config, real, memory, encoder.cross())?;
        Ok(Self { encoder, decoder, config, special: manifest.tokens.clone() })
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    pub fn special(&self) -> &SpecialTokens {
        &self.special
    }

    /// Listens to one window: log-mel `[bins, 3000]`.
    pub fn encode(&mut self, mel: &[f32]) -> Result<(), ort::Error> {
        self.encoder.encode(mel)
    }

    /// What the encoder makes of a window, `[1500, width]`, for checks.
    pub fn hidden(&mut self, mel: &[f32]) -> Result<Vec<f32>, ort::Error> {
        self.encoder.hidden(mel)
    }
}

impl Forward for Speech {
    type Error = ort::Error;

    fn restart(&mut self) -> Result<(), ort::Error> {
        self.decoder.restart();
        Ok(())
    }

    fn feed(&mut self, tokens: &[u32]) -> Result<&mut [f32], ort::Error> {
        self.decoder.feed(tokens)
    }

    fn fork(&mut self, rows: usize) -> Result<(), ort::Error> {
        self.decoder.fork(rows, self.encoder.cross())
    }

    fn step(&mut self, tokens: &[u32]) -> Result<&mut [f32], ort::Error> {
        self.decoder.step(tokens)
    }
}
