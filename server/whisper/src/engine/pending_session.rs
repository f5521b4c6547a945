//! The decoder's session, which may still be on its way when work begins: on a CPU a window is listened to meanwhile.

use std::{
    io,
    sync::{
        Arc, OnceLock,
        mpsc::{self, Receiver},
    },
    thread,
};

use ort::session::Session;

use super::LoadError;

/// How the load ended; not set while it goes on.
pub type Outcome = Arc<OnceLock<Result<(), LoadError>>>;

/// A session that another thread opens.
pub struct PendingSession {
    session: Option<Session>,
    coming: Receiver<Session>,
    outcome: Outcome,
}

impl PendingSession {
    /// Has `open` run on a thread of its own; tells how it ended, and who waits for the session gets it.
    pub fn begin(
        open: impl FnOnce() -> Result<Session, LoadError> + Send + 'static,
    ) -> Result<(Self, Outcome), io::Error> {
        let outcome = Outcome::default();
        let (sender, coming) = mpsc::channel();
        let told = Told(outcome.clone());
        thread::Builder::new().name("decoder-session".into()).spawn(move || {
            // Nobody may take it any more.
            let opened = open().map(|session| drop(sender.send(session)));
            let _ = told.0.set(opened);
        })?;
        Ok((Self { session: None, coming, outcome: outcome.clone() }, outcome))
    }

    /// Waits for it.
    pub fn get(&mut self) -> Result<&mut Session, ort::Error> {
        match &mut self.session {
            Some(session) => Ok(session),
            none => match self.coming.recv() {
                Ok(session) => Ok(none.insert(session)),
                Err(_) => Err(match self.outcome.wait() {
                    Err(error) => ort::Error::new(error.to_string()),
                    Ok(()) => ort::Error::new("the decoder is gone"),
                }),
            },
        }
    }
}

/// Whatever becomes of the thread, those who wait hear of it.
struct Told(Outcome);

impl Drop for Told {
    fn drop(&mut self) {
        let _ = self.0.set(Err(LoadError::Thread(io::Error::other("opening the decoder ended in the middle"))));
    }
}
