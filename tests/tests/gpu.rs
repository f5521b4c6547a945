//! Device memory: what the server says of it, that it waits for it, and that an unload gives it back. The GPU is the
//! double's; processes, models and requests are real.

use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hush_nvml::{MemoryTaker, NvmlCode, ProcessList, ProcessMemory, ScriptedProcess};
use hush_tests::gpus::{GIB, Gpus, SOON, of_both, of_gpu, of_model};
use hush_tests::{Server, ServerOptions, fixtures, http, wait::wait_for};
use serde_json::Value;

const LOAD: Duration = Duration::from_secs(300);

fn holds(bytes: u64) -> ProcessMemory {
    ProcessMemory { bytes, ..ProcessMemory::default() }
}

fn ask(server: &Server) -> JoinHandle<Result<http::Response>> {
    let api = server.api;
    std::thread::spawn(move || http::upload(api, "/asr?language=en", "en-1.wav", &fixtures::audio("en-1.wav")?))
}

fn answered(request: JoinHandle<Result<http::Response>>) -> Result<()> {
    let answer = request.join().map_err(|_| anyhow::anyhow!("the client thread panicked"))??;
    assert_eq!(answer.status, 200, "{}", answer.text());
    Ok(())
}

/// The server's own word on an unload: the fields of its log line.
fn proof(server: &Server) -> Result<Value> {
    wait_for("the server tells what came back", SOON, || {
        let log = server.log();
        let lines = log.iter().rev().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        Ok(lines.into_iter().find(|line| line["verdict"].is_string()))
    })
}

/// Loads the model for one request and lets it leave for idleness.
fn stay(server: &Server) -> Result<Value> {
    answered(ask(server))?;
    server.wait_for_metric(&of_both("hush_model_vram_bytes"), (3 * GIB) as f64, SOON)?;
    proof(server)
}

const BRIEF: [&str; 2] = ["--idle-timeout", "5s"];

#[test]
fn gauges_tell_of_the_device_and_whose_its_memory_is() -> Result<()> {
    let mut gpus = Gpus::one()?;
    gpus.script.devices[0].processes.push(ScriptedProcess { pid: 4_100_000, bytes: GIB, graphics: false });
    let server = gpus.server(holds(3 * GIB), &[])?;
    server.wait_for_metric(&of_gpu("hush_gpu_memory_total_bytes"), (8 * GIB) as f64, SOON)?;
    server.wait_for_metric(&of_gpu("hush_gpu_memory_used_bytes"), GIB as f64, SOON)?;
    assert_eq!(server.metric("hush_gpu_up")?, Some(1.0));
    assert_eq!(server.metric(&of_model("hush_model_memory_demand_bytes"))?, Some(0.0));
    let estimate = server.metric(&of_both("hush_model_need_bytes"))?.context("no need")?;
    assert!((0.5e9..2e9).contains(&estimate), "files and runtime: {estimate}");
    answered(ask(&server))?;
    server.wait_for_metric(&of_both("hush_model_vram_bytes"), (3 * GIB) as f64, SOON)?;
    server.wait_for_metric(&of_gpu("hush_gpu_memory_foreign_bytes"), GIB as f64, SOON)?;
    server.wait_for_metric(&of_gpu("hush_gpu_memory_free_bytes"), (4 * GIB) as f64, SOON)?;
    assert_eq!(server.metric(&of_both("hush_model_need_bytes"))?, Some((3 * GIB) as f64), "learnt");
    let method = format!(
        "hush_model_vram_method_info{{gpu_uuid=\"{}\",method=\"process\",model=\"{}\"}}",
        hush_tests::gpus::UUID,
        fixtures::MODEL
    );
    assert_eq!(server.metric(&method)?, Some(1.0));
    assert!(server.metric(&of_gpu("hush_gpu_sample_age_seconds"))?.is_some_and(|age| age < 20.0));
    Ok(())
}

