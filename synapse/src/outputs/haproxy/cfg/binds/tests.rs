use super::*;
use crate::outputs::haproxy::cfg::Ours;
use std::net::IpAddr;

fn one(line: &str) -> Listener {
    let mut all = Listener::of_line("frontend", &format!("bind {line}"));
    assert_eq!(all.len(), 1, "{line}");
    all.remove(0)
}

#[test]
fn what_is_one_address_and_what_is_not() {
    let same = [
        ("127.0.0.1:80", "127.0.0.1:80"),
        ("localhost:80", "127.0.0.1:80"),
        ("*:80", "127.0.0.1:80"),
        (":80", "10.1.2.3:80"),
        ("0.0.0.0:80", "*:80"),
        ("[::]:80", "[::1]:80"),
        (":::80", "10.1.2.3:80"),
        ("[::]:80", "*:80"),
        ("ipv6@:80 v4v6", "0.0.0.0:80"),
        ("[::ffff:10.0.0.1]:80", "10.0.0.1:80"),
        ("ipv6@localhost:80", "[::1]:80"),
        ("127.0.0.1:80-90", "127.0.0.1:85"),
        ("127.0.0.1:80-90", "*:90-99"),
        ("/run/x.sock", "unix@/run/x.sock"),
        ("/run/x.sock", "uxst@/run/x.sock mode 600"),
        ("abns@x", "abns@x"),
        ("App.example:80", "app.example:80"),
        ("*:80 interface eth0", "*:80 interface eth0"),
        ("quic4@:443 ssl crt x", "quic4@127.0.0.1:443 ssl crt y"),
        ("tcp4@:80", "mptcp@:80"),
    ];
    let different = [
        ("127.0.0.1:80", "127.0.0.1:81"),
        ("127.0.0.1:80", "127.0.0.2:80"),
        ("[::1]:80", "127.0.0.1:80"),
        ("*:80", "[::1]:80"),
        ("[::]:80 v6only", "*:80"),
        ("127.0.0.1:80-90", "127.0.0.1:91-99"),
        ("/run/x.sock", "/run/y.sock"),
        ("/x", "abns@/x"),
        ("*:80 interface eth0", "*:80 interface eth1"),
        ("*:80 namespace a", "*:80 namespace b"),
        ("*:443 ssl crt x", "quic4@:443 ssl crt x"),
        ("app.example:80", "127.0.0.1:80"),
    ];
    for (expected, pairs) in [(true, &same[..]), (false, &different[..])] {
        for (a, b) in pairs {
            assert_eq!(one(a).meets(&one(b)), expected, "{a} and {b}");
            assert_eq!(one(b).meets(&one(a)), expected, "{b} and {a}");
        }
    }
}

#[test]
fn what_cannot_be_read_is_not_judged() {
    for line in [
        "fd@3",
        "\"$X\":80",
        "${X}:80",
        ":0",
        "1.2.3.4",
        "sockpair@4",
        "1.2.3.4:5 transparent",
        "*:90-80",
    ] {
        let all = Listener::of_line("frontend", &format!("bind {line}"));
        assert_eq!(all, [], "{line}");
    }
    for (keyword, line, count) in [
        ("listen", "bind *:80,*:81", 2),
        ("backend", "bind *:80", 0),
        ("global", "stats socket /run/x level admin", 1),
        ("global", "stats timeout 60s", 0),
        ("global", "stats socket ipv4@127.0.0.1:9 level admin", 1),
        ("log-forward", "dgram-bind 127.0.0.1:514", 1),
        ("peers", "bind 127.0.0.1:1024", 1),
        ("frontend", "binding *:80", 0),
    ] {
        assert_eq!(Listener::of_line(keyword, line).len(), count, "{line}");
    }
    let of = |line: &str| Listener::of_line("log-forward", line).remove(0);
    assert!(!of("dgram-bind *:514").meets(&of("bind *:514")));
}

fn models(texts: &[&str]) -> Vec<Arc<Model>> {
    texts
        .iter()
        .map(|text| Arc::new(Model::parse(text, Ours::All)))
        .collect()
}

