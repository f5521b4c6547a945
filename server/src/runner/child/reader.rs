//! What comes from the server.

use std::collections::HashMap;
use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, mpsc};

use super::{leave, lock};
use crate::job::Work;
use crate::runner::wire::{Decoder, JobId, LoadSpec, ToRunner};

pub(super) enum Order {
    Load(LoadSpec),
    Work(Job),
}

/// Work, and the reader's ways to it.
pub(super) struct Job {
    pub(super) id: JobId,
    pub(super) work: Work,
    pub(super) len_samples: u64,
    /// Comes without being asked for.
    pub(super) first_samples: usize,
    /// For the log.
    pub(super) request: Option<String>,
    pub(super) incoming: mpsc::Receiver<Samples>,
    pub(super) cancelled: Arc<AtomicBool>,
}

pub(super) enum Samples {
    Here {
        offset: u64,
        s16le: Vec<u8>,
    },
    /// The job was cancelled: whoever waits should look.
    Look,
}

/// The jobs that are not done, for whom the reader gets audio and cancellations.
#[derive(Clone, Default)]
pub(super) struct Jobs {
    known: Arc<Mutex<HashMap<JobId, Correspondence>>>,
}

struct Correspondence {
    samples: mpsc::Sender<Samples>,
    cancelled: Arc<AtomicBool>,
}

impl Jobs {
    fn open(&self, id: JobId, work: Work, len_samples: u64, first_samples: usize, request: Option<String>) -> Job {
        let (samples, incoming) = mpsc::channel();
        let cancelled = Arc::new(AtomicBool::new(false));
        lock(&self.known).insert(id, Correspondence { samples, cancelled: cancelled.clone() });
        Job { id, work, len_samples, first_samples, request, incoming, cancelled }
    }

    /// Audio and cancellations may cross the end of their job.
    fn hand(&self, id: JobId, offset: u64, s16le: Vec<u8>) {
        if let Some(job) = lock(&self.known).get(&id) {
            let _ = job.samples.send(Samples::Here { offset, s16le });
        }
    }

    fn cancel(&self, id: JobId) {
        if let Some(job) = lock(&self.known).get(&id) {
            job.cancelled.store(true, Ordering::Relaxed);
            let _ = job.samples.send(Samples::Look);
        }
    }

    pub(super) fn forget(&self, id: JobId) {
        lock(&self.known).remove(&id);
    }
}

/// Where jobs go once the model is loaded: the threads that do them.
#[derive(Clone, Default)]
pub(super) struct Desks {
    jobs: Arc<OnceLock<mpsc::Sender<Job>>>,
}

impl Desks {
    /// A runner loads one model in its life: what comes later has no effect.
    pub(super) fn open(&self, jobs: mpsc::Sender<Job>) {
        let _ = self.jobs.set(jobs);
    }

    /// Gives the job back where nobody takes it: no model is loaded, or no thread is left.
    pub(super) fn take(&self, job: Job) -> Option<Job> {
        match self.jobs.get() {
            Some(jobs) => jobs.send(job).err().map(|mpsc::SendError(job)| job),
            None => Some(job),
        }
    }
}

pub(super) struct Reader {
    pub(super) socket: UnixStream,
    pub(super) orders: mpsc::Sender<Order>,
    pub(super) desks: Desks,
    pub(super) jobs: Jobs,
}

impl Reader {
    pub(super) fn run(mut self) -> ! {
        let mut decoder = Decoder::default();
        let mut piece = vec![0; 256 << 10];
        loop {
            match decoder.message::<ToRunner>() {
                Ok(Some(message)) => self.obey(message),
                Ok(None) => match self.socket.read(&mut piece) {
                    Ok(0) => leave(),
                    Ok(count) => decoder.buffer().extend_from_slice(&piece[..count]),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(_) => leave(),
                },
                Err(error) => {
                    tracing::error!("runner: the server's orders make no sense: {error}");
                    leave()
                }
            }
        }
    }

    fn obey(&self, message: ToRunner) {
        // A send fails only while the process ends.
        match message {
            ToRunner::Load(spec) => drop(self.orders.send(Order::Load(spec))),
            ToRunner::Work { id, work, len_samples, first_samples, request } => {
                let job = self.jobs.open(id, work, len_samples, first_samples, request);
                // Not by way of the main thread: that would wake two threads one after the other.
                if let Some(job) = self.desks.take(job) {
                    drop(self.orders.send(Order::Work(job)));
                }
            }
            ToRunner::Audio { id, offset, s16le } => self.jobs.hand(id, offset, s16le),
            ToRunner::Cancel { id } => self.jobs.cancel(id),
            ToRunner::Exit => leave(),
        }
    }
}
