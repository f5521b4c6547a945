//! The table of policies that are good and of those that are not: `crds/tests/cases`.

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use crate::fixtures::workspace;

#[derive(Clone, Debug)]
pub struct Case {
    pub name: String,
    pub cluster: bool,
    /// Without a namespace.
    pub object: Value,
    /// What a complaint must say; empty for a good policy.
    pub says: Vec<String>,
    /// What is wrong with it no schema can know.
    pub api_accepts: bool,
}

impl Case {
    pub const fn good(&self) -> bool {
        self.says.is_empty()
    }

    pub const fn plural(&self) -> &'static str {
        if self.cluster { "clustergpumodelpolicies" } else { "gpumodelpolicies" }
    }
}

pub fn all() -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for file in ["valid.yaml", "invalid.yaml"] {
        let path = workspace().join("crds/tests/cases").join(file);
        let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let entries: Vec<Map<String, Value>> = serde_yaml::from_str(&text)?;
        for entry in entries {
            let case = read(&entry, cases.len()).with_context(|| format!("{file}: {entry:?}"))?;
            cases.push(case);
        }
    }
    Ok(cases)
}

fn read(entry: &Map<String, Value>, place: usize) -> Result<Case> {
    let mut spec = entry["spec"].clone();
    let fields = spec.as_object_mut().context("`spec` must be a map")?;
    fields.entry("selector").or_insert_with(|| json!({"matchLabels": {"app": "whisper"}}));
    // A list that is one item too long needs to be written only once.
    if let Some(repeat) = entry.get("repeat") {
        let (path, count) = (repeat[0].as_str().context("`repeat`")?, repeat[1].as_u64().context("`repeat`")?);
        let list = spec.pointer_mut(&format!("/{}", path.replace('.', "/"))).context("`repeat`")?;
        *list = (0..count).map(|_| list[0].clone()).collect();
    }
    let cluster = entry.get("cluster") == Some(&Value::Bool(true));
    let words = entry.get("says").and_then(Value::as_array).into_iter().flatten();
    Ok(Case {
        name: entry["name"].as_str().context("`name` must be text")?.to_owned(),
        cluster,
        object: json!({
            "apiVersion": hush_crds::API_VERSION,
            "kind": if cluster { "ClusterGpuModelPolicy" } else { "GpuModelPolicy" },
            "metadata": {"name": format!("case-{place}")},
            "spec": spec,
        }),
        says: words.map(|word| word.as_str().unwrap_or_default().to_owned()).collect(),
        api_accepts: entry.get("api").and_then(Value::as_str) == Some("accepts"),
    })
}
