//! A finished row of tokens, without a cache -> where each token listened: the softmax of the alignment heads.

use crate::onnx::Element;

use super::Precision;
use super::builder::{Builder, Result};
use super::decoder::{self, Cross};

pub fn build(mut b: Builder<'_, '_>) -> Result<Vec<u8>> {
    let config = b.config();
    let alignment = b.alignment_heads();
    let deepest = alignment.iter().map(|[layer, _]| *layer).max().unwrap_or_default();
    let (heads, width) = (config.decoder_attention_heads, config.head_width());
    decoder::inputs(&mut b);
    b.graph.constant_i64("split_heads", &[4], &[0, 0, heads as i64, width as i64]);
    b.graph.constant_f32("scale", &[], &[(width as f32).powf(-0.5)]);
    let (mut x, mut norm) = decoder::embed(&mut b)?;
    let mut weights = Vec::new();
    for i in 0..=deepest {
        let [qkv, q, k, v, heard] = ["qkv", "q", "k", "v", "heard"].map(|n| format!("{n}_{i}"));
        decoder::self_projection(&mut b, &norm, i, &qkv)?;
        b.graph.op("Split", &[&qkv], &[&q, &k, &v]).int("axis", 2).int("num_outputs", 3);
        b.graph
            .contrib("MultiHeadAttention", &[&q, &k, &v], &[&heard])
            .int("num_heads", heads as i64)
            .int("unidirectional", 1);
        (x, norm) = decoder::after_self_attention(&mut b, &x, &heard, i)?;
        let query = decoder::cross_query(&mut b, &norm, i)?;
        let chosen: Vec<i64> = alignment.iter().filter(|[l, _]| *l == i).map(|[_, head]| *head as i64).collect();
        let keys = if i == deepest {
            decoder::cross_input(&mut b, "k", i)
        } else {
            (x, norm) = decoder::cross_attention(&mut b, attend, &x, &query, i)?;
            Cross::named(&b, "k", i)
        };
        if !chosen.is_empty() {
            weights.push(attention_weights(&mut b, query, &keys, i, &chosen));
        }
    }
    let shape = ["B".into(), alignment.len().into(), "S".into(), config.max_source_positions.into()];
    b.graph.output("weights", Element::F32, &shape);
    let all: Vec<&str> = weights.iter().map(String::as_str).collect();
    b.graph.op("Concat", &all, &["weights"]).int("axis", 1);
    Ok(b.graph.finish())
}

/// Softmax of query and keys of some heads, in f32.
fn attention_weights(b: &mut Builder<'_, '_>, query: String, keys: &Cross, layer: usize, heads: &[i64]) -> String {
    let named = |n: &str| format!("{n}_{layer}");
    let [rows, turned, q, k, columns, product, scaled, out] =
        ["a_rows", "a_turned", "a_q", "a_k", "a_columns", "a_product", "a_scaled", "a_weights"].map(named);
    let chosen = named("alignment_heads");
    b.graph.constant_i64(&chosen, &[heads.len()], heads);
    let query = decoder::scaled(b, query, keys);
    b.graph.op("Reshape", &[&query, "split_heads"], &[&rows]);
    b.graph.op("Transpose", &[&rows], &[&turned]).ints("perm", &[0, 2, 1, 3]);
    b.graph.op("Gather", &[&turned, &chosen], &[&q]).int("axis", 1);
    b.graph.op("Gather", &[&keys.values, &chosen], &[&k]).int("axis", 1);
    b.graph.op("Transpose", &[&k], &[&columns]).ints("perm", &[0, 1, 3, 2]);
    let factors =
        if b.precision == Precision::Fp32 { [q, columns] } else { [q, columns].map(|factor| in_f32(b, &factor)) };
    b.graph.op("MatMul", &[&factors[0], &factors[1]], &[&product]);
    b.graph.op("Mul", &[&product, "scale"], &[&scaled]);
    b.graph.op("Softmax", &[&scaled], &[&out]).int("axis", -1);
    out
}

/// [`decoder::cross_attention`]'s attention where speed does not matter: bytes become numbers first.
fn attend(b: &mut Builder<'_, '_>, query: &str, keys: &Cross, values: &Cross, _layer: usize, out: &str) {
    let [k, v] = [keys, values].map(|cross| match cross.scale {
        Some(_) => in_f32(b, &cross.values),
        None => cross.values.clone(),
    });
    let heads = b.config().decoder_attention_heads as i64;
    b.graph.contrib("MultiHeadAttention", &[query, &k, &v], &[out]).int("num_heads", heads);
}

fn in_f32(b: &mut Builder<'_, '_>, x: &str) -> String {
    let wide = format!("{x}_f32");
    b.graph.op("Cast", &[x], &[&wide]).int("to", Element::F32.onnx());
    wide
}
