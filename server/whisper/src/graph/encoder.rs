//! `mel` -> `hidden` and the cross-attention's keys and values of every decoder layer, in fp32 and fp16. For int8 see
//! [`super::byte_encoder`].

use crate::onnx::ElementType;

use super::builder::{GraphBuilder, PackedProjections, ProjectionKind, Result};

pub fn build(mut b: GraphBuilder<'_, '_>) -> Result<Vec<u8>> {
    let (mut x, mut norm) = embed(&mut b)?;

    for i in 0..b.config().encoder_layers {
        (x, norm) = layer(&mut b, [&x, &norm], i)?;
    }

    hidden_output(&mut b, &norm);
    cross_outputs(&mut b, &norm)?;

    Ok(b.graph.finish())
}

/// Convolutions and positions; returns the sum and its first norm.
fn embed(b: &mut GraphBuilder<'_, '_>) -> Result<(String, String)> {
    mel_convolution(b, "conv1_product")?;
    b.bias_gelu("conv1_product", "encoder.conv1.bias", "conv1")?;
    convolution(b, "conv1", "encoder.conv2", 2, "conv2_product")?;
    b.bias_gelu("conv2_product", "encoder.conv2.bias", "conv2")?;
    add_positions(b, "conv2", "x_0")?;
    b.layer_norm("x_0", FIRST_NORM, "norm_0")?;

    Ok(("x_0".to_owned(), "norm_0".to_owned()))
}

/// The norm before the first layer.
pub const FIRST_NORM: &str = "encoder.layers.0.self_attn_layer_norm";

/// Adds the input `mel`, and the first convolution without its bias: `out` is `[W, 2 E, D]`.
pub fn mel_convolution(b: &mut GraphBuilder<'_, '_>, out: &str) -> Result<()> {
    let (config, real) = (b.config(), b.real());
    b.graph.input("mel", ElementType::F32, &["W".into(), config.num_mel_bins.into(), "M".into()]);
    let mut mel = "mel";
    if real != ElementType::F32 {
        b.graph.op("Cast", &["mel"], &["mel_real"]).int("to", real.onnx());
        mel = "mel_real";
    }

    b.graph.op("Transpose", &[mel], &["mel_rows"]).ints("perm", &[0, 2, 1]);

    convolution(b, "mel_rows", "encoder.conv1", 1, out)
}

/// `out = x + positions`, for `x` `[W, E, D]`.
pub fn add_positions(b: &mut GraphBuilder<'_, '_>, x: &str, out: &str) -> Result<()> {
    let all_positions = b.plain("encoder.embed_positions.weight")?;

    // A short window has the first positions.
    b.graph.constant_i64("first_position", &[1], &[0]);
    b.graph.constant_i64("position_axis", &[1], &[0]);
    b.graph.op("Shape", &[x], &["frames"]).int("start", 1).int("end", 2);
    b.graph.op("Slice", &[&all_positions, "first_position", "frames", "position_axis"], &["positions"]);
    b.graph.op("Add", &[x, "positions"], &[out]);

    Ok(())
}

/// The name of the norm that follows a layer.
pub fn norm_after(b: &GraphBuilder<'_, '_>, layer: usize) -> String {
    if layer + 1 == b.config().encoder_layers {
        "encoder.layer_norm".to_owned()
    } else {
        format!("encoder.layers.{}.self_attn_layer_norm", layer + 1)
    }
}

/// One layer of the encoder; returns the sum and its norm, which is the first of the next layer.
fn layer(b: &mut GraphBuilder<'_, '_>, [x, norm]: [&str; 2], i: usize) -> Result<(String, String)> {
    let kind = ProjectionKind::Dense;
    let layer = format!("encoder.layers.{i}");
    let [attended, o] = ["heard", "o"].map(|n| format!("{n}_{i}"));
    let attention = format!("{layer}.self_attn");
    let projection = format!("{attention}.out_proj");

    // On a GPU the bias is added by the norm that follows.
    let fused = b.for_gpu();
    self_attention(b, norm, &attention, i, &attended)?;
    b.one(kind, &attended, &projection, !fused, &o)?;

    let [mid_norm, mid, mlp] = ["mid_norm", "mid", "mlp"].map(|n| format!("{n}_{i}"));
    let middle = format!("{layer}.final_layer_norm");
    if fused {
        b.add_norm([x, &o], &format!("{projection}.bias"), &middle, &mid_norm, &mid)?;
    } else {
        // In two nodes this is four times faster on a CPU for many rows, and its sums are in f32 at any precision.
        b.graph.op("Add", &[x, &o], &[&mid]);
        b.layer_norm(&mid, &middle, &mid_norm)?;
    }

    b.mlp(kind, &mid_norm, &layer, !fused, &mlp)?;
    let is_last = i + 1 == b.config().encoder_layers;
    let following = norm_after(b, i);
    let (next_norm, next) = (format!("norm_{}", i + 1), format!("x_{}", i + 1));
    if fused {
        let sum = if is_last { "" } else { &next };
        b.add_norm([&mid, &mlp], &format!("{layer}.fc2.bias"), &following, &next_norm, sum)?;
    } else {
        b.graph.op("Add", &[&mid, &mlp], &[&next]);
        b.layer_norm(&next, &following, &next_norm)?;
    }

    Ok((next, next_norm))
}

pub fn hidden_output(b: &mut GraphBuilder<'_, '_>, norm: &str) {
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
fn cross_outputs(b: &mut GraphBuilder<'_, '_>, norm: &str) -> Result<()> {
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
                b.linear(ProjectionKind::Dense, norm, &packed, true, &out)?;
                b.graph.output(&out, real, &["W".into(), "E".into(), d.into()]);
                continue;
            }

            b.linear(ProjectionKind::Dense, norm, &packed, true, &flat)?;
            b.graph.op("Reshape", &[&flat, "split_heads"], &[&rows]);
            b.graph.output(&out, real, &["W".into(), heads.into(), "E".into(), width.into()]);
            b.graph.op("Transpose", &[&rows], &[&out]).ints("perm", &[0, 2, 1, 3]);
        }
    }

    Ok(())
}

/// Projections and attention of one layer.
fn self_attention(b: &mut GraphBuilder<'_, '_>, norm: &str, attention: &str, layer: usize, out: &str) -> Result<()> {
    let (kind, heads) = (ProjectionKind::Dense, b.config().encoder_attention_heads);
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

/// A convolution of width 3 over `[W, frames, channels]`, without its bias: three shifted copies side by side, and one
/// product. `Conv` is not used because it needs cuDNN on a GPU.
fn convolution(b: &mut GraphBuilder<'_, '_>, x: &str, name: &str, stride: i64, out: &str) -> Result<()> {
    b.graph.constant_i64("conv_pads", &[6], &[0, 1, 0, 0, 1, 0]);
    b.graph.constant_i64("conv_axis", &[1], &[1]);
    let step = format!("conv_step_{stride}");
    b.graph.constant_i64(&step, &[1], &[stride]);

    let (padded, joined) = (format!("{out}_padded"), format!("{out}_joined"));
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

    b.convolution(&joined, name, out)
}
