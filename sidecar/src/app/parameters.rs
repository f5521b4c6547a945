//! Values that the user gives for models, such as the body of a launch.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::description::ParameterDescription;
use super::names::CanonicalName;

/// What the configuration says of an app's parameters.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AppParameters {
    /// For every model that says nothing else.
    pub common: Map<String, Value>,
    /// By the name of the model.
    pub by_model: BTreeMap<String, Map<String, Value>>,
}

/// The parameters of a description, and the values that are given for them.
#[derive(Clone, Debug, Default)]
pub(super) struct ParameterValues {
    declared: BTreeMap<String, ParameterDescription>,
    common: Map<String, Value>,
    /// By the canonical name of the model.
    by_model: BTreeMap<String, Map<String, Value>>,
}

impl ParameterValues {
    pub(super) fn declared(declared: BTreeMap<String, ParameterDescription>) -> Self {
        Self { declared, ..Self::default() }
    }

    /// An error names the parameter, and what is possible or wanted.
    pub(super) fn with(
        &self,
        given: AppParameters,
        objects: &BTreeSet<&str>,
        names: &CanonicalName,
    ) -> Result<Self, String> {
        let by_model: BTreeMap<_, _> =
            given.by_model.into_iter().map(|(model, values)| (names.apply(&model), values)).collect();

        for (name, value) in given.common.iter().chain(by_model.values().flatten()) {
            if !self.declared.contains_key(name) {
                let known = self.declared.keys().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
                let known = if known.is_empty() { "none".to_owned() } else { known };
                return Err(format!("the app has no parameter `{name}`; possible are: {known}"));
            }
            if objects.contains(name.as_str()) && !value.is_object() {
                return Err(format!("the parameter `{name}` must be an object, because its members join a body"));
            }
        }
        Ok(Self { declared: self.declared.clone(), common: given.common, by_model })
    }

    /// The required parameters that a model lacks.
    pub(super) fn missing(&self, canonical_model: &str) -> Vec<&str> {
        let values = self.of(canonical_model);
        let required = self.declared.iter().filter(|(_, parameter)| parameter.required);
        required.map(|(name, _)| name.as_str()).filter(|name| !values.contains_key(*name)).collect()
    }

    /// All values of a model: its own, else the common ones, else the defaults.
    pub(super) fn of(&self, canonical_model: &str) -> Map<String, Value> {
        let default = |(name, parameter): (&String, &ParameterDescription)| {
            parameter.default.as_ref().map(|value| (name.clone(), with_model(value, canonical_model)))
        };
        let mut values: Map<String, Value> = self.declared.iter().filter_map(default).collect();

        values.extend(self.common.clone());
        values.extend(self.by_model.get(canonical_model).cloned().unwrap_or_default());
        values
    }
}

fn with_model(default: &Value, model: &str) -> Value {
    match default {
        Value::String(text) => Value::String(text.replace("{model}", model)),
        other => other.clone(),
    }
}
