//! One process's use of the double: whether it is initialised, and what the script says at this moment.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{env, fs, thread};

use crate::NvmlCode;
use crate::script::{SCRIPT_VARIABLE, Script};

static SESSION: Mutex<Session> = Mutex::new(Session { users: 0, epoch: 0 });

struct Session {
    /// Calls of `nvmlInit` without their `nvmlShutdown`.
    users: u32,
    /// The driver's epoch at the first of these calls.
    epoch: u64,
}

fn lock() -> MutexGuard<'static, Session> {
    SESSION.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Read anew at each call: it is small, and a file that was replaced twice in a millisecond may look unchanged. What
/// cannot be read is a driver that is not there, as a broken one is.
fn script() -> Result<(Script, PathBuf), NvmlCode> {
    let path = env::var_os(SCRIPT_VARIABLE).map(PathBuf::from).ok_or(NvmlCode::DRIVER_NOT_LOADED)?;
    let text = fs::read(&path).map_err(|_| NvmlCode::DRIVER_NOT_LOADED)?;
    let script = serde_json::from_slice(&text).map_err(|error| {
        eprintln!("hush-nvml: {}: {error}", path.display());
        NvmlCode::UNKNOWN
    })?;
    Ok((script, path))
}

fn scripted<T: Copy>(map: &BTreeMap<String, T>, function: &str) -> Option<T> {
    map.get(function).or_else(|| map.get("*")).copied()
}

/// The error that the script has for this call, after the delay that it has for it.
fn interfere(script: &Script, function: &str) -> Result<(), NvmlCode> {
    if let Some(delay) = scripted(&script.delays_ms, function) {
        thread::sleep(Duration::from_millis(delay));
    }
    scripted(&script.errors, function).map_or(Ok(()), Err)
}

pub fn device_error(errors: &BTreeMap<String, NvmlCode>, function: &str) -> Result<(), NvmlCode> {
    scripted(errors, function).map_or(Ok(()), Err)
}

pub fn init(function: &str) -> Result<(), NvmlCode> {
    let (script, _) = script()?;
    interfere(&script, function)?;
    let mut session = lock();
    if session.users == 0 || session.epoch != script.epoch {
        session.users = 0;
        session.epoch = script.epoch;
    }
    session.users += 1;
    Ok(())
}

pub fn shutdown() -> Result<(), NvmlCode> {
    let mut session = lock();
    session.users = session.users.checked_sub(1).ok_or(NvmlCode::UNINITIALIZED)?;
    Ok(())
}

/// The world for one call of an initialised user.
pub fn enter(function: &str) -> Result<(Script, PathBuf), NvmlCode> {
    if lock().users == 0 {
        return Err(NvmlCode::UNINITIALIZED);
    }
    let (script, path) = script()?;
    let stale = lock().epoch != script.epoch;
    // Without a lock: a call that hangs does not keep others from hanging too, as it is with the driver.
    interfere(&script, function)?;
    if stale { Err(NvmlCode::UNINITIALIZED) } else { Ok((script, path)) }
}
