//! Bytes and paths that no app and no client should send.

use http::Method;
use proptest::prelude::*;

use super::{answer, app};
use crate::app::{App, RouteClass, RouteMatch};

fn class(route: &RouteMatch) -> RouteClass {
    route.class
}

/// A closed route of each app with the method that would act.
const CLOSED: &[(&str, &str, &str)] = &[
    ("llama-server", "POST", "/models/unload"),
    ("llama-server", "DELETE", "/models"),
    ("llama-swap", "GET", "/unload"),
    ("llama-swap", "POST", "/api/models/unload/x"),
    ("vllm", "POST", "/sleep"),
    ("vllm", "POST", "/collective_rpc"),
    ("sglang", "GET", "/release_memory_occupation"),
    ("sglang", "POST", "/release_memory_occupation"),
    ("triton", "POST", "/v2/repository/models/m/unload"),
    ("comfyui", "POST", "/free"),
    ("comfyui", "POST", "/api/free"),
    ("localai", "POST", "/backend/shutdown"),
    ("localai", "GET", "/backend/monitor"),
    ("speaches", "DELETE", "/api/ps/org/m"),
    ("a1111", "POST", "/sdapi/v1/unload-checkpoint"),
    ("forge", "POST", "/sdapi/v1/unload-checkpoint"),
    ("invokeai", "POST", "/api/v2/models/empty_model_cache"),
    ("xinference", "DELETE", "/v1/models/m"),
    ("xinference", "POST", "/v1/models"),
    ("koboldcpp", "POST", "/api/admin/reload_config"),
    ("tabbyapi", "POST", "/v1/model/unload"),
    ("lm-studio", "POST", "/api/v1/models/unload"),
];

#[test]
fn a_closed_route_is_closed_in_every_disguise() {
    for (name, method, path) in CLOSED {
        let app = app(name);
        let method: Method = method.parse().unwrap();
        let rest = &path[1..];
        let encoded: String = rest.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let encoded_twice: String = rest.bytes().map(|byte| format!("%25{byte:02x}")).collect();

        let disguises = [
            (*path).to_owned(),
            format!("{path}/"),
            format!("/{path}"),
            format!("//{rest}//"),
            path.replace('/', "//"),
            format!("/./{rest}"),
            format!("/x/..{path}"),
            format!("/x/%2e%2E{path}"),
            format!("/x/%2e%2E/y/../..{path}"),
            format!("{path}/."),
            format!("{path}/x/.."),
            format!("/../..{path}"),
            path.to_uppercase(),
            format!("/{encoded}"),
            format!("/{encoded_twice}"),
            path.replace('/', "%2f"),
            path.replace('/', "/%2F"),
            path.replace('/', "\\"),
            path.replace('/', "%5c"),
            format!("{path};a=b"),
            format!("{path};"),
            format!("{path}%3Fx"),
            format!("{path}%23x"),
            format!("{path}%00"),
            format!("{path}%20"),
            format!("{path}%0d%0a"),
            format!("/;x{path}"),
        ];
        for disguise in disguises {
            let route = app.route(&method, &disguise, None, false);
            assert_eq!(class(&route), RouteClass::Closed, "{name}: {method} {disguise}: {}", route.template);
        }

        let lower: Method = method.as_str().to_lowercase().parse().unwrap();
        assert_eq!(class(&app.route(&lower, path, None, false)), RouteClass::Closed, "{name}: {lower} {path}");
        assert_eq!(class(&app.route(&method, path, Some("a=b"), true)), RouteClass::Closed, "{name}: websocket");
    }
}

#[test]
fn an_app_that_looks_only_at_the_end_of_a_target_is_closed_there_too() {
    let kobold = app("koboldcpp");
    for (path, query) in [
        ("/x/api/admin/reload_config", None),
        ("/v1/chat/completions", Some("x=/api/admin/reload_config")),
        ("/v1/chat/completions", Some("x=%2Fapi%2Fadmin%2Freload_config")),
        ("/any/api/extra/shutdown", None),
    ] {
        assert_eq!(class(&kobold.route(&Method::POST, path, query, false)), RouteClass::Closed, "{path} {query:?}");
    }
    assert_eq!(class(&kobold.route(&Method::POST, "/v1/chat/completions", Some("x=1/2"), false)), RouteClass::Work);
}

