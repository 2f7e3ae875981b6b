use super::*;
use proptest::prelude::*;

fn resolved(host: &str) -> Option<IpAddr> {
    (host != "dead.example").then(|| IpAddr::from([192, 0, 2, 1]))
}

fn gate() -> Gate<'static> {
    Gate {
        resolved: &resolved,
        allowed_options: &[],
    }
}

fn candidate<'a>(host: &'a str, name: Option<&'a str>, options: Option<&'a str>) -> Candidate<'a> {
    Candidate {
        host,
        port: 80,
        name,
        weight: None,
        options,
        id: None,
        origin: Origin::Znode("x_1"),
    }
}

fn admit(
    host: &str,
    name: Option<&str>,
    options: Option<&str>,
) -> Result<(Server, Vec<String>), String> {
    gate().admit(&candidate(host, name, options))
}

#[test]
fn names_and_addresses() {
    for (host, name, expected, address) in [
        ("10.0.0.1", None, "10.0.0.1:80", "10.0.0.1"),
        ("10.0.0.1", Some("i-1"), "i-1_10.0.0.1:80", "10.0.0.1"),
        ("10.0.0.1", Some(""), "10.0.0.1:80", "10.0.0.1"),
        (
            "10.0.0.1",
            Some("a b,c@d/é"),
            "a_b_c_d___10.0.0.1:80",
            "10.0.0.1",
        ),
        ("10.0.0.1", Some("-a"), "_a_10.0.0.1:80", "10.0.0.1"),
        ("10.0.0.1", Some("100%"), "100__10.0.0.1:80", "10.0.0.1"),
        ("2001:db8::1", Some("a"), "a_2001:db8::1:80", "2001:db8::1"),
        ("[2001:db8::1]", None, "2001:db8::1:80", "2001:db8::1"),
        ("app.example", None, "app.example:80", "192.0.2.1"),
        ("app_1.example.", None, "app_1.example.:80", "192.0.2.1"),
        ("localhost", None, "localhost:80", "192.0.2.1"),
    ] {
        let (server, notes) = admit(host, name, None).unwrap();
        assert_eq!(
            (server.name.as_str(), server.address),
            (expected, address.parse().unwrap()),
            "{host} {name:?}"
        );
        assert_eq!(notes, Vec::<String>::new());
    }
}

#[test]
fn what_cannot_be_rendered_safely_is_refused() {
    let long = "x".repeat(900_000);
    for host in [
        "",
        " ",
        "a b",
        "10.0.0.1\n",
        "10.0.0",
        "999.1.1.1",
        "1",
        "a..b",
        ".a",
        "-a",
        "a-",
        "a#b",
        "a\"b",
        "a;b",
        "a%b",
        "fe80::1%eth0",
        "${HX}",
        "[10.0.0.1",
        "unix@/run/x",
        "0.0.0.0",
        "::",
        "a/b",
        "é",
        "dead.example",
        &long,
    ] {
        assert!(admit(host, None, None).is_err(), "{host:?}");
    }
    for bad in [
        "\n", "\r", "\0", "\t", "\"", "'", "\\", "$", "#", ";", "\u{85}", "\u{7f}",
    ] {
        let text = format!("a{bad}b");
        assert!(admit("10.0.0.1", Some(&text), None).is_err(), "{bad:?}");
        assert!(
            admit("10.0.0.1", None, Some(&format!("backup {text}"))).is_err(),
            "{bad:?}"
        );
    }
    assert!(admit("10.0.0.1", Some(&long), None).unwrap_err().len() < 200);
    assert!(
        admit("dead.example", None, None)
            .unwrap_err()
            .contains("does not resolve")
    );
}

