//! Random worlds and policies, small enough to be read when a case fails.

use std::time::Duration;

use hush_core::{
    GpuId, Labels, MemoryAmount, ModelKey, ModelPolicy, ModelSample, ObservedGpu, ObservedModel, PolicyKey,
    PolicyResidency, PolicySpec, PolicyUnload, ProcessEnding, ResidencyState, Selector, ServerName, WarmWindow, World,
};
use jiff::Timestamp;
use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;

pub const GIB: u64 = 1 << 30;
pub const STALE_AFTER: Duration = Duration::from_secs(15);

pub fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_795_000_000 + seconds).unwrap()
}

pub fn labels(app: &str) -> Labels {
    Labels::from([("app".to_owned(), app.to_owned())])
}

pub fn policy(name: &str, asks: PolicySpec) -> ModelPolicy {
    ModelPolicy {
        name: PolicyKey { namespace: Some("a".to_owned()), name: name.to_owned() },
        selector: Selector { labels: labels("whisper"), expressions: Vec::new() },
        namespace_selector: None,
        models: Vec::new(),
        dry_run: false,
        asks,
    }
}

pub fn gpu(uuid: &str, available_bytes: u64) -> ObservedGpu {
    ObservedGpu {
        uuid: GpuId::from(uuid),
        node: "n1".to_owned(),
        total_bytes: 24 * GIB,
        used_bytes: 24 * GIB - available_bytes,
        sample_age: Duration::ZERO,
        disputed: false,
    }
}

pub fn model(name: &str, gpu: &str) -> ObservedModel {
    ObservedModel {
        key: ModelKey { server: ServerName(format!("a/{name}")), model: "turbo".to_owned() },
        app: "whisper".to_owned(),
        labels: labels("whisper"),
        sample: ModelSample {
            gpu: Some(GpuId::from(gpu)),
            state: ResidencyState::Ready,
            idle: Duration::from_secs(60),
            idle_since: None,
            inflight: 0,
            queued: 0,
            vram_bytes: 2 * GIB,
            generation: 1,
            loaded_for: Duration::from_secs(3600),
            reload: Duration::from_secs(1),
            demand_bytes: 0,
            hold: Duration::ZERO,
            arrivals: None,
        },
        sample_age: Duration::ZERO,
        process_ending: ProcessEnding::Always,
        back_off: false,
    }
}

pub fn world(gpus: Vec<ObservedGpu>, models: Vec<ObservedModel>) -> World {
    World { stale_after: STALE_AFTER, gpus, models, namespaces: Default::default() }
}

fn amounts() -> impl Strategy<Value = MemoryAmount> {
    prop_oneof![(1..12_u64).prop_map(|gib| MemoryAmount::Bytes(gib * GIB)), (1..60_u8).prop_map(MemoryAmount::Percent)]
}

fn seconds(most: u64) -> impl Strategy<Value = Duration> {
    (0..=most).prop_map(Duration::from_secs)
}

pub fn modes() -> impl Strategy<Value = PolicyResidency> {
    prop_oneof![
        Just(PolicyResidency::Resident),
        Just(PolicyResidency::Idle),
        Just(PolicyResidency::Adaptive),
        Just(PolicyResidency::OnDemand)
    ]
}

fn unloads() -> impl Strategy<Value = PolicyUnload> {
    prop_oneof![Just(PolicyUnload::App), Just(PolicyUnload::Process)]
}

prop_compose! {
    /// A window that is open now, has just closed, or is open on another day.
    fn window()(
        minute in 0..60_u32, hour in prop_oneof![9..14_u32, 0..24_u32], days in prop_oneof![Just("*"), Just("1-5"), Just("6")],
        duration in 1..200_u64, zone in prop_oneof![Just("UTC"), Just("Europe/Berlin"), Just("Asia/Kolkata")], mode in modes(),
    ) -> WarmWindow {
        WarmWindow::new(&format!("{minute} {hour} * * {days}"), Duration::from_secs(duration * 60), zone, mode).unwrap()
    }
}

