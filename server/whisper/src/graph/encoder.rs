//! `mel` -> `hidden` and the cross-attention's keys and values of every decoder layer.

use crate::onnx::ElementType;

use super::builder::{GraphBuilder, PackedProjections, ProjectionKind, Result};
use super::{Precision, STEP_POSITIONS};

pub fn build(mut b: GraphBuilder<'_, '_>) -> Result<Vec<u8>> {
    let kind = if b.precision == Precision::Int8 { ProjectionKind::Dynamic } else { ProjectionKind::Dense };
    let (mut x, mut norm) = embed(&mut b, kind)?;

    for i in 0..b.config().encoder_layers {
        (x, norm) = layer(&mut b, kind, [&x, &norm], i)?;
    }

    hidden_output(&mut b, &norm);
    cross_outputs(&mut b, kind, &norm)?;

    Ok(b.graph.finish())
}

/// Convolutions and positions; returns the sum and its first norm.
fn embed(b: &mut GraphBuilder<'_, '_>, kind: ProjectionKind) -> Result<(String, String)> {
    let (config, real) = (b.config(), b.real());
    b.graph.input("mel", ElementType::F32, &["W".into(), config.num_mel_bins.into(), "M".into()]);
    let mut mel = "mel";
    if real != ElementType::F32 {
        b.graph.op("Cast", &["mel"], &["mel_real"]).int("to", real.onnx());
        mel = "mel_real";
    }

    b.graph.op("Transpose", &[mel], &["mel_rows"]).ints("perm", &[0, 2, 1]);
    convolution(b, ProjectionKind::Dense, "mel_rows", "encoder.conv1", 1, "conv1")?;
    convolution(b, kind.after_gelu(), "conv1", "encoder.conv2", 2, "conv2")?;
    let all_positions = b.plain("encoder.embed_positions.weight")?;

    // A short window has the first positions.
    b.graph.constant_i64("first_position", &[1], &[0]);
    b.graph.constant_i64("position_axis", &[1], &[0]);
    b.graph.op("Shape", &["conv2"], &["frames"]).int("start", 1).int("end", 2);
    b.graph.op("Slice", &[&all_positions, "first_position", "frames", "position_axis"], &["positions"]);
    b.graph.op("Add", &["conv2", "positions"], &["x_0"]);
    b.balanced_norm(kind, "x_0", "encoder.layers.0.self_attn_layer_norm", "norm_0")?;

    Ok(("x_0".to_owned(), "norm_0".to_owned()))
}

/// One layer of the encoder; returns the sum and its norm, which is the first of the next layer.
fn layer(
    b: &mut GraphBuilder<'_, '_>,
    kind: ProjectionKind,
    [x, norm]: [&str; 2],
    i: usize,
) -> Result<(String, String)> {
    let layer = format!("encoder.layers.{i}");
    let [attended, o] = ["heard", "o"].map(|n| format!("{n}_{i}"));
    let attention = format!("{layer}.self_attn");
    let projection = format!("{attention}.out_proj");

    // On a GPU the bias is added by the norm that follows.
    let fused = b.for_gpu();
    self_attention(b, kind, norm, &attention, i, &attended)?;
    b.one(kind, &attended, &projection, !fused, &o)?;

    let [mid_norm, mid, mlp] = ["mid_norm", "mid", "mlp"].map(|n| format!("{n}_{i}"));
    let middle = format!("{layer}.final_layer_norm");
    if fused {
        b.add_norm([x, &o], &format!("{projection}.bias"), &middle, &mid_norm, &mid)?;
    } else {
        // In two nodes this is four times faster on a CPU for many rows, and its sums are in f32 at any precision.
        b.graph.op("Add", &[x, &o], &[&mid]);
        b.balanced_norm(kind, &mid, &middle, &mid_norm)?;
    }

    b.mlp(kind, &mid_norm, &layer, !fused, &mlp)?;
    let is_last = i + 1 == b.config().encoder_layers;
    let following = if is_last {
        "encoder.layer_norm".to_owned()
    } else {
        format!("encoder.layers.{}.self_attn_layer_norm", i + 1)
    };

    let (next_norm, next) = (format!("norm_{}", i + 1), format!("x_{}", i + 1));
    if fused {
        let sum = if is_last { "" } else { &next };
        b.add_norm([&mid, &mlp], &format!("{layer}.fc2.bias"), &following, &next_norm, sum)?;
    } else {
        b.graph.op("Add", &[&mid, &mlp], &[&next]);
        // The last norm is an output of the graph.
        let balanced = if is_last { ProjectionKind::Dense } else { kind };
        b.balanced_norm(balanced, &next, &following, &next_norm)?;
    }

    Ok((next, next_norm))
}

