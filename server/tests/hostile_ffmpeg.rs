//! An ffmpeg under the control of a hostile file: a stand-in tries what such a program would try.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test support, though no test itself")]

mod audio_support;

use std::env;
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use audio_support::stand_in::{FfmpegStandIn, has_python, runs};
use audio_support::*;
use hush_listener::spool::{Spool, SpoolOptions};
use hush_server::audio::{self, AudioError, Confinement, DecodeOptions, Ffmpeg, FfmpegLimits};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

/// Tries each line of code and says which of them went through.
const TRY: &str = "
def attempt(**tries):
    done = []
    for name, code in tries.items():
        try:
            code()
            done.append(name)
        except (OSError, MemoryError, ValueError): pass
    say('done:', *done)
    sys.exit(1)
";

fn upload() -> Vec<u8> {
    b"nothing that the built-in decoders know".to_vec()
}

fn attempts(code: &str) -> String {
    FfmpegStandIn::new(&format!("{TRY}{code}")).last_words(upload())
}

fn has(part: fn(Confinement) -> bool) -> bool {
    let found = has_python() && part(Confinement::of_this_kernel());
    if !found {
        println!("skipped: the kernel cannot confine a process so");
    }
    found
}

#[test]
fn no_secret_is_in_its_environment() {
    if !has_python() {
        return;
    }
    assert!(env::var_os("CARGO_MANIFEST_DIR").is_some(), "there is something that could be inherited");
    // Python itself adds the last.
    let script = "names = set(os.environ) - {'PATH', 'LANG', 'LC_ALL', 'LD_LIBRARY_PATH', 'LC_CTYPE'}
say('inherited:', *sorted(names), 'PATH' in os.environ)
sys.exit(1)";
    assert_eq!(FfmpegStandIn::new(script).last_words(upload()), "inherited: True");
}

#[test]
fn no_file_but_the_upload_can_be_read() {
    if !has(|found| found.landlock) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("token");
    std::fs::write(&secret, "secret").unwrap();
    let (secret, server) = (secret.display(), std::process::id());
    let code = format!(
        "def read(path): return lambda: open(path, 'rb').read(1)
attempt(upload=read('/proc/self/fd/0'), token=read('{secret}'), users=read('/etc/passwd'),
        server=read('/proc/{server}/environ'), memory=read('/proc/{server}/maps'), own=read('/proc/self/environ'),
        list=lambda: os.listdir('{}'), root=lambda: os.listdir('/'), device=read('/dev/zero'))",
        dir.path().display()
    );
    let program = FfmpegStandIn::new(&format!("{TRY}{code}"));
    // From memory and from a file of the disk.
    for memory_bytes in [1 << 20, 0] {
        let mut spool = Spool::new(SpoolOptions { memory_bytes, ..SpoolOptions::default() });
        spool.write(&upload()).unwrap();
        let error = audio::decode(&spool.finish(), None, &program.options(), &|| true).unwrap_err();
        assert!(matches!(&error, AudioError::Ffmpeg { stderr, .. } if stderr == "done: upload"), "{error:?}");
    }
}

