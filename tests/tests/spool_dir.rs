//! The folder for uploads that are too large for memory: missing, not to be written to, full.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hush_tests::{Server, fixtures, http, process, wait::wait_for};

const START: Duration = Duration::from_secs(60);

/// A minute of silence, which is more than is kept in memory.
fn a_minute() -> Vec<u8> {
    let samples = 60 * 16_000_u32;
    let mut wav = Vec::from(*b"RIFF");
    wav.extend((36 + samples * 2).to_le_bytes());
    wav.extend(b"WAVEfmt \x10\0\0\0\x01\0\x01\0");
    wav.extend(16_000_u32.to_le_bytes());
    wav.extend(32_000_u32.to_le_bytes());
    wav.extend(b"\x02\0\x10\0data");
    wav.extend((samples * 2).to_le_bytes());
    wav.resize(wav.len() + samples as usize * 2, 0);
    wav
}

/// The arguments of a server with this folder.
fn arguments(folder: &Path) -> Result<Vec<String>> {
    let path = |path: &Path| path.to_string_lossy().into_owned();
    Ok(vec![
        "serve".to_owned(),
        format!("--models-dir={}", path(&fixtures::models_dir("int8")?)),
        format!("--ort-lib={}", path(&fixtures::onnxruntime())),
        format!("--model={}", fixtures::MODEL),
        format!("--spool-dir={}", path(folder)),
    ])
}

#[test]
fn a_folder_that_cannot_be_used_is_no_start() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let missing = folder.path().join("missing");
    let file = folder.path().join("file");
    fs::write(&file, "")?;
    // /proc takes no files, not even from root.
    for unusable in [missing.as_path(), &file, Path::new("/proc")] {
        let mut arguments = arguments(unusable)?;
        arguments.extend(["--listen=127.0.0.1:0", "--ops-listen=127.0.0.1:0"].map(str::to_owned));
        let output = process::output_within(Command::new(fixtures::binary()?).args(arguments), START)?;
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        let name = unusable.display().to_string();
        assert!(said.contains(&name) && said.contains("--spool-dir"), "{said}");
    }
    // Without the option it is the system's.
    let mut command = Command::new(fixtures::binary()?);
    command
        .args(arguments(folder.path())?.iter().filter(|argument| !argument.starts_with("--spool-dir")))
        .args(["--listen=127.0.0.1:0", "--ops-listen=127.0.0.1:0"])
        .env("TMPDIR", &missing);
    let output = process::output_within(&mut command, START)?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && said.contains(&missing.display().to_string()), "{said}");
    Ok(())
}

#[test]
fn a_folder_that_goes_away_is_named_until_it_is_back() -> Result<()> {
    let parent = tempfile::tempdir()?;
    let folder = parent.path().join("spool");
    fs::create_dir(&folder)?;
    let name = folder.display().to_string();
    let server = Server::start(&["--spool-dir", &name])?;
    let minute = a_minute();
    assert_eq!(http::get(server.api, "/readyz")?.status, 200);

    fs::remove_dir(&folder)?;
    let ready = http::get(server.api, "/readyz")?;
    assert!(ready.status == 503 && ready.text().contains(&name), "{}", ready.text());
    let answer = http::upload(server.api, "/asr", "minute.wav", &minute)?;
    assert!(answer.status == 507 && answer.text().contains(&name), "{}: {}", answer.status, answer.text());
    // Small ones need no disk, and the process is alive.
    assert_eq!(server.asr("?language=en", "en-1.wav")?.text(), "Clean the light.\n");
    assert_eq!(http::get(server.api, "/healthz")?.status, 200);

    fs::create_dir(&folder)?;
    assert_eq!(http::get(server.api, "/readyz")?.status, 200);
    assert_eq!(http::upload(server.api, "/asr", "minute.wav", &minute)?.status, 200);
    Ok(())
}

/// In a mount namespace of its own, where a small disk can be mounted.
#[test]
fn a_full_folder_is_named() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let small_disk = format!("mount -t tmpfs -o size=1m hush-test '{}'", folder.path().display());
    let unshare = ["--user", "--map-root-user", "--mount", "sh", "-c"];
    let tried = Command::new("unshare").args(unshare).arg(&small_disk).stderr(Stdio::null()).status();
    if !tried.is_ok_and(|status| status.success()) {
        eprintln!("skipped: this machine does not let the test mount a disk of its own");
        return Ok(());
    }
    let run = |script: &str, more: &[String]| -> Result<Command> {
        let mut command = Command::new("unshare");
        command.args(unshare).arg(format!("{small_disk} && {script} && exec \"$0\" \"$@\"")).arg(fixtures::binary()?);
        command.args(arguments(folder.path())?).args(more);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        Ok(command)
    };
    let name = folder.path().display().to_string();
    let filled = format!("! cat /dev/zero > '{name}/fill'");
    let listeners = [http::free_address()?, http::free_address()?];
    let options = [format!("--listen={}", listeners[0]), format!("--ops-listen={}", listeners[1])];
    let output = process::output_within(&mut run(&filled, &options)?, START)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(1) && said.contains(&name), "{said}");

    let mut server = run("true", &options)?.stderr(Stdio::null()).spawn()?;
    let tested = (|| {
        let api = listeners[0];
        wait_for("the server", START, || Ok(http::get(api, "/readyz").ok().filter(|answer| answer.status == 200)))?;
        // The disk as the server sees it.
        let pid = process::children(server.id())?.first().copied().unwrap_or(server.id());
        let inside = Path::new("/proc").join(pid.to_string()).join("root").join(folder.path().strip_prefix("/")?);
        fs::write(inside.join("fill"), vec![0; 2 << 20]).err().context("the disk is not full")?;
        let ready = http::get(api, "/readyz")?;
        ensure!(ready.status == 503 && ready.text().contains(&name), "{}: {}", ready.status, ready.text());
        let answer = http::upload(api, "/asr", "minute.wav", &a_minute())?;
        ensure!(answer.status == 507 && answer.text().contains(&name), "{}: {}", answer.status, answer.text());
        fs::remove_file(inside.join("fill"))?;
        ensure!(http::get(api, "/readyz")?.status == 200, "there is room again");
        Ok(())
    })();
    // Both fail only when it has ended already.
    let _ = server.kill();
    let _ = server.wait();
    tested
}
