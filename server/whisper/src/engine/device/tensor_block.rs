//! Equal tensors in one block of memory, `[tensors, slots, slot]`. A run of slots of one tensor is contiguous, so that a
//! graph sees it as a tensor of its own; a copy between slots is one operation for all tensors together.

use std::{ffi::c_void, ops::Range, ptr};

use ort::{
    memory::MemoryInfo,
    value::{DynTensor, TensorElementType},
};

use super::{
    DeviceContext,
    cuda_api::{Copy3d, CopyExtent, CopyKind, CudaCallError, PitchedPointer, Position},
    memory::DeviceBuffer,
};

/// Equal tensors of several slots in one block of device memory.
pub struct TensorBlock {
    memory: DeviceBuffer,
    element: TensorElementType,
    tensors: usize,
    slots: usize,
    /// Shape of one slot.
    shape: Vec<usize>,
    slot_bytes: usize,
}

impl TensorBlock {
    /// Filled with zeros: a graph may read slots that nothing was written to, and gets finite numbers.
    pub fn new(
        context: &DeviceContext,
        element: TensorElementType,
        tensors: usize,
        slots: usize,
        shape: Vec<usize>,
    ) -> Result<Self, CudaCallError> {
        let slot_bytes = element.byte_size(shape.iter().product()).unwrap_or_default();
        let memory = DeviceBuffer::new(context.cuda.clone(), tensors * slots * slot_bytes)?;
        memory.clear(&context.stream)?;
        Ok(Self { memory, element, tensors, slots, shape, slot_bytes })
    }

    /// The slots of one tensor, `[slots, ...slot]`. The view must not be used after the block is dropped.
    pub fn view(&self, info: &MemoryInfo, tensor: usize, slots: Range<usize>) -> Result<DynTensor, ort::Error> {
        self.check(tensor, slots.end)?;
        let shape: Vec<usize> = std::iter::once(slots.len()).chain(self.shape.iter().copied()).collect();
        self.memory.tensor(info, self.element, self.offset(tensor, slots.start), &shape)
    }

    /// The beginning of a slot of one tensor, `[1, ...shape]`. The view must not be used after the block is dropped.
    pub fn view_prefix(
        &self,
        info: &MemoryInfo,
        tensor: usize,
        slot: usize,
        shape: &[usize],
    ) -> Result<DynTensor, ort::Error> {
        self.check(tensor, slot + 1)?;
        if shape.iter().product::<usize>() > self.shape.iter().product() {
            return Err(ort::Error::new(format!(
                "a window of shape {shape:?} does not fit into a slot of {:?}",
                self.shape
            )));
        }

        let shape: Vec<usize> = std::iter::once(1).chain(shape.iter().copied()).collect();
        self.memory.tensor(info, self.element, self.offset(tensor, slot), &shape)
    }

    /// Copies `count` slots of each tensor of `from`, a block with the same tensors.
    #[allow(unsafe_code, reason = "copies memory by address")]
    pub fn copy_slots(
        &self,
        context: &DeviceContext,
        from: &Self,
        source: usize,
        target: usize,
        count: usize,
    ) -> Result<(), ort::Error> {
        self.check_pair(from, source + count, target + count)?;

        let into = (self.address(target)?, self.tensor_bytes());
        let out = (from.address(source)?.cast_const(), from.tensor_bytes());
        let extent = (count * self.slot_bytes, self.tensors);

        // SAFETY: the slots are inside their blocks, which was checked.
        Ok(unsafe { context.cuda.copy_rows(into, out, extent, context.stream.handle()) }?)
    }

    /// Copies the first `length` entries of the second dimension of a slot `[heads, length, width]`, for each tensor of `from`.
    #[allow(unsafe_code, reason = "copies memory by address")]
    pub fn copy_prefix(
        &self,
        context: &DeviceContext,
        from: &Self,
        source: usize,
        target: usize,
        length: usize,
    ) -> Result<(), ort::Error> {
        self.check_pair(from, source + 1, target + 1)?;
        let &[heads, longest, width] = self.shape.as_slice() else {
            return Err(ort::Error::new("a prefix of a slot that has no rows"));
        };

        let row_bytes = self.element.byte_size(longest * width).unwrap_or_default();
        let prefix_bytes = self.element.byte_size(length.min(longest) * width).unwrap_or_default();

        if prefix_bytes == 0 {
            return Ok(());
        }

        let copy = Copy3d {
            source_array: ptr::null_mut(),
            source_position: Position::default(),
            source: from.pitched(source, row_bytes, heads)?,
            target_array: ptr::null_mut(),
            target_position: Position::default(),
            target: self.pitched(target, row_bytes, heads)?,
            extent: CopyExtent { width_bytes: prefix_bytes, rows: heads, slices: self.tensors },
            kind: CopyKind::DeviceToDevice,
        };

        // SAFETY: the slots are inside their blocks, which was checked.
        Ok(unsafe { context.cuda.copy_slices(&copy, context.stream.handle()) }?)
    }

    /// A slot of every tensor as slices of rows, one for each head.
    fn pitched(&self, slot: usize, row_bytes: usize, heads: usize) -> Result<PitchedPointer, ort::Error> {
        Ok(PitchedPointer {
            pointer: self.address(slot)?,
            row_bytes,
            width_bytes: row_bytes,
            // The same slot of the next tensor is so many rows away.
            rows: heads * self.slots,
        })
    }

    fn tensor_bytes(&self) -> usize {
        self.slots * self.slot_bytes
    }

    fn offset(&self, tensor: usize, slot: usize) -> usize {
        tensor * self.tensor_bytes() + slot * self.slot_bytes
    }

    /// The address of a slot of the first tensor.
    fn address(&self, slot: usize) -> Result<*mut c_void, ort::Error> {
        self.memory.at(self.offset(0, slot))
    }

    fn check(&self, tensor: usize, slots_end: usize) -> Result<(), ort::Error> {
        if tensor >= self.tensors || slots_end > self.slots {
            let (tensors, slots) = (self.tensors, self.slots);
            let problem = format!("slot {slots_end} of tensor {tensor}, of {tensors} tensors with {slots} slots");
            return Err(ort::Error::new(problem));
        }
        Ok(())
    }

    fn check_pair(&self, from: &Self, source_end: usize, target_end: usize) -> Result<(), ort::Error> {
        let is_same = from.shape == self.shape && from.element == self.element && from.tensors == self.tensors;
        if !is_same || source_end > from.slots || target_end > self.slots {
            return Err(ort::Error::new(format!("a copy up to slot {source_end} into slot {target_end} does not fit")));
        }
        Ok(())
    }
}
