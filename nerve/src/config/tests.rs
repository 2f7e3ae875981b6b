//! The loader against case files (`tests/golden`), the examples, and the table of keys.

use std::path::{Path, PathBuf};
use std::time::Duration;

use smartstack_common::admin::Bind;
use smartstack_common::config::golden::{
    check_cases, check_defaults, check_empties, check_mistakes, check_no_other_defaults,
    check_readme, json_of, run_cases, write,
};
use smartstack_common::config::{Admin, tables};

use super::keys::KEYS;
use super::*;
use crate::check::CheckKind;

fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn example(path: &str) -> Loaded<Config> {
    let environment = Environment {
        directory: here("../examples"),
        ..Environment::default()
    };
    let options = LoadOptions {
        path: PathBuf::from(path),
        instance_id: None,
        environment,
    };
    load(&options).unwrap_or_else(|report| panic!("{path} is refused:\n{report}"))
}

#[test]
fn cases_print_what_is_expected() {
    let count = run_cases(&here("tests/golden"), |path, environment| {
        load(&LoadOptions {
            path,
            instance_id: None,
            environment,
        })
    });
    assert!(count >= 30, "only {count} cases found");
}

#[test]
fn readme_holds_the_table_of_keys() {
    check_readme(&here("README.md"), &tables(KEYS));
}

#[test]
fn a_default_stands_in_its_row_alone() {
    let text = std::fs::read_to_string(here("tests/all-keys.yaml")).unwrap();
    let text = text.replace(
        "all-keys.d",
        &here("tests/all-keys.d").display().to_string(),
    );
    let count = check_defaults(KEYS, &json_of(&text), |path| {
        load(&LoadOptions {
            path,
            instance_id: None,
            environment: Environment::default(),
        })
    });
    assert!(count >= 18, "only {count} defaults");
    assert!(check_no_other_defaults(&here("src/config")) >= 3);
    assert!(check_no_other_defaults(&here("src/check")) >= 3);
}

/// A file with every key: each one that is honoured is asked for by the readers, each other one warned about once.
#[test]
fn every_key_of_the_table_is_read() {
    let environment = Environment {
        directory: here("tests"),
        ..Environment::default()
    };
    let path = PathBuf::from("all-keys.yaml");
    let text = std::fs::read_to_string(here("tests/all-keys.yaml")).unwrap();
    for key in KEYS {
        let name = key.path.rsplit('.').next().unwrap().trim_end_matches("[]");
        assert!(
            name == "*" || text.contains(&format!("{name}:")),
            "all-keys.yaml lacks `{}`",
            key.path
        );
    }
    let loaded = load(&LoadOptions {
        path,
        instance_id: None,
        environment,
    })
    .unwrap_or_else(|report| panic!("{report}"));
    let warnings = loaded.warnings.to_string();
    assert!(!warnings.contains("unknown key"), "{warnings}");
    assert!(!warnings.contains("has no effect here"), "{warnings}");
    let later = smartstack_common::config::known_only(KEYS).count();
    assert_eq!(
        warnings.matches("not built yet").count(),
        later + 1,
        "one more for `ssl`:\n{warnings}"
    );
}

#[test]
fn the_json_example_loads_with_its_directory() {
    let loaded = example("nerve.conf.json");
    assert_eq!(loaded.warnings.to_string(), "");
    let config = loaded.config;
    assert_eq!(
        config.services.keys().collect::<Vec<_>>(),
        ["orders", "search", "web"]
    );
    let web = &config.services["web"];
    assert_eq!(web.port, serde_json::json!(3000));
    assert_eq!(web.checks[0].name, "http-127.0.0.1:3000/health");
    let CheckKind::Http(check) = &web.checks[0].kind else {
        panic!("{:?}", web.checks[0])
    };
    assert_eq!(
        (
            check.open_timeout.as_millis(),
            check.read_timeout.as_millis()
        ),
        (200, 500)
    );
    assert!(matches!(
        config.services["orders"].checks[0].kind,
        CheckKind::Tcp(_)
    ));
    assert_eq!(
        config.listeners.admin,
        Some(Admin {
            bind: Bind::Tcp("127.0.0.1:8401".to_owned()),
            configured: false
        })
    );
    assert_eq!(config.state_path, Path::new("/var/lib/nerve/state.json"));
}

#[test]
fn the_host_file_loads_its_section() {
    let loaded = example("host.yaml");
    assert_eq!(loaded.warnings.to_string(), "");
    assert!(!loaded.config.services.is_empty());
}

