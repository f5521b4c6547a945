//! Tokens -> logits of the last position. One graph for the prompt and for each step.

use crate::onnx::Element;

use super::Precision;
use super::builder::{Builder, Matrix, Packed, Result};
use super::choice;

pub fn build(mut b: Builder<'_, '_>) -> Result<Vec<u8>> {
    let config = b.config();
    let (heads, width, vocab, layers) =
        (config.decoder_attention_heads, config.head_width(), config.vocab_size, config.decoder_layers);
    let real = b.real();

    inputs(&mut b);
    if b.for_gpu() {
        choice::inputs(&mut b);
    }

    b.graph.input("seqlens_k", Element::I32, &["B".into()]);
    b.graph.input("total_sequence_length", Element::I32, &[]);
    let (mut x, mut norm) = embed(&mut b)?;

    for i in 0..layers {
        let cache = ["B".into(), heads.into(), "T".into(), width.into()];
        let [qkv, heard] = ["qkv", "heard"].map(|n| format!("{n}_{i}"));
        let [past_k, past_v] = ["k", "v"].map(|kind| format!("self_{kind}_{i}"));
        let [now_k, now_v] = ["k", "v"].map(|kind| format!("present_{kind}_{i}"));

        for name in [&past_k, &past_v] {
            b.graph.input(name, real, &cache);
        }

        self_projection(&mut b, &norm, i, &qkv)?;
        b.graph
            .contrib(
                "GroupQueryAttention",
                &[&qkv, "", "", &past_k, &past_v, "seqlens_k", "total_sequence_length"],
                &[&heard, &now_k, &now_v],
            )
            .int("num_heads", heads as i64)
            .int("kv_num_heads", heads as i64);

        (x, norm) = after_self_attention(&mut b, &x, &heard, i)?;
        let query = cross_query(&mut b, &norm, i)?;
        (x, norm) = cross_attention(&mut b, attend, &x, &query, i)?;
    }

    for i in 0..layers {
        for kind in ["k", "v"] {
            let cache = ["B".into(), heads.into(), "T".into(), width.into()];
            b.graph.output(&format!("present_{kind}_{i}"), real, &cache);

            if b.precision == Precision::Int8 {
                let shape = ["W".into(), heads.into(), config.max_source_positions.into(), width.into()];
                b.graph.output(&format!("present_cross_{kind}_{i}"), Element::I8, &shape);
            }
        }
    }

    b.graph.constant_i64("last", &[], &[-1]);
    b.graph.op("Gather", &[&norm, "last"], &["last_hidden"]).int("axis", 1);
    b.graph.output("logits", Element::F32, &["B".into(), vocab.into()]);

    if real == Element::F32 {
        b.vocabulary("last_hidden", "logits")?;
    } else {
        b.vocabulary("last_hidden", "logits_real")?;
        b.graph.op("Cast", &["logits_real"], &["logits"]).int("to", Element::F32.onnx());
    }

    if b.for_gpu() {
        choice::outputs(&mut b)?;
    }

    Ok(b.graph.finish())
}

/// How the decoder's projections are stored.
fn how(b: &Builder<'_, '_>) -> Matrix {
    if b.precision == Precision::Int8 { Matrix::Blocks } else { Matrix::Dense }
}

pub fn inputs(b: &mut Builder<'_, '_>) {
    for name in ["input_ids", "position_ids"] {
        b.graph.input(name, Element::I32, &["B".into(), "S".into()]);
    }

    if b.for_gpu() {
        for name in SHAPES {
            b.graph.input(name, Element::I64, &[3.into()]);
        }
    }
}

/// Inputs of graphs for a GPU, on the host: `[W, (B / W) S, D]` and `[B, S, D]`.
pub const SHAPES: [&str; 2] = ["by_window", "by_row"];

/// Keys or values of the cross-attention, as inputs.
pub struct Cross {
    pub values: String,
    /// Of [`Precision::Int8`]: one per window and channel, `[W, 1, D]`.
    pub scale: Option<String>,
}

impl Cross {
    /// The inputs that [`cross_input`] adds.
    pub fn named(b: &Builder<'_, '_>, kind: &str, layer: usize) -> Self {
        let scale = (b.precision == Precision::Int8).then(|| format!("cross_{kind}_scale_{layer}"));
        Self { values: format!("cross_{kind}_{layer}"), scale }
    }
}

