//! Sidecars whose models share a GPU.

use std::time::Duration;

use hush_controller::control_loop::peer_actions::PEER_COMMAND_TIMEOUT;
use hush_core::{MemoryAmount, ModelPolicy, PolicySpec};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::shared_gpu::{GIB, SCRAPE_MS, ScopedController, SharedGpu, SharedGpuModel, play, policy};

const END_MS: i64 = 60_000;
pub const BELOW_GIB: u64 = 4;

fn sidecars(gpu: &SharedGpu, phases: &[Vec<i64>]) -> Vec<ScopedController> {
    (0..gpu.models.len())
        .map(|own| ScopedController::new(phases[own][..gpu.models.len()].to_vec(), Some(own)))
        .collect()
}

fn one_controller_for_all(gpu: &SharedGpu) -> Vec<ScopedController> {
    vec![ScopedController::new(vec![0; gpu.models.len()], None)]
}

fn sorted(mut indexes: Vec<usize>) -> Vec<usize> {
    indexes.sort_unstable();
    indexes
}

pub fn hard() -> ModelPolicy {
    policy(PolicySpec { hard_below: Some(MemoryAmount::Bytes(BELOW_GIB * GIB)), ..PolicySpec::default() })
}

fn soft() -> ModelPolicy {
    let grace_period = Some(Duration::from_secs(5));
    let min_resident = Some(Duration::ZERO);
    policy(PolicySpec {
        soft_below: Some(MemoryAmount::Bytes(BELOW_GIB * GIB)),
        grace_period,
        min_resident,
        ..PolicySpec::default()
    })
}

/// Two models of the same size of which one is enough; the first has been idle for `apart_ms` longer.
fn pair(apart_ms: i64) -> SharedGpu {
    let models = vec![SharedGpuModel::new(60_000 + apart_ms, 4, 500), SharedGpuModel::new(60_000, 4, 500)];
    SharedGpu { models, foreign_gib: 8, more_gib: 6, more_at_ms: 4500 }
}

/// Just before a step: neither sidecar sees yet what the other does in that step.
const AT_ONCE: i64 = 990;

/// Two sidecars that scrape both servers at the same time; the answers arrive after these delays.
fn answered_after(answer_delays: [[i64; 2]; 2]) -> Vec<ScopedController> {
    let sidecar =
        |own: usize| ScopedController::new(vec![AT_ONCE; 2], Some(own)).answer_delays(answer_delays[own].to_vec());
    vec![sidecar(0), sidecar(1)]
}

/// Servers that do not report since when they have been idle. If two models have been idle for the same time, to within
/// the time that an answer takes, each may be taken for the longer idle one by its own sidecar. Then both leave, once.
/// With one controller for both, one leaves.
#[test]
fn without_the_time_since_when_idleness_is_known_to_within_an_answer() {
    let silent = |apart_ms| {
        let mut gpu = pair(apart_ms);
        gpu.models.iter_mut().for_each(|model| model.reports_idle_since = false);
        gpu
    };

    let answer_delays = [[80, 20], [20, 80]];
    assert_eq!(
        play(silent(100), answered_after(answer_delays), &[hard()], END_MS),
        [0],
        "the difference is more than an answer takes"
    );

    let both = sorted(play(silent(10), answered_after(answer_delays), &[hard()], END_MS));
    assert_eq!(both, [0, 1], "the difference is less: each sidecar takes its own model for the longer idle one");

    // The other way round each sidecar waits for the other model, and after a while unloads its own model instead.
    let crossed = [[20, 80], [80, 20]];
    assert_eq!(sorted(play(silent(10), answered_after(crossed), &[hard()], END_MS)), [0, 1]);
    for answer_delays in [vec![80, 20], vec![20, 80]] {
        let one = ScopedController::new(vec![0, 0], None).answer_delays(answer_delays);
        assert_eq!(play(silent(10), vec![one], &[hard()], END_MS).len(), 1, "one for both");
    }
}

