//! Reads the commands of the server.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;

use super::end_process;
use super::worker_pool::{JobCancellations, RunnableJob, WorkerPool};
use crate::audio::Pcm;
use crate::runner::wire::{FrameDecoder, LoadSpec, ToRunner, receive};

const READ_BYTES: usize = 16 << 10;

/// What the main thread does.
pub(super) enum MainThreadCommand {
    Load(LoadSpec),
    /// Fails a job that no worker can take.
    RejectJob(RunnableJob),
}

pub(super) struct CommandReader {
    pub(super) socket: UnixStream,
    pub(super) main_thread: mpsc::Sender<MainThreadCommand>,
    pub(super) workers: WorkerPool,
    pub(super) cancellations: JobCancellations,
}

impl CommandReader {
    pub(super) fn run(mut self) -> ! {
        if let Err(error) = self.read_until_end() {
            tracing::error!("runner: the server's orders make no sense: {error}");
        }
        end_process()
    }

    /// Returns when the server has ended.
    fn read_until_end(&mut self) -> io::Result<()> {
        let mut decoder = FrameDecoder::default();
        let mut files = VecDeque::new();
        let mut piece = vec![0; READ_BYTES];

        loop {
            while let Some(message) = decoder.message().map_err(io::Error::other)? {
                self.execute(message, &mut files)?;
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

    /// `files`: the open files that have been received and not used, in their order.
    fn execute(&self, message: ToRunner, files: &mut VecDeque<OwnedFd>) -> io::Result<()> {
        // A send to the main thread fails only while the process ends.
        match message {
            ToRunner::Load(spec) => drop(self.main_thread.send(MainThreadCommand::Load(spec))),
            ToRunner::Work { id, work, audio, request } => {
                let file = files.pop_front().ok_or_else(|| io::Error::other("work came without its audio"))?;
                let audio = Pcm::from_file(file.into(), audio)?;
                let is_cancelled = self.cancellations.register(id);
                let job = RunnableJob { id, work, audio, request, is_cancelled };

                // The job goes straight to a worker: by way of the main thread, two threads would wake one after the other.
                if let Some(job) = self.workers.submit(job) {
                    drop(self.main_thread.send(MainThreadCommand::RejectJob(job)));
                }
            }
            ToRunner::Cancel { id } => self.cancellations.cancel(id),
            ToRunner::LogLevel { filter } => {
                if let Err(error) = hush_log::change_log_level(Some(&filter), None) {
                    tracing::warn!("the log level of the server is not in force in this runner: {error}");
                }
            }
            ToRunner::Exit => end_process(),
        }
        Ok(())
    }
}
