//! The thread that owns the sessions. Requests send it commands; between commands it runs the decoder over every row that
//! waits for a step, whichever request the row belongs to.
//!
//! After one long command (encoding a window, prefilling a long prompt) follows one step of all rows, so that neither side
//! waits for more than one turn of the other. Searches run on this thread too, so that no row waits for a request's thread.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc,
        atomic::Ordering,
        mpsc::{Receiver, Sender, TryRecvError},
    },
};

use super::{
    beam_batch::BeamBatch,
    encoder::Encoder,
    kv_cache::{DecoderMemory, DecoderSession, StepInput, StepScores, combined_need},
    kv_slots::KvSlots,
    worker_handle::{EngineCommand, SearchProgress, WindowId},
};
use crate::decoding::{NeededScores, Scores, Search, SearchChoice, TokenRanges};

/// Prompts up to this length are prefilled without a turn of their own: they cost about as much as a step.
const SHORT_PROMPT_TOKENS: usize = 8;

/// How much the engine holds at most.
#[derive(Clone, Copy, Debug)]
pub struct EngineLimits {
    /// Windows at the same time; further windows wait.
    pub windows: usize,
    /// Rows of searches over several rows at the same time; further searches wait. A single search may have more.
    pub rows: usize,
}

pub struct DecodeWorker {
    encoder: Encoder,
    decoder: DecoderSession,
    limits: EngineLimits,
    queue: VecDeque<EngineCommand>,
    windows: HashMap<WindowId, WindowState>,
    /// Where the windows are in memory; searches over a single row take their steps there, too.
    slots: KvSlots,
    /// Searches over several rows, one batch for each number of rows.
    beam_batches: Vec<BeamBatch>,
    next_window: WindowId,
}

/// A window, and the row from which its searches start.
struct WindowState {
    /// Prefilled tokens.
    length: usize,
    /// The logits after the last prefilled token.
    logits: Vec<f32>,
    /// The active search, if it is over a single row.
    single_search: Option<ActiveSearch>,
}

/// A search that takes steps.
pub(super) struct ActiveSearch {
    strategy: Box<dyn Search>,
    progress: Arc<SearchProgress>,
    reply: Sender<Result<Box<dyn Search>, ort::Error>>,
    /// The input of the next step, one token for each row.
    pub(super) tokens: Vec<u32>,
    /// The row that each row continues, until the rows in memory are rearranged.
    pub(super) parents: Option<Vec<usize>>,
    /// Tokens in the KV cache of each row.
    pub(super) length: usize,
}

impl ActiveSearch {
    /// Lets the search choose the next tokens from the scores of a step.
    pub(super) fn choose_tokens(&mut self, scores: &mut Scores<'_>) -> StepOutcome {
        match self.strategy.choose(scores) {
            SearchChoice::Done => StepOutcome::Finished,
            SearchChoice::Continue { tokens, parents } => {
                self.tokens = tokens;
                self.parents = parents;
                self.progress.steps.fetch_add(1, Ordering::Relaxed);

                let is_cancelled = self.progress.is_cancelled.load(Ordering::Relaxed);
                if is_cancelled { StepOutcome::Cancelled } else { StepOutcome::Continue }
            }
        }
    }

    pub(super) fn strategy(&self) -> &dyn Search {
        &*self.strategy
    }

    /// Reports the end of the search to the request, unless the request has cancelled it.
    pub(super) fn end(self, outcome: StepOutcome) {
        let result = match outcome {
            StepOutcome::Finished => Ok(self.strategy),
            StepOutcome::Failed(error) => Err(error),
            StepOutcome::Continue | StepOutcome::Cancelled => return,
        };

        // The request may have ended in the meantime.
        let _ = self.reply.send(result);
    }
}

/// The state of a search after a step.
pub(super) enum StepOutcome {
    Continue,
    Finished,
    /// The request no longer waits for the result.
    Cancelled,
    Failed(ort::Error),
}

/// The input of one step over all searches of a single row.
#[derive(Default)]
struct SingleRowStep {
    tokens: Vec<u32>,
    lengths: Vec<usize>,
    ranges: Vec<TokenRanges>,
    needed: Vec<NeededScores>,
}

impl DecodeWorker {
    pub fn new(encoder: Encoder, decoder: DecoderSession, limits: EngineLimits) -> Result<Self, ort::Error> {
        let slots = KvSlots::new(&decoder, limits.windows)?;

        Ok(Self {
            encoder,
            decoder,
            limits,
            queue: VecDeque::new(),
            windows: HashMap::new(),
            slots,
            beam_batches: Vec::new(),
            next_window: 0,
        })
    }

