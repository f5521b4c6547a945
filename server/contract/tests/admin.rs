//! The requests and answers of the admin API as JSON: exact, strict in requests, and extensible in answers.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test support, though no test itself")]

use hush_contract::admin::{
    AdminErrorBody, AdminEvent, LoadRequest, ModelList, ModelStatus, Reason, ServerAudience, UnloadRequest,
};
use hush_contract::{UnloadReason, UnloadRefusal};
use serde_json::json;

#[test]
fn an_unload_request_is_parsed_as_it_was_written() {
    let text = r#"{"if_generation":7,"if_idle_seconds":300.0,"drain_seconds":30.0,"hold_seconds":120.0,"reason":"IdleTimeout","policy":"ns/name"}"#;
    let request: UnloadRequest = serde_json::from_str(text).unwrap();
    assert_eq!((request.if_generation, request.if_idle_seconds.map(f64::from)), (Some(7), Some(300.0)));
    assert_eq!(request.reason.kind(), UnloadReason::IdleTimeout);
    assert_eq!(serde_json::to_string(&request).unwrap(), text);

    let whole: UnloadRequest = serde_json::from_value(json!({"if_idle_seconds": 300})).unwrap();
    assert_eq!(whole.if_idle_seconds, request.if_idle_seconds);
}

#[test]
fn an_empty_request_has_no_condition_and_is_manual() {
    let request: UnloadRequest = serde_json::from_str("{}").unwrap();
    assert_eq!(request, UnloadRequest::default());
    assert_eq!((request.reason.kind(), request.if_generation), (UnloadReason::Manual, None));
    assert!(!serde_json::from_str::<LoadRequest>("{}").unwrap().despite_hold);
}

#[test]
fn a_misspelt_condition_is_an_error_that_names_it() {
    let error = serde_json::from_str::<UnloadRequest>(r#"{"if_idle_second":1}"#).unwrap_err().to_string();
    assert!(error.contains("if_idle_second") && error.contains("if_idle_seconds"), "{error}");
    assert!(serde_json::from_str::<LoadRequest>(r#"{"if_idle_seconds":1}"#).is_err());
}

#[test]
fn values_out_of_bounds_are_explained() {
    for (body, must) in [
        (json!({"hold_seconds": -1}), "0 to 604800"),
        (json!({"hold_seconds": 604801}), "0 to 604800"),
        (json!({"reason": "idle timeout"}), "CamelCase"),
        (json!({"reason": "X".repeat(65)}), "CamelCase"),
        (json!({"reason": ""}), "CamelCase"),
        (json!({"policy": "name"}), "namespace/name"),
        (json!({"policy": "ns/"}), "namespace/name"),
        (json!({"policy": "ns/a/b"}), "namespace/name"),
        (json!({"policy": format!("ns/{}", "a".repeat(254))}), "namespace/name"),
    ] {
        let error = serde_json::from_value::<UnloadRequest>(body.clone()).unwrap_err().to_string();
        assert!(error.contains(must), "{body}: {error}");
    }
    assert!(serde_json::from_value::<UnloadRequest>(json!({"policy": "/cluster-wide"})).is_ok());
}

#[test]
fn a_reason_of_a_newer_controller_is_counted_as_other() {
    let reason: Reason = serde_json::from_value(json!("SolarFlare")).unwrap();
    assert_eq!((reason.as_str(), reason.kind()), ("SolarFlare", UnloadReason::Other));
    for known in UnloadReason::ALL {
        assert_eq!(Reason::from(known).kind(), known);
    }
}

#[test]
fn answers_of_a_newer_server_are_parsed() {
    let status = json!({
        "model": "tiny", "state": "ready", "generation": 3, "residency": "on-demand", "idle_seconds": 1.5,
        "loaded_seconds": 2.5, "inflight": 0, "queued": 0, "device": "cpu", "colour": "green",
    });
    let list: ModelList = serde_json::from_value(json!({"models": [status], "event_id": 9, "more": 1})).unwrap();

    let model: &ModelStatus = &list.models[0];
    assert_eq!((model.vram_bytes, model.idle_timeout_seconds, model.idle_seconds), (None, None, 1.5));

    let event: AdminEvent = serde_json::from_value(json!({"type": "lost", "count": 3})).unwrap();
    assert_eq!((event.name(), event), ("lost", AdminEvent::Lost { count: 3 }));
}

#[test]
fn a_refusal_is_read_from_the_code() {
    let error: AdminErrorBody = serde_json::from_value(json!({"code": "not_idle", "message": "m"})).unwrap();
    assert_eq!(error.refusal(), Some(UnloadRefusal::NotIdle));

    let error: AdminErrorBody = serde_json::from_value(json!({"code": "forbidden", "message": "m"})).unwrap();
    assert_eq!(error.refusal(), None);
}

#[test]
fn an_audience_names_one_server_and_is_bounded() {
    let uid = "0b8a3f5c-6f0e-4b0c-9a55-2f6d0f2b7c11";
    let audience = ServerAudience::new("media", uid).unwrap();
    assert_eq!(audience.as_str(), format!("hush-server/media/{uid}"));
    assert_eq!(ServerAudience::new(&"n".repeat(63), &"u".repeat(64)).unwrap().as_str().len(), 140);
    // A slash in either part could name a server of another namespace.
    for (namespace, uid) in [("", uid), ("a/b", uid), ("A", uid), ("media", ""), ("media", "a/b"), ("media", "a b")] {
        assert!(ServerAudience::new(namespace, uid).is_err(), "{namespace} {uid}");
    }
    assert!(ServerAudience::new(&"n".repeat(64), uid).is_err());
    assert!(ServerAudience::new("media", &"u".repeat(65)).is_err());
}
