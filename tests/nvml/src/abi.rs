//! The functions that NVML's users call, with its types and its habits. Layouts are those of nvml.h (CUDA 13).
#![allow(unsafe_code, reason = "a C ABI: callers hand over pointers, and NVML's contract says what they point to")]
#![allow(non_snake_case, clippy::missing_safety_doc, reason = "the names and the contracts are NVIDIA's")]

use std::ffi::{CStr, c_char, c_int, c_uint, c_ulonglong};
use std::ptr;

use crate::NvmlCode;
use crate::observed;
use crate::script::{ScriptedDevice, unix_millis};
use crate::session::{device_error, enter, init, shutdown};
use crate::usage;
use crate::world::{self, DevicePosition, RunningProcess, ScriptedMemory};

/// `nvmlDevice_t`: opaque to callers. `gpu + 1` in the low 16 bits, `instance + 1` above.
type DeviceHandle = *mut u8;

const NOT_AVAILABLE: c_ulonglong = c_ulonglong::MAX;
const NO_INSTANCE: c_uint = c_uint::MAX;

#[repr(C)]
pub struct MemoryV1 {
    total: c_ulonglong,
    free: c_ulonglong,
    used: c_ulonglong,
}

#[repr(C)]
pub struct MemoryV2 {
    version: c_uint,
    total: c_ulonglong,
    reserved: c_ulonglong,
    free: c_ulonglong,
    used: c_ulonglong,
}

#[repr(C)]
pub struct ProcessV1 {
    pid: c_uint,
    bytes: c_ulonglong,
}

/// Also of version 3: that one only changed which processes are listed.
#[repr(C)]
pub struct ProcessV2 {
    pid: c_uint,
    bytes: c_ulonglong,
    gpu_instance: c_uint,
    compute_instance: c_uint,
}

fn handle(place: DevicePosition) -> DeviceHandle {
    let instance = place.mig.map_or(0, |instance| instance + 1);
    ptr::without_provenance_mut((instance << 16) | (place.gpu + 1))
}

fn place(handle: DeviceHandle) -> Option<DevicePosition> {
    let address = handle.addr();
    let gpu = (address & 0xffff).checked_sub(1)?;
    Some(DevicePosition { gpu, mig: (address >> 16).checked_sub(1) })
}

fn returned(result: Result<(), NvmlCode>) -> NvmlCode {
    result.err().unwrap_or(NvmlCode::SUCCESS)
}

/// A device as a caller sees it at this moment.
struct DeviceSnapshot {
    place: DevicePosition,
    device: ScriptedDevice,
    holders: Vec<observed::MemoryHolder>,
    now: u64,
}

impl DeviceSnapshot {
    fn memory(&self) -> ScriptedMemory {
        world::memory(&self.device, &self.holders, self.now)
    }

    fn running(&self, graphics: bool) -> Result<Vec<RunningProcess>, NvmlCode> {
        let running = world::running(&self.device, &self.holders, self.now).ok_or(NvmlCode::NOT_SUPPORTED)?;
        Ok(running.into_iter().filter(|running| running.graphics == graphics).collect())
    }
}

fn look(function: &str, device: DeviceHandle) -> Result<DeviceSnapshot, NvmlCode> {
    let (script, path) = enter(function)?;
    let place = place(device).ok_or(NvmlCode::INVALID_ARGUMENT)?;
    let parent = script.devices.get(place.gpu).ok_or(NvmlCode::INVALID_ARGUMENT)?;
    let found = world::device(&script, place).ok_or(NvmlCode::INVALID_ARGUMENT)?;
    if parent.lost || found.lost {
        return Err(NvmlCode::GPU_IS_LOST);
    }
    device_error(&parent.errors, function)?;
    device_error(&found.errors, function)?;
    let now = unix_millis();
    let mut device = found.clone();
    usage::add_processes(&mut device, &path);
    Ok(DeviceSnapshot { place, device, holders: observed::holders(&script, &path, now), now })
}

/// Writes through a caller's pointer, which NVML wants to be valid or null.
unsafe fn put<T>(into: *mut T, value: T) -> Result<(), NvmlCode> {
    if into.is_null() {
        return Err(NvmlCode::INVALID_ARGUMENT);
    }
    // SAFETY: not null; NVML's contract makes it valid for one value of its type.
    unsafe { into.write(value) };
    Ok(())
}

