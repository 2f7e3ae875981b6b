//! From registry children to the bytes of haproxy.cfg, compared with files in `golden/` that the real haproxy accepts.
//!
//! `GOLDEN=overwrite cargo test -p synapse --test golden` writes them anew.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use smartstack_common::units::{Ensemble, ZkPath};
use synapse::config::{
    BackendOrder, Config, Decode, DefaultServer, Discovery, FrontendPort, Haproxy, Reload, Service,
    ServiceHaproxy, Templates,
};
use synapse::model::server::Identified;
use synapse::model::source::{Child, SourceView};
use synapse::outputs::haproxy::backend::{ids, order};
use synapse::outputs::haproxy::render::Renderer;
use synapse::wanted::funnel::{Input, Previous, funnel};

fn lines(text: &[&str]) -> Vec<String> {
    text.iter().map(|line| (*line).to_owned()).collect()
}

fn config(global: &[&str], defaults: &[&str]) -> Config {
    Config {
        services: Vec::new(),
        haproxy: Haproxy {
            global: lines(global),
            defaults: lines(defaults),
            extra_sections: Vec::new(),
            places: std::collections::BTreeMap::new(),
            do_writes: true,
            do_reloads: true,
            do_socket: true,
            check_command: None,
            config_file_path: "/etc/haproxy/haproxy.cfg".into(),
            candidate_config_file_path: "/etc/haproxy/haproxy.cfg.tmp".into(),
            reload: Reload::Command("true".to_owned()),
            reload_timeout: Duration::from_secs(30),
            replace_hung_after: None,
            socket_file_path: vec!["/run/haproxy/admin.sock".into()],
            restart_interval: Duration::from_secs(2),
            restart_jitter: 0.0,
            state_file_path: None,
            admit: synapse::config::Admit::Ready,
            server_order_seed: Some("42".to_owned()),
            max_server_id: 65535,
            bind_address: "localhost".to_owned(),
            shared_frontend: None,
            use_nerve_weights: false,
            binary: "haproxy".to_owned(),
            hitless_defaults: true,
            allowed_server_options: Vec::new(),
            separate_names: None,
            templates: Templates::default(),
        },
        session_timeout: Duration::from_secs(10),
        jitter: Duration::ZERO,
        listeners: synapse::config::Listeners::default(),
        snapshot_path: "/var/lib/synapse/snapshot.json".into(),
        audit_interval: Duration::from_secs(30),
        max_stale: None,
        startup_wait: Duration::from_secs(1),
        coalesce: (Duration::from_millis(20), Duration::from_millis(250)),
    }
}

fn service(
    name: &str,
    path: &str,
    edit: impl FnOnce(&mut Service, &mut ServiceHaproxy),
) -> Service {
    let mut haproxy = ServiceHaproxy {
        port: None,
        bind_address: "localhost".to_owned(),
        bind_options: None,
        server_options: String::new(),
        frontend: Vec::new(),
        backend: Vec::new(),
        shared_frontend: Vec::new(),
        backend_name: name.to_owned(),
        backend_order: BackendOrder::Shuffle,
        cookie_hash: false,
        admit: synapse::config::Admit::Ready,
    };
    let mut service = Service {
        name: name.to_owned(),
        discovery: Discovery::Zookeeper {
            ensemble: Ensemble::new(&["zk:2181"]).unwrap(),
            path: ZkPath::new(path).unwrap(),
            decode: Decode::Nerve,
        },
        label_filters: Vec::new(),
        default_servers: Vec::new(),
        keep_default_servers: false,
        use_previous_backends: true,
        backend_port_override: None,
        leader_election: false,
        haproxy: None,
        disabled: None,
        guard: synapse::config::guard::Settings::default(),
    };
    edit(&mut service, &mut haproxy);
    service.haproxy = Some(haproxy);
    service
}

type Registry<'a> = &'a [(&'a str, &'a str)];

