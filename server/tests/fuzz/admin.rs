//! The JSON of commands: arbitrary bytes through the router, and arbitrary JSON as the contract's types.

use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::http::Request;
use hush_contract::admin::{AdminErrorBody, LoadRequest, UnloadRequest, UnloadResponse};
use hush_server::admin::{self, AdminAccess, ServerAdminState};
use hush_server::metrics::ServerMetrics;
use hush_server::residency::{LifecycleSettings, SpeechModelSettings, SpeechModels};
use hush_server::runner::RunnerSettings;
use hush_server::runner::wire::LoadSpec;
use hush_server::serve::ConnectionPeer;
use proptest::prelude::*;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::damage::damages;
use crate::harness::{FuzzLimits, fuzz};

const LIMITS: FuzzLimits = FuzzLimits { bytes: 1 << 20, time: Duration::from_secs(30) };

static RUNTIME: LazyLock<tokio::runtime::Runtime> =
    LazyLock::new(|| tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap());

/// A server with a model that is never loaded, so that an unload has no effect.
fn router() -> axum::Router {
    let _entered = RUNTIME.enter();
    let metrics = Arc::new(ServerMetrics::new().unwrap());
    let spec = LoadSpec {
        model_dir: "/nowhere".into(),
        device: "cpu".to_owned(),
        threads: None,
        prepack: false,
        max_batch: 1,
        memory_limit_bytes: None,
    };

    let model = SpeechModelSettings {
        name: "m".to_owned(),
        spec,
        precision: None,
        lifecycle: LifecycleSettings::default(),
        account: None,
    };
    let models =
        SpeechModels::start(vec![model], RunnerSettings::this_program(Vec::new()), None, &metrics.residency).unwrap();
    let access = AdminAccess::new(Vec::new(), [127, 0, 0, 1].into());

    admin::router(ServerAdminState::new(Arc::new(models), access, CancellationToken::new()), metrics)
}

fn bodies() -> impl Strategy<Value = Vec<u8>> {
    let good = br#"{"if_generation":7,"if_idle_seconds":300.5,"drain_seconds":30,"hold_seconds":120,"reason":"IdleTimeout","policy":"ns/name"}"#;

    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..300),
        json().prop_map(String::into_bytes),
        damages().prop_map(move |damages| {
            let mut bytes = good.to_vec();
            damages.apply(&mut bytes);
            bytes
        }),
        (prop::sample::select(vec!["[", "{\"a\":", "\"", " ", "1"]), 0_usize..30_000)
            .prop_map(|(piece, times)| piece.repeat(times).into_bytes()),
    ]
}

/// Objects with the fields of commands, and values of every kind.
fn json() -> impl Strategy<Value = String> {
    let name = prop_oneof![
        prop::sample::select(vec![
            "if_generation",
            "if_idle_seconds",
            "drain_seconds",
            "hold_seconds",
            "wait_seconds",
            "despite_hold",
            "reason",
            "policy",
        ])
        .prop_map(str::to_owned),
        "[a-z_]{0,9}",
    ];

    let value = prop_oneof![
        "-?[0-9]{1,40}(\\.[0-9]{1,9})?(e-?[0-9]{1,5})?",
        "\"[^\"\\\\\\x00-\\x1f]{0,80}\"",
        prop::sample::select(vec!["null", "true", "false", "[]", "{}", "\"Manual\"", "\"ns/policy\"", "1e999", "-0.0"])
            .prop_map(str::to_owned),
    ];

    prop::collection::vec((name, value), 0..7).prop_map(|fields| {
        let fields: Vec<String> = fields.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
        format!("{{{}}}", fields.join(","))
    })
}

#[test]
fn commands() {
    let router = router();
    fuzz("commands", 300, LIMITS, bodies(), |body| {
        let peer = ConnectionPeer { address: SocketAddr::from(([127, 0, 0, 1], 9)) };
        let request = Request::post("/admin/v1/models/m/unload").extension(peer);
        let request = request.header("content-type", "application/json").body(Body::from(body)).unwrap();
        let (status, body) = RUNTIME.block_on(async {
            let response = router.clone().oneshot(request).await.unwrap();
            (response.status().as_u16(), to_bytes(response.into_body(), 1 << 20).await.unwrap())
        });

        match status {
            200 => drop(serde_json::from_slice::<UnloadResponse>(&body).unwrap()),
            400 | 409 | 413 => drop(serde_json::from_slice::<AdminErrorBody>(&body).unwrap()),
            other => panic!("{other}: {body:?}"),
        }
    });
}

/// Accepted requests are within their bounds, and are the same after a round trip.
#[test]
fn requests() {
    fuzz("requests", 500, LIMITS, json(), |text| {
        if let Ok(request) = serde_json::from_str::<UnloadRequest>(&text) {
            for seconds in [request.if_idle_seconds, request.drain_seconds, request.hold_seconds].into_iter().flatten()
            {
                assert!((0.0..=604_800.0).contains(&seconds.get()));
            }
            let again = serde_json::to_string(&request).unwrap();
            assert_eq!(serde_json::from_str::<UnloadRequest>(&again).unwrap(), request);
        }

        if let Ok(request) = serde_json::from_str::<LoadRequest>(&text) {
            let again = serde_json::to_string(&request).unwrap();
            assert_eq!(serde_json::from_str::<LoadRequest>(&again).unwrap(), request);
        }
    });
}
