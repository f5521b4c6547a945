//! Finds the likeliest tokens of each row on the device, so that a decode step copies some hundred bytes per row to the
//! host instead of a vocabulary of logits.
//!
//! The vocabulary has two parts: words (everything below `<|0.00|>`) and timestamps. For each part the graph forbids the
//! suppressed tokens and all tokens outside of a range that the host sets for the row, and writes to the output `choice`
//! f32 `[B, 2 (1 + 2 K)]`, words first:
//!
//! 1. the logit of the likeliest token,
//! 2. the natural logarithms of the probabilities of the `K` likeliest tokens within this part, the likeliest first,
//! 3. these tokens, counted from the beginning of the part.
//!
//! The logarithm of the sum of the exponentials of a part is (1) less the first of (2). TokenRules for both parts together (a
//! timestamp is forced if all timestamps together are likelier than each word) are applied by the host. For a range without
//! a token the values are meaningless.

use std::ops::Range;

use crate::decoding::TokenRules;
use crate::onnx::ElementType;

use super::builder::{GraphBuilder, Result};

/// Most tokens that a step names for each part: enough for seven beams.
const MAX_LIKELIEST: usize = 8;

/// The ranges of tokens that may follow, `[first, end)`, i32 `[B, 1]` each.
pub const RANGES: [&str; 4] = ["word_first", "word_end", "time_first", "time_end"];
pub const OUTPUT: &str = "choice";

/// The number of tokens that are named for each part of a vocabulary whose timestamps begin at `timestamps`.
pub fn likeliest(vocabulary: usize, timestamps: usize) -> usize {
    MAX_LIKELIEST.min(timestamps).min(vocabulary.saturating_sub(timestamps))
}

/// Values of a row of the output.
pub const fn width(likeliest: usize) -> usize {
    2 * (1 + 2 * likeliest)
}

pub fn inputs(b: &mut GraphBuilder<'_, '_>) {
    for name in RANGES {
        b.graph.input(name, ElementType::I32, &["B".into(), 1.into()]);
    }
}

pub fn outputs(b: &mut GraphBuilder<'_, '_>) -> Result<()> {
    let vocabulary = b.config().vocab_size;
    let timestamps = b.tokens().timestamp_begin as usize;
    let count = likeliest(vocabulary, timestamps);

    let mask: Vec<u8> = suppression_mask(b, vocabulary).into_iter().flat_map(f32::to_le_bytes).collect();
    b.table("choice.suppressed", ElementType::F32, &[vocabulary], &mask)?;
    b.graph.op("Add", &["logits", "choice.suppressed"], &["permitted"]);
    b.graph.constant_i64("choice_axis", &[1], &[1]);
    b.graph.constant_i64("choice_zero", &[1], &[0]);
    b.graph.constant_i64("choice_one", &[1], &[1]);
    b.graph.constant_i64("choice_count", &[1], &[count as i64]);
    b.graph.constant_f32("choice_forbidden", &[], &[f32::NEG_INFINITY]);

    let mut all = Vec::new();
    for (part, tokens) in [("word", 0..timestamps), ("time", timestamps..vocabulary)] {
        all.extend(part_choice(b, part, tokens)?);
    }

    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    b.graph.output(OUTPUT, ElementType::F32, &["B".into(), width(count).into()]);
    b.graph.op("Concat", &all, &[OUTPUT]).int("axis", 1);

    Ok(())
}

/// Minus infinity for tokens that are always suppressed, 0 for the others.
fn suppression_mask(b: &GraphBuilder<'_, '_>, vocabulary: usize) -> Vec<f32> {
    let (no_timestamps, begin) = (b.tokens().no_timestamps, b.tokens().timestamp_begin);

    // A range of words cannot exclude this token unless it is the last one.
    let inside = (no_timestamps + 1 != begin).then_some(no_timestamps);

    let mut mask = vec![0.0_f32; vocabulary];
    for token in TokenRules::new(b.tokens(), true).suppressed.into_iter().chain(inside) {
        if let Some(value) = mask.get_mut(token as usize) {
            *value = f32::NEG_INFINITY;
        }
    }
    mask
}

/// The best logit, the log-probabilities and the tokens of one part of the vocabulary.
fn part_choice(b: &mut GraphBuilder<'_, '_>, part: &str, tokens: Range<usize>) -> Result<[String; 3]> {
    let named = |what: &str| format!("{part}_{what}");
    let [from, until, ids_name, first, end] = ["from", "until", "ids", "first", "end"].map(named);
    let [logits, reached, before, within, masked] = ["logits", "reached", "before", "within", "masked"].map(named);
    let [logprobs, best, at, best_at, best_logit, best_tokens] =
        ["logprobs", "best", "at", "best_at", "best_logit", "tokens"].map(named);

    let ids: Vec<u8> = tokens.clone().flat_map(|id| (id as i32).to_le_bytes()).collect();
    b.graph.constant_i64(&from, &[1], &[tokens.start as i64]);
    b.graph.constant_i64(&until, &[1], &[tokens.end as i64]);
    b.table(&format!("choice.{ids_name}"), ElementType::I32, &[tokens.len()], &ids)?;
    let ids_name = format!("choice.{ids_name}");

    b.graph.op("Slice", &["permitted", &from, &until, "choice_axis"], &[&logits]);
    b.graph.op("GreaterOrEqual", &[&ids_name, &first], &[&reached]);
    b.graph.op("Less", &[&ids_name, &end], &[&before]);
    b.graph.op("And", &[&reached, &before], &[&within]);
    b.graph.op("Where", &[&within, &logits, "choice_forbidden"], &[&masked]);

    b.graph.op("LogSoftmax", &[&masked], &[&logprobs]).int("axis", -1);
    b.graph.op("TopK", &[&logprobs, "choice_count"], &[&best, &at]).int("axis", -1);
    b.graph.op("Slice", &[&at, "choice_zero", "choice_one", "choice_axis"], &[&best_at]);
    b.graph.op("GatherElements", &[&masked, &best_at], &[&best_logit]).int("axis", 1);
    b.graph.op("Cast", &[&at], &[&best_tokens]).int("to", ElementType::F32.onnx());

    Ok([best_logit, best, best_tokens])
}