/// The servers of a service, from the full path of each znode and its data to lines in their order.
fn servers(config: &Config, service: &Service, registry: Registry<'_>) -> Vec<Identified> {
    let Discovery::Zookeeper { path, .. } = &service.discovery else {
        panic!("no path")
    };
    let children = registry.iter().filter_map(|(znode, data)| {
        let (parent, name) = znode.rsplit_once('/').unwrap();
        (parent == path.as_str()).then(|| {
            (
                name.to_owned(),
                Child {
                    data: data.as_bytes().into(),
                    czxid: 1,
                    mzxid: 1,
                },
            )
        })
    });
    let view = SourceView {
        children: Arc::new(children.collect()),
        confirmed: true,
        ..SourceView::default()
    };
    let resolved = |host: &str| (host == "app.example").then(|| [192, 0, 2, 7].into());
    let desired = funnel(Input {
        awaited: &|_| false,
        service,
        view: &view,
        held: &BTreeSet::new(),
        previous: &Previous::None,
        resolved: &resolved,
        allowed_options: &config.haproxy.allowed_server_options,
        circle: &|_, _| None,
        memo: &std::cell::RefCell::default(),
    });
    let given = ids::allocate(
        |_| None,
        &HashSet::new(),
        &BTreeMap::new(),
        &desired.servers,
        HashSet::new(),
        config.haproxy.max_server_id,
    );
    let servers = desired.servers.into_iter().zip(given.ids);
    let mut servers: Vec<Identified> = servers
        .map(|(server, id)| Identified { server, id })
        .collect();
    let seed = config
        .haproxy
        .server_order_seed
        .as_deref()
        .unwrap_or_default();
    order::arrange(
        &mut servers,
        service.haproxy.as_ref().unwrap().backend_order,
        seed,
        &service.name,
    );
    servers
}

fn file(config: &Config, registry: Registry<'_>) -> String {
    let renderer = Renderer::new(config).unwrap();
    assert_eq!(renderer.check_variables(), Vec::<String>::new());
    let mut text = renderer.render_frame("0123456789abcdef").unwrap();
    for service in config
        .services
        .iter()
        .filter(|service| service.haproxy.is_some())
    {
        text += &renderer
            .render_service(service, &servers(config, service, registry))
            .unwrap();
    }
    text + &renderer.render_shared(&config.services).unwrap()
}

fn golden_path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name)
}

/// The text is the file's, haproxy takes it, and every line is tidy.
fn assert_golden(name: &str, text: &str) {
    let path = golden_path(name);
    if std::env::var("GOLDEN").is_ok_and(|v| v == "overwrite") {
        std::fs::File::create(&path)
            .unwrap()
            .write_all(text.as_bytes())
            .unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, expected, "differs from {}", path.display());
    assert!(text.ends_with('\n') && !text.ends_with("\n\n"));
    assert!(
        text.lines().all(|line| line.trim_end() == line),
        "trailing blanks"
    );
    haproxy_accepts(text);
}

fn haproxy_accepts(text: &str) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    let search: Vec<PathBuf> = std::env::var_os("PATH")
        .iter()
        .flat_map(std::env::split_paths)
        .collect();
    let program = search
        .into_iter()
        .chain(["/usr/sbin".into(), "/usr/local/sbin".into()])
        .map(|folder| folder.join("haproxy"))
        .find(|program| program.is_file())
        .expect("haproxy is not installed: make deps");
    let out = Command::new(program)
        .args(["-c", "-f"])
        .arg(file.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{said}");
    // What a `mode tcp` service always draws from haproxy when an http option stands in `defaults`.
    let usual = [
        "option idle-close-on-response' ignored for frontend",
        "log format ignored for frontend",
    ];
    let odd = said
        .lines()
        .find(|line| line.contains("[WARNING]") && !usual.iter().any(|text| line.contains(text)));
    assert_eq!(odd, None, "{said}");
}

const REGISTRY: Registry<'_> = &[
    (
        "/ex/users/i-a_0000000001",
        r#"{"host":"127.0.0.1","port":9001,"name":"i-a","weight":5,"labels":{"az":"us-east-1a"}}"#,
    ),
    (
        "/ex/users/i-b_0000000002",
        r#"{"host":"127.0.0.1","port":9002,"name":"i-b","haproxy_server_options":"weight 7 backup"}"#,
    ),
    (
        "/ex/db/i-c_0000000001",
        r#"{"host":"127.0.0.1","port":9003}"#,
    ),
    (
        "/ex/bare/x_0000000001",
        r#"{"host":"127.0.0.1","port":9001,"name":"i-a"}"#,
    ),
];

