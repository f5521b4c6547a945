//! `hush-controller simulate`.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use hush_core::Labels;
use hush_log::{out, outln};

use super::SimulateArgs;
use crate::option_values::OutputFormat;
use crate::policies;
use crate::simulate::{self, Hardware, SimulationFigures, trace};

pub fn run(args: &SimulateArgs) -> anyhow::Result<ExitCode> {
    let requests = match trace::TraceKind::from_name(&args.trace) {
        Some(kind) => kind.generate(args.seed, u64::from(args.days) * 86_400),
        None => trace::read(args.trace.as_ref())?,
    };
    anyhow::ensure!(!requests.is_empty(), "{}: there is no request in it", args.trace);

    let hardware = Hardware {
        gpu_bytes: args.gpu_gib << 30,
        vram_bytes: args.vram_gib << 30,
        reload: Duration::from_millis(args.reload_ms),
    };
    let mut results = Vec::new();
    for path in &args.policy {
        let policies = policies::read_input(path)?;
        let labels = match &args.labels {
            Some(text) => parse_labels(text)?,
            None => policies.iter().flat_map(|policy| policy.selector.labels.clone()).collect(),
        };
        let namespace = policies.iter().find_map(|policy| policy.name.namespace.clone());
        let server = format!("{}/simulated", namespace.as_deref().unwrap_or("default"));

        let figures = simulate::replay(&requests, &policies, &labels, &server, &hardware);
        results.push((path.display().to_string(), figures));
    }

    match args.output {
        OutputFormat::Json => {
            let rows: Vec<_> = results.iter().map(|(policy, figures)| figures.to_json(policy)).collect();
            outln!("{}", serde_json::to_string_pretty(&rows).context("writing the figures")?);
        }
        OutputFormat::Text => out!("{}", SimulationFigures::table(&results)),
    }
    Ok(ExitCode::SUCCESS)
}

fn parse_labels(text: &str) -> anyhow::Result<Labels> {
    let parse_pair = |pair: &str| {
        let (key, value) = pair.split_once('=').with_context(|| format!("--labels: {pair:?} must be key=value"))?;
        Ok((key.to_owned(), value.to_owned()))
    };
    text.split(',').filter(|part| !part.is_empty()).map(parse_pair).collect()
}
