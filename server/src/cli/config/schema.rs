//! The JSON schema of the configuration file: options as clap knows them, models as serde reads them.

use clap::Arg;
use schemars::JsonSchema;
use serde_json::{Map, Value, json};

use super::models::ModelConfig;
use super::options::file_options;
use crate::cli::settings::{is_list, is_path};

/// The part of the file that is no option.
#[derive(JsonSchema)]
#[schemars(
    title = "Configuration of hush-server",
    description = "Settings of `hush-server serve`. Each is written as its option is; an option or a variable beats it."
)]
#[serde(deny_unknown_fields)]
struct ConfigSchema {
    /// The models that are served; the first is the default.
    #[serde(default)]
    #[expect(dead_code, reason = "only its schema is used")]
    models: Option<Vec<ModelConfig>>,
}

/// The schema as `docs/config.schema.json` holds it.
pub fn schema() -> String {
    let mut schema = schemars::schema_for!(ConfigSchema);
    if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
        properties.extend(option_properties());
    }

    let mut text = serde_json::to_string_pretty(&schema).unwrap_or_default();
    text.push('\n');
    text
}

fn option_properties() -> Map<String, Value> {
    file_options().iter().map(|known| (known.key.to_owned(), property(&known.option))).collect()
}

fn property(option: &Arg) -> Value {
    let mut property = json!({ "description": description(option) });
    match (is_list(option), is_path(option)) {
        (true, _) => {
            property["type"] = json!(["array", "null"]);
            property["items"] = json!({ "type": ["string", "integer", "boolean"] });
        }
        (false, true) => property["type"] = json!(["string", "null"]),
        (false, false) => property["type"] = json!(["string", "integer", "boolean", "null"]),
    }

    let defaults: Vec<&str> = option.get_default_values().iter().filter_map(|value| value.to_str()).collect();
    match (is_list(option), defaults.as_slice()) {
        _ if option.is_hide_default_value_set() => {}
        (_, []) => {}
        (true, defaults) => property["default"] = json!(defaults),
        (false, [default, ..]) => property["default"] = json!(default),
    }
    property
}

/// The first paragraph of the help, without the sentence about the default.
fn description(option: &Arg) -> String {
    let help = option.get_help().map(ToString::to_string).unwrap_or_default();
    let text = help.split("Default: ").next().unwrap_or_default();
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");

    if text.ends_with('.') { text } else { text + "." }
}
