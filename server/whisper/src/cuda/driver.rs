//! The part of CUDA's driver API that reports version and devices. It has been the same since CUDA 2.

use std::ffi::{CStr, c_char, c_int, c_uint};
use std::path::Path;
use std::ptr;

use libloading::os::unix::{Library, Symbol};

use super::architectures::Capability;
use super::error::{CudaError, DriverError};
use super::libraries::{self, DRIVER};

const CAPABILITY_MAJOR: c_int = 75;
const CAPABILITY_MINOR: c_int = 76;

type DriverStatus = c_uint;

/// An initialised driver. It uses no memory of a GPU.
pub(super) struct CudaDriver {
    library: Library,
}

impl CudaDriver {
    pub(super) fn start() -> Result<Self, CudaError> {
        let library = libraries::open(Path::new(DRIVER)).map_err(CudaError::NoDriver)?;
        let driver = Self { library };
        driver.init()?;
        Ok(driver)
    }

    #[allow(unsafe_code, reason = "functions of libcuda with the types that cuda.h gives them")]
    fn symbol<T>(&self, name: &str) -> Result<Symbol<T>, CudaError> {
        // SAFETY: every caller passes the type that cuda.h declares.
        unsafe { self.library.get(name.as_bytes()) }.map_err(|error| CudaError::NoDriver(libraries::explain(&error)))
    }

    #[allow(unsafe_code, reason = "cuInit takes a number that must be 0")]
    fn init(&self) -> Result<(), CudaError> {
        let init = self.symbol::<unsafe extern "C" fn(c_uint) -> DriverStatus>("cuInit")?;
        // SAFETY: the argument is 0.
        self.check(unsafe { init(0) })
    }

    #[allow(unsafe_code, reason = "functions that write one number through a pointer")]
    fn number(&self, name: &str) -> Result<c_int, CudaError> {
        let read = self.symbol::<unsafe extern "C" fn(*mut c_int) -> DriverStatus>(name)?;
        let mut number = 0;

        // SAFETY: the pointer is valid for the call.
        self.check(unsafe { read(&mut number) })?;
        Ok(number)
    }

    /// The newest CUDA that the driver supports: `13000` is 13.0.
    pub(super) fn version(&self) -> Result<c_int, CudaError> {
        self.number("cuDriverGetVersion")
    }

    pub(super) fn count(&self) -> Result<c_int, CudaError> {
        self.number("cuDeviceGetCount")
    }

    #[allow(unsafe_code, reason = "functions that write one number through a pointer")]
    pub(super) fn capability(&self, index: c_int) -> Result<Capability, CudaError> {
        let get = self.symbol::<unsafe extern "C" fn(*mut c_int, c_int) -> DriverStatus>("cuDeviceGet")?;
        let mut device = 0;

        // SAFETY: the pointer is valid for the call.
        self.check(unsafe { get(&mut device, index) })?;

        let get_attribute =
            self.symbol::<unsafe extern "C" fn(*mut c_int, c_int, c_int) -> DriverStatus>("cuDeviceGetAttribute")?;
        let attribute = |which| {
            let mut value = 0;
            // SAFETY: the pointer is valid for the call.
            self.check(unsafe { get_attribute(&mut value, which, device) })?;
            Ok::<_, CudaError>(u32::try_from(value).unwrap_or(0))
        };

        Ok((attribute(CAPABILITY_MAJOR)?, attribute(CAPABILITY_MINOR)?))
    }

    #[allow(unsafe_code, reason = "cuGetErrorString gives a constant text or nothing")]
    fn check(&self, code: DriverStatus) -> Result<(), CudaError> {
        if code == 0 {
            return Ok(());
        }

        let mut text: *const c_char = ptr::null();
        if let Ok(name) =
            self.symbol::<unsafe extern "C" fn(DriverStatus, *mut *const c_char) -> DriverStatus>("cuGetErrorString")
        {
            // SAFETY: the pointer is valid for the call.
            unsafe { name(code, &mut text) };
        }

        // SAFETY: a text that is not null is a constant of the driver.
        let text = (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned());

        Err(CudaError::Driver(DriverError { code, text: text.unwrap_or_default() }))
    }
}
