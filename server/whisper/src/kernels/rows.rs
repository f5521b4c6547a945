//! Functions over the rows of an activation: each frame of the audio is a row.

use super::{LEAST_SCALE, MultiplyAdd, ROUNDING, ROW_ZERO, exp2, for_each_instruction_set};

/// Numbers that are processed at a time: enough for the widest registers.
const LANES: usize = 16;

/// The least value of a GELU, rounded down.
const LEAST_GELU: f32 = -0.17;
/// The distance of two bytes of [`gelu_rows`], times the row's range.
pub const GELU_STEP: f32 = (1.0 - LEAST_GELU) / 255.0;
/// The byte that means zero in the rows of [`gelu_rows`].
pub const GELU_ZERO: u8 = (-LEAST_GELU / GELU_STEP + 0.5) as u8;
/// A row whose largest value is less has this range.
const LEAST_GELU_RANGE: f32 = 1.0;
/// Added to the variance by every layer normalisation of Whisper.
pub const EPSILON: f32 = 1e-5;

/// A product of bytes without the scales of its rows and without the bias.
#[derive(Clone, Copy)]
pub struct ScaledProduct<'a> {
    /// `[rows, columns]`.
    pub values: &'a [f32],
    /// The factor of each row; empty: no factors.
    pub row_scales: &'a [f32],
    /// One value for each column.
    pub bias: &'a [f32],
}

impl<'a> ScaledProduct<'a> {
    /// The values and the factor of one row.
    pub fn row(&self, row: usize) -> (&'a [f32], f32) {
        let columns = self.bias.len();
        let scale = if self.row_scales.is_empty() { 1.0 } else { self.row_scales[row] };
        (&self.values[row * columns..][..columns], scale)
    }
}

/// The gain and the bias of a layer normalisation.
#[derive(Clone, Copy)]
pub struct NormParameters<'a> {
    pub gain: &'a [f32],
    pub bias: &'a [f32],
}

/// Rows in bytes, as they are written.
pub struct ByteRows<'a> {
    /// `[rows, columns]`, with [`ROW_ZERO`] for zero.
    pub bytes: &'a mut [u8],
    /// What the bytes of each row are multiplied by.
    pub scales: &'a mut [f32],
}

/// Which rows of an input make a row of [`gelu_rows`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowTaps {
    /// Neighbouring rows, side by side; the second of three is at `stride` times the number of the row.
    pub taps: usize,
    pub stride: usize,
}

for_each_instruction_set! {
    /// The GELU (tanh formula, within 0.0005 of the exact one) of the rows of `product`, in bytes: [`GELU_STEP`] times the
    /// range of the row is the distance of two bytes, [`GELU_ZERO`] is zero. For some frames a trained network computes single
    /// values that are a hundred times larger than all others; with a range for the whole matrix the other frames would have
    /// two or three bits.
    ///
    /// Writes the rows from `first` on. A tap before the first or after the last row is zero.
    pub fn gelu_rows = gelu_rows_of(product: ScaledProduct<'_>, taps: RowTaps, first: usize, out: ByteRows<'_>)
}

#[inline(always)]
fn gelu_rows_of<M: MultiplyAdd>(product: ScaledProduct<'_>, taps: RowTaps, first: usize, out: ByteRows<'_>) {
    let columns = product.bias.len();
    let rows = product.values.len() / columns;
    let mut values = vec![0.0; taps.taps * columns];

    for ((bytes, range), number) in out.bytes.chunks_exact_mut(values.len()).zip(out.scales).zip(first..) {
        let mut largest = LEAST_GELU_RANGE;
        let before = taps.taps / 2;

        for (tap, part) in values.chunks_exact_mut(columns).enumerate() {
            match (number * taps.stride + tap).checked_sub(before).filter(|row| *row < rows) {
                Some(row) => largest = gelu_row::<M>(product.row(row), product.bias, part).max(largest),
                None => part.fill(0.0),
            }
        }

        *range = largest;
        round_into::<M>(&values, (GELU_STEP * largest).recip(), GELU_ZERO, bytes);
    }
}

