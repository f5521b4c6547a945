//! An error as text.

use std::error::Error;

/// The error and its causes, outermost first, each said once: the text of many errors already ends with their cause.
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
    enum Failure {
        #[error("reading it: {0}")]
        Told(#[source] io::Error),
        #[error("reading it")]
        Untold(#[source] io::Error),
        #[error("the model: {0}")]
        Outer(#[source] Box<Failure>),
        #[error(transparent)]
        Same(#[from] io::Error),
    }

    #[test]
    fn each_cause_is_said_once() {
        let cause = || io::Error::other("no such file");
        assert_eq!(explain(&Failure::Told(cause())), "reading it: no such file");
        assert_eq!(explain(&Failure::Untold(cause())), "reading it: no such file");
        assert_eq!(explain(&Failure::Outer(Box::new(Failure::Told(cause())))), "the model: reading it: no such file");
        assert_eq!(explain(&Failure::Outer(Box::new(Failure::Untold(cause())))), "the model: reading it: no such file");
        assert_eq!(explain(&Failure::from(cause())), "no such file");
    }
}