/// As on an instance of MIG.
#[test]
fn a_list_of_processes_that_draw_is_not_needed() -> Result<()> {
    let mut gpus = Gpus::one()?;
    for version in ["", "_v2", "_v3"] {
        let function = format!("nvmlDeviceGetGraphicsRunningProcesses{version}");
        gpus.script.devices[0].errors.insert(function, NvmlCode::NOT_SUPPORTED);
    }
    let server = gpus.server(holds(3 * GIB), &[])?;
    answered(ask(&server))?;
    server.wait_for_metric(&of_both("hush_model_vram_bytes"), (3 * GIB) as f64, SOON)?;
    let method = format!(
        "hush_model_vram_method_info{{gpu_uuid=\"{}\",method=\"process\",model=\"{}\"}}",
        hush_tests::gpus::UUID,
        fixtures::MODEL
    );
    assert_eq!(server.metric(&method)?, Some(1.0));
    Ok(())
}

#[test]
fn memory_that_the_driver_keeps_is_not_free() -> Result<()> {
    let mut gpus = Gpus::one()?;
    gpus.script.devices[0].reserved_bytes = GIB / 2;
    let server = gpus.server(holds(3 * GIB), &[])?;
    server.wait_for_metric(&of_gpu("hush_gpu_memory_total_bytes"), (8 * GIB - GIB / 2) as f64, SOON)?;
    server.wait_for_metric(&of_gpu("hush_gpu_memory_free_bytes"), (8 * GIB - GIB / 2) as f64, SOON)
}

#[test]
fn in_a_container_the_device_tells_what_the_model_took() -> Result<()> {
    for list in [ProcessList::HostPids, ProcessList::NotSupported] {
        let mut gpus = Gpus::one()?;
        gpus.script.devices[0].process_list = list;
        gpus.script.devices[0].used_bytes = GIB;
        let server = gpus.server(holds(3 * GIB), &BRIEF)?;
        let proof = stay(&server)?;
        assert_eq!((&proof["verdict"], &proof["reclaimed_bytes"]), (&"returned".into(), &(3 * GIB).into()), "{list:?}");
    }
    Ok(())
}

#[test]
fn memory_that_comes_back_at_once_or_late_is_proved_to_be_back() -> Result<()> {
    for release_ms in [0, 700] {
        let mut gpus = Gpus::one()?;
        let server = gpus.server(ProcessMemory { release_ms, ..holds(3 * GIB) }, &BRIEF)?;
        let proof = stay(&server)?;
        assert_eq!(proof["verdict"], "returned", "{proof}");
        assert_eq!(proof["vram_before_bytes"], 3 * GIB);
        assert_eq!((&proof["reclaimed_bytes"], &proof["residual_bytes"]), (&(3 * GIB).into(), &0.into()));
        let settle = proof["settle_seconds"].as_f64().context("no seconds")?;
        assert!(settle * 1e3 >= release_ms as f64 * 0.9, "{settle}");
        server.wait_for_metric(&of_model("hush_model_reclaimed_bytes_total"), (3 * GIB) as f64, SOON)?;
        server.wait_for_metric(&of_both("hush_model_vram_bytes"), 0.0, SOON)?;
    }
    Ok(())
}

#[test]
fn memory_that_does_not_come_back_is_residual_until_it_does() -> Result<()> {
    let mut gpus = Gpus::one()?;
    let guest = ProcessMemory { residue_bytes: GIB, ..holds(3 * GIB) };
    let server = gpus.server(guest, &[&BRIEF[..], &["--reclaim-timeout", "1s"]].concat())?;
    let proof = stay(&server)?;
    assert_eq!((&proof["verdict"], &proof["residual_bytes"]), (&"residual".into(), &GIB.into()), "{proof}");
    server.wait_for_metric(&of_model("hush_model_residual_bytes"), GIB as f64, SOON)?;
    assert_eq!(server.metric(&of_model("hush_model_reclaimed_bytes_total"))?, Some((2 * GIB) as f64));
    // Much later the driver cleans up after all.
    wait_for("the residue goes", SOON, || {
        // Again, because the double may be writing it at this moment.
        let _ = std::fs::remove_file(gpus.folder().join("gpus.json.holders"));
        Ok(server.metric(&of_model("hush_model_residual_bytes"))?.filter(|bytes| *bytes == 0.0))
    })?;
    server.wait_for_metric(&of_model("hush_model_reclaimed_bytes_total"), (3 * GIB) as f64, SOON)
}

