//! The format: its schema, its page, and what is said about mistakes.

use std::fs;

use serde_json::Value;

use crate::app::{App, check, known, schema};

const SCHEMA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/app-description.schema.json");
const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/app-descriptions.md");

#[test]
fn every_description_of_the_program_is_valid_and_named_as_its_file() {
    for (name, text) in known::DESCRIPTIONS {
        assert_eq!(check(text), [], "{name}.yaml");
        let app = App::from_yaml(text).unwrap();
        assert_eq!(app.name(), *name);
        assert!(App::find(name).is_some());
        assert!(!app.setup().is_empty() || !app.cannot_see().is_empty(), "{name} tells people nothing");
        assert!(app.remains().is_some(), "{name} does not say what remains");
        assert!(app.can_unload() || app.load("m").is_none(), "{name}");
    }
    assert!(App::find("nginx").is_none());
}

#[test]
fn every_file_of_the_folder_is_part_of_the_program() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/apps");
    let mut files: Vec<String> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    files.sort();
    let mut known: Vec<String> = App::known().map(|name| format!("{name}.yaml")).collect();
    known.sort();
    assert_eq!(files, known);
}

#[test]
fn the_committed_schema_of_app_descriptions_is_that_of_the_code() {
    if std::env::var_os("UPDATE_SCHEMA").is_some() {
        fs::write(SCHEMA, schema()).unwrap();
    }
    let committed = fs::read_to_string(SCHEMA).unwrap_or_default();
    assert!(committed == schema(), "docs/app-description.schema.json is old; write it anew with `make schema`");
}

#[test]
fn the_page_explains_every_field_and_its_examples_are_valid() {
    let page = fs::read_to_string(PAGE).unwrap();
    let schema: Value = serde_json::from_str(&schema()).unwrap();
    let mut objects: Vec<&Value> = schema["$defs"].as_object().unwrap().values().collect();
    objects.push(&schema);

    let fields = objects.iter().filter_map(|object| object["properties"].as_object()).flat_map(|fields| fields.keys());
    for field in fields {
        assert!(page.contains(&format!("`{field}`")), "docs/app-descriptions.md does not explain `{field}`");
    }

    let examples = page.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next());
    let whole: Vec<&str> = examples.filter(|example| example.contains("\nmodels: ")).collect();
    assert!(!whole.is_empty());
    for example in whole {
        assert_eq!(check(example), [], "{example}");
    }
}

#[test]
fn a_mistake_is_reported_with_its_field_and_line() {
    let problems = |text: &str| check(text).iter().map(ToString::to_string).collect::<Vec<_>>();
    let first = |text: &str| problems(text).into_iter().next().unwrap();

    assert!(first("name: [").starts_with("line 1: "), "{}", first("name: ["));
    assert_eq!(first("- 1"), "a description is a mapping that begins with `name:`");
    assert_eq!(first(""), "a description is a mapping that begins with `name:`");
    let typo = first("name: x\nmodels: one\nlist:\n  request: {pth: /x}\n");
    assert!(typo.starts_with("line 4: `list.request") && typo.contains("unknown field `pth`"), "{typo}");
    let word = first("name: x\nmodels: many\n");
    assert!(word.starts_with("line 2: `models`: unknown variant `many`"), "{word}");

    let text = "name: My App\nmodels: one\nreadyPath: health\nidentify:\n  - {request: {path: x}, version: '$['}\nroutes:\n  \
                - {class: work, methods: [post], paths: ['/a{b', /c]}\nload: {steps: []}\n";
    let found = problems(text);
    for part in [
        "`name`: `My App` must be",
        "`readyPath`: must be a path",
        "`identify[0].version`: `$[` is no JSONPath",
        "`identify[0].request.path`: `x` is no path",
        "`load.steps`: at least one step",
        "`load`: needs `unload`",
        "`routes[0].methods[0]`: `post` is no HTTP method",
    ] {
        assert!(found.iter().any(|problem| problem.starts_with(part)), "{part}: {found:#?}");
    }
    let joined = App::from_yaml(text).unwrap_err().to_string();
    assert_eq!(joined.lines().count(), found.len());
}

#[test]
fn parts_that_contradict_each_other_are_refused() {
    let first = |rest: &str| check(&format!("name: x\nmodels: one\n{rest}")).first().unwrap().to_string();

    assert!(first("list: {request: {path: /x}}").contains("exactly one of `items` and `rules`"));
    assert!(first("routes: [{class: work, paths: ['/m/{model}']}]").contains("only with `models: named`"));
    assert!(first("routes: [{class: work, paths: [/a], endsWhenAppIsIdle: true}]").contains("needs `busy`"));
    assert!(first("routes: [{class: work, paths: [/**]}, {class: notWork, paths: [/a]}]").contains("has no effect"));
    assert!(first("routes: [{class: workSocket, methods: [GET], paths: [/a]}]").contains("no methods"));
    assert!(first("unload: {steps: [{request: {path: '/x/{instance}'}}]}").contains("`{instance}` is unknown"));
    assert!(first("unload: {steps: [{request: {path: /x, port: 80}}]}").contains("belongs to `busy`"));
    assert!(first("busy: {request: {path: /x}, number: []}").contains("at least one part"));
    assert!(first("credential: {scheme: header}").contains("must be the name of a header"));
    assert!(first("parameters: {model: {description: x}}").contains("must be named with letters"));
    let named =
        check("name: x\nmodels: named\nlist: {request: {path: /x}, rules: [{when: {status: [200]}, is: loaded}]}");
    assert!(named[0].message.contains("must contain `{model}`"), "{named:?}");
}

#[test]
fn the_alert_about_an_empty_gpu_leaves_out_apps_that_load_with_the_first_request() {
    let loads_late = |name: &&str| {
        let app = App::find(name).unwrap();
        app.can_unload() && app.load("m").is_none() && !app.starts_loaded()
    };
    let mut names: Vec<_> = App::known().filter(loads_late).collect();
    names.sort_unstable();

    let rules = include_str!("../../../../charts/hush/rules.yaml");
    let left_out = format!(r#"hush_app_info{{app!~"{}"}}"#, names.join("|"));
    assert!(rules.contains(&left_out), "{left_out} is not in charts/hush/rules.yaml");
}
