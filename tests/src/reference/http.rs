//! The HTTP API: the public listener from its OpenAPI document, the operations listener from the contract.

use std::fmt::Write;

use anyhow::{Context, Result};
use hush_contract::admin;
use schemars::{JsonSchema, SchemaGenerator, generate::SchemaSettings};
use serde_json::Value;

use super::markdown::{code, marked, table};
use super::{page_head, schema};

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

/// A route below `/admin/v1`.
struct AdminRoute {
    method: &'static str,
    path: &'static str,
    meaning: &'static str,
    body: Option<&'static str>,
    answer: &'static str,
}

const ADMIN_ROUTES: [AdminRoute; 6] = [
    AdminRoute {
        method: "GET",
        path: "/admin/v1/models",
        meaning: "What every model is doing.",
        body: None,
        answer: "ModelList",
    },
    AdminRoute {
        method: "POST",
        path: "/admin/v1/models/{model}/load",
        meaning: "Bring a model into memory.",
        body: Some("LoadRequest"),
        answer: "LoadResponse",
    },
    AdminRoute {
        method: "POST",
        path: "/admin/v1/models/{model}/unload",
        meaning: "Take a model out of memory, under conditions.",
        body: Some("UnloadRequest"),
        answer: "UnloadResponse",
    },
    AdminRoute {
        method: "GET",
        path: "/admin/v1/events",
        meaning: "Server-sent events: a snapshot, then each change.",
        body: None,
        answer: "AdminEvent",
    },
    AdminRoute {
        method: "GET",
        path: "/admin/v1/log-level",
        meaning: "What the server logs.",
        body: None,
        answer: "LogLevelResponse",
    },
    AdminRoute {
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
    let mut page = page_head("HTTP", TEXT);

    for tag in document["tags"].as_array().context("the document has no tags")? {
        let (name, about) = (tag["name"].as_str().unwrap_or_default(), tag["description"].as_str().unwrap_or_default());
        writeln!(page, "\n## {name}\n\n{about}")?;

        let tagged = operations(&document).filter(|(.., operation)| operation["tags"][0] == tag["name"]);
        for (path, method, operation) in tagged {
            write_operation(&mut page, &document, &format!("{} {path}", method.to_uppercase()), operation)?;
        }
    }

    writeln!(page, "\n## Bodies\n\nOf the public listener.")?;
    let schemas = document["components"]["schemas"].as_object().context("the document has no schemas")?;
    for (name, body) in schemas {
        write_body(&mut page, name, body, &public_link)?;
    }

    page += OPERATIONS;
    write_admin(&mut page)?;
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

fn public_link(name: &str) -> String {
    format!("[{name}](#{})", name.to_lowercase())
}

fn write_operation(page: &mut String, document: &Value, title: &str, operation: &Value) -> Result<()> {
    writeln!(page, "\n### {title}\n")?;
    for key in ["summary", "description"] {
        if let Some(text) = operation[key].as_str() {
            writeln!(page, "{}", marked(text))?;
        }
    }

    let parameters: Vec<_> = operation["parameters"].as_array().into_iter().flatten().map(parameter_row).collect();
    if !parameters.is_empty() {
        let position = if operation["parameters"][0]["in"] == "path" { "path" } else { "query" };
        write!(page, "\n{}", table(&[position, "type", "default", "bounds", "meaning"], &parameters))?;
    }

    for (media_type, content) in operation["requestBody"]["content"].as_object().into_iter().flatten() {
        let form = resolved(document, &content["schema"]);
        write!(page, "\nBody `{media_type}`:\n\n{}", table(&FIELDS, &schema::field_rows(form, &public_link)))?;
    }

    let answers = operation["responses"].as_object().into_iter().flatten();
    let answers: Vec<_> = answers.map(|(status, answer)| answer_row(status, answer)).collect();
    write!(page, "\n{}", table(&["status", "body", "headers", "when"], &answers))?;
    Ok(())
}

fn parameter_row(parameter: &Value) -> Vec<String> {
    let name = parameter["name"].as_str().unwrap_or_default();
    let mut row = schema::field_row(name, &parameter["schema"], parameter["required"] == true, &public_link);
    row[4] = marked(parameter["description"].as_str().unwrap_or_default());
    row
}

fn answer_row(status: &str, answer: &Value) -> Vec<String> {
    let body = |(media_type, content): (&String, &Value)| match content["schema"]["$ref"].as_str() {
        Some(_) => schema::type_text(&content["schema"], &public_link),
        None => code(media_type.split(';').next().unwrap_or(media_type)),
    };
    let bodies: Vec<String> = answer["content"].as_object().into_iter().flatten().map(body).collect();

    let headers = answer["headers"].as_object().into_iter().flatten().map(|(name, _)| code(name));
    let headers = headers.collect::<Vec<_>>().join(", ");
    let when = marked(answer["description"].as_str().unwrap_or_default());
    vec![status.to_owned(), bodies.join(", "), headers, when]
}

fn resolved<'a>(document: &'a Value, schema: &'a Value) -> &'a Value {
    let name = schema["$ref"].as_str().and_then(|target| target.strip_prefix("#/components/schemas/"));
    name.map_or(schema, |name| &document["components"]["schemas"][name])
}

fn write_body(page: &mut String, name: &str, body: &Value, link: &dyn Fn(&str) -> String) -> Result<()> {
    writeln!(page, "\n### {name}\n")?;
    if let Some(about) = body["description"].as_str() {
        writeln!(page, "{}\n", marked(about))?;
    }

    let variants: Vec<&Value> = body["oneOf"].as_array().into_iter().flatten().collect();
    if variants.iter().any(|variant| variant["properties"].is_object()) {
        return variants.into_iter().try_for_each(|variant| write_variant(page, variant, link));
    }

    if body["properties"].is_object() {
        write!(page, "{}", table(&FIELDS, &schema::field_rows(body, link)))?;
    } else {
        writeln!(page, "{}", schema::type_text(body, link))?;
    }
    Ok(())
}

/// A variant of a body, with the fields that only it has.
fn write_variant(page: &mut String, variant: &Value, link: &dyn Fn(&str) -> String) -> Result<()> {
    let name = variant["properties"]["type"]["const"].as_str().unwrap_or_default();
    writeln!(page, "- {}: {}", code(name), marked(variant["description"].as_str().unwrap_or_default()))?;

    for row in schema::field_rows(variant, link).iter().filter(|row| row[0] != "`type`") {
        let meaning = if row[4].is_empty() { String::new() } else { format!("; {}", row[4]) };
        writeln!(page, "  - {}: {}{meaning}", row[0], row[1])?;
    }
    Ok(())
}

/// A link to a body of the admin API. The prefix tells it from a body of the public listener with the same name.
fn admin_link(name: &str) -> String {
    format!("[{name}](#{})", anchor(name))
}

fn anchor(name: &str) -> String {
    format!("admin-{}", name.to_lowercase())
}

fn write_admin(page: &mut String) -> Result<()> {
    let rows: Vec<_> = ADMIN_ROUTES
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
    writeln!(page, "\nEvery answer that is no success is an {}.", admin_link("AdminErrorBody"))?;

    let mut generator = SchemaGenerator::new(SchemaSettings::draft2020_12());
    define::<admin::ModelList>(&mut generator);
    define::<admin::LoadRequest>(&mut generator);
    define::<admin::LoadResponse>(&mut generator);
    define::<admin::UnloadRequest>(&mut generator);
    define::<admin::UnloadResponse>(&mut generator);
    define::<admin::AdminEvent>(&mut generator);
    define::<admin::LogLevelRequest>(&mut generator);
    define::<admin::LogLevelResponse>(&mut generator);
    define::<admin::AdminErrorBody>(&mut generator);

    for (name, body) in generator.take_definitions(true) {
        write_body(page, &format!("Admin {name}"), &body, &admin_link)?;
    }
    Ok(())
}

/// Adds the schema of `T` to the definitions.
fn define<T: JsonSchema>(generator: &mut SchemaGenerator) {
    generator.subschema_for::<T>();
}