#[test]
fn no_file_can_be_written() {
    // Already the limit on the size of files refuses all bytes; the rest is done by either of the others.
    if !has(|found| found.landlock || found.seccomp) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let victim = dir.path().join("model.json");
    std::fs::write(&victim, "{}").unwrap();
    let (victim_path, dir_path) = (victim.display(), dir.path().display());
    let code = format!(
        "victim = '{victim_path}'
def write(path, how): return lambda: open(path, how).write('x')
attempt(new=write('{dir_path}/new', 'w'), change=write(victim, 'r+'), append=write(victim, 'a'),
        temporary=write('/tmp/hush-hostile-ffmpeg', 'w'), shared=write('/dev/shm/hush-hostile-ffmpeg', 'w'),
        upload=lambda: os.write(0, b'x'), again=lambda: os.write(os.open('/proc/self/fd/0', os.O_RDWR), b'x'),
        remove=lambda: os.remove(victim), rename=lambda: os.rename(victim, victim + '2'),
        cut=lambda: os.truncate(victim, 0), folder=lambda: os.mkdir('{dir_path}/folder'),
        link=lambda: os.symlink('/etc/passwd', '{dir_path}/link'), hard=lambda: os.link(victim, '{dir_path}/hard'),
        fifo=lambda: os.mkfifo('{dir_path}/fifo'))"
    );
    assert_eq!(attempts(&code), "done:");
    assert_eq!(std::fs::read_to_string(&victim).unwrap(), "{}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn attributes_of_files_cannot_be_changed() {
    if !has(|found| found.seccomp) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let victim = dir.path().join("token");
    std::fs::write(&victim, "secret").unwrap();
    let before = std::fs::metadata(&victim).unwrap();
    let code = format!(
        "victim = '{}'
attempt(mode=lambda: os.chmod(victim, 0o777), owner=lambda: os.chown(victim, os.getuid(), os.getgid()),
        times=lambda: os.utime(victim, (1, 1)), attribute=lambda: os.setxattr(victim, 'user.x', b'1'))",
        victim.display()
    );
    assert_eq!(attempts(&code), "done:");
    let after = std::fs::metadata(&victim).unwrap();
    assert_eq!((before.mode(), before.mtime()), (after.mode(), after.mtime()));
}

#[test]
fn no_connection_can_be_opened() {
    if !has(|found| found.seccomp) {
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let unix = UnixListener::bind(dir.path().join("socket")).unwrap();
    unix.set_nonblocking(true).unwrap();
    let (port, socket) = (listener.local_addr().unwrap().port(), dir.path().join("socket"));
    let code = format!(
        "import socket
def connect(family, kind, to): return lambda: socket.socket(family, kind).connect(to)
attempt(tcp=connect(socket.AF_INET, socket.SOCK_STREAM, ('127.0.0.1', {port})),
        tcp6=connect(socket.AF_INET6, socket.SOCK_STREAM, ('::1', {port})),
        udp=connect(socket.AF_INET, socket.SOCK_DGRAM, ('127.0.0.1', 53)),
        unix=connect(socket.AF_UNIX, socket.SOCK_STREAM, '{}'),
        pair=socket.socketpair, netlink=lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW))",
        socket.display()
    );
    assert_eq!(attempts(&code), "done:");
    assert!(listener.accept().is_err() && unix.accept().is_err());
}

#[test]
fn no_process_can_be_started_or_reached() {
    if !has(|found| found.seccomp) {
        return;
    }
    let code = "import resource, threading
server = os.getppid()
def fork():
    if os.fork() == 0: os._exit(0)
attempt(fork=fork, spawn=lambda: os.posix_spawn('/bin/true', ['true'], {}), signal=lambda: os.kill(server, 0),
        group=lambda: os.killpg(os.getpgid(server), 0), everyone=lambda: os.kill(-1, 0),
        limit=lambda: resource.prlimit(server, resource.RLIMIT_NOFILE, (3, 3)),
        priority=lambda: os.setpriority(os.PRIO_PROCESS, server, 19),
        handle=lambda: os.pidfd_open(server),
        memory=lambda: os.memfd_create('x'),
        thread=lambda: threading.Thread(target=print).start())";
    assert_eq!(attempts(code), "done: thread");
}

#[test]
fn it_has_limits_no_privileges_to_gain_and_no_terminal() {
    if !has_python() {
        return;
    }
    let script = "import ctypes, resource
def many():
    opened = []
    try:
        while True: opened.append(os.dup(0))
    except OSError: return len(opened)
prctl = ctypes.CDLL(None).prctl
death = ctypes.c_int()
prctl(2, ctypes.byref(death))
say(resource.getrlimit(resource.RLIMIT_CORE), resource.getrlimit(resource.RLIMIT_FSIZE), prctl(39, 0, 0, 0, 0),
    death.value, os.getsid(0) == os.getpid() == os.getpgid(0), many() < 64)
sys.exit(1)";
    assert_eq!(FfmpegStandIn::new(script).last_words(upload()), "(0, 0) (0, 0) 1 9 True True");
}

#[test]
fn files_that_the_server_has_open_are_not_passed_on() {
    if !has_python() {
        return;
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    // As a library opens it that does not mark its files.
    let _kept = rustix::io::dup(file.as_file()).unwrap();
    let script = "import stat
found = []
for fd in range(3, 4096):
    try: found.append(os.fstat(fd).st_ino)
    except OSError: pass
say(INODE in found)
sys.exit(1)";
    let script = script.replace("INODE", &file.as_file().metadata().unwrap().ino().to_string());
    assert_eq!(FfmpegStandIn::new(&script).last_words(upload()), "False");
}

#[test]
fn memory_has_a_limit() {
    if !has_python() {
        return;
    }
    let code = "import mmap
def heap(): return bytearray(400 << 20)
def shared(): return mmap.mmap(-1, 8 << 30)
def pieces(): return [bytearray(1 << 20) for _ in range(400)]
attempt(heap=heap, pieces=pieces, shared=shared, little=lambda: bytearray(20 << 20))";
    let program = FfmpegStandIn::new(&format!("{TRY}{code}"));
    let limits = FfmpegLimits { memory_bytes: 200 << 20, ..FfmpegLimits::default() };
    let options = DecodeOptions { ffmpeg_limits: limits, ..program.options() };
    let error = decode_with(upload(), &options).unwrap_err();
    assert!(matches!(&error, AudioError::Ffmpeg { stderr, .. } if stderr == "done: little"), "{error:?}");
}

#[test]
fn processor_time_has_a_limit() {
    if !has_python() {
        return;
    }
    let limits = FfmpegLimits { processor_time: Duration::from_secs(1), ..FfmpegLimits::default() };
    let program = FfmpegStandIn::new("while True: pass");
    let options = DecodeOptions { ffmpeg_limits: limits.clone(), ..program.options() };
    let error = decode_with(upload(), &options).unwrap_err();
    assert!(matches!(&error, AudioError::FfmpegLimit { .. }) && error.is_client_fault(), "{error:?}");
    assert!(error.to_string().ends_with("the limit of 1 s of processor time"), "{error}");
    assert!(!program.is_running());

    // One that does not listen to the warning.
    let program = FfmpegStandIn::new("import signal; signal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass");
    let options = DecodeOptions { ffmpeg_limits: limits, ..program.options() };
    let error = decode_with(upload(), &options).unwrap_err();
    assert!(matches!(&error, AudioError::Ffmpeg { stderr, .. } if stderr.contains("SIGKILL")), "{error:?}");
    assert!(!program.is_running());
}

#[test]
fn output_that_is_no_audio_has_a_limit() {
    if !has_python() {
        return;
    }
    // A film, and then for ever elements that a reader of Matroska passes over.
    let script = "out.write(film)\nwhile True: out.write(b'\\xec\\x20\\xff\\xff' + bytes(65535))";
    let samples: Vec<f32> = (0..16_000).map(|i| (i % 100) as f32 / 200.0).collect();
    let program = FfmpegStandIn::with_samples(script, &samples);
    let options = DecodeOptions { limit_seconds: 30, ..program.options() };
    let start = Instant::now();
    let error = decode_with(upload(), &options).unwrap_err();
    assert!(matches!(&error, AudioError::FfmpegLimit { limit } if limit.ends_with("bytes of output")), "{error:?}");
    assert!(!program.is_running() && start.elapsed() < Duration::from_secs(30));
}

const STAND_IN_VARIABLE: &str = "HUSH_TEST_STAND_IN";

/// A process that decodes with the program that the variable names, for the test below.
#[test]
fn server_that_is_killed() {
    if let Some(program) = env::var_os(STAND_IN_VARIABLE) {
        let options = DecodeOptions { ffmpeg: Ffmpeg::At(program.into()), ..DecodeOptions::default() };
        let _ = decode_with(upload(), &options);
    }
}

#[test]
fn it_ends_with_the_server() {
    if !has_python() {
        return;
    }
    let program = FfmpegStandIn::new("time.sleep(100)");
    let mut server = Command::new("/proc/self/exe")
        .args(["--exact", "server_that_is_killed", "--test-threads=1", "-q"])
        .env(STAND_IN_VARIABLE, program.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    wait_until("it runs", || program.is_running());
    server.kill().unwrap();
    server.wait().unwrap();
    wait_until("it is gone", || !runs(&program.path()));
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(30), "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

const KERNEL_VARIABLE: &str = "HUSH_TEST_KERNEL";

/// A process to which the kernel refuses the calls that the variable names, for the test below.
#[test]
fn kernel_that_offers_less() {
    let Ok(missing) = env::var(KERNEL_VARIABLE) else { return };
    let calls: &[_] = match missing.as_str() {
        "landlock" => &[libc::SYS_landlock_create_ruleset],
        _ => &[libc::SYS_landlock_create_ruleset, libc::SYS_seccomp],
    };
    tracing_subscriber::fmt().with_ansi(false).with_writer(std::io::stderr).init();
    let rules = calls.iter().map(|call| (*call, Vec::new())).collect();
    let unknown = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    let arch = env::consts::ARCH.try_into().unwrap();
    let filter: BpfProgram =
        SeccompFilter::new(rules, SeccompAction::Allow, unknown, arch).unwrap().try_into().unwrap();
    seccompiler::apply_filter(&filter).unwrap();

    let program = FfmpegStandIn::new(&format!(
        "{TRY}import socket
def fork():
    # It holds every pipe open, and outlives what started it.
    if os.fork() == 0: time.sleep(100)
attempt(read=lambda: open('/etc/passwd').read(1), connect=lambda: socket.socket().close(), fork=fork,
        write=lambda: os.write(os.open('/tmp/hush-hostile-ffmpeg', os.O_WRONLY | os.O_CREAT), b'x'))"
    ));
    for _ in 0..2 {
        eprintln!("it {}", program.last_words(upload()));
        assert!(!program.is_running());
    }
    let _ = std::fs::remove_file("/tmp/hush-hostile-ffmpeg");
}

#[test]
fn a_kernel_that_offers_less_is_told_once_and_the_rest_holds() {
    if !has(|found| found.landlock && found.seccomp) {
        return;
    }
    for (missing, told, done) in [
        ("landlock", "offers no Landlock: ffmpeg writes nothing", "it done: read"),
        ("both", "offers neither Landlock nor seccomp filters", "it done: read connect fork"),
    ] {
        let start = Instant::now();
        let output = Command::new("/proc/self/exe")
            .args(["--exact", "kernel_that_offers_less", "--test-threads=1", "--nocapture", "-q"])
            .env(KERNEL_VARIABLE, missing)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{text}");
        assert_eq!(text.matches(told).count(), 1, "{missing}: {text}");
        assert_eq!(text.matches("WARN").count(), 1, "{missing}: {text}");
        assert_eq!(text.lines().filter(|line| *line == done).count(), 2, "{missing}: {text}");
        assert!(start.elapsed() < Duration::from_secs(60), "nothing waits for what was left behind");
    }
}

/// By protocols and by formats that name other files or hosts, for the real one; the listener hears nothing.
#[test]
fn an_upload_of_names_opens_nothing() {
    if !has_ffmpeg() {
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("secret.wav");
    std::fs::copy(fixtures().join("audio/en-1.wav"), &secret).unwrap();
    let secret: &Path = &secret;
    let path = secret.display();
    for script in [
        format!("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:{port}/x.ts\n#EXT-X-ENDLIST\n"),
        format!("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nconcat:{path}|{path}\n#EXT-X-ENDLIST\n"),
        format!("ffconcat version 1.0\nfile 'http://127.0.0.1:{port}/x.wav'\n"),
        format!("ffconcat version 1.0\nfile 'subfile,,start,0,end,0,,:{path}'\n"),
        format!(
            "<?xml version=\"1.0\"?><MPD xmlns=\"urn:mpeg:dash:schema:mpd:2011\"><Period><BaseURL>http://127.0.0.1:{port}/</BaseURL></Period></MPD>"
        ),
        format!("v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=audio {port} RTP/AVP 0\n"),
        format!("[Reference]\nRef1=http://127.0.0.1:{port}/x\n"),
    ] {
        let error = decode_with(script.clone().into_bytes(), &DecodeOptions::default()).unwrap_err();
        assert!(error.is_client_fault(), "{script}: {error:?}");
        assert!(listener.accept().is_err(), "{script}");
    }
}
