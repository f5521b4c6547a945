//! What the engine asks of a CUDA device, counted on the double of the CUDA runtime (`tests/cuda`), which computes nothing
//! here. Prints one JSON line for each case.
//!
//! usage: hush-cuda-counts MODEL_DIR [CASE...]      a case is `WINDOWS` or `WINDOWSxBEAMS`; by default 1 8 32 1x5 8x5
//!        hush-cuda-counts MODEL_DIR load=GB_PER_S  from the start of the process to the first token, with copies to the
//!                                                  device that take so long
//!
//! Times are those of the host alone: the double has no device that could take time.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use hush_nvml::{Script, ScriptedDevice};
use hush_tests::cuda_double::{Counters, CudaDouble, Direction, DoubleLog, LogEntry};
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
        match case.strip_prefix("load=") {
            Some(speed) => println!("{}", load(&model, speed.parse().context("load=GB_PER_S")?)?),
            None => println!("{}", counts(&model, &case)?),
        }
    }
    Ok(())
}

/// The log of a run of `hush-bench`, on a device that computes nothing.
fn run(model: &Path, command: &str, copy_bytes_per_second: Option<u64>) -> Result<DoubleLog> {
    let device = ScriptedDevice { compute_capability: [9, 0], ..ScriptedDevice::new(UUID, 80 * GIB) };
    let Some(mut cuda) = CudaDouble::with(Script::of([device]))? else { bail!("the double is not built") };
    cuda.change(|script| {
        script.compute = false;
        // What is never computed is read as zeros, so that each search goes on to its last token.
        script.fresh_memory_byte = None;
        script.copy_bytes_per_second = copy_bytes_per_second;
    })?;
    let bench = std::env::current_exe()?.with_file_name("hush-bench");
    let mut child = Command::new(&bench);
    child.arg(command).arg(model).arg(cuda.onnxruntime()).args(["1", "1", &TOKENS.to_string()]);
    let output = child.envs(cuda.env()).env("HUSH_BENCH_CUDA", "0").output();
    let output = output.with_context(|| bench.display().to_string())?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    cuda.only_log()
}

/// How long a load takes, and what of it: milliseconds since the process was started.
fn load(model: &Path, gigabytes_per_second: f64) -> Result<Value> {
    let begun = monotonic_now();
    let log = run(model, "marked=1", Some((gigabytes_per_second * 1e9) as u64))?;
    let since = |at: Duration| at.saturating_sub(begun).as_secs_f64() * 1e3;
    let first =
        |wanted: &dyn Fn(&LogEntry) -> bool| log.entries.iter().find(|entry| wanted(entry)).map(|e| since(e.at));

    // One thread runs the sessions; others copy the weights, and open the decoder's session.
    let kernel = log.entries.iter().find(|entry| entry.name.starts_with("kernel")).context("no kernel was launched")?;
    let weights = log.entries.iter().filter(|entry| entry.name.starts_with("copy:H2D:pinned"));
    let weights: Vec<&LogEntry> = weights.filter(|entry| entry.thread != kernel.thread).collect();
    let prompt = log.entries.iter().position(|entry| &*entry.name == "mark:prompt").context("no prompt was marked")?;
    let after = log.entries.get(prompt..).unwrap_or_default().iter();
    let token = after.filter(|entry| entry.thread == kernel.thread).find(|entry| &*entry.name == "sync:stream");
    let file = std::fs::metadata(model.join("weights.bin"))?.len();
    Ok(json!({
        "gigabytes_per_second": gigabytes_per_second,
        "context_ms": first(&|entry| entry.name.starts_with("context")),
        "first_weights_ms": weights.first().map(|entry| since(entry.at)),
        "last_weights_ms": weights.last().map(|entry| since(entry.at)),
        "first_kernel_ms": first(&|entry| entry.name.starts_with("kernel")),
        "first_token_ms": token.map(|entry| since(entry.at)),
        "weights_copied_bytes": weights.iter().map(|entry| entry.bytes).sum::<u64>(),
        "weights_file_bytes": file,
    }))
}

/// The time on the clock that the double writes into its log.
fn monotonic_now() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0))
}

fn counts(model: &Path, case: &str) -> Result<Value> {
    let log = run(model, &format!("marked={case}"), None)?;

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
    fn of(log: &DoubleLog) -> Result<Self> {
        let counters = log.after_marks("together").pop().context("no steps were marked")?;
        let count = counters.graph_launches.count;
        let begin = log.entries.iter().rposition(|entry| &*entry.name == "mark:together").unwrap_or(0);
        let ends = log.entries.get(begin..).unwrap_or_default().iter().filter(|entry| &*entry.name == "sync:stream");
        let ends: Vec<&LogEntry> = ends.collect();
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
