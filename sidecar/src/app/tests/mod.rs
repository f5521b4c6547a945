//! What the known apps say: recorded answers in `sidecar/tests/app-cases`, and bytes and paths that nobody recorded.

mod cases;
mod descriptions;
mod hostile;
mod parameters;

use bytes::Bytes;
use http::StatusCode;

use super::AppAnswer;

/// Every known app, compiled. A description that does not compile ends the test with its problems.
fn known_apps() -> Vec<super::App> {
    super::known::DESCRIPTIONS
        .iter()
        .map(|(name, text)| super::App::from_yaml(text).unwrap_or_else(|problems| panic!("{name}.yaml: {problems}")))
        .collect()
}

fn app(name: &str) -> super::App {
    super::App::find(name).unwrap_or_else(|| panic!("{name} is not known"))
}

fn answer(status: u16, body: impl Into<Bytes>) -> AppAnswer {
    AppAnswer { status: StatusCode::from_u16(status).unwrap(), body: body.into() }
}
