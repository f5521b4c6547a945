//! One piece of work on a model.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::core::StandIn;
use super::journal::{JournalEvent, ViolationKind};

/// Counts as in flight until it is dropped. Dropped before [`Self::finish`], its client has left.
pub struct Work {
    app: Arc<StandIn>,
    pub model: String,
    path: String,
    pub cut: CancellationToken,
    is_over: bool,
}

impl Work {
    pub fn new(app: Arc<StandIn>, model: &str, path: &str, cut: CancellationToken) -> Self {
        Self { app, model: model.to_owned(), path: path.to_owned(), cut, is_over: false }
    }

    pub fn app(&self) -> &Arc<StandIn> {
        &self.app
    }

    /// The work goes to the instance of the model that is loaded now, and ends with that one.
    pub fn join_instance(mut self) -> Self {
        self.cut = self.app.look(&self.model, |entry| entry.cut.clone()).unwrap_or_default();
        self
    }

    /// Works for this long; `false`: the model was taken away meanwhile, and the answer cannot be given.
    pub async fn last(&mut self, duration: Duration) -> bool {
        tokio::select! {
            () = tokio::time::sleep(duration) => true,
            () = self.cut.cancelled() => {
                self.mark_cut();
                false
            }
        }
    }

    pub fn mark_cut(&mut self) {
        self.is_over = true;
        self.app.journal.violation(ViolationKind::Cut, format!("{} on {}", self.path, self.model));
    }

    /// The answer is complete.
    pub fn finish(mut self) {
        self.is_over = true;
        self.app.journal.write(JournalEvent::Answered { path: self.path.clone() });
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if !self.is_over {
            self.app.journal.write(JournalEvent::ClientGone { path: self.path.clone() });
        }
        self.app.change(&self.model, |entry| entry.inflight = entry.inflight.saturating_sub(1));
    }
}
