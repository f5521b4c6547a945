//! The thread that owns the sessions. Jobs send it orders; between them it runs the decoder over every row that waits for
//! a step, whatever request the row belongs to.
//!
//! One order of those that take long (to listen to a window, to read a long prompt) is followed by one step of all rows:
//! neither side waits for more than one of the other's. Rows never wait for a job's thread, because searches run here.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc,
        atomic::Ordering,
        mpsc::{Receiver, Sender, TryRecvError},
    },
};

use super::{
    encoder::Encoder,
    kv_cache::{Backend, Decoder, StepInput, StepScores, wanted_together},
    seats::Seats,
    wide::Wide,
    window::{Order, Watch, WindowId},
};
use crate::decoding::{Next, Scores, Search};

/// Prompts up to this length are read at once, whatever waits: they cost about as much as a step.
const SHORT_PROMPT: usize = 8;

/// How much the engine holds at most.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Windows at the same time; further ones wait.
    pub windows: usize,
    /// Rows of searches over several rows at the same time; further searches wait. One search may be larger.
    pub rows: usize,
}

pub struct Owner {
    encoder: Encoder,
    decoder: Decoder,
    limits: Limits,
    queue: VecDeque<Order>,
    windows: HashMap<WindowId, Held>,
    /// Where the windows lie; those whose search has one row take their steps there, too.
    seats: Seats,
    /// Searches over several rows, by their number of rows.
    wide: Vec<Wide>,
    next_window: WindowId,
}

/// A window, and the one row that searches begin from.
struct Held {
    /// Tokens that were fed.
    length: usize,
    /// After the last of them.
    logits: Vec<f32>,
    /// A search of one row.
    decoding: Option<Decoding>,
}

/// A search under way.
pub(super) struct Decoding {
    search: Box<dyn Search>,
    watch: Arc<Watch>,
    end: Sender<Result<Box<dyn Search>, ort::Error>>,
    /// To feed next, one for each row.
    pub(super) tokens: Vec<u32>,
    /// The row that each row continues, until that is done.
    pub(super) from: Option<Vec<usize>>,
    /// Tokens in each row's cache.
    pub(super) length: usize,
}

impl Decoding {
    /// Lets the search choose; whether it goes on.
    pub(super) fn choose(&mut self, scores: &mut Scores<'_>) -> Course {
        match self.search.choose(scores) {
            Next::Done => Course::Done,
            Next::Feed { tokens, from } => {
                self.tokens = tokens;
                self.from = from;
                self.watch.steps.fetch_add(1, Ordering::Relaxed);
                if self.watch.cancelled.load(Ordering::Relaxed) { Course::Gone } else { Course::On }
            }
        }
    }

    pub(super) fn search(&self) -> &dyn Search {
        &*self.search
    }

    pub(super) fn end(self, course: Course) {
        let end = match course {
            Course::Done => Ok(self.search),
            Course::Failed(error) => Err(error),
            Course::On | Course::Gone => return,
        };

        // The job may have left in the meantime.
        let _ = self.end.send(end);
    }
}

/// How a search goes on after a step.
pub(super) enum Course {
    On,
    Done,
    /// Nobody waits for it any more.
    Gone,
    Failed(ort::Error),
}

impl Owner {
    pub fn new(encoder: Encoder, decoder: Decoder, limits: Limits) -> Result<Self, ort::Error> {
        let seats = Seats::new(&decoder, limits.windows)?;

        Ok(Self {
            encoder,
            decoder,
            limits,
            queue: VecDeque::new(),
            windows: HashMap::new(),
            seats,
            wide: Vec::new(),
            next_window: 0,
        })
    }

    /// Works until nobody can send an order any more.
    pub fn run(mut self, inbox: &Receiver<Order>) {
        if let Backend::Device { context, .. } = &self.decoder.backend
            && let Err(error) = context.cuda.use_device()
        {
            // The first call says it again, and to whom it concerns.
            tracing::warn!("the engine's thread cannot use the device: {error}");
        }

        loop {
            if self.queue.is_empty() && !self.decodes() {
                let Ok(order) = inbox.recv() else { return };
                self.take(order);
            }

            loop {
                match inbox.try_recv() {
                    Ok(order) => self.take(order),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return,
                }
            }

            self.serve();
            self.step_singles();
            for index in 0..self.wide.len() {
                self.wide[index].step(&mut self.decoder);
            }
        }
    }

    fn decodes(&self) -> bool {
        self.seats.stepping() > 0 || self.wide.iter().any(|wide| !wide.is_empty())
    }

    fn take(&mut self, order: Order) {
        match order {
            // At once: others may wait for its place.
            Order::Drop { window } => self.forget(window),
            order => self.queue.push_back(order),
        }
    }

