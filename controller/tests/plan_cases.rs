//! Worlds and the plans that they must give: every file of `plan-cases`, given to the program.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test support, though no test itself")]

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Map, Value};

const QUANTITIES: [&str; 2] = ["available", "target"];

fn cases() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/plan-cases");
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn plan(world: &Path) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_hush-controller"))
        .args(["plan", "-o", "json", "--world"])
        .arg(world)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}: {}", world.display(), String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn expectation(world: &Path) -> Map<String, Value> {
    let text = std::fs::read_to_string(world).unwrap();
    let mut file: Map<String, Value> = serde_yaml::from_str(&text).unwrap();
    file.remove("expect").and_then(|expect| expect.as_object().cloned()).expect("no `expect`")
}

/// Whether every expected field is there with its value; other fields may have any value.
fn matches_expectation(expected: &Value, got: &Value) -> bool {
    let Some(fields) = expected.as_object() else { return false };
    fields.iter().all(|(name, value)| {
        let amount = value.as_str().filter(|_| QUANTITIES.contains(&name.as_str())).and_then(hush_crds::quantity);
        amount.map_or_else(|| got.get(name) == Some(value), |bytes| got[name].as_u64() == Some(bytes))
    })
}

fn list(value: Option<&Value>) -> &[Value] {
    value.and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

#[test]
fn every_world_gives_its_plan() {
    let mut failures = Vec::new();
    for case in cases() {
        let (expect, plan) = (expectation(&case), plan(&case));
        let mut wrong = Vec::new();
        let (expected, got) = (list(expect.get("decisions")), list(plan.get("decisions")));
        if expected.len() != got.len() || !expected.iter().zip(got).all(|(e, g)| matches_expectation(e, g)) {
            wrong.push("decisions");
        }

        for part in ["skips", "gpus", "rules", "models"] {
            let got = list(plan.get(part));
            if !list(expect.get(part)).iter().all(|expected| got.iter().any(|got| matches_expectation(expected, got))) {
                wrong.push(part);
            }
        }

        if !wrong.is_empty() {
            failures.push(format!("{}: {wrong:?}\n{}", case.display(), serde_json::to_string_pretty(&plan).unwrap()));
        }
    }

    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(cases().len() >= 12);
}

#[test]
fn every_model_is_explained_once() {
    for case in cases() {
        let plan = plan(&case);
        let named = |part: &str| -> std::collections::BTreeSet<(String, String)> {
            let name = |entry: &Value| (entry["server"].to_string(), entry["model"].to_string());
            list(plan.get(part)).iter().map(name).collect()
        };

        assert_eq!(named("models"), &named("decisions") | &named("skips"), "{}", case.display());
        assert_eq!(named("models").len(), list(plan.get("models")).len(), "{}", case.display());

        let ungoverned = |skip: &&Value| skip["reason"] == "NotGoverned";
        let without = list(plan.get("models")).iter().filter(|model| model.get("rules").is_none()).count();
        assert_eq!(without, list(plan.get("skips")).iter().filter(ungoverned).count(), "{}", case.display());

        let known = list(plan.get("rules")).len() as u64;
        assert!(list(plan.get("models")).iter().filter_map(|model| model.get("rules")?.as_u64()).all(|at| at < known));
    }
}

#[test]
fn the_order_of_everything_given_does_not_matter() {
    for case in cases() {
        let text = std::fs::read_to_string(&case).unwrap();
        let mut file: Map<String, Value> = serde_yaml::from_str(&text).unwrap();
        for part in ["gpus", "models", "policies"] {
            if let Some(list) = file.get_mut(part).and_then(Value::as_array_mut) {
                list.reverse();
            }
        }

        let reversed = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(reversed.path(), serde_yaml::to_string(&file).unwrap()).unwrap();
        assert_eq!(plan(&case), plan(reversed.path()), "{}", case.display());
    }
}
