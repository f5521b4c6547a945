//! A window that the engine has encoded, as a request sees it. The work is done by the [decode
//! worker](super::decode_worker).

use std::{
    sync::{
        Arc,
        atomic::Ordering,
        mpsc::{self, RecvTimeoutError, Sender},
    },
    time::Duration,
};

use super::{
    encoder::CrossTensor,
    worker_handle::{EngineCommand, SearchProgress, WindowId, WorkerHandle, worker_ended},
};
use crate::decoding::{DecodeError, Search, SearchCandidate};

/// How often a request checks whether it was cancelled during a search.
const CANCELLATION_INTERVAL: Duration = Duration::from_millis(20);

/// A window of audio inside the engine: its cross-attention keys and values, and one row of tokens from which searches
/// start. Its KV slot is freed when it is dropped.
pub struct EncodedWindow {
    worker: Arc<WorkerHandle>,
    id: WindowId,
}

impl EncodedWindow {
    /// Encodes `mel`, log-mel `[bins, 3000]`. Waits while the engine holds as many windows as it may. The content of
    /// `mel` is undefined afterwards.
    pub(super) fn encode(worker: &Arc<WorkerHandle>, mel: &mut Vec<f32>) -> Result<Self, ort::Error> {
        let input = std::mem::take(mel);
        let (returned, id) = worker.request(|reply| EngineCommand::Encode { mel: input, reply })?;
        *mel = returned;
        Ok(Self { worker: worker.clone(), id: id? })
    }

    /// Appends tokens to the row, from its beginning if `restart`; returns the logits after the last one.
    pub fn prefill(&mut self, tokens: &[u32], restart: bool) -> Result<Vec<f32>, ort::Error> {
        let (window, tokens) = (self.id, tokens.to_vec());
        self.worker.request(|reply| EngineCommand::Prefill { window, restart, tokens, reply })?
    }

    /// Runs `search` from the prefilled tokens. The search shares the decoder's steps with all other active searches.
    /// `keep_going` is called about every 20 ms as long as the search makes progress; `false` cancels it. Another
    /// search may follow from the same tokens.
    pub fn decode(
        &mut self,
        search: Box<dyn Search>,
        keep_going: &mut dyn FnMut() -> bool,
    ) -> Result<Vec<SearchCandidate>, DecodeError<ort::Error>> {
        let (reply, replies) = mpsc::channel();
        let progress = Arc::new(SearchProgress::default());
        let command = EngineCommand::Decode { window: self.id, search, progress: progress.clone(), reply };
        self.worker.send(command)?;

        let mut seen_steps = 0;
        loop {
            match replies.recv_timeout(CANCELLATION_INTERVAL) {
                Ok(search) => return Ok(search?.finish()),
                Err(RecvTimeoutError::Disconnected) => return Err(worker_ended().into()),
                Err(RecvTimeoutError::Timeout) => {
                    // `keep_going` also reports that the request is alive, so it is not called without progress.
                    let steps = progress.steps.load(Ordering::Relaxed);
                    if steps != seen_steps && !keep_going() {
                        progress.is_cancelled.store(true, Ordering::Relaxed);
                        return Err(DecodeError::Cancelled);
                    }
                    seen_steps = steps;
                }
            }
        }
    }

    /// Runs `task` on the worker's thread, between two steps, with the encoder's output for this window: the tensors
    /// whose names begin with `cross_`, `[1, ...]` each, named like the inputs of the decoder and of the align graph.
    /// The task may bind them to another session, but must not keep them.
    pub fn with_cross<T: Send + 'static>(
        &self,
        task: impl FnOnce(&mut [CrossTensor]) -> Result<T, ort::Error> + Send + 'static,
    ) -> Result<T, ort::Error> {
        let window = self.id;

        self.worker.request(|reply: Sender<Result<T, ort::Error>>| {
            let task = Box::new(move |cross: Result<&mut [CrossTensor], ort::Error>| {
                let _ = reply.send(cross.and_then(task));
            });
            EngineCommand::ReadCross { window, task }
        })?
    }
}

impl Drop for EncodedWindow {
    fn drop(&mut self) {
        let _ = self.worker.send(EngineCommand::Release { window: self.id });
    }
}
