//! The rules of the schema, applied to the types, with the same messages.

use crate::amount::{AmountText, ParsedAmount};
use crate::cron;
use crate::duration::{self, DurationText};
use crate::invalid::{FieldChecker, InvalidField};
use crate::policy::{
    CRON_MESSAGE, ClusterGpuModelPolicySpec, CommonSpec, GpuModelPolicySpec, IDLE_TIMEOUT_MESSAGE, PressureSpec,
    ResidencySpec, WarmWindowSpec,
};
use crate::selector::{LabelOperator, LabelSelector};

impl GpuModelPolicySpec {
    /// Every field that is not valid.
    pub fn validate(&self) -> Vec<InvalidField> {
        let mut found = Vec::new();
        check_common(&self.common(), &mut FieldChecker::new("spec", &mut found));
        found
    }
}

impl ClusterGpuModelPolicySpec {
    /// Every field that is not valid.
    pub fn validate(&self) -> Vec<InvalidField> {
        let mut found = Vec::new();
        let mut checker = FieldChecker::new("spec", &mut found);

        if let Some(namespaces) = &self.namespace_selector {
            check_selector(namespaces, &mut checker.at("namespaceSelector"));
        }

        check_common(&self.common(), &mut checker);
        found
    }
}

fn check_common(spec: &CommonSpec<'_>, checker: &mut FieldChecker<'_>) {
    check_selector(spec.selector, &mut checker.at("selector"));

    let mut models = checker.at("models");
    models.require(spec.models.len() <= 32, "must have at most 32 items");
    for (index, model) in spec.models.iter().enumerate() {
        models.item(index).require((1..=128).contains(&model.chars().count()), "must have 1 to 128 characters");
    }

    if let Some(written) = spec.residency {
        check_residency(written, &mut checker.at("residency"));
    }

    if let Some(written) = spec.pressure {
        check_pressure(written, &mut checker.at("pressure"));
    }

    let priority_is_bounded = spec.priority.is_none_or(|priority| (-1_000_000..=1_000_000).contains(&priority));
    checker.at("priority").require(priority_is_bounded, "must be between -1000000 and 1000000");
    let count_is_bounded = spec.min_loaded.is_none_or(|count| (0..=100_000).contains(&count));
    checker.at("minLoaded").require(count_is_bounded, "must be between 0 and 100000");

    check_amount(spec.budget, &mut checker.at("budget"));
    check_duration(spec.drain_timeout, &mut checker.at("drainTimeout"));
    check_duration(spec.hold_after_eviction, &mut checker.at("holdAfterEviction"));
}

fn check_selector(selector: &LabelSelector, checker: &mut FieldChecker<'_>) {
    let labels = selector.match_labels.as_ref();
    let expressions = selector.match_expressions.as_deref().unwrap_or_default();
    checker.require(
        labels.is_some_and(|labels| !labels.is_empty()) || !expressions.is_empty(),
        "must have at least one of `matchLabels` and `matchExpressions`: an empty selector would select everything",
    );

    let mut at_labels = checker.at("matchLabels");
    at_labels.require(labels.is_none_or(|labels| labels.len() <= 16), "must have at most 16 entries");
    for (key, value) in labels.into_iter().flatten() {
        at_labels.at(key).require(value.chars().count() <= 63, "must have at most 63 characters");
    }

    let mut at_expressions = checker.at("matchExpressions");
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

fn check_residency(residency: &ResidencySpec, checker: &mut FieldChecker<'_>) {
    check_duration(residency.idle_timeout.as_ref(), &mut checker.at("idleTimeout"));
    let timeout = residency.idle_timeout.as_ref().and_then(DurationText::get);
    checker.at("idleTimeout").require(timeout.is_none_or(|timeout| !timeout.is_zero()), IDLE_TIMEOUT_MESSAGE);
    check_duration(residency.min_resident.as_ref(), &mut checker.at("minResident"));

    let windows = residency.schedule.as_deref().unwrap_or_default();
    let mut schedule = checker.at("schedule");
    schedule.require(windows.len() <= 16, "must have at most 16 items");
    for (index, window) in windows.iter().enumerate() {
        check_window(window, &mut schedule.item(index));
    }
}

fn check_window(window: &WarmWindowSpec, checker: &mut FieldChecker<'_>) {
    let fields = window.cron.split(' ').filter(|field| !field.is_empty()).count();
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "*/,#?- ".contains(c);
    let is_trimmed = window.cron.trim() == window.cron;
    let is_cron = fields == 5 && is_trimmed && window.cron.chars().all(is_allowed) && window.cron.len() <= 128;
    checker.at("cron").require(is_cron, CRON_MESSAGE);
    checker.at("cron").require(cron::is_in_range(&window.cron), cron::RANGES_MESSAGE);

    let at_least_a_minute = window.duration.get().is_some_and(|duration| duration.as_secs() >= 60);
    checker.at("duration").require(at_least_a_minute, "must be a duration of at least `1m` and at most `168h`");

    if let Some(zone) = &window.time_zone {
        let is_allowed = |c: char| c.is_ascii_alphanumeric() || "_+-".contains(c);
        let parts: Vec<&str> = zone.split('/').collect();
        let is_zone = parts.len() <= 4 && parts.iter().all(|part| !part.is_empty() && part.chars().all(is_allowed));
        checker.at("timeZone").require(
            is_zone && zone.len() <= 64,
            "must name a time zone of the IANA database, such as `Europe/Berlin`",
        );
    }
}

fn check_pressure(pressure: &PressureSpec, checker: &mut FieldChecker<'_>) {
    let hard = pressure.hard.as_ref().map(|hard| &hard.available_below);
    let soft = pressure.soft.as_ref().map(|soft| &soft.available_below);
    check_amount(hard, &mut checker.at("hard").at("availableBelow"));
    check_amount(soft, &mut checker.at("soft").at("availableBelow"));

    let in_order = match (hard.and_then(AmountText::get), soft.and_then(AmountText::get)) {
        (Some(ParsedAmount::Bytes(hard)), Some(ParsedAmount::Bytes(soft))) => hard <= soft,
        (Some(ParsedAmount::Percent(hard)), Some(ParsedAmount::Percent(soft))) => hard <= soft,
        // Which of a quantity and a share is more depends on the GPU.
        _ => true,
    };

    checker
        .require(in_order, "`soft.availableBelow` must be at least `hard.availableBelow`: soft pressure comes first");
    check_duration(
        pressure.soft.as_ref().and_then(|soft| soft.grace_period.as_ref()),
        &mut checker.at("soft").at("gracePeriod"),
    );
    check_amount(pressure.min_reclaim.as_ref(), &mut checker.at("minReclaim"));
    check_duration(pressure.transition_period.as_ref(), &mut checker.at("transitionPeriod"));
}

fn check_duration(text: Option<&DurationText>, checker: &mut FieldChecker<'_>) {
    checker.require(text.is_none_or(|text| text.get().is_some()), duration::MESSAGE);
}

fn check_amount(text: Option<&AmountText>, checker: &mut FieldChecker<'_>) {
    checker.require(text.is_none_or(|text| text.get().is_some()), crate::amount::MESSAGE);
}
