//! Which problems of servers are reported as Events: each once while it lasts, by the controller that leads.

use std::collections::{BTreeMap, BTreeSet};

use hush_core::{ModelKey, ObservedModel, Plan, ServerName, World};

use super::LoopEvent;
use crate::observe::{AppProblem, AppProblemKind, DisagreeingReport, ServerAppProblem};

/// The problems that this controller has reported and that last.
#[derive(Debug, Default)]
pub(super) struct ProblemReports {
    // The text of a problem may count something, so that it differs at each step.
    apps: BTreeSet<(ServerName, AppProblemKind)>,
    disagreeing: BTreeSet<ServerName>,
}

impl ProblemReports {
    /// The Events of the problems of this step that were not reported yet. `may_report`: no other controller reports them.
    /// A problem that began while none could is due at the first step in which this one may.
    pub(super) fn due(
        &mut self,
        may_report: bool,
        apps: &[ServerAppProblem],
        disagreeing: &[DisagreeingReport],
    ) -> Vec<LoopEvent> {
        if !may_report {
            *self = Self::default();
            return Vec::new();
        }

        let key = |problem: &ServerAppProblem| (problem.server.clone(), problem.problem.kind);
        let new_apps = apps.iter().filter(|problem| !self.apps.contains(&key(problem)));
        let new_reports = disagreeing.iter().filter(|report| !self.disagreeing.contains(&report.server));
        let due = new_reports
            .map(|report| LoopEvent::ReportsDisagree(report.clone()))
            .chain(new_apps.map(|problem| LoopEvent::AppProblem(problem.clone())))
            .collect();

        self.apps = apps.iter().map(key).collect();
        self.disagreeing = disagreeing.iter().map(|report| report.server.clone()).collect();
        due
    }
}

/// The servers that cannot end the process of their app although the rules of one of its models ask for it, each once.
pub(super) fn kept_processes(plan: &Plan, world: &World) -> Vec<ServerAppProblem> {
    let kept = plan.models.iter().filter(|model| model.process_stays);
    let mut keys = kept.map(|model| ModelKey { server: model.server.clone(), model: model.model.clone() }).peekable();
    if keys.peek().is_none() {
        return Vec::new();
    }

    let models: BTreeMap<&ModelKey, &ObservedModel> = world.models.iter().map(|model| (&model.key, model)).collect();
    let apps: BTreeMap<ServerName, String> =
        keys.filter_map(|key| Some((key.server.clone(), models.get(&key)?.app.clone()))).collect();
    let problem =
        |(server, app)| ServerAppProblem { server, app, problem: AppProblem::new(AppProblemKind::ProcessStays) };
    apps.into_iter().map(problem).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(server: &str, kind: AppProblemKind) -> ServerAppProblem {
        ServerAppProblem { server: server.into(), app: "ollama".to_owned(), problem: AppProblem::new(kind) }
    }

    fn servers(events: &[LoopEvent]) -> Vec<&str> {
        let server = |event| match event {
            &LoopEvent::AppProblem(ref problem) => Some(problem.server.as_str()),
            &LoopEvent::ReportsDisagree(ref report) => Some(report.server.as_str()),
            _ => None,
        };
        events.iter().filter_map(server).collect()
    }

    #[test]
    fn a_problem_is_reported_once_while_it_lasts() {
        let mut reports = ProblemReports::default();
        let down = [problem("a/x", AppProblemKind::Unreachable)];

        assert_eq!(servers(&reports.due(true, &down, &[])), ["a/x"]);
        assert_eq!(servers(&reports.due(true, &down, &[])), [""; 0]);
        let both = [down[0].clone(), problem("a/x", AppProblemKind::PortExposed)];
        assert_eq!(reports.due(true, &both, &[]).len(), 1, "another problem of the same server");

        reports.due(true, &[], &[]);
        assert_eq!(servers(&reports.due(true, &down, &[])), ["a/x"], "it began anew");
    }

    #[test]
    fn what_began_while_no_controller_led_is_reported_by_the_one_that_leads_then() {
        let mut reports = ProblemReports::default();
        let down = [problem("a/x", AppProblemKind::Unreachable)];
        let disagreeing = [DisagreeingReport { server: "a/y".into(), note: "it differs".to_owned() }];

        assert!(reports.due(false, &down, &disagreeing).is_empty());
        assert_eq!(servers(&reports.due(true, &down, &disagreeing)), ["a/y", "a/x"]);
        assert!(reports.due(true, &down, &disagreeing).is_empty());

        // A controller that stepped back and leads again does not know what was reported meanwhile.
        assert!(reports.due(false, &down, &disagreeing).is_empty());
        assert_eq!(servers(&reports.due(true, &down, &disagreeing)), ["a/y", "a/x"]);
    }
}
