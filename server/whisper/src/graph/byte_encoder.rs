//! The encoder in int8: products of bytes, and between them operators of Hush's own ([`crate::operators`]).
//!
//! An activation is written once between two products, in bytes with one scale for each frame. A product is not multiplied by
//! the scales of its rows; the operator that reads it does so.

use crate::{
    kernels::{
        ROW_ZERO,
        rows::{GELU_STEP, GELU_ZERO},
    },
    onnx::ElementType,
};

use super::{
    builder::{ByteActivation, GraphBuilder, PackedProjections, Result},
    encoder::{FIRST_NORM, add_positions, hidden_output, mel_convolution, norm_after},
};

pub fn build(mut b: GraphBuilder<'_, '_>) -> Result<Vec<u8>> {
    constants(&mut b);
    let (mut x, mut norm) = embed(&mut b)?;

    for i in 0..b.config().encoder_layers {
        let (sum, product) = self_attention(&mut b, &x, &norm, i)?;
        (x, norm) = mlp(&mut b, &sum, &product, i)?;
    }

    // The last norm is an output of the graph.
    let last = b.config().encoder_layers.saturating_sub(1);
    b.layer_norm(&x, &norm_after(&b, last), "last_norm")?;
    hidden_output(&mut b, "last_norm");
    cross_outputs(&mut b, &norm)?;

    Ok(b.graph.finish())
}

fn constants(b: &mut GraphBuilder<'_, '_>) {
    b.graph.constant_f32("row_step", &[], &[1.0]);
    b.graph.constant_u8("row_zero", &[], &[ROW_ZERO]);
    b.graph.constant_f32("gelu_step", &[], &[GELU_STEP]);
    b.graph.constant_u8("gelu_zero", &[], &[GELU_ZERO]);
}

/// Bytes of `name` with the scales of its rows, which an operator writes as `name` and `{name}_scale`.
fn rows(name: &str, divisors: Vec<f32>) -> ByteActivation {
    ByteActivation {
        bytes: name.to_owned(),
        row_scale: format!("{name}_scale"),
        step: "row_step".to_owned(),
        zero: "row_zero".to_owned(),
        divisors,
    }
}

/// The GELU of `product + bias` in bytes. `product` is not yet multiplied by `row_scale`, if there is one.
fn gelu(b: &mut GraphBuilder<'_, '_>, inputs: &[&str], [taps, stride]: [i64; 2], out: &str) -> ByteActivation {
    let range = format!("{out}_range");
    b.graph.own("GeluRows", inputs, &[out, &range]).int("taps", taps).int("stride", stride);

    ByteActivation {
        bytes: out.to_owned(),
        row_scale: range,
        step: "gelu_step".to_owned(),
        zero: "gelu_zero".to_owned(),
        divisors: Vec::new(),
    }
}

/// Convolutions and positions; returns the sum and its first norm.
fn embed(b: &mut GraphBuilder<'_, '_>) -> Result<(String, ByteActivation)> {
    mel_convolution(b, "conv1_product")?;
    let bias = b.plain("encoder.conv1.bias")?;
    let frames = gelu(b, &["conv1_product", &bias], [3, 2], "conv1");

    let bias = b.byte_convolution(&frames, "encoder.conv2", "conv2_product")?;
    b.graph.op("Mul", &["conv2_product", &frames.row_scale], &["conv2_scaled"]);
    b.graph.contrib("FastGelu", &["conv2_scaled", &bias], &["conv2"]);
    add_positions(b, "conv2", "x_0")?;

    let ([gain, bias], divisors) = b.balanced_norm_parameters(FIRST_NORM)?;
    let norm = rows("norm_0", divisors);
    b.graph.own("NormRows", &["x_0", &gain, &bias], &[&norm.bytes, &norm.row_scale]);

    Ok(("x_0".to_owned(), norm))
}

/// Adds a product, not yet multiplied by its row scale, to `x`; returns the sum and its norm.
fn add_norm(
    b: &mut GraphBuilder<'_, '_>,
    x: &str,
    [product, row_scale, bias]: [&str; 3],
    norm: &str,
    [sum, out]: [&str; 2],
) -> Result<ByteActivation> {
    let ([gain, shift], divisors) = b.balanced_norm_parameters(norm)?;
    let out = rows(out, divisors);
    let inputs = [x, product, row_scale, bias, &gain, &shift];
    b.graph.own("AddNormRows", &inputs, &[sum, &out.bytes, &out.row_scale]);

    Ok(out)
}