#[test]
fn memory_that_another_takes_meanwhile_is_not_held_against_the_model() -> Result<()> {
    let mut gpus = Gpus::one()?;
    let taker = Some(MemoryTaker { pid: 4_100_001, bytes: 2 * GIB });
    let server = gpus.server(ProcessMemory { taker, ..holds(3 * GIB) }, &BRIEF)?;
    let proof = stay(&server)?;
    assert_eq!((&proof["verdict"], &proof["taken_bytes"]), (&"taken".into(), &(2 * GIB).into()), "{proof}");
    assert_eq!((&proof["reclaimed_bytes"], &proof["residual_bytes"]), (&(3 * GIB).into(), &0.into()));
    server.wait_for_metric(&of_gpu("hush_gpu_memory_foreign_bytes"), (2 * GIB) as f64, SOON)
}

#[test]
fn a_model_without_room_waits_says_so_and_is_served_when_there_is_some() -> Result<()> {
    let mut gpus = Gpus::one()?;
    gpus.script.devices[0].used_bytes = 8 * GIB - GIB / 10;
    let server = gpus.server(holds(3 * GIB), &[])?;
    let request = ask(&server);
    server.wait_for_state("waiting_for_memory", SOON)?;
    let demand = server.metric(&of_model("hush_model_memory_demand_bytes"))?.context("no demand")?;
    let need = server.metric(&of_both("hush_model_need_bytes"))?.context("no need")?;
    assert_eq!(demand, need + (256 << 20) as f64, "the headroom comes on top");
    assert!(server.runners()?.is_empty(), "nothing is started into certain want");
    assert_eq!(http::get(server.api, "/readyz")?.status, 200);
    gpus.change(|gpu| gpu.used_bytes = 2 * GIB)?;
    answered(request)?;
    assert_eq!(server.metric(&of_model("hush_model_memory_demand_bytes"))?, Some(0.0));
    Ok(())
}

#[test]
fn what_a_model_needs_is_known_after_a_restart() -> Result<()> {
    let mut gpus = Gpus::one()?;
    let server = gpus.server(holds(3 * GIB), &[])?;
    answered(ask(&server))?;
    server.wait_for_metric(&of_both("hush_model_need_bytes"), (3 * GIB) as f64, SOON)?;
    let kept = gpus.folder().join("models/.device-needs.json");
    wait_for("it is written down", SOON, || Ok(std::fs::read(&kept).ok().filter(|text| !text.is_empty())))?;
    drop(server);
    gpus.change(|gpu| {
        gpu.guests.clear();
        gpu.used_bytes = 6 * GIB;
    })?;
    std::fs::remove_file(gpus.folder().join("gpus.json.holders"))?;
    // Its files alone would fit.
    let server = gpus.server(holds(3 * GIB), &[])?;
    let request = ask(&server);
    let demand = (3 * GIB + (256 << 20)) as f64;
    server.wait_for_metric(&of_model("hush_model_memory_demand_bytes"), demand, SOON)?;
    gpus.change(|gpu| gpu.used_bytes = 0)?;
    answered(request)
}

#[test]
fn two_servers_share_a_device_and_the_second_waits_for_the_first() -> Result<()> {
    let mut gpus = Gpus::one()?;
    gpus.script.devices[0].total_bytes = 4 * GIB;
    let first = gpus.server(holds(3 * GIB + GIB / 2), &[])?;
    let second = gpus.server(holds(GIB), &[])?;
    answered(ask(&first))?;
    first.wait_for_metric(&of_gpu("hush_gpu_memory_foreign_bytes"), 0.0, SOON)?;
    let request = ask(&second);
    second.wait_for_state("waiting_for_memory", SOON)?;
    let foreign = (3 * GIB + GIB / 2) as f64;
    second.wait_for_metric(&of_gpu("hush_gpu_memory_foreign_bytes"), foreign, SOON)?;
    // Its runner dies with it.
    drop(first);
    answered(request)
}

#[test]
fn the_reclaimer_makes_an_idle_model_leave_a_full_device() -> Result<()> {
    let mut gpus = Gpus::one()?;
    let server = gpus.server(holds(3 * GIB), &["--memory-reclaimer", "90%"])?;
    answered(ask(&server))?;
    server.wait_for_state("ready", SOON)?;
    gpus.change(|gpu| gpu.used_bytes = 4 * GIB + GIB / 2)?;
    server.wait_for_state("unloaded", SOON)?;
    assert_eq!(server.metric("hush_model_unloads_total{model=\"hush-tiny\",reason=\"MemoryReclaimer\"}")?, Some(1.0));
    Ok(())
}

