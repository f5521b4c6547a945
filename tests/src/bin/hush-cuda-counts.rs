//! What the engine asks of a CUDA device, counted on the double of the CUDA runtime (`tests/cuda`), which computes nothing
//! here. Prints one JSON line for each case.
//!
//! usage: hush-cuda-counts MODEL_DIR [CASE...]      a case is `WINDOWS` or `WINDOWSxBEAMS`; by default 1 8 32 1x5 8x5
//!
//! Times are those of the host alone: the double has no device that could take time.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use hush_nvml::{Device, Script};
use hush_tests::cuda_double::{Counters, CudaDouble, Direction, Entry, Log};
use hush_tests::gpus::{GIB, UUID};
use serde_json::{Value, json};

const TOKENS: u64 = 100;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let model = PathBuf::from(arguments.next().context("usage: hush-cuda-counts MODEL_DIR [CASE...]")?);
    let mut cases: Vec<String> = arguments.collect();
    if cases.is_empty() {
        cases = ["1", "8", "32", "1x5", "8x5"].map(str::to_owned).to_vec();
    }
    for case in cases {
        println!("{}", counts(&model, &case)?);
    }
    Ok(())
}

fn counts(model: &std::path::Path, case: &str) -> Result<Value> {
    let device = Device { compute_capability: [9, 0], ..Device::new(UUID, 80 * GIB) };
    let Some(mut cuda) = CudaDouble::with(Script::of([device]))? else { bail!("the double is not built") };
    cuda.change(|script| {
        script.compute = false;
        // What is never computed is read as zeros, so that each search goes on to its last token.
        script.fresh_memory_byte = None;
    })?;
    let bench = std::env::current_exe()?.with_file_name("hush-bench");
    let mut command = Command::new(&bench);
    command.arg(format!("marked={case}")).arg(model).arg(cuda.onnxruntime()).args(["1", "1", &TOKENS.to_string()]);
    let output = command.envs(cuda.env()).env("HUSH_BENCH_CUDA", "0").output();
    let output = output.with_context(|| bench.display().to_string())?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let log = cuda.only_log()?;

    let (windows, beams) = case.split_once('x').unwrap_or((case, "1"));
    let (windows, beams): (u64, u64) = (windows.parse()?, beams.parse()?);
    let steps = Steps::of(&log)?;
    let window = log.after_marks("window").pop().context("no window was marked")?;
    let prompt = log.after_marks("prompt").pop().context("no prompt was marked")?;
    Ok(json!({
        "windows": windows,
        "beams": beams,
        "steps": steps.count,
        "graph_launches_per_step": steps.per_step(steps.counters.graph_launches.count),
        "operations_in_graph": steps.counters.graph_launches.bytes / steps.counters.graph_launches.count.max(1),
        "kernels_outside_graph_per_step": steps.per_step(steps.counters.kernels.total().count),
        "copies_to_device_per_step": steps.per_step(steps.counters.copied(Direction::HostToDevice).count),
        "copies_on_device_per_step": steps.per_step(steps.counters.copied(Direction::DeviceToDevice).count),
        "copies_to_host_per_step": steps.per_step(steps.counters.copied(Direction::DeviceToHost).count),
        "bytes_to_host_per_row": steps.per_step(steps.counters.copied(Direction::DeviceToHost).bytes) / (windows * beams) as f64,
        "synchronisations_per_step": steps.per_step(steps.counters.synchronisations()),
        "allocations": steps.counters.device_allocations.count + steps.counters.pinned_allocations.count,
        "host_microseconds_per_step": (steps.time / u32::try_from(steps.count.max(1))?).as_secs_f64() * 1e6,
        "window": part(&window),
        "prompt": part(&prompt),
    }))
}

/// The decode steps between the mark `together` and the next.
struct Steps {
    count: u64,
    counters: Counters,
    /// Median time from the end of a step to the end of the next, times their number.
    time: Duration,
}

impl Steps {
    fn of(log: &Log) -> Result<Self> {
        let counters = log.after_marks("together").pop().context("no steps were marked")?;
        let count = counters.graph_launches.count;
        let begin = log.entries.iter().rposition(|entry| &*entry.name == "mark:together").unwrap_or(0);
        let ends = log.entries.get(begin..).unwrap_or_default().iter().filter(|entry| &*entry.name == "sync:stream");
        let ends: Vec<&Entry> = ends.collect();
        let mut times: Vec<Duration> = ends.windows(2).map(|pair| pair[1].at.saturating_sub(pair[0].at)).collect();
        times.sort_unstable();
        let median = times.get(times.len() / 2).copied().unwrap_or_default();
        Ok(Self { count, counters, time: median * u32::try_from(count)? })
    }

    fn per_step(&self, count: u64) -> f64 {
        (count as f64 / self.count.max(1) as f64 * 100.0).round() / 100.0
    }
}

fn part(counters: &Counters) -> Value {
    json!({
        "operations": counters.device_operations(),
        "bytes_to_device": counters.copied(Direction::HostToDevice).bytes,
        "bytes_to_host": counters.copied(Direction::DeviceToHost).bytes,
        "synchronisations": counters.synchronisations(),
        "allocations": counters.device_allocations.count,
    })
}
