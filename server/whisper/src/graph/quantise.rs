//! Converts the values of a checkpoint for the weights file: to another type, transposed, or rounded to 8 bits. A few rows
//! are converted at a time; only a matrix that is transposed is held whole.

use std::io;

use half::f16;

use crate::checkpoint::{CheckpointError, CheckpointTensor};
use crate::onnx::{ElementType, TensorWriter};

use super::BuildError;

/// Values that are converted at a time.
const CHUNK: usize = 1 << 16;
/// Rows of the transposed matrix that are written at a time: a cache line of the source.
const TRANSPOSED_ROWS: usize = 16;

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

/// Like [`transposed`], in signed bytes with one scale per column.
pub fn transposed_i8(
    tensors: &[CheckpointTensor<'_>],
    scales: &[f32],
    out: TensorWriter<'_>,
) -> Result<(), BuildError> {
    let inner = inner(tensors);
    let mut columns: Vec<Vec<f32>> = tensors.iter().map(CheckpointTensor::to_vec).collect::<Result<_, _>>()?;
    let mut scales = scales.iter();

    for row in columns.iter_mut().flat_map(|c| c.chunks_exact_mut(inner)) {
        let inverse = scales.next().map_or(0.0, |s| 1.0 / s);
        row.iter_mut().for_each(|v| *v = (*v * inverse).round_ties_even());
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
    let mut scales = vec![0.0f32; width];
    for row in values.chunks_exact(width) {
        scales.iter_mut().zip(row).for_each(|(largest, v)| *largest = largest.max(v.abs()));
    }
    scales.iter_mut().for_each(|s| *s = scale(&[*s]));
    let bytes = values.chunks_exact(width).flat_map(|row| row.iter().zip(&scales));
    (bytes.map(|(v, s)| (v / s).round_ties_even() as i8 as u8).collect(), scales)
}

/// The scale of each row, for [`transposed_i8`].
pub fn row_scales(tensors: &[CheckpointTensor<'_>]) -> Result<Vec<f32>, CheckpointError> {
    let mut scales = Vec::new();
    each_row(tensors, |row| {
        scales.push(scale(row));
        Ok::<_, CheckpointError>(())
    })?;
    Ok(scales)
}

/// Matrices `[out, in]` one below the other, in unsigned bytes around [`ZERO`] with one scale per block of a row.
pub fn blocks_u8(tensors: &[CheckpointTensor<'_>], block: usize, out: TensorWriter<'_>) -> Result<(), BuildError> {
    let mut bytes = Vec::new();

    each_row(tensors, |row| {
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
    block: usize,
    element: ElementType,
    out: TensorWriter<'_>,
) -> Result<(), BuildError> {
    let mut scales = Vec::new();
    each_row(tensors, |row| {
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

fn each_row<E: From<CheckpointError>>(
    tensors: &[CheckpointTensor<'_>],
    mut each: impl FnMut(&[f32]) -> Result<(), E>,
) -> Result<(), E> {
    for tensor in tensors {
        let inner = tensor.len() / tensor.shape().first().copied().unwrap_or(1).max(1);
        let rows = (CHUNK / inner.max(1)).max(1);
        let mut values = vec![0.0; rows * inner];
        for start in (0..tensor.len()).step_by(rows * inner) {
            let values = &mut values[..(rows * inner).min(tensor.len() - start)];
            tensor.read(start, values)?;
            values.chunks_exact(inner).try_for_each(&mut each)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

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
