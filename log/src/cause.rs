//! Formats an error with its causes.

use std::error::Error;

/// The error and its causes, outermost first. A cause whose text is already in the message is left out.
pub fn explain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();

    while let Some(error) = cause {
        let line = error.to_string();
        if !text.contains(line.trim()) {
            text = format!("{text}: {line}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum NestedError {
        #[error("reading it: {0}")]
        WithCause(#[source] io::Error),
        #[error("reading it")]
        WithoutCause(#[source] io::Error),
        #[error("the model: {0}")]
        Outer(#[source] Box<NestedError>),
        #[error(transparent)]
        Same(#[from] io::Error),
    }

    #[test]
    fn each_cause_is_printed_once() {
        let cause = || io::Error::other("no such file");
        assert_eq!(explain(&NestedError::WithCause(cause())), "reading it: no such file");
        assert_eq!(explain(&NestedError::WithoutCause(cause())), "reading it: no such file");

        for inner in [NestedError::WithCause(cause()), NestedError::WithoutCause(cause())] {
            assert_eq!(explain(&NestedError::Outer(Box::new(inner))), "the model: reading it: no such file");
        }

        assert_eq!(explain(&NestedError::from(cause())), "no such file");
    }
}
