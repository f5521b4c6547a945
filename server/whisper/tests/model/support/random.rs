//! Reproducible weights: value `index` of tensor `name` is a function of the seed, the name and the index, which
//! `scripts/golden_random.py` computes too. All values fit bf16 exactly, so a checkpoint may be stored in any type.

use half::bf16;
use hush_whisper::checkpoint::Config;

/// An odd number from -127 to 127.
pub fn odd(seed: u64, name: &str, index: u64) -> i32 {
    2 * ((mix(stream(seed, name), index) >> 57) as i32) - 127
}

fn stream(seed: u64, name: &str) -> u64 {
    // FNV-1a.
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    seed ^ hash
}

/// splitmix64 at `index`.
fn mix(stream: u64, index: u64) -> u64 {
    let mut z = stream.wrapping_add((index + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The tensor in bf16, in which most checkpoints are trained.
pub fn tensor(seed: u64, name: &str, shape: &[usize]) -> Vec<bf16> {
    let len: usize = shape.iter().product();
    let (base, scale) = distribution(name, shape);
    let stream = stream(seed, name);

    // There are only 128 different values, which are looked up.
    let values: Vec<bf16> = (0..128)
        .map(|i| {
            let odd = 2 * i - 127;
            bf16::from_f32(if base == 0.0 { odd as f32 / 128.0 * scale } else { base + (odd / 8) as f32 / 128.0 })
        })
        .collect();

    (0..len as u64).map(|index| values[(mix(stream, index) >> 57) as usize]).collect()
}

/// Centre and scale: norms around 1, matrices that preserve the size of their input, and logits of some tens.
fn distribution(name: &str, shape: &[usize]) -> (f32, f32) {
    if name.contains("layer_norm") && name.ends_with(".weight") {
        return (1.0, 1.0);
    }

    if name.ends_with(".bias") {
        return (0.0, 1.0 / 16.0);
    }

    if name.contains("embed_positions") {
        return (0.0, 0.25);
    }

    let inner: usize = shape[1..].iter().product();
    let mut scale = 1.0;
    let mut reach = 12;

    while reach <= inner {
        reach *= 4;
        scale /= 2.0;
    }

    (0.0, if name.contains("embed_tokens") { 4.0 * scale } else { scale })
}

/// A mel in the range of real ones, `[bins, frames]`.
pub fn mel(seed: u64, config: &Config) -> Vec<f32> {
    (0..(config.num_mel_bins * config.mel_frames()) as u64).map(|i| odd(seed, "mel", i) as f32 / 128.0).collect()
}