fn lost(texts: &[&str], loaded: &str) -> Vec<usize> {
    let loaded = Model::parse(loaded, Ours::All);
    clashes(&models(texts), &loaded)
        .iter()
        .map(|c| c.fragment)
        .collect()
}

#[test]
fn the_later_one_goes_and_who_is_there_stays() {
    let frame = "global\n stats socket /run/s\nlisten stats\n bind *:9\n";
    let (a, b) = (
        "frontend a\n bind *:80\n",
        "frontend b\n bind 127.0.0.1:80\n",
    );
    assert_eq!(lost(&[frame, a, b], ""), [2]);
    assert_eq!(lost(&[frame, b, a], ""), [2]);
    // b runs: a is the one that came.
    assert_eq!(lost(&[frame, a, b], &format!("{frame}{b}")), [1]);
    assert_eq!(lost(&[frame, a, b], &format!("{frame}{a}{b}")), [2]);
    // A frame that takes the port of a running service is the one to go.
    let taking = "listen new\n bind :80\n";
    assert_eq!(lost(&[taking, b], b), [0]);
    assert_eq!(lost(&[taking, b], ""), [1]);
    // One that has gone itself takes nothing from others.
    let both = "frontend c\n bind *:80\n bind *:81\n";
    assert_eq!(lost(&[frame, a, both, "frontend d\n bind *:81\n"], ""), [2]);
    // Within one fragment it is the author's business.
    assert_eq!(
        lost(
            &[frame, "frontend a\n bind *:80\nfrontend b\n bind *:80\n"],
            ""
        ),
        [0; 0]
    );
    assert_eq!(
        lost(&[frame, "frontend a\n bind *:80\n bind [::]:80\n"], ""),
        [0; 0]
    );
    // The stats socket.
    assert_eq!(lost(&[frame, "frontend a\n bind unix@/run/s\n"], ""), [1]);
}

#[test]
fn both_are_named() {
    let all = models(&[
        "frontend a\n bind *:80\n",
        "frontend b\n mode tcp\n bind 127.0.0.1:80-81\n",
    ]);
    assert_eq!(
        clashes(&all, &Model::default()),
        [Clash {
            fragment: 1,
            section: 0,
            line: "bind 127.0.0.1:80-81".to_owned(),
            words: "`frontend b` listens on `127.0.0.1:80-81`, and `frontend a` does on `*:80`: \
                    each connection would go to one of them"
                .to_owned(),
        }]
    );
}

#[test]
fn a_thousand_services_are_compared_quickly() {
    let texts: Vec<String> = (0..1000)
        .map(|n| format!("frontend s{n}\n bind 127.0.0.1:{}\n", 10_000 + n))
        .collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    assert_eq!(lost(&texts, &texts.concat()), [0; 0]);
}

#[test]
fn a_connection_of_this_host_arrives_where_it_is_listened() {
    let own: BTreeSet<IpAddr> = ["10.0.0.7", "fd00::7"]
        .iter()
        .map(|text| text.parse().unwrap())
        .collect();
    for (line, address, port, arrives) in [
        ("*:80", "10.0.0.7", 80, true),
        ("*:80", "127.0.0.1", 80, true),
        ("*:80", "127.3.2.1", 80, true),
        ("*:80", "0.0.0.0", 80, true),
        ("*:80", "10.0.0.8", 80, false),
        ("*:80", "10.0.0.7", 81, false),
        ("*:80-90", "10.0.0.7", 81, true),
        ("*:80", "fd00::7", 80, false),
        ("[::]:80", "fd00::7", 80, true),
        ("[::]:80", "10.0.0.7", 80, true),
        ("[::]:80 v6only", "10.0.0.7", 80, false),
        ("localhost:80", "127.0.0.1", 80, true),
        ("localhost:80", "10.0.0.7", 80, false),
        ("10.0.0.7:80", "10.0.0.7", 80, true),
        ("10.0.0.7:80", "::ffff:10.0.0.7", 80, true),
        ("10.0.0.7:80", "127.0.0.1", 80, false),
        ("*:80 namespace other", "10.0.0.7", 80, false),
        ("/run/x", "10.0.0.7", 80, false),
    ] {
        let found = one(line).takes(address.parse().unwrap(), port, &own);
        assert_eq!(found, arrives, "{line} {address} {port}");
    }
}
