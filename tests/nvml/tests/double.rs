//! The double as its users see it: opened and called by `nvml-wrapper`, scripted while they look.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test support, though no test itself")]

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use hush_nvml::{
    MemoryTaker, NvmlCode, ProcessList, ProcessMemory, SCRIPT_VARIABLE, Script, ScriptedChange, ScriptedDevice,
    ScriptedProcess, unix_millis,
};
use nvml_wrapper::Nvml;
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;

const GIB: u64 = 1 << 30;
const UUID: &str = "GPU-11111111-2222-3333-4444-555555555555";

/// Runs `body` in a process of its own: NVML is initialised once per process, and the script is named by a variable.
fn alone(test: &str, body: impl FnOnce(&Path)) {
    match env::var_os(SCRIPT_VARIABLE) {
        Some(path) => body(Path::new(&path)),
        None => {
            let folder = tempfile::tempdir().unwrap();
            let mut child = Command::new(env::current_exe().unwrap());
            child.args(["--exact", test, "--nocapture"]).env(SCRIPT_VARIABLE, folder.path().join("gpus.json"));
            assert!(child.status().unwrap().success(), "{test}");
        }
    }
}

fn open() -> Result<Nvml, NvmlError> {
    let library: PathBuf = hush_nvml::library().unwrap();
    Nvml::builder().lib_path(library.as_os_str()).init()
}

fn used(nvml: &Nvml) -> u64 {
    nvml.device_by_index(0).unwrap().memory_info().unwrap().used
}

/// Waits until the used memory is `expected`.
fn until_used(nvml: &Nvml, expected: u64) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while used(nvml) != expected {
        assert!(Instant::now() < deadline, "{} is used, {expected} was to be", used(nvml));
        thread::sleep(Duration::from_millis(5));
    }
}

/// A process with this name that lives until it is killed.
fn sleeper(folder: &Path, name: &str) -> Child {
    let program = folder.join(name);
    fs::copy("/bin/sleep", &program).unwrap();
    Command::new(program).arg("600").stdin(Stdio::null()).spawn().unwrap()
}

#[test]
fn a_machine_without_a_script_has_no_driver() {
    alone("a_machine_without_a_script_has_no_driver", |_| {
        assert!(matches!(open(), Err(NvmlError::DriverNotLoaded)));
    });
}

#[test]
fn devices_are_found_by_number_and_by_uuid_and_have_memory() {
    alone("devices_are_found_by_number_and_by_uuid_and_have_memory", |path| {
        let first =
            ScriptedDevice { reserved_bytes: GIB / 2, used_bytes: 3 * GIB, ..ScriptedDevice::new(UUID, 8 * GIB) };
        let second = ScriptedDevice { name: "Other".to_owned(), ..ScriptedDevice::new("GPU-b", 16 * GIB) };
        Script::of([first, second]).write(path).unwrap();
        let nvml = open().unwrap();
        assert_eq!(nvml.device_count().unwrap(), 2);
        assert_eq!(nvml.sys_driver_version().unwrap(), "580.95.05");
        assert_eq!(nvml.sys_cuda_driver_version().unwrap(), 13000);
        let device = nvml.device_by_uuid(UUID).unwrap();
        assert_eq!((device.index().unwrap(), device.uuid().unwrap().as_str()), (0, UUID));
        let memory = device.memory_info().unwrap();
        assert_eq!((memory.total, memory.reserved), (8 * GIB, GIB / 2));
        assert_eq!((memory.used, memory.free), (3 * GIB, 9 * GIB / 2));
        let capability = device.cuda_compute_capability().unwrap();
        assert_eq!((capability.major, capability.minor), (8, 9));
        assert_eq!(nvml.device_by_index(1).unwrap().name().unwrap(), "Other");
        assert!(matches!(nvml.device_by_uuid("GPU-c"), Err(NvmlError::NotFound)));
        assert!(matches!(nvml.device_by_index(2), Err(NvmlError::InvalidArg)));
    });
}

