//! The server's own memory. Its models are guests, and so is what their requests used.

use tracing::debug;

/// Hands freed memory back to the kernel. The allocator keeps what hundreds of uploads have freed for the next ones,
/// tens of megabytes on a server that is meant to be small while its model is away.
///
/// Takes milliseconds: not for a thread that answers requests.
pub fn give_back() {
    debug!(given_back = trim(), "freed memory");
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code, reason = "malloc_trim is C; it takes a number, touches only free memory and is thread-safe")]
fn trim() -> bool {
    // SAFETY: see above; malloc_trim(3) has no precondition.
    unsafe { libc::malloc_trim(0) != 0 }
}

/// Other allocators give back by themselves.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn trim() -> bool {
    false
}