    /// Does what was ordered, up to one order that takes long. What has to wait for a place keeps its turn.
    fn serve(&mut self) {
        let mut waiting = VecDeque::new();
        let (mut no_place, mut no_rows) = (false, false);

        while let Some(order) = self.queue.pop_front() {
            match order {
                Order::Encode { .. } if no_place || self.seats.len() >= self.limits.windows => {
                    no_place = true;
                    waiting.push_back(order);
                }
                Order::Decode { ref search, .. } if search.rows() > 1 && (no_rows || !self.has_rows(search.rows())) => {
                    no_rows = true;
                    waiting.push_back(order);
                }
                order => {
                    if self.obey(order) {
                        break;
                    }
                }
            }
        }

        while let Some(order) = waiting.pop_back() {
            self.queue.push_front(order);
        }
    }

    /// Whether a search over so many rows may begin; a single one always may.
    fn has_rows(&self, rows: usize) -> bool {
        let used: usize = self.wide.iter().map(Wide::used_rows).sum();
        used == 0 || used + rows <= self.limits.rows
    }

    /// Whether it took long.
    fn obey(&mut self, order: Order) -> bool {
        match order {
            Order::Encode { mel, reply } => {
                let window = self.encode(&mel);
                if let (Err(lost), id) = (reply.send((mel, window)), self.next_window) {
                    // Nobody will ever drop it.
                    if lost.0.1.is_ok() {
                        self.forget(id);
                    }
                }

                true
            }
            Order::Hidden { mel, reply } => {
                let _ = reply.send(self.encoder.hidden(&mel));
                true
            }
            Order::Feed { window, restart, tokens, reply } => {
                let long = tokens.len() > SHORT_PROMPT;
                let _ = reply.send(self.feed(window, restart, &tokens));
                long
            }
            Order::Decode { window, search, watch, end } => {
                let (tokens, from) = (Vec::new(), None);
                self.begin(window, Decoding { search, watch, end, tokens, from, length: 0 });
                false
            }
            Order::Look { window, task } => {
                let place = self.seats.place(window);
                match place.and_then(|place| self.seats.cache().cross(&self.decoder, place)) {
                    Ok(mut cross) => task(Ok(&mut cross)),
                    Err(error) => task(Err(error)),
                }
                true
            }
            Order::Drop { window } => {
                self.forget(window);
                false
            }
        }
    }

    fn encode(&mut self, mel: &[f32]) -> Result<WindowId, ort::Error> {
        self.next_window += 1;
        let id = self.next_window;
        let place = self.seats.add(&self.decoder, id, self.limits.windows)?;
        let encoded = self.seats.cache().cross(&self.decoder, place);

        match encoded.and_then(|mut cross| self.encoder.encode(mel, &mut cross)) {
            Ok(()) => {
                self.windows.insert(id, Held { length: 0, logits: Vec::new(), decoding: None });
                Ok(id)
            }
            Err(error) => {
                self.remove_seat(id);
                Err(error)
            }
        }
    }

    fn feed(&mut self, window: WindowId, restart: bool, tokens: &[u32]) -> Result<Vec<f32>, ort::Error> {
        let place = self.seats.place(window)?;
        let held = self.windows.get_mut(&window).ok_or_else(unknown)?;
        if restart {
            held.length = 0;
        }

        let lengths = [held.length];
        let prompt = StepInput::prompt(tokens, &lengths);
        let StepScores::Logits(logits) = self.seats.cache().run(&mut self.decoder, place..place + 1, &prompt)? else {
            return Err(ort::Error::new("a prompt without logits"));
        };

        held.length += tokens.len();
        held.logits.clear();
        held.logits.extend_from_slice(logits);

        Ok(held.logits.clone())
    }

    fn begin(&mut self, window: WindowId, mut decoding: Decoding) {
        let Some(held) = self.windows.get_mut(&window) else { return decoding.end(Course::Failed(unknown())) };
        if held.logits.is_empty() {
            return decoding.end(Course::Failed(ort::Error::new("a search without a prompt")));
        }

        let rows = decoding.search.rows().max(1);
        decoding.length = held.length;
        let mut first = held.logits.repeat(rows);
        let places: Vec<usize> = (0..rows).collect();
        let course = decoding.choose(&mut Scores::logits(&mut first, held.logits.len(), &places));
        let Course::On = course else { return decoding.end(course) };

        // So far all rows are the same.
        decoding.from = None;

        if rows == 1 {
            held.decoding = Some(decoding);
            let lengths = lengths(&self.windows);
            if let Err(error) = self.seats.begin(window, &lengths) {
                self.fail_singles(&error);
            }
            return;
        }

        if let Err((decoding, error)) = self.begin_wide(window, decoding, rows) {
            decoding.end(Course::Failed(error));
        }
    }

    fn begin_wide(&mut self, window: WindowId, decoding: Decoding, rows: usize) -> Result<(), (Decoding, ort::Error)> {
        if !self.wide.iter().any(|wide| wide.rows() == rows) {
            // Memory of widths that nobody uses any more.
            self.wide.retain(|wide| !wide.is_empty());

            match Wide::new(&self.decoder, rows) {
                Ok(wide) => self.wide.push(wide),
                Err(error) => return Err((decoding, error)),
            }
        }

        let Some(wide) = self.wide.iter_mut().find(|wide| wide.rows() == rows) else { return Ok(()) };

        match self.seats.place(window) {
            Ok(place) => wide.add(&mut self.decoder, self.seats.cache(), place, window, decoding, self.limits.rows),
            Err(error) => Err((decoding, error)),
        }
    }

