//! Which models are in the process of the app, and whether it ends when one of them leaves. Pure: nothing is ended here.

use std::collections::BTreeSet;

use hush_contract::admin::{ProcessOutcome, UnloadMethod};

/// How a model leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StopPlan {
    /// The process ends, and the model with it. The app is not asked to unload the model before: that would only take time,
    /// and the memory of the host.
    EndProcess,
    /// The app unloads the model, and the process goes on.
    UnloadInApp(ProcessOutcome),
}

/// The models that are in the process of the app, or on their way into it.
#[derive(Debug, Default)]
pub(super) struct AppUsers {
    models: BTreeSet<String>,
    /// Models whose unload asked for the end of the process, while others were in it.
    wishes: BTreeSet<String>,
}

impl AppUsers {
    /// The model is about to be loaded, or was found loaded. What was wished when it left is over.
    pub(super) fn enter(&mut self, model: &str) {
        self.models.insert(model.to_owned());
        self.wishes.remove(model);
    }

    /// How the model leaves. `can_end`: the sidecar has started the app. `has_others`: the app itself shows other models
    /// in memory.
    pub(super) fn plan_stop(&self, model: &str, method: UnloadMethod, can_end: bool, has_others: bool) -> StopPlan {
        let is_alone = !has_others && self.models.iter().all(|other| other == model);
        let is_wished = method == UnloadMethod::Process || !self.wishes.is_empty();

        match (is_wished, can_end, is_alone) {
            (true, true, true) => StopPlan::EndProcess,
            (true, true, false) if method == UnloadMethod::Process => {
                StopPlan::UnloadInApp(ProcessOutcome::KeptForOthers)
            }
            (true, false, _) => StopPlan::UnloadInApp(ProcessOutcome::CannotEnd),
            (true, true, false) | (false, _, _) => StopPlan::UnloadInApp(ProcessOutcome::Kept),
        }
    }

    /// The process is to end with the last of the models that are in it.
    pub(super) fn wish_end(&mut self, model: &str) {
        self.wishes.insert(model.to_owned());
    }

    /// The model is out of memory, in whatever way.
    pub(super) fn leave(&mut self, model: &str) {
        self.models.remove(model);
    }

    /// Whether no model is in the process.
    pub(super) fn is_unused(&self) -> bool {
        self.models.is_empty()
    }

    /// Whether the process is to end now.
    pub(super) fn is_due(&self) -> bool {
        self.is_unused() && !self.wishes.is_empty()
    }

    /// Whether a model other than this one is in the process.
    pub(super) fn has_others(&self, model: &str) -> bool {
        self.models.iter().any(|other| other != model)
    }

    /// The process has ended.
    pub(super) fn ended(&mut self) {
        self.wishes.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROCESS: UnloadMethod = UnloadMethod::Process;
    const APP: UnloadMethod = UnloadMethod::App;

    fn users(models: &[&str]) -> AppUsers {
        let mut users = AppUsers::default();
        models.iter().for_each(|model| users.enter(model));
        users
    }

    const fn in_app(outcome: ProcessOutcome) -> StopPlan {
        StopPlan::UnloadInApp(outcome)
    }

    #[test]
    fn the_only_model_takes_the_process_along_if_it_is_asked_to() {
        let users = users(&["a"]);

        assert_eq!(users.plan_stop("a", PROCESS, true, false), StopPlan::EndProcess);
        assert_eq!(users.plan_stop("a", APP, true, false), in_app(ProcessOutcome::Kept));
        assert_eq!(users.plan_stop("a", PROCESS, false, false), in_app(ProcessOutcome::CannotEnd));
        assert_eq!(users.plan_stop("a", APP, false, false), in_app(ProcessOutcome::Kept));
        assert_eq!(
            users.plan_stop("a", PROCESS, true, true),
            in_app(ProcessOutcome::KeptForOthers),
            "the app has one more"
        );
    }

    #[test]
    fn among_others_the_process_ends_with_the_last_model_however_that_leaves() {
        let mut users = users(&["a", "b", "c"]);
        assert_eq!(users.plan_stop("a", PROCESS, true, false), in_app(ProcessOutcome::KeptForOthers));
        users.wish_end("a");
        users.leave("a");
        assert!(!users.is_due());

        assert_eq!(users.plan_stop("b", APP, true, false), in_app(ProcessOutcome::Kept), "c is there");
        users.leave("b");
        assert_eq!(users.plan_stop("c", APP, true, false), StopPlan::EndProcess, "the wish of a");

        // Lost instead of unloaded.
        users.leave("c");
        assert!(users.is_due());
        users.ended();
        assert!(!users.is_due() && users.is_unused());
    }

    #[test]
    fn a_model_that_is_loaded_again_takes_its_wish_back() {
        let mut users = users(&["a", "b"]);
        users.wish_end("a");
        users.leave("a");
        users.enter("a");

        users.leave("b");
        assert_eq!(users.plan_stop("a", APP, true, false), in_app(ProcessOutcome::Kept));
        users.leave("a");
        assert!(users.is_unused() && !users.is_due());
    }

    #[test]
    fn a_model_on_its_way_into_memory_keeps_the_process() {
        let mut users = users(&["a"]);
        assert!(!users.has_others("a"));

        users.enter("b");
        assert!(users.has_others("a"));
        assert_eq!(users.plan_stop("a", PROCESS, true, false), in_app(ProcessOutcome::KeptForOthers));
    }
}
