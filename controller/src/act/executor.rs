//! Carries out decisions. Each command is a task of its own, so that no server waits for another.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hush_contract::admin::ServerAudience;
use hush_core::{Action, Decision};
use jiff::Timestamp;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;

use super::audit::CommandRecord;
use super::command::{self, CommandResult};
use super::credential::ServerCredentials;
use super::gate::Gate;
use crate::http::HttpClient;
use crate::metrics::ControllerMetrics;
use crate::observe::BaseUrl;

/// The number of commands that are under way at a time; each costs a few hundred bytes and a waiting task.
const AT_ONCE: usize = 128;

/// The server that a command goes to.
#[derive(Clone, Debug)]
pub struct CommandTarget {
    pub url: BaseUrl,
    /// The audience of the server's tokens.
    pub audience: Option<ServerAudience>,
    /// The size of the model's GPU in bytes; `None`: its GPU is not known.
    pub gpu_total_bytes: Option<u64>,
}

pub struct Executor {
    context: CommandContext,
    running: JoinSet<()>,
}

/// What every command needs.
#[derive(Clone)]
struct CommandContext {
    client: HttpClient,
    credentials: Arc<dyn ServerCredentials>,
    gate: Arc<dyn Gate>,
    metrics: Arc<ControllerMetrics>,
    slots: Arc<Semaphore>,
    ended: mpsc::UnboundedSender<CommandRecord>,
}

impl Executor {
    /// The receiver gets the end of each decision exactly once.
    pub fn new(
        client: HttpClient,
        credentials: Arc<dyn ServerCredentials>,
        gate: Arc<dyn Gate>,
        metrics: Arc<ControllerMetrics>,
    ) -> (Self, mpsc::UnboundedReceiver<CommandRecord>) {
        let (ended, receiver) = mpsc::unbounded_channel();
        let slots = Arc::new(Semaphore::new(AT_ONCE));
        let context = CommandContext { client, credentials, gate, metrics, slots, ended };
        (Self { context, running: JoinSet::new() }, receiver)
    }

    /// Starts the command of a decision. `waiting` gets its end too.
    pub fn submit(
        &mut self,
        decided_at: Timestamp,
        decision: Decision,
        target: CommandTarget,
        waiting: Option<oneshot::Sender<CommandRecord>>,
    ) {
        self.reap();

        let context = self.context.clone();
        self.running.spawn(async move {
            let begun = Instant::now();
            let outcome = context.execute(&decision, &target).await;
            let record = CommandRecord {
                time: Timestamp::now(),
                decided_at,
                decision,
                outcome,
                seconds: begun.elapsed().as_secs_f64(),
            };

            if let Some(waiting) = waiting {
                // The client of the request may have gone away.
                let _ = waiting.send(record.clone());
            }
            // The loop is gone only when the process ends.
            let _ = context.ended.send(record);
        });
    }

    /// The number of commands that are under way or wait for a slot.
    pub fn pending(&mut self) -> usize {
        self.reap();
        self.running.len()
    }

    pub fn may_report(&self) -> bool {
        self.context.gate.may_report()
    }

    pub fn is_for_another(&self, decision: &Decision) -> bool {
        self.context.gate.is_for_another(decision)
    }

    /// Waits for the commands that are under way, at most for `timeout`.
    pub async fn finish(&mut self, timeout: Duration) {
        let all_ended = async { while self.running.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(timeout, all_ended).await;
    }

    /// Removes the tasks that have ended.
    fn reap(&mut self) {
        while self.running.try_join_next().is_some() {}
    }
}

impl CommandContext {
    async fn execute(&self, decision: &Decision, target: &CommandTarget) -> CommandResult {
        let Ok(_slot) = self.slots.acquire().await else {
            return CommandResult::Withheld { message: "the controller is shutting down".to_owned() };
        };
        // Before the token: a controller that may not act asks for no token either.
        if let Err(refusal) = self.gate.check(&decision.server) {
            return CommandResult::Withheld { message: refusal.to_string() };
        }

        let begun = Instant::now();
        let token = match self.credentials.token(target.audience.as_ref()).await {
            Ok(token) => token,
            Err(problem) => {
                let outcome = CommandResult::failed("no_token", problem);
                self.metrics.record_command(decision.action.as_str(), outcome.label(), begun.elapsed());
                return outcome;
            }
        };
        // Again, because the token may have taken a while.
        if let Err(refusal) = self.gate.check(&decision.server) {
            return CommandResult::Withheld { message: refusal.to_string() };
        }

        let reported = command::send(&self.client, &target.url, token.as_deref(), decision).await;
        let outcome = reported.bounded_by(target.gpu_total_bytes);
        self.metrics.record_command(decision.action.as_str(), outcome.label(), begun.elapsed());

        let unloaded = (decision.action, &outcome);
        if let (Action::Unload, CommandResult::Unloaded { reclaimed_bytes: Some(bytes), .. }) = unloaded {
            self.metrics.reclaimed_bytes_total.with_label_values(&[decision.reason.as_str()]).inc_by(*bytes);
        }
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::act::test_decision::unload_decision;
    use crate::act::{OpenGate, TokenFile};

    /// A server that accepts every connection and never answers; its end closes them.
    #[tokio::test]
    async fn commands_without_an_end_are_counted() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url: BaseUrl = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let server = tokio::spawn(async move {
            let mut open = Vec::new();
            while let Ok((connection, _)) = listener.accept().await {
                open.push(connection);
            }
        });
        let (client, metrics) = (HttpClient::new(None).unwrap(), Arc::new(ControllerMetrics::new().unwrap()));
        let (mut executor, mut ended) =
            Executor::new(client, Arc::new(TokenFile::new(None)), Arc::new(OpenGate), metrics);
        assert_eq!(executor.pending(), 0);
        for model in ["one", "two", "three"] {
            let target = CommandTarget { url: url.clone(), audience: None, gpu_total_bytes: None };
            executor.submit(Timestamp::UNIX_EPOCH, unload_decision(model), target, None);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(executor.pending(), 3, "none has ended");

        server.abort();
        for _ in 0..3 {
            let record = tokio::time::timeout(Duration::from_secs(30), ended.recv()).await.unwrap().unwrap();
            assert!(matches!(record.outcome, CommandResult::Failed { .. }), "{record:?}");
        }
        executor.finish(Duration::from_secs(30)).await;
        assert_eq!(executor.pending(), 0);
    }
}