/// A configuration that was run with Airbnb's synapse 0.18.9; its output is `golden/worked-example.ruby.cfg`.
fn worked_example() -> Config {
    let mut config = config(
        &[
            "maxconn 512",
            "stats socket /run/haproxy/admin.sock mode 666 level admin",
        ],
        &[
            "mode http",
            "timeout connect 1s",
            "timeout client 5s",
            "timeout server 5s",
        ],
    );
    config.haproxy.extra_sections = vec![(
        "listen stats".to_owned(),
        lines(&["bind 127.0.0.1:3212", "stats enable", "stats uri /"]),
    )];
    config.haproxy.shared_frontend = Some(lines(&["mode http", "bind 127.0.0.1:8081"]));
    let fallback = DefaultServer {
        name: Some("fallback".to_owned()),
        host: "127.0.0.1".to_owned(),
        port: 9003,
        weight: None,
        haproxy_server_options: None,
        haproxy_server_id: None,
        labels: BTreeMap::new(),
    };
    config.services = vec![
        service("users", "/ex/users", |service, haproxy| {
            service.default_servers = vec![fallback];
            haproxy.port = Some(FrontendPort::Port(3213));
            haproxy.backend_order = BackendOrder::Asc;
            haproxy.server_options = "check inter 2s rise 3 fall 2".to_owned();
            haproxy.frontend = lines(&["mode http", "timeout  client 31s"]);
            haproxy.backend = lines(&["mode http", "option httpchk GET /"]);
            haproxy.shared_frontend = lines(&[
                "acl is_users hdr_dom(host) -i users.lb",
                "use_backend users if is_users",
            ]);
        }),
        service("db", "/ex/db", |_, haproxy| {
            haproxy.port = Some(FrontendPort::Port(3306));
            haproxy.bind_address = "127.0.0.2".to_owned();
            haproxy.bind_options = Some("accept-proxy".to_owned());
            haproxy.server_options = "check port %{port}".to_owned();
            haproxy.frontend = lines(&["mode tcp", "option tcplog"]);
            haproxy.backend = lines(&["mode tcp", "balance leastconn"]);
        }),
        service("bare", "/ex/bare", |_, haproxy| haproxy.cookie_hash = true),
        Service {
            haproxy: None,
            disabled: None,
            ..service("files_only", "/ex/db", |_, _| ())
        },
    ];
    config
}

#[test]
fn worked_example_is_stable_and_accepted() {
    assert_golden("worked-example.cfg", &file(&worked_example(), REGISTRY));
}

/// Apart from ids and the lines that are ours on purpose, every line of Ruby's file, in its order, is in ours.
#[test]
fn worked_example_differs_from_ruby_only_as_announced() {
    const OURS: [&str; 7] = [
        "hard-stop-after 1h",
        "max-spread-checks 1000",
        "stats timeout 60s",
        "option idle-close-on-response",
        "option redispatch 1",
        "timeout http-keep-alive 10s",
        "description synapse=0123456789abcdef",
    ];
    let comparable = |text: &str| -> Vec<String> {
        text.lines()
            .skip(1)
            .filter(|line| !OURS.contains(&line.trim()))
            .map(|line| line.trim_end().trim_end_matches(" expose-fd listeners"))
            .map(|line| match line.split_once(" id ") {
                Some((head, tail)) => format!(
                    "{head} id N{}",
                    tail.trim_start_matches(|c: char| c.is_ascii_digit())
                ),
                None => line.to_owned(),
            })
            .collect()
    };
    let ruby = std::fs::read_to_string(golden_path("worked-example.ruby.cfg")).unwrap();
    assert_eq!(
        comparable(&file(&worked_example(), REGISTRY)),
        comparable(&ruby)
    );
}

