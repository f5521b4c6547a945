//! Converts the values of a checkpoint for the weights file: to another type, transposed, or rounded to 8 bits. A few rows
//! are converted at a time; only a matrix that is transposed is held whole.
//!
//! Signed bytes are multiplied by the unsigned bytes of the activations. A processor without VNNI adds two neighbouring
//! products in 16 bits, where `255 * 127 + 255 * 127` is beyond the range and saturates. So the scale of a column is such
//! that two neighbours of the same sign are at most [`LARGEST_PAIR`] together, and no sum can saturate: the same bytes are
//! right on every processor, wherever the model was installed. Half the range (7 bits) would do the same, but here a column
//! keeps the range up to 127 for values whose neighbours are small. Blocks have no such limit, because ONNX Runtime
//! multiplies them without 16-bit sums.

use std::io;

use half::f16;

use crate::checkpoint::{CheckpointError, CheckpointTensor};
use crate::onnx::{ElementType, TensorWriter};

use super::BuildError;

/// Values that are converted at a time.
const CHUNK: usize = 1 << 16;
/// Rows of the transposed matrix that are written at a time: a cache line of the source.
const TRANSPOSED_ROWS: usize = 16;

/// The largest sum of two neighbouring bytes of the same sign: `255 * 128 = 32640`, which 16 bits can hold.
const LARGEST_PAIR: f32 = 128.0;

/// The byte of an 8-bit block that means zero.
pub const ZERO: u8 = 128;

pub fn write_reals(out: TensorWriter<'_>, element: ElementType, values: &[f32]) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(values.len().min(CHUNK) * element.bytes());
    for part in values.chunks(CHUNK) {
        bytes.clear();

        if element == ElementType::F16 {
            for value in part {
                let half = f16::from_f32(*value);
                if half.is_infinite() {
                    return Err(io::Error::other(format!("the value {value} is beyond the range of fp16")));
                }
                bytes.extend_from_slice(&half.to_le_bytes());
            }
        } else {
            bytes.extend(part.iter().flat_map(|v| v.to_le_bytes()));
        }

        out.write_all(&bytes)?;
    }

    Ok(())
}

/// The tensor without transposition.
pub fn plain(tensor: &CheckpointTensor<'_>, element: ElementType, out: TensorWriter<'_>) -> Result<(), BuildError> {
    let mut values = vec![0.0; CHUNK.min(tensor.len())];
    for start in (0..tensor.len()).step_by(CHUNK) {
        let part = CHUNK.min(tensor.len() - start);
        let values = &mut values[..part];
        tensor.read(start, values)?;
        write_reals(out, element, values)?;
    }

    Ok(())
}

