//! The rights of the ffmpeg process. ffmpeg parses untrusted files in C, so the sandbox assumes that a file can take control of
//! the process. The process gets no secrets, no network, no files except the upload and the libraries, no other processes, and
//! resource limits.
//!
//! The server prepares everything. Between fork and exec the child only makes system calls (see [`Sandbox::enter`]), because
//! another thread of the server may have held a lock of the allocator at the moment of the fork.

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

use super::ffmpeg::FfmpegInput;

/// Limits for one ffmpeg process. [`DecodeOptions::ffmpeg_timeout`](super::DecodeOptions) limits its wall-clock time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FfmpegLimits {
    /// Memory that the process allocates: heap, stacks, and all other private writable memory.
    pub memory_bytes: u64,
    /// Processor time of all threads together, in whole seconds.
    pub processor_time: Duration,
}

impl Default for FfmpegLimits {
    fn default() -> Self {
        // While ffmpeg searches for the tracks of an 8K video it holds several hundred megabytes of pictures; the index of a
        // day-long MP4 needs as much again.
        Self { memory_bytes: 1 << 30, processor_time: Duration::from_secs(1800) }
    }
}

/// Address space besides [`FfmpegLimits::memory_bytes`]: the code of about two hundred libraries, and what the allocator
/// reserves for each thread without using it.
const MAPPED_BYTES: u64 = 3 << 30;
/// Standard streams, the upload, and a library while it is loaded.
const OPEN_FILES: u64 = 64;
/// Seconds after which the hard limit of processor time ends a program that ignores the signal of the soft limit.
const PROCESSOR_GRACE_SECONDS: u64 = 1;

/// The environment variables that the process inherits: the paths of programs and libraries, and the language of messages, but
/// no tokens, keys or proxies.
const INHERITED: &[&str] = &["PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH"];

/// The mechanisms of the kernel that can confine a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Confinement {
    /// Landlock restricts files, connections and signals.
    pub landlock: bool,
    /// seccomp filters restrict system calls.
    pub seccomp: bool,
}

impl Confinement {
    /// Probes the kernel once, and logs what is missing.
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
    pub(super) fn new(program: &Path, input: &FfmpegInput, limits: &FfmpegLimits) -> io::Result<Self> {
        let confinement = Confinement::of_this_kernel();

        let server = getpid();
        let files = if confinement.landlock { files::ruleset(program, input)? } else { None };
        let filters = if confinement.seccomp { system_calls::filters(server)? } else { Vec::new() };
        Ok(Self { files, filters, limits: resources(limits), server })
    }

    /// Gives the command few variables, a session of its own and the confinement.
    pub(super) fn confine(self, command: &mut Command) {
        command.env_clear().envs(inherited());
        #[allow(unsafe_code, reason = "the process confines itself between fork and exec")]
        // SAFETY: `enter` only makes system calls: it allocates nothing and takes no lock, and its data was prepared before the
        // fork.
        unsafe {
            command.pre_exec(move || self.enter());
        }
    }

    /// Confines the child. After an error ffmpeg is not started.
    fn enter(&self) -> io::Result<()> {
        set_parent_process_death_signal(Some(Signal::KILL))?;

        if getppid() != Some(self.server) {
            // The server ended before the call above.
            return Err(rustix::io::Errno::SRCH.into());
        }
        // The process gets a group of its own, which can be killed as a whole, and no terminal.
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
        // ffmpeg writes to no file: its output goes through pipes, where the server counts it.
        (Resource::Fsize, 0, 0),
        (Resource::Nofile, OPEN_FILES, 0),
        (Resource::Core, 0, 0),
    ]
    .map(|(resource, soft, grace)| {
        // A lower hard limit stays, because only root can raise it.

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

/// Marks all further descriptors as close-on-exec: libraries of the server (a GPU driver) may have opened files without the
/// mark. A kernel before Linux 5.11 does not know the call; the server marks its own files itself.
#[allow(unsafe_code, reason = "a system call without a safe wrapper here")]
fn close_on_exec() {
    const AFTER_STANDARD_STREAMS: libc::c_uint = 3;
    // SAFETY: the arguments are numbers, and no descriptor is closed before exec.
    unsafe {
        libc::syscall(libc::SYS_close_range, AFTER_STANDARD_STREAMS, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC);
    }
}

/// Finds a program in `PATH` as the shell does.
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
    fn what_a_kernel_lacks_is_explained_by_its_effect() {
        let explain = |landlock, seccomp| Confinement { landlock, seccomp }.missing();
        assert_eq!(explain(true, true), None);
        assert!(explain(false, true).is_some_and(|text| text.starts_with("no Landlock") && text.contains("can read")));
        assert!(explain(true, false).is_some_and(|text| text.starts_with("no seccomp")));
        assert!(explain(false, false).is_some_and(|text| text.starts_with("neither")));
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

    /// `cargo test --workspace --lib -- --ignored --nocapture duration_of_a_start`
    #[test]
    #[ignore = "prints a figure and checks nothing"]
    fn duration_of_a_start() {
        let program = Path::new("/bin/true");
        let start = |confined: bool| {
            let input = FfmpegInput { file: std::fs::File::open("/dev/null").unwrap(), is_in_memory: true };
            let started_at = Instant::now();
            let mut command = Command::new(program);
            command.stdin(Stdio::null()).stdout(Stdio::null());
            if confined {
                Sandbox::new(program, &input, &FfmpegLimits::default()).unwrap().confine(&mut command);
            }
            assert!(command.status().unwrap().success());
            started_at.elapsed()
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