    /// One token for each search of one row.
    fn step_singles(&mut self) {
        let ids = self.seats.stepping_windows().to_vec();
        if ids.is_empty() {
            return;
        }

        let (mut tokens, mut lengths) = (Vec::with_capacity(ids.len()), Vec::with_capacity(ids.len()));
        let (mut ranges, mut wanted) = (Vec::with_capacity(ids.len()), Vec::with_capacity(ids.len()));
        for id in &ids {
            let Some(decoding) = self.windows.get(id).and_then(|held| held.decoding.as_ref()) else { continue };
            tokens.push(decoding.tokens.first().copied().unwrap_or_default());
            lengths.push(decoding.length);
            ranges.push(decoding.search().ranges(0));
            wanted.push(decoding.search().wants());
        }

        let wanted = wanted_together(wanted.into_iter());
        let all = StepInput { tokens: &tokens, lengths: &lengths, ranges: &ranges, wanted };
        let slots = self.decoder.shape.slots;
        let mut ended = Vec::new();

        // Together, or where that fails each by itself: only what cannot be done fails.
        let together = lengths.iter().all(|length| *length < slots)
            && match self.seats.cache().run(&mut self.decoder, 0..ids.len(), &all) {
                Ok(mut scores) => {
                    for (row, id) in ids.iter().enumerate() {
                        let scores = scores.of_rows(row..row + 1, ids.len(), &[0]);
                        if let Some(course) = advance(&mut self.windows, *id, Ok(scores)) {
                            ended.push((*id, course));
                        }
                    }

                    true
                }
                Err(error) if ids.len() == 1 => {
                    ended.push((ids[0], Course::Failed(error)));
                    true
                }
                Err(error) => {
                    tracing::warn!("a step over {} rows failed, trying each: {error}", ids.len());
                    false
                }
            };

        if !together {
            for (place, id) in ids.iter().enumerate() {
                let (tokens, lengths) = (&tokens[place..=place], &lengths[place..=place]);
                let one = StepInput { tokens, lengths, ranges: &ranges[place..=place], wanted };
                let mut scores = self.seats.cache().run(&mut self.decoder, place..place + 1, &one);
                let scores = match &mut scores {
                    Ok(scores) => Ok(scores.of_rows(0..1, 1, &[0])),
                    Err(error) => Err(ort::Error::new(error.to_string())),
                };

                if let Some(course) = advance(&mut self.windows, *id, scores) {
                    ended.push((*id, course));
                }
            }
        }

        for (id, course) in ended {
            self.end_single(id, course);
        }
    }

    fn end_single(&mut self, window: WindowId, course: Course) {
        let lengths = lengths(&self.windows);
        let moved = self.seats.end(window, &lengths);
        if let Some(decoding) = self.windows.get_mut(&window).and_then(|held| held.decoding.take()) {
            decoding.end(course);
        }

        if let Err(error) = moved {
            self.fail_singles(&error);
        }
    }

    /// A copy between two places failed: nobody knows what is left in them.
    fn fail_singles(&mut self, error: &ort::Error) {
        self.seats.end_all();

        for held in self.windows.values_mut() {
            if let Some(decoding) = held.decoding.take() {
                decoding.end(Course::Failed(ort::Error::new(error.to_string())));
            }
        }
    }

    fn forget(&mut self, window: WindowId) {
        for wide in &mut self.wide {
            wide.remove(window);
        }
        self.remove_seat(window);
        self.windows.remove(&window);
    }

    fn remove_seat(&mut self, window: WindowId) {
        let lengths = lengths(&self.windows);
        if let Err(error) = self.seats.remove(window, &lengths) {
            self.fail_singles(&error);
        }
    }
}

/// Hands a step's scores to a search of one row; how it ends, if it does.
fn advance(
    windows: &mut HashMap<WindowId, Held>,
    window: WindowId,
    scores: Result<Scores<'_>, ort::Error>,
) -> Option<Course> {
    let decoding = windows.get_mut(&window)?.decoding.as_mut()?;
    let course = match scores {
        Ok(mut scores) => {
            decoding.length += 1;
            decoding.choose(&mut scores)
        }
        Err(error) => Course::Failed(error),
    };
    (!matches!(course, Course::On)).then_some(course)
}

/// How many tokens of each window's own row are worth a copy.
fn lengths(windows: &HashMap<WindowId, Held>) -> impl Fn(WindowId) -> usize + use<> {
    let known: HashMap<WindowId, usize> = windows
        .iter()
        .map(|(id, held)| (*id, held.decoding.as_ref().map_or(held.length, |decoding| decoding.length)))
        .collect();
    move |window| known.get(&window).copied().unwrap_or_default()
}

fn unknown() -> ort::Error {
    ort::Error::new("no such window")
}
