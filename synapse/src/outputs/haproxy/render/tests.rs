use super::*;
use crate::config::{BackendOrder, Decode, Discovery, Listeners, Reload, Templates};
use crate::model::server::Server;
use crate::outputs::haproxy::backend::ids::tests::server;
use smartstack_common::units::{Ensemble, ZkPath};
use std::time::Duration;

fn lines(text: &[&str]) -> Vec<String> {
    text.iter().map(|line| (*line).to_owned()).collect()
}

pub(crate) fn config() -> Config {
    Config {
        services: Vec::new(),
        haproxy: crate::config::Haproxy {
            global: lines(&["stats socket /run/h.sock level admin"]),
            defaults: lines(&["mode http"]),
            extra_sections: Vec::new(),
            places: std::collections::BTreeMap::new(),
            do_writes: true,
            do_reloads: true,
            do_socket: true,
            check_command: None,
            config_file_path: "/etc/haproxy.cfg".into(),
            candidate_config_file_path: "/etc/haproxy.cfg.tmp".into(),
            reload: Reload::Never,
            reload_timeout: Duration::from_secs(30),
            replace_hung_after: None,
            socket_file_path: vec!["/run/own.sock".into()],
            restart_interval: Duration::from_secs(2),
            restart_jitter: 0.0,
            state_file_path: None,
            admit: crate::config::Admit::Ready,
            server_order_seed: None,
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
        listeners: Listeners::default(),
        snapshot_path: "/var/lib/synapse/snapshot.json".into(),
        audit_interval: Duration::from_secs(30),
        max_stale: None,
        startup_wait: Duration::from_secs(1),
        coalesce: (Duration::from_millis(20), Duration::from_millis(250)),
    }
}

pub(crate) fn service(name: &str) -> Service {
    Service {
        name: name.to_owned(),
        discovery: Discovery::Zookeeper {
            ensemble: Ensemble::new(&["zk:2181"]).unwrap(),
            path: ZkPath::new("/ex").unwrap(),
            decode: Decode::Nerve,
        },
        label_filters: Vec::new(),
        default_servers: Vec::new(),
        keep_default_servers: false,
        use_previous_backends: true,
        backend_port_override: None,
        leader_election: false,
        haproxy: Some(ServiceHaproxy {
            port: Some(FrontendPort::Port(3213)),
            bind_address: "localhost".to_owned(),
            bind_options: None,
            server_options: String::new(),
            frontend: Vec::new(),
            backend: Vec::new(),
            shared_frontend: Vec::new(),
            backend_name: name.to_owned(),
            backend_order: BackendOrder::Asc,
            cookie_hash: false,
            admit: crate::config::Admit::Ready,
        }),
        disabled: None,
        guard: crate::config::guard::Settings::default(),
    }
}

fn with(service: Service, edit: impl FnOnce(&mut ServiceHaproxy)) -> Service {
    let mut service = service;
    edit(service.haproxy.as_mut().unwrap());
    service
}

fn one(server: Server) -> [Identified; 1] {
    [Identified {
        server: server.into(),
        id: 7,
    }]
}

fn last_line(config: &Config, service: &Service, server: Server) -> String {
    let text = Renderer::new(config)
        .unwrap()
        .render_service(service, &one(server))
        .unwrap();
    assert!(text.ends_with('\n') && !text.contains(" \n"), "{text:?}");
    text.lines().last().unwrap().trim_start().to_owned()
}

#[test]
fn a_service_begins_with_a_blank_line_and_ends_with_a_newline() {
    let renderer = Renderer::new(&config()).unwrap();
    let service = with(service("s"), |h| {
        h.bind_options = Some("accept-proxy ".to_owned());
        h.frontend = lines(&["timeout  client 31s"]);
        h.backend = lines(&["balance leastconn"]);
        h.backend_name = "other".to_owned();
    });
    assert_eq!(
        renderer.render_service(&service, &[]).unwrap(),
        "\nfrontend s\n\ttimeout  client 31s\n\tbind localhost:3213 accept-proxy\n\tdefault_backend other\n\nbackend other\n\tbalance leastconn\n"
    );
    let socket = with(service, |h| {
        h.port = Some(FrontendPort::AddressOnly);
        h.bind_address = "/run/s.sock".to_owned();
        h.bind_options = None;
    });
    assert!(
        renderer
            .render_service(&socket, &[])
            .unwrap()
            .contains("\tbind /run/s.sock\n")
    );
    let backend_only = with(socket, |h| h.port = None);
    assert_eq!(
        renderer.render_service(&backend_only, &[]).unwrap(),
        "\nbackend other\n\tbalance leastconn\n"
    );
    let off = Service {
        haproxy: None,
        ..backend_only
    };
    assert_eq!(renderer.render_service(&off, &[]).unwrap(), "");
}

#[test]
fn server_line_has_its_parts_in_rubys_order() {
    let (plain, weighted) = (config(), {
        let mut config = config();
        config.haproxy.use_nerve_weights = true;
        config
    });
    let checked = with(service("s"), |h| {
        h.server_options = "check  weight 3 port %{port}".to_owned()
    });
    let full = Server {
        weight: Some(0),
        options: Some("weight 7 backup".to_owned()),
        disabled: true,
        ..server("10.0.0.1", 80)
    };
    assert_eq!(
        last_line(&plain, &checked, full.clone()),
        "server 10.0.0.1:80 10.0.0.1:80 id 7 cookie 10.0.0.1:80 check  weight 3 port 80 weight 7 backup disabled"
    );
    assert_eq!(
        last_line(&weighted, &checked, full.clone()),
        "server 10.0.0.1:80 10.0.0.1:80 id 7 cookie 10.0.0.1:80 check port 80 backup weight 0 disabled"
    );
    assert_eq!(
        last_line(
            &weighted,
            &checked,
            Server {
                weight: None,
                disabled: false,
                ..full
            }
        ),
        "server 10.0.0.1:80 10.0.0.1:80 id 7 cookie 10.0.0.1:80 check  weight 3 port 80 weight 7 backup"
    );
    let tcp = with(service("s"), |h| h.backend = lines(&["mode  tcp"]));
    assert_eq!(
        last_line(&plain, &tcp, server("10.0.0.1", 80)),
        "server 10.0.0.1:80 10.0.0.1:80 id 7"
    );
    let stray = with(tcp.clone(), |h| {
        h.server_options = "sni %[req.hdr(host)] 100%% %{name} %{host}".to_owned()
    });
    assert_eq!(
        last_line(&plain, &stray, server("app.example", 80)),
        "server app.example:80 192.0.2.1:80 id 7 sni %[req.hdr(host)] 100% app.example:80 app.example"
    );
    assert_eq!(
        last_line(&plain, &tcp, server("2001:db8::1", 80)),
        "server 2001:db8::1:80 [2001:db8::1]:80 id 7"
    );
    let hashed = with(service("s"), |h| h.cookie_hash = true);
    let named = Server {
        name: "i-a_127.0.0.1:9001".to_owned(),
        ..server("127.0.0.1", 9001)
    };
    assert!(
        last_line(&plain, &hashed, named)
            .ends_with(" cookie 4d8952d341670a3f7836bf6ebaf6bb2e84fae46f")
    );
}

#[test]
fn html_is_not_escaped() {
    let text = with(service("s"), |h| {
        h.backend = lines(&["http-request deny if { path -m beg '/<x>&' }"])
    });
    let rendered = Renderer::new(&config())
        .unwrap()
        .render_service(&text, &[])
        .unwrap();
    assert!(rendered.contains("\thttp-request deny if { path -m beg '/<x>&' }\n"));
}

#[test]
fn generation_is_the_last_line_of_global_and_keeps_the_users_text() {
    let mut config = config();
    config.haproxy.global = lines(&["description old", "maxconn 9", "description  web 1 # mine"]);
    let renderer = Renderer::new(&config).unwrap();
    let frame = renderer.render_frame("0123456789abcdef").unwrap();
    assert!(
        frame.contains("\tmaxconn 9\n\tdescription web 1 synapse=0123456789abcdef\ndefaults\n"),
        "{frame}"
    );
    assert!(
        renderer
            .render_frame("")
            .unwrap()
            .contains("\tmaxconn 9\n\tdescription web 1\ndefaults\n")
    );
    config.haproxy.global = lines(&["maxconn 9"]);
    let renderer = Renderer::new(&config).unwrap();
    assert!(
        renderer
            .render_frame("")
            .unwrap()
            .contains("\tmaxconn 9\ndefaults\n")
    );
    assert!(
        renderer
            .render_frame("0")
            .unwrap()
            .contains("\tmaxconn 9\n\tdescription synapse=0\ndefaults\n")
    );
}

#[test]
fn lines_that_are_added_fit_the_version() {
    use crate::outputs::haproxy::version::Version;
    let config = config();
    let frame = |version: &str| {
        let renderer = Renderer::fitting(&config, Version::parse(version)).unwrap();
        renderer.render_frame("").unwrap()
    };
    let all = Renderer::new(&config).unwrap().render_frame("").unwrap();
    for new in ["2.6.12", "3.2.26", "4.0", "unknown"] {
        assert_eq!(frame(new), all, "{new}");
    }
    let without = all.replace("\toption idle-close-on-response\n", "");
    for old in ["2.2.9", "2.5.14", "1.8"] {
        assert_eq!(frame(old), without, "{old}");
    }
    // One of the user's own stays: it is refused with his line.
    let mut config = config;
    config.haproxy.defaults = lines(&["option idle-close-on-response"]);
    let renderer = Renderer::fitting(&config, Version::parse("2.2")).unwrap();
    let text = renderer.render_frame("").unwrap();
    assert!(text.contains("option idle-close-on-response"), "{text}");
}

#[test]
fn hitless_lines_are_added_unless_set_or_refused() {
    let mut config = config();
    let frame = |config: &Config| Renderer::new(config).unwrap().render_frame("").unwrap();
    let all = frame(&config);
    for line in [
        "\nglobal\n\thard-stop-after 1h\n\tmax-spread-checks 1000\n\tstats timeout 60s\n\tstats socket /run/h.sock level admin expose-fd listeners\ndefaults\n",
        "\ndefaults\n\toption idle-close-on-response\n\toption redispatch 1\n\ttimeout http-keep-alive 10s\n\tmode http\n",
    ] {
        assert!(all.contains(line), "{all}");
    }
    config.haproxy.global = lines(&[
        "stats  timeout 5s",
        "hard-stop-after 5s",
        "stats socket ipv4@127.0.0.1:9",
    ]);
    config.haproxy.defaults = lines(&[
        "no option redispatch",
        "timeout  http-keep-alive 1s",
        "# option idle-close-on-response",
    ]);
    let some = frame(&config);
    assert!(
        some.contains("global\n\tmax-spread-checks 1000\n\tstats  timeout 5s\n"),
        "{some}"
    );
    assert!(some.contains("stats socket ipv4@127.0.0.1:9\n"), "{some}");
    assert!(
        some.contains("defaults\n\toption idle-close-on-response\n\tno option redispatch\n"),
        "{some}"
    );

    config.haproxy.global.push("zero-warning".to_owned());
    assert_eq!(
        Renderer::new(&config).unwrap().missing_hitless(),
        ["option idle-close-on-response"]
    );
    config.haproxy.hitless_defaults = false;
    let renderer = Renderer::new(&config).unwrap();
    assert_eq!(
        renderer.missing_hitless(),
        ["max-spread-checks", "option idle-close-on-response"]
    );
    assert!(
        renderer
            .render_frame("")
            .unwrap()
            .contains("global\n\tstats  timeout 5s\n")
    );
}

#[test]
fn a_supervised_haproxy_gets_a_stats_socket() {
    let mut config = config();
    config.haproxy.reload = Reload::Supervise;
    assert!(
        !Renderer::new(&config)
            .unwrap()
            .render_frame("")
            .unwrap()
            .contains("own.sock")
    );
    config.haproxy.global.clear();
    config.haproxy.hitless_defaults = false;
    let frame = Renderer::new(&config).unwrap().render_frame("").unwrap();
    assert!(frame.contains(
        "global\n\tstats socket /run/own.sock mode 600 level admin expose-fd listeners\ndefaults\n"
    ));
}

#[test]
fn something_always_listens() {
    let mut config = config();
    let standby = |config: &Config| {
        Renderer::new(config)
            .unwrap()
            .render_frame("")
            .unwrap()
            .contains("\nfrontend synapse-standby\n")
    };
    assert!(!standby(&config), "a stats socket listens");
    config.haproxy.global.clear();
    assert!(standby(&config));
    config.services = vec![service("s")];
    assert!(!standby(&config));
    config.services = vec![with(service("s"), |h| h.port = None)];
    assert!(standby(&config));
    config.haproxy.extra_sections = vec![("listen stats".to_owned(), lines(&["bind 127.0.0.1:1"]))];
    assert!(!standby(&config));
}

fn template(text: &str) -> Option<TemplateText> {
    Some(TemplateText {
        path: "/etc/synapse/my.tera".into(),
        text: text.to_owned(),
    })
}

#[test]
fn a_template_that_does_not_parse_is_refused_with_its_place() {
    let mut config = config();
    config.haproxy.templates.service = template("backend {{ service.name }}\n{% for s in %}");
    let error = Renderer::new(&config).err().unwrap();
    assert_eq!(
        (error.place.file.as_str(), error.place.at.map(|at| at.0)),
        ("/etc/synapse/my.tera", Some(2)),
        "{error}"
    );
    assert!(!error.to_string().contains('\n'), "{error}");
    config.haproxy.templates.service = template("{{ service.name | nope }}");
    assert!(
        Renderer::new(&config).is_err(),
        "an unknown filter is found at once"
    );
}

#[test]
fn a_template_that_fails_for_one_service_fails_for_that_one_only() {
    let mut config = config();
    config.haproxy.templates.service = template(
        "backend {{ service.name }}\n{% if service.name == 'bad' %}{{ service.nope }}{% endif %}",
    );
    let renderer = Renderer::new(&config).unwrap();
    assert_eq!(
        renderer.render_service(&service("good"), &[]).unwrap(),
        "backend good\n"
    );
    let error = renderer.render_service(&service("bad"), &[]).unwrap_err();
    assert_eq!(
        (error.service.as_deref(), error.place.at.map(|at| at.0)),
        (Some("bad"), Some(2)),
        "{error}"
    );
    assert!(
        error
            .to_string()
            .starts_with("template `/etc/synapse/my.tera:2:"),
        "{error}"
    );
}

#[test]
fn unknown_variables_are_named() {
    assert_eq!(
        Renderer::new(&config()).unwrap().check_variables(),
        Vec::<String>::new()
    );
    let mut config = config();
    config.haproxy.templates.global = template("global\n{{ globl }}");
    let warnings = Renderer::new(&config).unwrap().check_variables();
    assert_eq!(warnings.len(), 1);
    assert!(
        warnings[0].contains("uses `globl`") && warnings[0].contains("`global`"),
        "{warnings:?}"
    );
}

#[test]
fn a_whole_file_template_gets_everything_and_may_include_the_built_in_ones() {
    let mut config = config();
    config.haproxy.shared_frontend = Some(lines(&["bind :1"]));
    let shared = with(service("a"), |h| {
        h.shared_frontend = lines(&["use_backend a"])
    });
    let services = [
        (&shared, &one(server("10.0.0.1", 80))[..]),
        (&service("b"), &[][..]),
    ];
    let plain = Renderer::new(&config).unwrap();
    assert!(!plain.is_whole() && plain.render_whole("g", &services).is_none());
    let fragments = [
        plain.render_frame("g").unwrap(),
        plain.render_service(services[0].0, services[0].1).unwrap(),
        plain.render_service(services[1].0, services[1].1).unwrap(),
        plain
            .render_shared(services.iter().map(|(service, _)| *service))
            .unwrap(),
    ];
    config.haproxy.templates.whole = template(
        "{% include \"global.cfg.tera\" %}{% for service in services %}{% include \"service.cfg.tera\" %}{% endfor %}{% include \"shared_frontend.cfg.tera\" %}",
    );
    let whole = Renderer::new(&config).unwrap();
    assert!(whole.is_whole());
    assert_eq!(whole.check_variables(), Vec::<String>::new());
    assert_eq!(
        whole.render_whole("g", &services).unwrap().unwrap(),
        fragments.concat()
    );
}

/// `listen a`, `listen b` and three lines of `global`.
fn with_sections() -> Config {
    let mut config = config();
    config.haproxy.global.push("log  stdout local0".to_owned());
    config
        .haproxy
        .global
        .push("description of the user".to_owned());
    config.haproxy.extra_sections = ["a", "b"]
        .map(|name| (format!("listen  {name}"), lines(&["bind 127.0.0.1:1"])))
        .to_vec();
    config
}

fn model(text: &str) -> Model {
    Model::parse(text, Ours::All)
}

#[test]
fn parts_of_the_frame_are_found_and_left_out_alone() {
    let whole = Renderer::new(&with_sections()).unwrap();
    let text = whole.render_frame("0123456789abcdef").unwrap();
    let sections = model(&text).sections;
    let at = |keyword: &str, name: &str, line: Option<&str>| {
        let section = sections
            .iter()
            .find(|s| s.keyword == keyword && s.name == name);
        whole.part_at(section.unwrap(), line)
    };
    // A line that gets `expose-fd listeners`, one of the template's own, a section by its title and by a line.
    let socket = "stats socket /run/h.sock level admin expose-fd listeners";
    assert!(text.contains(socket), "{text}");
    assert_eq!(at("global", "", Some(socket)), Some(Part::Global(0)));
    assert_eq!(
        at("global", "", Some("log  stdout local0")),
        Some(Part::Global(1))
    );
    assert_eq!(at("global", "", Some("hard-stop-after 1h")), None);
    assert_eq!(
        at("defaults", "", Some("mode http")),
        Some(Part::Defaults(0))
    );
    assert_eq!(at("listen", "b", None), Some(Part::Section(1)));
    assert_eq!(
        at("listen", "a", Some("bind 127.0.0.1:1")),
        Some(Part::Section(0))
    );
    assert_eq!(whole.parts().len(), 6);

    let less = whole.without(Part::Section(0)).without(Part::Global(1));
    let text = less.render_frame("").unwrap();
    assert!(
        !text.contains("listen  a") && !text.contains("stdout"),
        "{text}"
    );
    assert!(
        text.contains("listen  b") && text.contains("of the user"),
        "{text}"
    );
    assert_eq!(less.parts().len(), 4);
    // Another configuration with the same line still has it left out.
    let mut other = with_sections();
    other.haproxy.global.insert(0, "maxconn 7".to_owned());
    let other = Renderer::new(&other).unwrap();
    assert!(less.leaves_out(&other, Part::Global(2)));
    assert!(!less.leaves_out(&other, Part::Global(0)));
    // A section in the form that a good frame has, once.
    let mut changed = with_sections();
    changed.haproxy.extra_sections[1].1 = lines(&["bind 127.0.0.1:2"]);
    let changed = Renderer::new(&changed).unwrap();
    let former = changed.with_section_of(Part::Section(1), &whole).unwrap();
    assert_eq!(
        model(&former.render_frame("").unwrap()).sections,
        model(&whole.render_frame("").unwrap()).sections
    );
    assert!(former.with_section_of(Part::Section(1), &whole).is_none());
    assert!(
        changed
            .with_section_of(Part::Section(1), &less.without(Part::Section(1)))
            .is_none()
    );
}

#[test]
fn a_frame_is_read_back_from_the_file_without_the_services() {
    let mut config = with_sections();
    config.haproxy.shared_frontend = Some(lines(&["bind 127.0.0.1:3", "mode http"]));
    let shared = with(service("web"), |h| {
        h.shared_frontend = lines(&["use_backend web if TRUE"]);
    });
    let renderer = Renderer::new(&config).unwrap();
    let frame = renderer.render_frame("0123456789abcdef").unwrap();
    let file = frame
        + &renderer.render_service(&service("web"), &[]).unwrap()
        + &renderer.render_service(&service("gone"), &[]).unwrap()
        + &renderer.render_shared([&shared]).unwrap();
    let ours = |section: &Section| ["web", "gone"].contains(&section.name.as_str());

    // By now the configuration says something else.
    let mut other = config.clone();
    other.haproxy.global = lines(&["nosuchword"]);
    other.haproxy.extra_sections.clear();
    other.haproxy.shared_frontend = Some(lines(&[
        "mode http",
        "bind 127.0.0.1:4",
        "bind 127.0.0.1:3",
    ]));
    let kept = Renderer::new(&other).unwrap().of_file(&file, ours).unwrap();
    for generation in ["", "0123456789abcdef"] {
        assert_eq!(
            model(&kept.render_frame(generation).unwrap()).sections,
            model(&renderer.render_frame(generation).unwrap()).sections,
        );
    }
    let mark = "\tdescription of the user synapse=fedcba9876543210\n";
    assert!(
        kept.render_frame("fedcba9876543210")
            .unwrap()
            .contains(mark)
    );
    // Lines of the shared frontend that were good; none of a service.
    assert_eq!(
        kept.render_shared([]).unwrap().trim_end(),
        "\nfrontend shared-frontend\n\tmode http\n\tbind 127.0.0.1:3"
    );
    assert!(kept.parts().is_empty());
    // A file that is not ours says nothing.
    let foreign = renderer.render_frame("").unwrap();
    assert!(renderer.of_file(&foreign, ours).is_none());
}
