//! The plan of some policies: the rules, applied to one GPU after the other.

use std::collections::{HashMap, HashSet};

use jiff::Timestamp;

use crate::adaptive::Learners;
use crate::command_log::CommandLog;
use crate::explain::explain;
use crate::gpu_context::GpuContext;
use crate::model_table::ModelTable;
use crate::plan::{Plan, Skip, SkipReason};
use crate::policy::ModelPolicy;
use crate::pressure_timers::PressureTimers;
use crate::rules::{budget, idle, make_room, pressure, warm};
use crate::step_context::{PendingSkip, StepContext};
use crate::time::sampled_at;
use crate::world::{GpuId, ModelKey, ObservedGpu, ResidencyState, World};

/// What a plan is made from, beside the policies and the timers.
#[derive(Clone, Copy)]
pub struct EvaluationInput<'a> {
    pub now: Timestamp,
    pub world: &'a World,
    pub commands: &'a CommandLog,
    pub learners: &'a Learners,
    /// The plan also says what governs each model.
    pub explained: bool,
}

/// The plan of these policies, none of which is treated as a dry run. `leaving_last`: models that leave only where the
/// others are not enough.
pub fn evaluate(
    input: EvaluationInput<'_>,
    policies: &[&ModelPolicy],
    timers: &mut PressureTimers,
    leaving_last: &HashSet<ModelKey>,
) -> Plan {
    let EvaluationInput { now, world, commands, learners, explained } = input;
    let table = ModelTable::new(now, world, policies, commands, leaving_last);
    let mut step = StepContext::new(now, world, table, learners);

    let trusted = world.gpus.iter().filter(|gpu| gpu.is_trusted(world.stale_after));
    timers.freeze_all_but(&trusted.map(|gpu| &gpu.uuid).collect());

    let unloading = commands.unloading_gpus();
    for GpuGroup { id, gpu, models } in governed_by_gpu(&mut step) {
        let awaiting = gpu.is_some_and(|gpu| {
            let used = commands.is_gpu_used(&gpu.uuid, sampled_at(now, gpu.sample_age));
            used || unloading.contains(&gpu.uuid)
        });
        let mut context = GpuContext::new(&mut step.table, id, gpu, models, awaiting, world.stale_after);

        budget::apply(&mut step, &mut context);
        idle::apply(&mut step, &mut context);
        pressure::apply(&mut step, &mut context, timers);
        make_room::apply(&mut step, &mut context);
        warm::apply(&mut step, &mut context);
    }

    let (rules, models) = if explained { explain(&step) } else { (Vec::new(), Vec::new()) };
    let skips = skips(&mut step);
    Plan { decisions: step.decisions, skips, gpus: step.gpus, rules, models }
}

/// A GPU, and the indexes of the governed models on it. `id` is `None` for the models that are on no GPU.
struct GpuGroup<'a> {
    id: Option<&'a GpuId>,
    gpu: Option<&'a ObservedGpu>,
    models: Vec<usize>,
}

/// In the order of the ids of the GPUs.
fn governed_by_gpu<'a>(step: &mut StepContext<'a>) -> Vec<GpuGroup<'a>> {
    let world = step.world;
    let mut groups: Vec<GpuGroup<'a>> = Vec::with_capacity(world.gpus.len());
    let mut known: HashMap<Option<&GpuId>, usize> = HashMap::with_capacity(world.gpus.len());
    let mut group_of = |groups: &mut Vec<GpuGroup<'a>>, id: Option<&'a GpuId>| {
        *known.entry(id).or_insert_with(|| {
            groups.push(GpuGroup { id, gpu: None, models: Vec::new() });
            groups.len() - 1
        })
    };

    for gpu in &world.gpus {
        let at = group_of(&mut groups, Some(&gpu.uuid));
        groups[at].gpu = Some(gpu);
    }

    for index in 0..step.table.entries.len() {
        if is_governed(step, index) {
            let at = group_of(&mut groups, step.entry(index).model.sample.gpu.as_ref());
            groups[at].models.push(index);
        }
    }

    groups.sort_unstable_by_key(|group| group.id);
    groups
}

/// Whether a policy selects the model. Notes why no rule can decide on it now, if that is so.
fn is_governed(step: &mut StepContext<'_>, index: usize) -> bool {
    let entry = step.entry(index);
    let state = entry.model.sample.state;
    if entry.rules.is_none() {
        step.skip(index, SkipReason::NotGoverned, "no policy selects it");
        return false;
    }

    if !entry.fresh {
        step.skip(index, SkipReason::MetricsStale, "its sample is too old");
    } else if entry.model.back_off {
        step.skip(index, SkipReason::BackOff, "commands to its server failed lately");
    } else if entry.pending {
        step.skip(index, SkipReason::Transition, "a command for it is under way");
    } else if matches!(
        state,
        ResidencyState::Draining | ResidencyState::Unloading | ResidencyState::Loading | ResidencyState::Failed
    ) {
        step.skip(index, SkipReason::Transition, format!("{state:?}"));
    }
    true
}

/// A model that a decision names needs no reason; of several skips of a model with the same reason one is kept.
fn skips(step: &mut StepContext<'_>) -> Vec<Skip> {
    let mut skips = std::mem::take(&mut step.skips);
    skips.retain(|skip| !step.decided[skip.index]);
    skips.sort_unstable();
    skips.dedup_by(|a, b| (a.index, a.reason) == (b.index, b.reason));

    let named = |PendingSkip { index, reason, detail }| {
        let ModelKey { server, model } = step.entry(index).model.key.clone();
        Skip { server, model, reason, detail }
    };

    skips.into_iter().map(named).collect()
}
