//! What a job holds of the engine: a window that was listened to. The engine's thread does the work; see
//! [`super::owner`].

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{self, RecvTimeoutError, Sender},
    },
    thread::JoinHandle,
    time::Duration,
};

use super::encoder::Cross;
use crate::decoding::{Candidate, DecodeError, Search};

/// Names a window; never used twice.
pub(super) type WindowId = u64;

/// What looks at a window's keys and values.
type Task = Box<dyn FnOnce(Result<&mut [Cross], ort::Error>) + Send>;

/// What the engine's thread is asked to do.
pub(super) enum Order {
    /// The mel comes back, to be filled again.
    Encode {
        mel: Vec<f32>,
        reply: Sender<(Vec<f32>, Result<WindowId, ort::Error>)>,
    },
    Hidden {
        mel: Vec<f32>,
        reply: Sender<Result<Vec<f32>, ort::Error>>,
    },
    Feed {
        window: WindowId,
        restart: bool,
        tokens: Vec<u32>,
        reply: Sender<Result<Vec<f32>, ort::Error>>,
    },
    Decode {
        window: WindowId,
        search: Box<dyn Search>,
        watch: Arc<Watch>,
        end: Sender<Result<Box<dyn Search>, ort::Error>>,
    },
    Look {
        window: WindowId,
        task: Task,
    },
    Drop {
        window: WindowId,
    },
}

/// How a job and its search see each other between two steps. A message for each step would wake the job's thread as
/// often, at the cost of whoever computes the next.
#[derive(Default)]
pub(super) struct Watch {
    /// Steps that were done: a token was chosen for each row.
    pub(super) steps: AtomicU64,
    /// The job does not want any more.
    pub(super) cancelled: AtomicBool,
}

/// How often a job looks.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The way to the engine's thread, which ends with the last of its jobs.
pub(super) struct Line {
    orders: Option<Sender<Order>>,
    thread: Option<JoinHandle<()>>,
}

impl Line {
    pub(super) fn new(orders: Sender<Order>, thread: JoinHandle<()>) -> Self {
        Self { orders: Some(orders), thread: Some(thread) }
    }

    fn send(&self, order: Order) -> Result<(), ort::Error> {
        let sent = self.orders.as_ref().is_some_and(|orders| orders.send(order).is_ok());
        if sent { Ok(()) } else { Err(gone()) }
    }

    fn ask<T>(&self, order: impl FnOnce(Sender<T>) -> Order) -> Result<T, ort::Error> {
        let (reply, answer) = mpsc::channel();
        self.send(order(reply))?;
        answer.recv().map_err(|_| gone())
    }

    pub(super) fn hidden(&self, mel: Vec<f32>) -> Result<Vec<f32>, ort::Error> {
        self.ask(|reply| Order::Hidden { mel, reply })?
    }
}

fn gone() -> ort::Error {
    ort::Error::new("the engine's thread has ended")
}

impl Drop for Line {
    fn drop(&mut self) {
        drop(self.orders.take());

        // Sessions must not be freed while the process ends around them.
        if let Some(thread) = self.thread.take().filter(|thread| thread.thread().id() != std::thread::current().id()) {
            let _ = thread.join();
        }
    }
}

/// A window of audio inside the engine: the encoder's keys and values of it, and one row of tokens that searches begin
/// from. Its place is free when it is dropped.
pub struct Window {
    line: Arc<Line>,
    id: WindowId,
}

impl Window {
    /// Listens to `mel`, log-mel `[bins, 3000]`; waits while the engine holds as many windows as it may. What is left in
    /// `mel` is undefined.
    pub(super) fn encode(line: &Arc<Line>, mel: &mut Vec<f32>) -> Result<Self, ort::Error> {
        let taken = std::mem::take(mel);
        let (back, id) = line.ask(|reply| Order::Encode { mel: taken, reply })?;
        *mel = back;
        Ok(Self { line: line.clone(), id: id? })
    }

    /// Feeds tokens to the row, from its beginning if `restart`; gives the logits after the last.
    pub fn feed(&mut self, tokens: &[u32], restart: bool) -> Result<Vec<f32>, ort::Error> {
        let (window, tokens) = (self.id, tokens.to_vec());
        self.line.ask(|reply| Order::Feed { window, restart, tokens, reply })?
    }

    /// Lets `search` go on from what was fed. It shares the decoder's steps with all searches that are under way.
    /// `keep_going` is asked every [`LOOK_EVERY`] as long as there are steps; another search may follow from the same tokens.
    pub fn decode(
        &mut self,
        search: Box<dyn Search>,
        keep_going: &mut dyn FnMut() -> bool,
    ) -> Result<Vec<Candidate>, DecodeError<ort::Error>> {
        let (end, inbox) = mpsc::channel();
        let watch = Arc::new(Watch::default());
        self.line.send(Order::Decode { window: self.id, search, watch: watch.clone(), end })?;
        let mut seen = 0;
        loop {
            match inbox.recv_timeout(LOOK_EVERY) {
                Ok(search) => return Ok(search?.finish()),
                Err(RecvTimeoutError::Disconnected) => return Err(gone().into()),
                Err(RecvTimeoutError::Timeout) => {
                    let steps = watch.steps.load(Ordering::Relaxed);
                    // An engine that stands still gives no sign of life.
                    if steps != seen && !keep_going() {
                        watch.cancelled.store(true, Ordering::Relaxed);
                        return Err(DecodeError::Cancelled);
                    }
                    seen = steps;
                }
            }
        }
    }

    /// Runs `task` on the engine's thread, between two steps, with what the encoder gave for this window: the tensors
    /// whose names begin with `cross_`, `[1, ...]` each, as the decoder's and the align graph's inputs are called. They
    /// may be bound to another session there and then, and not be kept.
    pub fn with_cross<T: Send + 'static>(
        &self,
        task: impl FnOnce(&mut [Cross]) -> Result<T, ort::Error> + Send + 'static,
    ) -> Result<T, ort::Error> {
        let window = self.id;
        self.line.ask(|reply: Sender<Result<T, ort::Error>>| {
            let task = Box::new(move |cross: Result<&mut [Cross], ort::Error>| {
                let _ = reply.send(cross.and_then(task));
            });
            Order::Look { window, task }
        })?
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        let _ = self.line.send(Order::Drop { window: self.id });
    }
}
