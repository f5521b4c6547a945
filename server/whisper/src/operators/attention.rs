//! The encoder's self-attention.

use std::sync::{Arc, Mutex, PoisonError};

use ort::{
    Error,
    operator::{ComputeContext, Kernel, KernelContext, Operator, OperatorInput, OperatorOutput},
    value::TensorElementType,
};

use super::{
    OperatorWork, heads_of,
    tensors::{InputTensor, input, output, share},
};
use crate::kernels::{
    attention::{
        AttentionInput, AttentionShape, PackedHead, PackedHeads, attend, block_rows, pack_head, packed_lengths,
    },
    rows::{ByteRows, ScaledProduct},
};

/// Packed keys and values of one window.
#[derive(Default)]
pub struct PackedBuffers {
    keys: Vec<u32>,
    values: Vec<u32>,
}

pub struct AttentionOperator {
    pub work: OperatorWork,
    /// All layers use the same buffers, one after the other.
    pub packed: Arc<Mutex<PackedBuffers>>,
}

impl Operator for AttentionOperator {
    type Kernel<'attr> = AttentionKernel;

    fn name(&self) -> &'static str {
        "Attention"
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        [const { OperatorInput::required(TensorElementType::Float32) }; 3]
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [TensorElementType::Uint8, TensorElementType::Float32].map(OperatorOutput::required)
    }

    fn create_kernel(&self, context: &KernelContext<'_>) -> Result<AttentionKernel, Error> {
        Ok(AttentionKernel { work: self.work, heads: heads_of(context)?, packed: Arc::clone(&self.packed) })
    }
}

pub struct AttentionKernel {
    work: OperatorWork,
    heads: usize,
    packed: Arc<Mutex<PackedBuffers>>,
}

impl Kernel for AttentionKernel {
    fn compute(&mut self, context: &ComputeContext) -> Result<(), Error> {
        let values = [input(context, 0, "qkv")?, input(context, 1, "row_scale")?, input(context, 2, "bias")?];
        let qkv = InputTensor::read("qkv", &values[0])?;
        let (windows, positions) = (qkv.windows, qkv.rows);
        let shape = AttentionShape { positions, heads: self.heads, width: qkv.columns / 3 / self.heads };
        let columns = shape.columns();
        let qkv = qkv.expect([windows, positions, 3 * columns])?;
        let row_scales = InputTensor::read("row_scale", &values[1])?.expect([windows, positions, 1])?;
        let bias = InputTensor::read("bias", &values[2])?.expect([1, 1, 3 * columns])?.values;

        let mut bytes = output(context, 0, &[windows, positions, columns])?;
        let mut scales = output(context, 1, &[windows, positions, 1])?;
        let (_, bytes) = bytes.try_extract_tensor_mut::<u8>()?;
        let (_, scales) = scales.try_extract_tensor_mut::<f32>()?;

        let out = bytes.chunks_exact_mut(positions * columns).zip(scales.chunks_exact_mut(positions));
        for (window, (bytes, scales)) in out.enumerate() {
            let product = ScaledProduct { values: qkv.window(window), row_scales: row_scales.window(window), bias };
            self.attend_window(context, AttentionInput { shape, product }, ByteRows { bytes, scales })?;
        }

        Ok(())
    }
}

impl AttentionKernel {
    fn attend_window(
        &self,
        context: &ComputeContext,
        attention: AttentionInput<'_>,
        out: ByteRows<'_>,
    ) -> Result<(), Error> {
        let instructions = self.work.instructions;
        let [key_length, value_length] = packed_lengths(instructions, attention.shape);
        let mut packed = self.packed.lock().unwrap_or_else(PoisonError::into_inner);
        let PackedBuffers { keys, values } = &mut *packed;
        keys.resize(self.heads * key_length, 0);
        values.resize(self.heads * value_length, 0);

        let heads = keys.chunks_exact_mut(key_length).zip(values.chunks_exact_mut(value_length));
        let heads = heads.map(|(keys, values)| PackedHead { keys, values }).enumerate().collect();
        share(context, heads, |(head, packed)| pack_head(instructions, attention, head, packed))?;

        let columns = attention.shape.columns();
        let part = self.work.part_rows(attention.shape.positions, block_rows(instructions));
        let parts = out.bytes.chunks_mut(part * columns).zip(out.scales.chunks_mut(part)).enumerate().collect();
        let packed = PackedHeads { keys, values };

        share(context, parts, |(number, (bytes, scales))| {
            let rows = number * part..number * part + scales.len();
            attend(instructions, attention, packed, rows, ByteRows { bytes, scales });
        })
    }
}
