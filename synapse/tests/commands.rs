//! The program at its command line: exit codes, `synapse check` on what templates and haproxy refuse, `synapse render`
//! without a trace.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod places;
mod rig;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};
use smartstack_common::testing::{Dir, Program, free_port};

use rig::{Rig, fixed, settings};

fn synapse(dir: &Dir, arguments: &[&str]) -> Output {
    Command::new(Program::path("synapse"))
        .args(arguments)
        .env_remove("SYNAPSE_CONFIG")
        .current_dir(dir.path())
        .output()
        .unwrap()
}

/// Exit code, stdout, stderr with the folder's name taken out.
fn told(dir: &Dir, output: &Output) -> (i32, String, String) {
    let folder = format!("{}/", dir.path().display());
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).replace(&folder, "");
    (
        output.status.code().unwrap(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

fn check(dir: &Dir, config: &Value) -> (i32, String, String) {
    let _file = dir.write("synapse.json", config.to_string());
    told(dir, &synapse(dir, &["-c", "synapse.json", "check"]))
}

/// Every file below a folder with its content.
fn files(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.push((path.clone(), Vec::new()));
            all.extend(files(&path));
        } else {
            all.push((path.clone(), std::fs::read(&path).unwrap()));
        }
    }
    all.sort();
    all
}

fn good(dir: &Dir) -> Value {
    let mut config = settings(dir);
    for name in ["one", "two"] {
        config["services"][name] = fixed(free_port(), &[1, 2]);
    }
    config
}

/// The user's servers may have names, also before synapse has ever run.
#[test]
fn names_of_default_servers_are_looked_up() {
    let dir = Dir::new();
    let mut config = good(&dir);
    config["services"]["one"]["default_servers"] = json!([
        {"name": "here", "host": "localhost", "port": 7},
        {"host": "nobody.invalid", "port": 8},
        {"host": "0.0.0.0", "port": 9},
    ]);
    let (code, _, stderr) = check(&dir, &config);
    assert_eq!(code, 0, "{stderr}");
    let left_out = "synapse.json: warning: services.one.default_servers[1] is left out: host `nobody.invalid` does not resolve";
    assert!(stderr.lines().any(|line| line == left_out), "{stderr}");
    assert!(
        stderr.contains(
            "services.one.default_servers[2].host: is no address of a server: read as this host"
        ),
        "{stderr}"
    );
    let output = synapse(&dir, &["-c", "synapse.json", "render"]);
    let (code, stdout, stderr) = told(&dir, &output);
    assert_eq!(code, 0, "{stderr}");
    assert!(stderr.lines().any(|line| line == left_out), "{stderr}");
    for server in [
        "server here_localhost:7 127.0.0.1:7 ",
        "server 0.0.0.0:9 127.0.0.1:9 ",
    ] {
        assert!(stdout.contains(server), "no `{server}` in\n{stdout}");
    }
    assert!(!stdout.contains("nobody"), "{stdout}");
}

/// What haproxy only warns of, it will refuse one day.
#[test]
fn check_shows_haproxys_own_warnings() {
    let dir = Dir::new();
    let mut config = good(&dir);
    config["haproxy"]["defaults"] = json!(["mode http"]);
    let (code, stdout, stderr) = check(&dir, &config);
    assert_eq!(code, 0, "{stderr}");
    assert!(stdout.contains("OK (2 services)"), "{stdout}");
    for proxy in ["frontend 'one'", "backend 'two'"] {
        let words = format!("haproxy warns of what is rendered: missing timeouts for {proxy}");
        assert!(stderr.contains(&words), "no `{words}` in\n{stderr}");
    }
}

