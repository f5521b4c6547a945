//! Facts about OpenAI's models that are not in their files: the heads of the decoder whose cross-attention follows the
//! speech (`_ALIGNMENT_HEADS` in `whisper/__init__.py` of openai/whisper 20250625).

use super::Config;

type Heads = &'static [[usize; 2]];

const TINY_EN: Heads = &[[1, 0], [2, 0], [2, 5], [3, 0], [3, 1], [3, 2], [3, 3], [3, 4]];
const TINY: Heads = &[[2, 2], [3, 0], [3, 2], [3, 3], [3, 4], [3, 5]];
const BASE_EN: Heads = &[[3, 3], [4, 7], [5, 1], [5, 5], [5, 7]];
const BASE: Heads = &[[3, 1], [4, 2], [4, 3], [4, 7], [5, 1], [5, 2], [5, 4], [5, 6]];
const SMALL_EN: Heads = &[
    [6, 6],
    [7, 0],
    [7, 3],
    [7, 8],
    [8, 2],
    [8, 5],
    [8, 7],
    [9, 0],
    [9, 4],
    [9, 8],
    [9, 10],
    [10, 0],
    [10, 1],
    [10, 2],
    [10, 3],
    [10, 6],
    [10, 11],
    [11, 2],
    [11, 4],
];
const SMALL: Heads = &[[5, 3], [5, 9], [8, 0], [8, 4], [8, 7], [8, 8], [9, 0], [9, 7], [9, 9], [10, 5]];
const MEDIUM_EN: Heads = &[
    [11, 4],
    [14, 1],
    [14, 12],
    [14, 14],
    [15, 4],
    [16, 0],
    [16, 4],
    [16, 9],
    [17, 12],
    [17, 14],
    [18, 7],
    [18, 10],
    [18, 15],
    [20, 0],
    [20, 3],
    [20, 9],
    [20, 14],
    [21, 12],
];
const MEDIUM: Heads = &[[13, 15], [15, 4], [15, 15], [16, 1], [20, 0], [23, 4]];
const LARGE_V1: Heads = &[[9, 19], [11, 2], [11, 4], [11, 17], [22, 7], [22, 11], [22, 17], [23, 2], [23, 15]];
const LARGE_V2: Heads = &[
    [10, 12],
    [13, 17],
    [16, 11],
    [16, 12],
    [16, 13],
    [17, 15],
    [17, 16],
    [18, 4],
    [18, 11],
    [18, 19],
    [19, 11],
    [21, 2],
    [21, 3],
    [22, 3],
    [22, 9],
    [22, 12],
    [23, 5],
    [23, 7],
    [23, 13],
    [25, 5],
    [26, 1],
    [26, 12],
    [27, 15],
];
const LARGE_V3: Heads = &[[7, 0], [10, 17], [12, 18], [13, 12], [16, 1], [17, 14], [19, 11], [21, 4], [24, 1], [25, 6]];
const TURBO: Heads = &[[2, 4], [2, 11], [3, 3], [3, 6], [3, 11], [3, 14]];

/// The alignment heads of the published model with these dimensions. large-v1 and large-v2 have the same dimensions: the
/// model is taken for large-v1 if the name of the file contains `v1`.
pub(super) fn alignment_heads(config: &Config, file_name: &str) -> Option<Heads> {
    let heads = match (config.vocab_size, config.encoder_layers, config.decoder_layers, config.d_model) {
        (51_864, 4, 4, 384) => TINY_EN,
        (51_865, 4, 4, 384) => TINY,
        (51_864, 6, 6, 512) => BASE_EN,
        (51_865, 6, 6, 512) => BASE,
        (51_864, 12, 12, 768) => SMALL_EN,
        (51_865, 12, 12, 768) => SMALL,
        (51_864, 24, 24, 1024) => MEDIUM_EN,
        (51_865, 24, 24, 1024) => MEDIUM,
        (51_865, 32, 32, 1280) if file_name.contains("v1") => LARGE_V1,
        (51_865, 32, 32, 1280) => LARGE_V2,
        (51_866, 32, 32, 1280) => LARGE_V3,
        (51_866, 32, 4, 1280) => TURBO,
        _ => return None,
    };

    Some(heads)
}