fn hidden_output(b: &mut GraphBuilder<'_, '_>, norm: &str) {
    let config = b.config();
    let shape = ["W".into(), "E".into(), config.d_model.into()];
    b.graph.output("hidden", ElementType::F32, &shape);

    if b.real() == ElementType::F32 {
        b.graph.op("Identity", &[norm], &["hidden"]);
    } else {
        b.graph.op("Cast", &[norm], &["hidden"]).int("to", ElementType::F32.onnx());
    }
}

/// The cross-attention's keys and values of every decoder layer.
fn cross_outputs(b: &mut GraphBuilder<'_, '_>, projection: ProjectionKind, norm: &str) -> Result<()> {
    let (config, real) = (b.config(), b.real());
    let d = config.d_model;
    let (heads, width) = (config.decoder_attention_heads, config.head_width());

    if !b.for_gpu() {
        b.graph.constant_i64("split_heads", &[4], &[0, 0, heads as i64, width as i64]);
    }

    for i in 0..config.decoder_layers {
        for kind in ["k", "v"] {
            let name = format!("decoder.layers.{i}.encoder_attn.{kind}_proj");
            let [flat, rows, out] = ["flat", "rows", "cross"].map(|n| format!("{n}_{kind}_{i}"));
            let packed = PackedProjections { name: name.clone(), parts: &[(&name, kind == "v")] };

            if b.for_gpu() {
                // The attention for a GPU reads the heads of a frame side by side.
                b.linear(projection, norm, &packed, true, &out)?;
                b.graph.output(&out, real, &["W".into(), "E".into(), d.into()]);
                continue;
            }

            b.linear(projection, norm, &packed, true, &flat)?;
            let (values, element) = if b.precision == Precision::Int8 {
                (to_bytes(b, &flat, &format!("cross_{kind}_scale_{i}")), ElementType::I8)
            } else {
                (flat, real)
            };

            b.graph.op("Reshape", &[&values, "split_heads"], &[&rows]);
            b.graph.output(&out, element, &["W".into(), heads.into(), "E".into(), width.into()]);
            b.graph.op("Transpose", &[&rows], &[&out]).ints("perm", &[0, 2, 1, 3]);
        }
    }

    Ok(())
}

/// Projections and attention of one layer.
fn self_attention(
    b: &mut GraphBuilder<'_, '_>,
    kind: ProjectionKind,
    norm: &str,
    attention: &str,
    layer: usize,
    out: &str,
) -> Result<()> {
    let heads = b.config().encoder_attention_heads;
    let [q, k, v] = ["q", "k", "v"].map(|n| format!("{n}_{layer}"));
    let parts = ["q", "k", "v"].map(|name| format!("{attention}.{name}_proj"));

    if b.for_gpu() {
        let [q_part, k_part, v_part] = &parts;
        let packed = PackedProjections {
            name: format!("{attention}.qkv"),
            parts: &[(q_part, true), (k_part, false), (v_part, true)],
        };

        let joined = format!("qkv_{layer}");
        b.linear(kind, norm, &packed, true, &joined)?;
        b.graph.op("Split", &[&joined], &[&q, &k, &v]).int("axis", 2).int("num_outputs", 3);
        b.graph.attention([&q, &k, &v], heads, out);
        return Ok(());
    }

    for ((part, with_bias), projected) in parts.iter().zip([true, false, true]).zip([&q, &k, &v]) {
        let packed = PackedProjections { name: part.clone(), parts: &[(part, with_bias)] };
        b.linear(kind, norm, &packed, true, projected)?;
    }

    b.graph.contrib("MultiHeadAttention", &[&q, &k, &v], &[out]).int("num_heads", heads as i64);

    Ok(())
}

