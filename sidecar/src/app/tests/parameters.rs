//! What the user's configuration gives, and models that are several instances.

use serde_json::{Map, Value, json};

use super::{answer, app};
use crate::app::{AppParameters, ListedModel};

fn parameters(common: Value, model: &str, own: Value) -> AppParameters {
    let object = |value: Value| value.as_object().cloned().unwrap();
    AppParameters { common: object(common), by_model: [(model.to_owned(), object(own))].into() }
}

#[test]
fn a_model_without_its_launch_is_refused_by_name() {
    let models = ["qwen".to_owned()];
    let xinference = app("xinference");
    let problem = |given| xinference.with_parameters(given, &models).unwrap_err().to_string();

    assert_eq!(problem(AppParameters::default()), "Xinference needs the parameter `launch` of the model `qwen`");
    let typo = problem(parameters(json!({}), "qwen", json!({"lunch": {}})));
    assert_eq!(typo, "the app has no parameter `lunch`; possible are: `launch`");
    let text = problem(parameters(json!({}), "qwen", json!({"launch": "x"})));
    assert_eq!(text, "the parameter `launch` must be an object, because its members join a body");
}

#[test]
fn a_models_own_values_win_over_the_common_ones_and_these_over_defaults() {
    let vllm = app("vllm");
    let path =
        |given, model: &str| vllm.with_parameters(given, &[]).unwrap().unload(model).unwrap().steps[0].path.clone();

    assert_eq!(path(AppParameters::default(), "m"), "/sleep?level=1&mode=wait");
    let given = || parameters(json!({"sleepLevel": 2}), "own", json!({"sleepLevel": 1}));
    assert_eq!(path(given(), "m"), "/sleep?level=2&mode=wait");
    assert_eq!(path(given(), "own"), "/sleep?level=1&mode=wait");
}

#[test]
fn steps_depend_on_parameters_and_so_do_their_answers() {
    let given = parameters(json!({"sleepLevel": 2}), "x", json!({}));
    let vllm = app("vllm").with_parameters(given, &[]).unwrap();
    let steps = vllm.load("m").unwrap().steps;
    let paths: Vec<&str> = steps.iter().map(|step| step.path.as_str()).collect();

    assert_eq!(paths, ["/wake_up?tags=weights", "/collective_rpc", "/wake_up?tags=kv_cache", "/health"]);
    let outcome = vllm.read_load_step("m", 1, &answer(500, "reload failed"));
    assert!(format!("{outcome:?}").contains("POST /collective_rpc answered 500: reload failed"), "{outcome:?}");
}

#[test]
fn each_listed_instance_is_unloaded() {
    let studio = app("lm-studio");
    let body = json!({"models": [
        {"key": "qwen", "loaded_instances": [{"id": "qwen"}, {"id": "qwen:2"}]},
        {"key": "other", "loaded_instances": [{"id": "other"}]},
        {"key": "away", "loaded_instances": []},
    ]});
    let listed = studio.read_list(&["qwen".to_owned()], &[answer(200, body.to_string())]).unwrap();
    let bodies = |listed: &[ListedModel], model: &str| -> Vec<Value> {
        let steps = studio.unload_listed(model, listed).unwrap().steps;
        steps.into_iter().filter_map(|step| step.body).collect()
    };

    assert_eq!(bodies(&listed, "qwen"), [json!({"instance_id": "qwen"}), json!({"instance_id": "qwen:2"})]);
    assert_eq!(bodies(&listed, "away"), Vec::<Value>::new());
    assert_eq!(studio.read_unload_step("qwen", 1, &answer(404, "")), crate::app::ActionStepOutcome::Done);

    // An app without instances sends the same requests as ever.
    let ollama = app("ollama");
    assert_eq!(ollama.unload_listed("m", &[]), ollama.unload("m"));
}

#[test]
fn values_are_read_only_where_they_are_given() {
    let none = Map::new();
    let triton = app("triton");
    assert_eq!(triton.load("m").unwrap().steps[0].body, Some(Value::Object(none)));

    let given = parameters(json!({}), "m", json!({"load": {"parameters": {"config": "{}"}}}));
    let triton = triton.with_parameters(given, &["m".to_owned()]).unwrap();
    assert_eq!(triton.load("m").unwrap().steps[0].body, Some(json!({"parameters": {"config": "{}"}})));
    assert_eq!(triton.load("n").unwrap().steps[0].body, Some(json!({})));
}