prop_compose! {
    pub fn asks()(
        residency in of(modes()),
        schedule in vec(window(), 0..2),
        idle_timeout in of(seconds(900)),
        min_resident in of(seconds(120)),
        hard_below in of(amounts()),
        soft_below in of(amounts()),
        grace_period in of(seconds(120)),
        min_reclaim in of(amounts()),
        (transition_period, priority, budget, min_loaded, drain_timeout, hold_after_eviction, unload) in
            (of(seconds(300)), of(-2..3_i32), of(amounts()), of(0..3_u32), of(seconds(60)), of(seconds(300)), of(unloads())),
    ) -> PolicySpec {
        PolicySpec {
            residency, idle_timeout, min_resident, schedule, hard_below, soft_below, grace_period,
            min_reclaim, transition_period, priority, budget, min_loaded, drain_timeout, hold_after_eviction,
            unload,
        }
    }
}

prop_compose! {
    pub fn any_policy()(name in 0..6_u8, cluster in any::<bool>(), app in 0..3_u8, dry_run in any::<bool>(), asks in asks()) -> ModelPolicy {
        let namespace = (!cluster).then(|| "a".to_owned());
        let labels = if app == 0 { Labels::new() } else { labels(["", "whisper", "vip"][usize::from(app)]) };
        ModelPolicy {
            name: PolicyKey { namespace, name: format!("p{name}") },
            selector: Selector { labels, expressions: Vec::new() },
            dry_run,
            ..policy("", asks)
        }
    }
}

/// Names are unique, as in a cluster.
pub fn policies() -> impl Strategy<Value = Vec<ModelPolicy>> {
    vec(any_policy(), 0..5).prop_map(|mut policies| {
        policies.sort_by(|a, b| a.name.cmp(&b.name));
        policies.dedup_by(|a, b| a.name == b.name);
        policies
    })
}

fn states() -> impl Strategy<Value = ResidencyState> {
    prop_oneof![
        8 => Just(ResidencyState::Ready),
        1 => Just(ResidencyState::Unloaded),
        1 => Just(ResidencyState::Loading),
        1 => Just(ResidencyState::Draining),
        1 => Just(ResidencyState::Unloading),
        2 => Just(ResidencyState::WaitingForMemory),
        1 => Just(ResidencyState::Failed),
    ]
}

prop_compose! {
    fn any_model(name: usize)(
        state in states(), on in 0..3_u8, vip in any::<bool>(), idle in seconds(1000), inflight in 0..2_u64,
        vram in 0..6_u64, loaded_for in seconds(300), reload in 0..5000_u64, demand in 0..12_u64, age in 0..20_u64,
    ) -> ObservedModel {
        let name = format!("w{name}");
        let sample = ModelSample {
            gpu: [None, Some(GpuId::from("GPU-a")), Some(GpuId::from("GPU-b"))][usize::from(on)].clone(),
            state, idle, inflight,
            vram_bytes: vram * GIB,
            loaded_for,
            reload: Duration::from_millis(reload),
            demand_bytes: if state == ResidencyState::WaitingForMemory { demand * GIB } else { 0 },
            ..model(&name, "").sample
        };

        ObservedModel {
            labels: labels(if vip { "vip" } else { "whisper" }),
            sample,
            sample_age: Duration::from_secs(age),
            ..model(&name, "")
        }
    }
}

prop_compose! {
    pub fn worlds()(
        available in (0..=24_u64, 0..=24_u64),
        ages in (0..20_u64, 0..20_u64),
        models in (0..8_usize).prop_flat_map(|count| (0..count).map(any_model).collect::<Vec<_>>()),
    ) -> World {
        let mut gpus = vec![gpu("GPU-a", available.0 * GIB), gpu("GPU-b", available.1 * GIB)];
        gpus[0].sample_age = Duration::from_secs(ages.0);
        gpus[1].sample_age = Duration::from_secs(ages.1);
        world(gpus, models)
    }
}
