//! The credential that the controller shows to a server that it commands.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use hush_contract::admin::ServerAudience;

/// Why there is no token for a server. The server then gets no command: a server that should see a token of its own never
/// sees another one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NoToken(pub String);

/// A source of tokens for servers. The source logs a problem once; each result repeats it.
pub trait ServerCredentials: Send + Sync {
    /// The token for a server; `Ok(None)`: servers are called without a token. `audience` is the server's own, where the
    /// API server knows its pod.
    fn token<'a>(&'a self, audience: Option<&'a ServerAudience>) -> BoxFuture<'a, Result<Option<String>, NoToken>>;
}

/// One token for all servers, in a file: on one machine, where the operator names each server; and beside one server in a
/// pod, where the controller commands that server only.
#[derive(Debug, Default)]
pub struct TokenFile {
    /// `None`: there is no token.
    path: Option<PathBuf>,
    /// The problem that was logged last.
    logged: Mutex<Option<NoToken>>,
}

impl TokenFile {
    pub fn new(path: Option<PathBuf>) -> Self {
        Self { path, logged: Mutex::default() }
    }

    /// Reads the file anew each time, because tokens are rotated.
    async fn read(&self) -> Result<Option<String>, NoToken> {
        let Some(path) = &self.path else { return Ok(None) };

        let read = tokio::fs::read_to_string(path).await;
        let token = read.map_err(|error| NoToken(format!("{}: {error}", path.display())));

        let problem = token.as_ref().err().cloned();
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(problem) = problem.as_ref().filter(|problem| logged.as_ref() != Some(problem)) {
            tracing::error!("no command is sent, the token for the servers cannot be read: {problem}");
        }
        *logged = problem;
        drop(logged);

        token.map(|text| Some(text.trim().to_owned()))
    }
}

impl ServerCredentials for TokenFile {
    fn token<'a>(&'a self, _: Option<&'a ServerAudience>) -> BoxFuture<'a, Result<Option<String>, NoToken>> {
        self.read().boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_file_is_read_each_time_and_none_is_no_token() {
        assert_eq!(TokenFile::default().token(None).await, Ok(None));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let file = TokenFile::new(Some(path.clone()));
        let problem = file.token(None).await.unwrap_err();
        assert!(problem.to_string().contains("token"), "{problem}");
        for token in ["one", "two"] {
            std::fs::write(&path, format!("{token}\n")).unwrap();
            assert_eq!(file.token(None).await, Ok(Some(token.to_owned())));
        }
    }
}
