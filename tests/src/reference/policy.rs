//! The fields of both kinds of policies, from the definitions that the API server gets.

use std::fmt::Write;

use anyhow::{Context, Result};
use serde_json::Value;

use super::markdown::table;
use super::{page_head, schema};

const TEXT: &str = "\
`gpu.hush.dev/v1beta1`; `v1alpha1` has the same fields ([API versions](../api-versions.md)). What these fields do
together is told in [policies](../policies.md), and shown in the [cookbook](../cookbook.md). `hush-controller check FILE`
checks a policy by these rules without a cluster.
";

const COLUMNS: [&str; 5] = ["field", "type", "default", "bounds", "meaning"];

pub fn page() -> Result<String> {
    let mut page = page_head("Policy fields", TEXT);
    let mut known: Vec<Vec<String>> = Vec::new();

    for (_, yaml) in hush_crds::FILES {
        let definition: Value = serde_yaml::from_str(&yaml()?)?;
        let (names, version) = (&definition["spec"]["names"], &definition["spec"]["versions"][0]);
        let kind = names["kind"].as_str().context("a definition without a kind")?;
        let object = &version["schema"]["openAPIV3Schema"];
        let about = object["description"].as_str().unwrap_or_default();
        let short = names["shortNames"][0].as_str().unwrap_or_default();
        let scope = if definition["spec"]["scope"] == "Namespaced" { "in a namespace" } else { "of the whole cluster" };
        writeln!(page, "\n## {kind}\n\n{about} It lives {scope}; `kubectl get {short}` lists them.")?;

        let spec = field_rows("", &object["properties"]["spec"]);
        let new: Vec<_> = spec.into_iter().filter(|row| !known.contains(row)).collect();
        if known.is_empty() {
            write!(page, "\n### Spec\n\n{}", table(&COLUMNS, &new))?;

            let status = field_rows("", &object["properties"]["status"]);
            let status: Vec<_> = status.into_iter().filter(|row| !row[0].starts_with("`conditions[].")).collect();
            write!(page, "\n### Status\n\n{}", table(&COLUMNS, &status))?;
            known = new;
        } else {
            write!(page, "\nIts spec is that of the other kind, and:\n\n{}", table(&COLUMNS, &new))?;
        }
    }
    Ok(page)
}

/// The fields of an object and all fields below them, by their whole paths.
fn field_rows(path: &str, object: &Value) -> Vec<Vec<String>> {
    let required: Vec<&str> = object["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();

    let mut rows = Vec::new();
    for (name, field) in object["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}{name}");
        rows.push(schema::field_row(&path, field, required.contains(&name.as_str()), &|name| name.to_owned()));
        rows.extend(field_rows(&format!("{path}."), field));
        rows.extend(field_rows(&format!("{path}[]."), &field["items"]));
    }
    rows
}
