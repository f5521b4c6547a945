//! A buffer of equal slots. A graph sees any run of slots as one tensor without a copy, so that the rows of many requests
//! can share a call.

use std::{ops::Range, ptr};

use ort::{
    AsPointer,
    memory::Allocator,
    value::{DynTensor, Shape, TensorElementType},
};

/// The first `length` entries of a side of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotPrefix {
    /// The side, without that of the slots.
    pub axis: usize,
    pub length: usize,
}

/// The byte ranges of a slot's prefix.
struct PrefixPieces {
    /// In the buffer.
    scattered: Vec<Range<usize>>,
    /// In a tensor that holds nothing else.
    joined: Vec<Range<usize>>,
}

/// `[slots, ...slot]` of one element type.
pub struct Buffer {
    whole: DynTensor,
    element: TensorElementType,
    slot: Vec<usize>,
    slots: usize,
}

impl Buffer {
    /// The content is undefined.
    pub fn new(element: TensorElementType, slots: usize, slot: Vec<usize>) -> Result<Self, ort::Error> {
        let shape: Vec<usize> = std::iter::once(slots).chain(slot.iter().copied()).collect();
        Ok(Self { whole: DynTensor::new(&Allocator::default(), element, shape)?, element, slot, slots })
    }

    /// Makes room for `slots`; the first `used` slots keep their content.
    pub fn grow(&mut self, slots: usize, used: usize) -> Result<(), ort::Error> {
        let mut larger = Self::new(self.element, slots, self.slot.clone())?;
        for slot in 0..used.min(self.slots) {
            larger.copy_from(self, slot, slot, None)?;
        }

        *self = larger;
        Ok(())
    }

    pub fn element(&self) -> TensorElementType {
        self.element
    }

    /// Bytes of one slot.
    fn stride(&self) -> usize {
        self.bytes(self.slot.iter().product())
    }

    fn bytes(&self, elements: usize) -> usize {
        self.element.byte_size(elements).unwrap_or_default()
    }

    /// These slots as a tensor of their own, for graphs to read and write. The tensor must not be used after the buffer
    /// has grown or is dropped.
    pub fn view(&mut self, slots: Range<usize>) -> Result<DynTensor, ort::Error> {
        let count = slots.end.saturating_sub(slots.start);
        if slots.end > self.slots || count == 0 {
            return Err(ort::Error::new(format!("no slots {slots:?} in a buffer of {}", self.slots)));
        }

        let shape: Shape = std::iter::once(count).chain(self.slot.iter().copied()).map(|side| side as i64).collect();
        let (start, length) = (slots.start * self.stride(), count * self.stride());

        view(&mut self.whole, self.element, &shape, start, length)
    }

    /// Copies a slot of `from`, a buffer of the same shape; `prefix` limits the copy.
    pub fn copy_from(
        &mut self,
        from: &mut Self,
        source: usize,
        target: usize,
        prefix: Option<SlotPrefix>,
    ) -> Result<(), ort::Error> {
        if source >= from.slots || target >= self.slots || from.slot != self.slot || from.element != self.element {
            return Err(ort::Error::new(format!("a copy from slot {source} to {target} does not fit")));
        }

        let pieces = self.pieces(prefix);
        let (into, out) = (target * self.stride(), source * self.stride());
        copy_pieces(&mut self.whole, into, &from.whole, out, &pieces);

        Ok(())
    }

    /// Like [`Self::copy_from`], within this buffer.
    pub fn copy_within(&mut self, source: usize, target: usize, prefix: Option<SlotPrefix>) -> Result<(), ort::Error> {
        if source == target {
            return Ok(());
        }

        if source.max(target) >= self.slots {
            return Err(ort::Error::new(format!("a copy from slot {source} to {target} does not fit")));
        }

        let pieces = self.pieces(prefix);
        let (into, out) = (target * self.stride(), source * self.stride());
        copy_pieces_within(&mut self.whole, into, out, &pieces);

        Ok(())
    }

    /// The prefix of a slot as a tensor of its own, `[1, ...slot]` with the shorter side.
    pub fn prefix(&self, slot: usize, prefix: SlotPrefix) -> Result<DynTensor, ort::Error> {
        let mut copy = DynTensor::new(&Allocator::default(), self.element, self.prefix_shape(prefix))?;
        let PrefixPieces { scattered, joined } = self.prefix_pieces(slot, prefix)?;
        copy_each(&mut copy, &joined, &self.whole, &scattered);
        Ok(copy)
    }

    /// Writes a tensor of the form that [`Self::prefix`] returns into a slot.
    pub fn store_prefix(&mut self, slot: usize, prefix: SlotPrefix, tensor: &DynTensor) -> Result<(), ort::Error> {
        let shape: Vec<usize> = tensor.shape().iter().map(|side| usize::try_from(*side).unwrap_or_default()).collect();
        if shape != self.prefix_shape(prefix) || *tensor.data_type() != self.element {
            return Err(ort::Error::new(format!("a tensor {shape:?} does not fill {prefix:?} of a slot")));
        }

        let PrefixPieces { scattered, joined } = self.prefix_pieces(slot, prefix)?;
        copy_each(&mut self.whole, &scattered, tensor, &joined);

        Ok(())
    }

