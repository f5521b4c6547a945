//! Which route a request has. What is not known is denied by default: it counts as work, and reaches the app only while
//! the model is loaded.

use http::Method;

use super::description::{ModelNaming, ModelSourceDescription, RouteClassName, RouteDescription};
use super::names::CanonicalName;
use super::path::{self, Segments};
use super::problem::FieldScope;
use super::request::compile_method;
use super::{DisguisedCommand, ModelNameSource, RouteClass, RouteMatch};

/// The template of requests whose route is unknown.
pub const UNKNOWN_ROUTE: &str = "other";

/// The routes of an app.
#[derive(Clone, Debug, Default)]
pub(super) struct RouteTable {
    /// Those that are closed come first.
    routes: Vec<Route>,
    /// Cut out of the body of all work, also of unknown routes.
    removed_members: Vec<String>,
    removed_parameters: Vec<String>,
}

#[derive(Clone, Debug)]
struct Route {
    pattern: Pattern,
    /// Empty: every method.
    methods: Vec<Method>,
    class: RouteClass,
    model: ModelSourceDescription,
    removed_members: Vec<String>,
    removed_parameters: Vec<String>,
    ends_when_app_is_idle: bool,
    waits_forever: bool,
    command: Option<DisguisedCommand>,
}

/// A pattern of paths.
#[derive(Clone, Debug)]
struct Pattern {
    text: String,
    /// Any segments may stand before these.
    has_head: bool,
    segments: Vec<PatternSegment>,
    /// Any segments may follow.
    has_rest: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum PatternSegment {
    /// In lower case.
    Literal(String),
    Any,
    Model,
}

/// The parts of a request that decide its route.
#[derive(Clone, Copy)]
pub(super) struct RouteQuestion<'a> {
    pub(super) method: &'a Method,
    pub(super) is_upgrade: bool,
}

impl RouteTable {
    pub(super) fn compile(
        sources: &[RouteDescription],
        naming: ModelNaming,
        (removed_members, removed_parameters): (&[String], &[String]),
        field: &FieldScope<'_>,
    ) -> Option<Self> {
        let mut routes = Vec::new();
        for (i, source) in sources.iter().enumerate() {
            routes.extend(compile_group(source, naming, &field.item(i))?);
        }
        report_shadowed(&routes, field);

        // A stable sort: the others keep their order.
        routes.sort_by_key(|route| route.class != RouteClass::Closed);
        Some(Self {
            routes,
            removed_members: removed_members.to_vec(),
            removed_parameters: removed_parameters.to_vec(),
        })
    }

    /// The header by which requests are referred to later.
    pub(super) fn earlier_header(&self) -> Option<&str> {
        self.routes.iter().find_map(|route| match &route.model {
            ModelSourceDescription::Earlier(earlier) => Some(earlier.header.as_str()),
            _ => None,
        })
    }

    pub(super) fn find(
        &self,
        question: RouteQuestion<'_>,
        path: &str,
        query: Option<&str>,
        names: &CanonicalName,
    ) -> RouteMatch {
        let readings = path::readings(path);
        let mut matches: Vec<RouteMatch> =
            readings.iter().map(|segments| self.find_reading(question, segments, names)).collect();
        matches.extend(query.and_then(|query| self.find_closed_suffix(question, path, query)));

        // `max_by_key` prefers the last of equals; the usual reading is the first. A known route wins over an unknown one
        // of the same class, because it also says what is cut out of the request.
        let strictest = matches.iter().rev().max_by_key(|found| (strictness(found.class), is_known(found))).cloned();
        let mut found = strictest.unwrap_or_else(|| self.unknown(question));
        if is_ambiguous(&matches) {
            found.class = RouteClass::Closed;
        }
        found
    }

