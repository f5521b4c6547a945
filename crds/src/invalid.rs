//! The fields of a policy that are not valid, and why.

use std::fmt;

/// The path of a field, such as `spec.residency.schedule[0].cron`, and what it must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidField {
    pub path: String,
    pub message: String,
}

impl fmt::Display for InvalidField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` {}", self.path, self.message)
    }
}

impl std::error::Error for InvalidField {}

/// Checks the field at one path, and collects what is wrong.
#[derive(Debug)]
pub struct FieldChecker<'a> {
    path: String,
    found: &'a mut Vec<InvalidField>,
}

impl<'a> FieldChecker<'a> {
    pub fn new(path: &str, found: &'a mut Vec<InvalidField>) -> Self {
        Self { path: path.to_owned(), found }
    }

    /// The field of this name below the path.
    pub fn at(&mut self, field: &str) -> FieldChecker<'_> {
        FieldChecker { path: format!("{}.{field}", self.path), found: self.found }
    }

    /// The item of the list at the path.
    pub fn item(&mut self, index: usize) -> FieldChecker<'_> {
        FieldChecker { path: format!("{}[{index}]", self.path), found: self.found }
    }

    /// Reports the field unless the condition holds. `message` says what the field must be.
    pub fn require(&mut self, holds: bool, message: impl Into<String>) {
        if !holds {
            self.found.push(InvalidField { path: self.path.clone(), message: message.into() });
        }
    }
}
