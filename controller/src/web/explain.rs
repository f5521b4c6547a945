//! `GET /api/v1/explain`: the state of a server's models, and where the values that apply to them come from.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use hush_contract::admin::code;
use hush_core::{ObservedModel, explain_rules};
use jiff::Timestamp;

use super::WebState;
use super::address::{ServerQuery, TargetQuery};
use super::build_view::{gpus, models, servers};
use super::error::ApiRefusal;
use super::view::{ModelExplanationView, ServerExplanationView};
use crate::control_loop::LoopSnapshot;

pub async fn server(
    State(web): State<WebState>,
    TargetQuery(ServerQuery { server }): TargetQuery<ServerQuery>,
) -> Result<Json<ServerExplanationView>, ApiRefusal> {
    explain_server(&web.snapshot(), web.acting(), &server).map(Json).ok_or_else(|| {
        let message = format!("there is no server `{server}` (namespace/name)");
        ApiRefusal::new(StatusCode::NOT_FOUND, code::NOT_FOUND, message)
    })
}

fn explain_server(snapshot: &LoopSnapshot, acting: bool, name: &str) -> Option<ServerExplanationView> {
    let server = servers(snapshot).into_iter().find(|server| server.server == name)?;
    let policies = snapshot.in_force();

    // By name, because a server may have many models.
    let own = snapshot.world.models.iter().filter(|model| model.key.server.as_str() == name);
    let own: BTreeMap<&str, &ObservedModel> = own.map(|model| (model.key.model.as_str(), model)).collect();

    let views = models(snapshot, snapshot.at, &snapshot.plan).into_iter().filter(|model| model.server == name);
    let models: Vec<ModelExplanationView> = views
        .filter_map(|view| {
            let model = own.get(view.model.as_str())?;
            let account = explain_rules(snapshot.at, &snapshot.world, &policies, model);
            Some(ModelExplanationView { model: view, account })
        })
        .collect();

    let mut gpus = gpus(snapshot, snapshot.at, &snapshot.plan);
    gpus.retain(|gpu| models.iter().any(|explained| explained.model.gpu.as_ref() == Some(&gpu.uuid)));
    let decisions = snapshot.plan.decisions.iter().filter(|decision| decision.server.as_str() == name);
    let records = snapshot.records.iter().filter(|record| record.decision.server.as_str() == name);

    Some(ServerExplanationView {
        at: Timestamp::now(),
        acting,
        server,
        gpus,
        models,
        decisions: decisions.cloned().collect(),
        records: records.cloned().collect(),
    })
}
