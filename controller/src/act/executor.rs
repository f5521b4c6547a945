//! Carries decisions out: each by itself, so that no server waits for another.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hush_contract::admin::ServerAudience;
use hush_core::{Action, Decision, ServerName};
use jiff::Timestamp;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;

use super::audit::Record;
use super::command::{self, Outcome};
use super::credential::Credentials;
use crate::http::Client;
use crate::metrics::Metrics;
use crate::observe::BaseUrl;

/// Commands under way at a time; each is a few hundred bytes and a wait.
const AT_ONCE: usize = 128;

/// Whether this controller may act on a server now. Asked right before each command.
pub trait Gate: Send + Sync {
    /// `Err`: why not.
    fn check(&self, server: &ServerName) -> Result<(), String>;

    /// Whether a controller beside this one, that finds the same, carries it out.
    fn is_for_another(&self, _: &Decision) -> bool {
        false
    }
}

/// Nobody else decides.
#[derive(Clone, Copy, Debug)]
pub struct Open;

impl Gate for Open {
    fn check(&self, _: &ServerName) -> Result<(), String> {
        Ok(())
    }
}

/// Everything is decided and shown, nothing is sent.
#[derive(Clone, Copy, Debug)]
pub struct Closed;

impl Gate for Closed {
    fn check(&self, _: &ServerName) -> Result<(), String> {
        Err("this controller only observes (--dry-run)".to_owned())
    }
}

/// The server of a decision.
#[derive(Clone, Debug)]
pub struct Recipient {
    pub url: BaseUrl,
    /// For whom its tokens are made.
    pub audience: Option<ServerAudience>,
    /// Of the card that the model is on; `None`: of none that is known.
    pub card_total_bytes: Option<u64>,
}

pub struct Executor {
    hands: Hands,
    running: JoinSet<()>,
}

/// What every command needs.
#[derive(Clone)]
struct Hands {
    client: Client,
    credentials: Arc<dyn Credentials>,
    gate: Arc<dyn Gate>,
    metrics: Arc<Metrics>,
    places: Arc<Semaphore>,
    ended: mpsc::UnboundedSender<Record>,
}

impl Executor {
    /// Each decision's end arrives at the receiver, exactly once.
    pub fn new(
        client: Client,
        credentials: Arc<dyn Credentials>,
        gate: Arc<dyn Gate>,
        metrics: Arc<Metrics>,
    ) -> (Self, mpsc::UnboundedReceiver<Record>) {
        let (ended, ends) = mpsc::unbounded_channel();
        let places = Arc::new(Semaphore::new(AT_ONCE));
        let hands = Hands { client, credentials, gate, metrics, places, ended };
        (Self { hands, running: JoinSet::new() }, ends)
    }

    /// `waiting` gets the end too.
    pub fn submit(
        &mut self,
        decided_at: Timestamp,
        decision: Decision,
        recipient: Recipient,
        waiting: Option<oneshot::Sender<Record>>,
    ) {
        while self.running.try_join_next().is_some() {}
        let hands = self.hands.clone();
        self.running.spawn(async move {
            let begun = Instant::now();
            let outcome = hands.carry_out(&decision, &recipient).await;
            let record = Record {
                time: Timestamp::now(),
                decided_at,
                decision,
                outcome,
                seconds: begun.elapsed().as_secs_f64(),
            };
            if let Some(waiting) = waiting {
                // Whoever asked may be gone.
                let _ = waiting.send(record.clone());
            }
            // The loop is gone only when the process ends.
            let _ = hands.ended.send(record);
        });
    }

    /// Commands that are under way or wait for their turn.
    pub fn pending(&mut self) -> usize {
        while self.running.try_join_next().is_some() {}
        self.running.len()
    }

    pub fn is_for_another(&self, decision: &Decision) -> bool {
        self.hands.gate.is_for_another(decision)
    }

    /// Lets what is under way end, for so long.
    pub async fn finish(&mut self, patience: Duration) {
        let _ = tokio::time::timeout(patience, async { while self.running.join_next().await.is_some() {} }).await;
    }
}

impl Hands {
    async fn carry_out(&self, decision: &Decision, recipient: &Recipient) -> Outcome {
        let Ok(_place) = self.places.acquire().await else {
            return Outcome::Withheld { message: "the controller is shutting down".to_owned() };
        };
        // A controller that may not act asks for no token either.
        if let Err(message) = self.gate.check(&decision.server) {
            return Outcome::Withheld { message };
        }
        let begun = Instant::now();
        let token = match self.credentials.token(recipient.audience.as_ref()).await {
            Ok(token) => token,
            Err(problem) => {
                let outcome = Outcome::failed("no_token", problem);
                self.metrics.commanded(decision.action.as_str(), outcome.label(), begun.elapsed());
                return outcome;
            }
        };
        if let Err(message) = self.gate.check(&decision.server) {
            return Outcome::Withheld { message };
        }

        let outcome = command::send(&self.client, &recipient.url, token.as_deref(), decision).await;
        let outcome = outcome.on_card_of(recipient.card_total_bytes);
        self.metrics.commanded(decision.action.as_str(), outcome.label(), begun.elapsed());
        if let (Action::Unload, Outcome::Unloaded { reclaimed_bytes: Some(bytes), .. }) = (decision.action, &outcome) {
            self.metrics.reclaimed_bytes_total.with_label_values(&[decision.reason.as_str()]).inc_by(*bytes);
        }
        outcome
    }
}

#[cfg(test)]
mod tests {
    use hush_core::Reason;

    use super::*;
    use crate::act::{Open, TokenFile};

    fn decision(model: &str) -> Decision {
        Decision {
            server: "a/w".into(),
            model: model.to_owned(),
            gpu: None,
            action: Action::Unload,
            reason: Reason::IdleTimeout,
            policy: "a/p".to_owned(),
            if_generation: Some(1),
            if_idle_seconds: None,
            drain_seconds: None,
            hold_seconds: None,
            vram_bytes: 0,
            dry_run: false,
        }
    }

    /// Takes every connection, and answers once it is told to, by closing them.
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
        let (client, metrics) = (Client::new(None).unwrap(), Arc::new(Metrics::new().unwrap()));
        let (mut executor, mut ends) = Executor::new(client, Arc::new(TokenFile::new(None)), Arc::new(Open), metrics);
        assert_eq!(executor.pending(), 0);
        for model in ["one", "two", "three"] {
            let recipient = Recipient { url: url.clone(), audience: None, card_total_bytes: None };
            executor.submit(Timestamp::UNIX_EPOCH, decision(model), recipient, None);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(executor.pending(), 3, "none has ended");

        server.abort();
        for _ in 0..3 {
            let record = tokio::time::timeout(Duration::from_secs(30), ends.recv()).await.unwrap().unwrap();
            assert!(matches!(record.outcome, Outcome::Failed { .. }), "{record:?}");
        }
        executor.finish(Duration::from_secs(30)).await;
        assert_eq!(executor.pending(), 0);
    }
}
