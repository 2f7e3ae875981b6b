//! The loader against case files (`tests/golden`), the examples, and the table of keys.

use std::path::{Path, PathBuf};

use smartstack_common::config::golden::{
    check_cases, check_defaults, check_empties, check_mistakes, check_no_other_defaults,
    check_readme, json_of, run_cases, write,
};
use smartstack_common::config::tables;

use super::keys::KEYS;
use super::*;

fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn example(path: &str) -> Loaded<Config> {
    let environment = Environment {
        directory: here("../examples"),
        ..Environment::default()
    };
    load(&LoadOptions {
        path: PathBuf::from(path),
        environment,
    })
    .unwrap_or_else(|report| panic!("{path} is refused:\n{report}"))
}

#[test]
fn cases_print_what_is_expected() {
    let count = run_cases(&here("tests/golden"), |path, environment| {
        load(&LoadOptions { path, environment })
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
    let mut file = json_of(&text);
    // A service's switch counts where the top level's is not given at all.
    let web = file["services"]["web"]["haproxy"].as_object_mut().unwrap();
    web.remove("use_nerve_weights");
    let count = check_defaults(KEYS, &file, |path| {
        load(&LoadOptions {
            path,
            environment: Environment::default(),
        })
    });
    assert!(count >= 18, "only {count} defaults");
    assert!(check_no_other_defaults(&here("src/config")) >= 3);
}

/// A file with every key: each one that is honoured is asked for by the readers, each other one warned about once.
#[test]
fn every_key_of_the_table_is_read() {
    let environment = Environment {
        directory: here("tests"),
        ..Environment::default()
    };
    let text = std::fs::read_to_string(here("tests/all-keys.yaml")).unwrap();
    for key in KEYS {
        let name = key.path.rsplit('.').next().unwrap().trim_end_matches("[]");
        assert!(
            name == "*" || text.contains(&format!("{name}:")),
            "all-keys.yaml lacks `{}`",
            key.path
        );
    }
    let path = PathBuf::from("all-keys.yaml");
    let loaded =
        load(&LoadOptions { path, environment }).unwrap_or_else(|report| panic!("{report}"));
    let warnings = loaded.warnings.to_string();
    assert!(!warnings.contains("unknown key"), "{warnings}");
    assert!(!warnings.contains("has no effect here"), "{warnings}");
    let later = smartstack_common::config::known_only(KEYS).count();
    assert_eq!(
        warnings.matches("not built yet").count(),
        later,
        "{warnings}"
    );
}

#[test]
fn the_json_example_loads() {
    let loaded = example("synapse.conf.json");
    assert_eq!(loaded.warnings.to_string(), "");
    let config = loaded.config;
    let names: Vec<&str> = config
        .services
        .iter()
        .map(|service| service.name.as_str())
        .collect();
    assert_eq!(names, ["users", "orders", "search"]);
    let users = config.services[0].haproxy.as_ref().unwrap();
    assert_eq!(users.port, Some(FrontendPort::Port(3213)));
    assert_eq!(users.frontend, ["mode http", "timeout client 31s"]);
    assert_eq!(users.backend, ["mode http", "option httpchk GET /health"]);
    assert_eq!(config.haproxy.extra_sections[0].0, "listen stats");
    assert_eq!(
        config.haproxy.candidate_config_file_path,
        Path::new("/etc/haproxy/haproxy.cfg.tmp")
    );
    assert_eq!(
        config.snapshot_path,
        Path::new("/var/lib/synapse/snapshot.json")
    );
}

#[test]
fn the_host_file_loads_its_section() {
    let loaded = example("host.yaml");
    assert_eq!(loaded.warnings.to_string(), "");
    assert_eq!(loaded.config.haproxy.reload, Reload::Supervise);
}

/// `haproxy` below `haproxy:` and the services below `services:`, in front of what makes a file complete.
fn load_text(haproxy: &str, services: &str) -> Config {
    let directory = tempfile::tempdir().unwrap();
    let text = format!(
        "haproxy:\n  do_writes: no\n  do_socket: off\n  do_reloads: false\n  global: []\n  defaults: [mode http]\n{haproxy}\n\
         services:\n{services}\n"
    );
    write(&directory.path().join("synapse.yaml"), &text);
    let environment = Environment {
        directory: directory.path().to_owned(),
        ..Environment::default()
    };
    let options = LoadOptions {
        path: PathBuf::from("synapse.yaml"),
        environment,
    };
    load(&options)
        .unwrap_or_else(|report| panic!("{report}"))
        .config
}

/// haproxy takes the first address of a name alone: where `localhost` has two, both are listened at, in every case of the
/// word and wherever it may be written; what is written otherwise stays.
#[test]
fn localhost_is_every_address_that_its_clients_may_try() {
    let binds = |localhost_v6: bool, haproxy: &str, service: &str| {
        let directory = tempfile::tempdir().unwrap();
        let text = format!(
            "haproxy: {{global: [], defaults: [mode http], do_writes: no, do_socket: off, do_reloads: false{haproxy}}}\n\
             services: {{web: {{discovery: {{method: base}}, default_servers: [{{host: 10.0.0.1, port: 1}}], haproxy: {{port: 3213{service}}}}}}}\n"
        );
        write(&directory.path().join("synapse.yaml"), &text);
        let environment = Environment {
            directory: directory.path().to_owned(),
            localhost_v6,
            ..Environment::default()
        };
        let options = LoadOptions {
            path: PathBuf::from("synapse.yaml"),
            environment,
        };
        let config = load(&options)
            .unwrap_or_else(|report| panic!("{report}"))
            .config;
        let service = config.services[0].haproxy.clone().unwrap();
        service.bind_address
    };
    let both = "127.0.0.1,[::1]";
    assert_eq!(binds(true, "", ""), both);
    assert_eq!(binds(true, ", bind_address: localhost", ""), both);
    assert_eq!(
        binds(true, ", bind_address: '*'", ", bind_address: LocalHost"),
        both
    );
    assert_eq!(binds(true, ", bind_address: '*'", ""), "*");
    assert_eq!(binds(true, "", ", bind_address: 127.0.0.1"), "127.0.0.1");
    assert_eq!(binds(false, "", ""), "localhost");
}

#[test]
fn a_seed_of_128_bits_is_kept() {
    let config = load_text("  server_order_seed: 309485009821345068724781055", "  {}");
    assert_eq!(
        config.haproxy.server_order_seed.as_deref(),
        Some("309485009821345068724781055")
    );
    assert!(!config.haproxy.do_writes && !config.haproxy.do_socket);
    assert_eq!(config.haproxy.reload, Reload::Never);
}

#[test]
fn ports_are_absent_null_text_or_number() {
    let service = |name: &str, haproxy: &str| {
        format!(
            "  {name}: {{discovery: {{method: base}}, default_servers: [{{host: a, port: '1'}}], haproxy: {{{haproxy}}}}}\n"
        )
    };
    let text = [
        service("a", ""),
        service("b", "port: null, bind_address: /run/b.sock"),
        service("c", "port: '80'"),
        service("d", "port: 81"),
    ];
    let config = load_text("", &text.concat());
    let ports: Vec<_> = config
        .services
        .iter()
        .map(|service| service.haproxy.as_ref().unwrap().port)
        .collect();
    let wanted = [
        None,
        Some(FrontendPort::AddressOnly),
        Some(FrontendPort::Port(80)),
        Some(FrontendPort::Port(81)),
    ];
    assert_eq!(ports, wanted);
}

#[test]
fn servers_haproxy_cannot_have_are_left_out_where_it_is_disabled() {
    let config = load_text(
        "",
        "  nginx: {discovery: {method: base}, haproxy: {disabled: yes}, default_servers: [{host: unix, port: /x.sock}, {host: a, port: 1}]}",
    );
    let service = &config.services[0];
    assert_eq!(
        (service.haproxy.is_none(), service.default_servers.len()),
        (true, 1)
    );
}

#[test]
fn schema_names_keys_and_what_is_required() {
    let schema = schema();
    let haproxy = &schema["$defs"]["config"]["properties"]["haproxy"]["allOf"][0];
    assert_eq!(
        haproxy["required"],
        serde_json::json!(["global", "defaults"])
    );
    assert!(haproxy["properties"]["templates"]["properties"]["service"].is_object());
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { failure_persistence: None, ..Default::default() })]

    /// Whatever happens to a file, it is loaded or refused with a reason.
    #[test]
    fn a_damaged_file_is_loaded_or_refused(
        example in proptest::sample::select(vec!["synapse.conf.json", "host.yaml"]),
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
        if let Err(report) = load(&LoadOptions { path: PathBuf::from("f"), environment }) {
            assert!(report.has_errors());
        }
    }
}

