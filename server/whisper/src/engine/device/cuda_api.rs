//! The functions of CUDA's runtime library that the engine calls itself. The library is opened at run time and is the one
//! that ONNX Runtime's provider is linked with, so that both use the same context.
//!
//! Types and numbers are those of `driver_types.h` and `cuda_runtime_api.h` (CUDA Toolkit documentation, "CUDA Runtime
//! API"), which are the same in CUDA 12 and 13.

use std::{
    ffi::{CStr, c_char, c_int, c_uint, c_void},
    path::Path,
};

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

/// The newest version first.
const LIBRARIES: [&str; 2] = ["libcudart.so.13", "libcudart.so.12"];

pub type CudaStatus = c_int;
pub type StreamHandle = *mut c_void;
pub type EventHandle = *mut c_void;

const OUT_OF_MEMORY: CudaStatus = 2;
/// `cudaStreamNonBlocking`: no implicit waits for the default stream.
pub const STREAM_NON_BLOCKING: c_uint = 1;
/// `cudaEventDisableTiming`.
pub const EVENT_WITHOUT_TIMING: c_uint = 2;
/// `cudaHostAllocDefault`.
pub const HOST_ALLOC_DEFAULT: c_uint = 0;

/// `cudaMemcpyKind`.
#[derive(Clone, Copy)]
#[repr(i32)]
pub enum CopyKind {
    HostToDevice = 1,
    DeviceToHost = 2,
    DeviceToDevice = 3,
}

/// `cudaPitchedPtr`: rows of `row_bytes`, `rows` of them in each slice.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct PitchedPointer {
    pub pointer: *mut c_void,
    pub row_bytes: usize,
    pub width_bytes: usize,
    pub rows: usize,
}

/// `cudaPos`; the first in bytes.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub struct Position {
    pub x_bytes: usize,
    pub row: usize,
    pub slice: usize,
}

/// `cudaExtent`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct CopyExtent {
    pub width_bytes: usize,
    pub rows: usize,
    pub slices: usize,
}

/// `cudaMemcpy3DParms`; the fields for CUDA arrays stay null.
#[repr(C)]
pub struct Copy3d {
    pub source_array: *mut c_void,
    pub source_position: Position,
    pub source: PitchedPointer,
    pub target_array: *mut c_void,
    pub target_position: Position,
    pub target: PitchedPointer,
    pub extent: CopyExtent,
    pub kind: CopyKind,
}

