//! Norms and GELUs, row by row.

use ort::{
    Error,
    operator::{ComputeContext, Kernel, KernelContext, Operator, OperatorInput, OperatorOutput},
    value::TensorElementType,
};

use super::{
    OperatorWork,
    tensors::{InputTensor, input, output, share},
};
use crate::kernels::rows::{ByteRows, NormParameters, RowTaps, ScaledProduct, add_norm_rows, gelu_rows, norm_rows};

/// A convolution of Whisper has three taps, and a stride of two.
const MOST_TAPS: usize = 16;

const REAL: OperatorInput = OperatorInput::required(TensorElementType::Float32);
const BYTES: OperatorOutput = OperatorOutput::required(TensorElementType::Uint8);
const REAL_OUTPUT: OperatorOutput = OperatorOutput::required(TensorElementType::Float32);

#[derive(Clone, Copy)]
pub struct NormRowsOperator {
    pub work: OperatorWork,
}

impl Operator for NormRowsOperator {
    type Kernel<'attr> = Self;

    fn name(&self) -> &'static str {
        "NormRows"
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        [REAL, REAL, REAL]
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [BYTES, REAL_OUTPUT]
    }

    fn create_kernel(&self, _: &KernelContext<'_>) -> Result<Self, Error> {
        Ok(*self)
    }
}

impl Kernel for NormRowsOperator {
    fn compute(&mut self, context: &ComputeContext) -> Result<(), Error> {
        let [x, gain, bias] = ["x", "gain", "bias"];
        let values = [input(context, 0, x)?, input(context, 1, gain)?, input(context, 2, bias)?];
        let x = InputTensor::read(x, &values[0])?;
        let norm = norm_parameters([&values[1], &values[2]].map(|value| &**value), x.columns)?;

        let (rows, columns) = (x.windows * x.rows, x.columns);
        let mut bytes = output(context, 0, &[x.windows, x.rows, columns])?;
        let mut scales = output(context, 1, &[x.windows, x.rows, 1])?;
        let (_, bytes) = bytes.try_extract_tensor_mut::<u8>()?;
        let (_, scales) = scales.try_extract_tensor_mut::<f32>()?;

        let part = self.work.part_rows(rows, 1);
        let out = bytes.chunks_mut(part * columns).zip(scales.chunks_mut(part));
        let parts = x.values.chunks(part * columns).zip(out).collect();

        share(context, parts, |(x, (bytes, scales))| {
            norm_rows(self.work.instructions, x, norm, ByteRows { bytes, scales });
        })
    }
}

fn norm_parameters<'v>(
    [gain, bias]: [&'v ort::value::DynValue; 2],
    columns: usize,
) -> Result<NormParameters<'v>, Error> {
    let gain = InputTensor::read("gain", gain)?.expect([1, 1, columns])?;
    let bias = InputTensor::read("bias of the norm", bias)?.expect([1, 1, columns])?;
    Ok(NormParameters { gain: gain.values, bias: bias.values })
}

#[derive(Clone, Copy)]
pub struct AddNormRowsOperator {
    pub work: OperatorWork,
}

impl Operator for AddNormRowsOperator {
    type Kernel<'attr> = Self;

    fn name(&self) -> &'static str {
        "AddNormRows"
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        [REAL, REAL, REAL, REAL, REAL, REAL]
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [REAL_OUTPUT, BYTES, REAL_OUTPUT]
    }

    fn create_kernel(&self, _: &KernelContext<'_>) -> Result<Self, Error> {
        Ok(*self)
    }
}

