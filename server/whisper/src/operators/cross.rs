//! Keys and values of the cross-attention, for the decoder.

use ort::{
    Error,
    operator::{ComputeContext, Kernel, KernelContext, Operator, OperatorInput, OperatorOutput},
    value::TensorElementType,
};

use super::{
    OperatorWork, heads_of,
    tensors::{InputTensor, input, output, share},
};
use crate::kernels::{channels::columns_to_bytes, rows::ScaledProduct};

pub struct CrossBytesOperator {
    pub work: OperatorWork,
}

impl Operator for CrossBytesOperator {
    type Kernel<'attr> = CrossBytesKernel;

    fn name(&self) -> &'static str {
        "CrossBytes"
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        [const { OperatorInput::required(TensorElementType::Float32) }; 3]
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [TensorElementType::Int8, TensorElementType::Float32, TensorElementType::Int8, TensorElementType::Float32]
            .map(OperatorOutput::required)
    }

    fn create_kernel(&self, context: &KernelContext<'_>) -> Result<CrossBytesKernel, Error> {
        Ok(CrossBytesKernel { work: self.work, heads: heads_of(context)? })
    }
}

pub struct CrossBytesKernel {
    work: OperatorWork,
    heads: usize,
}

impl Kernel for CrossBytesKernel {
    fn compute(&mut self, context: &ComputeContext) -> Result<(), Error> {
        let values = [input(context, 0, "kv")?, input(context, 1, "row_scale")?, input(context, 2, "bias")?];
        let kv = InputTensor::read("kv", &values[0])?;
        let (windows, rows) = (kv.windows, kv.rows);
        let width = kv.columns / 2 / self.heads;
        let columns = self.heads * width;
        let kv = kv.expect([windows, rows, 2 * columns])?;
        let row_scales = InputTensor::read("row_scale", &values[1])?.expect([windows, rows, 1])?;
        let bias = InputTensor::read("bias", &values[2])?.expect([1, 1, 2 * columns])?.values;

        let (byte_shape, scale_shape) = ([windows, self.heads, rows, width], [windows, 1, columns]);
        let mut tensors = [
            output(context, 0, &byte_shape)?,
            output(context, 1, &scale_shape)?,
            output(context, 2, &byte_shape)?,
            output(context, 3, &scale_shape)?,
        ];

        let [keys, key_scales, values, value_scales] = &mut tensors;
        let mut parts = Vec::new();
        for (side, bytes, scales) in [(0, keys, key_scales), (columns, values, value_scales)] {
            let (_, bytes) = bytes.try_extract_tensor_mut::<i8>()?;
            let (_, scales) = scales.try_extract_tensor_mut::<f32>()?;

            for (number, (bytes, scales)) in bytes.chunks_mut(rows * width).zip(scales.chunks_mut(width)).enumerate() {
                let (window, head) = (number / self.heads, number % self.heads);
                let product = ScaledProduct { values: kv.window(window), row_scales: row_scales.window(window), bias };
                parts.push((product, side + head * width, bytes, scales));
            }
        }

        share(context, parts, |(product, first, bytes, scales)| {
            columns_to_bytes(self.work.instructions, product, first, bytes, scales);
        })
    }
}
