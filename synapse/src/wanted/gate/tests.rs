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
    for (text, kept, left_out) in [
        ("weight 7 backup", Some("weight 7 backup"), 0),
        (
            "  check   inter 2s  rise 3 fall 2 ",
            Some("check inter 2s rise 3 fall 2"),
            0,
        ),
        ("send-proxy-v2 check", Some("send-proxy-v2 check"), 0),
        ("weight 300 backup", Some("backup"), 1),
        ("weight", None, 1),
        ("weight backup", None, 1),
        ("inter 0 check", Some("check"), 1),
        ("cookie evil backup", Some("backup"), 1),
        (
            "observe layer4 check on-error mark-down error-limit 3",
            Some("check"),
            3,
        ),
        ("check no-backup tfo non-stick", Some("check"), 3),
        ("check agent-inter 3s", Some("check"), 1),
        (
            "resolvers evil init-addr none weight 3",
            Some("weight 3"),
            2,
        ),
        ("bogus fall 3", None, 1),
        ("fall é", None, 1),
        ("id 7 backup", Some("backup"), 0),
        ("id backup", None, 1),
        ("maxconn %{port}", Some("maxconn 80"), 0),
        ("%%", None, 1),
    ] {
        let (server, notes) = admit("10.0.0.1", None, Some(text)).unwrap();
        assert_eq!(
            (server.options.as_deref(), notes.len()),
            (kept, left_out),
            "{text}: {notes:?}"
        );
    }
    let (server, _) = admit("10.0.0.1", None, Some("id 7 backup")).unwrap();
    assert_eq!(server.explicit_id, Some(7));
    let many = "fall 3 ".repeat(100_000);
    assert_eq!(
        admit("10.0.0.1", None, Some(&many)).unwrap().0.options,
        None
    );
}

/// Left out, these would give the server requests or checks of another kind than it has asked for.
#[test]
fn a_server_whose_options_decide_more_than_they_may_is_refused() {
    for (text, named) in [
        ("ssl verify none", "ssl, verify"),
        ("check port 30303", "port"),
        ("check addr 10.9.9.9", "addr"),
        ("backup sni x alpn h2 sni y", "alpn, sni"),
        ("no-ssl", "no-ssl"),
        ("check no-check-ssl", "no-check-ssl"),
        ("no-check", "no-check"),
        ("no-send-proxy", "no-send-proxy"),
        ("send-proxy-v2-ssl-cn", "send-proxy-v2-ssl-cn"),
        ("check-proto h2 check", "check-proto"),
        (
            "check-via-socks4 socks4 1.1.1.1:1",
            "check-via-socks4, socks4",
        ),
        ("source 10.0.0.1 usesrc client", "source, usesrc"),
        ("track other/server weight 3", "track"),
        ("redir http://evil backup", "redir"),
        ("proto h2", "proto"),
        (
            "agent-check agent-port 9 weight 300",
            "agent-check, agent-port",
        ),
        ("namespace blue", "namespace"),
        // Its argument is missing.
        ("check port", "port"),
    ] {
        let error = admit("10.0.0.1", None, Some(text)).unwrap_err();
        assert!(
            error.ends_with(&format!("`haproxy.allowed_server_options: [{named}]`")),
            "{text}: {error}"
        );
    }
    for text in [
        "bogus ssl",
        "check bogus",
        "backup bogus 3",
        "disabled bogus",
        "weight 0 bogus",
        "send-proxy é",
        &"backup ".repeat(1000),
    ] {
        let error = admit("10.0.0.1", None, Some(text)).unwrap_err();
        assert!(
            error.contains("cannot do without") && error.len() < 300,
            "{text}: {error}"
        );
    }
}

/// Every keyword that haproxy has is used, left out with its arguments, or refuses its server: never another one instead.
#[test]
fn no_keyword_is_turned_into_another_one() {
    for keyword in crate::config::keyword::all().filter(|keyword| *keyword != "id") {
        let argument = match keyword {
            "inter" | "fastinter" | "downinter" | "slowstart" => "3s",
            _ => "7",
        };
        let count = crate::config::keyword::arity(keyword).unwrap();
        let own = [keyword, argument][..=count].join(" ");
        let admitted = admit("10.0.0.1", None, Some(&format!("rise 2 {own} fall 2")));
        let allowed = keywords::ALLOWED.contains(&keyword);
        match admitted {
            Ok((server, left_out)) if allowed => {
                assert_eq!(server.options, Some(format!("rise 2 {own} fall 2")));
                assert_eq!(left_out, Vec::<String>::new());
            }
            Ok((server, left_out)) => {
                assert_eq!(
                    server.options.as_deref(),
                    Some("rise 2 fall 2"),
                    "{keyword}"
                );
                assert_eq!(left_out.len(), 1, "{keyword}");
                assert!(!keywords::is_decisive(keyword), "{keyword}");
            }
            Err(reason) => {
                assert!(
                    keywords::is_decisive(keyword) && !allowed,
                    "{keyword}: {reason}"
                );
            }
        }
    }
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
        options("nosuch 1.2.3.4 fall 3"),
        None,
        "arguments of a keyword that haproxy does not have cannot be counted"
    );
    for (text, wrong) in [
        ("ssl port 0", "option `port`: `0` is not a port"),
        ("ssl port", "option `port`: its argument is missing"),
        ("verify none alpn h2", "[alpn]"),
    ] {
        let error = gate
            .admit(&candidate("10.0.0.1", None, Some(text)))
            .unwrap_err();
        assert!(error.contains(wrong), "{text}: {error}");
    }
}

/// A name in the options would be haproxy's to resolve: never one from the registry.
#[test]
fn addresses_in_options_are_addresses() {
    let allowed = ["addr", "agent-addr", "source", "socks4"].map(str::to_owned);
    let gate = Gate {
        allowed_options: &allowed,
        ..gate()
    };
    let options = |host, text| {
        let admitted = gate.admit(&candidate(host, None, Some(text)));
        admitted.map(|(server, _)| server.options.unwrap_or_default())
    };
    assert_eq!(
        options("ok.example", "addr %{host} check"),
        Ok("addr 192.0.2.1 check".to_owned()),
        "the address in force"
    );
    for text in [
        "addr 10.1.1.1",
        "agent-addr ::1",
        "source [::1]:5",
        "socks4 10.1.1.1:80",
    ] {
        assert_eq!(options("10.0.0.1", text), Ok(text.to_owned()));
    }
    for text in [
        "addr check.example",
        "agent-addr dead.example",
        "source eth0",
        "socks4 a:1",
        "addr 10.1",
    ] {
        let error = options("10.0.0.1", text).unwrap_err();
        assert!(error.contains("is not an IP address"), "{text}: {error}");
    }
}

/// "Any address of this host" names a server of this host in the user's own list, and nothing in the registry.
#[test]
fn the_unspecified_address_is_this_host_for_the_user_only() {
    for (host, address) in [("0.0.0.0", "127.0.0.1"), ("::", "::1"), ("[::]", "::1")] {
        let znode = candidate(host, None, None);
        let local = Candidate {
            origin: Origin::Local,
            ..znode.clone()
        };
        let (server, _) = gate().admit(&local).unwrap();
        assert_eq!(server.address, address.parse::<IpAddr>().unwrap());
        assert!(
            server.name.contains(server.host.as_str()),
            "{}",
            server.name
        );
        let error = gate().admit(&znode).unwrap_err();
        assert!(error.contains("unspecified"), "{error}");
    }
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
