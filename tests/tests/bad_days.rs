//! Failures of real operation: processes die, disks fill, clients disconnect, many requests arrive at once.

use std::io::Write;
use std::time::Duration;

use anyhow::{Context, Result};
use hush_tests::{Server, ServerOptions, fixtures, http, process, wait::wait_for};
use rustix::process::Signal;

const LOAD: Duration = Duration::from_secs(60);
const SOON: Duration = Duration::from_secs(60);

fn one_runner(server: &Server) -> Result<u32> {
    wait_for("a runner", LOAD, || Ok(server.runners()?.first().copied()))
}

/// Starts a transcription of a long recording and comes back once the runner works on it.
fn busy(server: &Server) -> Result<std::thread::JoinHandle<Result<http::Response>>> {
    let api = server.api;
    let content = fixtures::audio("long-en.flac")?;
    let request = std::thread::spawn(move || http::upload(api, "/asr?language=en", "long-en.flac", &content));
    server.wait_for_metric("hush_model_inflight_requests{model=\"hush-tiny\"}", 1.0, LOAD)?;
    Ok(request)
}

fn joined(request: std::thread::JoinHandle<Result<http::Response>>) -> Result<http::Response> {
    request.join().map_err(|_| anyhow::anyhow!("the client thread panicked"))?
}

#[test]
fn a_runner_killed_while_it_works_costs_nothing_but_time() -> Result<()> {
    let server = Server::start(&[])?;
    let request = busy(&server)?;
    let runner = one_runner(&server)?;
    process::send(runner, Signal::KILL)?;
    let answer = joined(request)?;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(!answer.body.is_empty());
    assert_eq!(server.metric("hush_runner_restarts_total{cause=\"killed\",model=\"hush-tiny\"}")?, Some(1.0));
    Ok(())
}

#[test]
fn a_runner_killed_while_it_loads_costs_nothing_but_time() -> Result<()> {
    let server = Server::start(&[])?;
    let (api, content) = (server.api, fixtures::audio("en-1.wav")?);
    let request = std::thread::spawn(move || http::upload(api, "/asr?language=en", "en-1.wav", &content));
    let runner = one_runner(&server)?;
    process::send(runner, Signal::KILL)?;
    let answer = joined(request)?;
    assert_eq!(answer.status, 200, "{}", answer.text());
    Ok(())
}

#[test]
fn a_runner_killed_while_idle_is_noticed_and_replaced() -> Result<()> {
    let server = Server::start(&[])?;
    assert_eq!(server.asr("?language=en", "en-1.wav")?.status, 200);
    process::send(one_runner(&server)?, Signal::KILL)?;
    server.wait_for_state("unloaded", SOON)?;
    assert!(server.runners()?.is_empty(), "no zombie stays");
    assert_eq!(server.asr("?language=en", "en-1.wav")?.status, 200);
    Ok(())
}

#[test]
fn a_runner_that_hangs_is_replaced() -> Result<()> {
    let server = Server::start(&["--stall-timeout", "2s"])?;
    let request = busy(&server)?;
    let runner = one_runner(&server)?;
    process::send(runner, Signal::STOP)?;
    let answer = joined(request)?;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(process::state(runner), None, "the hung runner is gone");
    assert_eq!(server.metric("hush_runner_restarts_total{cause=\"hung\",model=\"hush-tiny\"}")?, Some(1.0));
    Ok(())
}

#[test]
fn the_runner_dies_with_the_server() -> Result<()> {
    let server = Server::start(&[])?;
    assert_eq!(server.asr("?language=en", "en-1.wav")?.status, 200);
    let runner = one_runner(&server)?;
    process::send(server.pid(), Signal::KILL)?;
    wait_for("the runner is gone", SOON, || Ok(matches!(process::state(runner), None | Some('Z')).then_some(())))
}

#[test]
fn a_broken_model_directory_is_told_and_the_server_lives_on() -> Result<()> {
    let dir = tempfile::tempdir()?;
    fixtures::install_into(dir.path(), "int8")?;
    let server =
        Server::start_with(ServerOptions { models_dir: Some(dir.path().to_owned()), ..ServerOptions::default() })?;
    let weights = dir.path().join(fixtures::MODEL).join("int8/weights.bin");
    let whole = std::fs::read(&weights)?;
    std::fs::write(&weights, &whole[..whole.len() / 2])?;
    let answer = server.asr("?language=en", "en-1.wav")?;
    assert_eq!(answer.status, 503, "{}", answer.text());
    assert!(answer.text().contains("weights.bin"), "{}", answer.text());
    let retry: u64 = answer.header("retry-after").context("no Retry-After")?.parse()?;
    assert!((1..=120).contains(&retry));
    assert_eq!(http::get(server.api, "/healthz")?.status, 200);

    std::fs::write(&weights, &whole)?;
    wait_for("the model loads once it is whole again", LOAD, || {
        Ok((server.asr("?language=en", "en-1.wav")?.status == 200).then_some(()))
    })
}