#[test]
fn options_by_allow_list() {
    for (text, kept, noted) in [
        ("weight 7 backup", Some("weight 7 backup"), 0),
        (
            "  check   inter 2s  rise 3 fall 2 ",
            Some("check inter 2s rise 3 fall 2"),
            0,
        ),
        ("weight 300 backup", Some("backup"), 1),
        ("weight", None, 1),
        ("weight backup", None, 1),
        ("inter 0 check", Some("check"), 1),
        ("cookie evil backup", Some("backup"), 1),
        ("ssl verify none backup", Some("backup"), 2),
        ("track other/server weight 3", Some("weight 3"), 1),
        ("redir http://evil backup", Some("backup"), 1),
        ("source 10.0.0.1 usesrc client backup", Some("backup"), 2),
        ("bogus backup", None, 1),
        ("backup é", None, 1),
        ("id 7 backup", Some("backup"), 0),
        ("maxconn %{port}", Some("maxconn 80"), 0),
        ("%%", None, 1),
    ] {
        let (server, notes) = admit("10.0.0.1", None, Some(text)).unwrap();
        assert_eq!(
            (server.options.as_deref(), notes.len()),
            (kept, noted),
            "{text}: {notes:?}"
        );
    }
    let (server, _) = admit("10.0.0.1", None, Some("id 7 backup")).unwrap();
    assert_eq!(server.explicit_id, Some(7));
    let many = "backup ".repeat(100_000);
    assert_eq!(
        admit("10.0.0.1", None, Some(&many)).unwrap().0.options,
        None
    );
}

#[test]
fn the_users_list_widens_it() {
    let allowed = [
        "verify".to_owned(),
        "ssl".to_owned(),
        "nosuch".to_owned(),
        "port".to_owned(),
    ];
    let gate = Gate {
        allowed_options: &allowed,
        ..gate()
    };
    let options = |text| {
        gate.admit(&candidate("10.0.0.1", None, Some(text)))
            .unwrap()
            .0
            .options
    };
    assert_eq!(
        options("ssl verify none port %{port}").as_deref(),
        Some("ssl verify none port 80")
    );
    assert_eq!(
        options("nosuch 1.2.3.4 ssl"),
        None,
        "arguments of a keyword that haproxy does not have cannot be counted"
    );
}

#[test]
fn local_options_are_the_users_own() {
    let local = |options| {
        let candidate = Candidate {
            origin: Origin::Local,
            ..candidate("10.0.0.1", None, Some(options))
        };
        gate()
            .admit(&candidate)
            .map(|(server, _)| (server.options, server.explicit_id))
    };
    assert_eq!(
        local("check observe layer7"),
        Ok((Some("check observe layer7".to_owned()), None))
    );
    assert_eq!(
        local("sni str(\"a  b\")"),
        Ok((Some("sni str(\"a  b\")".to_owned()), None))
    );
    assert_eq!(local("id 9 check"), Ok((Some("check".to_owned()), Some(9))));
    assert_eq!(local(" "), Ok((None, None)));
    assert!(local("check\n\tserver evil 1.2.3.4:1").is_err());
}

#[test]
fn expansion() {
    assert_eq!(
        expand("%{host}-%{port}-%{name} 100%% %[x] %{nope} %", "h", 1, "n"),
        "h-1-n 100% %[x] %{nope} %"
    );
    assert_eq!(expand("é%%é", "h", 1, "n"), "é%é");
}

proptest! {
    #[test]
    fn nothing_unsafe_gets_through(host in ".{0,30}|10\\.0\\.0\\.1", name in proptest::option::of(".{0,30}"),
        options in proptest::option::of(".{0,40}|([a-z0-9 -]{0,10}(weight|backup|id|check|inter) ){0,6}"), port in 1u16..)
    {
        let candidate = Candidate { port, ..candidate(&host, name.as_deref(), options.as_deref()) };
        if let Ok((server, _)) = gate().admit(&candidate) {
            prop_assert!(server.name.len() <= MAX_NAME && server.name.chars().all(is_name_char));
            prop_assert!(!server.name.starts_with(['-', '#']));
            prop_assert!(server.host.chars().all(is_name_char));
            let words = server.options.unwrap_or_default();
            prop_assert!(words.bytes().all(|b| b == b' ' || b.is_ascii_graphic()));
            prop_assert!(!words.chars().any(is_unsafe));
        }
    }
}
