//! The program's own memory.

use tracing::debug;

/// Hands freed memory back to the kernel. The allocator keeps what hundreds of requests have freed for later ones: tens
/// of megabytes in a program that is meant to be small while its model is not in memory.
///
/// Takes milliseconds: not for a thread that answers requests.
pub(crate) fn give_back() {
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
