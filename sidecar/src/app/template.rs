//! Texts and JSON bodies with placeholders.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Map, Value};

use super::json_query::scalar_text;
use super::problem::FieldScope;

/// All but RFC 3986's unreserved characters.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
const RESERVED_BUT_SLASH: &AsciiSet = &RESERVED.remove(b'/');

/// What placeholders stand for.
#[derive(Clone, Copy, Debug)]
pub(super) struct TemplateValues<'a> {
    pub(super) model: &'a str,
    pub(super) instance: &'a str,
    pub(super) parameters: &'a Map<String, Value>,
}

/// Which placeholders a template may have.
#[derive(Clone, Copy, Debug)]
pub(super) struct Placeholders<'a> {
    pub(super) model: bool,
    pub(super) instance: bool,
    /// Names of parameters.
    pub(super) parameters: &'a [&'a str],
}

impl Placeholders<'_> {
    pub(super) const NONE: Placeholders<'static> = Placeholders { model: false, instance: false, parameters: &[] };

    fn expected(&self) -> String {
        let model = self.model.then_some("{model}");
        let instance = self.instance.then_some("{instance}");
        let parameters = self.parameters.iter().map(|name| format!("{{{name}}}"));
        let known: Vec<String> = model.into_iter().chain(instance).map(str::to_owned).chain(parameters).collect();

        if known.is_empty() { "none is possible here".to_owned() } else { format!("possible are {}", known.join(", ")) }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Literal(String),
    Model { keeps_slashes: bool },
    Instance,
    Parameter(String),
}

/// How a value is written into a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TemplateEncoding {
    Plain,
    Percent,
}

/// A text with placeholders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TextTemplate {
    pieces: Vec<Piece>,
}

impl TextTemplate {
    pub(super) fn compile(text: &str, allowed: &Placeholders<'_>, field: &FieldScope<'_>) -> Option<Self> {
        match split(text, allowed) {
            Ok(pieces) => Some(Self { pieces }),
            Err(problem) => {
                field.report(problem);
                None
            }
        }
    }

    pub(super) fn has_model(&self) -> bool {
        self.pieces.iter().any(|piece| matches!(piece, Piece::Model { .. }))
    }

    pub(super) fn has_instance(&self) -> bool {
        self.pieces.contains(&Piece::Instance)
    }

    pub(super) fn render(&self, values: &TemplateValues<'_>) -> String {
        self.render_as(values, TemplateEncoding::Plain)
    }

    /// For paths and queries: values are percent-encoded.
    pub(super) fn render_path(&self, values: &TemplateValues<'_>) -> String {
        self.render_as(values, TemplateEncoding::Percent)
    }

    fn render_as(&self, values: &TemplateValues<'_>, encoding: TemplateEncoding) -> String {
        let mut text = String::new();
        for piece in &self.pieces {
            let (value, set) = match piece {
                Piece::Literal(literal) => {
                    text.push_str(literal);
                    continue;
                }
                Piece::Model { keeps_slashes: true } => (values.model.to_owned(), RESERVED_BUT_SLASH),
                Piece::Model { keeps_slashes: false } => (values.model.to_owned(), RESERVED),
                Piece::Instance => (values.instance.to_owned(), RESERVED),
                Piece::Parameter(name) => {
                    (values.parameters.get(name).and_then(scalar_text).unwrap_or_default(), RESERVED)
                }
            };

            match encoding {
                TemplateEncoding::Plain => text.push_str(&value),
                TemplateEncoding::Percent => text.extend(utf8_percent_encode(&value, set)),
            }
        }
        text
    }

    /// The parameter that is the whole text.
    fn whole_parameter(&self) -> Option<&str> {
        match self.pieces.as_slice() {
            [Piece::Parameter(name)] => Some(name),
            _ => None,
        }
    }
}

fn split(text: &str, allowed: &Placeholders<'_>) -> Result<Vec<Piece>, String> {
    let mut pieces = Vec::new();
    let mut literal = String::new();
    let mut rest = text;

    while let Some(at) = rest.find(['{', '}']) {
        let (before, from_brace) = rest.split_at(at);
        literal.push_str(before);

        if let Some(after) = from_brace.strip_prefix("{{") {
            literal.push('{');
            rest = after;
        } else if let Some(after) = from_brace.strip_prefix("}}") {
            literal.push('}');
            rest = after;
        } else {
            let closed = from_brace.strip_prefix('{').and_then(|inside| inside.split_once('}'));
            let (name, after) = closed.ok_or_else(|| {
                format!("`{text}` has a brace without its other half; a brace that is meant is written twice")
            })?;
            if !literal.is_empty() {
                pieces.push(Piece::Literal(std::mem::take(&mut literal)));
            }
            pieces.push(placeholder(name, allowed)?);
            rest = after;
        }
    }

    literal.push_str(rest);
    if !literal.is_empty() {
        pieces.push(Piece::Literal(literal));
    }
    Ok(pieces)
}

