//! Memory in equal places. A graph sees any run of places as one tensor, and nothing is copied for it: that is what lets
//! the rows of many requests share a call.

use std::{ops::Range, ptr};

use ort::{
    AsPointer,
    memory::Allocator,
    value::{DynTensor, Shape, TensorElementType},
};

/// `[places, ...place]` of one element type.
pub struct Buffer {
    whole: DynTensor,
    element: TensorElementType,
    place: Vec<usize>,
    places: usize,
}

impl Buffer {
    /// What is in it is undefined.
    pub fn new(element: TensorElementType, places: usize, place: Vec<usize>) -> Result<Self, ort::Error> {
        let shape: Vec<usize> = std::iter::once(places).chain(place.iter().copied()).collect();
        Ok(Self { whole: DynTensor::new(&Allocator::default(), element, shape)?, element, place, places })
    }

    /// Room for `places`, with what the first `used` places hold.
    pub fn grow(&mut self, places: usize, used: usize) -> Result<(), ort::Error> {
        let mut larger = Self::new(self.element, places, self.place.clone())?;
        for place in 0..used.min(self.places) {
            larger.copy_from(self, place, place, None)?;
        }
        *self = larger;
        Ok(())
    }

    /// Bytes of one place.
    fn stride(&self) -> usize {
        self.bytes(self.place.iter().product())
    }

    fn bytes(&self, elements: usize) -> usize {
        self.element.byte_size(elements).unwrap_or_default()
    }

    /// These places as a tensor of their own, for graphs to read and write. It must not be used after the buffer grew or
    /// went.
    pub fn view(&mut self, places: Range<usize>) -> Result<DynTensor, ort::Error> {
        let count = places.end.saturating_sub(places.start);
        if places.end > self.places || count == 0 {
            return Err(ort::Error::new(format!("no places {places:?} in a buffer of {}", self.places)));
        }
        let shape: Shape = std::iter::once(count).chain(self.place.iter().copied()).map(|side| side as i64).collect();
        let (start, length) = (places.start * self.stride(), count * self.stride());
        view(&mut self.whole, self.element, &shape, start, length)
    }

    /// A copy of a place of `from`, a buffer of the same shape. `prefix` is how much of the second dimension counts; on
    /// a device all of the place is copied.
    pub fn copy_from(
        &mut self,
        from: &mut Self,
        source: usize,
        target: usize,
        prefix: Option<usize>,
    ) -> Result<(), ort::Error> {
        if source >= from.places || target >= self.places || from.place != self.place || from.element != self.element {
            return Err(ort::Error::new(format!("a copy from place {source} to {target} does not fit")));
        }
        let pieces = self.pieces(prefix);
        let (into, out) = (target * self.stride(), source * self.stride());
        copy_pieces(&mut self.whole, into, &from.whole, out, &pieces);
        Ok(())
    }

    /// As [`Self::copy_from`], within this buffer.
    pub fn copy_within(&mut self, source: usize, target: usize, prefix: Option<usize>) -> Result<(), ort::Error> {
        if source == target {
            return Ok(());
        }

        if source.max(target) >= self.places {
            return Err(ort::Error::new(format!("a copy from place {source} to {target} does not fit")));
        }

        let pieces = self.pieces(prefix);
        let (into, out) = (target * self.stride(), source * self.stride());
        copy_pieces_within(&mut self.whole, into, out, &pieces);

        Ok(())
    }

    /// Offset and length in bytes of what counts in a place `[heads, slots, ...]`.
    fn pieces(&self, prefix: Option<usize>) -> Vec<Range<usize>> {
        match (prefix, self.place.as_slice()) {
            (Some(prefix), [heads, slots, inner @ ..]) => {
                let inner: usize = inner.iter().product();
                let (stride, used) = (self.bytes(slots * inner), self.bytes(prefix.min(*slots) * inner));
                (0..*heads).map(|head| head * stride..head * stride + used).collect()
            }
            _ => std::iter::once(0..self.stride()).collect(),
        }
    }

    /// The numbers of these places, of a buffer of f32 in the host's memory.
    pub fn numbers(&mut self, places: Range<usize>) -> Result<&mut [f32], ort::Error> {
        let inner: usize = self.place.iter().product();
        let (_, all) = self.whole.try_extract_tensor_mut::<f32>()?;
        all.get_mut(places.start * inner..places.end * inner).ok_or_else(|| ort::Error::new("no such places"))
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
    // SAFETY: `start` and `length` lie in the buffer, whose memory is of the kind that its own memory info says; the
    // value does not own it. The status and the value are ONNX Runtime's own.
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
        // SAFETY: both places lie in their buffers, as the caller has checked, and the buffers are two.
        unsafe { ptr::copy_nonoverlapping(from.add(at + piece.start), into.add(to + piece.start), piece.len()) };
    }
}

#[allow(unsafe_code, reason = "bytes of a tensor, whatever its element type")]
fn copy_pieces_within(whole: &mut DynTensor, to: usize, at: usize, pieces: &[Range<usize>]) {
    let data = whole.data_ptr_mut().cast::<u8>();
    for piece in pieces {
        // SAFETY: both places lie in the buffer and are not the same, as the caller has checked.
        unsafe { ptr::copy_nonoverlapping(data.add(at + piece.start), data.add(to + piece.start), piece.len()) };
    }
}
