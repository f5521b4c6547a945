//! Random faults for a while, and the invariants under all of them: no request is lost, two controllers never act at the same
//! time, no generation of a model is unloaded twice, no model is unloaded without a reason, and in the end every model is in the
//! state that the policies ask for.
//!
//! `HUSH_SOAK_SECONDS=N` lasts longer than here (`make soak`), `HUSH_SOAK_SEED=N` begins with other dice.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hush_tests::cluster::{ControlPlane, Link};
use hush_tests::wait::wait_for;
use hush_tests::{Controller, fixtures, http, process};
use rustix::process::Signal;
use serde_json::Value;

use crate::fixture::{
    AppSpec, CONTROLLER, ClusterFixture, ControllerCommand, GovernedApp, SOON, own_plane, returning, wait_until_ready,
};

const SECONDS: u64 = 180;
/// A model may leave for what was seen so long ago: samples grow stale, commands take their time.
const LATE: Duration = Duration::from_secs(20);

/// Small and good enough to choose faults by.
struct RandomSource(u64);

impl RandomSource {
    /// SplitMix64.
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.below(to - from))
    }
}

fn variable(name: &str) -> Result<Option<u64>> {
    let Ok(text) = std::env::var(name) else { return Ok(None) };
    Ok(Some(text.parse().with_context(|| format!("{name} must be a number, not {text:?}"))?))
}

/// A place where a controller runs, the controller that runs there now, and those that ran there before.
struct ControllerSlot {
    command: ControllerCommand,
    link: Link,
    controller: Controller,
    before: Vec<Controller>,
}

impl ControllerSlot {
    async fn new(stage: &ClusterFixture<'_>) -> Result<Self> {
        let link = stage.plane.link()?;
        let command = stage.controller_command(CONTROLLER, &link.url(), &["--scope", "cluster"]).await?;
        let controller = command.start()?;
        Ok(Self { command, link, controller, before: Vec::new() })
    }

    /// As a kubelet does.
    fn restart_if_ended(&mut self) -> Result<()> {
        if !matches!(process::state(self.controller.pid()), None | Some('Z')) {
            return Ok(());
        }
        let next = self.command.start()?;
        self.before.push(std::mem::replace(&mut self.controller, next));
        Ok(())
    }

    fn all(&self) -> impl Iterator<Item = &Controller> {
        self.before.iter().chain([&self.controller])
    }
}

struct Soak<'a, 'b> {
    stage: &'a mut ClusterFixture<'b>,
    apps: Vec<GovernedApp>,
    replicas: Vec<ControllerSlot>,
    dice: RandomSource,
    /// When others gave everything back, and took again.
    peace: Vec<(Instant, Option<Instant>)>,
    began: (Instant, jiff::Timestamp),
    answers: (Sender<Result<()>>, Receiver<Result<()>>),
    /// The index of the app, the time of the request, and whether it was answered.
    requests: Vec<(usize, Instant, Arc<AtomicBool>)>,
    /// When each app's runner was killed last.
    killed: [Option<Instant>; 3],
    faults: BTreeMap<&'static str, usize>,
    /// Each of them, with its time.
    history: Vec<String>,
}

impl Soak<'_, '_> {
    fn hold(&mut self, quarters: u64) -> Result<()> {
        if let Some((_, until @ None)) = self.peace.last_mut()
            && quarters > 0
        {
            *until = Some(Instant::now());
        }
        self.stage.others_hold(quarters)?;
        if quarters == 0 && self.peace.last().is_none_or(|(_, until)| until.is_some()) {
            self.peace.push((Instant::now(), None));
        }
        Ok(())
    }

    /// A client that waits for its answer, however long it takes.
    fn ask(&mut self) {
        let at = self.dice.below(self.apps.len() as u64) as usize;
        let (api, to) = (self.apps[at].server.api, self.answers.0.clone());
        let answered = Arc::new(AtomicBool::new(false));
        self.requests.push((at, Instant::now(), answered.clone()));
        thread::spawn(move || {
            let answer =
                fixtures::audio("en-1.wav").and_then(|audio| http::upload(api, "/asr?language=en", "en-1.wav", &audio));
            let answer = answer.and_then(|answer| {
                ensure!(answer.status == 200, "{}: {}", answer.status, answer.text());
                Ok(())
            });
            answered.store(true, Ordering::Relaxed);
            // A closed channel means that the test has ended.
            let _ = to.send(answer);
        });
    }

    /// Whether a request may be on its second runner: a third is not promised.
    fn is_retried(&self, app: usize) -> bool {
        let Some(killed) = self.killed[app] else { return false };
        let waits = |(of, asked, answered): &(usize, Instant, Arc<AtomicBool>)| {
            *of == app && *asked < killed && !answered.load(Ordering::Relaxed)
        };
        self.requests.iter().any(waits)
    }

