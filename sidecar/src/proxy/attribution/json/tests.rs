use proptest::prelude::*;
use serde_json::{Map, Value};

use super::super::cut::kept_slices;
use super::*;

fn names(model: bool, removed: &[&str]) -> JsonNames {
    let removed = removed.iter().map(|name| (*name).to_owned()).collect();
    JsonNames { model: model.then(|| "model".to_owned()), removed, observed: Vec::new() }
}

fn scan(text: &[u8], piece_bytes: usize, names: JsonNames) -> Result<(Option<String>, Vec<Range<u64>>), BodyScanError> {
    let mut scanner = JsonScanner::new(names, 0);
    for piece in text.chunks(piece_bytes) {
        scanner.push(piece)?;
    }
    scanner.finish()?;
    let cuts = scanner.take_cuts();
    Ok((scanner.model().map(str::to_owned), cuts))
}

fn model(text: &str) -> Result<Option<String>, BodyScanError> {
    let whole = scan(text.as_bytes(), usize::MAX, names(true, &[])).map(|(model, _)| model);
    for piece_bytes in 1..4 {
        assert_eq!(scan(text.as_bytes(), piece_bytes, names(true, &[])).map(|(model, _)| model), whole, "{text}");
    }
    whole
}

fn without(text: &str, removed: &[&str]) -> String {
    let (_, cuts) = scan(text.as_bytes(), 3, names(false, removed)).unwrap();
    let kept = kept_slices(&cuts, 0, text.as_bytes().to_vec().into());
    String::from_utf8(kept.concat()).unwrap()
}

