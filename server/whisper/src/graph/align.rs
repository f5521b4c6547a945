//! A finished row of tokens, without a cache -> the attention of each token to the audio (the softmax of the alignment
//! heads), and the probability of each token.

use crate::onnx::ElementType;

use super::Precision;
use super::builder::{GraphBuilder, Result};
use super::decoder::{self, CrossInput};

pub fn build(mut b: GraphBuilder<'_, '_>) -> Result<Vec<u8>> {
    let config = b.config();
    let alignment = b.alignment_heads();
    let (heads, width) = (config.decoder_attention_heads, config.head_width());

    decoder::inputs(&mut b);
    b.graph.constant_i64("split_heads", &[4], &[0, 0, heads as i64, width as i64]);
    b.graph.constant_f32("scale", &[], &[(width as f32).powf(-0.5)]);
    let (mut x, mut norm) = decoder::embed(&mut b)?;

    let mut weights = Vec::new();
    for i in 0..config.decoder_layers {
        let [qkv, q, k, v, attended] = ["qkv", "q", "k", "v", "heard"].map(|n| format!("{n}_{i}"));
        decoder::self_projection(&mut b, &norm, i, &qkv)?;
        b.graph.op("Split", &[&qkv], &[&q, &k, &v]).int("axis", 2).int("num_outputs", 3);

        if b.for_gpu() {
            b.graph.attention([&q, &k, &v], heads, &attended).int("is_causal", 1);
        } else {
            b.graph
                .contrib("MultiHeadAttention", &[&q, &k, &v], &[&attended])
                .int("num_heads", heads as i64)
                .int("unidirectional", 1);
        }

        (x, norm) = decoder::after_self_attention(&mut b, &x, &attended, i)?;
        let query = decoder::cross_query(&mut b, &norm, i)?;
        let chosen: Vec<i64> = alignment.iter().filter(|[l, _]| *l == i).map(|[_, head]| *head as i64).collect();

        (x, norm) = decoder::cross_attention(&mut b, attend, &x, &query, i)?;

        if !chosen.is_empty() {
            let keys = CrossInput::named(&b, "k", i);
            weights.push(attention_weights(&mut b, query, &keys, i, &chosen));
        }
    }

    let shape = ["B".into(), alignment.len().into(), "S".into(), "E".into()];
    b.graph.output("weights", ElementType::F32, &shape);
    let all: Vec<&str> = weights.iter().map(String::as_str).collect();
    b.graph.op("Concat", &all, &["weights"]).int("axis", 1);
    logprobs(&mut b, &norm)?;

    Ok(b.graph.finish())
}

/// The logarithm of the probability, among the text tokens, of each token after the one before it.
fn logprobs(b: &mut GraphBuilder<'_, '_>, hidden: &str) -> Result<()> {
    let config = b.config();
    let text = b.tokens().eot as usize;
    b.graph.constant_i64("flat", &[2], &[-1, config.d_model as i64]);
    b.graph.op("Reshape", &[hidden, "flat"], &["positions"]);
    b.vocabulary("positions", "all_logits")?;

    for (name, value) in
        [("zero", 0), ("first", 1), ("second_axis", 1), ("text_end", text as i64), ("until_last", i64::MAX)]
    {
        b.graph.constant_i64(name, &[1], &[value]);
    }

    b.graph.op("Slice", &["all_logits", "zero", "text_end", "second_axis"], &["text_logits"]);
    let logits = if b.real() == ElementType::F32 { "text_logits".to_owned() } else { in_f32(b, "text_logits") };
    b.graph.op("LogSoftmax", &[&logits], &["flat_logprobs"]).int("axis", -1);

    if b.for_gpu() {
        b.graph.constant_i64("unflattened", &[3], &[1, -1, text as i64]);
    } else {
        b.graph.constant_i64("text_tail", &[1], &[text as i64]);
        b.graph.op("Shape", &["input_ids"], &["batch_and_length"]);
        b.graph.op("Concat", &["batch_and_length", "text_tail"], &["unflattened"]).int("axis", 0);
    }

    b.graph.op("Reshape", &["flat_logprobs", "unflattened"], &["every_logprob"]);

    b.graph.constant_i64("minus_one", &[1], &[-1]);
    b.graph.op("Slice", &["every_logprob", "zero", "minus_one", "second_axis"], &["before_last"]);
    b.graph.op("Slice", &["input_ids", "first", "until_last", "second_axis"], &["following"]);

    // Tokens that are not text are replaced by the last text token, so that the index is inside the table.
    b.graph.constant_i32("last_text", &[], &[text as i32 - 1]);
    b.graph.op("Min", &["following", "last_text"], &["within"]);
    b.graph.constant_i64("as_column", &[1], &[2]);
    b.graph.op("Unsqueeze", &["within", "as_column"], &["column"]);
    b.graph.op("GatherElements", &["before_last", "column"], &["chosen_column"]).int("axis", 2);
    b.graph.output("logprobs", ElementType::F32, &["B".into(), "N".into()]);
    b.graph.op("Squeeze", &["chosen_column", "as_column"], &["logprobs"]);

    Ok(())
}