/// Inputs `cross_{kind}_{layer}` and, in 8 bits, `cross_{kind}_scale_{layer}`.
pub fn cross_input(b: &mut Builder<'_, '_>, kind: &str, layer: usize) -> Cross {
    let config = b.config();
    let frames = config.max_source_positions;
    let by_head = ["W".into(), config.decoder_attention_heads.into(), frames.into(), config.head_width().into()];
    let by_frame = ["W".into(), frames.into(), config.d_model.into()];
    let shape = if b.for_gpu() { &by_frame[..] } else { &by_head[..] };
    let cross = Cross::named(b, kind, layer);
    b.graph.input(&cross.values, if cross.scale.is_some() { Element::I8 } else { b.real() }, shape);
    if let Some(scale) = &cross.scale {
        b.graph.input(scale, Element::F32, &["W".into(), 1.into(), config.d_model.into()]);
    }

    cross
}

/// Embedding and position; returns the sum and its first norm.
pub fn embed(b: &mut Builder<'_, '_>) -> Result<(String, String)> {
    b.embed("input_ids", "token")?;
    let positions = b.plain("decoder.embed_positions.weight")?;
    b.graph.op("Gather", &[&positions, "position_ids"], &["position"]).int("axis", 0);
    b.graph.op("Add", &["token", "position"], &["x_0"]);
    b.layer_norm("x_0", "decoder.layers.0.self_attn_layer_norm", "norm_0")?;
    Ok(("x_0".to_owned(), "norm_0".to_owned()))
}

/// Query, key and value of the self-attention side by side.
pub fn self_projection(b: &mut Builder<'_, '_>, norm: &str, layer: usize, out: &str) -> Result<()> {
    let name = format!("decoder.layers.{layer}.self_attn.qkv");
    let [q, k, v] = ["q", "k", "v"].map(|kind| format!("decoder.layers.{layer}.self_attn.{kind}_proj"));
    b.linear(how(b), norm, &Packed { name, parts: &[(&q, true), (&k, false), (&v, true)] }, true, out)
}

/// Output projection of the self-attention, residual, norm; returns the sum and its norm.
pub fn after_self_attention(b: &mut Builder<'_, '_>, x: &str, heard: &str, layer: usize) -> Result<(String, String)> {
    let name = format!("decoder.layers.{layer}.self_attn.out_proj");
    let norm = format!("decoder.layers.{layer}.encoder_attn_layer_norm");
    let [o, sum, out] = ["o", "self", "self_norm"].map(|n| format!("{n}_{layer}"));
    b.one(how(b), heard, &name, false, &o)?;
    b.add_norm([x, &o], &format!("{name}.bias"), &norm, &out, &sum)?;
    Ok((sum, out))
}

pub fn cross_query(b: &mut Builder<'_, '_>, norm: &str, layer: usize) -> Result<String> {
    let (name, out) = (format!("decoder.layers.{layer}.encoder_attn.q_proj"), format!("cross_q_{layer}"));
    b.one(how(b), norm, &name, true, &out)?;
    Ok(out)
}

/// What hears with the query of a layer: [`attend`], or something of the same result.
pub type Attend = fn(&mut Builder<'_, '_>, query: &str, keys: &Cross, values: &Cross, layer: usize, out: &str);