impl Kernel for AddNormRowsOperator {
    fn compute(&mut self, context: &ComputeContext) -> Result<(), Error> {
        let names = ["x", "product", "row_scale", "bias", "gain", "bias of the norm"];
        let [x, product, row_scale, bias, gain, norm_bias] = names;
        let values = [
            input(context, 0, x)?,
            input(context, 1, product)?,
            input(context, 2, row_scale)?,
            input(context, 3, bias)?,
            input(context, 4, gain)?,
            input(context, 5, norm_bias)?,
        ];

        let x = InputTensor::read(x, &values[0])?;
        let (windows, rows, columns) = (x.windows, x.rows, x.columns);
        let product = ScaledProduct {
            values: InputTensor::read(product, &values[1])?.expect([windows, rows, columns])?.values,
            row_scales: InputTensor::read(row_scale, &values[2])?.expect([windows, rows, 1])?.values,
            bias: InputTensor::read(bias, &values[3])?.expect([1, 1, columns])?.values,
        };
        let norm = norm_parameters([&values[4], &values[5]].map(|value| &**value), columns)?;

        let mut sum = output(context, 0, &[windows, rows, columns])?;
        let mut bytes = output(context, 1, &[windows, rows, columns])?;
        let mut scales = output(context, 2, &[windows, rows, 1])?;
        let (_, sum) = sum.try_extract_tensor_mut::<f32>()?;
        let (_, bytes) = bytes.try_extract_tensor_mut::<u8>()?;
        let (_, scales) = scales.try_extract_tensor_mut::<f32>()?;

        let part = self.work.part_rows(windows * rows, 1);
        let out = sum.chunks_mut(part * columns).zip(bytes.chunks_mut(part * columns)).zip(scales.chunks_mut(part));
        let parts = x.values.chunks(part * columns).zip(out).enumerate().collect();

        share(context, parts, |(number, (x, ((sum, bytes), scales)))| {
            let out = ByteRows { bytes, scales };
            add_norm_rows(self.work.instructions, x, product, norm, number * part, sum, out);
        })
    }
}

pub struct GeluRowsOperator {
    pub work: OperatorWork,
}

impl Operator for GeluRowsOperator {
    type Kernel<'attr> = GeluRowsKernel;

    fn name(&self) -> &'static str {
        "GeluRows"
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        [REAL, REAL, OperatorInput::optional(TensorElementType::Float32)]
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [BYTES, REAL_OUTPUT]
    }

    fn create_kernel(&self, context: &KernelContext<'_>) -> Result<GeluRowsKernel, Error> {
        let number = |name: &str| {
            let value = context.get::<i64>(name).and_then(|value| usize::try_from(value).ok());
            let value = value.filter(|value| (1..=MOST_TAPS).contains(value));
            value.ok_or_else(|| Error::new(format!("`GeluRows` has no `{name}` between 1 and {MOST_TAPS}")))
        };

        Ok(GeluRowsKernel { work: self.work, taps: RowTaps { taps: number("taps")?, stride: number("stride")? } })
    }
}

pub struct GeluRowsKernel {
    work: OperatorWork,
    taps: RowTaps,
}

impl Kernel for GeluRowsKernel {
    fn compute(&mut self, context: &ComputeContext) -> Result<(), Error> {
        let [product, bias, row_scale] = ["product", "bias", "row_scale"];
        let (product_value, bias_value) = (input(context, 0, product)?, input(context, 1, bias)?);
        let product = InputTensor::read(product, &product_value)?;
        let (windows, rows, columns) = (product.windows, product.rows, product.columns);
        let bias = InputTensor::read(bias, &bias_value)?.expect([1, 1, columns])?.values;

        let scale_value = context.input(2)?;
        let row_scales = match &scale_value {
            Some(value) => Some(InputTensor::read(row_scale, value)?.expect([windows, rows, 1])?),
            None => None,
        };

        let (out_rows, out_columns) = (rows / self.taps.stride, self.taps.taps * columns);
        let mut bytes = output(context, 0, &[windows, out_rows, out_columns])?;
        let mut ranges = output(context, 1, &[windows, out_rows, 1])?;
        let (_, bytes) = bytes.try_extract_tensor_mut::<u8>()?;
        let (_, ranges) = ranges.try_extract_tensor_mut::<f32>()?;
        if bytes.is_empty() {
            return Ok(());
        }

        let part = self.work.part_rows(out_rows, 1);
        let mut parts = Vec::new();
        let all = bytes.chunks_mut(out_rows * out_columns).zip(ranges.chunks_mut(out_rows));
        for (window, (bytes, ranges)) in all.enumerate() {
            let row_scales = row_scales.map_or(&[][..], |scales| scales.window(window));
            let product = ScaledProduct { values: product.window(window), row_scales, bias };
            let out = bytes.chunks_mut(part * out_columns).zip(ranges.chunks_mut(part)).enumerate();
            parts.extend(out.map(|(number, (bytes, scales))| (product, number * part, ByteRows { bytes, scales })));
        }

        share(context, parts, |(product, first, out)| {
            gelu_rows(self.work.instructions, product, self.taps, first, out);
        })
    }
}