/// The softmax of queries and keys of some heads, in f32.
fn attention_weights(
    b: &mut GraphBuilder<'_, '_>,
    query: String,
    keys: &CrossInput,
    layer: usize,
    heads: &[i64],
) -> String {
    let named = |n: &str| format!("{n}_{layer}");
    let [rows, turned, q, k, columns, product, scaled, out] =
        ["a_rows", "a_turned", "a_q", "a_k", "a_columns", "a_product", "a_scaled", "a_weights"].map(named);
    let chosen = named("alignment_heads");

    b.graph.constant_i64(&chosen, &[heads.len()], heads);
    let query = decoder::scaled(b, query, keys);
    b.graph.op("Reshape", &[&query, "split_heads"], &[&rows]);
    b.graph.op("Transpose", &[&rows], &[&turned]).ints("perm", &[0, 2, 1, 3]);
    b.graph.op("Gather", &[&turned, &chosen], &[&q]).int("axis", 1);

    if b.for_gpu() {
        let by_head = named("a_by_head");
        b.graph.op("Reshape", &[&keys.values, "split_heads"], &[&by_head]);
        b.graph.op("Gather", &[&by_head, &chosen], &[&k]).int("axis", 2);
        b.graph.op("Transpose", &[&k], &[&columns]).ints("perm", &[0, 2, 3, 1]);
    } else {
        b.graph.op("Gather", &[&keys.values, &chosen], &[&k]).int("axis", 1);
        b.graph.op("Transpose", &[&k], &[&columns]).ints("perm", &[0, 1, 3, 2]);
    }

    let factors =
        if b.precision == Precision::Fp32 { [q, columns] } else { [q, columns].map(|factor| in_f32(b, &factor)) };
    b.graph.op("MatMul", &[&factors[0], &factors[1]], &[&product]);
    b.graph.op("Mul", &[&product, "scale"], &[&scaled]);
    b.graph.op("Softmax", &[&scaled], &[&out]).int("axis", -1);

    out
}

/// Like [`decoder::attend`], where speed does not matter: bytes are converted to f32 first.
fn attend(b: &mut GraphBuilder<'_, '_>, query: &str, keys: &CrossInput, values: &CrossInput, _layer: usize, out: &str) {
    let [k, v] = [keys, values].map(|cross| match cross.scale {
        Some(_) => in_f32(b, &cross.values),
        None => cross.values.clone(),
    });

    let heads = b.config().decoder_attention_heads;
    if b.for_gpu() {
        b.graph.attention([query, &k, &v], heads, out);
    } else {
        b.graph.contrib("MultiHeadAttention", &[query, &k, &v], &[out]).int("num_heads", heads as i64);
    }
}

fn in_f32(b: &mut GraphBuilder<'_, '_>, x: &str) -> String {
    let wide = format!("{x}_f32");
    b.graph.op("Cast", &[x], &[&wide]).int("to", ElementType::F32.onnx());
    wide
}
