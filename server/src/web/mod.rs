//! The pages for browsers: the page at `/` and the reference at `/docs`. All of their files are part of the program.

mod bundle;
mod docs;
mod page;

use axum::Router;
use axum::routing::get;

pub use page::{index, wants_page};

/// The routes of the reference and of the files of both pages. The API has the route `/`, because it knows whether `/` is a page.
pub fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    Router::new()
        .route("/docs", get(docs::index))
        .route(docs::FILES, get(docs::file))
        .route(page::FILES, get(page::file))
}