#[test]
fn two_hundred_clients_at_once_against_a_cold_model_are_all_served() -> Result<()> {
    // Fewer files than there are clients, of whom each needs two: the server lifts what it may lift.
    let args = ["--max-queue", "256"].map(str::to_owned).to_vec();
    let server = Server::start_with(ServerOptions { args, open_files: Some(150), ..ServerOptions::default() })?;
    let content = fixtures::audio("fr-1.wav")?;
    let request = http::upload_bytes(server.api, "/asr?language=fr", "fr-1.wav", &content);
    let answers = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..200).map(|_| scope.spawn(|| http::exchange(server.api, &request))).collect();
        clients.into_iter().map(|c| c.join()).collect::<Vec<_>>()
    });
    let mut texts = Vec::new();
    for answer in answers {
        let answer = answer.map_err(|_| anyhow::anyhow!("a client panicked"))??;
        assert_eq!(answer.status, 200, "{}", answer.text());
        texts.push(answer.body);
    }
    texts.dedup();
    assert_eq!(texts.len(), 1, "every client reads the same text");
    assert_eq!(server.metric("hush_model_generation{model=\"hush-tiny\"}")?, Some(1.0), "one load served them all");
    Ok(())
}

#[test]
fn a_full_queue_refuses_with_a_reason_and_a_time() -> Result<()> {
    let server = Server::start(&["--max-queue", "1", "--max-batch", "1"])?;
    let request = busy(&server)?;
    let content = fixtures::audio("en-1.wav")?;
    let bytes = http::upload_bytes(server.api, "/asr?language=en", "en-1.wav", &content);
    let answers = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..8).map(|_| scope.spawn(|| http::exchange(server.api, &bytes))).collect();
        clients.into_iter().map(|c| c.join()).collect::<Vec<_>>()
    });
    let mut refused = 0;
    for answer in answers {
        let answer = answer.map_err(|_| anyhow::anyhow!("a client panicked"))??;
        match answer.status {
            200 => {}
            503 => {
                refused += 1;
                assert!(answer.header("retry-after").is_some());
                assert!(answer.text().contains("queue"), "{}", answer.text());
            }
            other => panic!("{other}: {}", answer.text()),
        }
    }
    assert!(refused > 0, "one running, one waiting, eight more: a request is refused");
    assert_eq!(joined(request)?.status, 200);
    Ok(())
}

#[test]
fn a_client_that_leaves_mid_upload_leaves_nothing_behind() -> Result<()> {
    let server = Server::start(&[])?;
    let bytes = http::upload_bytes(server.api, "/asr?language=en", "en-1.wav", &fixtures::audio("en-1.wav")?);
    for cut in [1, 200, 400, bytes.len() / 2, bytes.len() - 10] {
        let mut stream = http::connect(server.api)?;
        stream.write_all(&bytes[..cut])?;
        drop(stream);
    }
    assert_eq!(server.asr("?language=en", "en-1.wav")?.status, 200);
    server.wait_for_metric("hush_model_inflight_requests{model=\"hush-tiny\"}", 0.0, SOON)
}

#[test]
fn a_client_that_leaves_mid_answer_frees_the_model() -> Result<()> {
    let server = Server::start(&[])?;
    let bytes = http::upload_bytes(server.api, "/asr?language=en", "long-en.flac", &fixtures::audio("long-en.flac")?);
    let mut stream = http::connect(server.api)?;
    stream.write_all(&bytes)?;
    server.wait_for_metric("hush_model_inflight_requests{model=\"hush-tiny\"}", 1.0, LOAD)?;
    drop(stream);
    server.wait_for_metric("hush_model_inflight_requests{model=\"hush-tiny\"}", 0.0, SOON)?;
    assert_eq!(server.asr("?language=en", "en-1.wav")?.status, 200);
    assert_eq!(server.metric("hush_model_generation{model=\"hush-tiny\"}")?, Some(1.0), "the same runner goes on");
    Ok(())
}

#[test]
fn sigterm_lets_the_running_request_finish() -> Result<()> {
    let mut server = Server::start(&["--drain-timeout", "300s"])?;
    let request = busy(&server)?;
    let runner = one_runner(&server)?;
    process::send(server.pid(), Signal::TERM)?;
    let answer = joined(request)?;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let status = server.wait_for_exit(LOAD)?;
    assert!(status.success(), "{status}");
    assert_eq!(process::state(runner), None);
    Ok(())
}

