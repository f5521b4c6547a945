//! seccomp: refuses the system calls that ffmpeg does not need here and that an attacker in control of it would use: sockets, new
//! processes, files opened for writing, and access to other processes. The filter lists the refused calls, not the allowed ones:
//! libraries of different systems need different calls, and Landlock and the limits apply as well.

use std::collections::BTreeMap;
use std::env::consts::ARCH;
use std::io;

use libc::c_long;
use rustix::process::Pid;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, sock_filter,
};

/// Calls that are refused with `EPERM`.
const REFUSED: &[c_long] = &[
    // Connections of every family: without a socket a process can neither connect nor send.
    libc::SYS_socket,
    libc::SYS_socketpair,
    // Other processes.
    libc::SYS_kill,
    libc::SYS_tkill,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_send_signal,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_kcmp,
    libc::SYS_setpriority,
    // Files: what Landlock does not cover, and what it covers on kernels that have it.
    libc::SYS_truncate,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_unlinkat,
    libc::SYS_linkat,
    libc::SYS_symlinkat,
    libc::SYS_renameat2,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_utimensat,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    libc::SYS_fremovexattr,
    libc::SYS_open_by_handle_at,
    // Memory that does not count against the limits of a process.
    libc::SYS_memfd_create,
    libc::SYS_memfd_secret,
    libc::SYS_shmget,
    libc::SYS_msgget,
    libc::SYS_semget,
    libc::SYS_mq_open,
    // The machine, and parts of the kernel that had many vulnerabilities.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_open_tree,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_acct,
    libc::SYS_syslog,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_fanotify_init,
];

/// Calls of x86-64 that newer architectures have in another form.
#[cfg(target_arch = "x86_64")]
const REFUSED_HERE: &[c_long] = &[
    libc::SYS_fork,
    libc::SYS_vfork,
    libc::SYS_creat,
    libc::SYS_mkdir,
    libc::SYS_rmdir,
    libc::SYS_mknod,
    libc::SYS_unlink,
    libc::SYS_link,
    libc::SYS_symlink,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_chmod,
    libc::SYS_chown,
    libc::SYS_lchown,
    libc::SYS_utime,
    libc::SYS_utimes,
    libc::SYS_futimesat,
    libc::SYS_iopl,
    libc::SYS_ioperm,
];
#[cfg(not(target_arch = "x86_64"))]
const REFUSED_HERE: &[c_long] = &[];

/// Calls that are refused as if the kernel did not know them, because their arguments are in memory, which a filter cannot read.
/// glibc then uses `clone` and `openat`.
const UNKNOWN: &[c_long] = &[
    libc::SYS_clone3,
    libc::SYS_openat2,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
];

pub(super) fn is_supported() -> bool {
    TargetArch::try_from(ARCH).is_ok() && has_filters()
}

#[allow(unsafe_code, reason = "a system call without a safe wrapper here")]
fn has_filters() -> bool {
    const NO_FLAGS: libc::c_uint = 0;
    let action = libc::SECCOMP_RET_ERRNO;
    // SAFETY: the kernel reads one number at the address.
    unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_ACTION_AVAIL, NO_FLAGS, &raw const action) == 0 }
}

/// The filters for one ffmpeg process. `server` is the process that ffmpeg must not send signals to.
pub(super) fn filters(server: Pid) -> io::Result<Vec<BpfProgram>> {
    let mut filters = vec![
        compiled(refused(server).map_err(io::Error::other)?, libc::EPERM)?,
        compiled(UNKNOWN.iter().map(|call| (*call, Vec::new())).collect(), libc::ENOSYS)?,
    ];

    if cfg!(target_arch = "x86_64") {
        filters.push(without_x32());
    }
    Ok(filters)
}

type SystemCallRules = BTreeMap<c_long, Vec<SeccompRule>>;

fn compiled(rules: SystemCallRules, errno: i32) -> io::Result<BpfProgram> {
    let arch = TargetArch::try_from(ARCH).map_err(io::Error::other)?;
    let errno = SeccompAction::Errno(errno.unsigned_abs());

    let filter = SeccompFilter::new(rules, SeccompAction::Allow, errno, arch).map_err(io::Error::other)?;
    filter.try_into().map_err(io::Error::other)
}

fn refused(server: Pid) -> Result<SystemCallRules, seccompiler::BackendError> {
    use SeccompCmpArgLen::{Dword, Qword};
    use SeccompCmpOp::{Eq, MaskedEq, Ne};

    let rule = |argument, length, operator, value| {
        SeccompRule::new(vec![SeccompCondition::new(argument, length, operator, value)?])
    };

    let flag = |flag: i32| u64::from(flag.unsigned_abs());
    // Flags that allow a process to write, create or truncate a file. `O_TMPFILE` needs one of the first two.
    let for_writing = |argument| -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
        let access = MaskedEq(flag(libc::O_ACCMODE));
        Ok(vec![
            rule(argument, Dword, access.clone(), flag(libc::O_WRONLY))?,
            rule(argument, Dword, access.clone(), flag(libc::O_RDWR))?,
            rule(argument, Dword, access, flag(libc::O_ACCMODE))?,
            rule(argument, Dword, MaskedEq(flag(libc::O_CREAT)), flag(libc::O_CREAT))?,
            rule(argument, Dword, MaskedEq(flag(libc::O_TRUNC)), flag(libc::O_TRUNC))?,
        ])
    };

    let mut rules: SystemCallRules = REFUSED.iter().chain(REFUSED_HERE).map(|call| (*call, Vec::new())).collect();
    rules.insert(libc::SYS_openat, for_writing(2)?);
    #[cfg(target_arch = "x86_64")]
    rules.insert(libc::SYS_open, for_writing(1)?);

    // New threads are allowed, new processes are not.
    rules.insert(libc::SYS_clone, vec![rule(0, Qword, MaskedEq(flag(libc::CLONE_THREAD)), 0)?]);
    // The process may read and lower its own limits, but not those of other processes.
    rules.insert(libc::SYS_prlimit64, vec![rule(0, Dword, Ne, 0)?]);
    // `abort` sends a signal with this call, so it is refused for the server alone.
    rules.insert(libc::SYS_tgkill, vec![rule(0, Dword, Eq, flag(server.as_raw_nonzero().get()))?]);
    // This request inserts input into a terminal as if it had been typed.
    rules.insert(libc::SYS_ioctl, vec![rule(1, Dword, Eq, libc::TIOCSTI)?]);
    Ok(rules)
}

/// Refuses the calls of x32, which are those of x86-64 with an additional bit that rules by number do not see.
fn without_x32() -> BpfProgram {
    const LOAD_WORD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const JUMP_IF_AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    const NUMBER_OFFSET: u32 = 0;
    const X32_BIT: u32 = 0x4000_0000;
    let statement = |code, k| sock_filter { code, jt: 0, jf: 0, k };

    vec![
        statement(LOAD_WORD, NUMBER_OFFSET),
        sock_filter { code: JUMP_IF_AT_LEAST, jt: 0, jf: 1, k: X32_BIT },
        statement(RETURN, libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs()),
        statement(RETURN, libc::SECCOMP_RET_ALLOW),
    ]
}

/// Applies the filter to the calling thread for ever. Must be called between fork and exec. Allocates nothing where it succeeds.
pub(super) fn enforce(filter: &BpfProgram) -> io::Result<()> {
    seccompiler::apply_filter(filter).map_err(|error| match error {
        seccompiler::Error::Prctl(error) | seccompiler::Error::Seccomp(error) => error,
        _ => io::ErrorKind::InvalidInput.into(),
    })
}