    async fn fault(&mut self, plane: &ControlPlane) -> Result<()> {
        let (replica, app) = (self.dice.below(2) as usize, self.dice.below(3) as usize);
        let name = match self.dice.below(12) {
            kind @ 0..=2 => self.disturb_replica(kind, replica)?,
            3 => {
                plane.stop_api_server()?;
                thread::sleep(self.dice.millis(0, 3000));
                plane.start_api_server().await?;
                "API server restarted"
            }
            4 => {
                plane.freeze_etcd(true)?;
                thread::sleep(self.dice.millis(500, 5000));
                plane.freeze_etcd(false)?;
                "etcd frozen"
            }
            5 if self.is_retried(app) => "runner spared",
            5 => {
                self.killed[app] = Some(Instant::now());
                for runner in self.apps[app].server.runners()? {
                    // It may have ended by itself meanwhile.
                    let _ = process::send(runner, Signal::KILL);
                }
                "runner killed"
            }
            6 => {
                let priority = -(self.dice.below(20) as i32);
                self.govern(app, priority)?;
                "policy edited"
            }
            7 => {
                let namespace = self.apps[app].namespace.name.clone();
                plane.kubectl_text(&["delete", "gmp", "speech", "--namespace", &namespace], "")?;
                thread::sleep(self.dice.millis(0, 2000));
                self.govern(app, app as i32 * 5)?;
                "policy deleted"
            }
            _ => {
                let quarters = [0, 6, 14, 22][self.dice.below(4) as usize];
                self.hold(quarters)?;
                "memory taken or given"
            }
        };

        self.history.push(format!("{} {name}; replica {replica}, app {app}", jiff::Timestamp::now()));
        *self.faults.entry(name).or_default() += 1;
        Ok(())
    }

