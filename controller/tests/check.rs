//! `hush-controller check`: each problem is reported with its line and the fix.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test support, though no test itself")]

use std::io::Write;
use std::process::{Command, Output, Stdio};

fn check(text: &str) -> Output {
    let mut file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    Command::new(env!("CARGO_BIN_EXE_hush-controller")).arg("check").arg(file.path()).output().unwrap()
}

fn policy(spec: &str) -> String {
    format!(
        "apiVersion: gpu.hush.dev/v1beta1\nkind: GpuModelPolicy\nmetadata: {{name: p, namespace: a}}\nspec:\n  \
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
        "apiVersion: gpu.hush.dev/v1beta1\nkind: ClusterGpuModelPolicy\nmetadata: {name: floor}\nspec:\n  selector:\n    \
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

/// `check` with these arguments and this text on its standard input.
fn check_input(arguments: &[&str], text: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_hush-controller"))
        .arg("check")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn standard_input_is_read() {
    let output = check_input(&["-"], &policy(""));
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "standard input: a/p is valid\n");
    let output = check_input(&["-"], &policy("  budget: much\n"));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("standard input:6: ") && said.contains("budget"), "{said}");
}

/// As `kubectl get gpumodelpolicies --output yaml` writes them.
#[test]
fn lists_are_read_item_by_item() {
    let item = |name: &str, spec: &str| {
        format!(
            "- apiVersion: gpu.hush.dev/v1beta1\n  kind: GpuModelPolicy\n  metadata:\n    creationTimestamp: \
             \"2026-01-01T00:00:00Z\"\n    generation: 2\n    name: {name}\n    namespace: a\n    resourceVersion: \"5\"\n    \
             uid: 6c0c\n  spec:\n    selector: {{matchLabels: {{app: whisper}}}}\n{spec}  status:\n    conditions: []\n"
        )
    };

    let list = |items: &str| format!("apiVersion: v1\nitems:\n{items}kind: List\nmetadata:\n  resourceVersion: \"\"\n");
    let output = check_input(&["-"], &list(&(item("p", "") + &item("q", ""))));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && said.contains("a/p is valid") && said.contains("a/q is valid"), "{output:?}");

    // The first item has 13 lines behind the two of the list.
    let output = check_input(&["-"], &list(&(item("p", "") + &item("q", "    budget: much\n"))));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains(":27: ") && said.contains("budget"), "{said}");

    let typed = list(&item("p", "").replace("apiVersion: gpu.hush.dev/v1beta1\n  kind: GpuModelPolicy\n  ", ""))
        .replace("apiVersion: v1", "apiVersion: gpu.hush.dev/v1beta1")
        .replace("kind: List", "kind: GpuModelPolicyList");
    let output = check_input(&["-"], &typed);
    assert!(output.status.success(), "{output:?}");

    let said = String::from_utf8_lossy(&check_input(&["-"], &list(&item("p", "").repeat(2))).stderr).into_owned();
    assert!(said.contains("two policies with the name `a/p`"), "{said}");
    let pods = list("- apiVersion: v1\n  kind: Pod\n");
    let said = String::from_utf8_lossy(&check_input(&["-"], &pods).stderr).into_owned();
    assert!(said.contains(":3: ") && said.contains("apiVersion"), "{said}");
    let empty = "apiVersion: v1\nitems: []\nkind: List\n";
    let said = String::from_utf8_lossy(&check_input(&["-"], empty).stderr).into_owned();
    assert!(said.contains("there is no policy in it"), "{said}");
}

/// Texts whose check once took time and memory that grew with the square of their length.
#[test]
fn a_text_costs_no_more_than_its_length() {
    let wrong = |n: usize| {
        let head = format!("- {{apiVersion: gpu.hush.dev/v1beta1, kind: GpuModelPolicy, metadata: {{name: p{n}}}, ");
        format!("{head}spec: {{selector: {{}}, priority: 5000000}}}}\n")
    };

    let mistakes = format!("apiVersion: v1\nkind: List\nitems:\n{}", (0..4000).map(wrong).collect::<String>());
    let good = |n| policy("").replace("name: p", &format!("name: p{n}"));
    let policies = (0..2000).map(good).collect::<Vec<_>>().join("---\n");
    for (what, text, succeeds) in [
        ("empty documents", "---\n".repeat(200_000), false),
        ("a list of mistakes", mistakes, false),
        ("good policies", policies, true),
    ] {
        let begun = std::time::Instant::now();
        let output = check(&text);
        println!("{what}: {} bytes take {:?}", text.len(), begun.elapsed());
        assert_eq!(output.status.success(), succeeds, "{what}");
        assert!(begun.elapsed() < std::time::Duration::from_secs(20), "{what}: {:?}", begun.elapsed());
        assert!(output.stderr.len() < 100_000, "{what}: {} bytes of complaints", output.stderr.len());
    }
}

#[test]
fn a_file_that_is_checked_does_not_write_to_the_terminal() {
    let text = policy("  \"\\e]0;owned\\a\\u202e\": 1\n");
    let said = String::from_utf8(check(&text).stderr).unwrap();
    assert!(said.contains("]0;owned") && said.chars().all(|c| c == '\n' || hush_log::is_printable(c)), "{said:?}");
    let said = String::from_utf8(check(&policy("").replace("name: p,", "name: \"a\\nb\",")).stderr).unwrap();
    assert!(said.contains("`metadata.name` must have at most 253 characters that can all be printed"), "{said}");
}

#[test]
fn a_closed_output_is_not_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("p.yaml");
    std::fs::write(&file, policy("")).unwrap();
    let program = env!("CARGO_BIN_EXE_hush-controller");

    // Standard output and standard error are pipes without a reader.
    let script = format!(
        "({program} check {file} {file}; echo status $? >&3) 3>&1 >{pipe} 2>{pipe}",
        file = file.display(),
        pipe = "/dev/full"
    );
    let output = Command::new("sh").arg("-c").arg(&script).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("status 1"), "a full disk is a failure without a panic: {said}");
    let mut child =
        Command::new(program).arg("check").arg(&file).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.stderr.is_empty() && output.status.success(), "{output:?}");
}
