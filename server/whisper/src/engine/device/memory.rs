//! Memory, streams and events of a device, freed when they are dropped.

use std::{
    ffi::c_void,
    ops::Range,
    ptr::{self, NonNull},
    slice,
    sync::Arc,
};

use ort::{
    AsPointer,
    memory::{Allocator, MemoryInfo},
    value::{DynTensor, TensorElementType},
};

use super::cuda_api::{CopyKind, CudaApi, CudaCallError, EventHandle, StreamHandle};

/// A queue of operations that the device executes in order.
pub struct CudaStream {
    cuda: Arc<CudaApi>,
    handle: StreamHandle,
}

// SAFETY: CUDA's handles may be used from any thread.
#[allow(unsafe_code, reason = "a handle of CUDA, which is safe to use from several threads")]
unsafe impl Send for CudaStream {}
#[allow(unsafe_code, reason = "as above")]
unsafe impl Sync for CudaStream {}

impl CudaStream {
    pub fn new(cuda: Arc<CudaApi>) -> Result<Self, CudaCallError> {
        let handle = cuda.create_stream()?;
        Ok(Self { cuda, handle })
    }

    pub fn handle(&self) -> StreamHandle {
        self.handle
    }

    /// Waits until the device has executed all operations of the stream.
    pub fn synchronize(&self) -> Result<(), CudaCallError> {
        self.cuda.synchronize(self.handle)
    }

    /// Makes later operations of this stream wait for `event`.
    pub fn wait_for(&self, event: &CudaEvent) -> Result<(), CudaCallError> {
        self.cuda.wait_on_stream(self.handle, event.handle)
    }
}

impl Drop for CudaStream {
    fn drop(&mut self) {
        self.cuda.destroy_stream(self.handle);
    }
}

/// A mark in a stream.
pub struct CudaEvent {
    cuda: Arc<CudaApi>,
    handle: EventHandle,
}

// SAFETY: CUDA's handles may be used from any thread.
#[allow(unsafe_code, reason = "a handle of CUDA, which is safe to use from several threads")]
unsafe impl Send for CudaEvent {}
#[allow(unsafe_code, reason = "as above")]
unsafe impl Sync for CudaEvent {}

impl CudaEvent {
    pub fn new(cuda: Arc<CudaApi>) -> Result<Self, CudaCallError> {
        let handle = cuda.create_event()?;
        Ok(Self { cuda, handle })
    }

    pub fn record(&self, stream: &CudaStream) -> Result<(), CudaCallError> {
        self.cuda.record(self.handle, stream.handle)
    }

    /// Waits until the device has passed the mark; returns at once if none was recorded.
    pub fn wait(&self) -> Result<(), CudaCallError> {
        self.cuda.wait_for_event(self.handle)
    }
}

impl Drop for CudaEvent {
    fn drop(&mut self) {
        self.cuda.destroy_event(self.handle);
    }
}

/// A block of the device's memory.
pub struct DeviceBuffer {
    cuda: Arc<CudaApi>,
    pointer: *mut c_void,
    bytes: usize,
}

// SAFETY: the pointer is an address on the device, which the host does not dereference.
#[allow(unsafe_code, reason = "an address on the device, which the host does not read")]
unsafe impl Send for DeviceBuffer {}
#[allow(unsafe_code, reason = "as above")]
unsafe impl Sync for DeviceBuffer {}

impl DeviceBuffer {
    /// The content is undefined.
    pub fn new(cuda: Arc<CudaApi>, bytes: usize) -> Result<Self, CudaCallError> {
        let pointer = cuda.allocate(bytes.max(1))?;
        Ok(Self { cuda, pointer, bytes })
    }

    /// The address of the byte at `offset`, which may be the end of the block.
    pub fn at(&self, offset: usize) -> Result<*mut c_void, ort::Error> {
        if offset > self.bytes {
            return Err(outside(offset..offset, self.bytes));
        }
        Ok(self.pointer.wrapping_byte_add(offset))
    }

    /// The bytes from `offset` on as a tensor that does not own them: it must not be used after this block is dropped.
    #[allow(unsafe_code, reason = "ort has no tensor over memory of a device that it did not allocate")]
    pub fn tensor(
        &self,
        info: &MemoryInfo,
        element: TensorElementType,
        offset: usize,
        shape: &[usize],
    ) -> Result<DynTensor, ort::Error> {
        let count = shape.iter().product();
        let length = element.byte_size(count).ok_or_else(|| ort::Error::new(format!("no size of {element}")))?;
        if offset.checked_add(length).is_none_or(|end| end > self.bytes) {
            return Err(outside(offset..offset.saturating_add(length), self.bytes));
        }

        let shape: Vec<i64> = shape.iter().map(|side| *side as i64).collect();
        let mut value = ptr::null_mut();

        // SAFETY: the bytes are in this block, whose memory is of the kind that `info` states; the value does not own
        // them. The status and the value belong to ONNX Runtime.
        unsafe {
            let create = ort::api().CreateTensorWithDataAsOrtValue;
            let data = self.at(offset)?;
            let status = create(info.ptr(), data, length, shape.as_ptr(), shape.len(), element.into(), &raw mut value);
            ort::Error::result_from_status(status)?;
            let value = NonNull::new(value).ok_or_else(|| ort::Error::new("a tensor without a value"))?;
            Ok(DynTensor::from_ptr(value, Some(&Allocator::default())))
        }
    }

