//! The runtime's functions as a program calls them, and processes of their own to call them in: the double reads its
//! variables once.

#![allow(unsafe_code, reason = "a C interface: each function is called with the types that the double declares")]
#![allow(non_snake_case, clippy::too_many_arguments, reason = "the names and the arguments are NVIDIA's")]

use std::env;
use std::ffi::{c_char, c_void};
use std::process::{Command, Output};
use std::ptr;

use hush_tests::cuda_double::{CudaDouble, library};
use libloading::Library;

pub const SUCCESS: i32 = 0;
pub const INVALID_VALUE: i32 = 1;
pub const OUT_OF_MEMORY: i32 = 2;
pub const NOT_READY: i32 = 600;
pub const CAPTURE_UNSUPPORTED: i32 = 900;
pub const CAPTURE_INVALIDATED: i32 = 901;

pub const HOST_TO_DEVICE: i32 = 1;
pub const DEVICE_TO_HOST: i32 = 2;
pub const DEVICE_TO_DEVICE: i32 = 3;

pub type Pointer = *mut c_void;

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Dim3 {
    pub x: u32,
    pub y: u32,
    pub z: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Extent3D {
    pub width: usize,
    pub height: usize,
    pub depth: usize,
}

#[repr(C)]
pub struct Pitched {
    pub pointer: Pointer,
    pub pitch: usize,
    pub width: usize,
    pub height: usize,
}

#[repr(C)]
pub struct Copy3D {
    pub source_array: Pointer,
    pub source_position: Extent3D,
    pub source: Pitched,
    pub destination_array: Pointer,
    pub destination_position: Extent3D,
    pub destination: Pitched,
    pub extent: Extent3D,
    pub kind: i32,
}

macro_rules! api {
    ($($name:ident($($argument:ident: $type:ty),*);)+) => {
        /// Each function returns CUDA's error.
        pub struct Api {
            $($name: unsafe extern "C" fn($($type),*) -> i32,)+
            library: Library,
        }

        impl Api {
            pub fn open() -> Self {
                let path = library("libcudart.so.13").unwrap();
                // SAFETY: the double's constructors only register its kernels.
                let library = unsafe { Library::new(path) }.unwrap();
                // SAFETY: the types are those of the double's own declarations.
                unsafe { Self { $($name: *library.get(stringify!($name)).unwrap(),)+ library } }
            }

            $(pub fn $name(&self, $($argument: $type),*) -> i32 {
                // SAFETY: tests hand over pointers that are good for the call, or none.
                unsafe { (self.$name)($($argument),*) }
            })+
        }
    };
}

api! {
    cudaGetDeviceCount(count: *mut i32);
    cudaSetDevice(device: i32);
    cudaDeviceSynchronize();
    cudaDeviceReset();
    cudaGetLastError();
    cudaMalloc(pointer: *mut Pointer, bytes: usize);
    cudaFree(pointer: Pointer);
    cudaHostAlloc(pointer: *mut Pointer, bytes: usize, flags: u32);
    cudaFreeHost(pointer: Pointer);
    cudaHostRegister(pointer: Pointer, bytes: usize, flags: u32);
    cudaHostUnregister(pointer: Pointer);
    cudaMemGetInfo(free: *mut usize, total: *mut usize);
    cudaMemcpy(destination: Pointer, source: Pointer, bytes: usize, kind: i32);
    cudaMemcpyAsync(destination: Pointer, source: Pointer, bytes: usize, kind: i32, stream: Pointer);
    cudaMemcpy2DAsync(destination: Pointer, destination_pitch: usize, source: Pointer, source_pitch: usize, width: usize, height: usize, kind: i32, stream: Pointer);
    cudaMemcpy3DAsync(copy: *const Copy3D, stream: Pointer);
    cudaMemsetAsync(pointer: Pointer, value: i32, bytes: usize, stream: Pointer);
    cudaStreamCreateWithFlags(stream: *mut Pointer, flags: u32);
    cudaStreamSynchronize(stream: Pointer);
    cudaStreamQuery(stream: Pointer);
    cudaStreamWaitEvent(stream: Pointer, event: Pointer, flags: u32);
    cudaStreamBeginCapture(stream: Pointer, mode: i32);
    cudaStreamEndCapture(stream: Pointer, graph: *mut Pointer);
    cudaGraphInstantiate(executable: *mut Pointer, graph: Pointer, flags: u64);
    cudaGraphLaunch(executable: Pointer, stream: Pointer);
    cudaEventCreateWithFlags(event: *mut Pointer, flags: u32);
    cudaEventRecord(event: Pointer, stream: Pointer);
    cudaEventSynchronize(event: Pointer);
    cudaLaunchKernel(function: *const c_void, grid: Dim3, block: Dim3, arguments: *mut Pointer, shared: usize, stream: Pointer);
}

/// A number that CUDA writes through a pointer.
pub fn written<T: Copy>(initial: T, write: impl FnOnce(*mut T) -> i32) -> T {
    let mut value = initial;
    assert_eq!(write(&mut value), SUCCESS);
    value
}

impl Api {
    pub fn allocate(&self, bytes: usize) -> Pointer {
        written(ptr::null_mut(), |pointer| self.cudaMalloc(pointer, bytes))
    }

    pub fn pinned(&self, bytes: usize) -> &'static mut [u8] {
        let pointer = written(ptr::null_mut(), |pointer| self.cudaHostAlloc(pointer, bytes, 0));
        // SAFETY: it was allocated with this length just now, and lives as long as the process.
        unsafe { std::slice::from_raw_parts_mut(pointer.cast(), bytes) }
    }

    /// One that does not wait for the default stream, as ONNX Runtime's.
    pub fn stream(&self) -> Pointer {
        written(ptr::null_mut(), |stream| self.cudaStreamCreateWithFlags(stream, 1))
    }

    pub fn free_bytes(&self) -> usize {
        let mut total = 0;
        written(0, |free| self.cudaMemGetInfo(free, &mut total))
    }

    pub fn upload(&self, device: Pointer, bytes: &[u8]) {
        assert_eq!(self.cudaMemcpy(device, bytes.as_ptr() as Pointer, bytes.len(), HOST_TO_DEVICE), SUCCESS);
    }

    pub fn download(&self, device: Pointer, bytes: usize) -> Vec<u8> {
        let mut into = vec![0; bytes];
        assert_eq!(self.cudaMemcpy(into.as_mut_ptr().cast(), device, bytes, DEVICE_TO_HOST), SUCCESS);
        into
    }

    pub fn mark(&self, name: &std::ffi::CStr) {
        // SAFETY: the double's own function, which takes a C string.
        unsafe {
            let mark = self.library.get::<unsafe extern "C" fn(*const c_char)>("cuda_double_mark").unwrap();
            mark(name.as_ptr());
        }
    }

    /// Registers a kernel as a compiled program does, with code for one architecture, and gives its address.
    pub fn register(&self, mangled: &std::ffi::CStr, architecture: u32) -> *const c_void {
        // The head of a file of code objects, and one object of 64 bytes of head and no code: see fatbin.cpp.
        let mut file = vec![0_u8; 16 + 64];
        file[0..4].copy_from_slice(&0xba55_ed50_u32.to_le_bytes());
        file[6..8].copy_from_slice(&16_u16.to_le_bytes());
        file[8..16].copy_from_slice(&64_u64.to_le_bytes());
        file[16..18].copy_from_slice(&2_u16.to_le_bytes());
        file[20..24].copy_from_slice(&64_u32.to_le_bytes());
        file[44..48].copy_from_slice(&architecture.to_le_bytes());
        let file = Box::leak(file.into_boxed_slice());
        let wrapper: &'static mut [usize; 2] = Box::leak(Box::new([0, file.as_ptr() as usize]));
        let address = Box::leak(Box::new(0_u8)) as *const u8;
        type Register = unsafe extern "C" fn(
            Pointer,
            *const c_void,
            *const c_char,
            *const c_char,
            i32,
            Pointer,
            Pointer,
            Pointer,
            Pointer,
            Pointer,
        );
        let none = ptr::null_mut();
        // SAFETY: the functions that nvcc's code calls, with what it hands over; all of it lives as long as the process.
        unsafe {
            let open = self.library.get::<unsafe extern "C" fn(Pointer) -> Pointer>("__cudaRegisterFatBinary").unwrap();
            let module = open(wrapper.as_mut_ptr().cast());
            let register = self.library.get::<Register>("__cudaRegisterFunction").unwrap();
            register(module, address.cast(), ptr::null(), mangled.as_ptr(), -1, none, none, none, none, none);
        }
        address.cast()
    }

    /// Launches a kernel on arguments that lie behind these pointers.
    pub fn launch(&self, function: *const c_void, arguments: &mut [Pointer], stream: Pointer) -> i32 {
        let one = Dim3 { x: 1, y: 1, z: 1 };
        self.cudaLaunchKernel(function, one, one, arguments.as_mut_ptr(), 0, stream)
    }
}

/// Runs `body` in a process of its own on the double; nothing happens where that is not built. The double of the outer
/// process says what the devices are: `body` gets the runtime.
pub fn alone(test: &str, cuda: Option<&CudaDouble>, body: impl FnOnce(&Api)) {
    if let Some(output) = child(test, cuda, &[], body) {
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{test}: {text}");
    }
}

/// The same with further variables, and what became of it; `None` where there is no double.
pub fn child(test: &str, cuda: Option<&CudaDouble>, env: &[(&str, &str)], body: impl FnOnce(&Api)) -> Option<Output> {
    const INSIDE: &str = "CUDA_DOUBLE_TEST";
    if env::var(INSIDE).is_ok_and(|inside| inside == test) {
        body(&Api::open());
        // What follows the call is for the outer process.
        std::process::exit(0);
    }
    let cuda = cuda?;
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]).envs(cuda.env()).env(INSIDE, test).envs(env.iter().copied());
    Some(command.output().unwrap())
}
