//! Landlock: which files ffmpeg may open. All else below the root is closed to it, for reading and for writing, and so are
//! TCP connections, sockets with abstract names and signals to processes outside of its sandbox.

use std::env;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, PathFdError, Ruleset,
    RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError, Scope,
};

use crate::audio::ffmpeg::Input;

/// What is asked for; a kernel that knows less of it does what it knows.
const ASKED: ABI = ABI::V6;

/// Programs and libraries of the system, of which a wrapper script of ffmpeg needs both; nothing that belongs to a user or
/// configures one is there. The last two are where Nix and Guix keep everything.
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
/// What the dynamic loader reads, of glibc and of musl.
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

/// `None`: the kernel has no Landlock.
pub(super) fn ruleset(program: &Path, input: &Input) -> io::Result<Option<OwnedFd>> {
    let mut rules = created().map_err(io::Error::other)?;
    for folder in SYSTEM.iter().map(PathBuf::from).chain(library_folders(program)) {
        rules = allow(rules, &folder, AccessFs::Execute | AccessFs::ReadFile | AccessFs::ReadDir)?;
    }
    for file in LOADER {
        rules = allow(rules, Path::new(file), AccessFs::ReadFile.into())?;
    }
    rules = allow(rules, program, AccessFs::Execute | AccessFs::ReadFile)?;
    // Memory files have no place in the tree of files, and Landlock leaves them alone.
    if !input.is_in_memory {
        let rule = PathBeneath::new(&input.file, AccessFs::ReadFile);
        rules = rules.add_rule(rule).map_err(io::Error::other)?;
    }
    Ok(rules.into())
}

fn created() -> Result<RulesetCreated, RulesetError> {
    Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(ASKED))?
        .handle_access(AccessNet::from_all(ASKED))?
        .scope(Scope::from_all(ASKED))?
        .create()
}

/// What is not there needs no rule.
fn allow(rules: RulesetCreated, path: &Path, access: BitFlags<AccessFs>) -> io::Result<RulesetCreated> {
    let opened = match PathFd::new(path) {
        Ok(opened) => opened,
        Err(PathFdError::OpenCall { .. }) => return Ok(rules),
        Err(error) => return Err(io::Error::other(error)),
    };
    rules.add_rule(PathBeneath::new(opened, access)).map_err(io::Error::other)
}

/// Beside a program that was built with a prefix of its own, and where the operator says.
fn library_folders(program: &Path) -> Vec<PathBuf> {
    let program = program.canonicalize().unwrap_or_else(|_| program.to_owned());
    let beside = program.parent().and_then(Path::parent).map(|prefix| prefix.join("lib"));
    let named = env::var_os("LD_LIBRARY_PATH");
    let named = named.iter().flat_map(|list| env::split_paths(list)).filter(|folder| folder.is_absolute());
    beside.into_iter().chain(named).collect()
}

/// On the calling thread, for ever; to be called between fork and exec.
#[allow(unsafe_code, reason = "landlock's own function closes the rules, which are the parent's")]
pub(super) fn enforce(ruleset: RawFd) -> io::Result<()> {
    const NO_FLAGS: libc::c_int = 0;
    // SAFETY: the arguments are numbers.
    match unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset, NO_FLAGS) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
