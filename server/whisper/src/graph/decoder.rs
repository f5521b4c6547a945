//! Tokens -> logits of the last position. One graph for the prompt and for each step.

use crate::onnx::ElementType;

use super::Precision;
use super::builder::{GraphBuilder, PackedProjections, ProjectionKind, Result, VOCABULARY_NORM};
use super::choice;

pub fn build(mut b: GraphBuilder<'_, '_>) -> Result<Vec<u8>> {
    let config = b.config();
    let layers = config.decoder_layers;

    inputs(&mut b);
    if b.for_gpu() {
        choice::inputs(&mut b);
    }

    b.graph.input("seqlens_k", ElementType::I32, &["B".into()]);
    b.graph.input("total_sequence_length", ElementType::I32, &[]);
    b.graph.input(LAST_FRAME, ElementType::I32, &["W".into()]);

    let (mut x, mut norm) = embed(&mut b)?;
    for layer in 0..layers {
        let attended = cached_self_attention(&mut b, &norm, layer)?;
        (x, norm) = after_self_attention(&mut b, &x, &attended, layer)?;
        let query = cross_query(&mut b, &norm, layer)?;
        (x, norm) = cross_attention(&mut b, attend, &x, &query, layer)?;
    }

    for layer in 0..layers {
        cache_outputs(&mut b, layer);
    }

    b.graph.constant_i64("last", &[], &[-1]);
    b.graph.op("Gather", &[&norm, "last"], &["last_hidden"]).int("axis", 1);
    b.graph.output("logits", ElementType::F32, &["B".into(), config.vocab_size.into()]);

    if b.real() == ElementType::F32 {
        b.vocabulary("last_hidden", "logits")?;
    } else {
        b.vocabulary("last_hidden", "logits_real")?;
        b.graph.op("Cast", &["logits_real"], &["logits"]).int("to", ElementType::F32.onnx());
    }

    if b.for_gpu() {
        choice::outputs(&mut b)?;
    }

    Ok(b.graph.finish())
}

/// The self-attention of a layer, over the keys and values in its cache.
fn cached_self_attention(b: &mut GraphBuilder<'_, '_>, norm: &str, layer: usize) -> Result<String> {
    let config = b.config();
    let heads = config.decoder_attention_heads;
    let cache = ["B".into(), heads.into(), "T".into(), config.head_width().into()];
    let [qkv, attended] = ["qkv", "heard"].map(|n| format!("{n}_{layer}"));
    let [past_k, past_v] = ["k", "v"].map(|kind| format!("self_{kind}_{layer}"));
    let [now_k, now_v] = ["k", "v"].map(|kind| format!("present_{kind}_{layer}"));

    for name in [&past_k, &past_v] {
        b.graph.input(name, b.real(), &cache);
    }

    self_projection(b, norm, layer, &qkv)?;
    b.graph
        .contrib(
            "GroupQueryAttention",
            &[&qkv, "", "", &past_k, &past_v, "seqlens_k", "total_sequence_length"],
            &[&attended, &now_k, &now_v],
        )
        .int("num_heads", heads as i64)
        .int("kv_num_heads", heads as i64);

    Ok(attended)
}

/// The outputs for a layer's caches.
fn cache_outputs(b: &mut GraphBuilder<'_, '_>, layer: usize) {
    let config = b.config();
    let (heads, width) = (config.decoder_attention_heads, config.head_width());

    for kind in ["k", "v"] {
        let cache = ["B".into(), heads.into(), "T".into(), width.into()];
        b.graph.output(&format!("present_{kind}_{layer}"), b.real(), &cache);

        if !b.for_gpu() {
            let shape = ["W".into(), heads.into(), "E".into(), width.into()];
            b.graph.output(&format!("present_cross_{kind}_{layer}"), cross_element(b), &shape);
        }
    }
}

/// How the decoder's projections are stored.
fn projection_kind(b: &GraphBuilder<'_, '_>) -> ProjectionKind {
    if b.precision == Precision::Int8 { ProjectionKind::Blocks } else { ProjectionKind::Dense }
}

pub fn inputs(b: &mut GraphBuilder<'_, '_>) {
    for name in ["input_ids", "position_ids"] {
        b.graph.input(name, ElementType::I32, &["B".into(), "S".into()]);
    }

    if b.for_gpu() {
        for name in SHAPES {
            b.graph.input(name, ElementType::I64, &[3.into()]);
        }
    }
}

/// Input of the decoder: the last frame of each window, i32 `[W]`. The keys and values after it are not read, so that
/// windows of different lengths share a call.
pub const LAST_FRAME: &str = "cross_last_frame";

/// The type of the cross-attention's keys and values.
fn cross_element(b: &GraphBuilder<'_, '_>) -> ElementType {
    if b.precision == Precision::Int8 { ElementType::I8 } else { b.real() }
}

/// Inputs of graphs for a GPU, in the host's memory: `[W, (B / W) S, D]` and `[B, S, D]`.
pub const SHAPES: [&str; 2] = ["by_window", "by_row"];

