//! Policies in YAML files, in the same form that a cluster takes.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use hush_core::{ModelPolicy, PolicyKey};

use super::FileSource;
use crate::policies::{self, FileError};

/// Policy files, or folders whose `.yaml` and `.yml` files are read.
#[derive(Clone, Debug)]
pub struct PolicyFiles(pub Vec<PathBuf>);

#[derive(Debug, thiserror::Error)]
pub enum PolicyFilesError {
    #[error("{}: {source}", path.display())]
    Folder { path: PathBuf, source: std::io::Error },
    #[error("there is no policy file")]
    NoFile,
    /// Everything that is wrong in the files, one problem a line.
    #[error("{}", lines(.0))]
    Invalid(Vec<PolicyFileProblem>),
}

#[derive(Debug, thiserror::Error)]
pub enum PolicyFileProblem {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{}: there is another policy with the name `{name}`", path.display())]
    Duplicate { path: PathBuf, name: PolicyKey },
}

fn lines(problems: &[PolicyFileProblem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

impl PolicyFiles {
    fn files(&self) -> Result<Vec<PathBuf>, PolicyFilesError> {
        let mut files = Vec::new();
        for path in &self.0 {
            if path.is_dir() {
                let inside = yaml_files(path);
                files.extend(inside.map_err(|source| PolicyFilesError::Folder { path: path.clone(), source })?);
            } else {
                files.push(path.clone());
            }
        }

        if files.is_empty() {
            return Err(PolicyFilesError::NoFile);
        }
        Ok(files)
    }
}

/// The `.yaml` and `.yml` files of a folder, sorted.
fn yaml_files(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml") {
            files.push(path);
        }
    }

    files.sort();
    Ok(files)
}

impl FileSource for PolicyFiles {
    type Value = Vec<ModelPolicy>;
    type Error = PolicyFilesError;

    const NAME: &'static str = "policies";

    fn read(&self) -> Result<Vec<ModelPolicy>, PolicyFilesError> {
        let mut all: Vec<ModelPolicy> = Vec::new();
        let mut names: BTreeSet<PolicyKey> = BTreeSet::new();
        let mut problems = Vec::new();

        for path in self.files()? {
            let found = match policies::read(&path) {
                Ok(found) => found,
                Err(error) => {
                    problems.push(error.into());
                    continue;
                }
            };
            for policy in found {
                if !names.insert(policy.name.clone()) {
                    problems.push(PolicyFileProblem::Duplicate { path: path.clone(), name: policy.name.clone() });
                }
                all.push(policy);
            }
        }

        if problems.is_empty() { Ok(all) } else { Err(PolicyFilesError::Invalid(problems)) }
    }
}
