//! What is wrong with a description, with the field where it is.

use std::cell::RefCell;
use std::fmt;

/// One mistake in a description.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DescriptionProblem {
    /// Such as `load.steps[0].request.path`; empty: the whole text.
    pub field: String,
    /// The line, from 1, where it is known.
    pub line: Option<u64>,
    pub message: String,
}

impl fmt::Display for DescriptionProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        if !self.field.is_empty() {
            write!(f, "`{}`: ", self.field)?;
        }
        f.write_str(&self.message)
    }
}

/// A field of a description that is being checked, and where its problems go.
#[derive(Clone)]
pub(super) struct FieldScope<'a> {
    path: String,
    problems: &'a RefCell<Vec<DescriptionProblem>>,
}

impl<'a> FieldScope<'a> {
    pub(super) fn root(problems: &'a RefCell<Vec<DescriptionProblem>>) -> Self {
        Self { path: String::new(), problems }
    }

    pub(super) fn member(&self, name: &str) -> Self {
        let separator = if self.path.is_empty() { "" } else { "." };
        Self { path: format!("{}{separator}{name}", self.path), problems: self.problems }
    }

    pub(super) fn item(&self, index: usize) -> Self {
        Self { path: format!("{}[{index}]", self.path), problems: self.problems }
    }

    pub(super) fn report(&self, message: impl Into<String>) {
        let problem = DescriptionProblem { field: self.path.clone(), line: None, message: message.into() };
        self.problems.borrow_mut().push(problem);
    }
}