#[test]
fn a_rewritten_script_is_seen_at_the_next_call() {
    alone("a_rewritten_script_is_seen_at_the_next_call", |path| {
        let mut script = Script::of([ScriptedDevice::new(UUID, 8 * GIB)]);
        script.write(path).unwrap();
        let nvml = open().unwrap();
        assert_eq!(used(&nvml), 0);
        script.devices[0].used_bytes = GIB;
        script.write(path).unwrap();
        assert_eq!(used(&nvml), GIB);
        script.devices[0].changes = vec![ScriptedChange { at_unix_ms: unix_millis() + 300, used_bytes: 2 * GIB }];
        script.write(path).unwrap();
        assert_eq!(used(&nvml), GIB);
        until_used(&nvml, 2 * GIB);
    });
}

#[test]
fn processes_are_listed_as_the_script_allows() {
    alone("processes_are_listed_as_the_script_allows", |path| {
        let device = ScriptedDevice {
            processes: vec![
                ScriptedProcess { pid: 7, bytes: GIB, graphics: false },
                ScriptedProcess { pid: 8, bytes: 2 * GIB, graphics: true },
            ],
            ..ScriptedDevice::new(UUID, 8 * GIB)
        };
        let mut script = Script::of([device]);
        script.write(path).unwrap();
        let nvml = open().unwrap();
        let device = nvml.device_by_index(0).unwrap();
        let lists = || (device.running_compute_processes(), device.running_graphics_processes());
        let (compute, graphics) = lists();
        let (compute, graphics) = (compute.unwrap(), graphics.unwrap());
        assert_eq!((compute.len(), graphics.len()), (1, 1));
        assert_eq!((compute[0].pid, graphics[0].pid), (7, 8));
        assert_eq!(compute[0].used_gpu_memory, UsedGpuMemory::Used(GIB));
        assert_eq!(used(&nvml), 3 * GIB);

        script.devices[0].process_list = ProcessList::HostPids;
        script.write(path).unwrap();
        assert_ne!(lists().0.unwrap()[0].pid, 7);
        script.devices[0].process_list = ProcessList::WithoutMemory;
        script.write(path).unwrap();
        assert_eq!(lists().0.unwrap()[0].used_gpu_memory, UsedGpuMemory::Unavailable);
        script.devices[0].process_list = ProcessList::NotSupported;
        script.write(path).unwrap();
        assert!(matches!(lists().0, Err(NvmlError::NotSupported)));
        assert_eq!(used(&nvml), 3 * GIB, "held all the same");
    });
}

#[test]
fn memory_follows_a_real_process_and_comes_back_late_or_not_or_to_another() {
    alone("memory_follows_a_real_process_and_comes_back_late_or_not_or_to_another", |path| {
        let folder = path.parent().unwrap();
        let guest = |guest: ProcessMemory| ProcessMemory { process: "nvml-guest".to_owned(), bytes: 3 * GIB, ..guest };
        let mut script = Script::of([ScriptedDevice { used_bytes: GIB, ..ScriptedDevice::new(UUID, 8 * GIB) }]);
        script.devices[0].guests =
            vec![guest(ProcessMemory { release_ms: 400, residue_bytes: GIB / 2, ..ProcessMemory::default() })];
        script.write(path).unwrap();
        let nvml = open().unwrap();
        assert_eq!(used(&nvml), GIB);
        let mut process = sleeper(folder, "nvml-guest");
        until_used(&nvml, 4 * GIB);
        let device = nvml.device_by_index(0).unwrap();
        assert_eq!(device.running_compute_processes().unwrap()[0].pid, process.id());
        // Dead and not reaped: the memory is the driver's until it has cleaned up.
        process.kill().unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while !device.running_compute_processes().unwrap().is_empty() {
            assert!(Instant::now() < deadline);
        }
        assert_eq!(used(&nvml), 4 * GIB, "late");
        until_used(&nvml, GIB + GIB / 2);
        process.wait().unwrap();

        fs::remove_file(folder.join("gpus.json.holders")).unwrap();
        let taker = Some(MemoryTaker { pid: 99, bytes: 2 * GIB });
        script.devices[0].guests = vec![guest(ProcessMemory { taker, ..ProcessMemory::default() })];
        script.write(path).unwrap();
        let mut process = sleeper(folder, "nvml-guest");
        until_used(&nvml, 4 * GIB);
        process.kill().unwrap();
        until_used(&nvml, 3 * GIB);
        assert_eq!(device.running_compute_processes().unwrap()[0].pid, 99);
        process.wait().unwrap();
    });
}

