//! Candidates, an API server and the network between them, in virtual time.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::fmt::Write as _;
use std::time::Duration;

use hush_controller::lease::BootInstant;
use hush_controller::lease::candidate::{LeaseCandidate, LeaseRecord, LeaseStep, LeaseTiming};
use proptest::prelude::*;

const CANDIDATES: usize = 3;
/// A process that ends is started again as a new incarnation after this time, like a pod.
const RESTART_MS: u64 = 500;

/// What goes wrong, and how often.
#[derive(Clone, Debug)]
pub struct LeaseFaults {
    /// How many of 1000 messages are lost.
    pub lost_messages: u64,
    /// How many of 1000 messages are slow.
    pub slow_messages: u64,
    /// Each process ends once in this many milliseconds; 0: never. The same for the next three.
    pub kills_every_ms: u64,
    pub freezes_every_ms: u64,
    pub disconnects_every_ms: u64,
    pub changes_by_hand_every_ms: u64,
}

impl LeaseFaults {
    pub fn none() -> Self {
        let [
            lost_messages,
            slow_messages,
            kills_every_ms,
            freezes_every_ms,
            disconnects_every_ms,
            changes_by_hand_every_ms,
        ] = [0; 6];
        Self {
            lost_messages,
            slow_messages,
            kills_every_ms,
            freezes_every_ms,
            disconnects_every_ms,
            changes_by_hand_every_ms,
        }
    }

    pub fn any() -> impl Strategy<Value = Self> {
        let every = || prop_oneof![Just(0), 5_000_u64..60_000];
        (0_u64..300, 0_u64..300, every(), every(), every(), every()).prop_map(
            |(
                lost_messages,
                slow_messages,
                kills_every_ms,
                freezes_every_ms,
                disconnects_every_ms,
                changes_by_hand_every_ms,
            )| Self {
                lost_messages,
                slow_messages,
                kills_every_ms,
                freezes_every_ms,
                disconnects_every_ms,
                changes_by_hand_every_ms,
            },
        )
    }
}

/// What happens next. The first number is the index of the process.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum SimEvent {
    Wake(usize),
    /// A request reaches the server: the index and the incarnation of its process, and the number of the request.
    Arrive(usize, u64, u64, LeaseRequest),
    Answer(usize, u64, u64, LeaseSimReply),
    Timeout(usize, u64, u64),
    /// A watch shows a process this version of the lease.
    Watched(usize, u64),
    Resume(usize),
    Reconnect(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum LeaseRequest {
    Read,
    Create,
    /// Fails unless the lease still has this version.
    Replace {
        version: u64,
        transitions: i32,
    },
}

/// The version of the lease that was read or written.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum LeaseSimReply {
    Seen(usize),
    Wrote(usize),
    Conflict,
}

/// A process with a candidate, which is started again when it ends.
struct CandidateProcess {
    candidate: LeaseCandidate,
    incarnation: u64,
    /// The version of the lease that the process saw last.
    version: u64,
    request: Option<(u64, BootInstant)>,
    requests: u64,
    offset_ms: u64,
    /// The speed of its clock, in thousandths of the true speed.
    rate: u64,
    frozen: bool,
    disconnected: bool,
    /// The events that reach the process when it is no longer frozen.
    delayed: VecDeque<SimEvent>,
}

/// The whole simulation.
pub struct LeaseSim {
    now_ms: u64,
    random: u64,
    terms: LeaseTiming,
    faults: LeaseFaults,
    events: BinaryHeap<Reverse<(u64, u64, SimEvent)>>,
    sequence: u64,
    processes: Vec<CandidateProcess>,
    incarnations: u64,
    /// Every version of the lease, by its number; the last one is current.
    lease: Vec<Option<LeaseRecord>>,
    most_claims: usize,
    history: String,
}

impl LeaseSim {
    pub fn new(seed: u64, terms: LeaseTiming, faults: LeaseFaults) -> Self {
        let mut sim = Self {
            now_ms: 0,
            random: seed | 1,
            terms,
            faults,
            events: BinaryHeap::new(),
            sequence: 0,
            processes: Vec::new(),
            incarnations: 0,
            lease: vec![None],
            most_claims: 0,
            history: String::new(),
        };

        for index in 0..CANDIDATES {
            let process = sim.new_process();
            sim.processes.push(process);
            sim.schedule_after(0, SimEvent::Wake(index));
        }

        sim
    }

    pub fn run_with_faults(&mut self, time: Duration) {
        let end = self.now_ms + millis(time);
        while self.now_ms < end {
            self.advance_to(self.now_ms + 100);
            for index in 0..CANDIDATES {
                if self.occurs(self.faults.kills_every_ms) {
                    self.restart(index, "killed");
                }

                if self.occurs(self.faults.freezes_every_ms) && !self.processes[index].frozen {
                    self.processes[index].frozen = true;
                    let lasts = 100 + self.below(40_000);
                    self.log(format!("{index} freezes for {lasts}"));
                    self.schedule_after(lasts, SimEvent::Resume(index));
                }

                if self.occurs(self.faults.disconnects_every_ms) && !self.processes[index].disconnected {
                    self.processes[index].disconnected = true;
                    let lasts = 100 + self.below(40_000);
                    self.log(format!("{index} is cut off for {lasts}"));
                    self.schedule_after(lasts, SimEvent::Reconnect(index));
                }
            }

            if self.occurs(self.faults.changes_by_hand_every_ms) {
                self.change_by_hand();
            }
        }
    }

