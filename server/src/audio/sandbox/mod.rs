//! What the ffmpeg process may do. ffmpeg parses untrusted files in C, so the sandbox assumes that a file can control the
//! process: it gets no secrets, no network, no files except the upload and the libraries, no other processes, and limits.
//!
//! Everything is prepared in the server. Between fork and exec the child only makes system calls (see [`Sandbox::enter`]):
//! other threads of the server may hold a lock of the allocator at the moment of the fork.

mod files;
mod system_calls;

use std::env;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use rustix::process::{
    Pid, Resource, Rlimit, Signal, getpid, getppid, getrlimit, set_parent_process_death_signal, setrlimit, setsid,
};
use seccompiler::BpfProgram;

use super::ffmpeg::Input;

/// What one ffmpeg process may use; time by the clock is [`DecodeOptions::ffmpeg_timeout`](super::DecodeOptions).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FfmpegLimits {
    /// Memory that it allocates: heap, stacks, everything that is its own and can be written.
    pub memory_bytes: u64,
    /// Seconds of processor time, of all its threads together.
    pub processor_time: Duration,
}

impl Default for FfmpegLimits {
    fn default() -> Self {
        // While ffmpeg looks for the tracks of an 8K video it holds some hundred megabytes of pictures; the index of a
        // day-long MP4 takes as much again.
        Self { memory_bytes: 1 << 30, processor_time: Duration::from_secs(1800) }
    }
}

/// Mapped beside [`FfmpegLimits::memory_bytes`]: the code of some two hundred libraries, and the room that the allocator
/// reserves for each thread without using it.
const MAPPED_BYTES: u64 = 3 << 30;
/// Standard streams, the upload once more, and a library while it is loaded.
const OPEN_FILES: u64 = 64;
/// The hard limit of processor time ends a program that ignores the signal of the soft one.
const PROCESSOR_GRACE_SECONDS: u64 = 1;

/// What the process inherits of the environment: where programs and libraries are, and the language of messages. No tokens,
/// no keys, no proxies.
const INHERITED: &[&str] = &["PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH"];

/// What the kernel offers to confine a process with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Confinement {
    /// Files, connections and signals.
    pub landlock: bool,
    /// System calls.
    pub seccomp: bool,
}

impl Confinement {
    /// Looks once; what is missing is logged then.
    pub fn of_this_kernel() -> Self {
        static FOUND: OnceLock<Confinement> = OnceLock::new();
        *FOUND.get_or_init(|| {
            let found = Self { landlock: files::is_supported(), seccomp: system_calls::is_supported() };
            if let Some(missing) = found.missing() {
                tracing::warn!("the kernel, or the container's runtime, offers {missing}");
            }
            found
        })
    }

    fn missing(self) -> Option<&'static str> {
        Some(match (self.landlock, self.seccomp) {
            (true, true) => return None,
            (false, true) => {
                "no Landlock: ffmpeg writes nothing and has no network, but can read what the server can read"
            }
            (true, false) => "no seccomp filters: ffmpeg is confined to its files, but can start processes",
            (false, false) => {
                "neither Landlock nor seccomp filters: ffmpeg has limits and no secrets in its environment, but can open \
                 what the server can open"
            }
        })
    }
}

pub(super) struct Sandbox {
    files: Option<OwnedFd>,
    filters: Vec<BpfProgram>,
    limits: [(Resource, Rlimit); 6],
    server: Pid,
}

impl Sandbox {
    pub(super) fn new(program: &Path, input: &Input, limits: &FfmpegLimits) -> io::Result<Self> {
        let confinement = Confinement::of_this_kernel();
        let server = getpid();
        let files = if confinement.landlock { files::ruleset(program, input)? } else { None };
        let filters = if confinement.seccomp { system_calls::filters(server)? } else { Vec::new() };
        Ok(Self { files, filters, limits: resources(limits), server })
    }

    /// The command's process gets few variables, a session of its own and the confinement.
    pub(super) fn confine(self, command: &mut Command) {
        command.env_clear().envs(inherited());
        #[allow(unsafe_code, reason = "the process confines itself between fork and exec")]
        // SAFETY: `enter` makes system calls and nothing else: it allocates nothing, takes no lock, and what it uses was
        // made before the fork.
        unsafe {
            command.pre_exec(move || self.enter());
        }
    }

    /// In the child, where it either holds in full or ffmpeg is not started.
    fn enter(&self) -> io::Result<()> {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        if getppid() != Some(self.server) {
            // The server ended before the line above.
            return Err(rustix::io::Errno::SRCH.into());
        }
        // A group of its own, which is killed as a whole, and no terminal.
        setsid()?;
        for (resource, limit) in &self.limits {
            setrlimit(*resource, *limit)?;
        }
        no_new_privileges()?;
        close_on_exec();
        if let Some(ruleset) = &self.files {
            files::enforce(ruleset.as_raw_fd())?;
        }
        for filter in &self.filters {
            system_calls::enforce(filter)?;
        }
        Ok(())
    }
}

