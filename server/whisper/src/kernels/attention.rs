//! The encoder's self-attention. The keys and values of each head are packed once, and some queries are compared with all keys
//! before the next ones, so that neither the scores of all pairs nor their softmax are written to memory.
//!
//! Where the processor multiplies bfloat16, keys, queries, the softmax and values are rounded to it, and all sums are in f32.

#![allow(unsafe_code, reason = "the products of registers take addresses; each call says why they are valid")]

use std::ops::Range;

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use super::FusedMultiplyAdd;
#[cfg(target_arch = "aarch64")]
use super::products::NeonRegister;
#[cfg(target_arch = "x86_64")]
use super::{
    InstructionKind,
    products::{Avx2Register, Avx512Bf16Register, Avx512Register},
};
use super::{
    InstructionSet, MultiplyAdd, exp2,
    products::{ProductRegister, Tile, multiply},
    rows::{ByteRows, ScaledProduct, round_row},
};
#[cfg(not(target_arch = "aarch64"))]
use super::{SeparateMultiplyAdd, products::PortableRegister};

/// The sizes of one window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionShape {
    pub positions: usize,
    pub heads: usize,
    /// Columns of a head.
    pub width: usize,
}

impl AttentionShape {
    /// Columns of all heads.
    pub const fn columns(&self) -> usize {
        self.heads * self.width
    }
}

/// How many numbers the packed keys and the packed values of a head need, with an instruction set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct PackedSizes {
    /// Keys of a tile: two registers.
    tile: usize,
    /// Positions, up to whole tiles and whole parts of [`SOFTENED`].
    positions: usize,
    /// Packed numbers of a row of keys or queries.
    depth: usize,
    /// Packed numbers of a column of values.
    pairs: usize,
    /// Groups of `tile` columns of values.
    groups: usize,
}

impl PackedSizes {
    const fn new<P: ProductRegister>(shape: AttentionShape) -> Self {
        let tile = 2 * P::LANES;
        let positions = shape.positions.next_multiple_of(SOFTENED);

        Self {
            tile,
            positions,
            depth: shape.width.div_ceil(P::PACKED),
            pairs: positions / P::PACKED,
            groups: shape.width.div_ceil(tile),
        }
    }

    const fn keys(&self) -> usize {
        self.positions * self.depth
    }

    const fn values(&self) -> usize {
        self.pairs * self.groups * self.tile
    }
}

/// Calls `$generic` with the registers and the queries of a block for `$instructions`.
macro_rules! with_registers {
    ($instructions:expr, $generic:ident($($argument:ident: $type:ty),* $(,)?) $(-> $result:ty)?) => {{
        #[cfg(target_arch = "x86_64")]
        {
            // The rows fill the registers: two for each row, two for the other factor, and one for the row's.
            #[target_feature(enable = "avx512f,avx512bw,avx512bf16,avx2,fma")]
            fn avx512_bf16($($argument: $type),*) $(-> $result)? {
                $generic::<Avx512Bf16Register, FusedMultiplyAdd, 12>($($argument),*)
            }

            #[target_feature(enable = "avx512f,avx512bw,avx2,fma")]
            fn avx512($($argument: $type),*) $(-> $result)? {
                $generic::<Avx512Register, FusedMultiplyAdd, 12>($($argument),*)
            }

            #[target_feature(enable = "avx2,fma")]
            fn avx2($($argument: $type),*) $(-> $result)? {
                $generic::<Avx2Register, FusedMultiplyAdd, 6>($($argument),*)
            }

            // SAFETY: an `InstructionSet` is one that this processor has.
            unsafe {
                match $instructions.0 {
                    InstructionKind::Avx512Bf16 => avx512_bf16($($argument),*),
                    InstructionKind::Avx512 => avx512($($argument),*),
                    InstructionKind::Avx2 => avx2($($argument),*),
                    InstructionKind::Portable => $generic::<PortableRegister, SeparateMultiplyAdd, 4>($($argument),*),
                }
            }
        }

        #[cfg(target_arch = "aarch64")]
        {
            let _ = $instructions;
            $generic::<NeonRegister, FusedMultiplyAdd, 8>($($argument),*)
        }

        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        {
            let _ = $instructions;
            $generic::<PortableRegister, SeparateMultiplyAdd, 4>($($argument),*)
        }
    }};
}

/// Queries, keys and values of one window, side by side: `[positions, 3 * columns]`.
#[derive(Clone, Copy)]
pub struct AttentionInput<'a> {
    pub shape: AttentionShape,
    pub product: ScaledProduct<'a>,
}

