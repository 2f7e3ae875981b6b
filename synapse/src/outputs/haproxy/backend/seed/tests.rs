//! One table of choices, and what a chosen row is completed with.

use super::*;

fn row(name: &str, last: u8) -> Row {
    Row {
        name: name.to_owned(),
        address: Some(IpAddr::from([10, 0, 0, last])),
        port: 80,
        id: Some(u32::from(last)),
        weight: None,
        state: RowState::Ready,
        options: None,
    }
}

fn server(name: &str, last: u8, options: &str) -> Arc<Server> {
    Arc::new(Server {
        name: name.to_owned(),
        host: format!("10.0.0.{last}"),
        address: IpAddr::from([10, 0, 0, last]),
        port: 80,
        weight: Some(5),
        options: Some(options.to_owned()),
        explicit_id: None,
        znode: Some(format!("{name}_0000000001")),
        sequence: Some(1),
        disabled: false,
    })
}

fn names(seed: &Seed) -> Vec<&str> {
    seed.servers.iter().map(|s| s.name.as_str()).collect()
}

#[test]
fn the_best_source_with_a_usable_row_wins() {
    let (live, file) = ([row("live", 1)], [row("file", 2)]);
    let (snapshot, defaults) = (
        [server("snapshot", 3, "backup")],
        [server("default", 4, "backup")],
    );
    let retired = [Row {
        state: RowState::Retired,
        ..row("gone", 5)
    }];
    let unaddressed = [Row {
        address: None,
        ..row("name", 5)
    }];
    type Case<'a> = (
        Option<&'a [Row]>,
        Option<&'a [Row]>,
        &'a [Arc<Server>],
        &'a [Arc<Server>],
        Origin,
        &'a [&'a str],
    );
    let cases: [Case<'_>; 9] = [
        (
            Some(&live),
            Some(&file),
            &snapshot,
            &defaults,
            Origin::Live,
            &["live"],
        ),
        (
            None,
            Some(&file),
            &snapshot,
            &defaults,
            Origin::File,
            &["file"],
        ),
        (
            None,
            None,
            &snapshot,
            &defaults,
            Origin::Snapshot,
            &["snapshot"],
        ),
        (None, None, &[], &defaults, Origin::Defaults, &["default"]),
        (None, None, &[], &[], Origin::Defaults, &[]),
        // An empty backend may be filled by the next best.
        (
            Some(&[]),
            Some(&[]),
            &snapshot,
            &defaults,
            Origin::Snapshot,
            &["snapshot"],
        ),
        (
            Some(&retired),
            None,
            &snapshot,
            &defaults,
            Origin::Snapshot,
            &["snapshot"],
        ),
        (
            Some(&unaddressed),
            Some(&file),
            &snapshot,
            &defaults,
            Origin::File,
            &["file"],
        ),
        (
            Some(&retired),
            Some(&file),
            &[],
            &[],
            Origin::File,
            &["file"],
        ),
    ];
    for (live, file, snapshot, defaults, origin, expected) in cases {
        let (seed, _) = seed(&Inputs {
            live,
            file,
            snapshot,
            defaults,
            configured_options: "",
        });
        assert_eq!((seed.origin, names(&seed)), (origin, expected.to_vec()));
    }
}

#[test]
fn a_row_is_completed_by_the_snapshots_server_of_its_name_and_address() {
    let live = [
        row("a", 1),
        row("b", 2),
        Row {
            weight: Some(9),
            ..row("c", 3)
        },
    ];
    let snapshot = [
        server("a", 1, "backup"),
        server("b", 99, "backup"),
        server("c", 3, "maxconn 5"),
    ];
    let (seed, ids) = seed(&Inputs {
        live: Some(&live),
        snapshot: &snapshot,
        ..Inputs::default()
    });
    assert_eq!(seed.servers[0], snapshot[0]);
    assert_eq!(
        seed.servers[1].options, None,
        "another address is another server"
    );
    assert_eq!(
        seed.servers[1].address,
        IpAddr::from([10, 0, 0, 2]),
        "what runs is never re-addressed"
    );
    assert_eq!(seed.servers[1].znode, None);
    assert_eq!(
        (seed.servers[2].options.as_deref(), seed.servers[2].weight),
        (Some("maxconn 5"), Some(9))
    );
    assert_eq!(
        ids,
        BTreeMap::from([
            ("a".to_owned(), 1),
            ("b".to_owned(), 2),
            ("c".to_owned(), 3)
        ])
    );
}

#[test]
fn else_by_the_options_of_the_files_line() {
    let line = |name: &str, last, options: &str| Row {
        options: Some(options.to_owned()),
        ..row(name, last)
    };
    let live = [row("web-1_10.0.0.1:80", 1), row("x", 2)];
    let file = [
        line("web-1_10.0.0.1:80", 1, "check inter 2s set 10.0.0.1 backup"),
        line("x", 3, "check inter 2s backup"),
    ];
    let configured = "check inter  2s set %{host}";
    let (from_live, _) = seed(&Inputs {
        live: Some(&live),
        file: Some(&file),
        configured_options: configured,
        ..Inputs::default()
    });
    assert_eq!(from_live.servers[0].options.as_deref(), Some("backup"));
    assert_eq!(from_live.servers[0].host, "10.0.0.1");
    assert_eq!(
        from_live.servers[1].options, None,
        "the file has it at another address"
    );
    let (from_file, _) = seed(&Inputs {
        file: Some(&file),
        configured_options: configured,
        ..Inputs::default()
    });
    assert_eq!(from_file.servers[0].options.as_deref(), Some("backup"));
    assert_eq!(
        from_file.servers[1].options.as_deref(),
        Some("check inter 2s backup"),
        "its host differs"
    );
    let plain = [line("x", 3, "check  disabled")];
    let (bare, _) = seed(&Inputs {
        file: Some(&plain),
        configured_options: "check",
        ..Inputs::default()
    });
    assert_eq!(bare.servers[0].options, None);
}

#[test]
fn an_operators_maint_stays_and_a_drained_server_serves() {
    let live = [
        Row {
            state: RowState::Maint,
            ..row("a", 1)
        },
        Row {
            state: RowState::Drain,
            ..row("b", 2)
        },
    ];
    let snapshot = [server("a", 1, "backup")];
    let (seed, _) = seed(&Inputs {
        live: Some(&live),
        snapshot: &snapshot,
        ..Inputs::default()
    });
    assert_eq!(
        seed.servers.iter().map(|s| s.disabled).collect::<Vec<_>>(),
        [true, false]
    );
}

#[test]
fn the_host_is_read_from_the_name() {
    for (name, host) in [
        ("i-1_db.example:80", Some("db.example")),
        ("db.example:80", Some("db.example")),
        ("a_b_10.0.0.1:80", Some("10.0.0.1")),
        ("i-1_fe80::1:80", Some("fe80::1")),
        ("db.example:81", None),
        ("bare", None),
        (":80", None),
    ] {
        assert_eq!(host_of(name, 80).as_deref(), host, "{name}");
    }
}
