//! Policies in YAML files, in the same form that a cluster takes.

use std::collections::BTreeSet;
use std::path::PathBuf;

use hush_core::{Policy, PolicyName};

use super::Source;
use crate::policies;

/// Files, or folders whose `.yaml` and `.yml` files are read.
#[derive(Clone, Debug)]
pub struct PolicyFiles(pub Vec<PathBuf>);

impl PolicyFiles {
    fn files(&self) -> Result<Vec<PathBuf>, String> {
        let mut files = Vec::new();
        for path in &self.0 {
            if !path.is_dir() {
                files.push(path.clone());
                continue;
            }
            let failed = |error: std::io::Error| format!("{}: {error}", path.display());
            let mut inside = Vec::new();
            for entry in std::fs::read_dir(path).map_err(failed)? {
                let entry = entry.map_err(failed)?.path();
                if entry.extension().is_some_and(|extension| extension == "yaml" || extension == "yml") {
                    inside.push(entry);
                }
            }
            inside.sort();
            files.append(&mut inside);
        }
        if files.is_empty() {
            return Err("there is no policy file".to_owned());
        }
        Ok(files)
    }
}

impl Source for PolicyFiles {
    type Value = Vec<Policy>;
    const NAME: &'static str = "policies";

    fn read(&self) -> Result<Vec<Policy>, String> {
        let mut all: Vec<Policy> = Vec::new();
        let mut names: BTreeSet<PolicyName> = BTreeSet::new();
        let mut problems = Vec::new();
        for file in self.files()? {
            match policies::read(&file) {
                Ok(found) => {
                    for policy in found {
                        if !names.insert(policy.name.clone()) {
                            let name = &policy.name;
                            problems
                                .push(format!("{}: there is another policy with the name `{name}`", file.display()));
                        }
                        all.push(policy);
                    }
                }
                Err(error) => problems.push(error.to_string()),
            }
        }
        if problems.is_empty() { Ok(all) } else { Err(problems.join("\n")) }
    }
}