    /// Copies from the host when the stream gets there. The bytes of `source` must not change before the stream has
    /// executed the copy.
    #[allow(unsafe_code, reason = "copies memory by address")]
    pub fn copy_from_pinned(
        &self,
        offset: usize,
        source: &PinnedMemory,
        range: Range<usize>,
        stream: &CudaStream,
    ) -> Result<(), ort::Error> {
        self.check(offset, range.len())?;
        source.check(&range)?;
        let from = source.pointer.wrapping_byte_add(range.start);
        // SAFETY: both ranges hold the bytes, which was checked.
        Ok(unsafe { self.cuda.copy(self.at(offset)?, from, range.len(), CopyKind::HostToDevice, stream.handle) }?)
    }

    /// Copies to the host when the stream gets there: the bytes are valid after the stream has executed the copy.
    #[allow(unsafe_code, reason = "copies memory by address")]
    pub fn copy_to_pinned(
        &self,
        range: Range<usize>,
        target: &PinnedMemory,
        offset: usize,
        stream: &CudaStream,
    ) -> Result<(), ort::Error> {
        self.check(range.start, range.len())?;
        target.check(&(offset..offset + range.len()))?;
        let to = target.pointer.wrapping_byte_add(offset);
        // SAFETY: both ranges hold the bytes, which was checked.
        Ok(unsafe { self.cuda.copy(to, self.at(range.start)?, range.len(), CopyKind::DeviceToHost, stream.handle) }?)
    }

    /// Fills the block with zeros when the stream gets there.
    #[allow(unsafe_code, reason = "writes memory by address")]
    pub fn clear(&self, stream: &CudaStream) -> Result<(), CudaCallError> {
        // SAFETY: the block holds the bytes.
        unsafe { self.cuda.clear(self.pointer, self.bytes, stream.handle) }
    }

    fn check(&self, offset: usize, length: usize) -> Result<(), ort::Error> {
        match offset.checked_add(length) {
            Some(end) if end <= self.bytes => Ok(()),
            end => Err(outside(offset..end.unwrap_or(usize::MAX), self.bytes)),
        }
    }
}

impl Drop for DeviceBuffer {
    fn drop(&mut self) {
        self.cuda.release(self.pointer);
    }
}

/// Memory of the host that the device reads and writes by itself.
pub struct PinnedMemory {
    cuda: Arc<CudaApi>,
    pointer: *mut c_void,
    bytes: usize,
}

// SAFETY: memory of the host with one owner.
#[allow(unsafe_code, reason = "memory of the host with one owner")]
unsafe impl Send for PinnedMemory {}

impl PinnedMemory {
    /// Filled with zeros.
    #[allow(unsafe_code, reason = "memory that was just allocated")]
    pub fn new(cuda: Arc<CudaApi>, bytes: usize) -> Result<Self, CudaCallError> {
        let pointer = cuda.allocate_pinned(bytes.max(1))?;
        // SAFETY: the block holds so many bytes.
        unsafe { ptr::write_bytes(pointer.cast::<u8>(), 0, bytes.max(1)) };
        Ok(Self { cuda, pointer, bytes })
    }

    #[allow(unsafe_code, reason = "a slice of memory with one owner, which is borrowed")]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: the block holds so many bytes, all of which are initialised.
        unsafe { slice::from_raw_parts_mut(self.pointer.cast(), self.bytes) }
    }

    /// `count` numbers from the byte `offset` on.
    #[allow(unsafe_code, reason = "numbers in memory that CUDA aligns to pages")]
    pub fn i32_mut(&mut self, offset: usize, count: usize) -> Result<&mut [i32], ort::Error> {
        self.check_numbers(offset, count)?;
        // SAFETY: offset and count were checked; every bit pattern is a number.
        Ok(unsafe { slice::from_raw_parts_mut(self.pointer.wrapping_byte_add(offset).cast(), count) })
    }

    /// `count` numbers from the byte `offset` on.
    #[allow(unsafe_code, reason = "numbers in memory that CUDA aligns to pages")]
    pub fn f32_mut(&mut self, offset: usize, count: usize) -> Result<&mut [f32], ort::Error> {
        self.check_numbers(offset, count)?;
        // SAFETY: offset and count were checked; every bit pattern is a number.
        Ok(unsafe { slice::from_raw_parts_mut(self.pointer.wrapping_byte_add(offset).cast(), count) })
    }

    fn check_numbers(&self, offset: usize, count: usize) -> Result<(), ort::Error> {
        if !offset.is_multiple_of(4) {
            return Err(ort::Error::new(format!("numbers at byte {offset}, which is no multiple of 4")));
        }
        self.check(&(offset..offset + 4 * count))
    }

    fn check(&self, range: &Range<usize>) -> Result<(), ort::Error> {
        if range.end > self.bytes { Err(outside(range.clone(), self.bytes)) } else { Ok(()) }
    }
}

impl Drop for PinnedMemory {
    fn drop(&mut self) {
        self.cuda.release_pinned(self.pointer);
    }
}

fn outside(range: Range<usize>, bytes: usize) -> ort::Error {
    ort::Error::new(format!("bytes {range:?} of a block of {bytes}"))
}
