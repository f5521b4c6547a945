//! The HTTP API: that of the public listener from its OpenAPI document, that of operations from the contract.

use std::fmt::Write;

use anyhow::{Context, Result};
use hush_contract::admin;
use schemars::{JsonSchema, SchemaGenerator, generate::SchemaSettings};
use serde_json::Value;

use super::markdown::{code, marked, table};
use super::{head, schema};

const TEXT: &str = "\
Every route, its parameters and its answers. The same for programs: [openapi.json](../openapi.json), and `/openapi.json` of
a running server. How they behave: [OpenAI's API](../openai-api.md), [transcripts](../transcripts.md),
[operations](../operations.md#admin-api). The controller has an API of its own:
[the controller's page](../controller-page.md#the-api).
";

const OPERATIONS: &str = "
## Operations listener

`--ops-listen`. `GET /metrics` ([metrics](metrics.md)) and `GET /healthz` are open; everything below `/admin/v1` asks for a
credential ([security](../security.md#who-may-load-and-unload)). Bodies are JSON; an unknown field is an error. What a
command does, and its codes: [operations](../operations.md#admin-api).

";

/// Of a route below `/admin/v1`.
struct Route {
    method: &'static str,
    path: &'static str,
    meaning: &'static str,
    body: Option<&'static str>,
    answer: &'static str,
}

const ROUTES: [Route; 6] = [
    Route {
        method: "GET",
        path: "/admin/v1/models",
        meaning: "What every model is doing.",
        body: None,
        answer: "ModelList",
    },
    Route {
        method: "POST",
        path: "/admin/v1/models/{model}/load",
        meaning: "Bring a model into memory.",
        body: Some("LoadRequest"),
        answer: "LoadResponse",
    },
    Route {
        method: "POST",
        path: "/admin/v1/models/{model}/unload",
        meaning: "Take a model out of memory, under conditions.",
        body: Some("UnloadRequest"),
        answer: "UnloadResponse",
    },
    Route {
        method: "GET",
        path: "/admin/v1/events",
        meaning: "Server-sent events: a snapshot, then each change.",
        body: None,
        answer: "Event",
    },
    Route {
        method: "GET",
        path: "/admin/v1/log-level",
        meaning: "What the server logs.",
        body: None,
        answer: "LogLevelResponse",
    },
    Route {
        method: "PUT",
        path: "/admin/v1/log-level",
        meaning: "Change what the server logs, for a time or until it ends.",
        body: Some("LogLevelRequest"),
        answer: "LogLevelResponse",
    },
];

const FIELDS: [&str; 5] = ["field", "type", "default", "bounds", "meaning"];

pub fn page() -> Result<String> {
    let document: Value = serde_json::from_str(&hush_server::api::openapi::text()?)?;
    let mut page = head("HTTP", TEXT);
    for tag in document["tags"].as_array().context("the document has no tags")? {
        let (name, about) = (tag["name"].as_str().unwrap_or_default(), tag["description"].as_str().unwrap_or_default());
        writeln!(page, "\n## {name}\n\n{about}")?;
        for (path, method, operation) in operations(&document).filter(|(.., o)| o["tags"][0] == tag["name"]) {
            describe(&mut page, &document, &format!("{} {path}", method.to_uppercase()), operation)?;
        }
    }
    writeln!(page, "\n## Bodies\n\nOf the public listener.")?;
    let schemas = document["components"]["schemas"].as_object().context("the document has no schemas")?;
    for (name, body) in schemas {
        define(&mut page, name, body, &local)?;
    }
    page += OPERATIONS;
    admin(&mut page)?;
    Ok(page)
}

fn operations(document: &Value) -> impl Iterator<Item = (&str, &str, &Value)> {
    let paths = document["paths"].as_object().into_iter().flatten();
    paths.flat_map(|(path, methods)| {
        methods
            .as_object()
            .into_iter()
            .flatten()
            .map(move |(method, operation)| (path.as_str(), method.as_str(), operation))
    })
}

fn local(name: &str) -> String {
    format!("[{name}](#{})", name.to_lowercase())
}

fn describe(page: &mut String, document: &Value, title: &str, operation: &Value) -> Result<()> {
    writeln!(page, "\n### {title}\n")?;
    for key in ["summary", "description"] {
        if let Some(text) = operation[key].as_str() {
            writeln!(page, "{}", marked(text))?;
        }
    }
    let parameters: Vec<_> = operation["parameters"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|parameter| {
            let mut row = schema::row(
                parameter["name"].as_str().unwrap_or_default(),
                &parameter["schema"],
                parameter["required"] == true,
                &local,
            );
            row[4] = marked(parameter["description"].as_str().unwrap_or_default());
            row
        })
        .collect();
    if !parameters.is_empty() {
        let place = if operation["parameters"][0]["in"] == "path" { "path" } else { "query" };
        write!(page, "\n{}", table(&[place, "type", "default", "bounds", "meaning"], &parameters))?;
    }
    for (kind, content) in operation["requestBody"]["content"].as_object().into_iter().flatten() {
        let form = resolved(document, &content["schema"]);
        write!(page, "\nBody `{kind}`:\n\n{}", table(&FIELDS, &schema::fields(form, &local)))?;
    }
    let answers: Vec<_> = operation["responses"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(status, answer)| {
            let bodies: Vec<String> = answer["content"]
                .as_object()
                .into_iter()
                .flatten()
                .map(|(kind, content)| match content["schema"]["$ref"].as_str() {
                    Some(_) => schema::kind(&content["schema"], &local),
                    None => code(kind.split(';').next().unwrap_or(kind)),
                })
                .collect();
            let headers = answer["headers"].as_object().into_iter().flatten().map(|(name, _)| code(name));
            let headers = headers.collect::<Vec<_>>().join(", ");
            vec![status.clone(), bodies.join(", "), headers, marked(answer["description"].as_str().unwrap_or_default())]
        })
        .collect();
    write!(page, "\n{}", table(&["status", "body", "headers", "when"], &answers))?;
    Ok(())
}

fn resolved<'a>(document: &'a Value, schema: &'a Value) -> &'a Value {
    let name = schema["$ref"].as_str().and_then(|target| target.strip_prefix("#/components/schemas/"));
    name.map_or(schema, |name| &document["components"]["schemas"][name])
}

fn define(page: &mut String, name: &str, body: &Value, link: &dyn Fn(&str) -> String) -> Result<()> {
    writeln!(page, "\n### {name}\n")?;
    if let Some(about) = body["description"].as_str() {
        writeln!(page, "{}\n", marked(about))?;
    }
    let variants: Vec<&Value> = body["oneOf"].as_array().into_iter().flatten().collect();
    if variants.iter().any(|variant| variant["properties"].is_object()) {
        for variant in variants {
            let kind = variant["properties"]["type"]["const"].as_str().unwrap_or_default();
            writeln!(page, "- {}: {}", code(kind), marked(variant["description"].as_str().unwrap_or_default()))?;
            let rows = schema::fields(variant, link);
            for row in rows.iter().filter(|row| row[0] != "`type`") {
                writeln!(
                    page,
                    "  - {}: {}{}",
                    row[0],
                    row[1],
                    if row[4].is_empty() { String::new() } else { format!("; {}", row[4]) }
                )?;
            }
        }
        return Ok(());
    }
    if body["properties"].is_object() {
        write!(page, "{}", table(&FIELDS, &schema::fields(body, link)))?;
    } else {
        writeln!(page, "{}", schema::kind(body, link))?;
    }
    Ok(())
}

/// Names that the public listener has too are told apart.
fn admin_link(name: &str) -> String {
    format!("[{name}](#{})", anchor(name))
}

fn anchor(name: &str) -> String {
    format!("admin-{}", name.to_lowercase())
}

fn admin(page: &mut String) -> Result<()> {
    let rows: Vec<_> = ROUTES
        .iter()
        .map(|route| {
            let body = route.body.map(admin_link).unwrap_or_default();
            vec![
                code(&format!("{} {}", route.method, route.path)),
                body,
                admin_link(route.answer),
                route.meaning.to_owned(),
            ]
        })
        .collect();
    page.push_str(&table(&["route", "body", "answer", "meaning"], &rows));
    writeln!(page, "\nEvery answer that is no success is an {}.", admin_link("ErrorBody"))?;
    let mut generator = SchemaGenerator::new(SchemaSettings::draft2020_12());
    known::<admin::ModelList>(&mut generator);
    known::<admin::LoadRequest>(&mut generator);
    known::<admin::LoadResponse>(&mut generator);
    known::<admin::UnloadRequest>(&mut generator);
    known::<admin::UnloadResponse>(&mut generator);
    known::<admin::Event>(&mut generator);
    known::<admin::LogLevelRequest>(&mut generator);
    known::<admin::LogLevelResponse>(&mut generator);
    known::<admin::ErrorBody>(&mut generator);
    for (name, body) in generator.take_definitions(true) {
        define(page, &format!("Admin {name}"), &body, &admin_link)?;
    }
    Ok(())
}

fn known<T: JsonSchema>(generator: &mut SchemaGenerator) {
    generator.subschema_for::<T>();
}
