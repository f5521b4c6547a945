//! What comes from the server.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, mpsc};

use super::{leave, lock};
use crate::audio::Pcm;
use crate::job::Work;
use crate::runner::wire::{Decoder, JobId, LoadSpec, ToRunner, receive};

pub(super) enum Order {
    Load(LoadSpec),
    Work(Job),
}

pub(super) struct Job {
    pub(super) id: JobId,
    pub(super) work: Work,
    pub(super) audio: Pcm,
    /// For the log.
    pub(super) request: Option<String>,
    pub(super) cancelled: Arc<AtomicBool>,
}

/// The jobs that are not done, whom a cancellation may still reach.
#[derive(Clone, Default)]
pub(super) struct Jobs {
    cancelled: Arc<Mutex<HashMap<JobId, Arc<AtomicBool>>>>,
}

impl Jobs {
    fn open(&self, id: JobId) -> Arc<AtomicBool> {
        let cancelled = Arc::new(AtomicBool::new(false));
        lock(&self.cancelled).insert(id, cancelled.clone());
        cancelled
    }

    /// It may cross the end of its job.
    fn cancel(&self, id: JobId) {
        if let Some(cancelled) = lock(&self.cancelled).get(&id) {
            cancelled.store(true, Ordering::Relaxed);
        }
    }

    pub(super) fn forget(&self, id: JobId) {
        lock(&self.cancelled).remove(&id);
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
        if let Err(error) = self.read() {
            tracing::error!("runner: the server's orders make no sense: {error}");
        }
        leave()
    }

    /// Until the server is gone.
    fn read(&mut self) -> io::Result<()> {
        let (mut decoder, mut files) = (Decoder::default(), VecDeque::new());
        let mut piece = vec![0; 16 << 10];
        loop {
            while let Some(message) = decoder.message().map_err(io::Error::other)? {
                self.obey(message, &mut files)?;
            }
            match receive(&self.socket, &mut piece, &mut files) {
                Ok(0) => return Ok(()),
                Ok(count) => decoder.buffer().extend_from_slice(&piece[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    fn obey(&self, message: ToRunner, files: &mut VecDeque<OwnedFd>) -> io::Result<()> {
        // A send fails only while the process ends.
        match message {
            ToRunner::Load(spec) => drop(self.orders.send(Order::Load(spec))),
            ToRunner::Work { id, work, audio, request } => {
                let file = files.pop_front().ok_or_else(|| io::Error::other("work came without its audio"))?;
                let audio = Pcm::from_file(file.into(), audio)?;
                let job = Job { id, work, audio, request, cancelled: self.jobs.open(id) };
                // Not by way of the main thread: that would wake two threads one after the other.
                if let Some(job) = self.desks.take(job) {
                    drop(self.orders.send(Order::Work(job)));
                }
            }
            ToRunner::Cancel { id } => self.jobs.cancel(id),
            ToRunner::LogLevel { filter } => {
                if let Err(error) = hush_log::change_log_level(Some(&filter), None) {
                    tracing::warn!("the log level of the server is not in force in this runner: {error}");
                }
            }
            ToRunner::Exit => leave(),
        }
        Ok(())
    }
}
