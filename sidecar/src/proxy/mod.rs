//! The public listener of the sidecar: attributes requests to models, has them wait for their model, and streams them to
//! the app and back.
