//! Why a server's models are where they are, and what will become of them.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use hush_contract::admin::code;
use hush_core::{Model, account};
use jiff::Timestamp;

use super::Web;
use super::address::{About, OfServer};
use super::error::Refusal;
use super::portray::{gpus, models, servers};
use super::view::{AccountView, ExplainView};
use crate::control_loop::LoopSnapshot as Snapshot;

pub async fn server(
    State(web): State<Web>,
    About(OfServer { server }): About<OfServer>,
) -> Result<Json<ExplainView>, Refusal> {
    explain(&web.snapshot(), web.acting(), &server).map(Json).ok_or_else(|| {
        let message = format!("there is no server `{server}` (namespace/name)");
        Refusal::new(StatusCode::NOT_FOUND, code::NOT_FOUND, message)
    })
}

fn explain(snapshot: &Snapshot, acting: bool, name: &str) -> Option<ExplainView> {
    let server = servers(snapshot).into_iter().find(|server| server.server == name)?;
    let policies = snapshot.in_force();
    // One server may have many models among those of many others.
    let own = snapshot.world.models.iter().filter(|model| model.key.server.as_str() == name);
    let own: BTreeMap<&str, &Model> = own.map(|model| (model.key.model.as_str(), model)).collect();
    let views = models(snapshot, snapshot.at, &snapshot.plan).into_iter().filter(|model| model.server == name);
    let models: Vec<AccountView> = views
        .filter_map(|view| {
            let model = own.get(view.model.as_str())?;
            let account = account(snapshot.at, &snapshot.world, &policies, model);
            Some(AccountView { model: view, account })
        })
        .collect();
    let mut gpus = gpus(snapshot, snapshot.at, &snapshot.plan);
    gpus.retain(|gpu| models.iter().any(|of| of.model.gpu.as_ref() == Some(&gpu.uuid)));
    let decisions = snapshot.plan.decisions.iter().filter(|decision| decision.server.as_str() == name);
    let records = snapshot.records.iter().filter(|record| record.decision.server.as_str() == name);
    Some(ExplainView {
        at: Timestamp::now(),
        acting,
        server,
        gpus,
        models,
        decisions: decisions.cloned().collect(),
        records: records.cloned().collect(),
    })
}
