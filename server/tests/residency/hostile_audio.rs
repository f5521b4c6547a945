//! Small files that become many samples, in a queue.

use std::time::Duration;

use hush_listener::budget::ByteBudget;
use hush_listener::spool::SpoolError;
use hush_server::audio::{AudioError, DecodeOptions};
use hush_server::job::JobError;
use hush_server::recording::{AudioDecoder, Recording};
use hush_server::residency::{LifecycleSettings, ResidencyRule, SpeechJobs};

use crate::audio_support::{built_in, flac_of_silence, spooled};
use crate::scripted::{settings, until, work};
use crate::{ModelFixture, ask};

const SECONDS: u64 = 120;
const BYTES: u64 = SECONDS * 32_000;

fn decoder(budget: &ByteBudget) -> AudioDecoder {
    AudioDecoder::new(DecodeOptions { budget: Some(budget.clone()), ..built_in() }, 2)
}

async fn long(decoder: &AudioDecoder) -> Recording {
    let recording = decoder.open(spooled(&flac_of_silence(SECONDS)), "a".to_owned()).await.unwrap();
    assert!(!recording.is_decoded());
    recording
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_waits_holds_no_samples() {
    let lifecycle = LifecycleSettings { residency: ResidencyRule::Idle(None), ..LifecycleSettings::default() };
    let server = ModelFixture::start("", lifecycle, settings());
    let budget = ByteBudget::new("decoded", 100 * BYTES);
    let decoder = decoder(&budget);
    let model = server.model().clone();
    let busy = tokio::spawn(async move { ask(&model, "each=3600000").await });
    until("the request is at work", || server.model().snapshot().inflight == 1).await;

    let mut waiting = Vec::new();
    for _ in 0..8 {
        let (model, recording) = (server.model().clone(), long(&decoder).await);
        waiting.push(tokio::spawn(async move { model.gather(recording, work(""), None).await }));
    }

    until("eight requests wait", || server.model().snapshot().queued == 8).await;
    until("the next two are decoded", || budget.used_bytes() == 2 * BYTES).await;

    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(budget.used_bytes(), 2 * BYTES, "the others are not");

    busy.abort();
    for job in waiting {
        let (outcome, _) = job.await.unwrap().unwrap();
        let seconds = match outcome {
            hush_server::job::JobOutcome::Transcribed(transcript) => transcript.duration_seconds,
            other => panic!("{other:?}"),
        };
        assert!((seconds - SECONDS as f64).abs() < 0.1, "{seconds}");
    }

    until("all samples are given back", || budget.used_bytes() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_samples_than_there_is_room_for_are_refused_and_the_next_are_served() {
    let server = ModelFixture::new("");
    let budget = ByteBudget::new("decoded", BYTES / 2);
    let decoder = decoder(&budget);
    let error = server.model().gather(long(&decoder).await, work(""), None).await.unwrap_err();
    assert!(matches!(error, JobError::Audio(AudioError::Spool(SpoolError::Spent(_)))), "{error:?}");

    until("the samples are given back", || budget.used_bytes() == 0).await;

    let short = decoder.open(spooled(&flac_of_silence(20)), "a".to_owned()).await.unwrap();
    assert!(short.is_decoded());

    server.model().gather(short, work(""), None).await.unwrap();
    until("the samples are given back", || budget.used_bytes() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_leaves_gives_its_samples_back() {
    let server = ModelFixture::new("");
    let budget = ByteBudget::new("decoded", 100 * BYTES);
    let decoder = decoder(&budget);
    let (model, recording) = (server.model().clone(), long(&decoder).await);
    let left = tokio::spawn(async move { model.gather(recording, work("each=3600000"), None).await });
    until("the request is at work", || server.model().snapshot().inflight == 1 && budget.used_bytes() == BYTES).await;

    left.abort();
    until("the samples are given back", || budget.used_bytes() == 0).await;
}