/// The cross-attention and the layers behind it; returns the sum and its norm, which is the next layer's first. The rows
/// of one window stand behind each other as one sequence, so a window's keys and values are read once for all of them.
pub fn cross_attention(
    b: &mut Builder<'_, '_>,
    attend: Attend,
    x: &str,
    query: &str,
    layer: usize,
) -> Result<(String, String)> {
    let config = b.config();
    let d = config.d_model as i64;
    let [keys, values] = ["k", "v"].map(|kind| cross_input(b, kind, layer));
    if layer == 0 && !b.for_gpu() {
        b.graph.constant_i64("group_tail", &[2], &[-1, d]);
        b.graph.constant_i64("row_tail", &[1], &[d]);
        b.graph.op("Shape", &[&keys.values], &["windows"]).int("start", 0).int("end", 1);
        b.graph.op("Concat", &["windows", "group_tail"], &["by_window"]).int("axis", 0);
        b.graph.op("Shape", &["input_ids"], &["rows"]);
        b.graph.op("Concat", &["rows", "row_tail"], &["by_row"]).int("axis", 0);
    }
    let [grouped, heard, split, o] = ["grouped", "cross", "cross_rows", "cross_o"].map(|n| format!("{n}_{layer}"));
    // For a GPU the host says the shapes: to compute them in the graph would take the CPU into each step.
    b.graph.op("Reshape", &[query, "by_window"], &[&grouped]);
    let grouped = scaled(b, grouped, &keys);
    attend(b, &grouped, &keys, &values, layer, &heard);
    let heard = scaled(b, heard, &values);
    b.graph.op("Reshape", &[&heard, "by_row"], &[&split]);

    let name = format!("decoder.layers.{layer}");
    let out_proj = format!("{name}.encoder_attn.out_proj");
    let [mid, mid_norm, mlp] = ["mid", "mid_norm", "mlp"].map(|n| format!("{n}_{layer}"));
    b.one(how(b), &split, &out_proj, false, &o)?;
    b.add_norm([x, &o], &format!("{out_proj}.bias"), &format!("{name}.final_layer_norm"), &mid_norm, &mid)?;
    b.mlp(how(b), &mid_norm, &name, false, &mlp)?;
    let last = layer + 1 == config.decoder_layers;
    let following = if last {
        "decoder.layer_norm".to_owned()
    } else {
        format!("decoder.layers.{}.self_attn_layer_norm", layer + 1)
    };
    let (next_norm, next) =
        (format!("norm_{}", layer + 1), if last { String::new() } else { format!("x_{}", layer + 1) });
    b.add_norm([&mid, &mlp], &format!("{name}.fc2.bias"), &following, &next_norm, &next)?;
    Ok((next, next_norm))
}

/// `x` times the scale of `cross`, if it has one: a key's scale may as well be the query's, and a value's the result's,
/// so the attention itself works on bytes as if they were the numbers.
pub fn scaled(b: &mut Builder<'_, '_>, x: String, cross: &Cross) -> String {
    let Some(scale) = &cross.scale else { return x };
    let out = format!("{x}_scaled");
    b.graph.op("Mul", &[&x, scale], &[&out]);
    out
}

/// Attention over a window.
fn attend(b: &mut Builder<'_, '_>, query: &str, keys: &Cross, values: &Cross, layer: usize, out: &str) {
    let heads = b.config().decoder_attention_heads as i64;
    if b.for_gpu() {
        b.graph.attention([query, &keys.values, &values.values], heads as usize, out);
        return;
    }

    if keys.scale.is_none() {
        b.graph.contrib("MultiHeadAttention", &[query, &keys.values, &values.values], &[out]).int("num_heads", heads);
        return;
    }

    // Of all operators only this one reads keys and values in bytes: as a full cache to which nothing is added.
    let (frames, d) = (b.config().max_source_positions, b.config().d_model);

    if layer == 0 {
        b.graph.constant_i64("nothing_tail", &[2], &[0, d as i64]);
        b.graph.op("Concat", &["windows", "nothing_tail"], &["nothing_shape"]).int("axis", 0);
        b.graph.op("ConstantOfShape", &["nothing_shape"], &["nothing"]);
        b.graph.constant_i32("last_frame", &[1], &[frames as i32 - 1]);
        b.graph.op("Expand", &["last_frame", "windows"], &["last_frames"]);

        // Told that the query is the first of all, it takes several windows with several positions each.
        b.graph.constant_i64("no_dimensions", &[0], &[]);
        b.graph.op("Shape", &[query], &["query_length"]).int("start", 1).int("end", 2);
        b.graph.op("Reshape", &["query_length", "no_dimensions"], &["query_positions"]);
        b.graph.op("Cast", &["query_positions"], &["announced"]).int("to", Element::I32.onnx());
        b.graph.constant_f32("one", &[1], &[1.0]);
    }

    let kept = ["k", "v"].map(|kind| format!("present_cross_{kind}_{layer}"));
    let inputs = [
        query,
        "nothing",
        "nothing",
        &keys.values,
        &values.values,
        "last_frames",
        "announced",
        "",
        "",
        "",
        "",
        "",
        "one",
        "one",
    ];

    b.graph
        .contrib("GroupQueryAttention", &inputs, &[out, &kept[0], &kept[1]])
        .int("num_heads", heads)
        .int("kv_num_heads", heads)
        .int("causal", 0)
        .int("kv_cache_bit_width", 8)
        .text("k_quant_type", "PER_TENSOR")
        .text("v_quant_type", "PER_TENSOR");
}
