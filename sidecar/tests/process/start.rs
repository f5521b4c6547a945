//! What an app gets at its start, and what prevents a start.

use std::fs;
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::Value;

use crate::fixture::{ObservedApp, exists, free_port, parent, python, settings};

async fn failure(settings: hush_sidecar::process::ProcessSettings) -> String {
    let mut app = ObservedApp::start(settings);
    let (cause, out_of_memory) = app.expect_load_failed().await;
    assert!(!out_of_memory);
    app.expect_exited().await;
    cause
}

fn read_about(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

#[tokio::test]
async fn an_app_has_its_own_session_folder_environment_and_no_open_files() {
    // An inherited file without the mark that closes it, as a library may leave one.
    let leaked = rustix::io::dup(fs::File::open("/etc/hostname").unwrap().as_fd()).unwrap();

    let folder = tempfile::tempdir().unwrap();
    let about = folder.path().join("about");
    let mut settings = python(&["--about", about.to_str().unwrap()]);
    settings.working_dir = Some(folder.path().to_owned());
    settings.env = vec![("APP_ADDRESS".into(), "127.0.0.1:{port}".into())];
    let port = settings.port;
    let mut app = ObservedApp::loaded(settings).await;
    drop(leaked);

    let about = read_about(&about);
    let pid = about["pid"].as_u64().unwrap();
    assert_eq!(Some(pid), app.main.map(u64::from));
    assert_eq!((about["session"].as_u64(), about["group"].as_u64()), (Some(pid), Some(pid)));
    assert_eq!(about["folder"], folder.path().canonicalize().unwrap().to_str().unwrap());
    assert_eq!(about["arguments"][1], port.to_string());
    assert_eq!(about["environment"]["APP_ADDRESS"], format!("127.0.0.1:{port}"));
    assert!(about["environment"]["PATH"].is_string());
    assert_eq!(about["terminate_is_default"], true);
    assert_eq!(about["pipe_blocked"], "0000000000000000");

    let descriptors = about["descriptors"].as_object().unwrap();
    assert_eq!(descriptors["0"], "/dev/null");
    assert!(descriptors["1"].as_str().unwrap().starts_with("pipe:"), "{descriptors:?}");
    // What is left besides the standard streams is the list's own folder, which is closed when the links are read.
    assert_eq!(descriptors.len(), 3, "{descriptors:?}");

    app.stop().await;
}

#[tokio::test]
async fn an_app_has_a_control_group_where_one_is_allowed() {
    let folder = tempfile::tempdir().unwrap();
    let about = folder.path().join("about");
    let mut app = ObservedApp::loaded(python(&["--about", about.to_str().unwrap()])).await;

    let group = read_about(&about)["cgroup"].as_str().unwrap().lines().find_map(|line| {
        let path = line.strip_prefix("0::")?;
        path.contains("hush-app-").then(|| path.to_owned())
    });
    let Some(group) = group else {
        app.stop().await;
        eprintln!("skipped: no control group may be made here");
        return;
    };

    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let mount = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2")).unwrap();
    let path = format!("{}{group}", mount.split(' ').nth(1).unwrap());
    assert!(Path::new(&path).is_dir(), "{path}");
    let keeper = parent(app.main.unwrap());
    app.stop().await;
    crate::fixture::eventually("the keeper ends", || !exists(keeper)).await;
    assert!(!Path::new(&path).exists(), "{path} is left");
}

#[tokio::test]
async fn a_program_that_is_missing_is_named() {
    let cause = failure(settings(&["no-such-model-server", "--port", "{port}"])).await;
    assert!(cause.contains("`no-such-model-server` could not be started"), "{cause}");
    // The second, where a folder of `PATH` may not be read.
    assert!(cause.contains("no such program in `PATH`") || cause.contains("may not be read"), "{cause}");

    let cause = failure(settings(&["/opt/missing/server"])).await;
    assert!(cause.contains("`/opt/missing/server`") && cause.contains("No such file"), "{cause}");
}

#[tokio::test]
async fn a_program_that_cannot_be_executed_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("server");
    fs::write(&file, "#!/no/such/interpreter\n").unwrap();

    let cause = failure(settings(&[file.to_str().unwrap()])).await;
    assert!(cause.contains("not executable") && cause.contains("server"), "{cause}");

    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    let cause = failure(settings(&[file.to_str().unwrap()])).await;
    assert!(cause.contains("interpreter"), "{cause}");

    let cause = failure(settings(&[folder.path().to_str().unwrap()])).await;
    assert!(cause.contains("is a folder"), "{cause}");
}

#[tokio::test]
async fn a_working_directory_that_is_missing_is_named() {
    let mut missing = python(&[]);
    missing.working_dir = Some("/no/such/folder".into());
    let cause = failure(missing).await;
    assert!(cause.contains("working directory /no/such/folder") && cause.contains("No such file"), "{cause}");

    let mut file = python(&[]);
    file.working_dir = Some("/etc/hostname".into());
    assert!(failure(file).await.contains("is no directory"));

    let cause = failure(settings(&[])).await;
    assert!(cause.contains("no command"), "{cause}");
}

#[tokio::test]
async fn a_port_in_use_is_refused_and_its_process_named() {
    for address in ["127.0.0.1:0", "0.0.0.0:0", "[::]:0"] {
        let Ok(listener) = TcpListener::bind(address) else { continue };
        let mut settings = python(&[]);
        settings.port = listener.local_addr().unwrap().port();
        let expected = format!("port {} is in use: process {} (", settings.port, std::process::id());
        let cause = failure(settings).await;
        assert!(cause.contains(&expected), "{cause}");
    }
}

#[tokio::test]
async fn the_port_is_free_for_the_next_process_when_the_last_has_exited() {
    let mut settings = python(&[]);
    settings.port = free_port();
    for _ in 0..3 {
        ObservedApp::loaded(settings.clone()).await.stop().await;
    }
}