fn placeholder(name: &str, allowed: &Placeholders<'_>) -> Result<Piece, String> {
    match name {
        "model" if allowed.model => Ok(Piece::Model { keeps_slashes: false }),
        "+model" if allowed.model => Ok(Piece::Model { keeps_slashes: true }),
        "instance" if allowed.instance => Ok(Piece::Instance),
        name if allowed.parameters.contains(&name) => Ok(Piece::Parameter(name.to_owned())),
        name => Err(format!("the placeholder `{{{name}}}` is unknown; {}", allowed.expected())),
    }
}

/// A JSON body with placeholders in its texts.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum JsonTemplate {
    Constant(Value),
    Text(TextTemplate),
    Array(Vec<JsonTemplate>),
    Object(Vec<(String, JsonTemplate)>),
}

impl JsonTemplate {
    pub(super) fn compile(value: &Value, allowed: &Placeholders<'_>, field: &FieldScope<'_>) -> Option<Self> {
        match value {
            Value::String(text) => TextTemplate::compile(text, allowed, field).map(Self::Text),
            Value::Array(items) => {
                let compile = |(i, item)| Self::compile(item, allowed, &field.item(i));
                items.iter().enumerate().map(compile).collect::<Option<_>>().map(Self::Array)
            }
            Value::Object(members) => {
                let compile = |(name, value): (&String, &Value)| {
                    Self::compile(value, allowed, &field.member(name)).map(|value| (name.clone(), value))
                };
                members.iter().map(compile).collect::<Option<_>>().map(Self::Object)
            }
            constant => Some(Self::Constant(constant.clone())),
        }
    }

    pub(super) fn has_instance(&self) -> bool {
        match self {
            Self::Constant(_) => false,
            Self::Text(text) => text.has_instance(),
            Self::Array(items) => items.iter().any(Self::has_instance),
            Self::Object(members) => members.iter().any(|(_, value)| value.has_instance()),
        }
    }

    pub(super) fn render(&self, values: &TemplateValues<'_>) -> Value {
        match self {
            Self::Constant(value) => value.clone(),
            Self::Text(text) => match text.whole_parameter() {
                Some(name) => values.parameters.get(name).cloned().unwrap_or(Value::Null),
                None => Value::String(text.render(values)),
            },
            Self::Array(items) => Value::Array(items.iter().map(|item| item.render(values)).collect()),
            Self::Object(members) => Value::Object(Self::render_members(members, values)),
        }
    }

    /// A member that is a parameter without a value is left out.
    fn render_members(members: &[(String, JsonTemplate)], values: &TemplateValues<'_>) -> Map<String, Value> {
        let mut rendered = Map::new();
        for (name, template) in members {
            let value = template.render(values);
            if !value.is_null() || matches!(template, Self::Constant(_)) {
                rendered.insert(name.clone(), value);
            }
        }
        rendered
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use serde_json::json;

    use super::*;

    const ALL: Placeholders<'static> = Placeholders { model: true, instance: true, parameters: &["launch"] };

    fn compile(text: &str) -> Result<TextTemplate, String> {
        let problems = RefCell::default();
        let template = TextTemplate::compile(text, &ALL, &FieldScope::root(&problems));
        let message = problems.borrow().first().map(|problem| problem.message.clone());
        template.ok_or_else(|| message.unwrap())
    }

    #[test]
    fn names_are_encoded_in_paths_and_plain_in_bodies() {
        let parameters = Map::new();
        let values = TemplateValues { model: "a b/ü:1?&", instance: "i/1", parameters: &parameters };

        let template = compile("/x/{model}/{+model}?i={instance}&brace={{}}").unwrap();
        assert_eq!(
            template.render_path(&values),
            "/x/a%20b%2F%C3%BC%3A1%3F%26/a%20b/%C3%BC%3A1%3F%26?i=i%2F1&brace={}"
        );
        assert_eq!(compile("<{model}>").unwrap().render(&values), "<a b/ü:1?&>");
    }

    #[test]
    fn an_unknown_placeholder_is_named_with_those_that_are_possible() {
        let problem = compile("{modl}").unwrap_err();
        assert_eq!(problem, "the placeholder `{modl}` is unknown; possible are {model}, {instance}, {launch}");
        assert!(compile("{model").unwrap_err().contains("without its other half"));
        assert!(compile("model}").unwrap_err().contains("without its other half"));
    }

    #[test]
    fn a_text_that_is_a_parameter_becomes_its_value_and_is_left_out_without_one() {
        let problems = RefCell::default();
        let body = json!({"a": "{launch}", "b": ["{launch}"], "c": "x{launch}", "n": null, "m": "{model}"});
        let body = JsonTemplate::compile(&body, &ALL, &FieldScope::root(&problems)).unwrap();

        let given = json!({"launch": {"k": 1}});
        let values = TemplateValues { model: "m", instance: "", parameters: given.as_object().unwrap() };
        let rendered = json!({"a": {"k": 1}, "b": [{"k": 1}], "c": "x{\"k\":1}", "n": null, "m": "m"});
        assert_eq!(body.render(&values), rendered);

        let none = Map::new();
        let values = TemplateValues { parameters: &none, ..values };
        assert_eq!(body.render(&values), json!({"b": [null], "c": "x", "n": null, "m": "m"}));
    }
}
