//! Keys and values of the cross-attention in bytes.

use super::{LEAST_SCALE, MultiplyAdd, ROUNDING, for_each_instruction_set, rows::ScaledProduct};

for_each_instruction_set! {
    /// The columns from `first` on of all rows of `product`, in signed bytes with one scale for each column: `bytes` are
    /// `[rows, columns]`, `scales` `[columns]`. A decode step reads all keys and values of a window, so that a quarter of the
    /// bytes takes little more than a quarter of the time.
    pub fn columns_to_bytes = columns_to_bytes_of(product: ScaledProduct<'_>, first: usize, bytes: &mut [i8], scales: &mut [f32])
}

#[inline(always)]
fn columns_to_bytes_of<M: MultiplyAdd>(product: ScaledProduct<'_>, first: usize, bytes: &mut [i8], scales: &mut [f32]) {
    let columns = scales.len();
    let bias = &product.bias[first..][..columns];
    let rows = bytes.len() / columns;
    let part = |row: usize| {
        let (values, scale) = product.row(row);
        (&values[first..][..columns], scale)
    };

    scales.fill(LEAST_SCALE * 127.0);
    for row in 0..rows {
        let (values, factor) = part(row);
        for ((largest, value), bias) in scales.iter_mut().zip(values).zip(bias) {
            let size = M::multiply_add(*value, factor, *bias).abs();
            *largest = if size > *largest { size } else { *largest };
        }
    }

    let factors: Vec<f32> = scales.iter().map(|largest| 127.0 / largest).collect();
    scales.iter_mut().for_each(|largest| *largest /= 127.0);

    for (row, bytes) in bytes.chunks_exact_mut(columns).enumerate() {
        let (values, factor) = part(row);
        for (((byte, value), bias), inverse) in bytes.iter_mut().zip(values).zip(bias).zip(&factors) {
            let value = M::multiply_add(*value, factor, *bias);
            *byte = M::multiply_add(value, *inverse, ROUNDING).to_bits() as i8;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::kernels::{InstructionSet, tests::Numbers};

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        #[test]
        fn columns_are_within_half_a_byte(rows in 1usize..20, all in 1usize..40, first in 0usize..40, seed: u64) {
            let first = first.min(all - 1);
            let columns = all - first;
            let mut numbers = Numbers::new(seed);
            let values = numbers.take(rows * all, 3.0);
            let row_scales: Vec<f32> = numbers.take(rows, 0.5).iter().map(|scale| 1.0 + scale).collect();
            let bias = numbers.take(all, 1.0);
            let product = ScaledProduct { values: &values, row_scales: &row_scales, bias: &bias };

            for instructions in InstructionSet::all() {
                let (mut bytes, mut scales) = (vec![0; rows * columns], vec![0.0; columns]);
                columns_to_bytes(instructions, product, first, &mut bytes, &mut scales);

                for (at, byte) in bytes.iter().enumerate() {
                    let (row, column) = (at / columns, at % columns);
                    let expected = values[row * all + first + column] * row_scales[row] + bias[first + column];
                    let difference = (f32::from(*byte) * scales[column] - expected).abs();
                    prop_assert!(difference <= 0.51 * scales[column], "{instructions:?}: {byte}, {expected}");
                }

                for column in 0..columns {
                    let largest = bytes.iter().skip(column).step_by(columns).map(|byte| byte.unsigned_abs()).max();
                    prop_assert_eq!(largest, Some(127));
                }
            }
        }
    }

    #[test]
    fn a_column_of_zeros_has_a_scale() {
        let product = ScaledProduct { values: &[0.0; 6], row_scales: &[], bias: &[0.0; 2] };
        for instructions in InstructionSet::all() {
            let (mut bytes, mut scales) = ([1; 6], [0.0; 2]);
            columns_to_bytes(instructions, product, 0, &mut bytes, &mut scales);
            assert!(bytes == [0; 6] && scales.iter().all(|scale| *scale > 0.0));
        }
    }
}
