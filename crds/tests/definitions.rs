//! The YAML beside the crate agrees with the types, and keeps the conventions of the API server.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test support, though no test itself")]

use serde_json::Value;

fn walk(value: &Value, path: &str, visit: &mut dyn FnMut(&str, &Value)) {
    visit(path, value);
    match value {
        Value::Object(fields) => fields.iter().for_each(|(name, value)| walk(value, &format!("{path}.{name}"), visit)),
        Value::Array(items) => items.iter().enumerate().for_each(|(i, v)| walk(v, &format!("{path}[{i}]"), visit)),
        _ => {}
    }
}

fn definitions() -> Vec<(&'static str, Value)> {
    hush_crds::FILES.iter().map(|(name, yaml)| (*name, serde_yaml::from_str(&yaml().unwrap()).unwrap())).collect()
}

fn schema(definition: &Value) -> &Value {
    &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
}

#[test]
fn the_files_are_up_to_date() {
    for (name, yaml) in hush_crds::FILES {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
        let file = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(file == yaml().unwrap(), "{name} does not agree with the types: run `cargo run -p hush-crds`");
    }
}

#[test]
fn nothing_that_the_conventions_forbid() {
    for (name, definition) in definitions() {
        walk(schema(&definition), name, &mut |path, value| {
            let Some(fields) = value.as_object() else { return };
            assert!(!fields.contains_key("nullable"), "{path} is nullable");
            assert!(!fields.contains_key("$ref"), "{path} is not inlined");
            assert_ne!(fields.get("type"), Some(&Value::from("number")), "{path} is a float");
            let format = fields.get("format").and_then(Value::as_str).unwrap_or_default();
            assert!(!format.starts_with("uint"), "{path} is unsigned");
            assert_ne!(fields.get("additionalProperties"), Some(&Value::Bool(false)), "{path} is not structural");
        });
    }
}

#[test]
fn every_field_is_explained_and_bounded() {
    for (name, definition) in definitions() {
        for part in ["spec", "status"] {
            walk(&schema(&definition)["properties"][part], &format!("{name} {part}"), &mut |path, value| {
                let Some(fields) = value["properties"].as_object() else { return };
                for (field, schema) in fields {
                    let path = format!("{path}.{field}");
                    assert!(schema["description"].as_str().is_some_and(|d| d.len() > 3), "{path} is not explained");
                    let bounded = match schema["type"].as_str() {
                        // Conditions are a type of the API server.
                        _ if path.contains("conditions") => true,
                        Some("string") => {
                            schema.get("maxLength").is_some()
                                || schema.get("enum").is_some()
                                || schema["format"] == "date-time"
                        }
                        Some("array") => schema.get("maxItems").is_some(),
                        Some("object") => schema.get("properties").is_some() || schema.get("maxProperties").is_some(),
                        Some("integer") => schema.get("minimum").is_some(),
                        other => panic!("{path} has the type {other:?}"),
                    };

                    assert!(bounded, "{path} has no bound: {schema}");
                }
            });
        }
    }
}

#[test]
fn names_columns_and_subresources() {
    for (name, definition) in definitions() {
        for version in definition["spec"]["versions"].as_array().unwrap() {
            assert!(version["subresources"]["status"].is_object(), "{name}");
            let columns = version["additionalPrinterColumns"].as_array().unwrap();
            let columns: Vec<&str> = columns.iter().map(|column| column["name"].as_str().unwrap()).collect();
            assert_eq!(columns, ["Mode", "Selecting", "Matched", "Loaded", "Pressure", "Ready", "Age"], "{name}");
        }

        let spec = &schema(&definition)["properties"]["spec"];
        assert_eq!(spec["required"], serde_json::json!(["selector"]), "{name}");
        assert_eq!(spec["properties"]["mode"]["default"], "Enforce", "{name}");
        let conditions = &schema(&definition)["properties"]["status"]["properties"]["conditions"];
        assert_eq!(conditions["x-kubernetes-list-map-keys"], serde_json::json!(["type"]), "{name}");
        assert_eq!(definition["spec"]["names"]["shortNames"].as_array().unwrap().len(), 1, "{name}");
    }

    let scopes: Vec<Value> = definitions().into_iter().map(|(_, d)| d["spec"]["scope"].clone()).collect();
    assert_eq!(scopes, ["Namespaced", "Cluster"]);
}