/// Keys or values of the cross-attention, as names of inputs.
pub struct CrossInput {
    pub values: String,
    /// The scale for [`Precision::Int8`]: one per window and channel, `[W, 1, D]`.
    pub scale: Option<String>,
}

impl CrossInput {
    /// The inputs that [`add_cross_input`] adds.
    pub fn named(b: &GraphBuilder<'_, '_>, kind: &str, layer: usize) -> Self {
        let scale = (b.precision == Precision::Int8).then(|| format!("cross_{kind}_scale_{layer}"));
        Self { values: format!("cross_{kind}_{layer}"), scale }
    }
}

/// Adds the inputs `cross_{kind}_{layer}` and, for 8 bits, `cross_{kind}_scale_{layer}`.
pub fn add_cross_input(b: &mut GraphBuilder<'_, '_>, kind: &str, layer: usize) -> CrossInput {
    let config = b.config();
    let by_head = ["W".into(), config.decoder_attention_heads.into(), "E".into(), config.head_width().into()];
    let by_frame = ["W".into(), "E".into(), config.d_model.into()];
    let shape = if b.for_gpu() { &by_frame[..] } else { &by_head[..] };
    let cross = CrossInput::named(b, kind, layer);

    b.graph.input(&cross.values, cross_element(b), shape);
    if let Some(scale) = &cross.scale {
        b.graph.input(scale, ElementType::F32, &["W".into(), 1.into(), config.d_model.into()]);
    }

    cross
}

/// Embedding and position; returns the sum and its first norm.
pub fn embed(b: &mut GraphBuilder<'_, '_>) -> Result<(String, String)> {
    b.embed("input_ids", "token")?;
    let positions = b.plain("decoder.embed_positions.weight")?;
    b.graph.op("Gather", &[&positions, "position_ids"], &["position"]).int("axis", 0);
    b.graph.op("Add", &["token", "position"], &["x_0"]);
    b.layer_norm("x_0", "decoder.layers.0.self_attn_layer_norm", "norm_0")?;
    Ok(("x_0".to_owned(), "norm_0".to_owned()))
}

/// Query, key and value projections of the self-attention, side by side.
pub fn self_projection(b: &mut GraphBuilder<'_, '_>, norm: &str, layer: usize, out: &str) -> Result<()> {
    let name = format!("decoder.layers.{layer}.self_attn.qkv");
    let [q, k, v] = ["q", "k", "v"].map(|kind| format!("decoder.layers.{layer}.self_attn.{kind}_proj"));

    b.linear(
        projection_kind(b),
        norm,
        &PackedProjections { name, parts: &[(&q, true), (&k, false), (&v, true)] },
        true,
        out,
    )
}

/// Output projection of the self-attention, residual, norm; returns the sum and its norm.
pub fn after_self_attention(
    b: &mut GraphBuilder<'_, '_>,
    x: &str,
    attended: &str,
    layer: usize,
) -> Result<(String, String)> {
    let name = format!("decoder.layers.{layer}.self_attn.out_proj");
    let norm = format!("decoder.layers.{layer}.encoder_attn_layer_norm");
    let [o, sum, out] = ["o", "self", "self_norm"].map(|n| format!("{n}_{layer}"));

    b.one(projection_kind(b), attended, &name, false, &o)?;
    b.add_norm([x, &o], &format!("{name}.bias"), &norm, &out, &sum)?;
    Ok((sum, out))
}

pub fn cross_query(b: &mut GraphBuilder<'_, '_>, norm: &str, layer: usize) -> Result<String> {
    let (name, out) = (format!("decoder.layers.{layer}.encoder_attn.q_proj"), format!("cross_q_{layer}"));
    b.one(projection_kind(b), norm, &name, true, &out)?;
    Ok(out)
}

/// Adds the attention of a layer's query to a window: [`attend`], or another implementation with the same result.
pub type AttendFn =
    fn(&mut GraphBuilder<'_, '_>, query: &str, keys: &CrossInput, values: &CrossInput, layer: usize, out: &str);