#[test]
fn check_names_what_templates_and_haproxy_refuse() {
    let dir = Dir::new();
    let config = good(&dir);
    let (code, stdout, stderr) = check(&dir, &config);
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert_eq!(stdout, "synapse.json: configuration OK (2 services)\n");

    let built_in = include_str!("../../templates/service.cfg.tera");
    let template = |name: &str, text: &str, config: &mut Value| {
        let path = dir.write(name, text);
        config["haproxy"]["templates"] = json!({"service": path});
    };
    type Edit<'a> = &'a dyn Fn(&mut Value);
    let cases: [(&str, Edit<'_>, &[&str]); 12] = [
        (
            "a template prints an unknown variable",
            &|config| {
                template(
                    "unknown.tera",
                    &format!("{built_in}\n{{{{ nosuch }}}}\n"),
                    config,
                )
            },
            &["unknown.tera", "`nosuch`", "service `one`", "service `two`"],
        ),
        (
            "it fails for one service",
            &|config| {
                let broken = r#"{% if service.name == "two" %}{{ service.nosuch }}{% endif %}"#;
                template("one.tera", &format!("{built_in}{broken}"), config);
            },
            &["one.tera:", "service `two`"],
        ),
        (
            "a template does not parse",
            &|config| {
                template(
                    "syntax.tera",
                    "backend {{ service.name }}\n{% if %}\n",
                    config,
                )
            },
            &["syntax.tera:2:"],
        ),
        (
            "a template names a filter that does not exist",
            &|config| {
                template(
                    "filter.tera",
                    "backend {{ service.name | nosuch }}\n",
                    config,
                )
            },
            &["filter.tera:1:", "nosuch"],
        ),
        (
            "a template renders what haproxy refuses",
            &|config| template("refused.tera", &format!("{built_in}\tnosuchline\n"), config),
            &[
                "haproxy refuses what is rendered",
                "haproxy.cfg:",
                "unknown keyword 'nosuchline'",
                "(the line: `nosuchline`)\n",
            ],
        ),
        (
            "server options",
            &|config| config["services"]["two"]["haproxy"]["server_options"] = json!("proto h9"),
            &[
                "server two/s1_127.0.0.1:1",
                "server two/s2_127.0.0.1:2",
                "'h9'",
            ],
        ),
        (
            "options of one server",
            &|config| {
                config["services"]["two"]["default_servers"][1]["haproxy_server_options"] =
                    json!("resolvers x")
            },
            &["server 's2_127.0.0.1:2'", "resolvers 'x'"],
        ),
        (
            "a global line",
            &|config| {
                config["haproxy"]["global"]
                    .as_array_mut()
                    .unwrap()
                    .push(json!("nosuchword 7"))
            },
            &["haproxy.cfg:", "nosuchword"],
        ),
        (
            "a line of a backend",
            &|config| config["services"]["one"]["haproxy"]["backend"] = json!(["balance nosuch"]),
            &["haproxy.cfg:", "balance"],
        ),
        (
            "a missing certificate",
            &|config| {
                config["services"]["one"]["haproxy"]["bind_options"] = json!("ssl crt /no/such.pem")
            },
            &["/no/such.pem"],
        ),
        (
            "no haproxy under that name",
            &|config| config["haproxy"]["binary"] = json!("no-such-haproxy"),
            &[
                "cannot find the program `no-such-haproxy`",
                "install haproxy",
            ],
        ),
        (
            "several at once",
            &|config| {
                config["services"]["one"]["haproxy"]["backend"] = json!(["nosuchword"]);
                config["services"]["two"]["haproxy"]["server_options"] = json!("weight 300");
            },
            &["'nosuchword'", "weight of server"],
        ),
    ];
    for (what, edit, words) in cases {
        let mut config = config.clone();
        edit(&mut config);
        let before = files(dir.path());
        let (code, stdout, stderr) = check(&dir, &config);
        assert_eq!(code, 78, "{what}: {stderr}");
        assert_eq!(stdout, "", "{what}");
        for word in words {
            assert!(stderr.contains(word), "{what}: no {word:?} in:\n{stderr}");
        }
        for line in stderr.lines() {
            assert!(line.starts_with("synapse.json: "), "{what}: {line}");
            assert!(
                !line.contains("/tmp"),
                "{what}: a temporary file is named: {line}"
            );
        }
        let after = files(dir.path());
        assert_eq!(before.len(), after.len(), "{what}: check leaves no file");
    }
}

#[test]
fn render_leaves_no_trace() {
    let dir = Dir::new();
    let mut config = good(&dir);
    let _file = dir.write("synapse.json", config.to_string());
    let run = || {
        let before = files(dir.path());
        let (code, stdout, stderr) = told(&dir, &synapse(&dir, &["-c", "synapse.json", "render"]));
        assert_eq!(before, files(dir.path()), "nothing is written");
        assert_eq!(code, 0, "{stderr}");
        assert!(
            stdout.contains("\nbackend one\n") && stdout.contains("server s1_127.0.0.1:1 "),
            "{stdout}"
        );
        stdout
    };
    let plain = run();
    // A snapshot that is garbage, of another kind, or not a file at all.
    for garbage in ["", "{", "null", "{\"format\": 99}", "\u{0}\u{1}"] {
        let _file = dir.write("state/snapshot.json", garbage);
        assert_eq!(run(), plain, "{garbage:?}");
    }
    std::fs::remove_file(dir.join("state/snapshot.json")).unwrap();
    std::fs::create_dir(dir.join("state/snapshot.json")).unwrap();
    assert_eq!(run(), plain);
    // The same bytes each time, whatever the order of the services.
    assert_eq!(run(), plain);

    config["services"]["one"]["haproxy"]["server_options"] = json!("proto h9");
    let _file = dir.write("synapse.json", config.to_string());
    assert!(
        run().contains("proto h9"),
        "render shows what haproxy would refuse"
    );
}

#[tokio::test]
async fn exit_codes() {
    let dir = Dir::new();
    let config = good(&dir);
    let code = |arguments: &[&str]| told(&dir, &synapse(&dir, arguments));

    for usage in [
        &["--nonsense"][..],
        &["stray"],
        &["-c"],
        &["run"],
        &["check"],
        &["render"],
        &[],
    ] {
        let (code, stdout, stderr) = code(usage);
        assert_eq!((code, stdout.as_str()), (64, ""), "{usage:?}");
        assert!(!stderr.is_empty());
    }
    for good in [
        &["--version"][..],
        &["--help"],
        &["schema"],
        &["completions", "bash"],
    ] {
        assert_eq!(code(good).0, 0, "{good:?}");
    }
    for command in ["run", "check", "render"] {
        let (code, _, stderr) = code(&["-c", "nosuch.json", command]);
        assert_eq!(code, 78, "{command}: {stderr}");
        assert!(stderr.contains("nosuch.json"), "{stderr}");
    }
    // Who asks a running program needs no file, but is told where it was not.
    let (status, _, stderr) = code(&["-c", "nosuch.json", "status"]);
    assert_eq!(status, 1, "{stderr}");
    assert!(
        stderr.contains("nosuch.json") && stderr.contains("no status from"),
        "{stderr}"
    );
    let _file = dir.write("bad.json", r#"{"services": {"a": {}}}"#);
    for command in ["run", "check", "render"] {
        assert_eq!(code(&["-c", "bad.json", command]).0, 78, "{command}");
    }
    let mut syntax = config.clone();
    syntax["haproxy"]["templates"] = json!({"service": dir.write("syntax.tera", "{% if %}")});
    let _file = dir.write("bad.json", syntax.to_string());
    let (run, _, stderr) = code(&["-c", "bad.json"]);
    assert_eq!(run, 78, "{stderr}");
    assert!(stderr.contains("syntax.tera:1:"), "{stderr}");

    let _file = dir.write("synapse.json", config.to_string());
    assert_eq!(
        code(&["-c", "synapse.json", "status"]).0,
        1,
        "nobody answers"
    );

    let mut rig = Rig::start(dir, &config).await;
    let dir = &rig.dir;
    assert_eq!(
        told(dir, &synapse(dir, &["-c", "synapse.json", "status"])).0,
        0
    );
    let (second, _, stderr) = told(dir, &synapse(dir, &["-c", "synapse.json"]));
    assert_eq!(second, 1, "{stderr}");
    let pid = rig.synapse.process().pid().to_string();
    assert!(
        stderr.contains(&pid),
        "it names the one that runs, {pid}: {stderr}"
    );

    // The admin port is taken: fatal when it is configured.
    let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let own = Dir::new();
    let mut config = settings(&own);
    config["services"]["one"] = fixed(free_port(), &[1]);
    config["admin"]["bind"] = json!(other.local_addr().unwrap().to_string());
    let _file = own.write("synapse.json", config.to_string());
    let (code, _, stderr) = told(&own, &synapse(&own, &["-c", "synapse.json"]));
    assert_eq!(code, 1, "{stderr}");
    assert!(
        stderr.contains(&other.local_addr().unwrap().to_string()),
        "{stderr}"
    );
    assert!(
        !own.join("haproxy/haproxy.cfg.pid").exists(),
        "no haproxy was started"
    );

    rig.synapse.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(rig.synapse.wait(rig::SOON).await.code(), Some(0));
    assert!(!rig.haproxy.pids().is_empty(), "haproxy goes on");
}