    /// Executes commands and decode steps until all senders of commands are dropped.
    pub fn run(mut self, inbox: &Receiver<EngineCommand>) {
        if let DecoderMemory::Device { context, .. } = &self.decoder.memory
            && let Err(error) = context.cuda.use_device()
        {
            // The first command fails with the same error, which its request then reports.
            tracing::warn!("the engine's thread cannot use the device: {error}");
        }

        loop {
            if self.queue.is_empty() && !self.has_active_searches() {
                let Ok(command) = inbox.recv() else { return };
                self.enqueue(command);
            }

            loop {
                match inbox.try_recv() {
                    Ok(command) => self.enqueue(command),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return,
                }
            }

            self.execute_queued();
            self.step_single_rows();
            for batch in &mut self.beam_batches {
                batch.step(&mut self.decoder);
            }
        }
    }

    fn has_active_searches(&self) -> bool {
        self.slots.stepping() > 0 || self.beam_batches.iter().any(|batch| !batch.is_empty())
    }

    fn enqueue(&mut self, command: EngineCommand) {
        match command {
            // Executed at once, because queued commands may wait for its slot.
            EngineCommand::Release { window } => self.release_window(window),
            command => self.queue.push_back(command),
        }
    }

    /// Executes queued commands, up to and with the first that takes long. Commands that have to wait for a slot or for
    /// rows keep their order in the queue.
    fn execute_queued(&mut self) {
        let mut waiting = VecDeque::new();
        let (mut no_slot, mut no_rows) = (false, false);

        while let Some(command) = self.queue.pop_front() {
            match command {
                EngineCommand::Encode { .. } if no_slot || self.slots.len() >= self.limits.windows => {
                    no_slot = true;
                    waiting.push_back(command);
                }
                EngineCommand::Decode { ref search, .. }
                    if search.rows() > 1 && (no_rows || !self.has_free_rows(search.rows())) =>
                {
                    no_rows = true;
                    waiting.push_back(command);
                }
                command => {
                    if self.execute(command) {
                        break;
                    }
                }
            }
        }

        while let Some(command) = waiting.pop_back() {
            self.queue.push_front(command);
        }
    }

    /// Whether a search over so many rows may begin. If no other search over several rows is active, it always may.
    fn has_free_rows(&self, rows: usize) -> bool {
        let used: usize = self.beam_batches.iter().map(BeamBatch::used_rows).sum();
        used == 0 || used + rows <= self.limits.rows
    }

    /// Executes a command; returns whether it took long.
    fn execute(&mut self, command: EngineCommand) -> bool {
        match command {
            EngineCommand::Encode { mel, reply } => {
                let window = self.encode(&mel);
                if let (Err(lost), id) = (reply.send((mel, window)), self.next_window) {
                    // The request has ended, so that it cannot release the window.
                    if lost.0.1.is_ok() {
                        self.release_window(id);
                    }
                }

                true
            }
            EngineCommand::Hidden { mel, reply } => {
                let _ = reply.send(self.encoder.hidden(&mel));
                true
            }
            EngineCommand::Prefill { window, restart, tokens, reply } => {
                let is_long = tokens.len() > SHORT_PROMPT_TOKENS;
                let _ = reply.send(self.prefill(window, restart, &tokens));
                is_long
            }
            EngineCommand::Decode { window, search, progress, reply } => {
                let (tokens, parents) = (Vec::new(), None);
                self.begin_search(
                    window,
                    ActiveSearch { strategy: search, progress, reply, tokens, parents, length: 0 },
                );
                false
            }
            EngineCommand::ReadCross { window, task } => {
                let slot = self.slots.slot_of(window);
                match slot.and_then(|slot| self.slots.cache().cross(&self.decoder, slot)) {
                    Ok(mut cross) => task(Ok(&mut cross)),
                    Err(error) => task(Err(error)),
                }
                true
            }
            EngineCommand::Release { window } => {
                self.release_window(window);
                false
            }
        }
    }

    fn encode(&mut self, mel: &[f32]) -> Result<WindowId, ort::Error> {
        self.next_window += 1;
        let id = self.next_window;
        let positions = self.decoder.lengths.positions(mel)?;
        let slot = self.slots.allocate(&self.decoder, id, self.limits.windows)?;

        match self.encode_into(slot, positions, mel) {
            Ok(()) => {
                self.windows.insert(id, WindowState { length: 0, logits: Vec::new(), single_search: None });
                Ok(id)
            }
            Err(error) => {
                self.release_slot(id);
                Err(error)
            }
        }
    }

