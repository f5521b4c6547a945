//! Converts an object of the API to a policy of the core. It also checks what the definitions cannot: that a cron
//! expression is valid and that its time zone exists.

use hush_core as core;
use hush_crds::{
    ClusterGpuModelPolicy, CommonSpec, GpuModelPolicy, InvalidField, LabelOperator, LabelSelector, PolicyMode,
    WarmWindowSpec,
};
use hush_log::is_printable;

use super::spec_fields::{self, to_core_mode};

const NAME_MAX_CHARS: usize = 253;
/// The validation refuses more windows; further ones are not parsed.
const WINDOWS_MAX: usize = 16;

/// A policy without a namespace is in `default`, as with `kubectl`.
pub fn namespaced(object: &GpuModelPolicy) -> Result<core::ModelPolicy, Vec<InvalidField>> {
    let namespace = object.metadata.namespace.clone().unwrap_or_else(|| "default".to_owned());
    let mut problems = object.spec.validate();
    let name = policy_name(object.metadata.name.as_deref(), Some(namespace), &mut problems);

    build_policy(name, None, &object.spec.common(), problems)
}

pub fn cluster(object: &ClusterGpuModelPolicy) -> Result<core::ModelPolicy, Vec<InvalidField>> {
    let mut problems = object.spec.validate();
    let name = policy_name(object.metadata.name.as_deref(), None, &mut problems);

    build_policy(name, object.spec.namespace_selector.as_ref(), &object.spec.common(), problems)
}

/// The API server checks names; a file may contain any.
fn policy_name(name: Option<&str>, namespace: Option<String>, problems: &mut Vec<InvalidField>) -> core::PolicyKey {
    let name = name.unwrap_or_default().to_owned();
    if name.is_empty() {
        problems.push(InvalidField { path: "metadata.name".to_owned(), message: "must be set".to_owned() });
    }

    let is_valid = |text: &str| text.chars().count() <= NAME_MAX_CHARS && text.chars().all(is_printable);
    for (path, text) in [("metadata.name", Some(&name)), ("metadata.namespace", namespace.as_ref())] {
        if !text.is_none_or(|text| is_valid(text)) {
            let message = format!("must have at most {NAME_MAX_CHARS} characters that can all be printed");
            problems.push(InvalidField { path: path.to_owned(), message });
        }
    }
    core::PolicyKey { namespace, name }
}

fn build_policy(
    name: core::PolicyKey,
    namespaces: Option<&LabelSelector>,
    spec: &CommonSpec<'_>,
    mut problems: Vec<InvalidField>,
) -> Result<core::ModelPolicy, Vec<InvalidField>> {
    let schedule = spec.residency.and_then(|residency| residency.schedule.as_deref()).unwrap_or_default();
    let windows = parse_windows(schedule, &mut problems);
    if !problems.is_empty() {
        return Err(problems);
    }

    let asks = spec_fields::read(spec)
        .map_err(|error| vec![InvalidField { path: "spec".to_owned(), message: format!("cannot be read: {error}") }])?;

    Ok(core::ModelPolicy {
        name,
        selector: selector(spec.selector),
        namespace_selector: namespaces.map(selector),
        models: spec.models.iter().map(core::Glob::new).collect(),
        dry_run: spec.mode == PolicyMode::DryRun,
        asks: core::PolicySpec { schedule: windows, ..asks },
    })
}

fn parse_windows(schedule: &[WarmWindowSpec], problems: &mut Vec<InvalidField>) -> Vec<core::WarmWindow> {
    let mut windows = Vec::new();

    for (index, text) in schedule.iter().enumerate().take(WINDOWS_MAX) {
        match window(text) {
            Ok(window) => windows.push(window),
            Err(error) => {
                let field = if error == core::WarmWindowError::TimeZone { "timeZone" } else { "cron" };
                let path = format!("spec.residency.schedule[{index}].{field}");
                if problems.iter().all(|invalid| invalid.path != path) {
                    problems.push(InvalidField { path, message: error.to_string() });
                }
            }
        }
    }
    windows
}

fn window(window: &WarmWindowSpec) -> Result<core::WarmWindow, core::WarmWindowError> {
    let zone = window.time_zone.as_deref().unwrap_or("UTC");
    core::WarmWindow::new(&window.cron, window.duration.get().unwrap_or_default(), zone, to_core_mode(window.mode))
}

fn selector(selector: &LabelSelector) -> core::Selector {
    let expression = |expression: &hush_crds::LabelExpression| core::SelectorExpression {
        key: expression.key.clone(),
        operator: match expression.operator {
            LabelOperator::In => core::SelectorOperator::In,
            LabelOperator::NotIn => core::SelectorOperator::NotIn,
            LabelOperator::Exists => core::SelectorOperator::Exists,
            LabelOperator::DoesNotExist => core::SelectorOperator::DoesNotExist,
        },
        values: expression.values.clone().unwrap_or_default(),
    };

    core::Selector {
        labels: selector.match_labels.clone().unwrap_or_default(),
        expressions: selector.match_expressions.iter().flatten().map(expression).collect(),
    }
}
