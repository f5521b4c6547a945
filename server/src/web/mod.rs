//! What browsers see: the page at `/` and the reference at `/docs`. Every file of both is part of the program, and
//! nothing comes from anywhere else.

mod bundle;
mod docs;
mod page;

use axum::Router;
use axum::routing::get;

pub use page::{index, wants_page};

/// The reference and the files of both pages. `/` itself belongs to the API, which knows whether there is a page.
pub fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    Router::new()
        .route("/docs", get(docs::index))
        .route(docs::FILES, get(docs::file))
        .route(page::FILES, get(page::file))
}
