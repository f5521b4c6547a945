//! The worlds of `plan-cases`, as controllers of each scope observe them.

use std::collections::BTreeSet;
use std::path::Path;

use hush_controller::act::Gate;
use hush_controller::cluster::{Scope, ScopeGate};
use hush_controller::lease::Claim;
use hush_controller::world::{self, PlanInputs};
use hush_core::{Decision, Plan, ServerName, World, step};

fn scenes() -> Vec<(String, PlanInputs)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/plan-cases");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    files.map(|path| (path.display().to_string(), world::read(&path).unwrap())).collect()
}

fn plan(scene: &PlanInputs, world: &World) -> Plan {
    step(&mut scene.memory.clone(), scene.now, world, &scene.policies)
}

fn nodes(world: &World) -> BTreeSet<String> {
    world.gpus.iter().map(|gpu| gpu.node.clone()).collect()
}

/// What a controller for one node observes.
fn on_node(world: &World, node: &str) -> World {
    let gpus: Vec<_> = world.gpus.iter().filter(|gpu| gpu.node == node).cloned().collect();
    let here = |model: &&hush_core::ObservedModel| gpus.iter().any(|gpu| Some(&gpu.uuid) == model.sample.gpu.as_ref());
    let models = world.models.iter().filter(here).cloned().collect();
    World { gpus, models, ..world.clone() }
}

/// The part of a plan that a controller of this scope carries out.
fn part(scope: Scope, plan: &Plan) -> Vec<Decision> {
    let gate = ScopeGate { scope, claim: Claim::always_current(), wider: Vec::new() };
    let live = plan.decisions.iter().filter(|decision| !decision.dry_run);
    let part: Vec<Decision> = live.filter(|decision| gate.check(&decision.server).is_ok()).cloned().collect();
    let others = plan.decisions.iter().filter(|decision| !decision.dry_run && gate.is_for_another(decision)).count();
    assert_eq!(
        part.len() + others,
        plan.decisions.iter().filter(|d| !d.dry_run).count(),
        "each decision has one owner"
    );
    part
}

fn sorted(mut decisions: Vec<Decision>) -> Vec<Decision> {
    decisions.sort_by_key(Decision::key);
    decisions
}

#[test]
fn every_scope_comes_to_the_same_plan_and_each_decision_has_one_owner() {
    let mut decided = 0;
    for (name, scene) in scenes() {
        let whole = plan(&scene, &scene.world);
        let wide = sorted(part(Scope::Cluster, &whole));

        let (mut by_node, mut by_pod) = (Vec::new(), Vec::new());
        for node in nodes(&scene.world) {
            let world = on_node(&scene.world, &node);
            let plan = plan(&scene, &world);

            // The reasons why there are no other decisions are the same too.
            for gpu in &plan.gpus {
                assert!(whole.gpus.contains(gpu), "{name}: {gpu:?}");
            }

            for skip in &plan.skips {
                assert!(whole.skips.contains(skip), "{name}: {skip:?}");
            }

            by_node.extend(part(Scope::Node { node: node.clone() }, &plan));
            let servers: BTreeSet<&ServerName> = world.models.iter().map(|model| &model.key.server).collect();
            for server in servers {
                by_pod.extend(part(Scope::Pod { node: node.clone(), server: server.clone() }, &plan));
            }
        }

        assert_eq!(sorted(by_node), wide, "{name}");
        assert_eq!(sorted(by_pod), wide, "{name}");
        decided += wide.len();
    }

    assert!(decided >= 8, "the worlds decide something: {decided}");
}