/// The cross-attention and the layers after it; returns the sum and its norm, which is the first of the next layer. The
/// rows of one window are joined to one sequence, so that a window's keys and values are read once for all of them.
pub fn cross_attention(
    b: &mut GraphBuilder<'_, '_>,
    attend: AttendFn,
    x: &str,
    query: &str,
    layer: usize,
) -> Result<(String, String)> {
    let config = b.config();
    let d = config.d_model as i64;
    let [keys, values] = ["k", "v"].map(|kind| add_cross_input(b, kind, layer));

    if layer == 0 && !b.for_gpu() {
        b.graph.constant_i64("group_tail", &[2], &[-1, d]);
        b.graph.constant_i64("row_tail", &[1], &[d]);
        b.graph.op("Shape", &[&keys.values], &["windows"]).int("start", 0).int("end", 1);
        b.graph.op("Concat", &["windows", "group_tail"], &["by_window"]).int("axis", 0);
        b.graph.op("Shape", &["input_ids"], &["rows"]);
        b.graph.op("Concat", &["rows", "row_tail"], &["by_row"]).int("axis", 0);
    }

    let [grouped, attended, split, o] = ["grouped", "cross", "cross_rows", "cross_o"].map(|n| format!("{n}_{layer}"));

    // For a GPU the host passes the shapes: computing them in the graph would involve the CPU in each step.
    b.graph.op("Reshape", &[query, "by_window"], &[&grouped]);
    let grouped = scaled(b, grouped, &keys);
    attend(b, &grouped, &keys, &values, layer, &attended);
    let attended = scaled(b, attended, &values);
    b.graph.op("Reshape", &[&attended, "by_row"], &[&split]);

    let name = format!("decoder.layers.{layer}");
    let out_proj = format!("{name}.encoder_attn.out_proj");
    let [mid, mid_norm, mlp] = ["mid", "mid_norm", "mlp"].map(|n| format!("{n}_{layer}"));

    b.one(projection_kind(b), &split, &out_proj, false, &o)?;
    b.add_norm([x, &o], &format!("{out_proj}.bias"), &format!("{name}.final_layer_norm"), &mid_norm, &mid)?;
    b.mlp(projection_kind(b), &mid_norm, &name, false, &mlp)?;

    let is_last = layer + 1 == config.decoder_layers;
    let following =
        if is_last { VOCABULARY_NORM.to_owned() } else { format!("decoder.layers.{}.self_attn_layer_norm", layer + 1) };

    let next_norm = format!("norm_{}", layer + 1);
    let next = if is_last { String::new() } else { format!("x_{}", layer + 1) };

    b.add_norm([&mid, &mlp], &format!("{name}.fc2.bias"), &following, &next_norm, &next)?;

    Ok((next, next_norm))
}

/// `x` times the scale of `cross`, if it has one. The scale of the keys can be applied to the query, and that of the values
/// to the result, so that the attention itself works on the bytes as if they were the values.
pub fn scaled(b: &mut GraphBuilder<'_, '_>, x: String, cross: &CrossInput) -> String {
    let Some(scale) = &cross.scale else { return x };
    let out = format!("{x}_scaled");
    b.graph.op("Mul", &[&x, scale], &[&out]);
    out
}

/// Attention over a window.
fn attend(b: &mut GraphBuilder<'_, '_>, query: &str, keys: &CrossInput, values: &CrossInput, layer: usize, out: &str) {
    let heads = b.config().decoder_attention_heads as i64;
    if b.for_gpu() {
        if layer == 0 {
            b.graph.constant_i64("one_position", &[1], &[1]);
            b.graph.op("Cast", &[LAST_FRAME], &["last_position"]).int("to", ElementType::I64.onnx());
            b.graph.op("Add", &["last_position", "one_position"], &["window_positions"]);
        }
        b.graph.attention_over([query, &keys.values, &values.values], "window_positions", heads as usize, out);
        return;
    }

    // This operator is the only one that reads keys and values in bytes, and as many of each window as it has. It is given a
    // full cache to which nothing is added.
    let d = b.config().d_model;
    if layer == 0 {
        b.graph.constant_i64("nothing_tail", &[2], &[0, d as i64]);
        b.graph.op("Concat", &["windows", "nothing_tail"], &["nothing_shape"]).int("axis", 0);
        b.graph.op("ConstantOfShape", &["nothing_shape"], &["nothing"]);

        // With the query announced as the first one, the operator accepts several windows with several positions each.
        b.graph.constant_i64("no_dimensions", &[0], &[]);
        b.graph.op("Shape", &[query], &["query_length"]).int("start", 1).int("end", 2);
        b.graph.op("Reshape", &["query_length", "no_dimensions"], &["query_positions"]);
        b.graph.op("Cast", &["query_positions"], &["announced"]).int("to", ElementType::I32.onnx());
        b.graph.constant_f32("one", &[1], &[1.0]);
    }

    let unchanged = ["k", "v"].map(|kind| format!("present_cross_{kind}_{layer}"));
    let inputs = [
        query,
        "nothing",
        "nothing",
        &keys.values,
        &values.values,
        LAST_FRAME,
        "announced",
        "",
        "",
        "",
        "",
        "",
        "one",
        "one",
    ];

    let is_bytes = keys.scale.is_some();
    let inputs = if is_bytes { &inputs[..] } else { &inputs[..7] };
    let attention = b
        .graph
        .contrib("GroupQueryAttention", inputs, &[out, &unchanged[0], &unchanged[1]])
        .int("num_heads", heads)
        .int("kv_num_heads", heads)
        .int("causal", 0);

    if is_bytes {
        attention.int("kv_cache_bit_width", 8).text("k_quant_type", "PER_TENSOR").text("v_quant_type", "PER_TENSOR");
    }
}
