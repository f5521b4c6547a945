//! Candidates, an API server and the way between them, in virtual time.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::fmt::Write as _;
use std::time::Duration;

use hush_controller::lease::BootInstant as Moment;
use hush_controller::lease::candidate::{
    LeaseCandidate as Candidate, LeaseRecord as Record, LeaseStep as Next, LeaseTiming as Terms,
};
use proptest::prelude::*;

const CANDIDATES: usize = 3;
/// Every process comes back as another, as in a pod that is started again.
const RESTART_MS: u64 = 500;

/// In how many of a thousand cases, or of a thousand milliseconds, something goes wrong.
#[derive(Clone, Debug)]
pub struct Faults {
    pub lost_messages: u64,
    pub slow_messages: u64,
    /// Of each process and of people, once in so many milliseconds; 0: never.
    pub kills_every_ms: u64,
    pub freezes_every_ms: u64,
    pub cuts_every_ms: u64,
    pub meddling_every_ms: u64,
}

impl Faults {
    pub fn none() -> Self {
        let [lost_messages, slow_messages, kills_every_ms, freezes_every_ms, cuts_every_ms, meddling_every_ms] = [0; 6];
        Self { lost_messages, slow_messages, kills_every_ms, freezes_every_ms, cuts_every_ms, meddling_every_ms }
    }

