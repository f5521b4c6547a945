//! What is wrong with a policy, and where.

use std::fmt;

/// A path such as `spec.residency.schedule[0].cron`, and what must be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    pub path: String,
    pub message: String,
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` {}", self.path, self.message)
    }
}

impl std::error::Error for Invalid {}

/// Collects what is wrong below one path.
#[derive(Debug)]
pub struct Report<'a> {
    path: String,
    found: &'a mut Vec<Invalid>,
}

impl<'a> Report<'a> {
    pub fn new(path: &str, found: &'a mut Vec<Invalid>) -> Self {
        Self { path: path.to_owned(), found }
    }

    pub fn at(&mut self, field: &str) -> Report<'_> {
        Report { path: format!("{}.{field}", self.path), found: self.found }
    }

    pub fn item(&mut self, index: usize) -> Report<'_> {
        Report { path: format!("{}[{index}]", self.path), found: self.found }
    }

    pub fn require(&mut self, holds: bool, message: impl Into<String>) {
        if !holds {
            self.found.push(Invalid { path: self.path.clone(), message: message.into() });
        }
    }
}
