//! The memory of the server process itself.

use tracing::debug;

/// Returns freed memory to the kernel. The allocator keeps tens of megabytes of what many uploads have freed, on a server that
/// should be small while no model is loaded.
///
/// Takes milliseconds, so it must not be called on a thread that answers requests.
pub(crate) fn give_back() {
    debug!(given_back = trim(), "freed memory");
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code, reason = "malloc_trim is C; it takes a number, touches only free memory and is thread-safe")]
fn trim() -> bool {
    // SAFETY: see above; malloc_trim(3) has no precondition.
    unsafe { libc::malloc_trim(0) != 0 }
}

/// Other allocators return memory by themselves.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn trim() -> bool {
    false
}
