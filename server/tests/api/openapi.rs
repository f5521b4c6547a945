//! `/openapi.json` against the router that it describes, in both directions.

use std::collections::{BTreeMap, BTreeSet};

use hush_access::KeyFile;
use hush_server::api::{ApiConfig, openapi};
use hush_server::serve::ServeOptions;
use serde_json::Value;

use crate::support::{ApiFixture, FakeModel, RawResponse, audio_file, form, golden, half_a_second, part};

/// What people look at; the peer leaves its own out too.
const PAGES: [&str; 5] = ["/", "/docs", "/docs/{version}/{file}", "/openapi.json", "/ui/{version}/{file}"];

fn document() -> Value {
    serde_json::from_str(&openapi::text().unwrap()).unwrap()
}

/// `(path, method) -> operation`
fn operations(document: &Value) -> BTreeMap<(String, String), Value> {
    let mut operations = BTreeMap::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            operations.insert((path.clone(), method.to_uppercase()), operation.clone());
        }
    }
    operations
}

/// `make openapi` writes it anew.
#[test]
fn the_committed_copy_is_what_the_code_says() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/openapi.json");
    let text = openapi::text().unwrap();
    if std::env::var_os("HUSH_WRITE_OPENAPI").is_some() {
        std::fs::write(path, &text).unwrap();
    }
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    assert!(committed == text, "docs/openapi.json is not what the code says: run `make openapi`");
}

#[tokio::test]
async fn every_route_is_described_with_its_methods() {
    let server = ApiFixture::start(FakeModel::answering(golden())).await;
    // The only list that axum gives of its routes.
    let router = format!("{:?}", server.routes);
    let paths = router.split("RouteId(").filter_map(|piece| piece.split_once("): \"")?.1.split('"').next());
    let mut routed = BTreeSet::new();
    let mut known = 0;
    for path in paths.filter(|path| path.starts_with('/') && !path.contains("private__axum")) {
        known += 1;
        let answer = server.send(format!("TRACE {path} HTTP/1.1\r\nHost: h\r\n\r\n")).await;
        assert_eq!(answer.status, "405 Method Not Allowed", "{path}");
        // Aliases with extra slashes are one route, and GET brings HEAD with it.
        let path = format!("/{}", path.trim_matches('/').replace("{*", "{"));
        let methods = answer.headers["allow"].split(',').filter(|method| *method != "HEAD").map(str::to_owned);
        routed.extend(methods.map(|method| (path.clone(), method)).filter(|(path, _)| !PAGES.contains(&path.as_str())));
    }
    assert!(known > 10, "axum prints its routes in another way now: {router}");
    let described: BTreeSet<_> = operations(&document()).into_keys().collect();
    assert_eq!(routed, described);
}

/// Each described answer that can be had: good in every form, with an empty file, and without one.
#[tokio::test]
async fn every_described_route_answers_as_described() {
    let document = document();
    let server = ApiFixture::start(FakeModel::answering(golden())).await;
    let wav = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/audio/en-1.wav")).unwrap();
    for ((path, method), operation) in operations(&document) {
        if method == "GET" {
            let mut client = server.connect().await;
            let target = path.replace("{id}", "tiny");
            client.write(format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n").as_bytes()).await;
            // A stream of events has no end.
            let answer = if path.ends_with("/events") { client.head().await } else { client.answer().await };
            assert_eq!(answer.status, "200 OK", "{path}");
            is_described(&document, &operation, &path, &answer);
            continue;
        }
        let (file, formats) = form_of(&document, &operation);
        let whole = |content: &[u8], fields: &[(&str, &str)]| {
            let mut parts: Vec<_> =
                fields.iter().map(|(name, value)| part(&format!("name=\"{name}\""), value.as_bytes())).collect();
            parts.push(part(&format!("name=\"{file}\"; filename=\"a.wav\""), content));
            form(&parts)
        };
        let missing = if path.starts_with("/v1/") { "400 Bad Request" } else { "422 Unprocessable Entity" };
        let mut cases = vec![
            (whole(&wav, &[]), "200 OK"),
            (whole(b"", &[]), "400 Bad Request"),
            (form(&[part("name=\"other\"", b"x")]), missing),
        ];
        cases.extend(formats.iter().map(|format| (whole(&wav, &[("response_format", format)]), "200 OK")));
        if !formats.is_empty() {
            cases.push((whole(&wav, &[("stream", "true")]), "200 OK"));
        }
        for (body, expected) in cases {
            let answer = server.post(&path, &body).await;
            assert_eq!(answer.status, expected, "{path}: {}", answer.body);
            is_described(&document, &operation, &path, &answer);
        }
    }
}

/// Where the server has API keys.
#[tokio::test]
async fn every_guarded_route_says_that_it_is() {
    let document = document();
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("keys"), "0123456789abcdef\n").unwrap();
    let keys = Some(KeyFile::open(dir.path().join("keys")).unwrap());
    let config = ApiConfig { keys, ..ApiConfig::default() };
    let server = ApiFixture::with(FakeModel::answering(golden()), config, ServeOptions::default()).await;
    for ((path, method), operation) in operations(&document) {
        let target = path.replace("{id}", "tiny");
        let answer = server.send(format!("{method} {target} HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n")).await;
        let is_guarded = operation["responses"].get("401").is_some();
        assert_eq!(answer.status == "401 Unauthorized", is_guarded, "{method} {path}: {}", answer.status);
        if is_guarded {
            assert_eq!(answer.headers["www-authenticate"], "Bearer");
            is_described(&document, &operation, &path, &answer);
        }
    }
    let schemes = document["components"]["securitySchemes"].as_object().unwrap();
    assert_eq!(schemes.keys().collect::<Vec<_>>(), ["bearer", "header"]);
}