#[test]
fn sigterm_does_not_wait_longer_than_its_deadline() -> Result<()> {
    let mut server = Server::start(&["--drain-timeout", "1s"])?;
    let request = busy(&server)?;
    let runner = one_runner(&server)?;
    process::send(runner, Signal::STOP)?;
    process::send(server.pid(), Signal::TERM)?;
    server.wait_for_exit(SOON)?;
    assert!(matches!(process::state(runner), None | Some('Z')), "the hung runner did not survive");
    // Cut off or told that the server is going: either is an end, a hang is not.
    match joined(request) {
        Ok(answer) => assert_eq!(answer.status, 503, "{}", answer.text()),
        Err(error) => assert!(error.downcast_ref::<std::io::Error>().is_some() || !error.to_string().is_empty()),
    }
    Ok(())
}

#[test]
fn broken_audio_is_a_clear_client_error() -> Result<()> {
    let server = Server::start(&[])?;
    let whole = fixtures::audio("en-1.wav")?;
    let flac = fixtures::audio("silence.flac")?;
    let nan = wav(3, 1, 32, &f32::NAN.to_le_bytes().repeat(16_000));
    let cases: [(&str, Vec<u8>); 6] = [
        ("empty", Vec::new()),
        ("text", b"this is not audio, whatever its name says".to_vec()),
        ("header only", whole[..40].to_vec()),
        ("cut flac", flac[..30].to_vec()),
        ("zero channels", wav(1, 0, 16, &[0; 3200])),
        ("not a number", nan),
    ];
    for (name, content) in cases {
        let answer = http::upload(server.api, "/asr", "a.wav", &content)?;
        assert!((400..500).contains(&answer.status), "{name}: {} {}", answer.status, answer.text());
        assert!(answer.json()?["detail"].as_str().is_some_and(|d| d.len() > 10), "{name}: {}", answer.text());
    }
    assert!(server.runners()?.is_empty(), "no broken upload made the model load");
    Ok(())
}

#[test]
fn an_upload_over_the_limit_is_told_so() -> Result<()> {
    let server = Server::start(&["--max-upload", "10KiB"])?;
    let answer = server.asr("", "en-1.wav")?;
    assert_eq!(answer.status, 413, "{}", answer.text());
    assert!(answer.text().contains("10"), "{}", answer.text());
    Ok(())
}

#[test]
fn a_full_spool_disk_is_told_so() -> Result<()> {
    // Every write to a spool file in a directory that cannot be written fails as a full disk does: with an error from
    // the file system. A real full disk needs a mount, which needs root; tried when it is there.
    let dir = tempfile::tempdir()?;
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=256k", "hush-test"])
        .arg(dir.path())
        .status()
        .is_ok_and(|s| s.success());
    if !mounted {
        eprintln!("skipped: mounting a small tmpfs needs root");
        return Ok(());
    }
    let path = dir.path().to_str().context("temp dir is not UTF-8")?.to_owned();
    let result = (|| -> Result<()> {
        let server = Server::start(&["--spool-dir", &path, "--spool-memory", "1KiB"])?;
        let answer = server.asr("?language=en", "long-en.flac")?;
        assert_eq!(answer.status, 507, "{}", answer.text());
        assert_eq!(http::get(server.api, "/healthz")?.status, 200);
        Ok(())
    })();
    std::process::Command::new("umount").arg("-l").arg(dir.path()).status()?;
    result
}

#[test]
fn health_is_answered_while_the_runner_is_stopped() -> Result<()> {
    let server = Server::start(&[])?;
    let request = busy(&server)?;
    let runner = one_runner(&server)?;
    process::send(runner, Signal::STOP)?;
    for path in ["/healthz", "/readyz", "/status"] {
        assert_eq!(http::get(server.api, path)?.status, 200, "{path}");
    }
    assert_eq!(http::get(server.ops, "/metrics")?.status, 200);
    process::send(runner, Signal::CONT)?;
    assert_eq!(joined(request)?.status, 200);
    Ok(())
}

/// A WAV file with this format tag, channel count and sample width at 16 kHz.
fn wav(format: u16, channels: u16, bits: u16, data: &[u8]) -> Vec<u8> {
    let block = channels * bits / 8;
    let mut file = Vec::new();
    let size = |n: usize| u32::try_from(n).unwrap_or(u32::MAX).to_le_bytes();
    file.extend_from_slice(b"RIFF");
    file.extend_from_slice(&size(36 + data.len()));
    file.extend_from_slice(b"WAVEfmt \x10\0\0\0");
    file.extend_from_slice(&format.to_le_bytes());
    file.extend_from_slice(&channels.to_le_bytes());
    file.extend_from_slice(&16_000_u32.to_le_bytes());
    file.extend_from_slice(&(16_000 * u32::from(block)).to_le_bytes());
    file.extend_from_slice(&block.to_le_bytes());
    file.extend_from_slice(&bits.to_le_bytes());
    file.extend_from_slice(b"data");
    file.extend_from_slice(&size(data.len()));
    file.extend_from_slice(data);
    file
}