prop_compose! {
    /// Two or three models that differ in how long they have been idle, and another program that takes memory after a while.
    fn gpus()(
        sizes in vec((1..5_u64, 100..4000_i64), 2..4),
        order in Just((0..3_i64).collect::<Vec<_>>()).prop_shuffle(),
        free in 4..8_u64,
        more_gib in 0..8_u64,
        more_at_ms in 3000..6000_i64,
    ) -> SharedGpu {
        let models: Vec<SharedGpuModel> =
            sizes.iter().zip(&order).map(|((gib, ms), order)| SharedGpuModel::new(60_000 + 60_000 * order, *gib, *ms)).collect();
        let held: u64 = sizes.iter().map(|(gib, _)| gib).sum();
        SharedGpu { models, foreign_gib: (24 - held).saturating_sub(free), more_gib, more_at_ms }
    }
}

fn phases() -> impl Strategy<Value = Vec<Vec<i64>>> {
    vec(vec(0..SCRAPE_MS, 3), 3)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    /// However long each answer takes, and however little the models differ.
    #[test]
    fn only_the_longest_idle_model_leaves(
        apart_ms in prop_oneof![1..100_i64, 100..10_000_i64],
        answer_delays in vec(vec(0..100_i64, 2), 2),
    ) {
        let answer_delays = [[answer_delays[0][0], answer_delays[0][1]], [answer_delays[1][0], answer_delays[1][1]]];
        prop_assert_eq!(play(pair(apart_ms), answered_after(answer_delays), &[hard()], END_MS), [0]);
    }

    /// The same models leave, each once. A sidecar that samples only after the first model has left may never see the
    /// threshold crossed; then its model stays. If that leaves too little memory for a sidecar that has seen it, another
    /// model leaves instead.
    #[test]
    fn sidecars_do_together_what_one_controller_for_all_does(gpu in gpus(), phases in phases(), soft_pressure in any::<bool>()) {
        let policies = [if soft_pressure { soft() } else { hard() }];
        let wide = sorted(play(gpu.clone(), one_controller_for_all(&gpu), &policies, END_MS));
        let narrow = sorted(play(gpu.clone(), sidecars(&gpu, &phases), &policies, END_MS));
        if narrow != wide {
            let stay = (0..gpu.models.len()).filter(|index| !narrow.contains(index));
            let held = gpu.foreign_gib + gpu.more_gib + stay.map(|index| gpu.models[index].gib).sum::<u64>();
            prop_assert!(24 - held >= BELOW_GIB, "{narrow:?} of {wide:?}: still short of memory");
            prop_assert!(narrow.len() <= wide.len(), "{narrow:?} of {wide:?}: more than are needed");
            prop_assert!(narrow.iter().any(|index| wide.contains(index)), "{narrow:?} of {wide:?}: others began");
            prop_assert!(narrow.windows(2).all(|two| two[0] < two[1]), "{narrow:?}: twice");
        }
    }

    /// The model that should leave first has no controller: the next model leaves, after a while.
    #[test]
    fn the_next_model_leaves_for_one_without_a_controller(mut gpu in gpus(), phases in phases()) {
        let policies = [hard()];
        let wide = play(gpu.clone(), one_controller_for_all(&gpu), &policies, END_MS);
        let Some(&first) = wide.first() else { return Ok(()) };
        gpu.models[first].has_no_controller = true;
        let patience = i64::try_from(PEER_COMMAND_TIMEOUT.as_millis()).unwrap();

        let soon = play(gpu.clone(), sidecars(&gpu, &phases), &policies, gpu.more_at_ms + patience / 2);
        let others_in_plan = wide.len() > 1;
        prop_assert!(others_in_plan || soon.is_empty(), "{soon:?}");

        let narrow = play(gpu.clone(), sidecars(&gpu, &phases), &policies, END_MS);
        prop_assert!(!narrow.is_empty() && !narrow.contains(&first), "{narrow:?}");
        let all = narrow.len();
        let mut once = sorted(narrow);
        once.dedup();
        prop_assert_eq!(once.len(), all);
    }

    /// A person unloads enough in the second in which memory becomes short.
    #[test]
    fn a_manual_unload_is_waited_for(mut gpu in gpus(), phases in phases(), lead_ms in 0..800_i64) {
        let policies = [hard()];
        let wide = play(gpu.clone(), one_controller_for_all(&gpu), &policies, END_MS);
        let [only] = wide[..] else { return Ok(()) };
        gpu.models[only].manual_unload_ms = Some(gpu.more_at_ms - lead_ms);
        for controllers in [one_controller_for_all(&gpu), sidecars(&gpu, &phases)] {
            prop_assert_eq!(play(gpu.clone(), controllers, &policies, END_MS), Vec::<usize>::new());
        }
    }
}
