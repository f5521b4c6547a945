//! Measures the controller for `make bench`: the time of one step of the core as the fleet grows, and the cost of adaptive
//! residency against fixed timeouts. Usage: `hush-controller-bench core | adaptive`.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use hush_controller::policies;
use hush_controller::simulate::trace::SplitMix64;
use hush_controller::simulate::{adaptive, measured};
use hush_core::{
    GpuId, Labels, ModelKey, ModelPolicy, ModelSample, ObservedGpu, ObservedModel, ProcessEnding, ResidencyState,
    ServerName, StepMemory, World,
};
use jiff::{SignedDuration, Timestamp};

const GIB: u64 = 1 << 30;
const POLICIES: u64 = 50;
const MODELS_PER_GPU: u64 = 4;
const RUNS: usize = 21;

fn main() -> anyhow::Result<ExitCode> {
    match std::env::args().nth(1).as_deref() {
        Some("core") => bench_core()?,
        Some("adaptive") => print_adaptive(),
        _ => {
            eprintln!("usage: hush-controller-bench core | adaptive");
            return Ok(ExitCode::FAILURE);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn bench_core() -> anyhow::Result<()> {
    let policies = policies()?;
    for models in [100, 1_000, 10_000] {
        let gpus = models / MODELS_PER_GPU;
        let world = world(models, gpus);
        let mut micros: Vec<u128> = Vec::new();
        let mut memory = StepMemory::default();

        for run in 0..RUNS {
            let now = Timestamp::from_second(1_795_000_000)? + SignedDuration::from_secs(i64::try_from(run)?);
            let start = Instant::now();
            let plan = hush_core::step(&mut memory, now, &world, &policies);
            micros.push(start.elapsed().as_micros());
            anyhow::ensure!(plan.gpus.len() as u64 == gpus, "the plan does not cover the world");
        }

        micros.sort_unstable();
        let ms = |micros: u128| micros as f64 / 1e3;
        println!(
            "models {models} gpus {gpus} policies {POLICIES} median_ms {:.2} most_ms {:.2}",
            ms(micros[RUNS / 2]),
            ms(micros[RUNS - 1])
        );
    }
    Ok(())
}

fn policies() -> anyhow::Result<Vec<ModelPolicy>> {
    let mut text = String::new();
    for n in 0..POLICIES {
        text += &format!(
            "---\napiVersion: gpu.hush.dev/v1beta1\nkind: ClusterGpuModelPolicy\nmetadata: {{name: p{n}}}\nspec:\n  \
             selector: {{matchLabels: {{tier: t{}}}}}\n  models: [\"m{}*\"]\n  residency: {{mode: Idle, idleTimeout: {}s, schedule: \
             [{{cron: \"0 8 * * 1-5\", duration: 10h, timeZone: Europe/Berlin, mode: Resident}}]}}\n  \
             pressure: {{hard: {{availableBelow: 2Gi}}, soft: {{availableBelow: 20%, gracePeriod: 10s}}, minReclaim: 1Gi}}\n  \
             priority: {}\n  budget: 60%\n  minLoaded: 2\n",
            n % 10,
            n % 5,
            60 + n * 10,
            n % 7,
        );
    }
    policies::parse(&text).map_err(|problems| anyhow::anyhow!("{problems:?}"))
}

/// Half of the GPUs are short of memory, so that every rule has work.
fn world(models: u64, gpus: u64) -> World {
    let mut random = SplitMix64(7);
    let gpu = |n: u64| ObservedGpu {
        uuid: GpuId(format!("GPU-{n}")),
        node: format!("n{}", n / 8),
        total_bytes: 24 * GIB,
        used_bytes: if n.is_multiple_of(2) { 23 * GIB } else { 12 * GIB },
        sample_age: Duration::ZERO,
        disputed: false,
    };

    let model = |n: u64, random: &mut SplitMix64| ObservedModel {
        key: ModelKey { server: ServerName(format!("ns{}/pod-{n}", n % 20)), model: format!("m{}-v3", n % 5) },
        app: "whisper".to_owned(),
        labels: Labels::from([("tier".to_owned(), format!("t{}", n % 10)), ("app".to_owned(), "whisper".to_owned())]),
        sample: ModelSample {
            gpu: Some(GpuId(format!("GPU-{}", n % gpus.max(1)))),
            state: ResidencyState::Ready,
            idle: Duration::from_secs(random.below(900)),
            idle_since: None,
            inflight: random.below(5) / 4,
            queued: 0,
            vram_bytes: (1 + random.below(4)) * GIB,
            generation: 1,
            loaded_for: Duration::from_secs(3600),
            reload: Duration::from_millis(500 + random.below(4000)),
            demand_bytes: 0,
            hold: Duration::ZERO,
            arrivals: None,
        },
        sample_age: Duration::ZERO,
        process_ending: ProcessEnding::Always,
        back_off: false,
    };
    World {
        stale_after: Duration::from_secs(15),
        gpus: (0..gpus).map(gpu).collect(),
        models: (0..models).map(|n| model(n, &mut random)).collect(),
        namespaces: Default::default(),
    }
}

fn print_adaptive() {
    for reload_ms in [500, 1500, 4000] {
        println!("load {reload_ms} ms; hours of holding the model, in brackets how many times the optimum");
        print!("{}", adaptive::compare(1, 28, Duration::from_millis(reload_ms)).table());
    }
    println!("load 1500 ms, through the controller, a decision every 5 s");
    print!("{}", measured::table(&measured::measure(1, 28, Duration::from_millis(1500))));
}