/// The self-attention of a layer; returns the sum after it and its norm.
fn self_attention(
    b: &mut GraphBuilder<'_, '_>,
    x: &str,
    norm: &ByteActivation,
    i: usize,
) -> Result<(String, ByteActivation)> {
    let name = format!("encoder.layers.{i}");
    let [qkv, heard, o, mid, mid_norm] = ["qkv", "heard", "o", "mid", "mid_norm"].map(|n| format!("{n}_{i}"));
    let [q, k, v] = ["q", "k", "v"].map(|kind| format!("{name}.self_attn.{kind}_proj"));
    let packed =
        PackedProjections { name: format!("{name}.self_attn.qkv"), parts: &[(&q, true), (&k, false), (&v, true)] };

    let bias = b.byte_product(norm, &packed, &qkv)?;
    let heard = rows(&heard, Vec::new());
    let heads = b.config().encoder_attention_heads as i64;
    b.graph.own("Attention", &[&qkv, &norm.row_scale, &bias], &[&heard.bytes, &heard.row_scale]).int("heads", heads);

    let bias = product(b, &heard, &format!("{name}.self_attn.out_proj"), &o)?;
    let following = format!("{name}.final_layer_norm");
    let normalised = add_norm(b, x, [&o, &heard.row_scale, &bias], &following, [&mid, &mid_norm])?;

    Ok((mid, normalised))
}

/// The two layers after the attention; returns the sum after them and its norm.
fn mlp(b: &mut GraphBuilder<'_, '_>, x: &str, norm: &ByteActivation, i: usize) -> Result<(String, ByteActivation)> {
    let name = format!("encoder.layers.{i}");
    let [first, active, second] = ["fc1", "gelu", "fc2"].map(|n| format!("{n}_{i}"));
    let [sum, out] = ["x", "norm"].map(|n| format!("{n}_{}", i + 1));

    let bias = product(b, norm, &format!("{name}.fc1"), &first)?;
    let active = gelu(b, &[&first, &bias, &norm.row_scale], [1, 1], &active);
    let bias = product(b, &active, &format!("{name}.fc2"), &second)?;
    let following = norm_after(b, i);
    let normalised = add_norm(b, x, [&second, &active.row_scale, &bias], &following, [&sum, &out])?;

    Ok((sum, normalised))
}

/// A single projection; returns the name of its bias.
fn product(b: &mut GraphBuilder<'_, '_>, x: &ByteActivation, name: &str, out: &str) -> Result<String> {
    b.byte_product(x, &PackedProjections { name: name.to_owned(), parts: &[(name, true)] }, out)
}

/// The cross-attention's keys and values of every decoder layer, in signed bytes with one scale per window and channel.
fn cross_outputs(b: &mut GraphBuilder<'_, '_>, norm: &ByteActivation) -> Result<()> {
    let config = b.config();
    let (heads, width) = (config.decoder_attention_heads, config.head_width());

    for i in 0..config.decoder_layers {
        let name = format!("decoder.layers.{i}.encoder_attn");
        let [k, v] = ["k", "v"].map(|kind| format!("{name}.{kind}_proj"));
        let packed = PackedProjections { name: format!("{name}.kv"), parts: &[(&k, false), (&v, true)] };

        let product = format!("cross_product_{i}");
        let bias = b.byte_product(norm, &packed, &product)?;
        let outputs = ["cross_k", "cross_k_scale", "cross_v", "cross_v_scale"].map(|name| format!("{name}_{i}"));

        for pair in outputs.chunks(2) {
            b.graph.output(&pair[0], ElementType::I8, &["W".into(), heads.into(), "E".into(), width.into()]);
            b.graph.output(&pair[1], ElementType::F32, &["W".into(), 1.into(), config.d_model.into()]);
        }

        b.graph
            .own("CrossBytes", &[&product, &norm.row_scale, &bias], &outputs.each_ref().map(String::as_str))
            .int("heads", heads as i64);
    }

    Ok(())
}
