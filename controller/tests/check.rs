//! `hush-controller check`: what is wrong is said with its line and the fix.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test support, though no test itself")]

use std::io::Write;
use std::process::{Command, Output};

fn check(text: &str) -> Output {
    let mut file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    Command::new(env!("CARGO_BIN_EXE_hush-controller")).arg("check").arg(file.path()).output().unwrap()
}

fn policy(spec: &str) -> String {
    format!(
        "apiVersion: gpu.hush.dev/v1alpha1\nkind: GpuModelPolicy\nmetadata: {{name: p, namespace: a}}\nspec:\n  \
         selector: {{matchLabels: {{app: whisper}}}}\n{spec}"
    )
}

#[test]
fn a_good_file_is_valid() {
    let text = format!(
        "# two policies\n{}---\n{}",
        policy(
            "  residency: {mode: Idle, idleTimeout: 5m}\n  pressure: {soft: {availableBelow: 20%, gracePeriod: 90s}}\n"
        ),
        "apiVersion: gpu.hush.dev/v1alpha1\nkind: ClusterGpuModelPolicy\nmetadata: {name: floor}\nspec:\n  selector:\n    \
         matchExpressions: [{key: app, operator: Exists}]\n",
    );
    let output = check(&text);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("a/p is valid") && said.contains("/floor is valid"), "{said}");
}

#[test]
fn each_mistake_is_named_with_its_line() {
    // The spec begins at line 6.
    let cases = [
        ("  residency:\n    mode: Idle\n    idleTimeout: 5 minutes\n", 8, "idleTimeout"),
        ("  residency: {idleTimeout: -5m}\n", 6, "`5m`"),
        ("  pressure:\n    hard: {availableBelow: 8GB}\n", 7, "availableBelow"),
        ("  pressure:\n    hard: {availableBelow: 0}\n", 7, ""),
        ("  pressure: {hard: {availableBelow: 8Gi}, soft: {availableBelow: 4Gi}}\n", 6, "soft.availableBelow"),
        ("  residency:\n    schedule:\n    - {cron: 0 8 * *, duration: 1h, mode: Resident}\n", 8, "cron"),
        ("  residency:\n    schedule:\n    - {cron: 0 25 * * *, duration: 1h, mode: Resident}\n", 8, "cron"),
        (
            "  residency:\n    schedule:\n    - {cron: 0 8 * * *, duration: 1h, timeZone: Mars/Olympus, mode: Idle}\n",
            8,
            "time zone",
        ),
        ("  residency:\n    schedule:\n    - {cron: 0 8 * * *, duration: 30s, mode: Idle}\n", 8, "1m"),
        ("  priority: 5000000\n", 6, "priority"),
        ("  minLoaded: -1\n", 6, "minLoaded"),
        ("  idelTimeout: 5m\n", 6, "idelTimeout"),
        ("  mode: Dry\n", 6, "DryRun"),
        ("  budget: 101%\n", 6, "budget"),
    ];
    for (spec, line, part) in cases {
        let output = check(&policy(spec));
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success(), "{spec}");
        assert!(said.contains(&format!(".yaml:{line}: ")) && said.contains(part), "{spec}: {said}");
    }
}

#[test]
fn an_empty_selector_is_refused() {
    let text = policy("").replace("{matchLabels: {app: whisper}}", "{}");
    let said = String::from_utf8(check(&text).stderr).unwrap();
    assert!(said.contains(":5: ") && said.contains("an empty selector would select everything"), "{said}");
}

#[test]
fn the_second_document_has_its_own_lines() {
    let text = format!("{}---\n{}", policy(""), policy("  budget: much\n").replace("name: p", "name: q"));
    let said = String::from_utf8(check(&text).stderr).unwrap();
    assert!(said.contains(":12: "), "{said}");
}

#[test]
fn other_objects_and_names_used_twice_are_refused() {
    let said = String::from_utf8(check("apiVersion: v1\nkind: Pod\n").stderr).unwrap();
    assert!(said.contains(":1: ") && said.contains("apiVersion"), "{said}");
    let said = String::from_utf8(check(&format!("{}---\n{}", policy(""), policy(""))).stderr).unwrap();
    assert!(said.contains("two policies with the name `a/p`"), "{said}");
    assert!(!check("").status.success());
}
