//! Requests with placeholders.

use std::time::Duration;

use http::Method;
use serde_json::Value;

use super::AppRequest;
use super::answer::AnswerReader;
use super::description::{AnswerFormat, RequestDescription};
use super::problem::FieldScope;
use super::template::{JsonTemplate, Placeholders, TemplateValues, TextTemplate};

/// A longer wait for one answer is a mistake.
const TIMEOUT_MAX: Duration = Duration::from_secs(24 * 3600);

/// A compiled request.
#[derive(Clone, Debug)]
pub(super) struct RequestTemplate {
    method: Method,
    path: TextTemplate,
    body: Option<JsonTemplate>,
    add_members_of: Option<String>,
    pub(super) port: Option<u16>,
    timeout: Duration,
    pub(super) format: AnswerFormat,
}

impl RequestTemplate {
    pub(super) fn compile(
        source: &RequestDescription,
        allowed: &Placeholders<'_>,
        default_timeout: Duration,
        field: &FieldScope<'_>,
    ) -> Option<Self> {
        let method = compile_method(&source.method, &field.member("method"));
        let path = compile_path(&source.path, allowed, &field.member("path"));
        let timeout = source.timeout_seconds.map_or(default_timeout, Duration::from_secs);
        if timeout.is_zero() || timeout > TIMEOUT_MAX {
            field.member("timeoutSeconds").report(format!("must be from 1 to {}", TIMEOUT_MAX.as_secs()));
        }

        let body = match &source.body {
            Some(body) => Some(JsonTemplate::compile(body, allowed, &field.member("body"))?),
            None => None,
        };
        if let Some(parameter) = &source.add_members_of {
            let field = field.member("addMembersOf");
            if !allowed.parameters.contains(&parameter.as_str()) {
                field.report(format!("`{parameter}` is none of `parameters`"));
            }
            if body.as_ref().is_some_and(|body| !matches!(body, JsonTemplate::Object(_))) {
                field.report("members can only be added to a `body` that is an object");
            }
        }

        Some(Self {
            method: method?,
            path: path?,
            body,
            add_members_of: source.add_members_of.clone(),
            port: source.port,
            timeout,
            format: source.answer,
        })
    }

    pub(super) fn has_model_in_path(&self) -> bool {
        self.path.has_model()
    }

    pub(super) fn has_instance(&self) -> bool {
        self.path.has_instance() || self.body.as_ref().is_some_and(JsonTemplate::has_instance)
    }

    /// The parameter whose members are added to the body.
    pub(super) fn object_parameter(&self) -> Option<&str> {
        self.add_members_of.as_deref()
    }

    pub(super) fn render(&self, values: &TemplateValues<'_>) -> AppRequest {
        AppRequest {
            method: self.method.clone(),
            path: self.path.render_path(values),
            body: self.render_body(values),
            timeout: self.timeout,
        }
    }

    /// Method and path, for messages.
    pub(super) fn label(&self, values: &TemplateValues<'_>) -> String {
        format!("{} {}", self.method, self.path.render_path(values))
    }

    /// The cause of a failure: the request, and what its answer says.
    pub(super) fn describe(&self, answer: &AnswerReader<'_>, values: &TemplateValues<'_>) -> String {
        format!("{} answered {}", self.label(values), answer.summary())
    }

    fn render_body(&self, values: &TemplateValues<'_>) -> Option<Value> {
        let body = self.body.as_ref().map(|body| body.render(values));
        let added =
            self.add_members_of.as_ref().and_then(|name| values.parameters.get(name)).and_then(Value::as_object);

        let Some(added) = added else {
            // A body that only consists of added members is sent as an empty object where nothing is added.
            return body.or_else(|| self.add_members_of.as_ref().map(|_| Value::Object(serde_json::Map::new())));
        };
        let mut members = added.clone();
        if let Some(Value::Object(own)) = body {
            members.extend(own);
        }
        Some(Value::Object(members))
    }
}

pub(super) fn compile_method(text: &str, field: &FieldScope<'_>) -> Option<Method> {
    let is_upper_case = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_uppercase());
    match Method::from_bytes(text.as_bytes()) {
        Ok(method) if is_upper_case => Some(method),
        _ => {
            field.report(format!("`{text}` is no HTTP method in capital letters, such as `POST`"));
            None
        }
    }
}

fn compile_path(text: &str, allowed: &Placeholders<'_>, field: &FieldScope<'_>) -> Option<TextTemplate> {
    let is_clean = text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
    if !text.starts_with('/') || text.starts_with("//") || !is_clean {
        field.report(format!("`{text}` is no path that begins with one `/`, without spaces and `#`"));
        return None;
    }
    TextTemplate::compile(text, allowed, field)
}