/// Writes the GELU of one row and returns its largest value.
#[inline(always)]
fn gelu_row<M: MultiplyAdd>((row, scale): (&[f32], f32), bias: &[f32], out: &mut [f32]) -> f32 {
    let mut largest = [0.0f32; LANES];
    let (row_parts, row_rest) = row.as_chunks::<LANES>();
    let (bias_parts, bias_rest) = bias.as_chunks::<LANES>();
    let (out_parts, out_rest) = out.as_chunks_mut::<LANES>();

    for ((row, bias), out) in row_parts.iter().zip(bias_parts).zip(out_parts) {
        for lane in 0..LANES {
            let value = gelu::<M>(M::multiply_add(row[lane], scale, bias[lane]));
            out[lane] = value;
            largest[lane] = if value > largest[lane] { value } else { largest[lane] };
        }
    }

    for ((row, bias), out) in row_rest.iter().zip(bias_rest).zip(out_rest) {
        *out = gelu::<M>(M::multiply_add(*row, scale, *bias));
        largest[0] = largest[0].max(*out);
    }

    largest.into_iter().fold(0.0, f32::max)
}

/// `x / (1 + exp(-2 u))` with `u = sqrt(2 / pi) (x + 0.044715 x^3)`.
#[inline(always)]
fn gelu<M: MultiplyAdd>(x: f32) -> f32 {
    // -2 sqrt(2 / pi) / ln 2
    const FACTOR: f32 = -2.302_208_2;

    let inner = M::multiply_add(0.044_715 * FACTOR, x * x, FACTOR);
    x / (1.0 + exp2::<M>(x * inner))
}

for_each_instruction_set! {
    /// The layer normalisation of the rows of `x`, in bytes.
    pub fn norm_rows = norm_rows_of(x: &[f32], norm: NormParameters<'_>, out: ByteRows<'_>)
}

#[inline(always)]
fn norm_rows_of<M: MultiplyAdd>(x: &[f32], norm: NormParameters<'_>, out: ByteRows<'_>) {
    let columns = norm.gain.len();
    let mut values = vec![0.0; columns];

    let rows = x.chunks_exact(columns).zip(out.bytes.chunks_exact_mut(columns)).zip(out.scales);
    for ((x, bytes), scale) in rows {
        *scale = norm_row::<M>(x, norm, &mut values, bytes);
    }
}

for_each_instruction_set! {
    /// `sum = x + product`, and the layer normalisation of its rows, in bytes. `product` are all rows, the others those from
    /// `first` on.
    pub fn add_norm_rows = add_norm_rows_of(
        x: &[f32],
        product: ScaledProduct<'_>,
        norm: NormParameters<'_>,
        first: usize,
        sum: &mut [f32],
        out: ByteRows<'_>,
    )
}

#[inline(always)]
fn add_norm_rows_of<M: MultiplyAdd>(
    x: &[f32],
    product: ScaledProduct<'_>,
    norm: NormParameters<'_>,
    first: usize,
    sum: &mut [f32],
    out: ByteRows<'_>,
) {
    let columns = norm.gain.len();
    let mut values = vec![0.0; columns];

    let rows = x.chunks_exact(columns).zip(sum.chunks_exact_mut(columns));
    let rows = rows.zip(out.bytes.chunks_exact_mut(columns)).zip(out.scales);

    for ((((x, sum), bytes), scale), number) in rows.zip(first..) {
        let (row, factor) = product.row(number);
        for (((sum, x), value), bias) in sum.iter_mut().zip(x).zip(row).zip(product.bias) {
            *sum = x + M::multiply_add(*value, factor, *bias);
        }

        *scale = norm_row::<M>(sum, norm, &mut values, bytes);
    }
}

/// Writes the normalised row in bytes and returns its scale. `values`: room for the row.
#[inline(always)]
fn norm_row<M: MultiplyAdd>(x: &[f32], norm: NormParameters<'_>, values: &mut [f32], bytes: &mut [u8]) -> f32 {
    let count = x.len() as f32;
    let mean = sum_of(x, |value| value) / count;
    let variance = sum_of(x, |value| (value - mean) * (value - mean)) / count;
    let inverse = (variance + EPSILON).sqrt().recip();

    for (((value, x), gain), bias) in values.iter_mut().zip(x).zip(norm.gain).zip(norm.bias) {
        *value = M::multiply_add((x - mean) * inverse, *gain, *bias);
    }

    round_row::<M>(values, bytes)
}

/// Writes a row in bytes, symmetric around [`ROW_ZERO`], and returns what they are multiplied by.
#[inline(always)]
pub(super) fn round_row<M: MultiplyAdd>(values: &[f32], bytes: &mut [u8]) -> f32 {
    let scale = (largest_size(values) / 127.0).max(LEAST_SCALE);
    round_into::<M>(values, scale.recip(), ROW_ZERO, bytes);
    scale
}

