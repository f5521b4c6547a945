//! The rules of the schema on the types, with the same messages.

use crate::amount::{Amount, AmountText};
use crate::cron;
use crate::duration::{self, DurationText};
use crate::invalid::{Invalid, Report};
use crate::policy::{
    CRON_MESSAGE, ClusterGpuModelPolicySpec, Common, GpuModelPolicySpec, IDLE_TIMEOUT_MESSAGE, Pressure, Residency,
    Window,
};
use crate::selector::{LabelOperator, LabelSelector};

impl GpuModelPolicySpec {
    /// Everything that is wrong; empty when nothing is.
    pub fn validate(&self) -> Vec<Invalid> {
        let mut found = Vec::new();
        common(&self.common(), &mut Report::new("spec", &mut found));
        found
    }
}

impl ClusterGpuModelPolicySpec {
    /// Everything that is wrong; empty when nothing is.
    pub fn validate(&self) -> Vec<Invalid> {
        let mut found = Vec::new();
        let mut report = Report::new("spec", &mut found);
        if let Some(namespaces) = &self.namespace_selector {
            selector(namespaces, &mut report.at("namespaceSelector"));
        }
        common(&self.common(), &mut report);
        found
    }
}

fn common(spec: &Common<'_>, report: &mut Report<'_>) {
    selector(spec.selector, &mut report.at("selector"));
    let mut models = report.at("models");
    models.require(spec.models.len() <= 32, "must have at most 32 items");
    for (index, model) in spec.models.iter().enumerate() {
        models.item(index).require((1..=128).contains(&model.chars().count()), "must have 1 to 128 characters");
    }
    if let Some(asked) = spec.residency {
        residency(asked, &mut report.at("residency"));
    }
    if let Some(asked) = spec.pressure {
        pressure(asked, &mut report.at("pressure"));
    }
    let bounded = spec.priority.is_none_or(|priority| (-1_000_000..=1_000_000).contains(&priority));
    report.at("priority").require(bounded, "must be between -1000000 and 1000000");
    let bounded = spec.min_loaded.is_none_or(|count| (0..=100_000).contains(&count));
    report.at("minLoaded").require(bounded, "must be between 0 and 100000");
    amount(spec.budget, &mut report.at("budget"));
    time(spec.drain_timeout, &mut report.at("drainTimeout"));
    time(spec.hold_after_eviction, &mut report.at("holdAfterEviction"));
}

fn selector(selector: &LabelSelector, report: &mut Report<'_>) {
    let labels = selector.match_labels.as_ref();
    let expressions = selector.match_expressions.as_deref().unwrap_or_default();
    report.require(
        labels.is_some_and(|labels| !labels.is_empty()) || !expressions.is_empty(),
        "must have at least one of `matchLabels` and `matchExpressions`: an empty selector would select everything",
    );
    let mut at_labels = report.at("matchLabels");
    at_labels.require(labels.is_none_or(|labels| labels.len() <= 16), "must have at most 16 entries");
    for (key, value) in labels.into_iter().flatten() {
        at_labels.at(key).require(value.chars().count() <= 63, "must have at most 63 characters");
    }
    let mut at_expressions = report.at("matchExpressions");
    at_expressions.require(expressions.len() <= 16, "must have at most 16 items");
    for (index, expression) in expressions.iter().enumerate() {
        let mut at = at_expressions.item(index);
        let values = expression.values.as_deref().unwrap_or_default();
        let wants_values = matches!(expression.operator, LabelOperator::In | LabelOperator::NotIn);
        at.require(
            wants_values != values.is_empty(),
            "must have `values` with `In` and `NotIn`, and none with `Exists` and `DoesNotExist`",
        );
        at.at("key").require((1..=317).contains(&expression.key.chars().count()), "must have 1 to 317 characters");
        at.at("values").require(values.len() <= 32, "must have at most 32 items");
        for (index, value) in values.iter().enumerate() {
            at.at("values").item(index).require(value.chars().count() <= 63, "must have at most 63 characters");
        }
    }
}

fn residency(residency: &Residency, report: &mut Report<'_>) {
    time(residency.idle_timeout.as_ref(), &mut report.at("idleTimeout"));
    let timeout = residency.idle_timeout.as_ref().and_then(DurationText::get);
    report.at("idleTimeout").require(timeout.is_none_or(|timeout| !timeout.is_zero()), IDLE_TIMEOUT_MESSAGE);
    time(residency.min_resident.as_ref(), &mut report.at("minResident"));
    let windows = residency.schedule.as_deref().unwrap_or_default();
    let mut schedule = report.at("schedule");
    schedule.require(windows.len() <= 16, "must have at most 16 items");
    for (index, asked) in windows.iter().enumerate() {
        window(asked, &mut schedule.item(index));
    }
}

fn window(window: &Window, report: &mut Report<'_>) {
    let fields = window.cron.split(' ').filter(|field| !field.is_empty()).count();
    let known = |c: char| c.is_ascii_alphanumeric() || "*/,#?- ".contains(c);
    let trimmed = window.cron.trim() == window.cron;
    report
        .at("cron")
        .require(fields == 5 && trimmed && window.cron.chars().all(known) && window.cron.len() <= 128, CRON_MESSAGE);
    report.at("cron").require(cron::in_range(&window.cron), cron::RANGES_MESSAGE);
    let at_least_a_minute = window.duration.get().is_some_and(|duration| duration.as_secs() >= 60);
    report.at("duration").require(at_least_a_minute, "must be a duration of at least `1m` and at most `168h`");
    if let Some(zone) = &window.time_zone {
        let known = |c: char| c.is_ascii_alphanumeric() || "_+-".contains(c);
        let parts: Vec<&str> = zone.split('/').collect();
        let good = parts.len() <= 4 && parts.iter().all(|part| !part.is_empty() && part.chars().all(known));
        report
            .at("timeZone")
            .require(good && zone.len() <= 64, "must name a time zone of the IANA database, such as `Europe/Berlin`");
    }
}

fn pressure(pressure: &Pressure, report: &mut Report<'_>) {
    let hard = pressure.hard.as_ref().map(|hard| &hard.available_below);
    let soft = pressure.soft.as_ref().map(|soft| &soft.available_below);
    amount(hard, &mut report.at("hard").at("availableBelow"));
    amount(soft, &mut report.at("soft").at("availableBelow"));
    let in_order = match (hard.and_then(AmountText::get), soft.and_then(AmountText::get)) {
        (Some(Amount::Bytes(hard)), Some(Amount::Bytes(soft))) => hard <= soft,
        (Some(Amount::Percent(hard)), Some(Amount::Percent(soft))) => hard <= soft,
        // Which is more depends on the card.
        _ => true,
    };
    report.require(in_order, "`soft.availableBelow` must be at least `hard.availableBelow`: soft pressure comes first");
    time(pressure.soft.as_ref().and_then(|soft| soft.grace_period.as_ref()), &mut report.at("soft").at("gracePeriod"));
    amount(pressure.min_reclaim.as_ref(), &mut report.at("minReclaim"));
    time(pressure.transition_period.as_ref(), &mut report.at("transitionPeriod"));
}

fn time(text: Option<&DurationText>, report: &mut Report<'_>) {
    report.require(text.is_none_or(|text| text.get().is_some()), duration::MESSAGE);
}

fn amount(text: Option<&AmountText>, report: &mut Report<'_>) {
    report.require(text.is_none_or(|text| text.get().is_some()), crate::amount::MESSAGE);
}