#[test]
fn a_driver_that_goes_and_comes_back_costs_only_figures() -> Result<()> {
    let mut gpus = Gpus::one()?;
    let server = gpus.server(holds(3 * GIB), &[])?;
    server.wait_for_metric("hush_gpu_up", 1.0, SOON)?;
    gpus.script.errors.insert("*".to_owned(), NvmlCode::DRIVER_NOT_LOADED);
    gpus.write()?;
    server.wait_for_metric("hush_gpu_up", 0.0, SOON)?;
    assert_eq!(server.metric(&of_gpu("hush_gpu_device_up"))?, Some(0.0));
    let age = server.metric(&of_gpu("hush_gpu_sample_age_seconds"))?.context("no age")?;
    wait_for("the figures grow old", SOON, || {
        Ok(server.metric(&of_gpu("hush_gpu_sample_age_seconds"))?.filter(|older| *older > age + 0.5))
    })?;
    // The free memory is unknown, and a load is tried all the same.
    answered(ask(&server))?;
    gpus.script.errors.clear();
    gpus.script.epoch += 1;
    gpus.write()?;
    server.wait_for_metric("hush_gpu_up", 1.0, SOON)?;
    server.wait_for_metric(&of_gpu("hush_gpu_memory_used_bytes"), (3 * GIB) as f64, SOON)?;
    server.wait_for_metric(&of_both("hush_model_vram_bytes"), (3 * GIB) as f64, SOON)?;

    gpus.change(|gpu| gpu.lost = true)?;
    server.wait_for_metric(&of_gpu("hush_gpu_device_up"), 0.0, SOON)?;
    assert_eq!(server.metric("hush_gpu_up")?, Some(1.0), "NVML itself answers");
    gpus.change(|gpu| gpu.lost = false)?;
    server.wait_for_metric(&of_gpu("hush_gpu_device_up"), 1.0, SOON)
}

#[test]
fn a_driver_that_hangs_delays_no_request() -> Result<()> {
    let mut gpus = Gpus::one()?;
    let server = gpus.server(holds(3 * GIB), &[])?;
    server.wait_for_metric("hush_gpu_up", 1.0, SOON)?;
    gpus.script.delays_ms.insert("*".to_owned(), 600_000);
    gpus.write()?;
    // A look that began before may still end.
    std::thread::sleep(Duration::from_millis(500));
    let begun = Instant::now();
    answered(ask(&server))?;
    assert_eq!(http::get(server.api, "/healthz")?.status, 200);
    assert!(begun.elapsed() < LOAD, "no request waited for the driver");
    server.wait_for_metric("hush_gpu_up", 0.0, SOON)?;
    assert!(server.metric(&of_gpu("hush_gpu_sample_age_seconds"))?.is_some_and(|age| age > 9.0));
    Ok(())
}

#[test]
fn without_nvml_there_are_no_figures_and_no_obstacles() -> Result<()> {
    let server = Server::start(&["--nvml-lib", "/nonexistent/libnvidia-ml.so.1"])?;
    server.wait_for_metric("hush_gpu_up", 0.0, SOON)?;
    answered(ask(&server))?;
    let metrics = http::get(server.ops, "/metrics")?.text();
    for absent in ["hush_gpu_memory", "hush_model_vram_bytes", "hush_model_residual_bytes", "hush_model_memory_demand"]
    {
        assert!(!metrics.contains(absent), "{absent} is absent, not zero:\n{metrics}");
    }
    let place = "hush_device_info{asked=\"auto\",device=\"cpu\",model=\"hush-tiny\",reason=\"";
    assert!(metrics.contains(place), "{metrics}");
    Ok(())
}

#[test]
fn a_gpu_that_is_asked_for_and_not_there_is_a_load_that_says_what_is_missing() -> Result<()> {
    let models = fixtures::models_dir("fp16")?;
    let args = ["--device", "cuda", "--precision", "fp16"].map(str::to_owned).to_vec();
    let server = Server::start_with(ServerOptions { args, models_dir: Some(models), ..ServerOptions::default() })?;
    let answer = server.asr("?language=en", "en-1.wav")?;
    assert_eq!(answer.status, 503, "{}", answer.text());
    assert!(answer.text().contains("libonnxruntime_providers_cuda.so"), "{}", answer.text());
    Ok(())
}