unsafe fn put_text(into: *mut c_char, length: c_uint, text: &str) -> Result<(), NvmlCode> {
    if into.is_null() {
        return Err(NvmlCode::INVALID_ARGUMENT);
    }
    if text.len() >= length as usize {
        return Err(NvmlCode::INSUFFICIENT_SIZE);
    }
    // SAFETY: not null; valid for `length` bytes, and text and its end are fewer.
    unsafe {
        ptr::copy_nonoverlapping(text.as_ptr().cast(), into, text.len());
        into.add(text.len()).write(0);
    }
    Ok(())
}

/// Fills a caller's list as NVML does: too short a list is told the length that it should have.
unsafe fn put_list<T>(count: *mut c_uint, into: *mut T, items: Vec<T>) -> Result<(), NvmlCode> {
    if count.is_null() {
        return Err(NvmlCode::INVALID_ARGUMENT);
    }
    // SAFETY: not null; it points to the length of `into`.
    let room = unsafe { count.read() } as usize;
    let needed = c_uint::try_from(items.len()).map_err(|_| NvmlCode::UNKNOWN)?;
    // SAFETY: as above.
    unsafe { count.write(needed) };
    if room < items.len() {
        return Err(NvmlCode::INSUFFICIENT_SIZE);
    }
    for (n, item) in items.into_iter().enumerate() {
        // SAFETY: `into` has room for `room` items, and there are no more.
        unsafe { put(into.add(n), item)? };
    }
    Ok(())
}

unsafe fn text_argument<'a>(text: *const c_char) -> Result<&'a str, NvmlCode> {
    if text.is_null() {
        return Err(NvmlCode::INVALID_ARGUMENT);
    }
    // SAFETY: not null; NVML's contract makes it a C string.
    unsafe { CStr::from_ptr(text) }.to_str().map_err(|_| NvmlCode::INVALID_ARGUMENT)
}

