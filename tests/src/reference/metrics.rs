//! Every metric family of both programs, and the words that labels may have.

use std::fmt::Write;

use anyhow::Result;
use hush_contract::metrics::{APP_FAMILIES, FAMILIES, FamilySpec, PROGRAM_FAMILIES};
use hush_contract::{AppGovernance, AppMode, ModelState, UnloadReason, UnloadRefusal};
use hush_controller::metrics::{ControllerMetrics, RESOURCES, RESULTS};
use hush_core::{DecisionReason, PressureLevel, SkipReason};

use super::markdown::{code, table};
use super::page_head;

const TEXT: &str = "\
In Prometheus' text form, in seconds and bytes. What stands for the state of something is looked up at each scrape. Which
alerts are made of them: [runbooks](../runbooks.md).
";

pub fn page() -> Result<String> {
    let mut page = page_head("Metrics", TEXT);

    writeln!(page, "\n## All programs\n")?;
    page += &family_table(PROGRAM_FAMILIES);

    writeln!(
        page,
        "\n## hush-server and hush-sidecar\n\nAt `/metrics` of the operations listener (`--ops-listen`). Families of device"
    )?;
    writeln!(page, "memory are absent, not zero, where nothing measures it.\n")?;
    page += &family_table(FAMILIES);

    writeln!(page, "\n## hush-sidecar\n\nThe families above, and these of the app.\n")?;
    page += &family_table(APP_FAMILIES);

    writeln!(page, "\n## hush-controller\n\nAt `/metrics` of its own listener (`--listen`).\n")?;
    page += &family_table(ControllerMetrics::new()?.families());

    writeln!(page, "\n## Words\n")?;
    let words = |family: &str, label: &str, words: Vec<&str>| {
        vec![code(family), code(label), words.into_iter().map(code).collect::<Vec<_>>().join(", ")]
    };
    let rows = [
        words("hush_model_state", "state", ModelState::ALL.iter().map(|word| word.as_str()).collect()),
        words("hush_model_unloads_total", "reason", UnloadReason::ALL.iter().map(|word| word.as_str()).collect()),
        words(
            "hush_model_unload_refused_total",
            "reason",
            UnloadRefusal::ALL.iter().map(|word| word.as_str()).collect(),
        ),
        words("hush_app_info", "mode", AppMode::ALL.iter().map(|word| word.as_str()).collect()),
        words("hush_app_governed", "reason", AppGovernance::ALL.iter().map(|word| word.as_str()).collect()),
        words(
            "hush_controller_decisions_total",
            "reason",
            DecisionReason::ALL.iter().map(|word| word.as_str()).collect(),
        ),
        words("hush_controller_skipped_models", "reason", SkipReason::ALL.iter().map(|word| word.as_str()).collect()),
        words("hush_controller_api_requests_total", "resource", RESOURCES.to_vec()),
        words("hush_controller_api_requests_total", "result", RESULTS.to_vec()),
        words("hush_controller_gpus", "pressure", PressureLevel::ALL.iter().map(|word| word.as_str()).collect()),
    ];
    page += &table(&["family", "label", "words"], &rows);
    Ok(page)
}

fn family_table(families: &[FamilySpec]) -> String {
    let rows: Vec<_> = families
        .iter()
        .map(|family| {
            let labels = family.labels.iter().map(|label| code(label)).collect::<Vec<_>>().join(", ");
            vec![code(family.name), family.kind.as_str().to_owned(), labels, family.help.to_owned()]
        })
        .collect();

    table(&["family", "kind", "labels", "meaning"], &rows)
}