    pub fn run_without_faults(&mut self, time: Duration) {
        self.faults = LeaseFaults::none();
        for index in 0..CANDIDATES {
            self.processes[index].disconnected = false;
            self.resume(index);
        }
        self.advance_to(self.now_ms + millis(time));
    }

    pub fn kill_leader(&mut self) {
        let leader = (0..CANDIDATES).find(|index| self.claims_now(*index)).expect("no process leads");
        self.restart(leader, "killed");
    }

    pub fn claims(&self) -> usize {
        (0..CANDIDATES).filter(|index| self.claims_now(*index)).count()
    }

    pub const fn most_claims(&self) -> usize {
        self.most_claims
    }

    pub fn history(&self) -> &str {
        &self.history
    }

    fn advance_to(&mut self, end: u64) {
        while let Some(Reverse((at, ..))) = self.events.peek()
            && *at <= end
        {
            let Some(Reverse((at, _, event))) = self.events.pop() else { break };
            self.now_ms = at;
            self.check();
            self.handle(event);
            self.check();
        }
        self.now_ms = end;
        self.check();
    }

    fn check(&mut self) {
        let claims = self.claims();
        if claims > 1 && claims > self.most_claims {
            self.log(format!("{claims} CLAIMS"));
        }
        self.most_claims = self.most_claims.max(claims);
    }

    /// Whether the process holds a claim. A frozen process counts too: it may continue at any time, and must not hold a wrong
    /// claim then.
    fn claims_now(&self, index: usize) -> bool {
        let now = self.local_time(index);
        self.processes[index].candidate.claim().is_some_and(|until| now < until)
    }

    fn handle(&mut self, event: SimEvent) {
        match event {
            SimEvent::Resume(index) => self.resume(index),
            SimEvent::Reconnect(index) => self.processes[index].disconnected = false,
            SimEvent::Arrive(index, incarnation, number, request) => {
                self.serve_request(index, incarnation, number, request)
            }
            SimEvent::Wake(index)
            | SimEvent::Answer(index, ..)
            | SimEvent::Timeout(index, ..)
            | SimEvent::Watched(index, _) => {
                if self.processes[index].frozen {
                    self.processes[index].delayed.push_back(event);
                } else {
                    self.deliver(index, event);
                }
            }
        }
    }

    /// Gives a process an event that it notices.
    fn deliver(&mut self, index: usize, event: SimEvent) {
        let now = self.local_time(index);
        let record = |version: usize| self.lease[version].clone();
        match event {
            SimEvent::Answer(_, incarnation, request, reply) => {
                let process = &mut self.processes[index];
                let Some((asked, sent)) = process.request.filter(|_| process.incarnation == incarnation) else {
                    return;
                };
                if asked != request {
                    return;
                }

                process.request = None;
                match reply {
                    LeaseSimReply::Seen(version) => {
                        process.version = version as u64;
                        process.candidate.observe(now, record(version));
                    }
                    LeaseSimReply::Wrote(version) => {
                        process.version = version as u64;
                        process.candidate.record_write(sent, record(version).expect("a written lease"));
                    }
                    LeaseSimReply::Conflict => process.candidate.mark_outdated(),
                }
            }
            SimEvent::Timeout(_, incarnation, request) => {
                let process = &mut self.processes[index];
                if process.incarnation != incarnation || process.request.map(|(asked, _)| asked) != Some(request) {
                    return;
                }

                process.request = None;
                process.candidate.record_failure(now);
            }
            SimEvent::Watched(_, version) => {
                let record = record(usize::try_from(version).unwrap());
                let process = &mut self.processes[index];

                // As in the elector, a process that holds the lease or waits for an answer does not watch.
                if process.request.is_none() && process.candidate.claim().is_none() {
                    process.version = version;
                    process.candidate.observe(now, record);
                }
            }
            _ => {}
        }

        self.continue_candidate(index);
    }

    /// Does what the candidate wants to do next.
    fn continue_candidate(&mut self, index: usize) {
        if self.processes[index].request.is_some() {
            return;
        }

        let now = self.local_time(index);
        match self.processes[index].candidate.next_step(now) {
            LeaseStep::Lost(loss) => self.restart(index, &loss.to_string()),
            LeaseStep::Read => self.send(index, LeaseRequest::Read),
            LeaseStep::Create => self.send(index, LeaseRequest::Create),
            LeaseStep::Write { transitions } => {
                let version = self.processes[index].version;
                self.send(index, LeaseRequest::Replace { version, transitions });
            }
            LeaseStep::Wait { until } => {
                let wait = millis(now.until(until)) * 1000 / self.processes[index].rate + 1;
                self.schedule_after(wait, SimEvent::Wake(index));
            }
        }
    }

