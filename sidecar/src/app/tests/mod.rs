//! What the known apps say: recorded answers in `sidecar/tests/app-cases`, and bytes and paths that were never recorded.

mod cases;
mod descriptions;
mod hostile;
mod parameters;

use bytes::Bytes;
use http::StatusCode;

use super::AppAnswer;

fn app(name: &str) -> super::App {
    super::App::find(name).unwrap_or_else(|| panic!("{name} is not known"))
}

fn answer(status: u16, body: impl Into<Bytes>) -> AppAnswer {
    AppAnswer { status: StatusCode::from_u16(status).unwrap(), body: body.into() }
}
