//! Block-quantised values of ggml files: each block has a few scales for 32 or 256 values. The layouts are those of
//! `ggml/src/ggml-quants.c` in ggml-org/whisper.cpp.

use half::f16;

/// Values of a block of the older formats.
const SMALL_BLOCK: usize = 32;
/// Values of a block of the K formats.
const LARGE_BLOCK: usize = 256;

/// The quantised types that whisper.cpp's `quantize` writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BlockFormat {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
}

impl BlockFormat {
    /// The format with this `ggml_type` number.
    pub fn of_ggml_type(number: i32) -> Option<Self> {
        Some(match number {
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            6 => Self::Q5_0,
            7 => Self::Q5_1,
            8 => Self::Q8_0,
            10 => Self::Q2K,
            11 => Self::Q3K,
            12 => Self::Q4K,
            13 => Self::Q5K,
            14 => Self::Q6K,
            _ => return None,
        })
    }

    /// Values of one block.
    pub const fn values(self) -> usize {
        match self {
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => SMALL_BLOCK,
            Self::Q2K | Self::Q3K | Self::Q4K | Self::Q5K | Self::Q6K => LARGE_BLOCK,
        }
    }

    /// Bytes of one block.
    pub const fn bytes(self) -> usize {
        match self {
            Self::Q4_0 => 2 + 16,
            Self::Q4_1 => 4 + 16,
            Self::Q5_0 => 2 + 4 + 16,
            Self::Q5_1 => 4 + 4 + 16,
            Self::Q8_0 => 2 + 32,
            Self::Q2K => 16 + 64 + 4,
            Self::Q3K => 32 + 64 + 12 + 2,
            Self::Q4K => 4 + 12 + 128,
            Self::Q5K => 4 + 12 + 32 + 128,
            Self::Q6K => 128 + 64 + 16 + 2,
        }
    }

    /// Decodes the values `start..start + out.len()` of a tensor; `None` if `bytes` ends before that.
    pub fn decode(self, bytes: &[u8], start: usize, out: &mut [f32]) -> Option<()> {
        let width = self.values();
        let mut block_values = [0.0; LARGE_BLOCK];
        let mut filled = 0;

        while filled < out.len() {
            let at = start + filled;
            let first = at / width * self.bytes();
            let block = bytes.get(first..first.checked_add(self.bytes())?)?;
            let values = block_values.get_mut(..width)?;
            self.decode_block(&mut BlockReader(block), values)?;

            let skipped = at % width;
            let taken = (width - skipped).min(out.len() - filled);
            out.get_mut(filled..filled + taken)?.copy_from_slice(values.get(skipped..skipped + taken)?);
            filled += taken;
        }

        Some(())
    }

    fn decode_block(self, block: &mut BlockReader<'_>, out: &mut [f32]) -> Option<()> {
        match self {
            Self::Q4_0 => {
                let scale = block.real()?;
                nibbles(block.bytes::<16>()?, 0, out, |q| (f32::from(q) - 8.0) * scale);
            }
            Self::Q4_1 => {
                let (scale, least) = (block.real()?, block.real()?);
                nibbles(block.bytes::<16>()?, 0, out, |q| f32::from(q) * scale + least);
            }
            Self::Q5_0 => {
                let scale = block.real()?;
                let high = u32::from_le_bytes(*block.bytes::<4>()?);
                nibbles(block.bytes::<16>()?, high, out, |q| (f32::from(q) - 16.0) * scale);
            }
            Self::Q5_1 => {
                let (scale, least) = (block.real()?, block.real()?);
                let high = u32::from_le_bytes(*block.bytes::<4>()?);
                nibbles(block.bytes::<16>()?, high, out, |q| f32::from(q) * scale + least);
            }
            Self::Q8_0 => {
                let scale = block.real()?;
                for (value, byte) in out.iter_mut().zip(block.bytes::<32>()?) {
                    *value = f32::from(byte.cast_signed()) * scale;
                }
            }
            Self::Q2K => decode_q2k(block, out)?,
            Self::Q3K => decode_q3k(block, out)?,
            Self::Q4K | Self::Q5K => decode_q4k_q5k(block, self == Self::Q5K, out)?,
            Self::Q6K => decode_q6k(block, out)?,
        }

        Some(())
    }
}

/// Reads the fields of a block in order.
struct BlockReader<'a>(&'a [u8]);

impl<'a> BlockReader<'a> {
    fn bytes<const N: usize>(&mut self) -> Option<&'a [u8; N]> {
        let (first, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(first)
    }

    fn real(&mut self) -> Option<f32> {
        Some(f16::from_le_bytes(*self.bytes::<2>()?).to_f32())
    }
}

