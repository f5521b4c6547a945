//! Reads a world from a file: samples, what the controller remembers, and policies.

mod file;
mod values;

use std::path::Path;

use hush_core::{ModelPolicy, StepMemory, World};
use jiff::Timestamp;

use crate::policies::{self, FileError, PolicyDocument, Problem};

/// The inputs of one step of the core.
#[derive(Clone, Debug)]
pub struct PlanInputs {
    pub now: Timestamp,
    pub world: World,
    pub memory: StepMemory,
    pub policies: Vec<ModelPolicy>,
}

pub fn read(path: &Path) -> Result<PlanInputs, FileError> {
    let text = std::fs::read_to_string(path).map_err(|source| FileError::Read { path: path.to_owned(), source })?;
    parse(&text).map_err(|problems| FileError::Invalid { path: path.to_owned(), problems })
}

pub fn parse(text: &str) -> Result<PlanInputs, Vec<Problem>> {
    let document = PolicyDocument::whole(text);
    let mut file: file::WorldFile = document.read()?;

    let mut problems = Vec::new();
    let mut policies = Vec::new();
    for (index, object) in std::mem::take(&mut file.policies).into_iter().enumerate() {
        // Each policy is checked by itself; its problems have the lines of this file.
        match policies::parse_document(&document.part(&format!("policies[{index}]"), object)) {
            Ok(policy) => policies.push(policy),
            Err(more) => problems.extend(more),
        }
    }
    if !problems.is_empty() {
        return Err(problems);
    }

    Ok(PlanInputs { now: file.now, memory: file.memory(), policies, world: file.world() })
}