/// `values` times `factor`, rounded to bytes, with `zero` for zero. The results must be between 0 and 255.
#[inline(always)]
fn round_into<M: MultiplyAdd>(values: &[f32], factor: f32, zero: u8, bytes: &mut [u8]) {
    let zero = f32::from(zero) + ROUNDING;
    for (byte, value) in bytes.iter_mut().zip(values) {
        *byte = M::multiply_add(*value, factor, zero).to_bits() as u8;
    }
}

#[inline(always)]
fn sum_of(values: &[f32], term: impl Fn(f32) -> f32) -> f32 {
    let mut sums = [0.0f32; LANES];
    let (parts, rest) = values.as_chunks::<LANES>();
    for part in parts {
        for lane in 0..LANES {
            sums[lane] += term(part[lane]);
        }
    }

    sums.into_iter().sum::<f32>() + rest.iter().map(|value| term(*value)).sum::<f32>()
}

/// The largest absolute value.
#[inline(always)]
fn largest_size(values: &[f32]) -> f32 {
    let mut largest = [0.0f32; LANES];
    let (parts, rest) = values.as_chunks::<LANES>();
    for part in parts {
        for lane in 0..LANES {
            let size = part[lane].abs();
            largest[lane] = if size > largest[lane] { size } else { largest[lane] };
        }
    }

    largest.into_iter().chain(rest.iter().map(|value| value.abs())).fold(0.0, f32::max)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::kernels::{
        InstructionSet,
        tests::{Numbers, real_rows},
    };

    /// The exact GELU, by the series of the error function's integral.
    fn exact_gelu(x: f64) -> f64 {
        let steps = 2000;
        let step = x / f64::from(steps);
        let density = |t: f64| (-t * t / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
        let area: f64 = (0..steps).map(|i| density((f64::from(i) + 0.5) * step) * step).sum();
        x * (0.5 + area)
    }

    struct Activation {
        values: Vec<f32>,
        row_scales: Vec<f32>,
        bias: Vec<f32>,
    }

    impl Activation {
        fn new(rows: usize, columns: usize, seed: u64) -> Self {
            let mut numbers = Numbers::new(seed);
            Self {
                values: numbers.take(rows * columns, 3.0),
                row_scales: numbers.take(rows, 0.5).iter().map(|scale| 1.0 + scale).collect(),
                bias: numbers.take(columns, 0.5),
            }
        }

        fn product(&self) -> ScaledProduct<'_> {
            ScaledProduct { values: &self.values, row_scales: &self.row_scales, bias: &self.bias }
        }

        fn value(&self, row: usize, column: usize) -> f64 {
            let value = f64::from(self.values[row * self.bias.len() + column]);
            value * f64::from(self.row_scales[row]) + f64::from(self.bias[column])
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        #[test]
        fn gelus_are_within_half_a_byte(rows in 1usize..9, columns in 1usize..50, first in 0usize..9, seed: u64) {
            let first = first.min(rows - 1);
            let activation = Activation::new(rows, columns, seed);

            for instructions in InstructionSet::all() {
                let count = rows - first;
                let (mut bytes, mut ranges) = (vec![0; count * columns], vec![0.0; count]);
                let out = ByteRows { bytes: &mut bytes, scales: &mut ranges };
                gelu_rows(instructions, activation.product(), RowTaps { taps: 1, stride: 1 }, first, out);

                let scales: Vec<f32> = ranges.iter().map(|range| range * GELU_STEP).collect();
                for (at, found) in real_rows(&bytes, &scales, columns, GELU_ZERO).into_iter().enumerate() {
                    let expected = exact_gelu(activation.value(first + at / columns, at % columns));
                    let allowed = 0.51 * f64::from(scales[at / columns]) + 0.0006;
                    prop_assert!((f64::from(found) - expected).abs() <= allowed, "{instructions:?}: {found}, {expected}");
                }
            }
        }

        #[test]
        fn norms_are_within_half_a_byte(rows in 1usize..9, columns in 2usize..50, first in 0usize..9, seed: u64) {
            let first = first.min(rows - 1);
            let activation = Activation::new(rows, columns, seed);
            let mut numbers = Numbers::new(seed ^ 1);
            let x = numbers.take(rows * columns, 2.0);
            let (gain, bias) = (numbers.take(columns, 2.0), numbers.take(columns, 1.0));
            let norm = NormParameters { gain: &gain, bias: &bias };

            for instructions in InstructionSet::all() {
                let count = rows - first;
                let mut sum = vec![0.0; count * columns];
                let (mut bytes, mut scales) = (vec![0; count * columns], vec![0.0; count]);
                let out = ByteRows { bytes: &mut bytes, scales: &mut scales };
                let x = &x[first * columns..];
                add_norm_rows(instructions, x, activation.product(), norm, first, &mut sum, out);

                let (mut again, mut scales_again) = (vec![0; count * columns], vec![0.0; count]);
                norm_rows(instructions, &sum, norm, ByteRows { bytes: &mut again, scales: &mut scales_again });
                prop_assert_eq!(&bytes, &again, "{:?}", instructions);

                let found = real_rows(&bytes, &scales, columns, ROW_ZERO);
                for row in 0..count {
                    let sums: Vec<f64> = (0..columns)
                        .map(|column| f64::from(x[row * columns + column]) + activation.value(first + row, column))
                        .collect();
                    let mean = sums.iter().sum::<f64>() / columns as f64;
                    let variance = sums.iter().map(|sum| (sum - mean).powi(2)).sum::<f64>() / columns as f64;

                    for column in 0..columns {
                        let at = row * columns + column;
                        prop_assert!((f64::from(sum[at]) - sums[column]).abs() < 1e-4);

                        let normal = (sums[column] - mean) / (variance + f64::from(EPSILON)).sqrt();
                        let expected = normal * f64::from(gain[column]) + f64::from(bias[column]);
                        let allowed = 0.51 * f64::from(scales[row]) + 1e-3;
                        prop_assert!((f64::from(found[at]) - expected).abs() <= allowed, "{instructions:?}: {found:?}");
                    }
                }
            }
        }

        /// A row of three taps is three rows of one tap, with zeros beyond both ends.
        #[test]
        fn taps_are_neighbouring_rows(rows in 1usize..9, columns in 1usize..20, seed: u64) {
            let rows = 2 * rows;
            let activation = Activation::new(rows, columns, seed);

            for instructions in InstructionSet::all() {
                let gelu = |taps: RowTaps, rows: usize, row: usize| {
                    let (mut bytes, mut ranges) = (vec![0; rows * taps.taps * columns], vec![0.0; rows]);
                    let out = ByteRows { bytes: &mut bytes, scales: &mut ranges };
                    gelu_rows(instructions, activation.product(), taps, row, out);
                    let scales: Vec<f32> = ranges.iter().map(|range| range * GELU_STEP).collect();
                    (real_rows(&bytes, &scales, taps.taps * columns, GELU_ZERO), scales)
                };

                let (single, _) = gelu(RowTaps { taps: 1, stride: 1 }, rows, 0);
                let (joined, scales) = gelu(RowTaps { taps: 3, stride: 2 }, rows / 2, 0);

                for (at, found) in joined.iter().enumerate() {
                    let (row, tap) = (at / (3 * columns), at / columns % 3);
                    let source = (2 * row + tap).checked_sub(1).filter(|source| *source < rows);
                    let expected = source.map_or(0.0, |source| single[source * columns + at % columns]);
                    prop_assert!((found - expected).abs() <= 1.01 * scales[row], "{instructions:?}: {found}, {expected}");
                }
            }
        }
    }

    #[test]
    fn rows_without_values_and_huge_values_have_a_scale() {
        let norm = NormParameters { gain: &[1.0; 20], bias: &[0.0; 20] };
        for instructions in InstructionSet::all() {
            let (mut bytes, mut scales) = ([1; 20], [0.0]);
            norm_rows(instructions, &[3.0; 20], norm, ByteRows { bytes: &mut bytes, scales: &mut scales });
            assert!(bytes == [ROW_ZERO; 20] && scales[0] > 0.0, "{instructions:?}");

            let values = [1e30, -1e30, 0.0, 1e5, -1e5, f32::MIN_POSITIVE, 50.0, -50.0];
            let product = ScaledProduct { values: &values, row_scales: &[], bias: &[0.0; 8] };
            let (mut bytes, mut ranges) = ([0; 8], [0.0]);
            let out = ByteRows { bytes: &mut bytes, scales: &mut ranges };
            gelu_rows(instructions, product, RowTaps { taps: 1, stride: 1 }, 0, out);
            assert_eq!(bytes, [255, GELU_ZERO, GELU_ZERO, GELU_ZERO, GELU_ZERO, GELU_ZERO, GELU_ZERO, GELU_ZERO]);
            assert_eq!(ranges, [1e30]);
        }
    }
}