/// Decodes 32 values of 4 bits: the low halves of the bytes are the first 16, the high halves the last 16. `high` contains
/// a fifth bit for each value.
fn nibbles(packed: &[u8; 16], high: u32, out: &mut [f32], value: impl Fn(u8) -> f32) {
    let fifth = |index: usize| ((high >> index) as u8 & 1) << 4;

    for (index, byte) in packed.iter().enumerate() {
        let halves = [(index, byte & 15), (index + 16, byte >> 4)];
        for (at, low) in halves {
            if let Some(slot) = out.get_mut(at) {
                *slot = value(low | fifth(at));
            }
        }
    }
}

fn decode_q2k(block: &mut BlockReader<'_>, out: &mut [f32]) -> Option<()> {
    let scales = block.bytes::<16>()?;
    let packed = block.bytes::<64>()?;
    let (scale, least) = (block.real()?, block.real()?);

    for (index, value) in out.iter_mut().enumerate() {
        // There are two halves of 128 values; in each, 32 bytes contain 2 bits for four groups of 32 values.
        let (half, group, column) = (index / 128, index % 128 / 32, index % 32);
        let bits = packed.get(half * 32 + column)? >> (2 * group) & 3;
        let sub = scales.get(index / 16)?;
        *value = scale * f32::from(sub & 15) * f32::from(bits) - least * f32::from(sub >> 4);
    }

    Some(())
}

fn decode_q3k(block: &mut BlockReader<'_>, out: &mut [f32]) -> Option<()> {
    let high = block.bytes::<32>()?;
    let packed = block.bytes::<64>()?;
    let sub_scales = block.bytes::<12>()?;
    let scale = block.real()?;

    for (index, value) in out.iter_mut().enumerate() {
        let (half, group, column) = (index / 128, index % 128 / 32, index % 32);
        let low = packed.get(half * 32 + column)? >> (2 * group) & 3;
        let has_high = high.get(column)? >> (half * 4 + group) & 1 == 1;
        let quant = f32::from(low) - if has_high { 0.0 } else { 4.0 };

        // There are 16 scales of 6 bits: 4 low bits in the first eight bytes, 2 high bits in the last four.
        let sub = index / 16;
        let low_bits = sub_scales.get(sub % 8)? >> (4 * (sub / 8)) & 15;
        let high_bits = sub_scales.get(8 + sub % 4)? >> (2 * (sub / 4)) & 3;
        *value = scale * (f32::from(low_bits | high_bits << 4) - 32.0) * quant;
    }

    Some(())
}

fn decode_q4k_q5k(block: &mut BlockReader<'_>, five_bits: bool, out: &mut [f32]) -> Option<()> {
    let (scale, least) = (block.real()?, block.real()?);
    let sub_scales = block.bytes::<12>()?;
    let high = if five_bits { block.bytes::<32>()? } else { &[0; 32] };
    let packed = block.bytes::<128>()?;

    for (index, value) in out.iter_mut().enumerate() {
        // There are eight groups of 32 values; two groups share 32 bytes, the low halves first.
        let (group, column) = (index / 32, index % 32);
        let low = packed.get(group / 2 * 32 + column)? >> (4 * (group % 2)) & 15;
        let fifth = (high.get(column)? >> group & 1) << 4;
        let (sub, sub_least) = six_bit_scales(sub_scales, group)?;
        *value = scale * f32::from(sub) * f32::from(low | fifth) - least * f32::from(sub_least);
    }

    Some(())
}

/// Scale and minimum, 6 bits each, of one of eight groups that share twelve bytes.
fn six_bit_scales(packed: &[u8; 12], group: usize) -> Option<(u8, u8)> {
    if group < 4 {
        return Some((packed.get(group)? & 63, packed.get(group + 4)? & 63));
    }
    let last = packed.get(group + 4)?;
    let scale = last & 15 | packed.get(group - 4)? >> 6 << 4;
    let least = last >> 4 | packed.get(group)? >> 6 << 4;
    Some((scale, least))
}

fn decode_q6k(block: &mut BlockReader<'_>, out: &mut [f32]) -> Option<()> {
    let low = block.bytes::<128>()?;
    let high = block.bytes::<64>()?;
    let sub_scales = block.bytes::<16>()?;
    let scale = block.real()?;

    for (index, value) in out.iter_mut().enumerate() {
        // There are two halves of 128 values. Each has 64 bytes of 4 low bits, and 32 bytes of 2 high bits for four groups of 32.
        let (half, group, column) = (index / 128, index % 128 / 32, index % 32);
        let low_bits = low.get(half * 64 + group % 2 * 32 + column)? >> (4 * (group / 2)) & 15;
        let high_bits = high.get(half * 32 + column)? >> (2 * group) & 3;
        let quant = f32::from(low_bits | high_bits << 4) - 32.0;
        *value = scale * f32::from(sub_scales.get(index / 16)?.cast_signed()) * quant;
    }

    Some(())
}
