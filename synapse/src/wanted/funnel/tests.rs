use super::*;
use crate::config::{Decode, DefaultServer, Discovery, LabelFilter};
use crate::model::source::Child;
use crate::wanted::gate::is_name_char;
use proptest::prelude::*;
use serde_json::{Value, json};
use smartstack_common::units::{Ensemble, ZkPath};
use std::collections::BTreeMap;

fn service() -> Service {
    Service {
        name: "users".to_owned(),
        discovery: Discovery::Zookeeper {
            ensemble: Ensemble::new(&["zk:2181"]).unwrap(),
            path: ZkPath::new("/ex/users").unwrap(),
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
        guard: crate::config::guard::Settings::default(),
    }
}

fn default_server(host: &str, port: u16) -> DefaultServer {
    DefaultServer {
        name: None,
        host: host.to_owned(),
        port,
        weight: None,
        haproxy_server_options: None,
        haproxy_server_id: None,
        labels: BTreeMap::new(),
    }
}

fn label(label: &str, value: Value, equals: bool) -> LabelFilter {
    LabelFilter {
        label: label.to_owned(),
        value,
        equals,
    }
}

fn view<N: AsRef<str>, D: AsRef<[u8]>>(children: &[(N, D)]) -> SourceView {
    let child = |data: &[u8], n: usize| Child {
        data: data.into(),
        czxid: n as i64,
        mzxid: n as i64,
    };
    let children = children
        .iter()
        .enumerate()
        .map(|(n, (z, d))| (z.as_ref().to_owned(), child(d.as_ref(), n)));
    SourceView {
        children: Arc::new(children.collect()),
        confirmed: true,
        ..SourceView::default()
    }
}

/// One instance per name, host 10.0.0.<sequence>, as `<name>_<sequence>`.
fn instances(names: &[(&str, u8)]) -> SourceView {
    let children: Vec<(String, String)> = names
        .iter()
        .map(|(name, n)| {
            let data = json!({"host": format!("10.0.0.{n}"), "port": 80, "name": name, "labels": {"n": n}});
            (format!("{name}_{n:010}"), data.to_string())
        })
        .collect();
    view(&children)
}

fn resolved(host: &str) -> Option<IpAddr> {
    (!host.starts_with("dead")).then(|| IpAddr::from([192, 0, 2, 1]))
}

fn run_after(service: &Service, view: &SourceView, previous: &Previous) -> ServiceDesired {
    funnel(Input {
        awaited: &|_| false,
        service,
        view,
        held: &BTreeSet::new(),
        previous,
        resolved: &resolved,
        allowed_options: &[],
        circle: &|_, _| None,
        memo: &std::cell::RefCell::default(),
    })
}

fn run(service: &Service, view: &SourceView) -> ServiceDesired {
    run_after(service, view, &Previous::None)
}

fn names(desired: &ServiceDesired) -> Vec<&str> {
    desired
        .servers
        .iter()
        .map(|server| server.name.as_str())
        .collect()
}

#[test]
fn discovery_order_is_the_sequence_number() {
    let desired = run(&service(), &instances(&[("b", 2), ("a", 10), ("c", 1)]));
    assert_eq!(
        names(&desired),
        ["c_10.0.0.1:80", "b_10.0.0.2:80", "a_10.0.0.10:80"]
    );
    assert_eq!(desired.origin, Origin::Live);
    assert_eq!(desired.servers[0].sequence, Some(1));
    assert_eq!(desired.servers[0].znode.as_deref(), Some("c_0000000001"));
}

/// The hostile znodes of the fault list: each is refused with a reason, its siblings are served.
#[test]
fn a_bad_znode_costs_that_znode_only() {
    let big = format!(
        r#"{{"host":"10.0.0.9","port":80,"name":"{}"}}"#,
        "x".repeat(900_000)
    );
    let deep = "[".repeat(100_000);
    let hostile: Vec<(&str, &[u8])> = vec![
        ("garbage", b"\xff\xfe\x00garbage"),
        ("empty", b""),
        ("null", b"null"),
        ("array", b"[]"),
        ("number", b"7"),
        ("text", b"10.0.0.9:80"),
        ("deep", deep.as_bytes()),
        ("900kB", big.as_bytes()),
        ("null host", br#"{"host":null,"port":80}"#),
        ("newline in host", br#"{"host":"10.0.0.9\n","port":80}"#),
        ("space in host", br#"{"host":"10.0.0.9 x","port":80}"#),
        ("hash in host", br#"{"host":"a#b","port":80}"#),
        ("quote in host", br#"{"host":"a\"b","port":80}"#),
        ("percent in host", br#"{"host":"a%b","port":80}"#),
        ("variable in host", br#"{"host":"${HOME}","port":80}"#),
        ("newline in name", br#"{"host":"10.0.0.9","port":80,"name":"a\n\tserver evil 1.2.3.4:80"}"#),
        ("hash in name", br#"{"host":"10.0.0.9","port":80,"name":"a#b"}"#),
        ("quote in name", br#"{"host":"10.0.0.9","port":80,"name":"a'b"}"#),
        ("newline in options", br#"{"host":"10.0.0.9","port":80,"haproxy_server_options":"backup\n\tserver e 1.2.3.4:80"}"#),
        ("hash in options", br#"{"host":"10.0.0.9","port":80,"haproxy_server_options":"backup # x"}"#),
        ("quote in options", br#"{"host":"10.0.0.9","port":80,"haproxy_server_options":"cookie \"x\""}"#),
        ("TLS", br#"{"host":"10.0.0.9","port":80,"haproxy_server_options":"ssl verify none"}"#),
        ("check elsewhere", br#"{"host":"10.0.0.9","port":80,"haproxy_server_options":"check port 81"}"#),
        ("a list of options", br#"{"host":"10.0.0.9","port":80,"haproxy_server_options":["backup"]}"#),
        ("port 0", br#"{"host":"10.0.0.9","port":0}"#),
        ("port -1", br#"{"host":"10.0.0.9","port":-1}"#),
        ("port 99999", br#"{"host":"10.0.0.9","port":99999}"#),
        ("port abc", br#"{"host":"10.0.0.9","port":"abc"}"#),
        ("no port", br#"{"host":"10.0.0.9"}"#),
        ("unresolvable", br#"{"host":"dead.example","port":80}"#),
        ("base64_8_bnVsbA==_1", b""),
    ];
    let good: &[u8] = br#"{"host":"10.0.0.1","port":80,"name":"good"}"#;
    for (znode, data) in &hostile {
        let desired = run(
            &service(),
            &view(&[(*znode, *data), ("good_0000000001", good)]),
        );
        assert_eq!(names(&desired), ["good_10.0.0.1:80"], "{znode}");
        assert_eq!(desired.rejected.len(), 1, "{znode}");
        assert_eq!(&desired.rejected[0].znode, znode);
        let reason = &desired.rejected[0].reason;
        assert!(
            !reason.is_empty() && reason.len() < 300 && !reason.contains('\n'),
            "{znode}: {reason}"
        );
    }
    let mut all = hostile.clone();
    all.push(("good_0000000001", good));
    let desired = run(&service(), &view(&all));
    assert_eq!(
        (names(&desired), desired.rejected.len()),
        (vec!["good_10.0.0.1:80"], hostile.len())
    );
}

#[test]
fn odd_but_harmless_znodes_are_used() {
    for (data, name, left_out) in [
        (
            r#"{"host":"10.0.0.9","port":"80","name":7}"#,
            "7_10.0.0.9:80",
            0,
        ),
        (
            r#"{"host":"10.0.0.9","port":80,"name":"a b%c"}"#,
            "a_b_c_10.0.0.9:80",
            0,
        ),
        (
            r#"{"host":"10.0.0.9","port":80,"weight":300}"#,
            "10.0.0.9:80",
            1,
        ),
        (
            r#"{"host":"10.0.0.9","port":80,"haproxy_server_options":"weight 300 bogus"}"#,
            "10.0.0.9:80",
            2,
        ),
        (
            r#"{"host":"10.0.0.9","port":80,"haproxy_server_options":null,"labels":"x"}"#,
            "10.0.0.9:80",
            0,
        ),
        (
            r#"{"host":"10.0.0.9","port":80,"labels":{"evil":"a\nb'$;"}}"#,
            "10.0.0.9:80",
            0,
        ),
        (r#"{"host":"app.example","port":80}"#, "app.example:80", 0),
    ] {
        let desired = run(&service(), &view(&[("x_1", data)]));
        assert_eq!(
            (names(&desired), desired.left_out.len()),
            (vec![name], left_out),
            "{data}: {:?}",
            desired.left_out
        );
        assert_eq!(desired.rejected, Vec::new());
    }
}

#[test]
fn withdrawn_is_not_rejected() {
    let desired = run(
        &service(),
        &view(&[
            ("a_1", r#"{"host":"10.0.0.1","port":80}"#),
            ("b_2", r#"{"host":"10.0.0.2","port":80,"available":false}"#),
        ]),
    );
    assert_eq!(
        (names(&desired), desired.withdrawn.as_slice()),
        (vec!["10.0.0.1:80"], &["b_2".to_owned()][..])
    );
    assert_eq!(desired.rejected, Vec::new());
}

#[test]
fn of_duplicates_the_newest_stays() {
    let twin =
        |weight| json!({"host": "10.0.0.1", "port": 80, "name": "a", "weight": weight}).to_string();
    let desired = run(
        &service(),
        &view(&[
            ("a_0000000009", twin(9)),
            ("a_0000000010", twin(10)),
            ("a_0000000002", twin(2)),
        ]),
    );
    assert_eq!(
        (names(&desired), desired.servers[0].weight),
        (vec!["a_10.0.0.1:80"], Some(10))
    );
    assert_eq!(desired.notes.len(), 2);
    // Equal only after mapping: two equal names would be fatal to haproxy's file.
    let mapped = |name: &str| json!({"host": "10.0.0.1", "port": 80, "name": name}).to_string();
    let desired = run(
        &service(),
        &view(&[("a_1", mapped("a b")), ("a_2", mapped("a,b"))]),
    );
    assert_eq!(
        (names(&desired), desired.servers[0].sequence),
        (vec!["a_b_10.0.0.1:80"], Some(2))
    );
    // Two names on one address are two servers, as in Ruby.
    let desired = run(
        &service(),
        &view(&[("a_1", mapped("a")), ("b_2", mapped("b"))]),
    );
    assert_eq!(desired.servers.len(), 2);
}

#[test]
fn fallback_of_an_empty_registry() {
    let none = view::<&str, &str>(&[]);
    let some = instances(&[("a", 1)]);
    let plain = service();
    let with_defaults = Service {
        default_servers: vec![default_server("127.0.0.1", 9)],
        ..service()
    };
    let no_previous = Service {
        use_previous_backends: false,
        ..service()
    };

    let first = run(&plain, &some);
    assert_eq!(
        first.previous,
        Previous::Children(Arc::clone(&some.children))
    );
    let held = run_after(&plain, &none, &first.previous);
    assert_eq!(
        (names(&held), held.origin),
        (vec!["a_10.0.0.1:80"], Origin::Held)
    );
    assert_eq!(held.previous, first.previous, "held again next time");

    let defaulted = run_after(&with_defaults, &none, &first.previous);
    assert_eq!(
        (names(&defaulted), defaulted.origin),
        (vec!["127.0.0.1:9"], Origin::Defaults)
    );

    let emptied = run_after(&no_previous, &none, &first.previous);
    assert_eq!((names(&emptied), emptied.origin), (vec![], Origin::Live));
    assert_eq!(names(&run(&plain, &none)), Vec::<&str>::new());

    // Only garbage, and only withdrawn instances, are as empty as nothing.
    let garbage = view(&[
        ("x", "garbage"),
        ("y", r#"{"host":"10.0.0.2","port":80,"available":false}"#),
    ]);
    let held = run_after(&plain, &garbage, &first.previous);
    assert_eq!(
        (names(&held), held.rejected.len(), held.withdrawn.len()),
        (vec!["a_10.0.0.1:80"], 1, 1)
    );
}

#[test]
fn servers_found_elsewhere_are_held_as_they_are() {
    let seed = Previous::Servers(
        [crate::outputs::haproxy::backend::ids::tests::server("10.0.0.7", 80).into()].into(),
    );
    let choosy = Service {
        label_filters: vec![label("x", json!(1), true)],
        leader_election: true,
        ..service()
    };
    let held = run_after(&choosy, &view::<&str, &str>(&[]), &seed);
    assert_eq!(
        (names(&held), held.origin, &held.previous),
        (vec!["10.0.0.7:80"], Origin::Held, &seed)
    );
    let unconfirmed = SourceView {
        confirmed: false,
        ..instances(&[("a", 1)])
    };
    assert_eq!(
        run_after(&service(), &unconfirmed, &seed).origin,
        Origin::Snapshot
    );
}

#[test]
fn default_servers_and_the_port_override() {
    let mut service = Service {
        default_servers: vec![
            default_server("10.0.0.1", 9),
            default_server("127.0.0.1", 9),
            default_server("bad host", 9),
        ],
        keep_default_servers: true,
        backend_port_override: Some(8080),
        ..service()
    };
    let registered = view(&[("x_1", r#"{"host":"10.0.0.1","port":80,"weight":3}"#)]);
    let desired = run(&service, &registered);
    assert_eq!(
        names(&desired),
        ["10.0.0.1:8080", "127.0.0.1:8080"],
        "joined before the override and the dedup"
    );
    assert_eq!(
        desired.servers[0].weight,
        Some(3),
        "the registry's entry wins over the default"
    );
    assert_eq!(desired.rejected[0].znode, "default_servers[2]");

    service.keep_default_servers = false;
    let desired = run(&service, &view::<&str, &str>(&[]));
    assert_eq!(
        names(&desired),
        ["10.0.0.1:9", "127.0.0.1:9"],
        "standing in for nothing: raw, as in Ruby"
    );
}

#[test]
fn label_filters_come_last() {
    let registered = view(&[
        (
            "a_1",
            r#"{"host":"10.0.0.1","port":80,"labels":{"az":"a","n":1}}"#,
        ),
        (
            "b_2",
            r#"{"host":"10.0.0.2","port":80,"labels":{"az":"b","n":"1"}}"#,
        ),
        ("c_3", r#"{"host":"10.0.0.3","port":80}"#),
    ]);
    for (filters, kept) in [
        (vec![label("az", json!("a"), true)], vec!["10.0.0.1:80"]),
        (
            vec![label("az", json!("a"), false)],
            vec!["10.0.0.2:80", "10.0.0.3:80"],
        ),
        (vec![label("n", json!(1), true)], vec!["10.0.0.1:80"]),
        (vec![label("az", Value::Null, true)], vec!["10.0.0.3:80"]),
        (
            vec![label("az", json!("a"), true), label("n", json!("1"), true)],
            vec![],
        ),
    ] {
        let service = Service {
            label_filters: filters.clone(),
            default_servers: vec![default_server("127.0.0.1", 9)],
            ..service()
        };
        let desired = run(&service, &registered);
        assert_eq!(names(&desired), kept, "{filters:?}");
        assert_eq!(desired.filtered.len(), 3 - kept.len());
        assert_eq!(
            desired.origin,
            Origin::Live,
            "a filter that leaves nothing is no reason to fall back"
        );
    }
    let service = Service {
        label_filters: vec![label("az", json!("a"), true)],
        default_servers: vec![default_server("127.0.0.1", 9)],
        ..service()
    };
    assert_eq!(
        names(&run(&service, &view::<&str, &str>(&[]))),
        Vec::<&str>::new(),
        "defaults are filtered too"
    );
}

#[test]
fn what_is_only_held_is_marked_and_never_elected_while_anybody_is_registered() {
    let view = instances(&[("a", 1), ("b", 2), ("c", 3)]);
    let run = |leader_election, held: &[&str]| {
        let held = held.iter().map(|znode| (*znode).to_owned()).collect();
        funnel(Input {
            awaited: &|_| false,
            service: &Service {
                leader_election,
                ..service()
            },
            view: &view,
            held: &held,
            previous: &Previous::None,
            resolved: &resolved,
            allowed_options: &[],
            circle: &|_, _| None,
            memo: &std::cell::RefCell::default(),
        })
    };
    let (a, b, c) = ("a_0000000001", "b_0000000002", "c_0000000003");
    let some = run(false, &[a, c]);
    assert_eq!((some.servers.len(), some.held.len()), (3, 2));
    assert_eq!(some.origin, Origin::Live);
    assert_eq!(run(false, &[a, b, c]).origin, Origin::Held);
    assert_eq!(names(&run(true, &[])), ["a_10.0.0.1:80"]);
    assert_eq!(names(&run(true, &[a])), ["b_10.0.0.2:80"]);
    let all = run(true, &[a, b, c]);
    assert_eq!(names(&all), ["a_10.0.0.1:80"], "the one who was");
}

#[test]
fn leader_is_the_smallest_id_or_nobody() {
    let electing = Service {
        leader_election: true,
        ..service()
    };
    assert_eq!(
        names(&run(&electing, &instances(&[("b", 9), ("a", 10)]))),
        ["b_10.0.0.9:80"]
    );
    let unnumbered = view(&[
        ("a_1", r#"{"host":"10.0.0.1","port":80}"#),
        ("b", r#"{"host":"10.0.0.2","port":80}"#),
    ]);
    for _ in 0..3 {
        let desired = run(&electing, &unnumbered);
        assert_eq!(names(&desired), Vec::<&str>::new());
        assert_eq!(desired.filtered.len(), 2);
    }
    let filtered = Service {
        label_filters: vec![label("n", json!(10), true)],
        ..electing
    };
    assert_eq!(
        names(&run(&filtered, &instances(&[("b", 9), ("a", 10)]))),
        ["a_10.0.0.10:80"],
        "filters first"
    );
}

#[test]
fn skipped_znodes_are_shown() {
    let mut view = instances(&[("a", 1)]);
    view.skipped = Arc::new([("huge".to_owned(), "70000 bytes of data".to_owned())].into());
    assert_eq!(run(&service(), &view).rejected[0].znode, "huge");
}

fn payload() -> impl Strategy<Value = String> {
    let host = prop_oneof![
        "10\\.0\\.0\\.[1-9]",
        "dead[0-9]",
        ".{0,12}",
        "2001:db8::[1-9]",
        "[a-z]{1,5}\\.example"
    ];
    let name = prop_oneof!["[a-c]", ".{0,12}"];
    let options = prop_oneof![
        "((weight [0-9]{1,3}|backup|check|id [0-9]|bogus x) ?){0,4}",
        ".{0,20}"
    ];
    prop_oneof![
        9 => (host, 0u32..70_000, name, options, proptest::option::of(-5i64..300), any::<bool>()).prop_map(
            |(host, port, name, options, weight, available)| {
                let port = if port > 65_000 { port } else { port % 3 };
                json!({"host": host, "port": port, "name": name, "haproxy_server_options": options, "weight": weight,
                    "labels": {"n": port}, "available": available}).to_string()
            }
        ),
        1 => ".{0,30}",
    ]
}

proptest! {
    #[test]
    fn any_children_give_safe_unique_stable_servers(
        children in proptest::collection::btree_map("([a-c]|.{1,4})(_[0-9]{1,3})?", payload(), 0..12),
        keep: bool, previous_on: bool, elect: bool, override_port in proptest::option::of(1u16..),
        filter in proptest::option::of(0u32..3), defaults in 0usize..3,
    ) {
        let service = Service {
            keep_default_servers: keep,
            use_previous_backends: previous_on,
            leader_election: elect,
            backend_port_override: override_port,
            label_filters: filter.map(|n| label("n", json!(n), true)).into_iter().collect(),
            default_servers: (0..defaults).map(|n| default_server(&format!("10.0.0.{}", n + 1), 1)).collect(),
            ..service()
        };
        let children: Vec<(String, String)> = children.into_iter().collect();
        let view = view(&children);
        let first = run(&service, &view);
        let again = run_after(&service, &view, &first.previous);
        prop_assert_eq!(&run(&service, &view), &first);
        if first.origin == Origin::Live && !first.servers.is_empty() {
            prop_assert_eq!(&again, &first);
        }
        let unique: std::collections::BTreeSet<&str> = names(&first).into_iter().collect();
        prop_assert_eq!(unique.len(), first.servers.len());
        for server in &first.servers {
            prop_assert!(server.name.chars().all(is_name_char));
            prop_assert!(server.host.chars().all(is_name_char));
            prop_assert!(server.options.iter().all(|o| o.bytes().all(|b| (b' '..=b'~').contains(&b))));
        }
        for text in first.rejected.iter().map(|r| &r.reason).chain(first.notes.iter().chain(&first.left_out).map(|n| &n.text)) {
            prop_assert!(!text.chars().any(char::is_control), "{text:?}");
        }
        // Each znode is used, or refused, or withdrawn, or somebody's duplicate, or filtered: none is lost.
        if first.origin == Origin::Live && filter.is_none() && !elect {
            let used = first.servers.iter().filter(|s| s.znode.is_some()).count();
            let same = first.notes.iter().filter(|n| n.text.starts_with("same server") && !n.znode.starts_with("default")).count();
            let refused = first.rejected.iter().filter(|r| !r.znode.starts_with("default_servers[")).count();
            prop_assert_eq!(used + same + refused + first.withdrawn.len(), children.len());
        }
    }
}

#[test]
fn a_host_that_is_being_looked_up_is_not_refused_yet() {
    let mut service = service();
    service.default_servers = vec![
        default_server("db.local", 80),
        default_server("bad host", 80),
    ];
    let view = view(&[
        ("i_1", r#"{"host":"new.local","port":1}"#),
        ("i_2", r#"{"host":"old.local","port":1}"#),
    ]);
    let run = |awaited: &dyn Fn(&str) -> bool| {
        funnel(Input {
            service: &service,
            view: &view,
            held: &BTreeSet::new(),
            previous: &Previous::None,
            resolved: &|_| None,
            awaited,
            allowed_options: &[],
            circle: &|_, _| None,
            memo: &std::cell::RefCell::default(),
        })
    };
    let waiting = run(&|host| host != "old.local" && names::is_name(host));
    let refused: Vec<&str> = waiting.rejected.iter().map(|r| r.znode.as_str()).collect();
    assert_eq!(refused, ["i_2"]);
    let notes: Vec<&str> = waiting.notes.iter().map(|n| n.znode.as_str()).collect();
    assert!(
        notes.contains(&"i_1") && notes.contains(&"default_servers[0]"),
        "{notes:?}"
    );
    let all = run(&|_| false);
    assert_eq!(all.rejected.len(), 4, "{:?}", all.rejected);
}