/// A validator that knows nothing of the loader: what loads without a finding passes, each mistake does not.
#[test]
fn the_schema_takes_what_the_loader_takes_and_no_mistake() {
    let schema = jsonschema::validator_for(&schema()).unwrap();
    let valid = |file: &serde_json::Value| schema.validate(file).map_err(|error| error.to_string());
    for name in ["host.yaml", "synapse.conf.json"] {
        let text = std::fs::read_to_string(here(&format!("../examples/{name}"))).unwrap();
        valid(&json_of(&text)).unwrap_or_else(|problem| panic!("{name}: {problem}"));
    }
    let cases = check_cases(&here("tests/golden"), &valid);
    let text = std::fs::read_to_string(here("tests/all-keys.yaml")).unwrap();
    let mistakes = check_mistakes("synapse", KEYS, &json_of(&text), &valid);
    println!("{cases} cases pass, {mistakes} mistakes do not");
    assert!(cases >= 5 && mistakes >= 4 * KEYS.len());
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
            environment,
        })?;
        let names = loaded
            .config
            .services
            .iter()
            .map(|service| service.name.clone());
        Ok((names.collect(), loaded.warnings.to_string()))
    };
    let (files, refused) = check_empties(KEYS, &json_of(&text), load);
    println!("{files} files with something empty, {refused} of them refused");
    assert!(
        files >= 13 * KEYS.len() && refused >= files / 4,
        "{refused} of {files}"
    );
}
