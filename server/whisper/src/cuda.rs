//! What CUDA needs and whether it is there. ONNX Runtime says only that its CUDA part could not be loaded; this says which
//! library is missing, which driver is too old, which GPU is not supported.

use std::ffi::{CStr, c_char, c_int, c_uint};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::ptr;

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW, Symbol};

/// ONNX Runtime's CUDA part; it lies beside the library.
pub const PROVIDER: &str = "libonnxruntime_providers_cuda.so";

const DRIVER: &str = "libcuda.so.1";
const RUNTIME: &str = "libcudart.so.";
/// Prefixes of what NVIDIA ships; the rest of what the provider wants is the system's or lies beside it.
const NVIDIA: [&str; 3] = ["libcu", "libnv", "libcudnn"];

/// The oldest GPUs of each CUDA, by compute capability.
const OLDEST: [(u32, (c_int, c_int)); 2] = [(12, (5, 0)), (13, (7, 5))];

const CAPABILITY_MAJOR: c_int = 75;
const CAPABILITY_MINOR: c_int = 76;

/// What works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CudaFacts {
    /// The CUDA that the driver is made for: `13000` is 13.0.
    pub driver: c_int,
    /// The CUDA that ONNX Runtime is made for; `None`: it does not tell.
    pub runtime: Option<u32>,
    pub capability: (c_int, c_int),
}

#[derive(Debug, thiserror::Error)]
pub enum CudaError {
    #[error(
        "ONNX Runtime's CUDA part {} is missing; use the GPU build of ONNX Runtime (docs/gpu.md)", .0.display()
    )]
    NoProvider(PathBuf),
    #[error("{}: {cause}", path.display())]
    Provider { path: PathBuf, cause: io::Error },
    #[error(
        "CUDA's libraries are missing or cannot be loaded: {}; install them (docs/gpu.md) where the loader finds them, \
         or name their folder in LD_LIBRARY_PATH",
        .0.join("; ")
    )]
    Libraries(Vec<String>),
    #[error(
        "the NVIDIA driver's {DRIVER} cannot be loaded: {0}; install the driver, and in a container give it the GPU \
         (NVIDIA_DRIVER_CAPABILITIES=compute,utility)"
    )]
    NoDriver(String),
    #[error("the NVIDIA driver refuses to start: {0}")]
    Driver(String),
    #[error(
        "the NVIDIA driver is made for CUDA {}.{} and this ONNX Runtime for CUDA {needs}; install a newer driver",
        .has / 1000, .has % 1000 / 10
    )]
    OldDriver { has: c_int, needs: u32 },
    #[error("there is no GPU {index}: CUDA sees {count} (CUDA_VISIBLE_DEVICES may hide some)")]
    NoSuchGpu { index: c_int, count: c_int },
    #[error(
        "GPU {index} has compute capability {}.{}, and CUDA {cuda} needs {}.{} or later",
        .has.0, .has.1, .needs.0, .needs.1
    )]
    Architecture { index: c_int, has: (c_int, c_int), needs: (c_int, c_int), cuda: u32 },
}

/// Looks whether ONNX Runtime at `ort_library` can use the GPU that CUDA counts as `index`. Opens NVIDIA's libraries and
/// takes no memory of a GPU.
pub fn probe(ort_library: &Path, index: c_int) -> Result<CudaFacts, CudaError> {
    let provider = ort_library.with_file_name(PROVIDER);
    if !provider.exists() {
        return Err(CudaError::NoProvider(provider));
    }
    let needed = elf::needed(&provider).map_err(|cause| CudaError::Provider { path: provider.clone(), cause })?;
    let runtime = needed.iter().find_map(|name| name.strip_prefix(RUNTIME)?.split('.').next()?.parse().ok());
    let mut open = Vec::new();
    let mut missing = Vec::new();
    for name in needed.iter().filter(|name| NVIDIA.iter().any(|prefix| name.starts_with(prefix))) {
        // As the loader does for the provider: beside it, or where it looks for any library.
        let beside = provider.with_file_name(name);
        match open_library(Path::new(name)).or_else(|error| open_library(&beside).map_err(|_| error)) {
            Ok(library) => open.push(library),
            Err(cause) => missing.push(cause),
        }
    }
    if !missing.is_empty() {
        return Err(CudaError::Libraries(missing));
    }
    let driver = Driver::start()?;
    let has = driver.version()?;
    if let Some(needs) = runtime.filter(|needs| c_int::try_from(*needs).is_ok_and(|needs| has / 1000 < needs)) {
        return Err(CudaError::OldDriver { has, needs });
    }
    let count = driver.count()?;
    if !(0..count).contains(&index) {
        return Err(CudaError::NoSuchGpu { index, count });
    }
    let capability = driver.capability(index)?;
    check_architecture(index, capability, runtime)?;
    Ok(CudaFacts { driver: has, runtime, capability })
}