fn load_text(
    text: &str,
    instance_id: Option<&str>,
    variables: &[(&str, &str)],
) -> Result<Loaded<Config>, Report> {
    let directory = tempfile::tempdir().unwrap();
    write(&directory.path().join("nerve.yaml"), text);
    let variables = variables
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    let environment = Environment {
        variables,
        directory: directory.path().to_owned(),
        ..Environment::default()
    };
    let instance_id = instance_id.map(str::to_owned);
    load(&LoadOptions {
        path: PathBuf::from("nerve.yaml"),
        instance_id,
        environment,
    })
}

const SERVICE: &str = "services: {web: {host: 10.0.0.1, port: \"3000\", zk_hosts: ['b:2181', 'a:2181'], zk_path: /s, X}}";

fn web(settings: &str) -> Service {
    let text = SERVICE.replace('X', settings);
    let loaded = load_text(&text, Some("i-1"), &[]).unwrap_or_else(|report| panic!("{report}"));
    loaded.config.services["web"].clone()
}

#[test]
fn the_option_wins_over_the_file() {
    let text = format!("instance_id: file\n{}", SERVICE.replace(", X", ""));
    assert_eq!(
        load_text(&text, Some("option"), &[])
            .unwrap()
            .config
            .instance_id,
        "option"
    );
    assert_eq!(
        load_text(&text, None, &[]).unwrap().config.instance_id,
        "file"
    );
}

#[test]
fn scalars_are_read_as_ruby_reads_them() {
    let service = web(
        "check_mocked: yes, weight: '7', check_interval: '2', labels: {a: on, b: 'on', c: 010, d: '010', e: 1_000}",
    );
    assert!(service.check_mocked);
    assert_eq!(service.weight, Some(7));
    assert_eq!(service.check_interval, Duration::from_secs(2));
    assert_eq!(service.port, serde_json::json!("3000"));
    assert_eq!(
        service.labels,
        Some(serde_json::json!({"a": true, "b": "on", "c": 8, "d": "010", "e": 1000}))
    );
    assert_eq!(service.places[0].ensemble.hosts(), "a:2181,b:2181");
    assert_eq!(web("weight: 010").weight, Some(8));
    assert_eq!(web("weight: '010'").weight, Some(10));
}

#[test]
fn absent_and_null_options_are_told_apart() {
    assert_eq!(web("check_mocked: true").haproxy_server_options, None);
    assert_eq!(
        web("haproxy_server_options: null").haproxy_server_options,
        Some(serde_json::Value::Null)
    );
}

#[test]
fn state_goes_to_the_directory_systemd_gives() {
    let text = SERVICE.replace(", X", "");
    let loaded = load_text(&text, Some("i"), &[("STATE_DIRECTORY", "/run/x:/run/y")]).unwrap();
    assert_eq!(loaded.config.state_path, Path::new("/run/x/state.json"));
}

#[test]
fn json_with_escapes_of_both_kinds_loads() {
    let text =
        "{\n\t\"instance_id\": \"i\\u002d\\ud83d\\ude00\",\n\t\"heartbeat_path\": \"\\/run\\/x\"}";
    let config = load_text(text, None, &[])
        .unwrap_or_else(|report| panic!("{report}"))
        .config;
    assert_eq!(config.instance_id, "i-\u{1f600}");
    assert_eq!(config.heartbeat_path, Some(PathBuf::from("/run/x")));
}

#[test]
fn schema_names_keys_and_what_is_required() {
    let schema = schema();
    let service = &schema["$defs"]["config"]["properties"]["services"]["additionalProperties"];
    assert_eq!(service["required"], serde_json::json!(["host", "port"]));
    assert!(
        service["properties"]["checks"]["items"]["properties"]["uri"].is_object(),
        "{schema:#}"
    );
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { failure_persistence: None, ..Default::default() })]

    /// Whatever happens to a file, it is loaded or refused with a reason.
    #[test]
    fn a_damaged_file_is_loaded_or_refused(
        example in proptest::sample::select(vec!["nerve.conf.json", "host.yaml"]),
        edits in proptest::collection::vec((0.0..1.0f64, 0..4usize, "[ \\t\n:,*&!%<>={}\\[\\]'\"#|>a0-]{0,3}"), 1..6),
    ) {
        let mut text: Vec<char> = std::fs::read_to_string(here("../examples").join(example)).unwrap().chars().collect();
        for (at, cut, put) in edits {
            let at = (at * text.len() as f64) as usize;
            text.splice(at..(at + cut).min(text.len()), put.chars());
        }
        let directory = tempfile::tempdir().unwrap();
        write(&directory.path().join("f"), &text.into_iter().collect::<String>());
        let environment = Environment { directory: directory.path().to_owned(), ..Environment::default() };
        if let Err(report) = load(&LoadOptions { path: PathBuf::from("f"), instance_id: None, environment }) {
            assert!(report.has_errors());
        }
    }
}

