//! Processes are started by one thread that lives as long as the server's runners: the kernel sends a child its
//! parent-death signal when the **thread** that started it ends, and a runtime's threads come and go.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::sync::{Arc, mpsc};
use std::{env, io, thread};

use hush_whisper::runtime;
use tokio::process::{Child, Command};
use tokio::sync::oneshot;

use super::process::Settings;

/// What a runner inherits: enough to find libraries and devices and to log alike, and no secret of ours.
const INHERITED: &[&str] =
    &["PATH", "HOME", "TMPDIR", "TZ", "LANG", "LD_LIBRARY_PATH", "RUST_LOG", "RUST_BACKTRACE", MALLOC_VARIABLE];
const INHERITED_PREFIXES: &[&str] = &["CUDA_", "NVIDIA_", "NO_COLOR", "HUSH_LOG", "OMP_", "ORT_"];
/// Huge pages for the heap, where the kernel gives them to those who ask: a runner takes hundreds of megabytes in its first
/// second, and a fault for every 4 KiB of them is a tenth of that time, and half of the time in which it is reaped. An
/// allocator that is not glibc's does not know it. Who sets the variable for the server sets it for its runners.
const MALLOC_VARIABLE: &str = "GLIBC_TUNABLES";
const MALLOC: &str = "glibc.malloc.hugetlb=1";

pub(super) struct Spawned {
    pub(super) child: Child,
    pub(super) socket: UnixStream,
}

struct Order {
    settings: Arc<Settings>,
    runtime: tokio::runtime::Handle,
    reply: oneshot::Sender<io::Result<Spawned>>,
}

pub(super) struct Spawner {
    orders: mpsc::Sender<Order>,
}

impl Spawner {
    pub(super) fn new() -> io::Result<Self> {
        let (orders, inbox) = mpsc::channel::<Order>();
        thread::Builder::new().name("runner-spawn".to_owned()).spawn(move || {
            for order in inbox {
                let _entered = order.runtime.enter();
                // Nobody waits any more: the child, if any, is killed as it is dropped.
                let _ = order.reply.send(spawn(&order.settings));
            }
        })?;
        Ok(Self { orders })
    }

    pub(super) async fn spawn(&self, settings: Arc<Settings>) -> io::Result<Spawned> {
        let (reply, answer) = oneshot::channel();
        let order = Order { settings, runtime: tokio::runtime::Handle::current(), reply };
        let gone = |_| io::Error::other("the thread that starts runners has ended");
        self.orders.send(order).map_err(|_| gone(()))?;
        answer.await.map_err(|_| gone(()))?
    }
}

/// What processes of ours inherit of this one's environment: no token of the hub, no key, nothing that they do not use.
pub fn inherited_environment() -> impl Iterator<Item = (OsString, OsString)> {
    env::vars_os().filter(|(name, _)| {
        let name = name.to_string_lossy();
        INHERITED.contains(&&*name) || INHERITED_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
    })
}

fn spawn(settings: &Settings) -> io::Result<Spawned> {
    let (socket, theirs) = UnixStream::pair()?;
    socket.set_nonblocking(true)?;
    let child = Command::new(&settings.program)
        .arg0("hush-runner")
        .args(&settings.args)
        .env_clear()
        .env(MALLOC_VARIABLE, MALLOC)
        .envs(inherited_environment())
        .envs(settings.env.iter().cloned())
        // Behind what is inherited: whatever the server was started with, its runners are silent.
        .env(runtime::TELEMETRY_VARIABLE, runtime::NO_TELEMETRY)
        .env(super::child::PARENT_VARIABLE, std::process::id().to_string())
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        // Signals of the terminal are for the server, which then decides about its runners.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()?;
    Ok(Spawned { child, socket })
}
