//! A model's life on the double of CUDA, through a real server: it loads, works and leaves, and nothing of it stays; what goes
//! wrong on a GPU is told and does not stay either.

use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hush_tests::cuda_double::CudaDouble;
use hush_tests::gpus::{GIB, SOON, of_both, of_gpu, of_model};
use hush_tests::wait::wait_for;
use hush_tests::{Server, fixtures, http, process};
use rustix::process::Signal;
use serde_json::Value;

const SAID: &str = "Clean the light.";
const MIB: u64 = 1 << 20;

fn ask(server: &Server, recording: &'static str) -> JoinHandle<Result<http::Response>> {
    ask_with(server, recording, "")
}

fn ask_with(server: &Server, recording: &'static str, more: &'static str) -> JoinHandle<Result<http::Response>> {
    let api = server.api;
    std::thread::spawn(move || {
        let path = format!("/asr?language=en&output=txt{more}");
        http::upload(api, &path, recording, &fixtures::audio(recording)?)
    })
}

fn answer(request: JoinHandle<Result<http::Response>>) -> Result<http::Response> {
    request.join().map_err(|_| anyhow::anyhow!("the client thread panicked"))?
}

fn answered(server: &Server) -> Result<()> {
    let response = answer(ask(server, "en-1.wav"))?;
    ensure!(response.status == 200 && response.text().contains(SAID), "{}: {}", response.status, response.text());
    Ok(())
}