    /// Encodes a window into a slot.
    fn encode_into(&mut self, slot: usize, positions: usize, mel: &[f32]) -> Result<(), ort::Error> {
        let cache = self.slots.cache();
        let mut cross = cache.begin_window(&self.decoder, slot, positions)?;
        self.encoder.encode(mel, &mut cross)?;
        cache.complete_window(slot, &cross)
    }

    fn prefill(&mut self, window: WindowId, restart: bool, tokens: &[u32]) -> Result<Vec<f32>, ort::Error> {
        let slot = self.slots.slot_of(window)?;
        let state = self.windows.get_mut(&window).ok_or_else(unknown_window)?;
        if restart {
            state.length = 0;
        }

        let lengths = [state.length];
        let prompt = StepInput::prompt(tokens, &lengths);
        let StepScores::Logits(logits) = self.slots.cache().run(&mut self.decoder, slot..slot + 1, &prompt)? else {
            return Err(ort::Error::new("a prompt without logits"));
        };

        state.length += tokens.len();
        state.logits.clear();
        state.logits.extend_from_slice(logits);

        Ok(state.logits.clone())
    }

    /// Lets the search choose its first tokens from the prefilled logits, and adds it to those that take steps.
    fn begin_search(&mut self, window: WindowId, mut search: ActiveSearch) {
        let Some(state) = self.windows.get_mut(&window) else {
            return search.end(StepOutcome::Failed(unknown_window()));
        };

        if state.logits.is_empty() {
            return search.end(StepOutcome::Failed(ort::Error::new("a search without a prompt")));
        }

        let rows = search.strategy.rows().max(1);
        search.length = state.length;

        let mut first_logits = state.logits.repeat(rows);
        let row_order: Vec<usize> = (0..rows).collect();
        let outcome = search.choose_tokens(&mut Scores::logits(&mut first_logits, state.logits.len(), &row_order));
        let StepOutcome::Continue = outcome else { return search.end(outcome) };

        // All rows still have the same tokens, so nothing is rearranged.
        search.parents = None;

        if rows == 1 {
            state.single_search = Some(search);
            let lengths = row_lengths(&self.windows);
            if let Err(error) = self.slots.begin_stepping(window, &lengths) {
                self.fail_single_rows(&error);
            }
            return;
        }

        if let Err((search, error)) = self.begin_beam_search(window, search, rows) {
            search.end(StepOutcome::Failed(error));
        }
    }

    fn begin_beam_search(
        &mut self,
        window: WindowId,
        search: ActiveSearch,
        rows: usize,
    ) -> Result<(), (ActiveSearch, ort::Error)> {
        if !self.beam_batches.iter().any(|batch| batch.rows() == rows) {
            // Frees the memory of batches that have no search any more.
            self.beam_batches.retain(|batch| !batch.is_empty());

            match BeamBatch::new(&self.decoder, rows) {
                Ok(batch) => self.beam_batches.push(batch),
                Err(error) => return Err((search, error)),
            }
        }

        let Some(batch) = self.beam_batches.iter_mut().find(|batch| batch.rows() == rows) else { return Ok(()) };
        match self.slots.slot_of(window) {
            Ok(slot) => batch.add(&mut self.decoder, self.slots.cache(), slot, window, search, self.limits.rows),
            Err(error) => Err((search, error)),
        }
    }

    /// Runs one decode step for all searches over a single row.
    fn step_single_rows(&mut self) {
        let ids = self.slots.stepping_windows().to_vec();
        if ids.is_empty() {
            return;
        }

        let step = self.single_row_step(&ids);
        let needed = combined_need(step.needed.iter().copied());
        let input = StepInput { tokens: &step.tokens, lengths: &step.lengths, ranges: &step.ranges, needed };
        let mut ended = Vec::new();

        // All rows together, and if that fails each row alone, so that only those fail that cannot be continued.
        let max_tokens = self.decoder.shape.max_tokens;
        let is_done =
            input.lengths.iter().all(|length| *length < max_tokens) && self.step_together(&ids, &input, &mut ended);

        if !is_done {
            self.step_one_by_one(&ids, &input, &mut ended);
        }

        for (id, outcome) in ended {
            self.end_single_row(id, outcome);
        }
    }