/// The name of the one file of a form, and the values of its field `response_format`.
fn form_of(document: &Value, operation: &Value) -> (String, Vec<String>) {
    let content = &operation["requestBody"]["content"]["multipart/form-data"]["schema"];
    let form = resolve(document, content);
    let fields = form["properties"].as_object().unwrap();
    let files: Vec<_> = fields.iter().filter(|(_, field)| field["format"] == "binary").collect();
    assert_eq!(files.len(), 1, "{form}");
    let formats = form["properties"]["response_format"]["enum"].as_array().into_iter().flatten();
    (files[0].0.clone(), formats.filter_map(|format| format.as_str().map(str::to_owned)).collect())
}

fn resolve<'a>(document: &'a Value, schema: &'a Value) -> &'a Value {
    match schema["$ref"].as_str() {
        Some(reference) => document.pointer(reference.trim_start_matches('#')).unwrap(),
        None => schema,
    }
}

/// Status, content type, and for JSON that no field is there which the schema does not have, and none missing.
#[track_caller]
fn is_described(document: &Value, operation: &Value, path: &str, answer: &RawResponse) {
    let code = &answer.status[..3];
    let content = operation["responses"][code]["content"].as_object();
    let content = content.unwrap_or_else(|| panic!("{path} answers {code}, which is not described"));
    let given = answer.headers["content-type"].as_str();
    let described = content.get(given).or_else(|| content.get(given.split(';').next().unwrap()));
    let described = described.unwrap_or_else(|| panic!("{path} {code} is {given}: {content:?}"));
    if given == "application/json" {
        let body: Value = serde_json::from_str(&answer.body).unwrap();
        has_shape(document, &described["schema"], &body, &format!("{path} {code}"));
    }
}

#[track_caller]
fn has_shape(document: &Value, schema: &Value, value: &Value, place: &str) {
    let schema = resolve(document, schema);
    if let Some(choices) = schema["oneOf"].as_array() {
        // The one whose fields are all there.
        let fits = |choice: &&Value| {
            let required = resolve(document, choice)["required"].as_array();
            required.into_iter().flatten().filter_map(Value::as_str).all(|name| value.get(name).is_some())
        };
        let choice =
            choices.iter().rev().find(fits).unwrap_or_else(|| panic!("{place} is none of {choices:?}: {value}"));
        return has_shape(document, choice, value, place);
    }
    if let Some(properties) = schema["properties"].as_object() {
        let fields = value.as_object().unwrap_or_else(|| panic!("{place} is no object: {value}"));
        let required = schema["required"].as_array().cloned().unwrap_or_default();
        for name in required.iter().filter_map(Value::as_str) {
            assert!(fields.contains_key(name), "{place} has no {name}: {value}");
        }
        for (name, field) in fields {
            let described = properties.get(name).unwrap_or_else(|| panic!("{place}.{name} is not described"));
            has_shape(document, described, field, &format!("{place}.{name}"));
        }
    }
    if let (Some(items), Some(values)) = (schema.get("items"), value.as_array()) {
        for (at, value) in values.iter().enumerate() {
            has_shape(document, items, value, &format!("{place}[{at}]"));
        }
    }
    if let Some(words) = schema["enum"].as_array() {
        assert!(words.contains(value), "{place} is {value}, which is not one of {words:?}");
    }
}

/// The parameters of the two routes that read theirs by hand.
#[tokio::test]
async fn every_described_parameter_is_read() {
    let document = document();
    let server = ApiFixture::start(FakeModel::answering(golden())).await;
    for path in ["/asr", "/detect-language"] {
        let parameters = document["paths"][path]["post"]["parameters"].as_array().unwrap();
        let mut defaults = String::from("?encode=false");
        for parameter in parameters {
            let (name, schema) = (parameter["name"].as_str().unwrap(), &parameter["schema"]);
            assert_eq!((&parameter["in"], &parameter["required"]), (&"query".into(), &false.into()), "{name}");
            if let Some(default) = schema.get("default").filter(|_| name != "encode") {
                let default = default.as_str().map_or(default.to_string(), str::to_owned);
                defaults.push_str(&format!("&{name}={default}"));
            }
            for value in schema["enum"].as_array().into_iter().flatten().filter_map(Value::as_str) {
                let path = format!("{path}?encode=false&{name}={value}");
                let answer = server.post(&path, &audio_file(&half_a_second())).await;
                assert_eq!(answer.status, "200 OK", "{path} {name}={value}");
            }
            if matches!(schema["type"].as_str(), Some("boolean" | "integer")) {
                let answer = server.post(&format!("{path}?{name}=maybe"), &audio_file(&half_a_second())).await;
                assert_eq!(answer.status, "422 Unprocessable Entity", "{path} {name}");
                assert!(answer.body.contains(&format!(r#""loc":["query","{name}"]"#)), "{}", answer.body);
            }
        }
        // What is given by default is what is described as the default.
        let before = server.fake.asked().len();
        for query in ["?encode=false", defaults.as_str()] {
            let answer = server.post(&format!("{path}{query}"), &audio_file(&half_a_second())).await;
            assert_eq!(answer.status, "200 OK", "{path}{query}");
        }
        let asked = server.fake.asked();
        assert_eq!(asked[before], asked[before + 1], "{path}{defaults}");
    }
}

#[tokio::test]
async fn the_document_is_served() {
    let server = ApiFixture::start(FakeModel::answering(golden())).await;
    let answer = server.get("/openapi.json").await;
    answer.is_json("200 OK", &openapi::text().unwrap());
    let served: Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!(served["openapi"], "3.1.0");
    assert_eq!(served["info"]["version"], env!("CARGO_PKG_VERSION"));
}
