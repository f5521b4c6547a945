//! The models of earlier requests, by the id that a client gave each. A later request may name the id instead of the model,
//! as llama-server's `/v1/stream?conv_id=` does.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};

/// More are forgotten, the oldest first.
const KNOWN_MAX: usize = 4096;
/// A longer id is not remembered.
const ID_MAX_BYTES: usize = 256;

#[derive(Default)]
pub struct EarlierRequests {
    state: Mutex<EarlierState>,
}

#[derive(Default)]
struct EarlierState {
    models: HashMap<String, String>,
    /// The ids in the order in which they came first.
    order: VecDeque<String>,
}

impl EarlierRequests {
    pub fn note(&self, id: &str, model: &str) {
        if id.is_empty() || id.len() > ID_MAX_BYTES {
            return;
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);

        if state.models.insert(id.to_owned(), model.to_owned()).is_none() {
            state.order.push_back(id.to_owned());
        }
        if state.order.len() > KNOWN_MAX
            && let Some(oldest) = state.order.pop_front()
        {
            state.models.remove(&oldest);
        }
    }

    pub fn model(&self, id: &str) -> Option<String> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).models.get(id).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_model_of_an_id_counts_and_old_ids_are_forgotten() {
        let earlier = EarlierRequests::default();
        earlier.note("a", "tiny");
        earlier.note("a", "big");
        assert_eq!(earlier.model("a").as_deref(), Some("big"));

        for number in 0..KNOWN_MAX {
            earlier.note(&number.to_string(), "tiny");
        }
        assert_eq!((earlier.model("a"), earlier.model("0").as_deref()), (None, Some("tiny")));

        let long = "x".repeat(ID_MAX_BYTES + 1);
        earlier.note(&long, "tiny");
        assert_eq!(earlier.model(&long), None);
    }
}
