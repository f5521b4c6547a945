//! The versions of the API: all are served, all have the same fields, and a later definition removes nothing that an
//! earlier one had.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test support, though no test itself")]

use std::path::Path;

use serde_json::{Value, json};

const RELEASED: &str = "tests/released/v1alpha1";

fn read(folder: &str, name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder).join(name);
    serde_yaml::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap()
}

fn versions(definition: &Value) -> &Vec<Value> {
    definition["spec"]["versions"].as_array().unwrap()
}

#[test]
fn every_version_is_served_and_one_is_stored() {
    let served: Vec<String> = hush_crds::API_VERSIONS.iter().map(|version| (*version).to_owned()).collect();
    for (name, _) in hush_crds::FILES {
        let definition = read(".", name);
        let group = definition["spec"]["group"].as_str().unwrap();
        let mut names = Vec::new();
        for version in versions(&definition) {
            let version_name = version["name"].as_str().unwrap();
            let api_version = format!("{group}/{version_name}");
            assert_eq!(version["served"], true, "{name} {version_name}");
            assert_eq!(version["storage"], version_name == hush_crds::STORAGE_VERSION, "{name} {version_name}");

            // The API server warns clients of every version except the recommended one.
            let deprecated = version.get("deprecated").is_some_and(|deprecated| deprecated == true);
            assert_eq!(deprecated, api_version != hush_crds::API_VERSION, "{name} {version_name}");
            names.push(api_version);
        }

        names.sort_unstable_by(|a, b| b.cmp(a));
        assert_eq!(names, served, "{name}");
    }
}

/// The conversion `None` changes only `apiVersion`. It would prune a field that one of the versions does not have.
#[test]
fn the_versions_have_the_same_fields() {
    for (name, _) in hush_crds::FILES {
        let definition = read(".", name);
        let conversion = definition["spec"].get("conversion").cloned();
        assert!(conversion.is_none_or(|conversion| conversion["strategy"] == "None"), "{name}");
        let first = &versions(&definition)[0];
        for version in &versions(&definition)[1..] {
            for part in ["schema", "subresources", "additionalPrinterColumns"] {
                assert!(
                    version[part] == first[part],
                    "{name}: `{part}` of {} is not that of {}: the conversion `None` would lose what differs",
                    version["name"],
                    first["name"]
                );
            }
        }
    }
}

/// Everything that an object of the released definition may contain, an object of this definition may contain too.
#[test]
fn nothing_that_was_released_is_taken_away() {
    for (name, _) in hush_crds::FILES {
        let (released, now) = (read(RELEASED, name), read(".", name));
        for part in ["group", "names", "scope"] {
            assert_eq!(now["spec"][part], released["spec"][part], "{name}: `{part}`");
        }

        for old in versions(&released) {
            let new = versions(&now).iter().find(|version| version["name"] == old["name"]);
            let new = new.unwrap_or_else(|| panic!("{name}: {} is not served any more", old["name"]));
            let mut losses = Vec::new();
            compare("", schema(old), schema(new), &mut losses);
            assert!(losses.is_empty(), "{name} {}:\n{}", old["name"], losses.join("\n"));
        }
    }
}

#[test]
fn what_would_be_a_loss_is_seen() {
    let old = json!({"type": "object", "required": ["a"], "properties": {
        "a": {"type": "string", "maxLength": 10, "enum": ["x", "y"]},
        "b": {"type": "integer", "minimum": 0},
        "c": {"type": "array", "maxItems": 4, "items": {"type": "string"}},
    }});
    let losses_of = |change: &dyn Fn(&mut Value)| {
        let mut new = old.clone();
        change(&mut new);
        let mut losses = Vec::new();
        compare("", &old, &new, &mut losses);
        losses
    };

    assert!(losses_of(&|_| ()).is_empty());
    let widened = |new: &mut Value| {
        new["properties"]["d"] = json!({"type": "string"});
        new["properties"]["a"]["enum"] = json!(["x", "y", "z"]);
        new["properties"]["c"]["maxItems"] = json!(5);
        new["required"] = json!([]);
    };

    assert!(losses_of(&widened).is_empty());
    let changes: [(&str, Value, &str); 7] = [
        ("/required", json!(["a", "b"]), "`b` is required now"),
        ("/properties/a/maxLength", json!(9), "`a`: `maxLength`"),
        ("/properties/a/enum", json!(["x"]), "`a` does not take \"y\" any more"),
        ("/properties/b/minimum", json!(1), "`b`: `minimum`"),
        ("/properties/b/type", json!("string"), "`b` has another type"),
        ("/properties/c/items/type", json!("integer"), "`c[]` has another type"),
        ("/properties/b", Value::Null, "`b` is gone"),
    ];
    for (path, value, loss) in changes {
        let losses = losses_of(&|new| *new.pointer_mut(path).unwrap() = value.clone());
        assert!(losses.len() == 1 && losses[0].contains(loss), "{path}: {losses:?}");
    }
}

fn schema(version: &Value) -> &Value {
    &version["schema"]["openAPIV3Schema"]
}

/// Compares fields, types, required fields, enum values and bounds. Rules in CEL are compared by the policies of
/// `tests/cases`, which the API server checks in every version.
fn compare(path: &str, old: &Value, new: &Value, losses: &mut Vec<String>) {
    if new.is_null() {
        losses.push(format!("`{path}` is gone"));
        return;
    }

    if old["type"] != new["type"] {
        losses.push(format!("`{path}` has another type: {} and not {}", new["type"], old["type"]));
        return;
    }

    let list = |schema: &Value, part: &str| schema[part].as_array().cloned().unwrap_or_default();
    for field in list(new, "required") {
        if !list(old, "required").contains(&field) {
            losses.push(format!("`{}` is required now", join(path, field.as_str().unwrap())));
        }
    }

    let values = list(new, "enum");
    if !values.is_empty() {
        let gone = list(old, "enum").into_iter().filter(|value| !values.contains(value));
        losses.extend(gone.map(|value| format!("`{path}` does not take {value} any more")));
    }

    for (bound, is_upper) in [
        ("maxLength", true),
        ("maxItems", true),
        ("maxProperties", true),
        ("maximum", true),
        ("minLength", false),
        ("minItems", false),
        ("minimum", false),
    ] {
        let Some(now) = new[bound].as_i64() else { continue };
        let narrower = old[bound].as_i64().is_none_or(|before| if is_upper { now < before } else { now > before });
        if narrower {
            losses.push(format!("`{path}`: `{bound}` is {now} and was {}", old[bound]));
        }
    }

    for (field, schema) in old["properties"].as_object().into_iter().flatten() {
        compare(&join(path, field), schema, &new["properties"][field], losses);
    }

    if old["items"].is_object() {
        compare(&format!("{path}[]"), &old["items"], &new["items"], losses);
    }

    if old["additionalProperties"].is_object() {
        compare(&join(path, "*"), &old["additionalProperties"], &new["additionalProperties"], losses);
    }
}

fn join(path: &str, field: &str) -> String {
    if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") }
}