fn check_architecture(index: c_int, has: (c_int, c_int), runtime: Option<u32>) -> Result<(), CudaError> {
    let Some(cuda) = runtime else { return Ok(()) };
    let Some((_, needs)) = OLDEST.into_iter().find(|(version, _)| *version == cuda) else { return Ok(()) };
    if has < needs { Err(CudaError::Architecture { index, has, needs, cuda }) } else { Ok(()) }
}

#[allow(unsafe_code, reason = "opening a library runs its constructors; NVIDIA's are made to be opened so")]
fn open_library(name: &Path) -> Result<Library, String> {
    // SAFETY: see above.
    unsafe { Library::open(Some(name), RTLD_NOW | RTLD_LOCAL) }.map_err(|error| explain(&error))
}

/// The loader's own words, which name the library.
fn explain(error: &libloading::Error) -> String {
    use std::error::Error;
    error.source().map_or_else(|| error.to_string(), ToString::to_string)
}

/// The part of CUDA's driver interface that tells what there is. It has been the same since CUDA 2.
struct Driver {
    library: Library,
}

type Code = c_uint;

impl Driver {
    fn start() -> Result<Self, CudaError> {
        let library = open_library(Path::new(DRIVER)).map_err(CudaError::NoDriver)?;
        let driver = Self { library };
        driver.init()?;
        Ok(driver)
    }

    #[allow(unsafe_code, reason = "functions of libcuda with the types that cuda.h gives them")]
    fn symbol<T>(&self, name: &str) -> Result<Symbol<T>, CudaError> {
        // SAFETY: every caller names the type of cuda.h.
        unsafe { self.library.get(name.as_bytes()) }.map_err(|error| CudaError::NoDriver(explain(&error)))
    }

    #[allow(unsafe_code, reason = "cuInit takes a number that must be 0")]
    fn init(&self) -> Result<(), CudaError> {
        let init = self.symbol::<unsafe extern "C" fn(c_uint) -> Code>("cuInit")?;
        // SAFETY: see above.
        self.check(unsafe { init(0) })
    }

    #[allow(unsafe_code, reason = "functions that write one number through a pointer")]
    fn number(&self, name: &str) -> Result<c_int, CudaError> {
        let ask = self.symbol::<unsafe extern "C" fn(*mut c_int) -> Code>(name)?;
        let mut number = 0;
        // SAFETY: the pointer is good for the call.
        self.check(unsafe { ask(&mut number) })?;
        Ok(number)
    }

    fn version(&self) -> Result<c_int, CudaError> {
        self.number("cuDriverGetVersion")
    }

    fn count(&self) -> Result<c_int, CudaError> {
        self.number("cuDeviceGetCount")
    }

    #[allow(unsafe_code, reason = "functions that write one number through a pointer")]
    fn capability(&self, index: c_int) -> Result<(c_int, c_int), CudaError> {
        let get = self.symbol::<unsafe extern "C" fn(*mut c_int, c_int) -> Code>("cuDeviceGet")?;
        let mut device = 0;
        // SAFETY: the pointer is good for the call.
        self.check(unsafe { get(&mut device, index) })?;
        let ask = self.symbol::<unsafe extern "C" fn(*mut c_int, c_int, c_int) -> Code>("cuDeviceGetAttribute")?;
        let attribute = |which| {
            let mut value = 0;
            // SAFETY: as above.
            self.check(unsafe { ask(&mut value, which, device) })?;
            Ok(value)
        };
        Ok((attribute(CAPABILITY_MAJOR)?, attribute(CAPABILITY_MINOR)?))
    }

    #[allow(unsafe_code, reason = "cuGetErrorString gives a constant text or nothing")]
    fn check(&self, code: Code) -> Result<(), CudaError> {
        if code == 0 {
            return Ok(());
        }
        let mut text: *const c_char = ptr::null();
        if let Ok(name) = self.symbol::<unsafe extern "C" fn(Code, *mut *const c_char) -> Code>("cuGetErrorString") {
            // SAFETY: the pointer is good for the call.
            unsafe { name(code, &mut text) };
        }
        // SAFETY: not null, then a constant of the driver.
        let text = (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned());
        Err(CudaError::Driver(text.map_or_else(|| format!("error {code}"), |text| format!("{text} (error {code})"))))
    }
}

/// The names of the libraries that a library wants, without loading it: its constructors expect ONNX Runtime around them.
mod elf {
    use super::{Path, fs, io};

    const DYNAMIC: u32 = 2;
    const LOAD: u32 = 1;
    const NEEDED: u64 = 1;
    const STRINGS: u64 = 5;
    /// The tables lie near the start; a provider has hundreds of megabytes of kernels behind them.
    const NAME_MAX: u64 = 256;

    struct Segment {
        kind: u32,
        offset: u64,
        address: u64,
        length: u64,
    }

