//! `/`: a page that transcribes recordings.

use std::fmt::Write;
use std::sync::LazyLock;

use axum::extract::Path;
use axum::http::{HeaderMap, header};
use axum::response::Response;
use hush_whisper::language::LANGUAGES;

use super::bundle::{PageBundle, PageContent, PageFile, escaped};

pub const FILES: &str = "/ui/{version}/{file}";

/// All content comes from this server; the recording is played from memory.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; media-src blob:; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The placeholder in the page for the options of the languages.
const LANGUAGES_MARK: &str = "{languages}";

static BUNDLE: LazyLock<PageBundle> = LazyLock::new(|| {
    macro_rules! sources {
        ($($name:literal: $content_type:literal),* $(,)?) => {
            [$(PageFile {
                name: $name,
                content_type: $content_type,
                content: PageContent::Plain(include_bytes!(concat!("page/", $name))),
            }),*]
        };
    }
    let sources = sources! {
        "app.css": "text/css; charset=utf-8",
        "app.js": "text/javascript; charset=utf-8",
        "api.js": "text/javascript; charset=utf-8",
        "events.js": "text/javascript; charset=utf-8",
        "formats.js": "text/javascript; charset=utf-8",
        "models.js": "text/javascript; charset=utf-8",
        "recorder.js": "text/javascript; charset=utf-8",
        "result.js": "text/javascript; charset=utf-8",
        "icon.svg": "image/svg+xml",
    };
    let html = include_str!("page/index.html").replace(LANGUAGES_MARK, &languages());
    PageBundle::new(&html, &sources, POLICY)
});

pub fn index(headers: &HeaderMap) -> Response {
    BUNDLE.page(headers)
}

pub async fn file(Path((version, file)): Path<(String, String)>, headers: HeaderMap) -> Response {
    BUNDLE.file(&headers, &version, &file)
}

/// Whether the client is a browser. Programs accept any type, and get what whisper-asr-webservice answers.
pub fn wants_page(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    accepted.flat_map(|value| value.split(',')).any(|range| {
        let name = range.split(';').next().unwrap_or_default();
        name.trim().eq_ignore_ascii_case("text/html")
    })
}

/// The options of the languages, sorted by name.
fn languages() -> String {
    let mut languages = LANGUAGES;

    languages.sort_unstable_by_key(|(_, name)| *name);
    let mut options = String::new();
    for (code, name) in languages {
        let title: String = name.split_inclusive(' ').flat_map(capitalised).collect();
        // Writing to a String cannot fail.
        let _ = write!(options, "<option value=\"{code}\">{}</option>", escaped(&title));
    }
    options
}

fn capitalised(word: &str) -> impl Iterator<Item = char> {
    let mut letters = word.chars();

    let first = letters.next().into_iter().flat_map(char::to_uppercase);
    first.chain(letters)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn browsers_want_the_page_and_programs_do_not() {
        let wants = |accept: &'static str| {
            wants_page(&HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static(accept))]))
        };
        assert!(wants("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"));
        assert!(wants("application/json, TEXT/HTML;q=0.1"));
        assert!(!wants("*/*") && !wants("application/json") && !wants("text/plain"));
        assert!(!wants_page(&HeaderMap::new()));
    }

    #[test]
    fn every_language_is_offered_by_its_name() {
        let options = languages();
        assert!(options.starts_with("<option value=\"af\">Afrikaans</option>"), "{options}");
        assert!(options.contains("<option value=\"ht\">Haitian Creole</option>"), "{options}");
        assert_eq!(options.matches("<option").count(), LANGUAGES.len());
    }
}
