//! Reads what an answer says, whatever its form: nothing here fails on any bytes.

use std::borrow::Cow;
use std::cell::OnceCell;

use serde_json::Value;

use super::AppAnswer;
use super::description::AnswerFormat;
use super::json_query::scalar_text;

/// A longer text of an answer is cut in messages.
const EXCERPT_CHARS: usize = 300;

/// What apps say when memory was too short, in lower case. Sources: PyTorch's `OutOfMemoryError`, CUDA's error names, ggml's
/// `ggml_backend_cuda_buffer_type_alloc_buffer`, Ollama's "model requires more system memory", vLLM's check of the free
/// memory, TensorRT's builder.
const MEMORY_TEXTS: &[&str] = &[
    "out of memory",
    "outofmemory",
    "out_of_memory",
    "cudamalloc failed",
    "failed to allocate",
    "unable to allocate",
    "cannot allocate memory",
    "more system memory",
    "insufficient memory",
    "insufficient vram",
    "insufficient gpu memory",
    "not enough memory",
    "not enough gpu memory",
    "no available memory for the cache blocks",
    "less than desired gpu memory utilization",
];

/// An answer that is parsed at most once.
pub(super) struct AnswerReader<'a> {
    answer: &'a AppAnswer,
    format: AnswerFormat,
    document: OnceCell<Option<Value>>,
}

impl<'a> AnswerReader<'a> {
    pub(super) fn new(answer: &'a AppAnswer, format: AnswerFormat) -> Self {
        Self { answer, format, document: OnceCell::new() }
    }

    pub(super) fn status(&self) -> u16 {
        self.answer.status.as_u16()
    }

    pub(super) fn is_success(&self) -> bool {
        self.answer.status.is_success()
    }

    pub(super) fn text(&self) -> Cow<'a, str> {
        String::from_utf8_lossy(&self.answer.body)
    }

    /// `None`: the answer is not in the form that is expected.
    pub(super) fn document(&self) -> Option<&Value> {
        let parse = || match self.format {
            AnswerFormat::Json => serde_json::from_slice(&self.answer.body).ok(),
            AnswerFormat::Events => self.array_of(|line| line.strip_prefix("data:")),
            AnswerFormat::Lines => self.array_of(|line| Some(line)),
        };
        self.document.get_or_init(parse).as_ref()
    }

    /// The JSON documents of the lines that `document` finds one in; `None`: there are none.
    fn array_of(&self, document: impl Fn(&str) -> Option<&str>) -> Option<Value> {
        let text = self.text();
        let documents: Vec<Value> =
            text.lines().filter_map(&document).filter_map(|text| serde_json::from_str(text.trim()).ok()).collect();
        (!documents.is_empty()).then_some(Value::Array(documents))
    }

    /// `404: model not found`: the status, and what the answer says in its words.
    pub(super) fn summary(&self) -> String {
        let status = self.status();
        match self.message() {
            message if message.is_empty() => status.to_string(),
            message => format!("{status}: {message}"),
        }
    }

    /// The message of an error document, or the beginning of the text.
    pub(super) fn message(&self) -> String {
        let last = match self.document() {
            Some(Value::Array(documents)) => documents.last(),
            document => document,
        };
        let message = last.and_then(error_message);
        excerpt(&message.unwrap_or_else(|| self.text().into_owned()))
    }

    pub(super) fn contains(&self, lower_case_text: &str) -> bool {
        self.text().to_lowercase().contains(lower_case_text)
    }
}

/// Whether a message says that memory was too short.
pub(super) fn tells_lack_of_memory(message: &str) -> bool {
    let message = message.to_lowercase();
    MEMORY_TEXTS.iter().any(|text| message.contains(text))
}

/// The message of `{"error": "..."}`, `{"error": {"message": "..."}}`, `{"detail": "..."}`, `{"detail": [{"msg": "..."}]}`
/// and `{"message": "..."}`.
fn error_message(document: &Value) -> Option<String> {
    ["error", "detail", "message", "errors"].iter().find_map(|key| match document.get(key)? {
        Value::Object(inner) => inner.get("message").or_else(|| inner.get("error")).and_then(scalar_text),
        Value::Array(items) => items.first().and_then(|item| scalar_text(item.get("msg").unwrap_or(item))),
        Value::Bool(_) => None,
        other => scalar_text(other).filter(|text| !text.is_empty()),
    })
}

/// The beginning of a text in one line, without control characters.
pub(super) fn excerpt(text: &str) -> String {
    let words = text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty());
    let mut line = String::new();
    let mut chars = 0;

    for word in words {
        if !line.is_empty() {
            line.push(' ');
            chars += 1;
        }
        for c in word.chars() {
            if chars == EXCERPT_CHARS {
                line.push('…');
                return line;
            }
            line.push(c);
            chars += 1;
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::StatusCode;

    use super::*;

    fn summary(status: u16, body: &str) -> String {
        let answer =
            AppAnswer { status: StatusCode::from_u16(status).unwrap(), body: Bytes::copy_from_slice(body.as_bytes()) };
        AnswerReader::new(&answer, AnswerFormat::Json).summary()
    }

    #[test]
    fn the_message_of_an_error_is_found_in_the_forms_that_apps_use() {
        assert_eq!(summary(404, r#"{"error":"model 'x' not found"}"#), "404: model 'x' not found");
        assert_eq!(summary(500, r#"{"error":{"code":500,"message":"still busy","type":""}}"#), "500: still busy");
        assert_eq!(summary(422, r#"{"detail":[{"loc":["body"],"msg":"field required"}]}"#), "422: field required");
        assert_eq!(summary(409, r#"{"detail":"in use"}"#), "409: in use");
        assert_eq!(summary(409, "  in\n\tuse \u{1b}[0m"), "409: in use [0m");
        assert_eq!(summary(502, ""), "502");
        assert_eq!(summary(500, r#"{"error":true}"#), r#"500: {"error":true}"#);
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        let long = excerpt(&"ü".repeat(1000));
        assert_eq!((long.chars().count(), long.chars().last()), (EXCERPT_CHARS + 1, Some('…')));
    }

    #[test]
    fn events_and_lines_are_arrays_of_their_documents() {
        let body = Bytes::from_static(b"event: x\ndata: {\"a\":1}\n\ndata:{\"a\":2}\ndata: [DONE]\n");
        let answer = AppAnswer { status: StatusCode::OK, body };
        let events = AnswerReader::new(&answer, AnswerFormat::Events);
        assert_eq!(events.document().unwrap().to_string(), r#"[{"a":1},{"a":2}]"#);
        assert!(AnswerReader::new(&answer, AnswerFormat::Lines).document().is_none());
    }
}