#[test]
fn the_name_is_that_of_the_outermost_object() {
    let some = |name: &str| Ok(Some(name.to_owned()));

    assert_eq!(model(r#"{"model":"a"}"#), some("a"));
    assert_eq!(model(r#"{"x":{"model":"b"},"y":["model","c",{"model":1}],"model" : "a" }"#), some("a"));
    assert_eq!(model(r#"{"x":"\"model\":\"b\"}{","model":"a\u00e9\n"}"#), some("a\u{e9}\n"));
    assert_eq!(model(r#"{"mod\u0065l":"a"}"#), some("a"));
    assert_eq!(model(r#"{"MODEL":"a"}"#), some("a"));
    assert_eq!(model(r#"{"n":-1.5e3,"t":true,"model":"a","z":null}"#), some("a"));
    assert_eq!(model("\u{feff} {\"model\":\"a\"} trailing"), some("a"));
    for none in ["", "  ", "{}", "[1]", "\"x\"", "17", "null", r#"{"model":null}"#, r#"{"models":"a"}"#, r#"{"x":"y"}"#]
    {
        assert_eq!(model(none), Ok(None), "{none}");
    }
}

#[test]
fn two_names_are_refused_unless_they_are_the_same() {
    assert_eq!(model(r#"{"model":"a","model":"a"}"#), Ok(Some("a".to_owned())));
    for text in [
        r#"{"model":"a","model":"b"}"#,
        r#"{"model":"a","mod\u0065l":"b"}"#,
        r#"{"model":"a","Model":"b"}"#,
        r#"{"model":null,"model":"b"}"#,
    ] {
        assert!(matches!(model(text), Err(BodyScanError::TwoNames { .. })), "{text}");
    }
}

#[test]
fn texts_that_are_refused() {
    for text in [r#"{"model":1}"#, r#"{"model":true}"#, r#"{"model":["a"]}"#, r#"{"model":"\ud800"}"#] {
        assert_eq!(model(text), Err(BodyScanError::NameNotText), "{text}");
    }
    for text in ["{", r#"{"a"#, r#"{"a":"#, r#"{"a":1"#, r#"{"a":[{}"#, r#"{"a":1,"#] {
        assert!(matches!(model(text), Err(BodyScanError::EndsEarly { .. })), "{text}");
    }
    for text in
        ["{a:1}", "{'a':1}", r#"{"a" 1}"#, r#"{"a":1 "b":2}"#, "\0{\0", "<xml>", r#"{"a":1"b":2}"#, r#"{"a":'x'}"#]
    {
        assert!(matches!(model(text), Err(BodyScanError::Unexpected { .. })), "{text}");
    }
    let utf16: Vec<u8> = r#"{"model":"a"}"#.encode_utf16().flat_map(u16::to_le_bytes).collect();
    assert!(scan(&utf16, 99, names(true, &[])).is_err());
    assert!(matches!(model(&format!(r#"{{"model":"{}"}}"#, "x".repeat(5000))), Err(BodyScanError::NameTooLong { .. })));
}

#[test]
fn members_are_cut_out_with_one_comma() {
    let cut = |text| without(text, &["keep_alive", "ttl"]);

    assert_eq!(cut(r#"{"keep_alive":0,"a":1}"#), r#"{"a":1}"#);
    assert_eq!(cut(r#"{"a":1,"keep_alive":0,"b":2}"#), r#"{"a":1,"b":2}"#);
    assert_eq!(cut(r#"{"a":1,"keep_alive":0}"#), r#"{"a":1}"#);
    assert_eq!(cut(r#"{"keep_alive":0}"#), "{}");
    assert_eq!(cut(r#"{"ttl":1,"keep_alive":0}"#), "{}");
    assert_eq!(cut(r#"{"a":1,"ttl":1,"keep_alive":0}"#), r#"{"a":1}"#);
    assert_eq!(cut(r#"{"ttl":1,"a":1,"keep_alive":0,"b":2,"ttl":3}"#), r#"{"a":1,"b":2}"#);
    assert_eq!(cut("{ \"a\" : 1 , \"keep_alive\" : {\"x\":[\"}\"]} }\n"), "{ \"a\" : 1   }\n");
    assert_eq!(cut(r#"{"a":{"keep_alive":0},"keep\u005falive":"5m"}"#), r#"{"a":{"keep_alive":0}}"#);
    assert_eq!(cut(r#"{"Keep_Alive":0,"a":1e400}"#), r#"{"a":1e400}"#);
    assert_eq!(cut("{\"\u{212a}eep_alive\":0,\"a\":1}"), r#"{"a":1}"#);
    assert_eq!(cut(r#"{"keep_alivex":0,"keep_aliv":1}"#), r#"{"keep_alivex":0,"keep_aliv":1}"#);
}

#[test]
fn values_are_looked_at() {
    let names = || JsonNames {
        model: None,
        removed: vec!["keep_alive".to_owned()],
        observed: vec!["prompt".to_owned(), "keep_alive".to_owned()],
    };
    for (text, prompt, keep_alive) in [
        ("{\"prompt\" : [ ] ,\"keep_alive\": 0 }", Some("[]"), Some("0")),
        (r#"{"Prompt":"","keep_alive":"0s","x":{"prompt":"y"}}"#, Some("\"\""), Some("\"0s\"")),
        (r#"{"prompt":"a","prompt":null}"#, Some("null"), None),
        (r#"{"prompt":{"a":["b","}"]}}"#, Some(r#"{"a":["b","}"]}"#), None),
    ] {
        for piece_bytes in 1..9 {
            let mut scanner = JsonScanner::new(names(), 0);
            text.as_bytes().chunks(piece_bytes).for_each(|piece| scanner.push(piece).unwrap());
            let value = |name| scanner.observed(name).map(|value| std::str::from_utf8(value).unwrap());
            assert_eq!((value("prompt"), value("keep_alive")), (prompt, keep_alive), "{text}");
        }
    }
}

#[test]
fn too_many_members_to_cut_are_refused() {
    let text = format!("{{{}\"a\":1}}", "\"ttl\":1 , ".repeat(CUTS_MAX));
    assert!(matches!(scan(text.as_bytes(), 64, names(false, &["ttl"])), Err(BodyScanError::TooManyRemoved { .. })));
}

fn json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((any::<String>(), inner), 0..4).prop_map(|members| members.into_iter().collect()),
        ]
    })
}

fn key() -> impl Strategy<Value = String> {
    prop_oneof![Just("cut".to_owned()), Just("model".to_owned()), any::<String>(), "[a-c]{1,2}"]
}

/// Spells some characters as escapes.
fn spell(key: &str, escapes: u32) -> String {
    let spelled = key.encode_utf16().enumerate().map(|(at, unit)| (escapes >> (at % 32) & 1 == 1, unit));
    let plain = serde_json::to_string(key).unwrap();
    if key.chars().all(|c| c.is_ascii_alphanumeric()) {
        let inside: String = spelled
            .map(|(escape, unit)| if escape { format!("\\u{unit:04x}") } else { char::from(unit as u8).to_string() })
            .collect();
        return format!("\"{inside}\"");
    }
    plain
}

proptest! {
    /// What is left parses to the same members without the one that was cut out, and nothing else has changed.
    #[test]
    fn only_the_member_is_cut_out(
        members in prop::collection::vec((key(), json(), any::<u32>()), 0..6),
        spaces in prop::collection::vec(prop::sample::select(vec!["", " ", "\n\t", "  "]), 40),
        piece_bytes in 1usize..40,
    ) {
        let mut space = spaces.iter().cycle();
        let mut next = || *space.next().unwrap();
        let mut text = format!("{}{{", next());
        for (at, (key, value, escapes)) in members.iter().enumerate() {
            let comma = if at > 0 { "," } else { "" };
            text += &format!("{}{comma}{}{}{}:{}{value}", next(), next(), spell(key, *escapes), next(), next());
        }
        text += &format!("{}}}{}", next(), next());

        let (_, cuts) = scan(text.as_bytes(), piece_bytes, names(false, &["cut"])).unwrap();
        let kept = kept_slices(&cuts, 0, text.as_bytes().to_vec().into()).concat();

        let mut expected: Map<String, Value> = serde_json::from_str(&text).unwrap();
        expected.retain(|key, _| key != "cut");
        prop_assert_eq!(&serde_json::from_slice::<Map<String, Value>>(&kept).unwrap(), &expected);

        let mut others = Vec::new();
        let mut at = 0;
        for cut in &cuts {
            others.extend_from_slice(&text.as_bytes()[at..cut.start as usize]);
            at = cut.end as usize;
            let cut_text = &text[cut.start as usize..cut.end as usize];
            prop_assert!(cut_text.starts_with(['"', ',']), "{}", cut_text);
        }
        others.extend_from_slice(&text.as_bytes()[at..]);
        prop_assert_eq!(kept, others);
        if !members.iter().any(|(key, ..)| key == "cut") {
            prop_assert!(cuts.is_empty());
        }
    }

    #[test]
    fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200), piece_bytes in 1usize..9) {
        let _ = scan(&bytes, piece_bytes, names(true, &["cut"]));
    }
}
