//! Starts the processes of runners on one thread, which lives as long as the runners of the server: the kernel sends a child
//! its parent-death signal when the **thread** that started it ends, and the threads of an async runtime may end at any time.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::sync::{Arc, mpsc};
use std::{env, io, thread};

use hush_whisper::runtime;
use tokio::process::{Child, Command};
use tokio::sync::oneshot;

use super::process::RunnerSettings;

/// The variables that a runner inherits: enough to find libraries and devices and to log as the server does. No secret of
/// the server is among them.
const INHERITED: &[&str] =
    &["PATH", "HOME", "TMPDIR", "TZ", "LANG", "LD_LIBRARY_PATH", "RUST_LOG", "RUST_BACKTRACE", MALLOC_VARIABLE];
const INHERITED_PREFIXES: &[&str] = &["CUDA_", "NVIDIA_", "NO_COLOR", "HUSH_LOG", "OMP_", "ORT_"];

/// Asks for huge pages for the heap, if the kernel gives them on request: a runner takes hundreds of megabytes in its first
/// second, and page faults of 4 KiB are a tenth of that time, and half of the time in which the process is reaped. Only the
/// allocator of glibc reads the variable. A value that is set for the server takes precedence.
const MALLOC_VARIABLE: &str = "GLIBC_TUNABLES";
const MALLOC: &str = "glibc.malloc.hugetlb=1";

pub(super) struct SpawnedRunner {
    pub(super) child: Child,
    pub(super) socket: UnixStream,
}

struct SpawnRequest {
    settings: Arc<RunnerSettings>,
    runtime: tokio::runtime::Handle,
    reply: oneshot::Sender<io::Result<SpawnedRunner>>,
}

pub(super) struct Spawner {
    requests: mpsc::Sender<SpawnRequest>,
}

impl Spawner {
    pub(super) fn new() -> io::Result<Self> {
        let (requests, inbox) = mpsc::channel::<SpawnRequest>();
        thread::Builder::new().name("runner-spawn".to_owned()).spawn(move || {
            for request in inbox {
                let _entered = request.runtime.enter();
                // If the caller has stopped waiting, the child is dropped and thereby killed.
                let _ = request.reply.send(spawn(&request.settings));
            }
        })?;
        Ok(Self { requests })
    }

    pub(super) async fn spawn(&self, settings: Arc<RunnerSettings>) -> io::Result<SpawnedRunner> {
        let (reply, answer) = oneshot::channel();
        let request = SpawnRequest { settings, runtime: tokio::runtime::Handle::current(), reply };
        let gone = |_| io::Error::other("the thread that starts runners has ended");
        self.requests.send(request).map_err(|_| gone(()))?;
        answer.await.map_err(|_| gone(()))?
    }
}

/// The variables of this process that its child processes inherit: only those that they use, no token and no key.
pub fn inherited_environment() -> impl Iterator<Item = (OsString, OsString)> {
    env::vars_os().filter(|(name, _)| {
        let name = name.to_string_lossy();
        INHERITED.contains(&&*name) || INHERITED_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
    })
}

fn spawn(settings: &RunnerSettings) -> io::Result<SpawnedRunner> {
    let (socket, runner_socket) = UnixStream::pair()?;
    socket.set_nonblocking(true)?;

    let child = Command::new(&settings.program)
        .arg0("hush-runner")
        .args(&settings.args)
        .env_clear()
        .env(MALLOC_VARIABLE, MALLOC)
        .envs(inherited_environment())
        .envs(settings.env.iter().cloned())
        // After the inherited variables: runners send no telemetry, whatever the server was started with.
        .env(runtime::TELEMETRY_VARIABLE, runtime::NO_TELEMETRY)
        .env(super::child::PARENT_VARIABLE, std::process::id().to_string())
        .stdin(Stdio::from(OwnedFd::from(runner_socket)))
        // A group of its own: signals of the terminal reach only the server, which then ends its runners.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()?;
    Ok(SpawnedRunner { child, socket })
}