/// The keys and values of a head, packed for products.
pub struct PackedHead<'a> {
    pub keys: &'a mut [u32],
    pub values: &'a mut [u32],
}

/// Numbers that the keys and those that the values of a head need in a [`PackedHead`].
pub fn packed_lengths(instructions: InstructionSet, shape: AttentionShape) -> [usize; 2] {
    with_registers!(instructions, lengths_of(shape: AttentionShape) -> [usize; 2])
}

#[inline(always)]
fn lengths_of<P: ProductRegister, M: MultiplyAdd, const ROWS: usize>(shape: AttentionShape) -> [usize; 2] {
    let sizes = PackedSizes::new::<P>(shape);
    [sizes.keys(), sizes.values()]
}

/// Queries of a block: [`attend`] is fastest for multiples of it.
pub fn block_rows(instructions: InstructionSet) -> usize {
    with_registers!(instructions, rows_of() -> usize)
}

#[inline(always)]
fn rows_of<P: ProductRegister, M: MultiplyAdd, const ROWS: usize>() -> usize {
    ROWS
}

/// Packs the keys and values of a head. `packed` has the lengths of [`packed_lengths`].
pub fn pack_head(instructions: InstructionSet, input: AttentionInput<'_>, head: usize, packed: PackedHead<'_>) {
    with_registers!(instructions, pack_head_of(input: AttentionInput<'_>, head: usize, packed: PackedHead<'_>));
}

#[inline(always)]
fn pack_head_of<P: ProductRegister, M: MultiplyAdd, const ROWS: usize>(
    input: AttentionInput<'_>,
    head: usize,
    packed: PackedHead<'_>,
) {
    let width = input.shape.width;
    let sizes = PackedSizes::new::<P>(input.shape);
    let (keys_at, values_at) = (input.shape.columns() + head * width, 2 * input.shape.columns() + head * width);

    let mut row = vec![0.0; sizes.groups * sizes.tile];
    let mut numbers = vec![0; sizes.depth];

    // [tile, depth, keys of a tile]
    for (tile, packed) in packed.keys.chunks_exact_mut(sizes.tile * sizes.depth).enumerate() {
        for lane in 0..sizes.tile {
            read_position::<M>(input, tile * sizes.tile + lane, keys_at, &mut row[..width]);
            // SAFETY: the caller selected instructions that the processor has.
            unsafe { P::pack(&row[..width], &mut numbers) };

            for (number, packed) in numbers.iter().zip(packed.chunks_exact_mut(sizes.tile)) {
                packed[lane] = *number;
            }
        }
    }

    // [group, pair, columns of a group]
    row.fill(0.0);
    let mut next = row.clone();
    for pair in 0..sizes.pairs {
        let position = pair * P::PACKED;
        read_position::<M>(input, position, values_at, &mut row[..width]);
        if P::PACKED == 2 {
            read_position::<M>(input, position + 1, values_at, &mut next[..width]);
        }

        for group in 0..sizes.groups {
            let packed = &mut packed.values[(group * sizes.pairs + pair) * sizes.tile..][..sizes.tile];
            let columns = group * sizes.tile..(group + 1) * sizes.tile;
            for ((packed, low), high) in packed.iter_mut().zip(&row[columns.clone()]).zip(&next[columns]) {
                *packed = P::pair(*low, *high);
            }
        }
    }
}

/// Like [`read_part`]; zeros after the last position.
#[inline(always)]
fn read_position<M: MultiplyAdd>(input: AttentionInput<'_>, position: usize, first: usize, out: &mut [f32]) {
    if position < input.shape.positions {
        read_part::<M>(input.product, position, first, 1.0, out);
    } else {
        out.fill(0.0);
    }
}

/// Columns of a row of `product` from `first` on, times `factor`.
#[inline(always)]
fn read_part<M: MultiplyAdd>(product: ScaledProduct<'_>, row: usize, first: usize, factor: f32, out: &mut [f32]) {
    let (values, scale) = product.row(row);
    let (values, bias) = (&values[first..][..out.len()], &product.bias[first..][..out.len()]);
    for ((out, value), bias) in out.iter_mut().zip(values).zip(bias) {
        *out = M::multiply_add(*value, scale, *bias) * factor;
    }
}

/// The packed keys and values of all heads, one after the other.
#[derive(Clone, Copy)]
pub struct PackedHeads<'a> {
    pub keys: &'a [u32],
    pub values: &'a [u32],
}