    fn find_reading(&self, question: RouteQuestion<'_>, segments: &Segments, names: &CanonicalName) -> RouteMatch {
        let found = self.routes.iter().filter(|route| route.takes(question));
        let found = found.filter_map(|route| Some((route, route.pattern.read(segments)?))).next();
        let Some((route, model_segment)) = found else { return self.unknown(question) };

        let model = match (&route.model, model_segment) {
            (_, Some(name)) if route.class != RouteClass::Closed => ModelNameSource::Path { name: names.apply(&name) },
            (ModelSourceDescription::None, _) | (_, Some(_)) => ModelNameSource::None,
            (ModelSourceDescription::Body(member), None) => ModelNameSource::Body { member: member.clone() },
            (ModelSourceDescription::Query(parameter), None) => ModelNameSource::Query { parameter: parameter.clone() },
            (ModelSourceDescription::Earlier(earlier), None) => {
                ModelNameSource::Earlier { parameter: earlier.query.clone() }
            }
        };
        let is_elsewhere = matches!(&model, ModelNameSource::Path { name } if !names.is_governed(name));
        let class = if is_elsewhere { RouteClass::NotWork } else { route.class_for(question.method) };
        let is_work = class == RouteClass::Work;

        RouteMatch {
            class,
            template: route.pattern.text.clone(),
            model,
            removed_members: if is_work { joined(&self.removed_members, &route.removed_members) } else { Vec::new() },
            removed_parameters: joined(&self.removed_parameters, &route.removed_parameters),
            ends_when_app_is_idle: is_work && route.ends_when_app_is_idle,
            waits_forever: route.waits_forever,
            command: route.command.clone().filter(|_| is_work),
        }
    }

    /// An app that looks only at the end of the request's target takes a query for a path.
    fn find_closed_suffix(&self, question: RouteQuestion<'_>, path: &str, query: &str) -> Option<RouteMatch> {
        let mut routes = self.routes.iter().filter(|route| route.class == RouteClass::Closed && route.pattern.has_head);
        let readings = path::readings(&format!("{path}?{query}"));
        let route = routes.find(|route| {
            route.takes(question) && readings.iter().any(|segments| route.pattern.read(segments).is_some())
        })?;
        Some(RouteMatch { class: RouteClass::Closed, template: route.pattern.text.clone(), ..self.unknown(question) })
    }

    fn unknown(&self, question: RouteQuestion<'_>) -> RouteMatch {
        let is_reading = [Method::GET, Method::HEAD, Method::OPTIONS].contains(question.method);
        let class = match (question.is_upgrade, is_reading) {
            (true, _) => RouteClass::WorkSocket,
            (false, true) => RouteClass::NotWorkLoadedOnly,
            (false, false) => RouteClass::Work,
        };
        let is_work = class == RouteClass::Work;

        RouteMatch {
            class,
            template: UNKNOWN_ROUTE.to_owned(),
            model: ModelNameSource::None,
            removed_members: if is_work { self.removed_members.clone() } else { Vec::new() },
            removed_parameters: self.removed_parameters.clone(),
            ends_when_app_is_idle: false,
            waits_forever: false,
            command: None,
        }
    }
}

impl Route {
    fn takes(&self, question: RouteQuestion<'_>) -> bool {
        match self.class {
            RouteClass::Closed => self.has_method_like(question.method),
            RouteClass::DisplaySocket | RouteClass::WorkSocket => question.is_upgrade,
            // OPTIONS asks about the route, whatever its methods are.
            _ if *question.method == Method::OPTIONS => !question.is_upgrade,
            _ => !question.is_upgrade && self.has_method(question.method),
        }
    }

    fn has_method(&self, method: &Method) -> bool {
        let is_head_of_get = *method == Method::HEAD && self.methods.contains(&Method::GET);
        self.methods.is_empty() || is_head_of_get || self.methods.contains(method)
    }

    /// As [`Self::has_method`], also for `post`: servers differ in whether methods are told apart by case.
    fn has_method_like(&self, method: &Method) -> bool {
        let is_same = |known: &Method| known.as_str().eq_ignore_ascii_case(method.as_str());
        self.has_method(method) || self.methods.iter().any(is_same)
    }

    /// HEAD and OPTIONS are never work. OPTIONS passes while the model is away, because a browser sends it before the
    /// request that then waits.
    fn class_for(&self, method: &Method) -> RouteClass {
        match (self.class, method) {
            (RouteClass::Work, &Method::HEAD) => RouteClass::NotWorkLoadedOnly,
            (RouteClass::Work | RouteClass::NotWorkLoadedOnly, &Method::OPTIONS) => RouteClass::NotWork,
            (class, _) => class,
        }
    }
}