fn entries(server: &Server) -> Vec<Value> {
    server.log().iter().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// The server's own word on an unload.
fn proof(server: &Server) -> Result<Value> {
    wait_for("the server tells what came back", SOON, || {
        Ok(entries(server).into_iter().rev().find(|entry| entry["verdict"].is_string()))
    })
}

/// What is loaded ahead of a request takes nothing of the card: the library is mapped, and CUDA has no context.
#[test]
fn a_spare_runner_holds_nothing_of_the_card() -> Result<()> {
    let Some(mut cuda) = CudaDouble::one_gpu()? else { return Ok(()) };
    cuda.change(|script| script.context_bytes = 400 * MIB)?;
    let server = cuda.server(&["--spare-runner", "--idle-timeout", "1s"])?;
    let spare = wait_for("the spare runner maps the library", SOON, || {
        let maps = |pid: &u32| std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
        Ok(server.runners()?.into_iter().find(|pid| maps(pid).contains("libonnxruntime.so")))
    })?;
    server.wait_for_metric(&of_gpu("hush_gpu_memory_used_bytes"), 0.0, SOON)?;
    let contexts = |pid: u32| cuda.log(pid).map_or(0, |log| log.counters().contexts.count);
    assert_eq!(contexts(spare), 0);

    answered(&server)?;
    assert_eq!(contexts(spare), 1, "the spare runner did the work");
    server.wait_for_metric(&of_gpu("hush_gpu_memory_used_bytes"), 0.0, SOON)?;
    Ok(())
}

/// The only runner.
fn runner(server: &Server) -> Result<u32> {
    wait_for("a runner", SOON, || Ok(server.runners()?.first().copied()))
}

#[test]
fn it_loads_works_and_leaves_nothing() -> Result<()> {
    let Some(mut cuda) = CudaDouble::one_gpu()? else { return Ok(()) };
    cuda.change(|script| script.context_bytes = 400 * MIB)?;
    let server = cuda.server(&["--idle-timeout", "5s"])?;
    server.wait_for_metric(&of_gpu("hush_gpu_memory_used_bytes"), 0.0, SOON)?;
    answered(&server)?;
    let held = wait_for("the model's memory is seen", SOON, || {
        Ok(server.metric(&of_both("hush_model_vram_bytes"))?.filter(|bytes| *bytes > (400 * MIB) as f64))
    })?;
    let method = format!(
        "hush_model_vram_method_info{{gpu_uuid=\"{}\",method=\"process\",model=\"{}\"}}",
        hush_tests::gpus::UUID,
        fixtures::MODEL
    );
    assert_eq!(server.metric(&method)?, Some(1.0));
    let counters = cuda.log(runner(&server)?)?.counters();
    assert!(counters.unknown.is_empty(), "{:?}", counters.unknown);
    assert!(counters.kernels.total().count + counters.graph_launches.count > 0);

    let proof = proof(&server)?;
    assert_eq!((&proof["verdict"], &proof["residual_bytes"]), (&"returned".into(), &0.into()), "{proof}");
    assert!(proof["reclaimed_bytes"].as_f64().context("no bytes")? >= held, "{proof}");
    server.wait_for_metric(&of_gpu("hush_gpu_memory_used_bytes"), 0.0, SOON)?;
    server.wait_for_metric(&of_both("hush_model_vram_bytes"), 0.0, SOON)?;
    assert!(server.runners()?.is_empty());
    // And once more.
    answered(&server)
}

#[test]
fn a_card_that_is_full_at_the_load_is_an_error_that_teaches() -> Result<()> {
    let Some(mut cuda) = CudaDouble::one_gpu()? else { return Ok(()) };
    cuda.change(|script| script.allocation_limit_bytes = Some(MIB))?;
    let server = cuda.server(&[])?;
    let estimate = server.metric(&of_both("hush_model_need_bytes"))?;
    let response = answer(ask(&server, "en-1.wav"))?;
    let text = response.text();
    assert!(response.status == 503 && text.contains("memory"), "{}: {text}", response.status);
    assert!(server.metric(&of_both("hush_model_need_bytes"))? >= estimate);
    wait_for("no runner is left", SOON, || Ok(server.runners()?.is_empty().then_some(())))?;
    server.wait_for_metric(&of_gpu("hush_gpu_memory_used_bytes"), 0.0, SOON)?;

    cuda.change(|script| script.allocation_limit_bytes = None)?;
    wait_for("the next try succeeds", SOON, || Ok(answered(&server).ok()))
}

#[test]
fn a_card_that_is_full_in_the_middle_of_a_request_is_one_more_try_and_then_an_error() -> Result<()> {
    let Some(mut cuda) = CudaDouble::one_gpu()? else { return Ok(()) };
    let server = cuda.server(&["--idle-timeout", "0"])?;
    answered(&server)?;
    let first = runner(&server)?;
    // What it holds is all that it gets: beams need more. A fresh one gets as much, which its load does not fit into.
    cuda.change(|script| script.allocation_limit_bytes = Some(0))?;
    let api = server.api;
    let audio = fixtures::audio("en-1.wav")?;
    let beams = "/asr?language=en&output=txt&beam_size=5&word_timestamps=true";
    let response = http::upload(api, beams, "en-1.wav", &audio)?;
    let text = response.text();
    assert!(response.status >= 500 && text.contains("memory"), "{}: {text}", response.status);
    wait_for("the runner that ran out of memory is gone", SOON, || {
        Ok((!server.runners()?.contains(&first)).then_some(()))
    })?;

    cuda.change(|script| script.allocation_limit_bytes = None)?;
    wait_for("the next request succeeds", SOON, || Ok(answered(&server).ok()))
}

#[test]
fn a_device_that_is_lost_costs_its_runner_and_not_the_server() -> Result<()> {
    let Some(mut cuda) = CudaDouble::one_gpu()? else { return Ok(()) };
    let server = cuda.server(&["--idle-timeout", "0"])?;
    answered(&server)?;
    let first = runner(&server)?;
    cuda.change(|script| script.launches_before_failure = Some(3))?;
    let request = ask(&server, "en-1.wav");
    let gone = wait_for("the runner with the lost device is gone", SOON, || {
        Ok((!server.runners()?.contains(&first)).then_some(()))
    });
    gone.with_context(|| server.log().join("\n"))?;
    cuda.change(|script| script.launches_before_failure = None)?;
    // It was tried once more on a fresh runner, before or after the device came back.
    let response = answer(request)?;
    assert!(response.status == 200 || response.text().contains("launch"), "{}", response.text());
    wait_for("the next request succeeds", SOON, || Ok(answered(&server).ok()))
}

#[test]
fn a_driver_that_is_too_old_is_named_in_the_answer() -> Result<()> {
    let Some(mut cuda) = CudaDouble::one_gpu()? else { return Ok(()) };
    cuda.gpus.cuda_version = 12040;
    cuda.write()?;
    let server = cuda.server(&[])?;
    let response = answer(ask(&server, "en-1.wav"))?;
    let text = response.text();
    assert!(response.status == 503 && text.contains("CUDA 12.4") && text.contains("newer driver"), "{text}");
    Ok(())
}

#[test]
fn a_load_waits_for_room_and_is_served_when_there_is_some() -> Result<()> {
    let Some(mut cuda) = CudaDouble::one_gpu()? else { return Ok(()) };
    cuda.change_gpu(|gpu| gpu.used_bytes = 8 * GIB - GIB / 10)?;
    let server = cuda.server(&[])?;
    let request = ask(&server, "en-1.wav");
    server.wait_for_state("waiting_for_memory", SOON)?;
    assert!(server.metric(&of_model("hush_model_memory_demand_bytes"))?.is_some_and(|bytes| bytes > 0.0));
    assert!(server.runners()?.is_empty());
    cuda.change_gpu(|gpu| gpu.used_bytes = GIB)?;
    let response = answer(request)?;
    assert!(response.status == 200 && response.text().contains(SAID), "{}", response.text());
    Ok(())
}

#[test]
fn two_servers_share_a_card_and_the_second_waits_for_the_first() -> Result<()> {
    let Some(mut cuda) = CudaDouble::one_gpu()? else { return Ok(()) };
    cuda.change(|script| script.context_bytes = 3 * GIB)?;
    let first = cuda.server(&["--idle-timeout", "0"])?;
    answered(&first)?;
    let second = cuda.server(&["--idle-timeout", "0"])?;
    answered(&second)?;
    let (one, other) = (runner(&first)?, runner(&second)?);
    assert_ne!(one, other);
    wait_for("both are on the card", SOON, || {
        Ok(first.metric(&of_gpu("hush_gpu_memory_used_bytes"))?.filter(|bytes| *bytes > (6 * GIB) as f64))
    })?;

    let third = cuda.server(&["--idle-timeout", "0"])?;
    let request = ask(&third, "en-1.wav");
    // What it needs was learnt by the others, whose models folder it shares.
    third.wait_for_state("waiting_for_memory", SOON)?;
    drop(first);
    let response = answer(request)?;
    assert!(response.status == 200 && response.text().contains(SAID), "{}", response.text());
    Ok(())
}

#[test]
fn a_runner_that_is_killed_takes_its_memory_with_it() -> Result<()> {
    let Some(mut cuda) = CudaDouble::one_gpu()? else { return Ok(()) };
    cuda.change(|script| script.context_bytes = 400 * MIB)?;
    let server = cuda.server(&["--idle-timeout", "0"])?;
    answered(&server)?;
    let first = runner(&server)?;
    // The first step of a width is captured as a CUDA graph, which takes long here.
    let request = ask_with(&server, "en-2.wav", "&beam_size=5");
    std::thread::sleep(Duration::from_millis(150));
    process::send(first, Signal::KILL)?;
    let response = answer(request)?;
    assert_eq!(response.status, 200, "tried once more: {}", response.text());
    let second = runner(&server)?;
    assert_ne!(first, second);
    let used = server.metric(&of_gpu("hush_gpu_memory_used_bytes"))?.context("no figure")?;
    assert!(used < (800 * MIB) as f64, "one context: {used}");
    process::send(second, Signal::KILL)?;
    server.wait_for_metric(&of_gpu("hush_gpu_memory_used_bytes"), 0.0, SOON)?;
    answered(&server)
}
