//! Converts an object of the API to a policy of the core. It also checks what the definitions cannot: that a cron
//! expression is valid and that its time zone exists.

use hush_core as core;
use hush_crds::{
    Amount, AmountText, ClusterGpuModelPolicy, Common, DurationText, GpuModelPolicy, Invalid, LabelOperator,
    LabelSelector, Mode, ResidencyMode, Window,
};
use hush_log::is_printable;

const NAME_MAX_CHARS: usize = 253;
/// The validation refuses more windows; further ones are not parsed.
const WINDOWS_MAX: usize = 16;

/// A policy without a namespace is in `default`, as with `kubectl`.
pub fn namespaced(object: &GpuModelPolicy) -> Result<core::Policy, Vec<Invalid>> {
    let namespace = object.metadata.namespace.clone().unwrap_or_else(|| "default".to_owned());
    let mut problems = object.spec.validate();
    let name = policy_name(object.metadata.name.as_deref(), Some(namespace), &mut problems);

    build_policy(name, None, &object.spec.common(), problems)
}

pub fn cluster(object: &ClusterGpuModelPolicy) -> Result<core::Policy, Vec<Invalid>> {
    let mut problems = object.spec.validate();
    let name = policy_name(object.metadata.name.as_deref(), None, &mut problems);

    build_policy(name, object.spec.namespace_selector.as_ref(), &object.spec.common(), problems)
}

/// The API server checks names; a file may contain any.
fn policy_name(name: Option<&str>, namespace: Option<String>, problems: &mut Vec<Invalid>) -> core::PolicyName {
    let name = name.unwrap_or_default().to_owned();
    if name.is_empty() {
        problems.push(Invalid { path: "metadata.name".to_owned(), message: "must be set".to_owned() });
    }

    let is_valid = |text: &str| text.chars().count() <= NAME_MAX_CHARS && text.chars().all(is_printable);
    for (path, text) in [("metadata.name", Some(&name)), ("metadata.namespace", namespace.as_ref())] {
        if !text.is_none_or(|text| is_valid(text)) {
            let message = format!("must have at most {NAME_MAX_CHARS} characters that can all be printed");
            problems.push(Invalid { path: path.to_owned(), message });
        }
    }
    core::PolicyName { namespace, name }
}

fn build_policy(
    name: core::PolicyName,
    namespaces: Option<&LabelSelector>,
    spec: &Common<'_>,
    mut problems: Vec<Invalid>,
) -> Result<core::Policy, Vec<Invalid>> {
    let schedule = spec.residency.and_then(|residency| residency.schedule.as_deref()).unwrap_or_default();
    let windows = parse_windows(schedule, &mut problems);
    if !problems.is_empty() {
        return Err(problems);
    }

    let residency = spec.residency;
    let pressure = spec.pressure;
    let soft = pressure.and_then(|pressure| pressure.soft.as_ref());
    let asks = core::Asks {
        residency: residency.and_then(|residency| residency.mode).map(mode),
        idle_timeout: time(residency.and_then(|residency| residency.idle_timeout.as_ref())),
        min_resident: time(residency.and_then(|residency| residency.min_resident.as_ref())),
        schedule: windows,
        hard_below: amount(pressure.and_then(|pressure| pressure.hard.as_ref()).map(|hard| &hard.available_below)),
        soft_below: amount(soft.map(|soft| &soft.available_below)),
        grace_period: time(soft.and_then(|soft| soft.grace_period.as_ref())),
        min_reclaim: amount(pressure.and_then(|pressure| pressure.min_reclaim.as_ref())),
        transition_period: time(pressure.and_then(|pressure| pressure.transition_period.as_ref())),
        priority: spec.priority,
        budget: amount(spec.budget),
        // The validation has checked the range.
        min_loaded: spec.min_loaded.and_then(|count| u32::try_from(count).ok()),
        drain_timeout: time(spec.drain_timeout),
        hold_after_eviction: time(spec.hold_after_eviction),
    };

    Ok(core::Policy {
        name,
        selector: selector(spec.selector),
        namespace_selector: namespaces.map(selector),
        models: spec.models.iter().map(core::Glob::new).collect(),
        dry_run: spec.mode == Mode::DryRun,
        asks,
    })
}

fn parse_windows(schedule: &[Window], problems: &mut Vec<Invalid>) -> Vec<core::Window> {
    let mut windows = Vec::new();

    for (index, text) in schedule.iter().enumerate().take(WINDOWS_MAX) {
        match window(text) {
            Ok(window) => windows.push(window),
            Err(error) => {
                let field = if error == core::WindowError::TimeZone { "timeZone" } else { "cron" };
                let path = format!("spec.residency.schedule[{index}].{field}");
                if problems.iter().all(|invalid| invalid.path != path) {
                    problems.push(Invalid { path, message: error.to_string() });
                }
            }
        }
    }
    windows
}

fn window(window: &Window) -> Result<core::Window, core::WindowError> {
    let zone = window.time_zone.as_deref().unwrap_or("UTC");
    core::Window::new(&window.cron, window.duration.get().unwrap_or_default(), zone, mode(window.mode))
}

const fn mode(mode: ResidencyMode) -> core::Residency {
    match mode {
        ResidencyMode::Resident => core::Residency::Resident,
        ResidencyMode::Idle => core::Residency::Idle,
        ResidencyMode::OnDemand => core::Residency::OnDemand,
        ResidencyMode::Adaptive => core::Residency::Adaptive,
    }
}

fn time(text: Option<&DurationText>) -> Option<std::time::Duration> {
    text.and_then(DurationText::get)
}

fn amount(text: Option<&AmountText>) -> Option<core::Amount> {
    text.and_then(AmountText::get).map(|amount| match amount {
        Amount::Bytes(bytes) => core::Amount::Bytes(bytes),
        Amount::Percent(share) => core::Amount::Percent(share),
    })
}

fn selector(selector: &LabelSelector) -> core::Selector {
    let expression = |expression: &hush_crds::LabelExpression| core::Expression {
        key: expression.key.clone(),
        operator: match expression.operator {
            LabelOperator::In => core::Operator::In,
            LabelOperator::NotIn => core::Operator::NotIn,
            LabelOperator::Exists => core::Operator::Exists,
            LabelOperator::DoesNotExist => core::Operator::DoesNotExist,
        },
        values: expression.values.clone().unwrap_or_default(),
    };

    core::Selector {
        labels: selector.match_labels.clone().unwrap_or_default(),
        expressions: selector.match_expressions.iter().flatten().map(expression).collect(),
    }
}