#[test]
fn work_in_disguise_stays_work() {
    for (name, path) in
        [("comfyui", "/prompt"), ("ollama", "/api/chat"), ("sglang", "/generate"), ("llama-swap", "/upstream/m/x")]
    {
        let app = app(name);
        for disguise in
            [format!("/view/..{path}"), format!("/upload/%2e%2e{path}"), format!("/{path}/"), path.to_uppercase()]
        {
            let route = app.route(&Method::POST, &disguise, None, false);
            assert_eq!(class(&route), RouteClass::Work, "{name}: {disguise}: {}", route.template);
        }
    }
}

#[test]
fn what_is_cut_out_of_a_request_is_cut_in_every_disguise() {
    let ollama = app("ollama");
    for path in [
        "/api%2Fgenerate",
        "//api/generate/",
        "/%61pi/generate",
        "/x/../api/generate",
        "/api\\generate",
        "/API/Generate",
    ] {
        let route = ollama.route(&Method::POST, path, None, false);
        assert_eq!((class(&route), route.template.as_str()), (RouteClass::Work, "/api/generate"), "{path}");
        assert_eq!(route.removed_members, ["keep_alive"], "{path}");
        assert!(route.command.is_some(), "{path}");
    }
    // Work of one route or of another one, with other rules.
    let route = ollama.route(&Method::POST, "/api/generate/%2e%2e%2fembed", None, false);
    assert_ne!(class(&route), RouteClass::NotWork);
}

#[test]
fn a_path_that_can_name_two_models_is_closed() {
    let swap = app("llama-swap");
    assert_eq!(class(&swap.route(&Method::GET, "/upstream/a%2Fb/health", None, false)), RouteClass::Closed);
    assert_eq!(class(&swap.route(&Method::GET, "/upstream/a/../b/health", None, false)), RouteClass::Closed);
    assert_eq!(class(&swap.route(&Method::GET, "/upstream/a/health", None, false)), RouteClass::Work);
}

#[test]
fn what_is_unknown_is_denied_by_default() {
    for app in App::known().map(super::app).filter(|app| !["process", "llama-server-single"].contains(&app.name())) {
        let name = app.name();
        let post = app.route(&Method::POST, "/no/such/route", None, false);
        assert_eq!((class(&post), post.template.as_str()), (RouteClass::Work, "other"), "{name}");
        assert_eq!(class(&app.route(&Method::DELETE, "/no/such/route", None, false)), RouteClass::Work, "{name}");
        assert_eq!(class(&app.route(&Method::GET, "/no/such/route", None, true)), RouteClass::WorkSocket, "{name}");

        for method in [Method::GET, Method::HEAD, Method::OPTIONS] {
            let route = app.route(&method, "/no/such/route", None, false);
            assert!(matches!(class(&route), RouteClass::NotWorkLoadedOnly | RouteClass::NotWork), "{name}: {method}");
        }
    }
    // Where no pattern takes every GET.
    let unknown = app("ollama").route(&Method::GET, "/no/such/route", None, false);
    assert_eq!(class(&unknown), RouteClass::NotWorkLoadedOnly);
}

/// Paths that are made of the pieces of closed ones.
fn paths() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("/".to_owned()),
        Just("//".to_owned()),
        Just("..".to_owned()),
        Just("%2e".to_owned()),
        Just("%2f".to_owned()),
        Just("%5C".to_owned()),
        Just(";".to_owned()),
        Just("free".to_owned()),
        Just("FREE".to_owned()),
        Just("%66ree".to_owned()),
        Just("%2566ree".to_owned()),
        Just("api".to_owned()),
        Just("view".to_owned()),
        "[ -~]{0,4}",
        "\\PC{0,3}",
    ];
    proptest::collection::vec(piece, 0..10).prop_map(|pieces| format!("/{}", pieces.concat()))
}

/// How a careful server reads a path: decodes it, drops empty and dot segments, ignores case.
fn careful_reading(path: &str) -> Vec<String> {
    let mut text = path.to_owned();
    for _ in 0..3 {
        text = percent_encoding::percent_decode_str(&text).decode_utf8_lossy().into_owned();
    }
    let mut segments: Vec<String> = Vec::new();
    for segment in text.replace('\\', "/").split('/') {
        match segment {
            "" | "." => {}
            ".." => drop(segments.pop()),
            segment => segments.push(segment.to_lowercase()),
        }
    }
    segments
}

