//! Reads and writes the merged fields of a policy, between the objects of the API and the core. The table of the core,
//! [`core::POLICY_FIELDS`], says which fields there are, how each is written, and where it stands in the object.

use std::fmt::Write;
use std::time::Duration;

use hush_core as core;
use hush_crds::{AmountText, CommonSpec, DurationText, ParsedAmount, ResidencyModeSpec, UnloadSpec};
use serde_json::{Map, Value};

/// Every field that the spec writes, without its windows. A value that is not valid is left out: the validation reports it.
pub fn read(spec: &CommonSpec<'_>) -> Result<core::PolicySpec, serde_json::Error> {
    let spec = serde_json::to_value(spec)?;
    Ok(core::PolicySpec::from_written(|path, kind| {
        let value = path.split('.').try_fold(&spec, |value, name| value.get(name))?;
        parse(value, kind)
    }))
}

/// An object with every field that the policy writes, without its windows.
pub fn write(spec: &core::PolicySpec) -> Result<Map<String, Value>, serde_json::Error> {
    let mut object = Map::new();
    for (path, value) in spec.written() {
        insert(&mut object, path, format_value(value)?);
    }
    Ok(object)
}

/// Puts a value at a path such as `residency.schedule`.
pub fn insert(object: &mut Map<String, Value>, path: &str, value: Value) {
    let Some((name, rest)) = path.split_once('.') else {
        object.insert(path.to_owned(), value);
        return;
    };

    let inner = object.entry(name).or_insert_with(|| Value::Object(Map::new()));
    if let Some(inner) = inner.as_object_mut() {
        insert(inner, rest, value);
    }
}

fn parse(value: &Value, kind: core::WrittenKind) -> Option<core::WrittenValue> {
    match kind {
        core::WrittenKind::Mode => {
            let mode: ResidencyModeSpec = serde_json::from_value(value.clone()).ok()?;
            Some(core::WrittenValue::Mode(to_core_mode(mode)))
        }
        core::WrittenKind::Unload => {
            let unload: UnloadSpec = serde_json::from_value(value.clone()).ok()?;
            Some(core::WrittenValue::Unload(match unload {
                UnloadSpec::App => core::PolicyUnload::App,
                UnloadSpec::Process => core::PolicyUnload::Process,
            }))
        }
        core::WrittenKind::Duration => DurationText(value.as_str()?.to_owned()).get().map(core::WrittenValue::Duration),
        core::WrittenKind::Amount => {
            AmountText(value.as_str()?.to_owned()).get().map(to_core_amount).map(core::WrittenValue::Amount)
        }
        core::WrittenKind::Number => value.as_i64().map(core::WrittenValue::Number),
    }
}

fn format_value(value: core::WrittenValue) -> Result<Value, serde_json::Error> {
    match value {
        core::WrittenValue::Mode(mode) => serde_json::to_value(from_core_mode(mode)),
        core::WrittenValue::Unload(unload) => serde_json::to_value(match unload {
            core::PolicyUnload::App => UnloadSpec::App,
            core::PolicyUnload::Process => UnloadSpec::Process,
        }),
        core::WrittenValue::Duration(duration) => serde_json::to_value(format_duration(duration)),
        core::WrittenValue::Amount(amount) => serde_json::to_value(format_amount(amount)),
        core::WrittenValue::Number(number) => Ok(Value::from(number)),
    }
}

pub const fn to_core_mode(mode: ResidencyModeSpec) -> core::PolicyResidency {
    match mode {
        ResidencyModeSpec::Resident => core::PolicyResidency::Resident,
        ResidencyModeSpec::Idle => core::PolicyResidency::Idle,
        ResidencyModeSpec::OnDemand => core::PolicyResidency::OnDemand,
        ResidencyModeSpec::Adaptive => core::PolicyResidency::Adaptive,
    }
}

pub const fn from_core_mode(mode: core::PolicyResidency) -> ResidencyModeSpec {
    match mode {
        core::PolicyResidency::Resident => ResidencyModeSpec::Resident,
        core::PolicyResidency::Idle => ResidencyModeSpec::Idle,
        core::PolicyResidency::OnDemand => ResidencyModeSpec::OnDemand,
        core::PolicyResidency::Adaptive => ResidencyModeSpec::Adaptive,
    }
}

const fn to_core_amount(amount: ParsedAmount) -> core::MemoryAmount {
    match amount {
        ParsedAmount::Bytes(bytes) => core::MemoryAmount::Bytes(bytes),
        ParsedAmount::Percent(share) => core::MemoryAmount::Percent(share),
    }
}

/// Bytes in the largest unit that divides them.
fn format_amount(amount: core::MemoryAmount) -> AmountText {
    let bytes = match amount {
        core::MemoryAmount::Percent(share) => return AmountText(format!("{share}%")),
        core::MemoryAmount::Bytes(bytes) => bytes,
    };

    let units = [("Ti", 40), ("Gi", 30), ("Mi", 20), ("Ki", 10), ("", 0)];
    let whole = units.into_iter().find(|(_, shift)| bytes % (1 << shift) == 0);
    let (unit, shift) = whole.unwrap_or(("", 0));
    AmountText(format!("{}{unit}", bytes >> shift))
}

/// Such as `1h30m`.
pub fn format_duration(duration: Duration) -> DurationText {
    let mut rest = duration.as_millis();
    let mut text = String::new();

    for (unit, millis) in [("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)] {
        if rest >= millis {
            // Writing to a string does not fail.
            let _ = write!(text, "{}{unit}", rest / millis);
            rest %= millis;
        }
    }
    DurationText(if text.is_empty() { "0s".to_owned() } else { text })
}