    fn send(&mut self, index: usize, request: LeaseRequest) {
        let (now, renew) = (self.local_time(index), millis(self.terms.renew));
        let process = &mut self.processes[index];
        process.requests += 1;
        process.request = Some((process.requests, now));

        let (incarnation, number, rate, disconnected) =
            (process.incarnation, process.requests, process.rate, process.disconnected);
        self.schedule_after(renew * 1000 / rate, SimEvent::Timeout(index, incarnation, number));
        if let Some(delay) = self.message_delay().filter(|_| !disconnected) {
            self.schedule_after(delay, SimEvent::Arrive(index, incarnation, number, request));
        }
    }

    /// The API server carries out every request that reaches it, also when no process waits for the answer any more.
    fn serve_request(&mut self, index: usize, incarnation: u64, number: u64, request: LeaseRequest) {
        let current = self.lease.len() - 1;
        let record = |holder, transitions| LeaseRecord {
            holder,
            duration: Some(self.terms.lease),
            renewed: format!("{incarnation}-{number}"),
            transitions,
        };

        let exists = self.lease[current].is_some();
        let reply = match request {
            LeaseRequest::Read => LeaseSimReply::Seen(current),
            LeaseRequest::Create if !exists => {
                let record = record(None, 0);
                self.write(index, record);
                LeaseSimReply::Seen(current + 1)
            }
            LeaseRequest::Replace { version, transitions } if version == current as u64 && exists => {
                let record = record(Some(format!("life-{incarnation}")), transitions);
                self.write(index, record);
                LeaseSimReply::Wrote(current + 1)
            }
            LeaseRequest::Create | LeaseRequest::Replace { .. } => LeaseSimReply::Conflict,
        };

        if let Some(delay) = self.message_delay().filter(|_| !self.processes[index].disconnected) {
            self.schedule_after(delay, SimEvent::Answer(index, incarnation, number, reply));
        }
    }

    fn write(&mut self, index: usize, record: LeaseRecord) {
        self.log(format!("{index} writes {record:?}"));
        self.change(Some(record));
    }

    fn change(&mut self, lease: Option<LeaseRecord>) {
        self.lease.push(lease);
        let version = self.lease.len() as u64 - 1;
        for index in 0..CANDIDATES {
            if let Some(delay) = self.message_delay().filter(|_| !self.processes[index].disconnected) {
                self.schedule_after(delay, SimEvent::Watched(index, version));
            }
        }
    }

    /// A person changes the lease with kubectl.
    fn change_by_hand(&mut self) {
        let current = self.lease.last().cloned().flatten();
        if self.below(2) == 0 {
            self.log("a person deletes the lease".to_owned());
            self.change(None);
        } else if let Some(record) = current {
            self.log("a person removes the holder".to_owned());
            self.change(Some(LeaseRecord { holder: None, ..record }));
        }
    }

    fn new_process(&mut self) -> CandidateProcess {
        self.incarnations += 1;
        CandidateProcess {
            candidate: LeaseCandidate::new(format!("life-{}", self.incarnations), self.terms),
            incarnation: self.incarnations,
            version: 0,
            request: None,
            requests: 0,
            offset_ms: self.below(1_000_000),
            rate: 900 + self.below(200),
            frozen: false,
            disconnected: false,
            delayed: VecDeque::new(),
        }
    }

    fn restart(&mut self, index: usize, why: &str) {
        self.log(format!("{index} ends: {why}"));
        self.processes[index] = self.new_process();
        self.schedule_after(RESTART_MS, SimEvent::Wake(index));
    }

    fn resume(&mut self, index: usize) {
        if std::mem::take(&mut self.processes[index].frozen) {
            self.log(format!("{index} thaws"));

            // The process gets the events that came in the meantime.
            while let Some(event) = self.processes[index].delayed.pop_front() {
                let incarnation = self.processes[index].incarnation;
                self.deliver(index, event);
                if self.processes[index].incarnation != incarnation {
                    break;
                }
            }

            self.continue_candidate(index);
        }
    }

    fn local_time(&self, index: usize) -> BootInstant {
        let CandidateProcess { offset_ms, rate, .. } = self.processes[index];
        BootInstant::after_boot(Duration::from_micros(offset_ms * 1000 + self.now_ms * rate))
    }

    fn schedule_after(&mut self, delay: u64, event: SimEvent) {
        self.sequence += 1;
        self.events.push(Reverse((self.now_ms + delay, self.sequence, event)));
    }

    /// The delay of a message in milliseconds; `None`: the message is lost.
    fn message_delay(&mut self) -> Option<u64> {
        if self.below(1000) < self.faults.lost_messages {
            return None;
        }

        let longest = if self.below(1000) < self.faults.slow_messages { 20_000 } else { 100 };
        Some(1 + self.below(longest))
    }

    /// Whether something that occurs once in this many milliseconds occurs within a tenth of a second.
    fn occurs(&mut self, every_ms: u64) -> bool {
        every_ms > 0 && self.below(every_ms) < 100
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % bound
    }

    fn log(&mut self, what: String) {
        writeln!(self.history, "{:>8} {what}", self.now_ms).unwrap();
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap()
}
