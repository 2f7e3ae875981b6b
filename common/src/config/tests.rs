use std::path::{Path, PathBuf};
use std::time::Duration;

use super::text::{Remark, expand};
use super::tree::parse;
use super::*;

const KEYS: &[Key] = &[
    honoured("name", Kind::Text, "", ""),
    honoured("count", Kind::Integer(0, 9), "", ""),
    honoured("wait", Kind::Duration, "", ""),
    honoured("on_off", Kind::Boolean, "", ""),
    honoured("list", Kind::List, "", ""),
    honoured("list[].name", Kind::Text, "required", ""),
    honoured("services", Kind::Map, "", ""),
    later("soon", Kind::Any, "nothing happens"),
];
const PROGRAM: Program = Program {
    name: "nerve",
    keys: KEYS,
    winner: Winner::Json,
};

/// Writes the text, reads it with `read` and returns its result and all findings as printed.
fn read<T>(text: &[u8], read: impl FnOnce(&Map<'_>) -> T) -> (Option<T>, String) {
    let directory = tempfile::tempdir().unwrap();
    std::io::Write::write_all(
        &mut std::fs::File::create(directory.path().join("f.yaml")).unwrap(),
        text,
    )
    .unwrap();
    let environment = Environment {
        directory: directory.path().to_owned(),
        ..Environment::default()
    };
    let source = Source::open(Path::new("f.yaml"), PROGRAM, &environment);
    let out = source.root().and_then(|root| root.object(read));
    let report = source
        .finish(Some(()))
        .map_or_else(|report| report, |loaded| loaded.warnings);
    (out, report.to_string())
}

#[test]
fn erb_is_replaced_or_refused_with_its_place() {
    let variable = |name: &str| (name == "X").then(|| "value".to_owned());
    let cases = [
        ("a: <%= ENV['X'] %>", "a: value"),
        ("a: <%=ENV[\"X\"]-%>", "a: value"),
        ("a: <%= ENV.fetch('X') %>", "a: value"),
        ("a: <%= ENV.fetch('Y', \"other\") %>", "a: other"),
        ("a: <%# note %>b", "a: b"),
        ("a: <%% b", "a: <% b"),
        ("no tag at all", "no tag at all"),
    ];
    for (text, wanted) in cases {
        assert_eq!(
            expand(text, variable),
            (wanted.to_owned(), Vec::new()),
            "{text}"
        );
    }
    for text in [
        "<%= x %>",
        "<% 1 %>",
        "<%= ENV['X'] || 'y' %>",
        "<%= ENV['X",
        "<%= ENV['a#{1}'] %>",
        "<%= ENV[X] %>",
    ] {
        let (_, remarks) = expand(&format!("a:\n  ü {text}"), variable);
        let [(at, Remark::Refused { .. })] = remarks.as_slice() else {
            panic!("{text}: {remarks:?}")
        };
        assert_eq!((at.line, at.column), (2, 5), "{text}");
    }
    assert_eq!(
        expand("<%= ENV['Y'] %>", variable).1[0].1,
        Remark::Unset {
            name: "Y".to_owned()
        }
    );
    assert_eq!(
        expand("<%= ENV.fetch('Y') %>", variable).1[0].1,
        Remark::Missing {
            name: "Y".to_owned()
        }
    );
}

#[test]
fn yaml_and_json_of_all_sorts_parse() {
    let same = [
        "a: 1",
        "{\"a\": 1}",
        "{\n\t\"a\":\t1,\n}",
        "---\na: 1\n---\nb: 2\n",
        "x: &x {a: 1}\n<<: *x",
    ];
    for text in same {
        let value = parse(text)
            .unwrap_or_else(|invalid| panic!("{text}: {invalid:?}"))
            .value;
        assert_eq!(
            value.get("a").and_then(serde_yaml::Value::as_u64),
            Some(1),
            "{text}"
        );
    }
    let pair = parse("{\"a\": \"\\ud83d\\ude00 \\/ \\u002d\"}")
        .unwrap()
        .value;
    assert_eq!(
        pair.get("a").and_then(serde_yaml::Value::as_str),
        Some("\u{1f600} / -")
    );
    let seed = parse("a: 309485009821345068724781055").unwrap().value;
    assert_eq!(
        seed.get("a").and_then(serde_yaml::Value::as_str),
        Some("309485009821345068724781055")
    );
    for text in ["", "# note", "---", "null"] {
        assert!(parse(text).unwrap().value.is_null(), "{text}");
    }
}

#[test]
fn hostile_text_is_an_error_and_no_more() {
    let bomb = (1..30).fold("a0: &a0 [x]\n".to_owned(), |text, n| {
        format!("{text}a{n}: &a{n} [*a{0}, *a{0}, *a{0}, *a{0}]\n", n - 1)
    });
    let deep = format!("a: {}", "[".repeat(2_000));
    let (_, report) = read(bomb.as_bytes(), |_| ());
    assert!(report.contains("error: not valid YAML"), "{report}");
    let (_, report) = read(deep.as_bytes(), |_| ());
    assert!(report.contains("error: not valid YAML"), "{report}");
    let (_, report) = read(b"name: \xff", |_| ());
    assert_eq!(report, "f.yaml: error: not UTF-8 text: byte 6 is not");
    let (name, report) = read(b"\xef\xbb\xbfname: x", |map| map.key("name").text());
    assert_eq!((name, report.as_str()), (Some(Some("x".to_owned())), ""));
}

#[test]
fn keys_that_stand_twice_are_refused_with_both_places() {
    let (_, report) = read(
        b"name: x\nservices: {a: 1, b: 2,\n  a: 3}\nname: y",
        |map| map.ignore_rest(),
    );
    insta::assert_snapshot!(report, @"
    f.yaml:3:3: error: services.a: duplicate key, first at 2:12
      hint: keep one of the two
    f.yaml:4:1: error: name: duplicate key, first at 1:1
      hint: keep one of the two
    ");
    let (_, report) = read(b"{\"name\": \"\\ud83d\\ude00\", \"name\": 1}", |map| {
        map.ignore_rest()
    });
    assert!(
        report.contains("twice") || report.contains("duplicate key"),
        "{report}"
    );
}

#[test]
fn lines_may_end_as_windows_ends_them() {
    let text = b"name: x\r\nlist:\r\n  - {name: y}\r\ncount: 3\r\n";
    let (read, report) = read(text, |map| {
        let list = map.key("list").list();
        let names = list
            .iter()
            .filter_map(|entry| entry.object(|map| map.key("name").text()));
        (
            map.key("name").text(),
            names.collect::<Vec<_>>(),
            map.key("count").integer::<u8>(0..=9),
        )
    });
    let expected = (Some("x".to_owned()), vec![Some("y".to_owned())], Some(3));
    assert_eq!((read, report.as_str()), (Some(expected), ""));
}

/// Behind aliases and merges too, and told where it is not what it seems.
#[test]
fn published_values_are_what_ruby_makes_of_them() {
    let text = b"x-a: &a {zone: no, sha: 1e3}\nx-b: &b [012, *a]\nsoon:\n  same: *a\n  list: *b\n  merged: {<<: [*a, {sha: '1e3'}], tier: 1.50}\n  quoted: '012'\n  block: |\n    no\n";
    let (json, report) = read(text, |map| {
        map.ignore_rest();
        map.key("soon").json()
    });
    let common = serde_json::json!({"zone": false, "sha": "1e3"});
    let expected = serde_json::json!({
        "same": common, "list": [10, common], "merged": {"zone": false, "sha": "1e3", "tier": 1.5},
        "quoted": "012", "block": "no\n",
    });
    assert_eq!(json.flatten(), Some(expected));
    assert_eq!(report.matches("as in Ruby").count(), 5, "{report}");
    let (json, report) = read(
        b"{\"soon\": {\"a\": \"012\", \"b\": 1.5, \"c\": null, \"d\": true, \"e\": 12}}",
        |map| map.key("soon").json(),
    );
    let expected = serde_json::json!({"a": "012", "b": 1.5, "c": null, "d": true, "e": 12});
    assert_eq!((json.flatten(), report.as_str()), (Some(expected), ""));
    let (text, report) = read(b"name: 1.10\ncount: 1", |map| {
        (map.key("name").text(), map.key("name").published_text())
    });
    assert_eq!(
        text,
        Some((Some("1.10".to_owned()), Some("1.1".to_owned()))),
        "{report}"
    );
}

#[test]
fn variables_nobody_has_filled_in_are_found() {
    use super::text::unfilled;
    for (text, found) in [
        ("$HOST", "$HOST"),
        ("a-${host}:80", "${host}"),
        ("/x/{{ name }}/y", "{{ name }}"),
        ("$5 ${} $HOME_2/x", "${}"),
        ("$$AB", "$AB"),
    ] {
        assert_eq!(unfilled(text), Some(found), "{text}");
    }
    for text in [
        "",
        "$",
        "5$",
        "$5",
        "$x",
        "$A",
        "{a}",
        "${a",
        "{{a}",
        "a}}",
        "\u{e9}$\u{e9}",
    ] {
        assert_eq!(unfilled(text), None, "{text}");
    }
}

#[test]
fn readers_take_what_ruby_takes() {
    let counts = ["3", "'3'", "3.0", "+3", "0x3", "0o3", "03", "'03'", "0_3"];
    for text in counts {
        let (count, report) = read(format!("count: {text}").as_bytes(), |map| {
            map.key("count").integer::<u8>(0..=9)
        });
        assert_eq!((count, report.as_str()), (Some(Some(3)), ""), "{text}");
    }
    for text in ["10", "-1", "3.5", "x", "''", "08", "[]", "true", "_3"] {
        let (count, report) = read(format!("count: {text}").as_bytes(), |map| {
            map.key("count").integer::<u8>(0..=9)
        });
        assert_eq!(count, Some(None), "{text}");
        assert!(
            report.starts_with("f.yaml:1:8: error: count: must be a whole number of 0..9"),
            "{text}: {report}"
        );
    }
    for (text, wanted) in [
        ("yes", true),
        ("On", true),
        ("TRUE", true),
        ("no", false),
        ("off", false),
        ("'false'", false),
    ] {
        let (value, report) = read(format!("on_off: {text}").as_bytes(), |map| {
            map.key("on_off").boolean()
        });
        assert_eq!((value, report.as_str()), (Some(Some(wanted)), ""), "{text}");
    }
    for (text, wanted) in [("0.5", 500), ("'2'", 2000), ("20ms", 20), ("1e1", 10_000)] {
        let (wait, report) = read(format!("wait: {text}").as_bytes(), |map| {
            map.key("wait").duration()
        });
        assert_eq!(
            (wait, report.as_str()),
            (Some(Some(Duration::from_millis(wanted))), ""),
            "{text}"
        );
    }
}

#[test]
fn keys_nobody_asked_for_are_noted_by_class() {
    let (_, report) = read(
        b"nmae: x\nsoon: 1\ncount: 2\nzzz: 3\n7: x\nlist: [{nam: x}]",
        |map| {
            let names: Vec<_> = map.key("list").list();
            for entry in names {
                entry.object(|map| map.key("name").required().text());
            }
        },
    );
    insta::assert_snapshot!(report, @"
    f.yaml:1:1: warning: nmae: unknown key, ignored
      hint: did you mean `name`?
    f.yaml:2:1: warning: soon: not built yet: nothing happens
    f.yaml:3:1: warning: count: has no effect here
    f.yaml:4:1: warning: zzz: unknown key, ignored
    f.yaml:5:1: warning: 7: unknown key, ignored
    f.yaml:6:8: error: list[0].name: required, but missing
    f.yaml:6:9: warning: list[0].nam: unknown key, ignored
      hint: did you mean `name`?
    ");
}

#[test]
fn a_file_name_is_expanded_against_home_and_working_directory() {
    let variables = [("HOME".to_owned(), "/home/x".to_owned())].into();
    let environment = Environment {
        variables,
        directory: PathBuf::from("/dir"),
        ..Environment::default()
    };
    for (written, wanted) in [
        ("a/b", "/dir/a/b"),
        ("/a", "/a"),
        ("~", "/home/x"),
        ("~/a", "/home/x/a"),
        ("~a", "/dir/~a"),
    ] {
        assert_eq!(environment.path(written), PathBuf::from(wanted));
    }
}

#[test]
fn schema_is_nested_as_the_paths_are() {
    let schema = schema("nerve", KEYS);
    let config = &schema["$defs"]["config"];
    assert_eq!(
        config["properties"]["list"]["items"]["required"],
        serde_json::json!(["name"])
    );
    assert_eq!(
        config["properties"]["count"]["maximum"],
        serde_json::json!(9)
    );
}

/// The last line of defence: a service that its reader gave up without a word is an error that names it; one that has said
/// why is told once.
#[test]
fn a_service_that_is_not_read_has_an_error() {
    let report_of = |says_why: bool| {
        let directory = tempfile::tempdir().unwrap();
        let text = b"services:\n  web: {port: 1}\n  api: {port: 2}\n";
        std::io::Write::write_all(
            &mut std::fs::File::create(directory.path().join("f.yaml")).unwrap(),
            text,
        )
        .unwrap();
        let environment = Environment {
            directory: directory.path().to_owned(),
            ..Environment::default()
        };
        let source = Source::open(Path::new("f.yaml"), PROGRAM, &environment);
        let services = source.root().and_then(|root| {
            root.object(|map| {
                let services = map.key("services");
                let api = services.entries().pop().expect("there are two").1;
                api.object(Map::ignore_rest);
                let before = source.errors();
                if says_why {
                    api.error("a reason");
                }
                unread(&source, &api, before);
                services.entries().len()
            })
        });
        assert_eq!(services, Some(2));
        match source.finish(Some(())) {
            Ok(loaded) => panic!("loaded: {}", loaded.warnings),
            Err(report) => report.to_string(),
        }
    };
    let silent = report_of(false);
    assert!(
        silent.contains("f.yaml:3:8: error: services.api: cannot be read, and nothing says why"),
        "{silent}"
    );
    let told = report_of(true);
    assert!(told.contains("services.api: a reason"), "{told}");
    assert!(!told.contains("nothing says why"), "{told}");
}