#[test]
fn guests_are_told_apart_by_parent_and_by_what_they_map() {
    alone("guests_are_told_apart_by_parent_and_by_what_they_map", |path| {
        let folder = path.parent().unwrap();
        let guest = ProcessMemory { process: "nvml-child".to_owned(), bytes: GIB, ..ProcessMemory::default() };
        let mut script = Script::of([ScriptedDevice::new(UUID, 8 * GIB)]);
        let mut process = sleeper(folder, "nvml-child");
        let mut with = |guest: ProcessMemory| {
            script.devices[0].guests = vec![guest];
            script.write(path).unwrap();
        };
        let ours = Some(std::process::id());
        with(ProcessMemory { parent_pid: ours, mapped: Some("libc".to_owned()), ..guest.clone() });
        let nvml = open().unwrap();
        until_used(&nvml, GIB);
        for other in [
            ProcessMemory { parent_pid: Some(1), ..guest.clone() },
            ProcessMemory { parent_pid: ours, mapped: Some("no-such-file".to_owned()), ..guest.clone() },
        ] {
            with(other);
            let _ = fs::remove_file(folder.join("gpus.json.holders"));
            assert_eq!(used(&nvml), 0);
        }
        process.kill().unwrap();
        process.wait().unwrap();
    });
}

#[test]
fn errors_come_per_function_and_per_device() {
    alone("errors_come_per_function_and_per_device", |path| {
        let mut script = Script::of([ScriptedDevice::new(UUID, 8 * GIB), ScriptedDevice::new("GPU-b", 8 * GIB)]);
        script.write(path).unwrap();
        let nvml = open().unwrap();
        let memory = |n| nvml.device_by_index(n).and_then(|device| device.memory_info().map(|memory| memory.total));
        let mut set = |change: &dyn Fn(&mut Script)| {
            let mut changed = script.clone();
            change(&mut changed);
            script.epoch = changed.epoch;
            changed.write(path).unwrap();
        };
        set(&|script| script.devices[0].lost = true);
        assert!(matches!(memory(0), Err(NvmlError::GpuLost)));
        assert_eq!(memory(1).unwrap(), 8 * GIB);
        set(&|script| {
            script.devices[1].errors.insert("nvmlDeviceGetMemoryInfo_v2".to_owned(), NvmlCode::NO_PERMISSION);
        });
        assert!(matches!(memory(1), Err(NvmlError::NoPermission)));
        assert_eq!(memory(0).unwrap(), 8 * GIB);
        set(&|script| {
            script.errors.insert("*".to_owned(), NvmlCode::LIB_RM_VERSION_MISMATCH);
        });
        assert!(matches!(nvml.device_count(), Err(NvmlError::LibRmVersionMismatch)));
        set(&|script| script.epoch += 1);
        assert!(matches!(memory(0), Err(NvmlError::Uninitialized)), "the driver was loaded anew");
        let again = open().unwrap();
        assert_eq!(again.device_count().unwrap(), 2);
        fs::write(path, "{").unwrap();
        assert!(matches!(again.device_count(), Err(NvmlError::Unknown)));
        fs::remove_file(path).unwrap();
        assert!(matches!(open(), Err(NvmlError::DriverNotLoaded)));
    });
}