macro_rules! nvml {
    ($($(#[$meta:meta])* fn $name:ident($($argument:ident: $type:ty),*) $body:block)+) => {$(
        $(#[$meta])*
        #[unsafe(no_mangle)]
        #[allow(clippy::redundant_closure_call, reason = "the closure is what `?` and `return` of a body end")]
        pub unsafe extern "C" fn $name($($argument: $type),*) -> NvmlCode {
            // Each body touches memory only through `put`, `put_text`, `put_list` and `text_argument`.
            returned((|| -> Result<(), NvmlCode> { $body })())
        }
    )+};
}

nvml! {
    fn nvmlInit() { init("nvmlInit") }
    fn nvmlInit_v2() { init("nvmlInit_v2") }
    fn nvmlInitWithFlags(_flags: c_uint) { init("nvmlInitWithFlags") }
    fn nvmlShutdown() { shutdown() }

    fn nvmlSystemGetDriverVersion(version: *mut c_char, length: c_uint) {
        let (script, _) = enter("nvmlSystemGetDriverVersion")?;
        unsafe { put_text(version, length, &script.driver_version) }
    }
    fn nvmlSystemGetNVMLVersion(version: *mut c_char, length: c_uint) {
        let (script, _) = enter("nvmlSystemGetNVMLVersion")?;
        unsafe { put_text(version, length, &format!("13.{}", script.driver_version)) }
    }
    fn nvmlSystemGetCudaDriverVersion(version: *mut c_int) {
        let (script, _) = enter("nvmlSystemGetCudaDriverVersion")?;
        unsafe { put(version, script.cuda_version) }
    }
    fn nvmlSystemGetCudaDriverVersion_v2(version: *mut c_int) {
        let (script, _) = enter("nvmlSystemGetCudaDriverVersion_v2")?;
        unsafe { put(version, script.cuda_version) }
    }

    fn nvmlDeviceGetCount_v2(count: *mut c_uint) {
        let (script, _) = enter("nvmlDeviceGetCount_v2")?;
        unsafe { put(count, c_uint::try_from(script.devices.len()).unwrap_or(c_uint::MAX)) }
    }
    fn nvmlDeviceGetHandleByIndex_v2(index: c_uint, device: *mut DeviceHandle) {
        let found = handle(DevicePosition { gpu: index as usize, mig: None });
        look("nvmlDeviceGetHandleByIndex_v2", found)?;
        unsafe { put(device, found) }
    }
    fn nvmlDeviceGetHandleByUUID(uuid: *const c_char, device: *mut DeviceHandle) {
        let uuid = unsafe { text_argument(uuid)? };
        let (script, _) = enter("nvmlDeviceGetHandleByUUID")?;
        let found = handle(world::by_uuid(&script, uuid).ok_or(NvmlCode::NOT_FOUND)?);
        look("nvmlDeviceGetHandleByUUID", found)?;
        unsafe { put(device, found) }
    }
    fn nvmlDeviceGetIndex(device: DeviceHandle, index: *mut c_uint) {
        let seen = look("nvmlDeviceGetIndex", device)?;
        unsafe { put(index, c_uint::try_from(seen.place.gpu).unwrap_or(c_uint::MAX)) }
    }
    fn nvmlDeviceGetMinorNumber(device: DeviceHandle, number: *mut c_uint) {
        let seen = look("nvmlDeviceGetMinorNumber", device)?;
        unsafe { put(number, c_uint::try_from(seen.place.gpu).unwrap_or(c_uint::MAX)) }
    }
    fn nvmlDeviceGetUUID(device: DeviceHandle, uuid: *mut c_char, length: c_uint) {
        let seen = look("nvmlDeviceGetUUID", device)?;
        unsafe { put_text(uuid, length, &seen.device.uuid) }
    }
    fn nvmlDeviceGetName(device: DeviceHandle, name: *mut c_char, length: c_uint) {
        let seen = look("nvmlDeviceGetName", device)?;
        unsafe { put_text(name, length, &seen.device.name) }
    }
    fn nvmlDeviceGetCudaComputeCapability(device: DeviceHandle, major: *mut c_int, minor: *mut c_int) {
        let [a, b] = look("nvmlDeviceGetCudaComputeCapability", device)?.device.compute_capability;
        unsafe {
            put(major, a)?;
            put(minor, b)
        }
    }
    fn nvmlDeviceGetEccMode(device: DeviceHandle, _current: *mut c_uint, _pending: *mut c_uint) {
        look("nvmlDeviceGetEccMode", device)?;
        Err(NvmlCode::NOT_SUPPORTED)
    }

    fn nvmlDeviceGetMemoryInfo(device: DeviceHandle, memory: *mut MemoryV1) {
        // The first version counts what is reserved as used.
        let ScriptedMemory { total, reserved, used, free } = look("nvmlDeviceGetMemoryInfo", device)?.memory();
        unsafe { put(memory, MemoryV1 { total, free, used: used + reserved }) }
    }
    fn nvmlDeviceGetMemoryInfo_v2(device: DeviceHandle, memory: *mut MemoryV2) {
        let ScriptedMemory { total, reserved, used, free } = look("nvmlDeviceGetMemoryInfo_v2", device)?.memory();
        if memory.is_null() {
            return Err(NvmlCode::INVALID_ARGUMENT);
        }
        let version = size_of::<MemoryV2>() as c_uint | (2 << 24);
        if unsafe { memory.read() }.version != version {
            return Err(NvmlCode::ARGUMENT_VERSION_MISMATCH);
        }
        unsafe { put(memory, MemoryV2 { version, total, reserved, free, used }) }
    }

    fn nvmlDeviceGetComputeRunningProcesses(device: DeviceHandle, count: *mut c_uint, list: *mut ProcessV1) {
        let running = look("nvmlDeviceGetComputeRunningProcesses", device)?.running(false)?;
        unsafe { put_list(count, list, running.iter().map(first).collect()) }
    }
    fn nvmlDeviceGetComputeRunningProcesses_v2(device: DeviceHandle, count: *mut c_uint, list: *mut ProcessV2) {
        let running = look("nvmlDeviceGetComputeRunningProcesses_v2", device)?.running(false)?;
        unsafe { put_list(count, list, running.iter().map(second).collect()) }
    }
    fn nvmlDeviceGetComputeRunningProcesses_v3(device: DeviceHandle, count: *mut c_uint, list: *mut ProcessV2) {
        let running = look("nvmlDeviceGetComputeRunningProcesses_v3", device)?.running(false)?;
        unsafe { put_list(count, list, running.iter().map(second).collect()) }
    }
    fn nvmlDeviceGetGraphicsRunningProcesses(device: DeviceHandle, count: *mut c_uint, list: *mut ProcessV1) {
        let running = look("nvmlDeviceGetGraphicsRunningProcesses", device)?.running(true)?;
        unsafe { put_list(count, list, running.iter().map(first).collect()) }
    }
    fn nvmlDeviceGetGraphicsRunningProcesses_v2(device: DeviceHandle, count: *mut c_uint, list: *mut ProcessV2) {
        let running = look("nvmlDeviceGetGraphicsRunningProcesses_v2", device)?.running(true)?;
        unsafe { put_list(count, list, running.iter().map(second).collect()) }
    }
    fn nvmlDeviceGetGraphicsRunningProcesses_v3(device: DeviceHandle, count: *mut c_uint, list: *mut ProcessV2) {
        let running = look("nvmlDeviceGetGraphicsRunningProcesses_v3", device)?.running(true)?;
        unsafe { put_list(count, list, running.iter().map(second).collect()) }
    }

    fn nvmlDeviceGetMigMode(device: DeviceHandle, current: *mut c_uint, pending: *mut c_uint) {
        let seen = look("nvmlDeviceGetMigMode", device)?;
        let on = c_uint::from(!seen.device.mig.is_empty());
        unsafe {
            put(current, on)?;
            put(pending, on)
        }
    }
    fn nvmlDeviceGetMaxMigDeviceCount(device: DeviceHandle, count: *mut c_uint) {
        let seen = look("nvmlDeviceGetMaxMigDeviceCount", device)?;
        // How many there can be: indices between them may be free.
        unsafe { put(count, if seen.device.mig.is_empty() { 0 } else { 7 }) }
    }
    fn nvmlDeviceGetMigDeviceHandleByIndex(device: DeviceHandle, index: c_uint, instance: *mut DeviceHandle) {
        let seen = look("nvmlDeviceGetMigDeviceHandleByIndex", device)?;
        if index as usize >= seen.device.mig.len() {
            return Err(NvmlCode::NOT_FOUND);
        }
        unsafe { put(instance, handle(DevicePosition { gpu: seen.place.gpu, mig: Some(index as usize) })) }
    }
    fn nvmlDeviceGetDeviceHandleFromMigDeviceHandle(instance: DeviceHandle, device: *mut DeviceHandle) {
        let seen = look("nvmlDeviceGetDeviceHandleFromMigDeviceHandle", instance)?;
        unsafe { put(device, handle(DevicePosition { mig: None, ..seen.place })) }
    }
    fn nvmlDeviceIsMigDeviceHandle(device: DeviceHandle, is_instance: *mut c_uint) {
        let seen = look("nvmlDeviceIsMigDeviceHandle", device)?;
        unsafe { put(is_instance, c_uint::from(seen.place.mig.is_some())) }
    }
    fn nvmlDeviceGetGpuInstanceId(device: DeviceHandle, id: *mut c_uint) {
        let instance = look("nvmlDeviceGetGpuInstanceId", device)?.place.mig.ok_or(NvmlCode::NOT_SUPPORTED)?;
        unsafe { put(id, c_uint::try_from(instance).unwrap_or(c_uint::MAX)) }
    }
    fn nvmlDeviceGetComputeInstanceId(device: DeviceHandle, id: *mut c_uint) {
        look("nvmlDeviceGetComputeInstanceId", device)?.place.mig.ok_or(NvmlCode::NOT_SUPPORTED)?;
        unsafe { put(id, 0) }
    }
}

fn first(running: &RunningProcess) -> ProcessV1 {
    ProcessV1 { pid: running.pid, bytes: running.bytes.unwrap_or(NOT_AVAILABLE) }
}

fn second(running: &RunningProcess) -> ProcessV2 {
    ProcessV2 {
        pid: running.pid,
        bytes: running.bytes.unwrap_or(NOT_AVAILABLE),
        gpu_instance: NO_INSTANCE,
        compute_instance: NO_INSTANCE,
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlErrorString(code: NvmlCode) -> *const c_char {
    code.text().as_ptr()
}
