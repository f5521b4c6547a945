//! Landlock: the files that ffmpeg may open. All other files are closed to it, for reading and for writing. TCP connections,
//! abstract sockets and signals to processes outside of the sandbox are closed, too.

use std::env;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, PathFdError, Ruleset,
    RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError, Scope,
};

use crate::audio::ffmpeg::FfmpegInput;

/// The version that is requested; an older kernel applies what it knows of it.
const REQUESTED: ABI = ABI::V6;

/// Programs and libraries of the system, which a wrapper script of ffmpeg needs. None of these folders has files or settings of a
/// user. The last two belong to Nix and Guix.
const SYSTEM: &[&str] = &[
    "/bin",
    "/lib",
    "/lib32",
    "/lib64",
    "/usr/bin",
    "/usr/lib",
    "/usr/lib32",
    "/usr/lib64",
    "/usr/local/bin",
    "/usr/local/lib",
    "/usr/local/lib64",
    "/nix/store",
    "/gnu/store",
];
/// What the dynamic loaders of glibc and of musl read.
const LOADER: &[&str] = &[
    "/etc/ld.so.cache",
    "/etc/ld.so.preload",
    "/etc/ld-musl-x86_64.path",
    "/etc/ld-musl-aarch64.path",
    "/dev/null",
    "/dev/urandom",
];

pub(super) fn is_supported() -> bool {
    let ruleset = Ruleset::default().handle_access(AccessFs::ReadFile).and_then(Ruleset::create);
    ruleset.is_ok_and(|ruleset| Option::<OwnedFd>::from(ruleset).is_some())
}

/// The rules for one ffmpeg process; `None` where the kernel has no Landlock.
pub(super) fn ruleset(program: &Path, input: &FfmpegInput) -> io::Result<Option<OwnedFd>> {
    let mut rules = created().map_err(io::Error::other)?;
    for folder in SYSTEM.iter().map(PathBuf::from).chain(library_folders(program)) {
        rules = allow(rules, &folder, AccessFs::Execute | AccessFs::ReadFile | AccessFs::ReadDir)?;
    }

    for file in LOADER {
        rules = allow(rules, Path::new(file), AccessFs::ReadFile.into())?;
    }

    rules = allow(rules, program, AccessFs::Execute | AccessFs::ReadFile)?;
    // Landlock does not restrict memory files, which have no path.
    if !input.is_in_memory {
        let rule = PathBeneath::new(&input.file, AccessFs::ReadFile);
        rules = rules.add_rule(rule).map_err(io::Error::other)?;
    }
    Ok(rules.into())
}

fn created() -> Result<RulesetCreated, RulesetError> {
    Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(REQUESTED))?
        .handle_access(AccessNet::from_all(REQUESTED))?
        .scope(Scope::from_all(REQUESTED))?
        .create()
}

/// Adds a rule for a path; a path that does not exist needs none.
fn allow(rules: RulesetCreated, path: &Path, access: BitFlags<AccessFs>) -> io::Result<RulesetCreated> {
    let opened = match PathFd::new(path) {
        Ok(opened) => opened,
        Err(PathFdError::OpenCall { .. }) => return Ok(rules),
        Err(error) => return Err(io::Error::other(error)),
    };
    rules.add_rule(PathBeneath::new(opened, access)).map_err(io::Error::other)
}

/// Library folders beside a program that has a prefix of its own, and those that the operator names.
fn library_folders(program: &Path) -> Vec<PathBuf> {
    let program = program.canonicalize().unwrap_or_else(|_| program.to_owned());

    let beside = program.parent().and_then(Path::parent).map(|prefix| prefix.join("lib"));
    let named = env::var_os("LD_LIBRARY_PATH");
    let named = named.iter().flat_map(|list| env::split_paths(list)).filter(|folder| folder.is_absolute());
    beside.into_iter().chain(named).collect()
}

/// Applies the rules to the calling thread for ever. Must be called between fork and exec.
#[allow(unsafe_code, reason = "landlock's own function closes the rules, which are the parent's")]
pub(super) fn enforce(ruleset: RawFd) -> io::Result<()> {
    const NO_FLAGS: libc::c_int = 0;
    // SAFETY: the arguments are numbers.
    match unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset, NO_FLAGS) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
