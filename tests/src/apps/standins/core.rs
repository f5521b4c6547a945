//! The models of a stand-in: which are in memory, where that memory is, and what works on them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::journal::{Journal, JournalEvent, ViolationKind};
use super::memory::DeviceMemory;
use super::options::{Manner, StandInOptions};
use super::runner_process::{OrphanBehaviour, StandInRunner};
use super::work::Work;

/// Who holds the memory of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryOwner {
    /// The process of the app.
    App,
    /// A child of its own.
    Runner(OrphanBehaviour),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Away,
    Loading,
    Loaded,
    Unloading,
}

/// Why a model is not loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadProblem {
    Unknown,
    OutOfMemory,
    /// [`Manner::LoadFails`].
    Broken,
}

#[derive(Debug)]
pub struct StandInModel {
    pub bytes: u64,
    pub phase: Phase,
    /// Requests at work.
    pub inflight: usize,
    /// Loads so far.
    pub instance: u64,
    pub runner: Option<StandInRunner>,
    /// Cancelled to end the load or the answers of this instance early.
    pub cut: CancellationToken,
}

pub struct StandIn {
    pub options: StandInOptions,
    pub journal: Journal,
    pub memory: DeviceMemory,
    owner: MemoryOwner,
    models: Mutex<BTreeMap<String, StandInModel>>,
    /// Notified when a model changes.
    changed: Notify,
}