/// Both address families, a name, registry weights, odd names, options, default servers beside the registry; haproxy run
/// by synapse; lines of the user's that must not be doubled.
#[test]
fn everything_at_once_is_stable_and_accepted() {
    let mut config = config(
        &["description  web 1", "hard-stop-after 30s"],
        &[
            "mode http",
            "no option redispatch",
            "timeout connect 1s",
            "timeout client 5s",
            "timeout server 5s",
        ],
    );
    config.haproxy.reload = Reload::Supervise;
    config.haproxy.use_nerve_weights = true;
    config.services = vec![service("app", "/ex/app", |service, haproxy| {
        service.keep_default_servers = true;
        service.default_servers = vec![DefaultServer {
            name: None,
            host: "::1".to_owned(),
            port: 9,
            weight: Some(1),
            haproxy_server_options: Some("id 9 backup".to_owned()),
            haproxy_server_id: None,
            labels: BTreeMap::new(),
        }];
        haproxy.port = Some(FrontendPort::Port(3214));
        haproxy.backend = lines(&["balance roundrobin", "cookie SRV insert indirect nocache"]);
        haproxy.server_options = "check inter 2s weight 10".to_owned();
    })];
    let registry: Registry<'_> = &[
        (
            "/ex/app/a_0000000001",
            r#"{"host":"10.0.0.1","port":80,"name":"a","weight":0}"#,
        ),
        (
            "/ex/app/b_0000000002",
            r#"{"host":"2001:db8::1","port":"80","name":"b c,d","weight":300}"#,
        ),
        (
            "/ex/app/c_0000000003",
            r#"{"host":"app.example","port":80,"haproxy_server_options":"weight 7 maxconn 30 bogus"}"#,
        ),
        (
            "/ex/app/d_0000000004",
            r#"{"host":"10.0.0.4","port":80,"weight":256,"haproxy_server_options":"weight 7 cookie x id 4"}"#,
        ),
        (
            "/ex/app/e_0000000005",
            r#"{"host":"10.0.0.5","port":80,"name":"e\nserver evil 10.6.6.6:80"}"#,
        ),
        (
            "/ex/app/f_0000000006",
            r#"{"host":"dead.example","port":80}"#,
        ),
        ("/ex/app/g_0000000007", "garbage"),
    ];
    assert_golden("everything.cfg", &file(&config, registry));
}

#[test]
fn no_service_at_all_is_accepted() {
    let config = config(
        &[],
        &[
            "timeout connect 1s",
            "timeout client 5s",
            "timeout server 5s",
        ],
    );
    assert_golden("empty.cfg", &file(&config, &[]));
}

/// Whatever survives the gate is taken by haproxy as well: names, options and addresses at their limits.
#[test]
fn what_the_gate_lets_through_haproxy_takes() {
    let mut config = worked_example();
    config.services = vec![service("s", "/s", |_, haproxy| {
        haproxy.backend = lines(&["balance roundrobin"])
    })];
    let options = [
        "weight 0",
        "weight 256",
        "maxconn 2147483647",
        "minconn 0 maxconn 1",
        "maxqueue 0",
        "check inter 24d",
        "check inter 1",
        "check rise 1 fall 1000000",
        "slowstart 0",
        "slowstart 24d check",
        "disabled",
        "backup",
        "send-proxy",
        "send-proxy-v2",
        "fastinter 1ms downinter 5h check",
        "id 2147483647",
        "inter 1000us check",
        "weight 3 weight 4",
        "inter 25d",
        "rise 0",
        "id 0",
        "weight -1",
        "maxconn x",
        "observe layer4 on-error mark-down",
        "cookie x",
        "resolvers x",
        "pool-max-conn 3 tfo",
    ];
    let names = [
        "x".repeat(100),
        "-a".to_owned(),
        "a@b+c%d!e*(f)[g]{h}<i>=j~k^l|m&n,o?p/q r é".to_owned(),
        "_".to_owned(),
    ];
    let hosts = [
        "10.0.0.1",
        "::ffff:10.0.0.1",
        "2001:db8::1",
        "255.255.255.255",
        "app.example",
        "localhost",
    ];
    let payload = |n: usize, host: &str, name: &str, options: &str| {
        let data = serde_json::json!({"host": host, "port": 1 + n, "name": name, "haproxy_server_options": options});
        (format!("/s/x_{n:010}"), data.to_string())
    };
    let mut registry = Vec::new();
    for text in options {
        registry.push(payload(registry.len(), "10.0.0.1", "o", text));
    }
    for name in &names {
        registry.push(payload(registry.len(), "10.0.0.1", name, ""));
    }
    for host in hosts {
        registry.push(payload(registry.len(), host, "h", ""));
    }
    let registry: Vec<(&str, &str)> = registry
        .iter()
        .map(|(znode, data)| (znode.as_str(), data.as_str()))
        .collect();
    let text = file(&config, &registry);
    // `localhost` does not resolve here.
    assert_eq!(
        text.lines()
            .filter(|line| line.starts_with("\tserver "))
            .count(),
        registry.len() - 1
    );
    haproxy_accepts(&text);
}
