//! Which processes listen on a port.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use procfs::process::{FDTarget, all_processes};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::messages::ProcessName;

/// On the loopback an answer comes at once.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// The state of a socket that listens, in the table of the kernel.
const LISTEN: &str = "0A";

/// The listeners of a port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PortListeners {
    /// Whether a process listens, visible or not.
    pub(super) exist: bool,
    /// Those that this process may see.
    pub(super) processes: Vec<ProcessName>,
}

impl PortListeners {
    /// Reads the tables of the kernel, which blocks for some milliseconds.
    pub(super) fn find(port: u16) -> io::Result<Self> {
        let sockets = listening_sockets(port)?;
        let processes = if sockets.is_empty() { Vec::new() } else { owners(&sockets) };
        Ok(Self { exist: !sockets.is_empty(), processes })
    }
}

/// The sockets that listen on a port, in the network namespace of this process, also those of another container's processes.
/// A program that is started again has another one. Blocks for a moment.
///
/// # Errors
/// If the table of the kernel cannot be read.
pub fn listening_sockets(port: u16) -> io::Result<Vec<u64>> {
    let mut sockets = read_listeners(BufReader::new(File::open("/proc/net/tcp")?), port)?;
    // A kernel may be without IPv6.
    if let Ok(table) = File::open("/proc/net/tcp6") {
        sockets.extend(read_listeners(BufReader::new(table), port)?);
    }

    Ok(sockets)
}

/// Reads the table of the kernel as far as it has listeners, which come first: thousands of other connections may follow,
/// and would take it a second.
fn read_listeners(table: impl BufRead, port: u16) -> io::Result<Vec<u64>> {
    let mut sockets = Vec::new();
    for line in table.lines().skip(1) {
        let line = line?;
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (Some(local), Some(&state), Some(inode)) = (fields.get(1), fields.get(3), fields.get(9)) else { continue };
        if state != LISTEN {
            break;
        }

        // An app on the loopback or on all addresses collides with a listener on any of them.
        let listens_on = local.rsplit(':').next().and_then(|port| u16::from_str_radix(port, 16).ok());
        if listens_on == Some(port) {
            sockets.extend(inode.parse::<u64>().ok());
        }
    }
    Ok(sockets)
}

/// Why no app can be started on the port; `None`: it is free.
pub(super) async fn describe_conflict(port: u16) -> Option<String> {
    let listeners = tokio::task::spawn_blocking(move || PortListeners::find(port)).await;
    let listeners = match listeners {
        Ok(Ok(listeners)) => listeners,
        // Without the tables of the kernel a connection tells.
        _ => PortListeners { exist: accepts(port).await, processes: Vec::new() },
    };
    if !listeners.exist {
        return None;
    }

    let names: Vec<String> = listeners.processes.iter().map(ToString::to_string).collect();
    let owner = if names.is_empty() {
        "a process that is not visible from here".to_owned()
    } else {
        format!("process {}", names.join(", "))
    };
    Some(format!("port {port} is in use: {owner} listens on it. End that process, or give the app another port"))
}

async fn accepts(port: u16) -> bool {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    matches!(timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await, Ok(Ok(_)))
}

/// The processes that have one of these sockets open, as far as this process may look.
fn owners(sockets: &[u64]) -> Vec<ProcessName> {
    let mut owners = Vec::new();
    for process in all_processes().into_iter().flatten().flatten() {
        let Ok(descriptors) = process.fd() else { continue };
        let has_socket = descriptors
            .flatten()
            .any(|descriptor| matches!(descriptor.target, FDTarget::Socket(inode) if sockets.contains(&inode)));
        if has_socket && let Ok(stat) = process.stat() {
            owners.push(ProcessName { pid: stat.pid.unsigned_abs(), name: stat.comm });
        }
    }
    owners
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_listener_is_found_with_its_process() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();

        let conflict = describe_conflict(port).await.unwrap();
        assert!(conflict.contains(&format!("port {port} is in use")), "{conflict}");
        assert!(conflict.contains(&format!("process {} (", std::process::id())), "{conflict}");

        drop(listener);
        assert_eq!(describe_conflict(port).await, None);
    }

    #[tokio::test]
    async fn a_connection_that_is_not_a_listener_does_not_count() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let port = client.local_addr().unwrap().port();
        assert_eq!(PortListeners::find(port).unwrap(), PortListeners::default());
    }
}