impl StandIn {
    pub fn new(options: StandInOptions, owner: MemoryOwner) -> Result<Arc<Self>> {
        let entry = |bytes| StandInModel {
            bytes,
            phase: Phase::Away,
            inflight: 0,
            instance: 0,
            runner: None,
            cut: CancellationToken::new(),
        };
        let models = options.models.iter().map(|model| (model.name.clone(), entry(model.bytes))).collect();
        let journal = Journal::open(options.journal.as_deref()).context("opening the journal")?;
        let memory = DeviceMemory::new(options.gpu.as_deref());
        Ok(Arc::new(Self { options, journal, memory, owner, models: Mutex::new(models), changed: Notify::new() }))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, StandInModel>> {
        self.models.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn names(&self) -> Vec<String> {
        self.options.models.iter().map(|model| model.name.clone()).collect()
    }

    pub fn first_name(&self) -> String {
        self.options.models.first().map(|model| model.name.clone()).unwrap_or_default()
    }

    pub fn is_known(&self, name: &str) -> bool {
        self.lock().contains_key(name)
    }

    /// A look at a model; `None`: it is unknown.
    pub fn look<T>(&self, name: &str, look: impl FnOnce(&StandInModel) -> T) -> Option<T> {
        self.lock().get(name).map(look)
    }

    /// Changes a model and wakes those that wait.
    pub fn change<T>(&self, name: &str, change: impl FnOnce(&mut StandInModel) -> T) -> Option<T> {
        let changed = self.lock().get_mut(name).map(change);
        self.changed.notify_waiters();
        changed
    }

    pub fn phase(&self, name: &str) -> Phase {
        self.look(name, |entry| entry.phase).unwrap_or(Phase::Away)
    }

    pub fn inflight(&self, name: &str) -> usize {
        self.look(name, |entry| entry.inflight).unwrap_or(0)
    }

    /// Waits until this holds for the model.
    pub async fn wait_until(&self, name: &str, holds: impl Fn(&StandInModel) -> bool) {
        loop {
            let changed = self.changed.notified();
            if self.look(name, &holds).unwrap_or(true) {
                return;
            }
            changed.await;
        }
    }

    /// Marks that a piece of work begins, wherever the model is.
    pub fn begin(self: &Arc<Self>, name: &str, path: &str) -> Work {
        let cut = self.change(name, |entry| {
            entry.inflight += 1;
            entry.cut.clone()
        });
        Work::new(Arc::clone(self), name, path, cut.unwrap_or_default())
    }

    /// Writes a violation if the model is not in memory.
    pub fn judge_presence(&self, name: &str, what: &str) {
        if self.phase(name) != Phase::Loaded {
            self.journal
                .violation(ViolationKind::RequestWhileAway, format!("{what}: {name} is {:?}", self.phase(name)));
        }
    }

    /// Writes a violation if requests are at work on the model.
    pub fn judge_idleness(&self, name: &str) {
        let inflight = self.inflight(name);
        if inflight > 0 {
            self.journal.violation(ViolationKind::UnloadWhileBusy, format!("{inflight} requests work on {name}"));
        }
    }

    /// Loads a model unless it is loaded, and goes on though the caller leaves.
    pub async fn load(self: &Arc<Self>, name: &str) -> Result<(), LoadProblem> {
        let app = Arc::clone(self);
        let name = name.to_owned();
        let load = tokio::spawn(async move { app.load_to_the_end(&name).await });
        load.await.unwrap_or(Err(LoadProblem::Broken))
    }

    async fn load_to_the_end(self: &Arc<Self>, name: &str) -> Result<(), LoadProblem> {
        if !self.is_known(name) {
            return Err(LoadProblem::Unknown);
        }

        let cut = loop {
            let changed = self.changed.notified();
            match self.begin_load(name) {
                (Phase::Loaded, _) => return Ok(()),
                (Phase::Away, cut) => break cut,
                (Phase::Loading | Phase::Unloading, _) => changed.await,
            }
        };

        self.finish_load(name, cut).await
    }

    /// Reads and keeps the weights, where `begin_load` found the model away.
    pub async fn finish_load(self: &Arc<Self>, name: &str, cut: CancellationToken) -> Result<(), LoadProblem> {
        let is_whole = cut.run_until_cancelled(self.read_weights()).await.is_some();
        let taken = if is_whole { self.take_memory(name).await } else { Err(LoadProblem::Broken) };
        if taken.is_err() {
            self.change(name, |entry| entry.phase = Phase::Away);
        }
        taken
    }

    /// Marks that the load of a model begins if it is away, and gives the phase from before. Those that wait are woken
    /// only then: one that waits calls this again and must not wake itself.
    pub fn begin_load(&self, name: &str) -> (Phase, CancellationToken) {
        let mut models = self.lock();
        let Some(entry) = models.get_mut(name) else { return (Phase::Away, CancellationToken::new()) };

        let before = entry.phase;
        if before == Phase::Away {
            entry.phase = Phase::Loading;
            entry.cut = CancellationToken::new();
            self.changed.notify_waiters();
        }
        (before, entry.cut.clone())
    }

    async fn read_weights(&self) {
        tokio::time::sleep(self.options.load_time()).await;
        if self.options.has(Manner::LoadHangs) {
            std::future::pending::<()>().await;
        }
    }

    async fn take_memory(self: &Arc<Self>, name: &str) -> Result<(), LoadProblem> {
        if self.options.has(Manner::LoadFails) {
            return Err(LoadProblem::Broken);
        }

        let bytes = self.look(name, |entry| entry.bytes).unwrap_or(0);
        let runner = match self.owner {
            _ if self.options.has(Manner::LoadLies) => None,
            MemoryOwner::App => {
                // The context of the process comes with its first model and stays.
                let context = if self.memory.held_bytes() == 0 { self.options.context_bytes } else { 0 };
                let fits = self.memory.take(context + bytes).map_err(|_| LoadProblem::Broken)?;
                fits.then_some(None).ok_or(LoadProblem::OutOfMemory)?
            }
            MemoryOwner::Runner(orphan) => {
                let started = StandInRunner::start(bytes, self.options.gpu.as_deref(), orphan).await;
                let runner = started.map_err(|_| LoadProblem::Broken)?.ok_or(LoadProblem::OutOfMemory)?;
                self.journal.write(JournalEvent::RunnerStarted { pid: runner.pid });
                Some(runner)
            }
        };

        let exited = runner.as_ref().map(StandInRunner::exited);
        let instance = self.change(name, |entry| {
            entry.phase = Phase::Loaded;
            entry.instance += 1;
            entry.runner = runner;
            entry.instance
        });
        self.journal.write(JournalEvent::Loaded { model: name.to_owned() });
        if let (Some(exited), Some(instance)) = (exited, instance) {
            tokio::spawn(Arc::clone(self).watch_runner(name.to_owned(), instance, exited));
        }
        Ok(())
    }

    /// A runner that dies by itself takes its model along.
    async fn watch_runner(self: Arc<Self>, name: String, instance: u64, exited: CancellationToken) {
        exited.cancelled().await;
        let was_loaded = self.change(&name, |entry| {
            let died = entry.instance == instance && entry.phase == Phase::Loaded;
            if died {
                entry.phase = Phase::Away;
                entry.runner = None;
                entry.cut.cancel();
            }
            died
        });
        if was_loaded == Some(true) {
            self.journal.write(JournalEvent::Unloaded { model: name });
        }
    }

    /// Unloads a loaded model now; the caller has judged whether it is idle.
    pub async fn unload(self: &Arc<Self>, name: &str) {
        let begun = self.change(name, |entry| {
            let loaded = entry.phase == Phase::Loaded;
            if loaded {
                entry.phase = Phase::Unloading;
            }
            loaded
        });
        if begun == Some(true) {
            self.finish_unload(name).await;
        }
    }

    /// The rest of an unload whose phase is set already.
    pub async fn finish_unload(self: &Arc<Self>, name: &str) {
        tokio::time::sleep(self.options.unload_time()).await;
        if self.options.has(Manner::UnloadHangs) {
            std::future::pending::<()>().await;
        }

        let runner = self.change(name, |entry| entry.runner.take()).flatten();
        match (runner, self.owner) {
            (Some(runner), _) if self.options.has(Manner::ChildSurvives) => drop(runner),
            (Some(runner), _) => runner.stop().await,
            (None, _) if self.options.has(Manner::LoadLies) => {}
            (None, MemoryOwner::App) => {
                let bytes = self.look(name, |entry| entry.bytes).unwrap_or(0);
                if let Err(error) = self.memory.give_back(bytes) {
                    eprintln!("giving memory back: {error:#}");
                }
            }
            (None, MemoryOwner::Runner(_)) => {}
        }
        self.change(name, |entry| entry.phase = Phase::Away);
        self.journal.write(JournalEvent::Unloaded { model: name.to_owned() });
    }

    /// On SIGTERM: answers end early, runners are stopped.
    pub async fn terminate(self: &Arc<Self>) {
        for name in self.names() {
            self.change(&name, |entry| entry.cut.cancel());
        }
        // Answers write their end.
        tokio::time::sleep(std::time::Duration::from_millis(30)).await;
        for name in self.names() {
            if let Some(runner) = self.change(&name, |entry| entry.runner.take()).flatten() {
                runner.stop().await;
            }
        }
    }

    /// The whole app dies of a request.
    pub fn die(&self, cause: &str) -> ! {
        self.journal.violation(ViolationKind::Died, cause);
        eprintln!("{cause}");
        std::process::exit(134)
    }
}