proptest! {
    #[test]
    fn no_path_slips_past_a_closed_route(path in paths()) {
        let route = app("comfyui").route(&Method::POST, &path, None, false);
        let reading = careful_reading(&path);
        if reading == ["free"] || reading == ["api", "free"] {
            prop_assert_eq!(route.class, RouteClass::Closed, "{}", path);
        }
    }

    #[test]
    fn reading_methods_are_never_work(path in paths(), query in ".{0,20}") {
        for app in App::known().map(super::app) {
            for method in [Method::HEAD, Method::OPTIONS] {
                let route = app.route(&method, &path, Some(&query), false);
                prop_assert_ne!(route.class, RouteClass::Work, "{}: {} {}", app.name(), method, path);
            }
        }
    }

    #[test]
    fn no_answer_breaks_a_reader(status in 100_u16..600, body in answers()) {
        let answer = answer(status, body);
        let models = ["m".to_owned(), "n/o".to_owned()];
        for app in App::known().map(super::app) {
            let answers = |count: usize| vec![answer.clone(); count];
            let _ = app.read_identity(&answers(app.identify().len()));
            let _ = app.read_list(&models, &answers(app.list(&models).map_or(1, |requests| requests.len())));
            let _ = app.read_busy("m", &answer);
            for step in 0..3 {
                app.read_load_step("m", step, &answer);
                app.read_unload_step("m", step, &answer);
            }
            app.is_unload_confirmed("m", &answer);
        }
    }

    #[test]
    fn no_text_breaks_the_check(text in "\\PC{0,120}", field in "[a-zA-Z]{1,12}", value in "[ -~]{0,40}") {
        crate::app::check(&text);
        crate::app::check(&format!("name: x\nmodels: one\n{field}: {value}\n"));
        crate::app::check(&format!("name: x\nmodels: named\nlist: {{request: {{path: /x}}, items: {{at: '{}', name: $}}}}", value.replace('\'', "")));
    }

    #[test]
    fn no_damage_to_a_description_breaks_the_check(
        which in any::<prop::sample::Index>(),
        cut in any::<prop::sample::Index>(),
        length in 1_usize..40,
        patch in "[ -~]{0,6}",
    ) {
        let name = App::known().nth(which.index(App::known().count())).unwrap();
        let chars: Vec<char> = App::source(name).unwrap().chars().collect();
        let start = cut.index(chars.len());
        let rest = &chars[(start + length).min(chars.len())..];
        let text: String = chars[..start].iter().copied().chain(patch.chars()).chain(rest.iter().copied()).collect();

        let problems = crate::app::check(&text);
        prop_assert_eq!(problems.is_empty(), App::from_yaml(&text).is_ok());
    }

    #[test]
    fn any_model_name_stays_within_its_place(name in "\\PC{1,20}") {
        for app in App::known().map(super::app) {
            let canonical = app.canonical_name(&name);
            prop_assert_eq!(app.canonical_name(&canonical), canonical.clone(), "{}", app.name());
            app.governs(&name);
            for request in app.load(&name).into_iter().chain(app.unload(&name)).flat_map(|action| action.steps) {
                let uri: Result<http::Uri, _> = request.path.parse();
                prop_assert!(uri.is_ok(), "{}: {}", app.name(), request.path);
                prop_assert!(!request.path.contains(['#', ' ']));
            }
        }
    }
}

/// Any bytes, and JSON that is nearly right.
fn answers() -> impl Strategy<Value = Vec<u8>> {
    let scalar =
        prop_oneof![Just("null"), Just("0"), Just("-1"), Just("1e400"), Just("true"), Just("\"ready\""), Just("[]")];
    let key = prop_oneof![
        Just("models"),
        Just("data"),
        Just("name"),
        Just("id"),
        Just("status"),
        Just("value"),
        Just("state"),
        Just("running"),
        Just("queue"),
        Just("error"),
        Just("loaded_instances"),
        Just("devices"),
        Just("result"),
    ];
    let object = proptest::collection::vec((key, scalar), 0..5).prop_map(|members| {
        let members: Vec<String> = members.iter().map(|(key, value)| format!("\"{key}\":{value}")).collect();
        format!("{{{}}}", members.join(","))
    });
    let nested = (object.clone(), "[a-z]{1,6}").prop_map(|(object, key)| format!("{{\"{key}\":[{object},{object}]}}"));
    prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..64),
        object.prop_map(String::into_bytes),
        nested.prop_map(String::into_bytes),
        "data: .{0,20}\n".prop_map(String::into_bytes),
    ]
}