    pub fn any() -> impl Strategy<Value = Self> {
        let every = || prop_oneof![Just(0), 5_000_u64..60_000];
        (0_u64..300, 0_u64..300, every(), every(), every(), every()).prop_map(
            |(lost_messages, slow_messages, kills_every_ms, freezes_every_ms, cuts_every_ms, meddling_every_ms)| Self {
                lost_messages,
                slow_messages,
                kills_every_ms,
                freezes_every_ms,
                cuts_every_ms,
                meddling_every_ms,
            },
        )
    }
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Wake(usize),
    /// A request reaches the server: of which process, which life, and which request of it.
    Arrive(usize, u64, u64, Request),
    Answer(usize, u64, u64, Reply),
    Timeout(usize, u64, u64),
    /// The lease as it is now reaches somebody who watches.
    Report(usize, u64),
    Thaw(usize),
    Heal(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Request {
    Read,
    Create,
    /// Only if the lease is still of this version.
    Replace {
        version: u64,
        transitions: i32,
    },
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Reply {
    Seen(usize),
    Wrote(usize),
    Conflict,
}

struct Process {
    candidate: Candidate,
    life: u64,
    /// Version of the lease as it was last seen.
    version: u64,
    request: Option<(u64, Moment)>,
    requests: u64,
    offset_ms: u64,
    /// Of its clock, in thousandths of the true one.
    rate: u64,
    frozen: bool,
    cut: bool,
    /// What would have happened while it was frozen.
    held_up: VecDeque<Event>,
}

pub struct World {
    now_ms: u64,
    random: u64,
    terms: Terms,
    faults: Faults,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    sequence: u64,
    processes: Vec<Process>,
    lives: u64,
    /// All that the lease ever was; the last is what it is. The place is the version.
    lease: Vec<Option<Record>>,
    most_claims: usize,
    story: String,
}

impl World {
    pub fn new(seed: u64, terms: Terms, faults: Faults) -> Self {
        let mut world = Self {
            now_ms: 0,
            random: seed | 1,
            terms,
            faults,
            events: BinaryHeap::new(),
            sequence: 0,
            processes: Vec::new(),
            lives: 0,
            lease: vec![None],
            most_claims: 0,
            story: String::new(),
        };
        for place in 0..CANDIDATES {
            let process = world.born();
            world.processes.push(process);
            world.after(0, Event::Wake(place));
        }
        world
    }

    pub fn run_with_faults(&mut self, time: Duration) {
        let end = self.now_ms + millis(time);
        while self.now_ms < end {
            self.advance_to(self.now_ms + 100);
            for place in 0..CANDIDATES {
                if self.happens(self.faults.kills_every_ms) {
                    self.restart(place, "killed");
                }
                if self.happens(self.faults.freezes_every_ms) && !self.processes[place].frozen {
                    self.processes[place].frozen = true;
                    let lasts = 100 + self.below(40_000);
                    self.tell(format!("{place} freezes for {lasts}"));
                    self.after(lasts, Event::Thaw(place));
                }
                if self.happens(self.faults.cuts_every_ms) && !self.processes[place].cut {
                    self.processes[place].cut = true;
                    let lasts = 100 + self.below(40_000);
                    self.tell(format!("{place} is cut off for {lasts}"));
                    self.after(lasts, Event::Heal(place));
                }
            }
            if self.happens(self.faults.meddling_every_ms) {
                self.meddle();
            }
        }
    }

    pub fn run_in_peace(&mut self, time: Duration) {
        self.faults = Faults::none();
        for place in 0..CANDIDATES {
            self.processes[place].cut = false;
            self.thaw(place);
        }
        self.advance_to(self.now_ms + millis(time));
    }

    pub fn kill_leader(&mut self) {
        let leader = (0..CANDIDATES).find(|place| self.claims_now(*place)).expect("nobody leads");
        self.restart(leader, "killed");
    }

    pub fn claims(&self) -> usize {
        (0..CANDIDATES).filter(|place| self.claims_now(*place)).count()
    }

    pub const fn most_claims(&self) -> usize {
        self.most_claims
    }

    pub fn story(&self) -> &str {
        &self.story
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
            self.tell(format!("{claims} CLAIMS"));
        }
        self.most_claims = self.most_claims.max(claims);
    }

    /// A frozen process does not act, but it must not believe anything wrong when it goes on, at whatever moment.
    fn claims_now(&self, place: usize) -> bool {
        let now = self.local(place);
        self.processes[place].candidate.claim().is_some_and(|until| now < until)
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Thaw(place) => self.thaw(place),
            Event::Heal(place) => self.processes[place].cut = false,
            Event::Arrive(place, life, number, request) => self.serve(place, life, number, request),
            Event::Wake(place) | Event::Answer(place, ..) | Event::Timeout(place, ..) | Event::Report(place, _) => {
                if self.processes[place].frozen {
                    self.processes[place].held_up.push_back(event);
                } else {
                    self.happen(place, event);
                }
            }
        }
    }

    /// Something that its own process notices.
    fn happen(&mut self, place: usize, event: Event) {
        let now = self.local(place);
        let record = |version: usize| self.lease[version].clone();
        match event {
            Event::Answer(_, life, request, reply) => {
                let process = &mut self.processes[place];
                let Some((asked, sent)) = process.request.filter(|_| process.life == life) else { return };
                if asked != request {
                    return;
                }
                process.request = None;
                match reply {
                    Reply::Seen(version) => {
                        process.version = version as u64;
                        process.candidate.saw(now, record(version));
                    }
                    Reply::Wrote(version) => {
                        process.version = version as u64;
                        process.candidate.wrote(sent, record(version).expect("a written lease"));
                    }
                    Reply::Conflict => process.candidate.overtaken(),
                }
            }
            Event::Timeout(_, life, request) => {
                let process = &mut self.processes[place];
                if process.life != life || process.request.map(|(asked, _)| asked) != Some(request) {
                    return;
                }
                process.request = None;
                process.candidate.failed(now);
            }
            Event::Report(_, version) => {
                let record = record(usize::try_from(version).unwrap());
                let process = &mut self.processes[place];
                // As the elector: who holds or waits for an answer does not listen.
                if process.request.is_none() && process.candidate.claim().is_none() {
                    process.version = version;
                    process.candidate.saw(now, record);
                }
            }
            _ => {}
        }
        self.go_on(place);
    }

    fn go_on(&mut self, place: usize) {
        if self.processes[place].request.is_some() {
            return;
        }
        let now = self.local(place);
        match self.processes[place].candidate.next(now) {
            Next::Lost(loss) => self.restart(place, &loss.to_string()),
            Next::Look => self.send(place, Request::Read),
            Next::Create => self.send(place, Request::Create),
            Next::Write { transitions } => {
                let version = self.processes[place].version;
                self.send(place, Request::Replace { version, transitions });
            }
            Next::Wait { until } => {
                let wait = millis(now.until(until)) * 1000 / self.processes[place].rate + 1;
                self.after(wait, Event::Wake(place));
            }
        }
    }

    fn send(&mut self, place: usize, request: Request) {
        let (now, renew) = (self.local(place), millis(self.terms.renew));
        let process = &mut self.processes[place];
        process.requests += 1;
        process.request = Some((process.requests, now));
        let (life, number, rate, cut) = (process.life, process.requests, process.rate, process.cut);
        self.after(renew * 1000 / rate, Event::Timeout(place, life, number));
        if let Some(delay) = self.delay().filter(|_| !cut) {
            self.after(delay, Event::Arrive(place, life, number, request));
        }
    }

    /// The server's side: it does what reaches it, also when nobody waits for the answer any more.
    fn serve(&mut self, place: usize, life: u64, number: u64, request: Request) {
        let current = self.lease.len() - 1;
        let record = |holder, transitions| Record {
            holder,
            duration: Some(self.terms.lease),
            renewed: format!("{life}-{number}"),
            transitions,
        };
        let there = self.lease[current].is_some();
        let reply = match request {
            Request::Read => Reply::Seen(current),
            Request::Create if !there => {
                let record = record(None, 0);
                self.write(place, record);
                Reply::Seen(current + 1)
            }
            Request::Replace { version, transitions } if version == current as u64 && there => {
                let record = record(Some(format!("life-{life}")), transitions);
                self.write(place, record);
                Reply::Wrote(current + 1)
            }
            Request::Create | Request::Replace { .. } => Reply::Conflict,
        };
        if let Some(delay) = self.delay().filter(|_| !self.processes[place].cut) {
            self.after(delay, Event::Answer(place, life, number, reply));
        }
    }

    fn write(&mut self, place: usize, record: Record) {
        self.tell(format!("{place} writes {record:?}"));
        self.change(Some(record));
    }

    fn change(&mut self, lease: Option<Record>) {
        self.lease.push(lease);
        let version = self.lease.len() as u64 - 1;
        for place in 0..CANDIDATES {
            if let Some(delay) = self.delay().filter(|_| !self.processes[place].cut) {
                self.after(delay, Event::Report(place, version));
            }
        }
    }

    /// What people do with kubectl.
    fn meddle(&mut self) {
        let current = self.lease.last().cloned().flatten();
        if self.below(2) == 0 {
            self.tell("somebody deletes the lease".to_owned());
            self.change(None);
        } else if let Some(record) = current {
            self.tell("somebody wipes out the holder".to_owned());
            self.change(Some(Record { holder: None, ..record }));
        }
    }

    fn born(&mut self) -> Process {
        self.lives += 1;
        Process {
            candidate: Candidate::new(format!("life-{}", self.lives), self.terms),
            life: self.lives,
            version: 0,
            request: None,
            requests: 0,
            offset_ms: self.below(1_000_000),
            rate: 900 + self.below(200),
            frozen: false,
            cut: false,
            held_up: VecDeque::new(),
        }
    }

    fn restart(&mut self, place: usize, why: &str) {
        self.tell(format!("{place} ends: {why}"));
        self.processes[place] = self.born();
        self.after(RESTART_MS, Event::Wake(place));
    }

    fn thaw(&mut self, place: usize) {
        if std::mem::take(&mut self.processes[place].frozen) {
            self.tell(format!("{place} thaws"));
            // What it notices first may be anything that came meanwhile.
            while let Some(event) = self.processes[place].held_up.pop_front() {
                let life = self.processes[place].life;
                self.happen(place, event);
                if self.processes[place].life != life {
                    break;
                }
            }
            self.go_on(place);
        }
    }

    fn local(&self, place: usize) -> Moment {
        let Process { offset_ms, rate, .. } = self.processes[place];
        Moment::after_boot(Duration::from_micros(offset_ms * 1000 + self.now_ms * rate))
    }

    fn after(&mut self, delay: u64, event: Event) {
        self.sequence += 1;
        self.events.push(Reverse((self.now_ms + delay, self.sequence, event)));
    }

    /// Of a message; `None`: it is lost.
    fn delay(&mut self) -> Option<u64> {
        if self.below(1000) < self.faults.lost_messages {
            return None;
        }
        let longest = if self.below(1000) < self.faults.slow_messages { 20_000 } else { 100 };
        Some(1 + self.below(longest))
    }

    /// In a tenth of a second, for what happens once in so many milliseconds.
    fn happens(&mut self, every_ms: u64) -> bool {
        every_ms > 0 && self.below(every_ms) < 100
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % bound
    }

    fn tell(&mut self, what: String) {
        writeln!(self.story, "{:>8} {what}", self.now_ms).unwrap();
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap()
}