/// A validator that knows nothing of the loader: what loads without a finding passes, each mistake does not.
#[test]
fn the_schema_takes_what_the_loader_takes_and_no_mistake() {
    let schema = jsonschema::validator_for(&schema()).unwrap();
    let valid = |file: &serde_json::Value| schema.validate(file).map_err(|error| error.to_string());
    for name in ["host.yaml", "nerve.conf.json"] {
        let text = std::fs::read_to_string(here(&format!("../examples/{name}"))).unwrap();
        valid(&json_of(&text)).unwrap_or_else(|problem| panic!("{name}: {problem}"));
    }
    for name in ["orders", "search"] {
        let text = std::fs::read_to_string(here(&format!("../examples/nerve.conf.d/{name}.json")))
            .unwrap();
        let file = serde_json::json!({"instance_id": "i", "services": {name: json_of(&text)}});
        valid(&file).unwrap_or_else(|problem| panic!("{name}: {problem}"));
    }
    let cases = check_cases(&here("tests/golden"), &valid);
    let text = std::fs::read_to_string(here("tests/all-keys.yaml")).unwrap();
    let mistakes = check_mistakes("nerve", KEYS, &json_of(&text), &valid);
    println!("{cases} cases pass, {mistakes} mistakes do not");
    assert!(cases >= 3 && mistakes >= 4 * KEYS.len());
}

/// An entry without a value takes nothing else with it in silence: the file is refused, at each list.
#[test]
fn an_empty_entry_of_any_list_is_an_error() {
    let service = |key: &str, value: &str| {
        let mut keys = vec![
            ("host", "127.0.0.1"),
            ("port", "80"),
            ("zk_hosts", "[\"zk:2181\"]"),
            ("zk_path", "/s"),
            ("checks", "[{type: tcp}]"),
        ];
        keys.retain(|(known, _)| *known != key);
        keys.push((key, value));
        let keys = keys.iter().map(|(key, value)| format!("{key}: {value}"));
        let keys: Vec<String> = keys.collect();
        format!(
            "instance_id: i\nservices: {{web: {{{}}}}}\n",
            keys.join(", ")
        )
    };
    let folder = tempfile::tempdir().unwrap();
    let read = |text: &str| {
        let path = folder.path().join("nerve.yaml");
        write(&path, text);
        load(&LoadOptions {
            path,
            instance_id: None,
            environment: Environment::default(),
        })
    };
    assert_eq!(
        read(&service("port", "80")).unwrap().config.services.len(),
        1
    );
    for (key, value) in [
        ("zk_hosts", "[null]"),
        ("zk_hosts", "[~, \"zk:2181\"]"),
        ("checks", "[null]"),
        ("checks", "[{type: tcp}, null]"),
        ("reporters", "[null]"),
        (
            "reporters",
            "[{zk_hosts: [\"other:2181\"], zk_path: /s}, ~]",
        ),
        ("reporters", "[{zk_hosts: [null], zk_path: /s}]"),
    ] {
        let refused = read(&service(key, value)).map(|loaded| loaded.config.services.len());
        let report = refused.expect_err(&format!("{key}: {value}"));
        assert!(report.to_string().contains(key), "{key}: {value}: {report}");
    }
}

/// Whatever holds nothing, wherever it is written: no service vanishes, and no entry that is null, without a word.
#[test]
fn what_is_empty_takes_nothing_with_it_in_silence() {
    let text = std::fs::read_to_string(here("tests/all-keys.yaml")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("empty.yaml");
    let load = |text: &str| {
        write(&path, text);
        let environment = Environment {
            directory: here("tests"),
            ..Environment::default()
        };
        let loaded = load(&LoadOptions {
            path: path.clone(),
            instance_id: None,
            environment,
        })?;
        let names = loaded.config.services.into_keys();
        Ok((names.collect(), loaded.warnings.to_string()))
    };
    let (files, refused) = check_empties(KEYS, &json_of(&text), load);
    println!("{files} files with something empty, {refused} of them refused");
    assert!(
        files >= 13 * KEYS.len() && refused >= files / 4,
        "{refused} of {files}"
    );
}
