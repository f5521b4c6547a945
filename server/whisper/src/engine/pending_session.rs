//! The decoder's session, which may still be loading when work begins: on a CPU the first window is encoded meanwhile.

use std::{
    io,
    sync::{
        Arc, OnceLock,
        mpsc::{self, Receiver},
    },
    thread,
};

use ort::session::Session;

use super::EngineLoadError;

/// How loading ended; not set while it goes on.
pub type LoadOutcome = Arc<OnceLock<Result<(), EngineLoadError>>>;

/// A session that another thread opens.
pub struct PendingSession {
    session: Option<Session>,
    opened: Receiver<Session>,
    outcome: LoadOutcome,
}

impl PendingSession {
    /// Runs `open` on a thread of its own. The outcome is set when the thread ends.
    pub fn begin(
        open: impl FnOnce() -> Result<Session, EngineLoadError> + Send + 'static,
    ) -> Result<(Self, LoadOutcome), io::Error> {
        let outcome = LoadOutcome::default();
        let (sender, opened) = mpsc::channel();
        let guard = OutcomeGuard(outcome.clone());
        thread::Builder::new().name("decoder-session".into()).spawn(move || {
            // The receiver may be dropped already.
            let result = open().map(|session| drop(sender.send(session)));
            let _ = guard.0.set(result);
        })?;
        Ok((Self { session: None, opened, outcome: outcome.clone() }, outcome))
    }

    /// Waits for the session.
    pub fn get(&mut self) -> Result<&mut Session, ort::Error> {
        match &mut self.session {
            Some(session) => Ok(session),
            none => match self.opened.recv() {
                Ok(session) => Ok(none.insert(session)),
                Err(_) => Err(match self.outcome.wait() {
                    Err(error) => ort::Error::new(error.to_string()),
                    Ok(()) => ort::Error::new("the decoder's session is closed"),
                }),
            },
        }
    }
}

/// Sets the outcome even if the thread panics, so that all who wait for it continue.
struct OutcomeGuard(LoadOutcome);

impl Drop for OutcomeGuard {
    fn drop(&mut self) {
        let _ = self.0.set(Err(EngineLoadError::Thread(io::Error::other("opening the decoder ended in the middle"))));
    }
}