/// `x` `[W, E, D]` in signed bytes, with one scale per window and channel as the output `scale` `[W, 1, D]`. A decode step
/// reads all keys and values of a window, so that a quarter of the bytes takes little more than a quarter of the time.
fn to_bytes(b: &mut GraphBuilder<'_, '_>, x: &str, scale: &str) -> String {
    b.graph.constant_f32("largest_byte", &[], &[127.0]);

    // Keeps the scale of a channel with only zeros above zero.
    b.graph.constant_f32("smallest_range", &[1], &[1e-20]);
    let [size, image, strips, column, largest, range, scaled, rounded, bytes] =
        ["size", "image", "strips", "column", "largest", "range", "scaled", "rounded", "bytes"]
            .map(|n| format!("{x}_{n}"));

    // The largest value of each column is that of the largest values of strips, which a pooling computes ten times faster
    // than `ReduceMax`.
    let d = b.config().d_model;
    let strip = strip_frames(b.config().max_source_positions);

    b.graph.constant_i64("one_image", &[4], &[0, 1, -1, d as i64]);
    b.graph.constant_i64("strip_axis", &[1], &[2]);
    b.graph.constant_i64("one_row", &[3], &[0, 1, d as i64]);
    b.graph.op("Abs", &[x], &[&size]);
    b.graph.op("Reshape", &[&size, "one_image"], &[&image]);
    let height = [strip as i64, 1];
    b.graph.op("MaxPool", &[&image], &[&strips]).ints("kernel_shape", &height).ints("strides", &height);
    b.graph.op("ReduceMax", &[&strips, "strip_axis"], &[&column]).int("keepdims", 1);
    b.graph.op("Reshape", &[&column, "one_row"], &[&largest]);
    b.graph.op("Max", &[&largest, "smallest_range"], &[&range]);
    b.graph.output(scale, ElementType::F32, &["W".into(), 1.into(), d.into()]);
    b.graph.op("Div", &[&range, "largest_byte"], &[scale]);
    b.graph.op("Div", &[x, scale], &[&scaled]);
    b.graph.op("Round", &[&scaled], &[&rounded]);
    b.graph.op("Cast", &[&rounded], &[&bytes]).int("to", ElementType::I8.onnx());

    bytes
}

/// Frames of a strip: every window that the encoder may be given consists of whole strips.
fn strip_frames(longest: usize) -> usize {
    let whole = |strip: &usize| [longest, STEP_POSITIONS].iter().all(|frames| frames % strip == 0);
    (1..=longest).take_while(|strip| strip * strip <= longest).filter(whole).last().unwrap_or(1)
}

/// A convolution of width 3 over `[W, frames, channels]`, and its GELU: three shifted copies side by side, and one product.
/// `Conv` is not used because it needs cuDNN on a GPU.
fn convolution(
    b: &mut GraphBuilder<'_, '_>,
    kind: ProjectionKind,
    x: &str,
    name: &str,
    stride: i64,
    out: &str,
) -> Result<()> {
    b.graph.constant_i64("conv_pads", &[6], &[0, 1, 0, 0, 1, 0]);
    b.graph.constant_i64("conv_axis", &[1], &[1]);
    let step = format!("conv_step_{stride}");
    b.graph.constant_i64(&step, &[1], &[stride]);

    let (padded, joined, product) = (format!("{out}_padded"), format!("{out}_joined"), format!("{out}_product"));
    b.graph.op("Pad", &[x, "conv_pads"], &[&padded]);

    let taps = [0, 1, 2].map(|tap| format!("{out}_tap_{tap}"));
    for (tap, shifted) in taps.iter().enumerate() {
        let (first, end) = (format!("{shifted}_first"), format!("{shifted}_end"));
        b.graph.constant_i64(&first, &[1], &[tap as i64]);

        // So many frames before the end of the padded input, whatever its length is.
        let before_end = stride + 1 - tap as i64;
        b.graph.constant_i64(&end, &[1], &[if before_end == 0 { i64::MAX } else { -before_end }]);
        b.graph.op("Slice", &[&padded, &first, &end, "conv_axis", &step], &[shifted]);
    }

    b.graph.op("Concat", &[&taps[0], &taps[1], &taps[2]], &[&joined]).int("axis", 2);
    b.convolution(kind, &joined, name, &product)?;

    b.bias_gelu(kind, &product, &format!("{name}.bias"), out)
}
