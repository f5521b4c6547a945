//! The process of a stand-in: listener, dispatch by app, SIGTERM.

use std::future::IntoFuture;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use axum::Router;
use axum::extract::Request;
use axum::response::Response;
use clap::Parser;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use super::core::{MemoryOwner, StandIn};
use super::incoming::Incoming;
use super::journal::JournalEvent;
use super::openai::text_answer;
use super::options::{StandInKind, StandInOptions};
use super::runner_process::{OrphanBehaviour, run_as_runner};
use super::{a1111, comfyui, llama_router, localai, ollama, sglang, speaches, triton, vllm};

/// What one kind of app adds to [`StandIn`].
pub trait AppRoutes: Send + Sync + 'static {
    fn answer(self: Arc<Self>, request: Incoming) -> impl Future<Output = Response> + Send;
}

/// `hush-app-standin`, or one of its runners.
pub fn run() -> Result<()> {
    if let Some(ended) = run_as_runner() {
        return ended;
    }

    let options = StandInOptions::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(serve_app(options))
}

async fn serve_app(options: StandInOptions) -> Result<()> {
    let owner = match options.app {
        StandInKind::Ollama | StandInKind::Localai => MemoryOwner::Runner(OrphanBehaviour::Stays),
        StandInKind::LlamaServer => MemoryOwner::Runner(OrphanBehaviour::Ends),
        _ => MemoryOwner::App,
    };
    let kind = options.app;
    let app = StandIn::new(options, owner)?;
    app.journal.write(JournalEvent::Started { pid: std::process::id() });
    // vLLM and SGLang listen when their model is loaded.
    if app.options.loaded || matches!(kind, StandInKind::Vllm | StandInKind::Sglang) {
        for name in app.names() {
            app.load(&name).await.map_err(|problem| anyhow::anyhow!("loading {name}: {problem:?}"))?;
        }
    }

    match kind {
        StandInKind::Ollama => serve(app.clone(), ollama::Ollama::new(app)).await,
        StandInKind::LlamaServer => serve(app.clone(), llama_router::LlamaRouterStandIn::new(app)).await,
        StandInKind::Vllm => serve(app.clone(), vllm::Vllm::new(app)).await,
        StandInKind::Sglang => serve(app.clone(), sglang::Sglang::new(app)).await,
        StandInKind::Triton => serve(app.clone(), triton::Triton::new(app)).await,
        StandInKind::Comfyui => serve(app.clone(), comfyui::ComfyUi::new(app)).await,
        StandInKind::Localai => serve(app.clone(), localai::LocalAi::new(app)).await,
        StandInKind::Speaches => serve(app.clone(), speaches::Speaches::new(app)).await,
        StandInKind::A1111 => serve(app.clone(), a1111::A1111::new(app)).await,
    }
}

async fn serve<A: AppRoutes>(app: Arc<StandIn>, routes: Arc<A>) -> Result<()> {
    let address = SocketAddr::from(([127, 0, 0, 1], app.options.port));
    let listener = TcpListener::bind(address).await.with_context(|| format!("listening on {address}"))?;

    let journal = Arc::clone(&app);
    let answer = move |request: Request| {
        let (routes, app) = (Arc::clone(&routes), Arc::clone(&journal));
        async move {
            match Incoming::read(request, &app.journal).await {
                Some(request) => routes.answer(request).await,
                None => text_answer(400, "the body has no end"),
            }
        }
    };
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        served = axum::serve(listener, Router::new().fallback(answer)).into_future() => served?,
        _ = terminate.recv() => app.terminate().await,
    }
    Ok(())
}