    /// Kills, freezes or disconnects a replica of the controller; returns the name of the fault.
    fn disturb_replica(&mut self, kind: u64, replica: usize) -> Result<&'static str> {
        let pid = self.replicas[replica].controller.pid();
        match kind {
            0 => {
                process::send(pid, Signal::KILL)?;
                Ok("controller killed")
            }
            1 => {
                process::send(pid, Signal::STOP)?;
                thread::sleep(self.dice.millis(500, 9000));
                process::send(pid, Signal::CONT)?;
                Ok("controller frozen")
            }
            _ => {
                self.replicas[replica].link.cut(true);
                thread::sleep(self.dice.millis(500, 9000));
                self.replicas[replica].link.cut(false);
                Ok("controller cut off")
            }
        }
    }

    fn govern(&self, app: usize, priority: i32) -> Result<()> {
        let name = ["cheap", "middle", "dear"][app];
        self.apps[app].apply(self.stage.plane, returning(name, priority))
    }

    /// What was sent, by which life of which controller.
    fn commands(&self) -> Result<Vec<(jiff::Timestamp, usize, Value)>> {
        let mut commands = Vec::new();
        for (life, controller) in self.replicas.iter().flat_map(ControllerSlot::all).enumerate() {
            for record in controller.sent()? {
                let decided_at = record["decidedAt"].as_str().context("no decidedAt")?.parse()?;
                commands.push((decided_at, life, record));
            }
        }
        commands.sort_by_key(|(at, ..)| *at);
        Ok(commands)
    }

    fn laws(&self) -> Result<()> {
        let commands = self.commands()?;
        let mut reigns: Vec<usize> = commands.iter().map(|(_, life, _)| *life).collect();
        reigns.dedup();
        let different: BTreeSet<usize> = reigns.iter().copied().collect();
        ensure!(reigns.len() == different.len(), "two acted at the same time: {reigns:?}");
        let mut ended = BTreeSet::new();
        for (at, _, record) in &commands {
            if record["outcome"] == "Unloaded" && record["reclaimedBytes"] != 0 {
                let life = (record["server"].to_string(), record["ifGeneration"].as_u64());
                ensure!(ended.insert(life), "the same life of a model was ended twice: {record}");
            }
            let at = self.began.0 + Duration::try_from(at.duration_since(self.began.1)).unwrap_or_default();
            let peaceful =
                |(from, until): &(Instant, Option<Instant>)| at > *from + LATE && until.is_none_or(|until| at < until);
            ensure!(!self.peace.iter().any(peaceful), "memory was not short for {LATE:?}: {record}");
        }
        Ok(())
    }

    /// When nothing is under way any more: what the servers received is what was sent.
    fn nothing_unheard_of(&self) -> Result<()> {
        let commands = self.commands()?;
        // A controller that was killed could not write down its last command.
        let ended: usize = self.replicas.iter().map(|replica| replica.before.len()).sum();
        for app in &self.apps {
            let received = app.server.unloads_ordered().len();
            let sent = commands.iter().filter(|(.., record)| record["server"] == app.pod()).count();
            let of = format!("{} received {received} commands of {sent}, {ended} controllers ended", app.pod());
            ensure!(received <= sent + ended, "{of}");
        }
        Ok(())
    }

    fn answered(&self, deadline: Duration) -> Result<()> {
        for count in 0..self.requests.len() {
            match self.answers.1.recv_timeout(deadline) {
                Ok(answer) => answer.context("a request was lost")?,
                Err(_) => bail!("{count} of {} requests were answered", self.requests.len()),
            }
        }
        Ok(())
    }

    async fn live(&mut self, plane: &ControlPlane, lasts: Duration) -> Result<()> {
        self.govern_all()?;
        self.hold(0)?;
        while self.began.0.elapsed() < lasts {
            self.ask();
            self.fault(plane).await.with_context(|| format!("after {:?}", self.faults))?;
            for replica in &mut self.replicas {
                replica.restart_if_ended()?;
            }
            self.laws()?;
            thread::sleep(self.dice.millis(200, 2500));
        }
        let leads = self.calm_down(plane)?;
        self.laws()?;
        self.nothing_unheard_of()?;
        let (commands, asked, faults) = (self.commands()?.len(), self.requests.len(), &self.faults);
        eprintln!("{lasts:?}: {faults:?}, {asked} requests answered, {commands} commands, replica {leads} leads");
        ensure!(commands > 0 && asked > 0, "nothing happened");
        Ok(())
    }

    /// Everything becomes as the policies say; who leads then.
    fn calm_down(&mut self, plane: &ControlPlane) -> Result<usize> {
        self.hold(0)?;
        self.govern_all()?;
        self.answered(SOON * 2)?;
        for replica in &mut self.replicas {
            replica.restart_if_ended()?;
            wait_until_ready(&replica.controller)?;
        }
        let leads = wait_for("a controller leads", SOON, || {
            let acts = |replica: &ControllerSlot| {
                Ok::<_, anyhow::Error>(replica.controller.metric("hush_controller_acting")? == Some(1.0))
            };
            let acting: Vec<bool> = self.replicas.iter().map(acts).collect::<Result<_>>()?;
            ensure!(acting != [true, true], "two lead");
            Ok(acting.iter().position(|acts| *acts))
        })?;
        self.hold(22)?;
        for app in &self.apps {
            app.wait_for_status(plane, "loaded", 0)?;
            wait_for("its status is of the policy's last change", SOON, || {
                let object = app.policy(plane)?;
                Ok((object["status"]["observedGeneration"] == object["metadata"]["generation"]).then_some(()))
            })?;
        }
        Ok(leads)
    }

    fn govern_all(&self) -> Result<()> {
        (0..self.apps.len()).try_for_each(|app| self.govern(app, app as i32 * 5))
    }

    /// Who was lost under what is in the logs, and half an hour of them is more than a terminal keeps.
    fn keep_logs(&self, seed: u64) -> Result<PathBuf> {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("soak-{seed}"));
        fs::create_dir_all(&dir)?;
        fs::write(dir.join("faults.txt"), self.history.join("\n"))?;
        for app in &self.apps {
            fs::write(dir.join(format!("server-{}.jsonl", app.pod())), app.server.log().join("\n"))?;
        }
        for (life, controller) in self.replicas.iter().flat_map(ControllerSlot::all).enumerate() {
            fs::write(dir.join(format!("controller-{life}.jsonl")), controller.log().join("\n"))?;
        }
        Ok(dir)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_happens() -> Result<()> {
    let Some(plane) = own_plane().await? else { return Ok(()) };
    let seconds = variable("HUSH_SOAK_SECONDS")?.unwrap_or(SECONDS);
    let seed = variable("HUSH_SOAK_SEED")?.unwrap_or(1);
    eprintln!("HUSH_SOAK_SEED={seed}");
    let mut stage = ClusterFixture::new(&plane).await?;
    let mut apps = Vec::new();
    for name in ["cheap", "middle", "dear"] {
        apps.push(stage.server(AppSpec::new(name, 2, 0)).await?);
    }
    let replicas = vec![ControllerSlot::new(&stage).await?, ControllerSlot::new(&stage).await?];
    let began = (Instant::now(), jiff::Timestamp::now());
    let mut soak = Soak {
        stage: &mut stage,
        apps,
        replicas,
        dice: RandomSource(seed),
        peace: Vec::new(),
        began,
        answers: channel(),
        requests: Vec::new(),
        killed: [None; 3],
        faults: BTreeMap::new(),
        history: Vec::new(),
    };
    let Err(error) = soak.live(&plane, Duration::from_secs(seconds)).await else { return Ok(()) };
    let logs = soak.keep_logs(seed)?;
    Err(error.context(format!("HUSH_SOAK_SEED={seed}; the logs of all processes are in {}", logs.display())))
}
