//! A way to the API server that a test can cut: what is connected stays connected, and nothing comes through.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::Result;

use super::plane::ControlPlane;

const OPEN: u8 = 0;
const CUT: u8 = 1;
const GONE: u8 = 2;
const LOOK: Duration = Duration::from_millis(50);

/// Goes with the test.
pub struct Link {
    address: SocketAddr,
    state: Arc<AtomicU8>,
}

impl ControlPlane {
    pub fn link(&self) -> Result<Link> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let (state, to) = (Arc::new(AtomicU8::new(OPEN)), self.address());
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                if shared.load(Ordering::Relaxed) == GONE {
                    return;
                }
                let shared = Arc::clone(&shared);
                thread::spawn(move || join(near, to, &shared));
            }
        });
        Ok(Link { address, state })
    }
}

impl Link {
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// Packets are lost from now on, without a word to either side; or no longer.
    pub fn cut(&self, cut: bool) {
        self.state.store(if cut { CUT } else { OPEN }, Ordering::Relaxed);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.state.store(GONE, Ordering::Relaxed);
        // Wakes the listener; it fails only when that has ended already.
        let _ = TcpStream::connect(self.address);
    }
}

fn join(near: TcpStream, to: SocketAddr, state: &Arc<AtomicU8>) {
    wait_while_cut(state);
    // A connection that the API server refuses is refused here too.
    let Ok(far) = TcpStream::connect(to) else { return };
    let (Ok(near_in), Ok(far_in)) = (near.try_clone(), far.try_clone()) else { return };
    let shared = Arc::clone(state);
    thread::spawn(move || copy(near_in, far, &shared));
    copy(far_in, near, state);
}

fn copy(mut from: TcpStream, mut to: TcpStream, state: &AtomicU8) {
    let mut buffer = [0; 16 << 10];
    // Without it a cut is noticed only by what comes next.
    let _ = from.set_read_timeout(Some(LOOK));
    while state.load(Ordering::Relaxed) != GONE {
        wait_while_cut(state);
        match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => {
                wait_while_cut(state);
                if to.write_all(&buffer[..count]).is_err() {
                    break;
                }
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => break,
        }
    }
    // Fails only when the other side has closed it already.
    let _ = (to.shutdown(Shutdown::Both), from.shutdown(Shutdown::Both));
}

fn wait_while_cut(state: &AtomicU8) {
    while state.load(Ordering::Relaxed) == CUT {
        thread::sleep(LOOK);
    }
}