    fn single_row_step(&self, ids: &[WindowId]) -> SingleRowStep {
        let mut step = SingleRowStep::default();
        for id in ids {
            let Some(search) = self.windows.get(id).and_then(|state| state.single_search.as_ref()) else { continue };
            step.tokens.push(search.tokens.first().copied().unwrap_or_default());
            step.lengths.push(search.length);
            step.ranges.push(search.strategy().ranges(0));
            step.needed.push(search.strategy().needed_scores());
        }

        step
    }

    /// Steps all rows in one call; returns `false` if the call failed and each row should be tried alone.
    fn step_together(
        &mut self,
        ids: &[WindowId],
        input: &StepInput<'_>,
        ended: &mut Vec<(WindowId, StepOutcome)>,
    ) -> bool {
        match self.slots.cache().run(&mut self.decoder, 0..ids.len(), input) {
            Ok(mut scores) => {
                for (row, id) in ids.iter().enumerate() {
                    let scores = scores.of_rows(row..row + 1, ids.len(), &[0]);
                    ended.extend(advance(&mut self.windows, *id, Ok(scores)));
                }
                true
            }
            Err(error) if ids.len() == 1 => {
                ended.push((ids[0], StepOutcome::Failed(error)));
                true
            }
            Err(error) => {
                tracing::warn!("a step over {} rows failed, trying each: {error}", ids.len());
                false
            }
        }
    }

    fn step_one_by_one(&mut self, ids: &[WindowId], input: &StepInput<'_>, ended: &mut Vec<(WindowId, StepOutcome)>) {
        for (slot, id) in ids.iter().enumerate() {
            let single = StepInput {
                tokens: &input.tokens[slot..=slot],
                lengths: &input.lengths[slot..=slot],
                ranges: &input.ranges[slot..=slot],
                needed: input.needed,
            };

            let mut scores = self.slots.cache().run(&mut self.decoder, slot..slot + 1, &single);
            let scores = match &mut scores {
                Ok(scores) => Ok(scores.of_rows(0..1, 1, &[0])),
                Err(error) => Err(ort::Error::new(error.to_string())),
            };

            ended.extend(advance(&mut self.windows, *id, scores));
        }
    }

    fn end_single_row(&mut self, window: WindowId, outcome: StepOutcome) {
        let lengths = row_lengths(&self.windows);
        let moved = self.slots.end_stepping(window, &lengths);
        if let Some(search) = self.windows.get_mut(&window).and_then(|state| state.single_search.take()) {
            search.end(outcome);
        }

        if let Err(error) = moved {
            self.fail_single_rows(&error);
        }
    }

    /// Ends all searches over a single row after a copy between two slots failed: the content of the slots is undefined.
    fn fail_single_rows(&mut self, error: &ort::Error) {
        self.slots.end_all_stepping();

        for state in self.windows.values_mut() {
            if let Some(search) = state.single_search.take() {
                search.end(StepOutcome::Failed(ort::Error::new(error.to_string())));
            }
        }
    }

    fn release_window(&mut self, window: WindowId) {
        for batch in &mut self.beam_batches {
            batch.remove(window);
        }
        self.release_slot(window);
        self.windows.remove(&window);
    }

    fn release_slot(&mut self, window: WindowId) {
        let lengths = row_lengths(&self.windows);
        if let Err(error) = self.slots.release(window, &lengths) {
            self.fail_single_rows(&error);
        }
    }
}

/// Gives a step's scores to the window's search over a single row; returns the outcome if the search has ended.
fn advance(
    windows: &mut HashMap<WindowId, WindowState>,
    window: WindowId,
    scores: Result<Scores<'_>, ort::Error>,
) -> Option<(WindowId, StepOutcome)> {
    let search = windows.get_mut(&window)?.single_search.as_mut()?;
    let outcome = match scores {
        Ok(mut scores) => {
            search.length += 1;
            search.choose_tokens(&mut scores)
        }
        Err(error) => StepOutcome::Failed(error),
    };

    (!matches!(outcome, StepOutcome::Continue)).then_some((window, outcome))
}

/// How many tokens of each window's own row a copy must include.
fn row_lengths(windows: &HashMap<WindowId, WindowState>) -> impl Fn(WindowId) -> usize + use<> {
    let known: HashMap<WindowId, usize> = windows
        .iter()
        .map(|(id, state)| (*id, state.single_search.as_ref().map_or(state.length, |search| search.length)))
        .collect();

    move |window| known.get(&window).copied().unwrap_or_default()
}

fn unknown_window() -> ort::Error {
    ort::Error::new("no such window")
}
