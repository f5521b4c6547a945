//! The words for a JSON schema, of OpenAPI or of a definition of Kubernetes.

use serde_json::{Map, Value};

use super::markdown::{code, marked};

/// Up to this many values are listed; of more, their number is shown.
const LISTED: usize = 16;

fn text<'a>(schema: &'a Value, key: &str) -> &'a str {
    schema[key].as_str().unwrap_or_default()
}

fn list<'a>(schema: &'a Value, key: &str) -> &'a [Value] {
    schema[key].as_array().map(Vec::as_slice).unwrap_or_default()
}

/// A value as JSON writes it, texts without quotes.
pub fn literal(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// The type of a value. `link` makes a link of the name of another schema.
pub fn type_text(schema: &Value, link: &dyn Fn(&str) -> String) -> String {
    if let Some(target) = schema["$ref"].as_str() {
        return link(target.rsplit('/').next().unwrap_or(target));
    }

    let choices: Vec<&Value> = ["oneOf", "anyOf", "allOf"].iter().flat_map(|key| list(schema, key)).collect();
    let choices: Vec<&Value> = choices.into_iter().filter(|choice| choice["type"] != "null").collect();
    if !choices.is_empty() {
        let between = if choices.iter().any(|choice| choice["$ref"].is_string()) { " or " } else { ", " };
        return choices.iter().map(|choice| type_text(choice, link)).collect::<Vec<_>>().join(between);
    }

    if let Some(value) = schema.get("const") {
        return code(&literal(value));
    }
    let values: Vec<String> =
        list(schema, "enum").iter().filter(|value| !value.is_null()).map(|value| code(&literal(value))).collect();
    match values.len() {
        0 => {}
        count if count > LISTED => return format!("one of {count} words, {} to {}", values[0], values[count - 1]),
        _ => return values.join(", "),
    }

    match type_name(schema) {
        "array" => format!("list of {}", type_text(&schema["items"], link)),
        "object" if schema["additionalProperties"].is_object() => "map".to_owned(),
        "string" if text(schema, "format") == "binary" => "file".to_owned(),
        "string" if text(schema, "format") == "date-time" => "time".to_owned(),
        "string" => "text".to_owned(),
        "integer" => "whole number".to_owned(),
        other => other.to_owned(),
    }
}

/// The first type that is not null.
fn type_name(schema: &Value) -> &str {
    match &schema["type"] {
        Value::Array(types) => types.iter().filter_map(Value::as_str).find(|name| *name != "null").unwrap_or_default(),
        one => one.as_str().unwrap_or_default(),
    }
}

/// The bounds of a value, and the messages of its rules.
pub fn bounds(schema: &Value) -> String {
    let number = |key: &str| schema.get(key).filter(|value| value.is_number()).map(Value::to_string);

    let mut parts = Vec::new();
    match (number("minimum"), number("maximum")) {
        (Some(least), Some(most)) => parts.push(format!("{least} to {most}")),
        (Some(least), None) => parts.push(format!("at least {least}")),
        (None, Some(most)) => parts.push(format!("at most {most}")),
        (None, None) => {}
    }
    parts.extend(number("maxItems").map(|most| format!("at most {most}")));
    parts.extend(number("maxProperties").map(|most| format!("at most {most}")));

    let rules: Vec<&str> = list(schema, "x-kubernetes-validations").iter().map(|rule| text(rule, "message")).collect();
    if rules.is_empty() && text(schema, "format").is_empty() {
        parts.extend(number("maxLength").map(|most| format!("at most {most} characters")));
    }
    parts.extend(rules.into_iter().map(str::to_owned));
    parts.join("; ")
}

/// Rows of `name, type, default, bounds, meaning`, one for each property.
pub fn field_rows(schema: &Value, link: &dyn Fn(&str) -> String) -> Vec<Vec<String>> {
    let none = Map::new();
    let required: Vec<&str> = list(schema, "required").iter().filter_map(Value::as_str).collect();

    let properties = schema["properties"].as_object().unwrap_or(&none);
    properties.iter().map(|(name, field)| field_row(name, field, required.contains(&name.as_str()), link)).collect()
}

pub fn field_row(name: &str, field: &Value, is_required: bool, link: &dyn Fn(&str) -> String) -> Vec<String> {
    let default = match field.get("default").filter(|value| !value.is_null()) {
        Some(value) => code(&literal(value)),
        None if is_required => "required".to_owned(),
        None => String::new(),
    };
    vec![code(name), type_text(field, link), default, bounds(field), marked(text(field, "description"))]
}
