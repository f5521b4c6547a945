//! The way from a request's thread to the decode worker: commands, and the handle that sends them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64},
        mpsc::{self, Sender},
    },
    thread::JoinHandle,
};

use super::encoder::CrossTensor;
use crate::decoding::Search;

/// Identifies a window; never used twice.
pub(super) type WindowId = u64;

/// A task that reads a window's cross-attention keys and values on the worker's thread.
type CrossTask = Box<dyn FnOnce(Result<&mut [CrossTensor], ort::Error>) + Send>;

/// What the decode worker is asked to do.
pub(super) enum EngineCommand {
    /// Encodes a window. The reply returns the memory of `mel`, so that the caller can fill it again.
    Encode { mel: Vec<f32>, reply: Sender<(Vec<f32>, Result<WindowId, ort::Error>)> },
    /// Runs the encoder and replies with its output, `[1500, width]`.
    Hidden { mel: Vec<f32>, reply: Sender<Result<Vec<f32>, ort::Error>> },
    /// Appends prompt tokens to the window's row and replies with the logits after the last one.
    Prefill { window: WindowId, restart: bool, tokens: Vec<u32>, reply: Sender<Result<Vec<f32>, ort::Error>> },
    /// Runs a search from the prefilled row and replies when it has ended.
    Decode {
        window: WindowId,
        search: Box<dyn Search>,
        progress: Arc<SearchProgress>,
        reply: Sender<Result<Box<dyn Search>, ort::Error>>,
    },
    /// Runs a task with the window's cross-attention keys and values.
    ReadCross { window: WindowId, task: CrossTask },
    /// Ends the window's search, if there is one, and frees its slot.
    Release { window: WindowId },
}

/// State that a request's thread and the worker share during a search. A message for each step would wake the request's
/// thread as often, and would delay the next step.
#[derive(Default)]
pub(super) struct SearchProgress {
    /// Steps that are done: a token was chosen for each row.
    pub(super) steps: AtomicU64,
    /// The request was cancelled: the search ends after its next step.
    pub(super) is_cancelled: AtomicBool,
}

/// Sends commands to the decode worker. The worker's thread ends when the last handle is dropped.
pub(super) struct WorkerHandle {
    commands: Option<Sender<EngineCommand>>,
    thread: Option<JoinHandle<()>>,
}

impl WorkerHandle {
    pub(super) fn new(commands: Sender<EngineCommand>, thread: JoinHandle<()>) -> Self {
        Self { commands: Some(commands), thread: Some(thread) }
    }

    pub(super) fn send(&self, command: EngineCommand) -> Result<(), ort::Error> {
        let is_sent = self.commands.as_ref().is_some_and(|commands| commands.send(command).is_ok());
        if is_sent { Ok(()) } else { Err(worker_ended()) }
    }

    /// Sends the command that `command` makes of a reply channel, and waits for the reply.
    pub(super) fn request<T>(&self, command: impl FnOnce(Sender<T>) -> EngineCommand) -> Result<T, ort::Error> {
        let (reply, replies) = mpsc::channel();
        self.send(command(reply))?;
        replies.recv().map_err(|_| worker_ended())
    }

    pub(super) fn hidden(&self, mel: Vec<f32>) -> Result<Vec<f32>, ort::Error> {
        self.request(|reply| EngineCommand::Hidden { mel, reply })?
    }
}

pub(super) fn worker_ended() -> ort::Error {
    ort::Error::new("the engine's thread has ended")
}

impl Drop for WorkerHandle {
    fn drop(&mut self) {
        drop(self.commands.take());

        // The process must not end while the worker's thread still frees the sessions.
        let current = std::thread::current().id();
        if let Some(thread) = self.thread.take().filter(|thread| thread.thread().id() != current) {
            let _ = thread.join();
        }
    }
}
