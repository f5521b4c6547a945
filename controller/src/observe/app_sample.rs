//! What a sidecar reports of the app that it governs, parsed from its metrics.

use hush_contract::{AppGovernance, AppMode, metrics as names};
use hush_core::ProcessEnding;
use hush_log::printable;

use super::exposition::Series;

/// The longest name or version of an app that is shown.
const NAME_MAX_CHARS: usize = 60;
/// The longest description of a problem that is shown.
const TEXT_MAX_CHARS: usize = 300;

/// The app of a server that is a sidecar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppSample {
    /// Such as `ollama`.
    pub name: String,
    /// Empty: the app has not said it.
    pub version: String,
    /// What an unload can do about the process of the app.
    pub process_ending: ProcessEnding,
    /// What keeps the sidecar from governing the app, or lets clients pass by the sidecar.
    pub problems: Vec<AppProblem>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AppProblem {
    pub kind: AppProblemKind,
    /// For users: which flag must be set, or what does not answer.
    pub text: String,
}

impl AppProblem {
    /// A problem of which nothing more is known.
    pub fn new(kind: AppProblemKind) -> Self {
        Self { kind, text: kind.default_text().to_owned() }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AppProblemKind {
    /// The app does not answer.
    Unreachable,
    /// It is another app, or a flag is missing.
    Unsuitable,
    /// Clients can reach the app without the sidecar.
    PortExposed,
    /// Processes of the app were killed and are still there.
    ProcessesSurvive,
    /// A policy asks for the end of the app's process at an unload, and the sidecar cannot end it.
    ProcessStays,
}

impl AppProblemKind {
    /// The reason of the Event.
    pub const fn event_reason(self) -> &'static str {
        match self {
            Self::Unreachable => "AppUnreachable",
            Self::Unsuitable => "AppUnsuitable",
            Self::PortExposed => "AppPortExposed",
            Self::ProcessesSurvive => "AppProcessSurvives",
            Self::ProcessStays => "ProcessUnloadUnavailable",
        }
    }

    /// What the problem is, where the sidecar says nothing more of it.
    pub const fn default_text(self) -> &'static str {
        match self {
            Self::Unreachable => "the app does not answer",
            Self::Unsuitable => "the app has not the flags that governing it needs",
            Self::PortExposed => {
                "the app's own port accepts connections from outside of the pod: clients that use it are cut off by an \
                 unload; have the app listen on 127.0.0.1 alone"
            }
            Self::ProcessesSurvive => {
                "processes of the app were killed and do not end; they may keep device memory, and the log of the sidecar \
                 names them"
            }
            Self::ProcessStays => {
                "`residency.unload: Process` asks for the end of its process, and the sidecar has not started the app, so that \
                 an unload leaves the process with what it holds beside its models; start the app through hush-sidecar"
            }
        }
    }
}

/// The families of an app, before they are joined.
#[derive(Debug, Default)]
pub(super) struct RawApp {
    name: Option<String>,
    version: String,
    ungoverned_reason: Option<String>,
    is_down: bool,
    is_exposed: bool,
    mode: String,
    can_end_process: bool,
    has_survivors: bool,
    problem_text: Option<String>,
}

impl RawApp {
    /// Takes a line if it is of a family of the app; returns whether it is.
    pub fn take(&mut self, line: &Series<'_>) -> bool {
        let shown = |label| printable(line.label(label).unwrap_or_default(), NAME_MAX_CHARS);

        match line.name {
            names::APP_INFO => {
                self.name = Some(shown(names::LABEL_APP));
                self.version = shown(names::LABEL_VERSION);
                self.mode = shown(names::LABEL_MODE);
            }
            names::APP_UP => self.is_down = line.value == 0.0,
            names::APP_GOVERNED if line.value == 0.0 => self.ungoverned_reason = Some(shown(names::LABEL_REASON)),
            names::APP_GOVERNED => {}
            names::APP_PROBLEM_INFO => {
                self.problem_text =
                    Some(printable(line.label(names::LABEL_PROBLEM).unwrap_or_default(), TEXT_MAX_CHARS));
            }
            names::APP_PORT_EXPOSED => self.is_exposed = line.value == 1.0,
            names::APP_PROCESS_UNLOAD => self.can_end_process = line.value == 1.0,
            names::APP_SURVIVING_PROCESSES => self.has_survivors = line.value > 0.0,
            _ => return false,
        }
        true
    }

    /// `None`: the server reports no app, as `hush-server`.
    pub fn into_sample(self) -> Option<AppSample> {
        let name = self.name.clone()?;
        let version = self.version.clone();

        let process_ending = self.process_ending();

        let exposed = self.is_exposed.then(|| AppProblem::new(AppProblemKind::PortExposed));
        let surviving = self.has_survivors.then(|| AppProblem::new(AppProblemKind::ProcessesSurvive));
        let problems = self.ungoverned().into_iter().chain(exposed).chain(surviving).collect();
        Some(AppSample { name, version, process_ending, problems })
    }

    /// A sidecar of an earlier release does not say whether it can end the process, and cannot.
    fn process_ending(&self) -> ProcessEnding {
        if self.mode == AppMode::Process.as_str() {
            ProcessEnding::Always
        } else if self.can_end_process {
            ProcessEnding::OnRequest
        } else {
            ProcessEnding::Unavailable
        }
    }

