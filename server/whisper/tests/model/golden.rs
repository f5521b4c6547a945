//! Random weights in real shapes, compared with what openai/whisper computes with them (`scripts/golden_random.py`).

use std::fs;

use hush_whisper::Precision;
use hush_whisper::checkpoint::Config;
use serde::Deserialize;

use crate::support::run::{GraphModel, best};
use crate::support::{checkpoints, fixtures, installed, random};

/// The reference also computes in f32, but in another order; values are O(10).
const TOLERANCE: f32 = 1e-3;

#[derive(Deserialize)]
struct Golden {
    seed: u64,
    config: Config,
    alignment_heads: Vec<[usize; 2]>,
    tokens: Vec<u32>,
    /// Tokens of the prompt, less one: the first position with logits.
    first: usize,
    /// Frame, dimension, value.
    hidden: Vec<(usize, usize, f32)>,
    logit_ids: Vec<usize>,
    logits: Vec<Vec<f32>>,
    best: Vec<i64>,
    /// Layer, head, token, frame, weight.
    attention: Vec<(usize, usize, usize, usize, f32)>,
}

fn check(name: &str) {
    let text = fs::read(fixtures().join(format!("golden/{name}.json"))).unwrap();
    let golden: Golden = serde_json::from_slice(&text).unwrap();
    let models = tempfile::tempdir().unwrap();
    let dir = {
        let folder = checkpoints::random(&golden.config, &golden.alignment_heads, golden.seed);
        installed(folder.path(), models.path(), Precision::Fp32)
    };

    let mut model = GraphModel::load(&dir);
    let (hidden, cross) = model.encode(&[&random::mel(golden.seed, &golden.config)]);

    for (frame, dimension, expected) in golden.hidden {
        let found = hidden[[0, frame, dimension]];
        assert!((found - expected).abs() < TOLERANCE, "hidden[{frame}, {dimension}] is {found}, not {expected}");
    }

    let (prompt, rest) = golden.tokens.split_at(golden.first + 1);
    let steps = std::iter::once(prompt).chain(rest.chunks(1));
    let (mut cache, mut done) = (model.empty(1), 0);

    for (step, ids) in steps.enumerate() {
        let logits = model.decode(&[ids], &[done], &cross, &mut cache);
        done += ids.len();

        for (id, expected) in golden.logit_ids.iter().zip(&golden.logits[step]) {
            let found = logits[[0, *id]];
            assert!((found - expected).abs() < TOLERANCE, "step {step}: logit {id} is {found}, not {expected}");
        }
        assert_eq!(best(&logits), [golden.best[step]], "step {step}");
    }

    let weights = model.align(&[&golden.tokens], &cross);

    for (layer, head, token, frame, expected) in golden.attention {
        let row = dir.manifest().alignment_heads.iter().position(|h| *h == [layer, head]).unwrap();
        let found = weights[[0, row, token, frame]];
        assert!((found - expected).abs() < TOLERANCE, "head {layer}.{head}, token {token}: {found}, not {expected}");
    }
}

#[test]
fn tiny() {
    check("tiny");
}

#[test]
fn base() {
    check("base");
}

#[test]
fn two_layers_of_large_v3() {
    check("large-v3-two-layers");
}

#[test]
fn one_decoder_layer_and_128_bins() {
    check("small-one-decoder-layer");
}