impl Pattern {
    fn compile(text: &str, naming: ModelNaming, field: &FieldScope<'_>) -> Option<Self> {
        let refuse = |problem: &str| {
            field.report(format!("`{text}` {problem}"));
            None
        };
        let Some(inside) = text.strip_prefix('/') else { return refuse("must begin with `/`") };
        let (inside, has_head) = match inside.strip_prefix("**/") {
            Some(after) => (after, true),
            None => (inside, false),
        };
        let (inside, has_rest) = match (inside, inside.strip_suffix("/**")) {
            ("**", _) => ("", true),
            (_, Some(before)) => (before, true),
            (whole, None) => (whole, false),
        };

        let mut segments = Vec::new();
        for part in inside.split('/').filter(|_| !inside.is_empty()) {
            let name = part.strip_prefix('{').and_then(|part| part.strip_suffix('}'));
            segments.push(match (part, name) {
                ("", _) => return refuse("has an empty segment"),
                (_, Some("model")) => PatternSegment::Model,
                (_, Some(name)) if !name.is_empty() && !name.contains(['{', '}']) => PatternSegment::Any,
                (part, _) if part.contains(['{', '}', '*', '%', '?', '#', ';', '\\']) => {
                    return refuse("may have `{name}` as a whole segment, `/**` at its beginning or end, and no other signs of a pattern");
                }
                (part, _) => PatternSegment::Literal(part.to_lowercase()),
            });
        }

        let models = segments.iter().filter(|segment| **segment == PatternSegment::Model).count();
        if models > 1 || (models > 0 && naming == ModelNaming::One) {
            return refuse("may have `{model}` once, and only with `models: named`");
        }
        if has_head && (models > 0 || segments.is_empty()) {
            return refuse("may begin with `/**` only if a segment without `{model}` follows");
        }
        Some(Self { text: text.to_owned(), has_head, segments, has_rest })
    }

    /// `None`: the path has another form; otherwise the segment that names the model, if the pattern has one.
    fn read(&self, path: &[String]) -> Option<Option<String>> {
        let heads = if self.has_head { path.len() } else { 0 };
        (0..=heads).find_map(|head| self.read_from(path.get(head..)?))
    }

    fn read_from(&self, path: &[String]) -> Option<Option<String>> {
        let has_length =
            if self.has_rest { path.len() >= self.segments.len() } else { path.len() == self.segments.len() };
        let is_match = |(segment, part): (&PatternSegment, &String)| match segment {
            PatternSegment::Literal(literal) => is_same_word(part, literal),
            PatternSegment::Any | PatternSegment::Model => true,
        };
        if !has_length || !self.segments.iter().zip(path).all(is_match) {
            return None;
        }

        let at = self.segments.iter().position(|segment| *segment == PatternSegment::Model);
        Some(at.map(|at| path[at].clone()))
    }

    /// Whether each path of `other` also has this pattern, as far as can be told without trying heads.
    fn covers(&self, other: &Self) -> bool {
        if self.has_head || other.has_head {
            return self.text == other.text;
        }
        let covers = |(one, other): (&PatternSegment, &PatternSegment)| match one {
            PatternSegment::Literal(_) => one == other,
            PatternSegment::Any | PatternSegment::Model => true,
        };
        let has_length = match (self.has_rest, other.has_rest) {
            (true, _) => other.segments.len() >= self.segments.len(),
            (false, true) => false,
            (false, false) => other.segments.len() == self.segments.len(),
        };
        has_length && self.segments.iter().zip(&other.segments).all(covers)
    }

    fn names_model(&self) -> bool {
        self.segments.contains(&PatternSegment::Model)
    }
}

fn compile_group(source: &RouteDescription, naming: ModelNaming, field: &FieldScope<'_>) -> Option<Vec<Route>> {
    let methods_field = field.member("methods");
    let compile = |(i, method): (usize, &String)| compile_method(method, &methods_field.item(i));
    let methods = source.methods.iter().enumerate().map(compile).collect::<Option<Vec<_>>>()?;
    if source.paths.is_empty() {
        field.member("paths").report("at least one path is needed");
    }

    let class = class(source.class);
    let is_socket = matches!(class, RouteClass::DisplaySocket | RouteClass::WorkSocket);
    if is_socket && !methods.is_empty() {
        methods_field.report("a websocket has no methods; its handshake is always GET");
    }
    if class != RouteClass::Work && (source.command.is_some() || source.ends_when_app_is_idle) {
        field.report("`command` and `endsWhenAppIsIdle` belong to the class `work`");
    }
    if naming == ModelNaming::One && !matches!(source.model, None | Some(ModelSourceDescription::None)) {
        field.member("model").report("must be `none` with `models: one`");
    }
    if source.command.as_ref().is_some_and(|command| command.without.is_empty()) {
        field.member("command.without").report("at least one member that is work is needed");
    }

    let paths_field = field.member("paths");
    let compile = |(i, path): (usize, &String)| {
        let pattern = Pattern::compile(path, naming, &paths_field.item(i))?;
        let model = source.model.clone().unwrap_or_else(|| default_source(class, naming));
        if pattern.names_model() && source.model.is_some() {
            paths_field.item(i).report("names its model, so `model` must be left out");
        }
        Some(Route {
            pattern,
            methods: methods.clone(),
            class,
            model,
            removed_members: source.remove_members.clone(),
            removed_parameters: source.remove_parameters.clone(),
            ends_when_app_is_idle: source.ends_when_app_is_idle,
            waits_forever: source.waits_forever,
            command: source.command.clone().map(|command| DisguisedCommand {
                work_members: command.without,
                unload_member: command.unload_if_zero,
            }),
        })
    };
    source.paths.iter().enumerate().map(compile).collect()
}