#[derive(Debug, thiserror::Error)]
pub enum CudaCallError {
    #[error("CUDA's runtime library cannot be opened: {0}")]
    Library(String),
    #[error("CUDA's runtime library has no `{0}`")]
    Symbol(&'static str),
    /// ONNX Runtime uses the same text, by which the runner recognises a lack of memory.
    #[error("out of memory: Failed to allocate memory for requested buffer of size {bytes} (cudaMalloc)")]
    OutOfMemory { bytes: usize },
    #[error("{call} failed: {text} (CUDA error {code})")]
    Failed { call: &'static str, code: CudaStatus, text: String },
}

impl From<CudaCallError> for ort::Error {
    fn from(error: CudaCallError) -> Self {
        Self::new(error.to_string())
    }
}

macro_rules! functions {
    ($($field:ident: $symbol:literal ($($argument:ty),*);)*) => {
        /// CUDA's runtime library, for one device.
        pub struct CudaApi {
            device: i32,
            $($field: unsafe extern "C" fn($($argument),*) -> CudaStatus,)*
            error_text: unsafe extern "C" fn(CudaStatus) -> *const c_char,
            /// Keeps the library loaded as long as its functions can be called.
            _library: Library,
        }

        impl CudaApi {
            #[allow(unsafe_code, reason = "functions of libcudart with the types that its header gives them")]
            fn load(library: Library, device: i32) -> Result<Self, CudaCallError> {
                $(
                    // SAFETY: the type is the one that the header declares.
                    let $field = *unsafe { library.get($symbol.as_bytes()) }
                        .map_err(|_| CudaCallError::Symbol($symbol))?;
                )*

                // SAFETY: as above.
                let error_text = *unsafe { library.get(b"cudaGetErrorString") }
                    .map_err(|_| CudaCallError::Symbol("cudaGetErrorString"))?;
                Ok(Self { device, $($field,)* error_text, _library: library })
            }
        }
    };
}

functions! {
    set_device: "cudaSetDevice" (c_int);
    malloc: "cudaMalloc" (*mut *mut c_void, usize);
    free: "cudaFree" (*mut c_void);
    host_alloc: "cudaHostAlloc" (*mut *mut c_void, usize, c_uint);
    free_host: "cudaFreeHost" (*mut c_void);
    memcpy_async: "cudaMemcpyAsync" (*mut c_void, *const c_void, usize, CopyKind, StreamHandle);
    memcpy_2d_async: "cudaMemcpy2DAsync"
        (*mut c_void, usize, *const c_void, usize, usize, usize, CopyKind, StreamHandle);
    memcpy_3d_async: "cudaMemcpy3DAsync" (*const Copy3d, StreamHandle);
    memset_async: "cudaMemsetAsync" (*mut c_void, c_int, usize, StreamHandle);
    stream_create: "cudaStreamCreateWithFlags" (*mut StreamHandle, c_uint);
    stream_destroy: "cudaStreamDestroy" (StreamHandle);
    stream_synchronize: "cudaStreamSynchronize" (StreamHandle);
    stream_wait_event: "cudaStreamWaitEvent" (StreamHandle, EventHandle, c_uint);
    event_create: "cudaEventCreateWithFlags" (*mut EventHandle, c_uint);
    event_destroy: "cudaEventDestroy" (EventHandle);
    event_record: "cudaEventRecord" (EventHandle, StreamHandle);
    event_synchronize: "cudaEventSynchronize" (EventHandle);
}

/// Calls a function of [`CudaApi`] and turns its code into a result.
macro_rules! call {
    ($cuda:expr, $function:ident($($argument:expr),* $(,)?)) => {{
        let cuda = $cuda;
        // SAFETY: the caller of this macro passes arguments that the function accepts.
        let code = unsafe { (cuda.$function)($($argument),*) };
        cuda.check(stringify!($function), code)
    }};
}

impl CudaApi {
    /// Opens the library beside ONNX Runtime, or where the loader finds it, and makes `device` that of the calling thread.
    pub fn open(ort_library: &Path, device: i32) -> Result<Self, CudaCallError> {
        let mut problem = String::new();
        for name in LIBRARIES {
            for path in [ort_library.with_file_name(name), name.into()] {
                match open_library(&path) {
                    Ok(library) => {
                        let cuda = Self::load(library, device)?;
                        cuda.use_device()?;
                        return Ok(cuda);
                    }
                    Err(cause) => problem = cause,
                }
            }
        }

        Err(CudaCallError::Library(problem))
    }

    pub fn device(&self) -> i32 {
        self.device
    }

    /// Selects the device for the calling thread. Each thread that calls CUDA must do so.
    #[allow(unsafe_code, reason = "takes a number")]
    pub fn use_device(&self) -> Result<(), CudaCallError> {
        call!(self, set_device(self.device))
    }

    #[allow(unsafe_code, reason = "cudaGetErrorString gives a constant text")]
    fn check(&self, call: &'static str, code: CudaStatus) -> Result<(), CudaCallError> {
        if code == 0 {
            return Ok(());
        }

        // SAFETY: the text is a constant of the library.
        let text = unsafe {
            let text = (self.error_text)(code);
            if text.is_null() { String::new() } else { CStr::from_ptr(text).to_string_lossy().into_owned() }
        };

        Err(CudaCallError::Failed { call, code, text })
    }

    #[allow(unsafe_code, reason = "cudaMalloc writes one pointer")]
    pub(super) fn allocate(&self, bytes: usize) -> Result<*mut c_void, CudaCallError> {
        let mut pointer = std::ptr::null_mut();
        match call!(self, malloc(&raw mut pointer, bytes)) {
            Err(CudaCallError::Failed { code: OUT_OF_MEMORY, .. }) => Err(CudaCallError::OutOfMemory { bytes }),
            other => other.map(|()| pointer),
        }
    }

    #[allow(unsafe_code, reason = "the pointer is one that `allocate` gave")]
    pub(super) fn release(&self, pointer: *mut c_void) {
        // This fails if the device is lost, and then its memory is lost too.
        let _ = call!(self, free(pointer));
    }

    #[allow(unsafe_code, reason = "cudaHostAlloc writes one pointer")]
    pub(super) fn allocate_pinned(&self, bytes: usize) -> Result<*mut c_void, CudaCallError> {
        let mut pointer = std::ptr::null_mut();
        call!(self, host_alloc(&raw mut pointer, bytes, HOST_ALLOC_DEFAULT)).map(|()| pointer)
    }

    #[allow(unsafe_code, reason = "the pointer is one that `allocate_pinned` gave")]
    pub(super) fn release_pinned(&self, pointer: *mut c_void) {
        let _ = call!(self, free_host(pointer));
    }

    #[allow(unsafe_code, reason = "writes one pointer")]
    pub(super) fn create_stream(&self) -> Result<StreamHandle, CudaCallError> {
        let mut stream = std::ptr::null_mut();
        call!(self, stream_create(&raw mut stream, STREAM_NON_BLOCKING)).map(|()| stream)
    }

    #[allow(unsafe_code, reason = "the stream is one that `create_stream` gave")]
    pub(super) fn destroy_stream(&self, stream: StreamHandle) {
        let _ = call!(self, stream_destroy(stream));
    }

    #[allow(unsafe_code, reason = "writes one pointer")]
    pub(super) fn create_event(&self) -> Result<EventHandle, CudaCallError> {
        let mut event = std::ptr::null_mut();
        call!(self, event_create(&raw mut event, EVENT_WITHOUT_TIMING)).map(|()| event)
    }

    #[allow(unsafe_code, reason = "the event is one that `create_event` gave")]
    pub(super) fn destroy_event(&self, event: EventHandle) {
        let _ = call!(self, event_destroy(event));
    }

    #[allow(unsafe_code, reason = "both handles are alive, as their owners are borrowed")]
    pub(super) fn record(&self, event: EventHandle, stream: StreamHandle) -> Result<(), CudaCallError> {
        call!(self, event_record(event, stream))
    }

    #[allow(unsafe_code, reason = "both handles are alive, as their owners are borrowed")]
    pub(super) fn wait_on_stream(&self, stream: StreamHandle, event: EventHandle) -> Result<(), CudaCallError> {
        call!(self, stream_wait_event(stream, event, 0))
    }

    #[allow(unsafe_code, reason = "the handle is alive, as its owner is borrowed")]
    pub(super) fn wait_for_event(&self, event: EventHandle) -> Result<(), CudaCallError> {
        call!(self, event_synchronize(event))
    }

    #[allow(unsafe_code, reason = "the handle is alive, as its owner is borrowed")]
    pub(super) fn synchronize(&self, stream: StreamHandle) -> Result<(), CudaCallError> {
        call!(self, stream_synchronize(stream))
    }

    /// # Safety
    /// Both ranges hold `bytes` and stay allocated until the stream has executed the copy.
    #[allow(unsafe_code, reason = "copies memory by address")]
    pub(super) unsafe fn copy(
        &self,
        target: *mut c_void,
        source: *const c_void,
        bytes: usize,
        kind: CopyKind,
        stream: StreamHandle,
    ) -> Result<(), CudaCallError> {
        call!(self, memcpy_async(target, source, bytes, kind, stream))
    }

    /// Copies `rows` rows of `width_bytes`.
    ///
    /// # Safety
    /// The same as for [`Self::copy`], for each row.
    #[allow(unsafe_code, reason = "copies memory by address")]
    pub(super) unsafe fn copy_rows(
        &self,
        (target, target_row_bytes): (*mut c_void, usize),
        (source, source_row_bytes): (*const c_void, usize),
        (width_bytes, rows): (usize, usize),
        stream: StreamHandle,
    ) -> Result<(), CudaCallError> {
        let kind = CopyKind::DeviceToDevice;
        call!(
            self,
            memcpy_2d_async(target, target_row_bytes, source, source_row_bytes, width_bytes, rows, kind, stream)
        )
    }

    /// # Safety
    /// The same as for [`Self::copy`], for each row of each slice.
    #[allow(unsafe_code, reason = "copies memory by address")]
    pub(super) unsafe fn copy_slices(&self, copy: &Copy3d, stream: StreamHandle) -> Result<(), CudaCallError> {
        call!(self, memcpy_3d_async(copy, stream))
    }

    /// # Safety
    /// The target holds `bytes` and stays allocated until the stream has executed the call.
    #[allow(unsafe_code, reason = "writes memory by address")]
    pub(super) unsafe fn clear(
        &self,
        target: *mut c_void,
        bytes: usize,
        stream: StreamHandle,
    ) -> Result<(), CudaCallError> {
        call!(self, memset_async(target, 0, bytes, stream))
    }
}

#[allow(unsafe_code, reason = "opening a library runs its constructors; NVIDIA's are made to be opened so")]
fn open_library(name: &Path) -> Result<Library, String> {
    // SAFETY: see above.
    unsafe { Library::open(Some(name), RTLD_NOW | RTLD_LOCAL) }.map_err(|error| error.to_string())
}