    /// The shape of the prefix of one slot.
    pub fn prefix_shape(&self, prefix: SlotPrefix) -> Vec<usize> {
        let mut shape: Vec<usize> = std::iter::once(1).chain(self.slot.iter().copied()).collect();
        if let Some(side) = shape.get_mut(1 + prefix.axis) {
            *side = prefix.length.min(*side);
        }
        shape
    }

    fn prefix_pieces(&self, slot: usize, prefix: SlotPrefix) -> Result<PrefixPieces, ort::Error> {
        if slot >= self.slots {
            return Err(ort::Error::new(format!("no slot {slot} in a buffer of {}", self.slots)));
        }

        let start = slot * self.stride();
        let scattered: Vec<_> =
            self.pieces(Some(prefix)).into_iter().map(|piece| start + piece.start..start + piece.end).collect();
        let joined = scattered.iter().scan(0, |end, piece| {
            let start = *end;
            *end += piece.len();
            Some(start..*end)
        });
        let joined = joined.collect();

        Ok(PrefixPieces { scattered, joined })
    }

    /// The byte ranges of a slot that a copy includes.
    fn pieces(&self, prefix: Option<SlotPrefix>) -> Vec<Range<usize>> {
        let Some(SlotPrefix { axis, length }) = prefix.filter(|prefix| prefix.axis < self.slot.len()) else {
            return std::iter::once(0..self.stride()).collect();
        };

        let (outer, sides) = self.slot.split_at(axis);
        let (outer, inner) = (outer.iter().product::<usize>(), sides[1..].iter().product::<usize>());
        let (stride, used) = (self.bytes(sides[0] * inner), self.bytes(length.min(sides[0]) * inner));

        (0..outer).map(|index| index * stride..index * stride + used).collect()
    }

    /// The values of these slots, for a buffer of f32 in the host's memory.
    pub fn numbers(&mut self, slots: Range<usize>) -> Result<&mut [f32], ort::Error> {
        let inner: usize = self.slot.iter().product();
        let (_, all) = self.whole.try_extract_tensor_mut::<f32>()?;
        all.get_mut(slots.start * inner..slots.end * inner).ok_or_else(|| ort::Error::new("no such slots"))
    }
}

#[allow(unsafe_code, reason = "ort has views of borrowed memory, but copies them when they are bound as inputs")]
fn view(
    whole: &mut DynTensor,
    element: TensorElementType,
    shape: &Shape,
    start: usize,
    length: usize,
) -> Result<DynTensor, ort::Error> {
    let mut value = ptr::null_mut();
    let data = whole.data_ptr_mut();

    // SAFETY: `start` and `length` are inside the buffer, whose memory is of the kind that its memory info states; the
    // value does not own the memory. The status and the value belong to ONNX Runtime.
    unsafe {
        let create = ort::api().CreateTensorWithDataAsOrtValue;
        let info = whole.memory_info().ptr();
        let data = data.byte_add(start);
        let status = create(info, data, length, shape.as_ptr(), shape.len(), element.into(), &raw mut value);
        ort::Error::result_from_status(status)?;
        let value = ptr::NonNull::new(value).ok_or_else(|| ort::Error::new("a view without a value"))?;
        Ok(DynTensor::from_ptr(value, Some(&Allocator::default())))
    }
}

#[allow(unsafe_code, reason = "bytes of a tensor, whatever its element type")]
fn copy_pieces(into: &mut DynTensor, to: usize, from: &DynTensor, at: usize, pieces: &[Range<usize>]) {
    let (into, from) = (into.data_ptr_mut().cast::<u8>(), from.data_ptr().cast::<u8>());
    for piece in pieces {
        // SAFETY: both ranges are inside their buffers, which the caller has checked, and the buffers are distinct.
        unsafe { ptr::copy_nonoverlapping(from.add(at + piece.start), into.add(to + piece.start), piece.len()) };
    }
}

/// Copies ranges of bytes to as many ranges of the same lengths, which are inside their tensors.
#[allow(unsafe_code, reason = "bytes of a tensor, whatever its element type")]
fn copy_each(into: &mut DynTensor, to: &[Range<usize>], from: &DynTensor, at: &[Range<usize>]) {
    let (into, from) = (into.data_ptr_mut().cast::<u8>(), from.data_ptr().cast::<u8>());
    for (to, at) in to.iter().zip(at) {
        // SAFETY: the ranges have the same length and are inside their tensors, which the caller has checked; the tensors are
        // distinct.
        unsafe { ptr::copy_nonoverlapping(from.add(at.start), into.add(to.start), at.len()) };
    }
}

#[allow(unsafe_code, reason = "bytes of a tensor, whatever its element type")]
fn copy_pieces_within(whole: &mut DynTensor, to: usize, at: usize, pieces: &[Range<usize>]) {
    let data = whole.data_ptr_mut().cast::<u8>();
    for piece in pieces {
        // SAFETY: both ranges are inside the buffer and do not overlap, which the caller has checked.
        unsafe { ptr::copy_nonoverlapping(data.add(at + piece.start), data.add(to + piece.start), piece.len()) };
    }
}
