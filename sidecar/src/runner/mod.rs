//! The runners that are plugged into the life of a model, and the watch over the app.