/// Matrices `[out, in]` side by side, as one `[in, sum of out]`.
pub fn transposed(
    tensors: &[CheckpointTensor<'_>],
    element: ElementType,
    out: TensorWriter<'_>,
) -> Result<(), BuildError> {
    let columns: Vec<Vec<f32>> = tensors.iter().map(CheckpointTensor::to_vec).collect::<Result<_, _>>()?;
    transpose(&columns, inner(tensors), |rows| Ok(write_reals(out, element, rows)?))
}

/// Like [`transposed`], in signed bytes with one scale per column. The values that `factors` belong to are multiplied by
/// them first: one factor per row of the result, or none.
pub fn transposed_i8(
    tensors: &[CheckpointTensor<'_>],
    factors: &[f32],
    out: TensorWriter<'_>,
) -> Result<(), BuildError> {
    let inner = inner(tensors);
    let mut columns: Vec<Vec<f32>> = tensors.iter().map(CheckpointTensor::to_vec).collect::<Result<_, _>>()?;

    for column in columns.iter_mut().flat_map(|c| c.chunks_exact_mut(inner)) {
        multiply(column, factors);
        let scale = product_scale(column);
        column.iter_mut().for_each(|v| *v = (*v / scale).round_ties_even());
    }

    let mut bytes = Vec::new();
    transpose(&columns, inner, |rows| {
        bytes.clear();
        bytes.extend(rows.iter().map(|v| *v as i8 as u8));
        Ok(out.write_all(&bytes)?)
    })
}

fn inner(tensors: &[CheckpointTensor<'_>]) -> usize {
    tensors.first().and_then(|t| t.shape().get(1)).copied().unwrap_or_default()
}

fn transpose(
    matrices: &[Vec<f32>],
    inner: usize,
    mut write: impl FnMut(&[f32]) -> Result<(), BuildError>,
) -> Result<(), BuildError> {
    let width: usize = matrices.iter().map(|m| m.len() / inner).sum();
    let mut rows = vec![0.0; TRANSPOSED_ROWS * width];
    for first in (0..inner).step_by(TRANSPOSED_ROWS) {
        let count = TRANSPOSED_ROWS.min(inner - first);
        for (column, source) in matrices.iter().flat_map(|m| m.chunks_exact(inner)).enumerate() {
            for (row, value) in source[first..first + count].iter().enumerate() {
                rows[row * width + column] = *value;
            }
        }
        write(&rows[..count * width])?;
    }

    Ok(())
}

/// A convolution `[outputs, inputs, width]` as `[width inputs, outputs]`.
pub fn taps_first(tensor: &CheckpointTensor<'_>) -> Result<Vec<f32>, CheckpointError> {
    let values = tensor.to_vec()?;
    let [outputs, inputs, width] = *tensor.shape() else { return Ok(values) };
    let mut rows = Vec::with_capacity(values.len());
    for tap in 0..width {
        for input in 0..inputs {
            rows.extend((0..outputs).map(|o| values[(o * inputs + input) * width + tap]));
        }
    }

    Ok(rows)
}

/// A matrix of `width` columns, in signed bytes with one scale per column.
pub fn columns_i8(values: &[f32], width: usize) -> (Vec<u8>, Vec<f32>) {
    let mut bytes = vec![0; values.len()];
    let mut scales = Vec::with_capacity(width);
    let mut column = Vec::with_capacity(values.len() / width.max(1));

    for index in 0..width {
        column.clear();
        column.extend(values.iter().skip(index).step_by(width));
        let scale = product_scale(&column);

        for (byte, value) in bytes.iter_mut().skip(index).step_by(width).zip(&column) {
            *byte = (value / scale).round_ties_even() as i8 as u8;
        }
        scales.push(scale);
    }

    (bytes, scales)
}

/// The scales of [`transposed_i8`].
pub fn column_scales(tensors: &[CheckpointTensor<'_>], factors: &[f32]) -> Result<Vec<f32>, CheckpointError> {
    let mut scales = Vec::new();
    each_row(tensors, factors, |row| {
        scales.push(product_scale(row));
        Ok::<_, CheckpointError>(())
    })?;
    Ok(scales)
}

/// Multiplies each value by its factor; without factors the values remain.
fn multiply(values: &mut [f32], factors: &[f32]) {
    values.iter_mut().zip(factors).for_each(|(value, factor)| *value *= factor);
}

/// Matrices `[out, in]` one below the other, in unsigned bytes around [`ZERO`] with one scale per block of a row. The values
/// of each row are multiplied by `factors` first, if there are any.
pub fn blocks_u8(
    tensors: &[CheckpointTensor<'_>],
    factors: &[f32],
    block: usize,
    out: TensorWriter<'_>,
) -> Result<(), BuildError> {
    let mut bytes = Vec::new();
    each_row(tensors, factors, |row| {
        bytes.clear();

        for values in row.chunks(block) {
            let inverse = 1.0 / scale(values);
            bytes.extend(values.iter().map(|v| ((v * inverse).round_ties_even() as i16 + i16::from(ZERO)) as u8));
        }
        Ok::<_, BuildError>(out.write_all(&bytes)?)
    })
}

/// The scales of [`blocks_u8`].
pub fn block_scales(
    tensors: &[CheckpointTensor<'_>],
    factors: &[f32],
    block: usize,
    element: ElementType,
    out: TensorWriter<'_>,
) -> Result<(), BuildError> {
    let mut scales = Vec::new();
    each_row(tensors, factors, |row| {
        scales.clear();
        scales.extend(row.chunks(block).map(scale));
        Ok::<_, BuildError>(write_reals(out, element, &scales)?)
    })
}

/// The scale with which the largest value becomes 127.
fn scale(values: &[f32]) -> f32 {
    let largest = values.iter().fold(0.0f32, |a, v| a.max(v.abs()));
    if largest > 0.0 { largest / 127.0 } else { 1.0 }
}

/// The least scale with which no value is beyond 127, and no two neighbours of the same sign are beyond [`LARGEST_PAIR`]
/// together, once they are rounded.
fn product_scale(column: &[f32]) -> f32 {
    // Rounding adds at most a half to each of two neighbours.
    let largest_pair = column.windows(2).fold(0.0f32, |largest, pair| largest.max((pair[0] + pair[1]).abs()));
    scale(column).max(largest_pair / (LARGEST_PAIR - 1.0))
}

fn each_row<E: From<CheckpointError>>(
    tensors: &[CheckpointTensor<'_>],
    factors: &[f32],
    mut each: impl FnMut(&[f32]) -> Result<(), E>,
) -> Result<(), E> {
    for tensor in tensors {
        let inner = tensor.len() / tensor.shape().first().copied().unwrap_or(1).max(1);
        let rows = (CHUNK / inner.max(1)).max(1);
        let mut values = vec![0.0; rows * inner];
        for start in (0..tensor.len()).step_by(rows * inner) {
            let values = &mut values[..(rows * inner).min(tensor.len() - start)];
            tensor.read(start, values)?;

            for row in values.chunks_exact_mut(inner) {
                multiply(row, factors);
                each(row)?;
            }
        }
    }

    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// The sum of products as a processor without VNNI computes it: two neighbouring products are added in 16 bits, which
    /// saturate.
    fn saturating_sum(activations: &[u8], weights: &[i8]) -> i64 {
        let product = |(a, w): (&u8, &i8)| i32::from(*a) * i32::from(*w);
        activations
            .chunks(2)
            .zip(weights.chunks(2))
            .map(|(a, w)| a.iter().zip(w).map(product).sum::<i32>().clamp(i16::MIN.into(), i16::MAX.into()))
            .map(i64::from)
            .sum()
    }

    fn exact_sum(activations: &[u8], weights: &[i8]) -> i64 {
        activations.iter().zip(weights).map(|(a, w)| i64::from(*a) * i64::from(*w)).sum()
    }

    /// The bytes of a single column, with its scale.
    fn column_i8(column: &[f32]) -> (Vec<i8>, f32) {
        let (bytes, scales) = columns_i8(column, 1);
        (bytes.into_iter().map(u8::cast_signed).collect(), scales[0])
    }

    /// Weights of every size, most of them small, with zeros and outliers.
    fn weights(length: impl Into<proptest::collection::SizeRange>) -> impl Strategy<Value = Vec<f32>> {
        let value = prop_oneof![8 => -1.0f32..1.0, 1 => Just(0.0), 1 => -40.0f32..40.0];
        (vec(value, length), -20i32..20)
            .prop_map(|(values, exponent)| values.into_iter().map(|v| v * 2f32.powi(exponent)).collect())
    }

    proptest! {
        #[test]
        fn no_sum_of_bytes_saturates_without_vnni(column in weights(1..200), noise in vec(any::<u8>(), 200)) {
            let (bytes, _) = column_i8(&column);

            // A processor may pair the values from the first or from the second one on.
            for first in [0, 1.min(bytes.len())] {
                let bytes = &bytes[first..];
                // The largest sums in both directions, and any others.
                let positive: Vec<u8> = bytes.iter().map(|b| if *b > 0 { 255 } else { 0 }).collect();
                let negative: Vec<u8> = bytes.iter().map(|b| if *b < 0 { 255 } else { 0 }).collect();
                for activations in [&positive, &negative, &noise] {
                    prop_assert_eq!(saturating_sum(activations, bytes), exact_sum(activations, bytes));
                }
            }
        }

        #[test]
        fn bytes_of_columns_are_within_half_a_step(values in weights(1..64), width in 1usize..8) {
            let values = &values[..values.len() / width * width];
            let (bytes, scales) = columns_i8(values, width);

            prop_assert_eq!(bytes.len(), values.len());
            prop_assert_eq!(scales.len(), width);
            for (index, (byte, value)) in bytes.iter().zip(values).enumerate() {
                let scale = scales[index % width];
                let error = (f32::from(byte.cast_signed()) * scale - value).abs();
                prop_assert!(error <= scale * 0.5001, "{value} became {byte} x {scale}");
            }
        }

        /// A column keeps 8 bits where no two neighbours of one sign are large, and never has fewer than 7.
        #[test]
        fn a_column_keeps_the_range_that_its_neighbours_leave(column in weights(1..200)) {
            let (bytes, scale) = column_i8(&column);
            let largest = column.iter().fold(0.0f32, |a, v| a.max(v.abs()));
            prop_assume!(largest > 0.0);

            prop_assert!(largest / scale >= 63.0);
            let alone = column.windows(2).all(|pair| pair[0] * pair[1] <= 0.0);
            if alone {
                prop_assert_eq!(bytes.iter().map(|b| b.unsigned_abs()).max(), Some(127));
            }
        }
    }

    /// A control: with the whole range the sums do saturate, so that the property above can fail.
    #[test]
    fn the_whole_range_saturates_without_vnni() {
        let (activations, weights) = ([255; 4], [127; 4]);
        assert_ne!(saturating_sum(&activations, &weights), exact_sum(&activations, &weights));
        assert_eq!(column_i8(&[1.0; 4]).0.iter().map(|b| i32::from(*b)).max(), Some(64));
    }

    #[test]
    fn transposition_keeps_every_value() {
        let (out, inner) = (5, 37);
        let a: Vec<f32> = (0..out * inner).map(|i| i as f32).collect();
        let b: Vec<f32> = (0..2 * inner).map(|i| 1000.0 + i as f32).collect();
        let mut got = Vec::new();

        transpose(&[a.clone(), b.clone()], inner, |rows| {
            got.extend_from_slice(rows);
            Ok(())
        })
        .unwrap();

        for i in 0..inner {
            for o in 0..out {
                assert_eq!(got[i * 7 + o], a[o * inner + i]);
            }
            for o in 0..2 {
                assert_eq!(got[i * 7 + 5 + o], b[o * inner + i]);
            }
        }
    }

    #[test]
    fn a_block_of_zeros_has_a_scale() {
        assert_eq!(scale(&[0.0; 4]), 1.0);
        assert_eq!(scale(&[0.5, -127.0]), 1.0);
    }
}