/// Without regard to case; `literal` is in lower case.
fn is_same_word(part: &str, literal: &str) -> bool {
    part.eq_ignore_ascii_case(literal) || (!part.is_ascii() && part.to_lowercase() == literal)
}

/// A route that an earlier one always wins over is a mistake.
fn report_shadowed(routes: &[Route], field: &FieldScope<'_>) {
    let is_socket = |route: &Route| matches!(route.class, RouteClass::DisplaySocket | RouteClass::WorkSocket);
    for (i, route) in routes.iter().enumerate().filter(|(_, route)| route.class != RouteClass::Closed) {
        let covers = |earlier: &&Route| {
            let is_same_kind = earlier.class != RouteClass::Closed && is_socket(earlier) == is_socket(route);
            let methods = earlier.methods.is_empty()
                || (!route.methods.is_empty() && route.methods.iter().all(|method| earlier.methods.contains(method)));
            is_same_kind && methods && earlier.pattern.covers(&route.pattern)
        };
        if let Some(earlier) = routes[..i].iter().find(covers) {
            let (path, earlier) = (&route.pattern.text, &earlier.pattern.text);
            field.report(format!("`{path}` has no effect, because `{earlier}` stands before it"));
        }
    }
}

fn default_source(class: RouteClass, naming: ModelNaming) -> ModelSourceDescription {
    match (naming, class) {
        (ModelNaming::One, _) => ModelSourceDescription::None,
        (_, RouteClass::Work | RouteClass::NotWorkLoadedOnly) => ModelSourceDescription::Body("model".to_owned()),
        (_, RouteClass::WorkSocket) => ModelSourceDescription::Query("model".to_owned()),
        (_, RouteClass::NotWork | RouteClass::Closed | RouteClass::DisplaySocket) => ModelSourceDescription::None,
    }
}

fn class(name: RouteClassName) -> RouteClass {
    match name {
        RouteClassName::Work => RouteClass::Work,
        RouteClassName::NotWork => RouteClass::NotWork,
        RouteClassName::NotWorkLoadedOnly => RouteClass::NotWorkLoadedOnly,
        RouteClassName::Closed => RouteClass::Closed,
        RouteClassName::DisplaySocket => RouteClass::DisplaySocket,
        RouteClassName::WorkSocket => RouteClass::WorkSocket,
    }
}

fn is_known(found: &RouteMatch) -> bool {
    found.template != UNKNOWN_ROUTE
}

/// Whether readings of one path are work of different models or of different routes.
fn is_ambiguous(matches: &[RouteMatch]) -> bool {
    let models = matches.iter().filter_map(|found| match &found.model {
        ModelNameSource::Path { name } => Some(name),
        _ => None,
    });
    let is_work = |found: &&RouteMatch| matches!(found.class, RouteClass::Work | RouteClass::WorkSocket);
    let templates = matches.iter().filter(is_work).filter(|found| is_known(found)).map(|found| &found.template);
    has_two(models) || has_two(templates)
}

/// Whether two of the values differ.
fn has_two<T: PartialEq>(mut values: impl Iterator<Item = T>) -> bool {
    let first = values.next();
    first.is_some_and(|first| values.any(|value| value != first))
}

/// The strictest of several readings of a path counts.
fn strictness(class: RouteClass) -> u8 {
    match class {
        RouteClass::Closed => 5,
        RouteClass::Work | RouteClass::WorkSocket => 4,
        RouteClass::NotWorkLoadedOnly => 3,
        RouteClass::DisplaySocket => 2,
        RouteClass::NotWork => 1,
    }
}

fn joined(common: &[String], own: &[String]) -> Vec<String> {
    let further = own.iter().filter(|name| !common.contains(name));
    common.iter().chain(further).cloned().collect()
}