/// The attention of the queries `rows` to all positions, in bytes; `out` are these rows.
pub fn attend(
    instructions: InstructionSet,
    input: AttentionInput<'_>,
    packed: PackedHeads<'_>,
    rows: Range<usize>,
    out: ByteRows<'_>,
) {
    with_registers!(
        instructions,
        attend_of(input: AttentionInput<'_>, packed: PackedHeads<'_>, rows: Range<usize>, out: ByteRows<'_>)
    );
}

#[inline(always)]
fn attend_of<P: ProductRegister, M: MultiplyAdd, const ROWS: usize>(
    input: AttentionInput<'_>,
    packed: PackedHeads<'_>,
    rows: Range<usize>,
    out: ByteRows<'_>,
) {
    let AttentionShape { heads, width, .. } = input.shape;
    let sizes = PackedSizes::new::<P>(input.shape);
    let columns = input.shape.columns();
    let mut block = QueryBlock::<ROWS>::new(sizes);
    let mut heard = vec![0.0; rows.len() * columns];

    // One head after the other, so that its keys and values stay in the processor's cache.
    let all_keys = packed.keys.chunks_exact(sizes.keys());
    for (head, (keys, values)) in all_keys.zip(packed.values.chunks_exact(sizes.values())).take(heads).enumerate() {
        for first in rows.clone().step_by(ROWS) {
            let count = ROWS.min(rows.end - first);
            block.read::<P, M>(input, head, first, count);
            block.score::<P>(keys);
            block.soften::<P, M>(input.shape.positions);

            for group in 0..sizes.groups {
                let columns_left = width - group * sizes.tile;
                block.weigh::<P>(&values[group * sizes.pairs * sizes.tile..][..sizes.pairs * sizes.tile]);

                let results = block.results.chunks_exact(sizes.tile).zip(block.inverse).take(count);
                for (row, (results, inverse)) in results.enumerate() {
                    let to = (first - rows.start + row) * columns + head * width + group * sizes.tile;
                    let to = &mut heard[to..][..columns_left.min(sizes.tile)];
                    for (to, result) in to.iter_mut().zip(results) {
                        *to = result * inverse;
                    }
                }
            }
        }
    }

    let rows = heard.chunks_exact(columns).zip(out.bytes.chunks_exact_mut(columns)).zip(out.scales);
    for ((values, bytes), scale) in rows {
        *scale = round_row::<M>(values, bytes);
    }
}

/// Some queries of one head on their way through the attention.
struct QueryBlock<const ROWS: usize> {
    sizes: PackedSizes,
    /// Room for a query.
    row: Vec<f32>,
    /// `[ROWS, depth]`.
    queries: Vec<u32>,
    /// `[ROWS, positions]`: the scores, as exponents of two.
    scores: Vec<f32>,
    /// `[ROWS, pairs]`: the softmax without its divisor, packed.
    weights: Vec<u32>,
    /// One divided by the softmax's divisor.
    inverse: [f32; ROWS],
    /// `[ROWS, tile]`: a group of columns of the results, without the softmax's divisor.
    results: Vec<f32>,
}

impl<const ROWS: usize> QueryBlock<ROWS> {
    fn new(sizes: PackedSizes) -> Self {
        Self {
            sizes,
            row: vec![0.0; sizes.groups * sizes.tile],
            queries: vec![0; ROWS * sizes.depth],
            scores: vec![0.0; ROWS * sizes.positions],
            weights: vec![0; ROWS * sizes.pairs],
            inverse: [0.0; ROWS],
            results: vec![0.0; ROWS * sizes.tile],
        }
    }

    /// Packs the queries `first` to `first + count`; the rows after these keep what they held.
    #[inline(always)]
    fn read<P: ProductRegister, M: MultiplyAdd>(
        &mut self,
        input: AttentionInput<'_>,
        head: usize,
        first: usize,
        count: usize,
    ) {
        let width = input.shape.width;
        let factor = std::f32::consts::LOG2_E / (width as f32).sqrt();
        let row = &mut self.row[..width];

        for (position, packed) in (first..first + count).zip(self.queries.chunks_exact_mut(self.sizes.depth)) {
            read_part::<M>(input.product, position, head * width, factor, row);
            // SAFETY: `attend` selected instructions that the processor has.
            unsafe { P::pack(row, packed) };
        }
    }

    /// The products of the queries and all keys.
    #[inline(always)]
    fn score<P: ProductRegister>(&mut self, keys: &[u32]) {
        let PackedSizes { tile, positions, depth, .. } = self.sizes;

        for (number, keys) in keys.chunks_exact(tile * depth).enumerate() {
            // SAFETY: `queries` are `ROWS` rows of `depth` numbers, and `keys` `depth` rows of a tile. `attend` selected
            // instructions that the processor has.
            let sums: Tile<P, ROWS> =
                unsafe { multiply::<P, ROWS>(self.queries.as_ptr(), depth, keys.as_ptr(), depth) };

            for (row, sums) in self.scores.chunks_exact_mut(positions).zip(sums) {
                store::<P>(sums, &mut row[number * tile..][..tile]);
            }
        }
    }

    /// The softmax of the scores, without its divisor. `positions`: those that exist.
    #[inline(always)]
    fn soften<P: ProductRegister, M: MultiplyAdd>(&mut self, positions: usize) {
        let scores = self.scores.chunks_exact_mut(self.sizes.positions);
        let rows = scores.zip(self.weights.chunks_exact_mut(self.sizes.pairs)).zip(&mut self.inverse);

        for ((scores, weights), inverse) in rows {
            scores[positions..].fill(f32::NEG_INFINITY);
            *inverse = soften_row::<P, M>(scores, weights).recip();
        }
    }

    /// Writes the weighted sums of a group of columns to `results`.
    #[inline(always)]
    fn weigh<P: ProductRegister>(&mut self, values: &[u32]) {
        let PackedSizes { tile, pairs, .. } = self.sizes;
        let values = &values[..pairs * tile];

        // SAFETY: `weights` are `ROWS` rows of `pairs` numbers, and `values` `pairs` rows of a tile. `attend` selected
        // instructions that the processor has.
        let sums: Tile<P, ROWS> = unsafe { multiply::<P, ROWS>(self.weights.as_ptr(), pairs, values.as_ptr(), pairs) };

        for (row, sums) in self.results.chunks_exact_mut(tile).zip(sums) {
            store::<P>(sums, row);
        }
    }
}

/// Writes the two registers of a row of a tile.
#[inline(always)]
fn store<P: ProductRegister>([left, right]: [P::Sums; 2], to: &mut [f32]) {
    let (first, second) = to[..2 * P::LANES].split_at_mut(P::LANES);

    // SAFETY: each half has room for a register. The caller has one, so the processor has its instructions.
    unsafe {
        P::store(left, first.as_mut_ptr());
        P::store(right, second.as_mut_ptr());
    }
}

/// Scores that are softened at a time; [`PackedSizes::positions`] are whole parts of so many.
const SOFTENED: usize = 32;

/// Writes 2 to the power of the distance of each score to the largest one, packed, and returns the sum.
#[inline(always)]
fn soften_row<P: ProductRegister, M: MultiplyAdd>(scores: &[f32], weights: &mut [u32]) -> f32 {
    let (parts, _) = scores.as_chunks::<SOFTENED>();
    let mut most = [f32::NEG_INFINITY; SOFTENED];
    for part in parts {
        for lane in 0..SOFTENED {
            most[lane] = if part[lane] > most[lane] { part[lane] } else { most[lane] };
        }
    }

    let most = most.into_iter().fold(f32::NEG_INFINITY, f32::max);
    let mut sums = [0.0f32; SOFTENED];
    for (part, weights) in parts.iter().zip(weights.chunks_exact_mut(SOFTENED / P::PACKED)) {
        let mut powers = [0.0; SOFTENED];
        for lane in 0..SOFTENED {
            powers[lane] = exp2::<M>(part[lane] - most);
            sums[lane] += powers[lane];
        }

        // SAFETY: `attend` selected instructions that the processor has.
        unsafe { P::pack(&powers, weights) };
    }

    sums.into_iter().sum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::kernels::{
        InstructionKind, ROW_ZERO,
        tests::{Numbers, real_rows},
    };

    struct AttentionCase {
        shape: AttentionShape,
        qkv: Vec<f32>,
        row_scales: Vec<f32>,
        bias: Vec<f32>,
    }

    impl AttentionCase {
        fn new(shape: AttentionShape, seed: u64, size: f32) -> Self {
            let mut numbers = Numbers::new(seed);
            let columns = 3 * shape.columns();

            Self {
                shape,
                qkv: numbers.take(shape.positions * columns, size),
                row_scales: numbers.take(shape.positions, 0.5).iter().map(|scale| 1.0 + scale).collect(),
                bias: numbers.take(columns, 0.5),
            }
        }

        fn input(&self) -> AttentionInput<'_> {
            let product = ScaledProduct { values: &self.qkv, row_scales: &self.row_scales, bias: &self.bias };
            AttentionInput { shape: self.shape, product }
        }

        /// The result in f64, `[positions, columns]`.
        fn expected(&self) -> Vec<f64> {
            let AttentionShape { positions, heads, width } = self.shape;
            let columns = self.shape.columns();
            let value = |row: usize, column: usize| {
                let product = f64::from(self.qkv[row * 3 * columns + column]);
                product * f64::from(self.row_scales[row]) + f64::from(self.bias[column])
            };

            let mut all = vec![0.0; positions * columns];
            for head in 0..heads {
                for query in 0..positions {
                    let score = |key: usize| {
                        let products = (head * width..(head + 1) * width)
                            .map(|column| value(query, column) * value(key, columns + column));
                        products.sum::<f64>() / (width as f64).sqrt()
                    };

                    let scores: Vec<f64> = (0..positions).map(score).collect();
                    let most = scores.iter().copied().fold(f64::MIN, f64::max);
                    let weights: Vec<f64> = scores.iter().map(|score| (score - most).exp()).collect();
                    let sum: f64 = weights.iter().sum();

                    for column in head * width..(head + 1) * width {
                        let heard = weights.iter().enumerate();
                        let heard: f64 = heard.map(|(key, weight)| weight * value(key, 2 * columns + column)).sum();
                        all[query * columns + column] = heard / sum;
                    }
                }
            }

            all
        }

        /// The result of the queries in parts of `part` rows.
        fn attended(&self, instructions: InstructionSet, part: usize) -> Vec<f32> {
            let (heads, columns) = (self.shape.heads, self.shape.columns());
            let [key_length, value_length] = packed_lengths(instructions, self.shape);

            // What a longer window has left in the buffers must not matter.
            let (mut keys, mut values) = (vec![u32::MAX; heads * key_length], vec![u32::MAX; heads * value_length]);
            let all = keys.chunks_exact_mut(key_length).zip(values.chunks_exact_mut(value_length));
            for (head, (keys, values)) in all.enumerate() {
                pack_head(instructions, self.input(), head, PackedHead { keys, values });
            }

            let mut bytes = vec![0; self.shape.positions * columns];
            let mut scales = vec![0.0; self.shape.positions];
            let parts = bytes.chunks_mut(part * columns).zip(scales.chunks_mut(part)).enumerate();
            for (number, (bytes, scales)) in parts {
                let rows = number * part..number * part + scales.len();
                let packed = PackedHeads { keys: &keys, values: &values };
                attend(instructions, self.input(), packed, rows, ByteRows { bytes, scales });
            }

            real_rows(&bytes, &scales, columns, ROW_ZERO)
        }
    }

    /// A byte is within half a step of its row. The rounding to bfloat16 changes the weights of the values, so that the error
    /// grows with these and not with their sum.
    fn assert_close(case: &AttentionCase, part: usize) {
        let expected = case.expected();
        let columns = case.shape.columns();
        let most = |values: &[f32]| values.iter().fold(0.0f32, |most, value| most.max(value.abs()));
        let largest = 1.5 * most(&case.qkv) + most(&case.bias);

        for instructions in InstructionSet::all() {
            let rounding = if instructions.0 == InstructionKind::Avx512Bf16 { 0.02 * f64::from(largest) } else { 1e-4 };
            let found = case.attended(instructions, part);

            for (row, (found, expected)) in found.chunks(columns).zip(expected.chunks(columns)).enumerate() {
                let size = expected.iter().fold(0.0f64, |size, value| size.max(value.abs()));
                for (found, expected) in found.iter().zip(expected) {
                    let difference = (f64::from(*found) - expected).abs();
                    let allowed = 0.51 / 127.0 * (size + rounding) + rounding;
                    assert!(difference <= allowed, "{instructions:?}, row {row}: {found} instead of {expected}");
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        #[test]
        fn attention_is_that_of_real_numbers(
            positions in 1usize..70,
            heads in 1usize..4,
            width in 1usize..80,
            part in 1usize..30,
            seed: u64,
        ) {
            assert_close(&AttentionCase::new(AttentionShape { positions, heads, width }, seed, 2.0), part);
        }
    }

    /// One key outweighs all others by far, and scores are large.
    #[test]
    fn peaked_attention_neither_overflows_nor_vanishes() {
        let shape = AttentionShape { positions: 100, heads: 2, width: 64 };
        let case = AttentionCase::new(shape, 7, 60.0);
        for instructions in InstructionSet::all() {
            let found = case.attended(instructions, 24);
            assert!(found.iter().all(|value| value.is_finite()), "{instructions:?}");
            assert!(found.chunks(128).all(|row| row.iter().any(|value| value.abs() > 1.0)), "{instructions:?}");
        }
    }

    /// The sizes of Whisper's windows.
    #[test]
    fn windows_of_whisper_are_attended() {
        for positions in [600, 1500] {
            assert_close(&AttentionCase::new(AttentionShape { positions, heads: 1, width: 64 }, 3, 1.0), 192);
        }
    }
}