    /// An app that has not identified itself yet is no problem: its models show that they are not loaded.
    fn ungoverned(self) -> Option<AppProblem> {
        let reason = self.ungoverned_reason.as_deref();
        let kind = if reason == Some(AppGovernance::Unsuitable.as_str()) {
            AppProblemKind::Unsuitable
        } else if self.is_down || reason == Some(AppGovernance::Unreachable.as_str()) {
            AppProblemKind::Unreachable
        } else {
            return None;
        };

        let text = self.problem_text.filter(|text| !text.is_empty());
        Some(AppProblem { kind, text: text.unwrap_or_else(|| kind.default_text().to_owned()) })
    }
}

#[cfg(test)]
mod tests {
    use super::super::exposition::series;
    use super::*;

    fn read(text: &str) -> Option<AppSample> {
        let mut raw = RawApp::default();
        for line in series(text) {
            raw.take(&line.unwrap());
        }
        raw.into_sample()
    }

    fn problems(text: &str) -> Vec<(AppProblemKind, String)> {
        let info = "hush_app_info{app=\"ollama\",version=\"0.17.4\",mode=\"api\"} 1\n";
        let app = read(&format!("{info}{text}")).unwrap();
        assert_eq!((app.name.as_str(), app.version.as_str()), ("ollama", "0.17.4"));
        app.problems.into_iter().map(|problem| (problem.kind, problem.text)).collect()
    }

    #[test]
    fn a_server_without_an_app_is_no_sidecar() {
        assert_eq!(read("hush_gpu_up 1\n"), None);
        assert_eq!(read("hush_app_up{app=\"ollama\"} 0\n"), None, "an older sidecar, or a broken answer");
    }

    #[test]
    fn a_governed_app_has_no_problem() {
        let governed = "hush_app_up{app=\"ollama\"} 1\nhush_app_governed{app=\"ollama\",reason=\"governed\"} 1\n\
                        hush_app_port_exposed{app=\"ollama\"} 0\n";
        assert_eq!(problems(governed), []);
        let starting = "hush_app_up{app=\"ollama\"} 1\nhush_app_governed{app=\"ollama\",reason=\"unidentified\"} 0\n";
        assert_eq!(problems(starting), []);
    }

    #[test]
    fn the_missing_flag_is_named() {
        let text = "hush_app_up{app=\"ollama\"} 1\nhush_app_governed{app=\"ollama\",reason=\"unsuitable\"} 0\n\
                    hush_app_problem_info{app=\"ollama\",problem=\"set OLLAMA_KEEP_ALIVE=-1\"} 1\n";
        assert_eq!(problems(text), [(AppProblemKind::Unsuitable, "set OLLAMA_KEEP_ALIVE=-1".to_owned())]);
    }

    #[test]
    fn an_app_that_is_down_and_one_whose_port_is_open() {
        let down = problems("hush_app_up{app=\"ollama\"} 0\n");
        assert_eq!(down, [(AppProblemKind::Unreachable, "the app does not answer".to_owned())]);

        let exposed = problems("hush_app_up{app=\"ollama\"} 1\nhush_app_port_exposed{app=\"ollama\"} 1\n");
        assert_eq!(exposed[0].0, AppProblemKind::PortExposed);
    }

    #[test]
    fn what_an_unload_ends_is_known_of_each_way_to_run_an_app() {
        let ending = |mode: &str, more: &str| {
            read(&format!("hush_app_info{{app=\"vllm\",mode=\"{mode}\"}} 1\n{more}")).unwrap().process_ending
        };

        assert_eq!(ending("process", "hush_app_process_unload{app=\"vllm\"} 1\n"), ProcessEnding::Always);
        assert_eq!(ending("process", ""), ProcessEnding::Always, "an earlier release");
        assert_eq!(ending("api", "hush_app_process_unload{app=\"vllm\"} 1\n"), ProcessEnding::OnRequest);
        assert_eq!(ending("api", "hush_app_process_unload{app=\"vllm\"} 0\n"), ProcessEnding::Unavailable);
        assert_eq!(ending("api", ""), ProcessEnding::Unavailable, "an earlier release would refuse the command");
    }

    #[test]
    fn processes_that_cannot_be_killed_are_a_problem() {
        assert_eq!(problems("hush_app_surviving_processes{app=\"ollama\"} 0\n"), []);
        let surviving = problems("hush_app_surviving_processes{app=\"ollama\"} 2\n");
        assert_eq!(surviving[0].0, AppProblemKind::ProcessesSurvive);
    }

    #[test]
    fn hostile_texts_are_bounded_and_printable() {
        let text = format!(
            "hush_app_info{{app=\"{}\u{1b}[2J\"}} 1\nhush_app_governed{{reason=\"unsuitable\"}} 0\n\
             hush_app_problem_info{{problem=\"\u{202e}{}\"}} 1\n",
            "a".repeat(20),
            "x".repeat(7000)
        );
        let app = read(&text).unwrap();
        let shown = [&app.name, &app.problems[0].text];
        assert!(shown.iter().all(|text| text.chars().all(hush_log::is_printable)), "{shown:?}");
        assert!(app.problems[0].text.chars().count() <= TEXT_MAX_CHARS);
    }
}