    struct File(fs::File);

    impl File {
        fn bytes<const N: usize>(&self, at: u64) -> io::Result<[u8; N]> {
            use std::os::unix::fs::FileExt;
            let mut bytes = [0; N];
            self.0.read_exact_at(&mut bytes, at)?;
            Ok(bytes)
        }

        fn u16(&self, at: u64) -> io::Result<u16> {
            self.bytes(at).map(u16::from_le_bytes)
        }

        fn u32(&self, at: u64) -> io::Result<u32> {
            self.bytes(at).map(u32::from_le_bytes)
        }

        fn u64(&self, at: u64) -> io::Result<u64> {
            self.bytes(at).map(u64::from_le_bytes)
        }

        fn text(&self, at: u64) -> io::Result<String> {
            let mut text = Vec::new();
            for position in 0..NAME_MAX {
                match self.bytes::<1>(at.saturating_add(position))? {
                    [0] => return Ok(String::from_utf8_lossy(&text).into_owned()),
                    [byte] => text.push(byte),
                }
            }
            Err(broken("a name without an end"))
        }
    }

    fn broken(what: &str) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, format!("not a library for 64 bits: {what}"))
    }

    pub(super) fn needed(path: &Path) -> io::Result<Vec<String>> {
        let file = File(fs::File::open(path)?);
        // ELF, 64 bits, little endian.
        if file.bytes::<6>(0)? != *b"\x7fELF\x02\x01" {
            return Err(broken("its head"));
        }
        let (table, size, count) = (file.u64(32)?, file.u16(54)?, file.u16(56)?);
        let segments = (0..u64::from(count)).map(|n| {
            let at = table.saturating_add(n * u64::from(size));
            let (kind, offset) = (file.u32(at)?, file.u64(at.saturating_add(8))?);
            let (address, length) = (file.u64(at.saturating_add(16))?, file.u64(at.saturating_add(32))?);
            Ok(Segment { kind, offset, address, length })
        });
        let segments = segments.collect::<io::Result<Vec<_>>>()?;
        let dynamic = segments.iter().find(|segment| segment.kind == DYNAMIC).ok_or_else(|| broken("no tables"))?;
        let (mut names, mut strings) = (Vec::new(), None);
        for n in 0..dynamic.length / 16 {
            let at = dynamic.offset.saturating_add(n * 16);
            match (file.u64(at)?, file.u64(at.saturating_add(8))?) {
                (0, _) => break,
                (NEEDED, name) => names.push(name),
                (STRINGS, address) => strings = Some(address),
                _ => {}
            }
        }
        let address = strings.ok_or_else(|| broken("no names"))?;
        let holds = |segment: &&Segment| {
            segment.kind == LOAD && (segment.address..segment.address.saturating_add(segment.length)).contains(&address)
        };
        let segment = segments.iter().find(holds).ok_or_else(|| broken("names outside of it"))?;
        let strings = address - segment.address + segment.offset;
        names.into_iter().map(|name| file.text(strings.saturating_add(name))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_for_cpus_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let library = folder.path().join("libonnxruntime.so");
        let error = probe(&library, 0).unwrap_err().to_string();
        assert!(error.contains(PROVIDER) && error.contains("docs/gpu.md"), "{error}");
        fs::write(folder.path().join(PROVIDER), "not a library").unwrap();
        assert!(matches!(probe(&library, 0), Err(CudaError::Provider { .. })));
    }

    #[test]
    fn the_libraries_that_a_library_wants_are_read_from_it() {
        let program = std::env::current_exe().unwrap();
        let needed = elf::needed(&program).unwrap();
        assert!(needed.iter().any(|name| name.starts_with("libc.so")), "{needed:?}");
        let folder = tempfile::tempdir().unwrap();
        let bytes = fs::read(&program).unwrap();
        let cut = folder.path().join("cut");
        for length in [0, 3, 20, 63, 64, 100, 300] {
            fs::write(&cut, &bytes[..length]).unwrap();
            assert!(elf::needed(&cut).is_err(), "{length}");
        }
    }

    #[test]
    fn each_missing_part_has_its_own_words() {
        let library = open_library(Path::new("libhush-none.so.13")).unwrap_err();
        assert!(library.contains("libhush-none.so.13"), "{library}");
        let old = CudaError::OldDriver { has: 12040, needs: 13 }.to_string();
        assert!(old.contains("CUDA 12.4") && old.contains("CUDA 13"), "{old}");
        assert!(check_architecture(0, (6, 1), Some(13)).unwrap_err().to_string().contains("6.1"));
        assert!(check_architecture(0, (6, 1), Some(12)).is_ok());
        assert!(check_architecture(0, (9, 0), Some(13)).is_ok());
        assert!(check_architecture(0, (3, 5), None).is_ok(), "nobody knows");
    }
}