#[test]
fn a_call_takes_as_long_as_the_script_says() {
    alone("a_call_takes_as_long_as_the_script_says", |path| {
        let mut script = Script::of([ScriptedDevice::new(UUID, 8 * GIB)]);
        script.delays_ms.insert("nvmlDeviceGetMemoryInfo_v2".to_owned(), 200);
        script.write(path).unwrap();
        let nvml = open().unwrap();
        let before = Instant::now();
        used(&nvml);
        assert!(before.elapsed() >= Duration::from_millis(200));
    });
}

#[test]
fn mig_instances_are_devices_of_their_own() {
    alone("mig_instances_are_devices_of_their_own", |path| {
        let instance = |uuid: &str, used| ScriptedDevice { used_bytes: used, ..ScriptedDevice::new(uuid, 10 * GIB) };
        let parent = ScriptedDevice {
            mig: vec![instance("MIG-a", GIB), instance("MIG-b", 2 * GIB)],
            ..ScriptedDevice::new(UUID, 40 * GIB)
        };
        Script::of([parent, ScriptedDevice::new("GPU-b", GIB)]).write(path).unwrap();
        let nvml = open().unwrap();
        let device = nvml.device_by_index(0).unwrap();
        assert_eq!(device.mig_mode().unwrap().current, 1);
        assert_eq!(nvml.device_by_index(1).unwrap().mig_mode().unwrap().current, 0);
        assert_eq!(device.mig_device_count().unwrap(), 7);
        let second = device.mig_device_by_index(1).unwrap();
        assert_eq!((second.uuid().unwrap().as_str(), second.memory_info().unwrap().used), ("MIG-b", 2 * GIB));
        assert!(second.mig_is_mig_device_handle().unwrap());
        assert_eq!(second.mig_parent_device().unwrap().uuid().unwrap(), UUID);
        assert!(matches!(device.mig_device_by_index(2), Err(NvmlError::NotFound)));
        assert_eq!(device.memory_info().unwrap().used, 3 * GIB, "the whole card holds what its parts hold");
        assert_eq!(nvml.device_by_uuid("MIG-a").unwrap().memory_info().unwrap().total, 10 * GIB);
    });
}

/// What the double of the CUDA runtime writes counts as long as its process lives.
#[test]
fn what_cuda_allocates_is_its_process_memory() {
    alone("what_cuda_allocates_is_its_process_memory", |path| {
        Script::of([ScriptedDevice::new(UUID, 8 * GIB)]).write(path).unwrap();
        let folder = PathBuf::from(format!("{}.cuda", path.display()));
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("lock"), "").unwrap();
        let start = |pid: u32| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
            stat.rsplit_once(')').unwrap().1.split_whitespace().nth(19).unwrap().to_owned()
        };
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        let (this, other) = (std::process::id(), child.id());
        fs::write(folder.join(this.to_string()), format!("{}\nGPU-another 77\n{UUID} {GIB}\n", start(this))).unwrap();
        fs::write(folder.join(other.to_string()), format!("{}\n{UUID} 1000\n", start(other))).unwrap();
        // An earlier process of this number.
        fs::write(folder.join("1"), format!("1{}\n{UUID} 5000\n", start(1))).unwrap();

        let nvml = open().unwrap();
        let device = nvml.device_by_index(0).unwrap();
        let held = || {
            let running = device.running_compute_processes().unwrap().into_iter();
            running.map(|process| (process.pid, process.used_gpu_memory)).collect::<Vec<_>>()
        };
        let mut both = held();
        both.sort_by_key(|(pid, _)| *pid != this);
        assert_eq!(both, [(this, UsedGpuMemory::Used(GIB)), (other, UsedGpuMemory::Used(1000))]);
        assert_eq!(used(&nvml), GIB + 1000);

        // Killed, and not even reaped yet.
        child.kill().unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while used(&nvml) != GIB && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(held(), [(this, UsedGpuMemory::Used(GIB))]);
        child.wait().unwrap();
    });
}