fn inherited() -> impl Iterator<Item = (&'static str, OsString)> {
    INHERITED.iter().filter_map(|name| Some((*name, env::var_os(name)?)))
}

fn resources(limits: &FfmpegLimits) -> [(Resource, Rlimit); 6] {
    let seconds = limits.processor_time.as_secs().max(1);
    [
        (Resource::Data, limits.memory_bytes, 0),
        (Resource::As, limits.memory_bytes.saturating_add(MAPPED_BYTES), 0),
        (Resource::Cpu, seconds, PROCESSOR_GRACE_SECONDS),
        // Not a byte to any file: what it writes goes through pipes, and the server counts it.
        (Resource::Fsize, 0, 0),
        (Resource::Nofile, OPEN_FILES, 0),
        (Resource::Core, 0, 0),
    ]
    .map(|(resource, soft, grace)| {
        // A hard limit that is lower already stays: only root can raise it.
        let highest = getrlimit(resource).maximum.unwrap_or(u64::MAX);
        let hard = soft.saturating_add(grace).min(highest);
        (resource, Rlimit { current: Some(soft.min(hard)), maximum: Some(hard) })
    })
}

#[allow(unsafe_code, reason = "a system call without a safe wrapper here")]
fn no_new_privileges() -> io::Result<()> {
    // SAFETY: the arguments are numbers.
    match unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Libraries of the server (a GPU's driver) may have opened files that are not marked so. A kernel before Linux 5.11 does
/// not know the call; the server's own files are marked one by one.
#[allow(unsafe_code, reason = "a system call without a safe wrapper here")]
fn close_on_exec() {
    const AFTER_STANDARD_STREAMS: libc::c_uint = 3;
    // SAFETY: the arguments are numbers, and no descriptor is closed before exec.
    unsafe {
        libc::syscall(libc::SYS_close_range, AFTER_STANDARD_STREAMS, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC);
    }
}

/// `name` as the shell would find it in `PATH`.
pub(super) fn find_program(name: &Path) -> Option<PathBuf> {
    if name.components().count() > 1 {
        return Some(name.to_owned());
    }
    let is_executable =
        |path: &PathBuf| path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok();
    env::split_paths(&env::var_os("PATH")?).map(|folder| folder.join(name)).find(is_executable)
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;
    use std::time::Instant;

    use super::*;

    #[test]
    fn what_a_kernel_lacks_is_told_by_what_it_means() {
        let told = |landlock, seccomp| Confinement { landlock, seccomp }.missing();
        assert_eq!(told(true, true), None);
        assert!(told(false, true).is_some_and(|text| text.starts_with("no Landlock") && text.contains("can read")));
        assert!(told(true, false).is_some_and(|text| text.starts_with("no seccomp")));
        assert!(told(false, false).is_some_and(|text| text.starts_with("neither")));
    }

    #[test]
    fn a_hard_limit_of_the_server_is_not_raised() {
        let limits = resources(&FfmpegLimits { memory_bytes: u64::MAX, processor_time: Duration::ZERO });
        for (resource, limit) in limits {
            let highest = getrlimit(resource).maximum.unwrap_or(u64::MAX);
            assert!(limit.maximum.is_some_and(|hard| hard <= highest), "{resource:?}");
            assert!(limit.current <= limit.maximum, "{resource:?}");
        }
    }

    /// `cargo test --workspace --lib -- --ignored --nocapture what_a_start_takes`
    #[test]
    #[ignore = "prints a figure and checks nothing"]
    fn what_a_start_takes() {
        let program = Path::new("/bin/true");
        let start = |confined: bool| {
            let input = Input { file: std::fs::File::open("/dev/null").unwrap(), is_in_memory: true };
            let begun = Instant::now();
            let mut command = Command::new(program);
            command.stdin(Stdio::null()).stdout(Stdio::null());
            if confined {
                Sandbox::new(program, &input, &FfmpegLimits::default()).unwrap().confine(&mut command);
            }
            assert!(command.status().unwrap().success());
            begun.elapsed()
        };
        let mut times = [Vec::new(), Vec::new()];
        for _ in 0..500 {
            for (confined, times) in [false, true].into_iter().zip(&mut times) {
                times.push(start(confined));
            }
        }
        for (what, times) in ["free", "confined"].into_iter().zip(&mut times) {
            times.sort_unstable();
            println!("{what}: median {:?}, fastest {:?}", times[times.len() / 2], times[0]);
        }
    }
}
