//! Hostile registry data against a running synapse, haproxy and ZooKeeper: a znode that cannot be used costs that znode
//! only, is named in `/status` with the reason, and never reaches haproxy.cfg.
//!
//! Over 600 lines because most of it is one table: a hostile znode a row.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod rig;

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use serde_json::{Value, json};
use smartstack_common::testing::{Dir, ZooKeeper, eventually};
use zookeeper_client::Client;

use rig::{Rig, SOON, accepted, settings};

const PATH: &str = "/services/hostile";

/// The siblings that must be served throughout.
const GOOD: [(&str, &str, &str); 2] = [
    (
        "good-a_0000000001",
        r#"{"host":"127.0.0.1","port":1001,"name":"a"}"#,
        "a_127.0.0.1:1001",
    ),
    (
        "good-b_0000000002",
        r#"{"host":"127.0.0.1","port":1002,"name":"b","weight":7}"#,
        "b_127.0.0.1:1002",
    ),
];

/// A znode that must be refused, with a piece of the reason.
fn refused() -> Vec<(String, Vec<u8>, &'static str)> {
    let mut rows: Vec<(String, Vec<u8>, &'static str)> = Vec::new();
    let mut add = |data: &[u8], reason| {
        rows.push((
            format!("bad_{:010}", 100 + rows.len()),
            data.to_owned(),
            reason,
        ));
    };
    // No JSON, or not an object.
    add(b"", "empty data");
    add(b"garbage", "not JSON");
    add(b"\xff\xfe\x00\x01", "not JSON");
    add(b"{\"host\":\"\xff\",\"port\":1}", "not JSON");
    add(b"{\"host\":\"127.0.0.1\",\"port\":1}}", "not JSON");
    add(b"{\"host\":\"127.0.0.1\",\"port\":1", "not JSON");
    add("[".repeat(10_000).as_bytes(), "not JSON");
    add("{\"a\":".repeat(10_000).as_bytes(), "not JSON");
    add(
        format!("{}{}", "[".repeat(10_000), "]".repeat(10_000)).as_bytes(),
        "not JSON",
    );
    for (data, reason) in [
        ("null", "a JSON null"),
        ("true", "a JSON boolean"),
        ("0", "a JSON number"),
        ("\"127.0.0.1:80\"", "a JSON text"),
        ("[]", "a JSON array"),
        (r#"[{"host":"127.0.0.1","port":1}]"#, "a JSON array"),
        ("{}", "no `host`"),
    ] {
        add(data.as_bytes(), reason);
    }
    // Host.
    for host in [Value::Null, json!(7), json!([]), json!({}), json!("")] {
        add(
            json!({"host": host, "port": 1}).to_string().as_bytes(),
            "not a non-empty text",
        );
    }
    for host in [
        "127.0.0.1\n\tserver evil 127.0.0.1:6666",
        "127.0.0.1\r\nlisten evil",
        "127.0.0.1 check",
        "127.0.0.1\u{0}",
        "127.0.0.1#",
        "\"127.0.0.1\"",
        "'h'",
        "h%",
        "%{name}",
        "$HOME",
        "\"$HOME\"",
        "h\\n",
        "h;h",
        "127.0.0.1:80",
        "127.1",
        "256.1.1.1",
        "0177.0.0.1.",
        "-h",
        "h..h",
        "unix@/run/x.sock",
        "fd@3",
        "/run/x.sock",
        "fe80::1%eth0",
        "[::1",
        "höst",
        " ",
    ] {
        add(
            json!({"host": host, "port": 1}).to_string().as_bytes(),
            "neither an address nor a DNS name",
        );
    }
    add(
        json!({"host": "h".repeat(300), "port": 1})
            .to_string()
            .as_bytes(),
        "neither an address nor a DNS name",
    );
    for host in ["0.0.0.0", "::", "[::]"] {
        add(
            json!({"host": host, "port": 1}).to_string().as_bytes(),
            "unspecified address",
        );
    }
    for host in ["no-such-host.invalid", "${HOME}.invalid"] {
        let reason = if host.contains('$') {
            "neither an address"
        } else {
            "does not resolve"
        };
        add(
            json!({"host": host, "port": 1}).to_string().as_bytes(),
            reason,
        );
    }
    // Port.
    for port in [
        "0",
        "-1",
        "65536",
        "99999",
        "\"abc\"",
        "1.5",
        "1e3",
        "\"\"",
        "\" 1\"",
        "\"+1\"",
        "\"80 check\"",
        "\"80\\n\"",
        "true",
        "null",
        "[1]",
        "{}",
        "18446744073709551616",
        "1e400",
        "\"99999999999999999999\"",
    ] {
        let reason = if port == "1e400" {
            "not JSON"
        } else {
            "`port` is"
        };
        add(
            format!("{{\"host\":\"127.0.0.1\",\"port\":{port}}}").as_bytes(),
            reason,
        );
    }
    add(br#"{"host":"127.0.0.1"}"#, "no `port`");
    // Name.
    for name in [
        "a\nserver evil 127.0.0.1:6666",
        "a\rb",
        "a\tb",
        "a\u{0}b",
        "a#b",
        "a\"b",
        "a'b",
        "a\\b",
        "a$b",
        "a;b",
        "a`b",
        "\u{7f}",
        "\u{85}",
    ] {
        add(
            json!({"host": "127.0.0.1", "port": 1, "name": name})
                .to_string()
                .as_bytes(),
            "`name` holds",
        );
    }
    for name in [json!(["a"]), json!({"a": 1}), json!(true)] {
        add(
            json!({"host": "127.0.0.1", "port": 1, "name": name})
                .to_string()
                .as_bytes(),
            "`name` is",
        );
    }
    for length in [129, 20_000] {
        add(
            json!({"host": "127.0.0.1", "port": 1, "name": "n".repeat(length)})
                .to_string()
                .as_bytes(),
            "at most 128",
        );
    }
    // Options.
    for options in [
        "check\n\tserver evil 127.0.0.1:6666",
        "check\r",
        "check\u{0}",
        "check #",
        "check \"x\"",
        "check 'x'",
        "check \\",
        "check $HOME",
        "check; quit",
        "weight 1\u{7f}",
        "check `id`",
    ] {
        add(
            json!({"host": "127.0.0.1", "port": 1, "haproxy_server_options": options})
                .to_string()
                .as_bytes(),
            "`haproxy_server_options` holds",
        );
    }
    // Without these the server would be spoken to, or checked, in another form.
    for options in [
        "ssl verify required",
        "check port 6666",
        "weight 3 addr 127.0.0.1",
        "track nosuch/x",
        "proto h9",
        "send-proxy-v2-ssl",
        "no-check",
        "source 1.2.3.4 usesrc clientip",
        "sni %[env(HOME)]",
        "crt /etc/shadow",
        "check-sni check",
        "redir http://evil",
        "agent-check agent-port 1",
    ] {
        add(
            json!({"host": "127.0.0.1", "port": 1, "haproxy_server_options": options})
                .to_string()
                .as_bytes(),
            "decide what haproxy connects to or checks",
        );
    }
    for options in [
        "no-such-word verify none",
        "x backup",
        &"check ".repeat(100),
    ] {
        add(
            json!({"host": "127.0.0.1", "port": 1, "haproxy_server_options": options})
                .to_string()
                .as_bytes(),
            "`haproxy_server_options` cannot be used",
        );
    }
    for options in [json!(["backup"]), json!({"a": 1}), json!(true), json!(7)] {
        add(
            json!({"host": "127.0.0.1", "port": 1, "haproxy_server_options": options})
                .to_string()
                .as_bytes(),
            "`haproxy_server_options` is",
        );
    }
    // Large.
    add("x".repeat(900_000).as_bytes(), "above the limit");
    add(
        format!(
            r#"{{"host":"127.0.0.1","port":1,"x":"{}"}}"#,
            "x".repeat(900_000)
        )
        .as_bytes(),
        "above the limit",
    );
    // In the name of the znode.
    for (znode, data, reason) in [
        (
            "base64_4_!!!!_0000000300".to_owned(),
            "",
            "payload in the name: not base64",
        ),
        (
            "base64_400_e30_0000000301".to_owned(),
            "",
            "shorter than its length says",
        ),
        ("base64__e30_0000000302".to_owned(), "", "no length"),
        (encoded("[1]", 303), "", "a JSON array"),
        (encoded("{", 304), "", "not JSON"),
        (
            encoded(
                r#"{"host":"127.0.0.1\n\tserver evil 127.0.0.1:6666","port":1}"#,
                305,
            ),
            "",
            "neither an address",
        ),
        (
            encoded(r#"{"host":"127.0.0.1","port":0}"#, 306),
            r#"{"host":"127.0.0.1","port":1}"#,
            "`port` is `0`",
        ),
        (
            "a name with ' \" # $ % ; blanks_0000000307".to_owned(),
            "x",
            "not JSON",
        ),
    ] {
        rows.push((znode, data.as_bytes().to_owned(), reason));
    }
    rows
}

/// A payload in the name of its znode, as nerve's `use_path_encoding` writes it.
fn encoded(payload: &str, sequence: u32) -> String {
    let text = base64::engine::general_purpose::URL_SAFE.encode(payload);
    format!("base64_{}_{text}_{sequence:010}", text.len())
}

/// A znode that is used, at least in part: its server, the end of its line, and a piece of a note (`""`: none).
struct Used {
    znode: String,
    data: String,
    server: String,
    line: &'static str,
    note: &'static str,
}

fn used() -> Vec<Used> {
    let mut rows = Vec::new();
    let mut add = |fields: Value, server: &str, line, note| {
        let port = 2000 + rows.len();
        let mut data = json!({"host": "127.0.0.1", "port": port});
        data.as_object_mut()
            .unwrap()
            .extend(fields.as_object().unwrap().clone());
        let znode = format!("odd_{port:010}");
        let (data, server) = (data.to_string(), server.replace("PORT", &port.to_string()));
        rows.push(Used {
            znode,
            data,
            server,
            line,
            note,
        });
    };
    let plain = "127.0.0.1:PORT";
    // Names are mapped.
    add(
        json!({"name": "two words"}),
        "two_words_127.0.0.1:PORT",
        "",
        "",
    );
    add(json!({"name": "100%"}), "100__127.0.0.1:PORT", "", "");
    add(json!({"name": "%{port}"}), "__port__127.0.0.1:PORT", "", "");
    add(json!({"name": "naïve/❤"}), "na_ve___127.0.0.1:PORT", "", "");
    add(json!({"name": "-f"}), "_f_127.0.0.1:PORT", "", "");
    add(json!({"name": 17}), "17_127.0.0.1:PORT", "", "");
    add(json!({"name": ""}), plain, "", "");
    add(json!({"name": null}), plain, "", "");
    add(
        json!({"name": "n".repeat(100)}),
        &format!("{}_127.0.0.1:PORT", "n".repeat(100)),
        "",
        "",
    );
    // Hosts of the other family.
    add(json!({"host": "::1"}), "::1:PORT", "", "");
    add(
        json!({"host": "[2001:db8::7]", "name": "six"}),
        "six_2001:db8::7:PORT",
        "",
        "",
    );
    // Bad weights cost the weight.
    for weight in [json!(300), json!(-1), json!("x"), json!(1.5), json!([])] {
        add(json!({"weight": weight}), plain, "", "`weight` is");
    }
    add(json!({"weight": null}), plain, "", "");
    // Options by allow-list.
    for (options, line, note) in [
        ("backup", " backup", ""),
        (
            "on-error mark-down backup",
            " backup",
            "option `on-error` left out: not allowed",
        ),
        (
            "resolvers x backup",
            " backup",
            "option `resolvers` left out",
        ),
        ("weight 300", "", "option `weight` left out"),
        ("weight -1 backup", " backup", "option `weight` left out"),
        ("rise 0", "", "option `rise` left out"),
        ("inter 99999d", "", "option `inter` left out"),
        (
            "maxconn",
            "",
            "option `maxconn` left out: its argument is missing",
        ),
        ("cookie evil", "", "option `cookie` left out"),
        (
            "pool-max-conn 3 cookie",
            "",
            "option `pool-max-conn` left out",
        ),
        ("no-such-word", "", "is not an option known here"),
        ("%d %s %{nope} %n", "", "is not an option known here"),
        ("bäckup", "", "not ASCII"),
    ] {
        add(
            json!({"haproxy_server_options": options}),
            plain,
            line,
            note,
        );
    }
    add(
        json!({"haproxy_server_options": "fall 3 ".repeat(100)}),
        plain,
        "",
        "more than 32 words",
    );
    add(json!({"haproxy_server_options": null}), plain, "", "");
    // Nothing of the rest is looked at.
    add(
        json!({"labels": "x", "unknown": {"deep": [[[[]]]]}}),
        plain,
        "",
        "",
    );
    let port = 2000 + rows.len();
    rows.push(Used {
        znode: encoded(&json!({"host": "127.0.0.1", "port": port}).to_string(), 400),
        data: "not looked at".to_owned(),
        server: format!("127.0.0.1:{port}"),
        line: "",
        note: "",
    });
    rows
}

fn config(dir: &Dir, zookeeper: &ZooKeeper) -> Value {
    let mut config = settings(dir);
    // Nodes are deleted without an announcement: the guard would hold their servers.
    config["guard"] = json!("off");
    config["services"]["hostile"] = json!({
        "discovery": {"method": "zookeeper", "hosts": [zookeeper.hosts()], "path": PATH},
        "haproxy": {"port": smartstack_common::testing::free_port(), "bind_address": "127.0.0.1", "use_nerve_weights": true},
    });
    config
}

async fn put(client: &Client, znode: &str, data: &[u8]) {
    ZooKeeper::put(client, &format!("{PATH}/{znode}"), data).await;
}

/// A fresh znode with its data at once: ephemeral, as nerve's are.
async fn register(client: &Client, znode: &str, data: &[u8]) {
    ZooKeeper::make_ephemeral(client, &format!("{PATH}/{znode}"), data).await;
}

/// Everything in the file but our server lines.
fn structure(text: &str) -> Vec<String> {
    text.lines()
        .filter(|line| !line.starts_with("\tserver "))
        .map(str::to_owned)
        .collect()
}

fn server_lines(text: &str) -> BTreeMap<String, String> {
    let lines = text
        .lines()
        .filter_map(|line| line.strip_prefix("\tserver "));
    lines
        .map(|line| (line.split(' ').next().unwrap().to_owned(), line.to_owned()))
        .collect()
}

/// The reasons that `/status` gives for a znode, in `list`.
fn reasons(service: &Value, list: &str, znode: &str) -> Vec<String> {
    let entries = service[list].as_array().unwrap().iter();
    entries
        .filter(|entry| entry["znode"] == znode)
        .map(|entry| entry["reason"].as_str().unwrap().to_owned())
        .collect()
}

/// With data on the watched path itself.
async fn start(parent: &[u8]) -> (ZooKeeper, Client, Rig) {
    let zookeeper = ZooKeeper::start().await;
    let client = zookeeper.connect().await;
    ZooKeeper::put(&client, PATH, parent).await;
    for (znode, data, _) in GOOD {
        register(&client, znode, data.as_bytes()).await;
    }
    let dir = Dir::new();
    let config = config(&dir, &zookeeper);
    let mut rig = Rig::start(dir, &config).await;
    rig.serves("hostile", &good()).await;
    (zookeeper, client, rig)
}

fn good() -> Vec<String> {
    GOOD.iter()
        .map(|(_, _, server)| (*server).to_owned())
        .collect()
}

#[tokio::test]
async fn a_bad_znode_costs_itself_and_an_odd_one_its_oddity() {
    let (_zookeeper, client, mut rig) = start(b"").await;
    let (baseline, worker) = (rig.text(), rig.haproxy.worker_pid().await);

    let rows = refused();
    for (znode, data, reason) in &rows {
        let what = format!(
            "{znode} {}",
            String::from_utf8_lossy(&data[..data.len().min(80)]).escape_debug()
        );
        register(&client, znode, data).await;
        eventually(&format!("{what} is refused: {reason}"), SOON, async || {
            let service = rig.service("hostile").await;
            match reasons(&service, "rejected", znode).as_slice() {
                [given] if given.contains(reason) => Ok(()),
                given => Err(format!("{given:?}")),
            }
        })
        .await;
        assert!(
            rig.synapse.process().ended().is_none(),
            "{what}: synapse ended\n{}",
            rig.log()
        );
        assert_eq!(rig.text(), baseline, "{what}: the file changed");
        assert_eq!(
            rig.live("hostile").await,
            good().into_iter().collect(),
            "{what}"
        );
    }
    rig.assert_sound("all bad znodes together");
    assert_eq!(
        rig.haproxy.worker_pid().await,
        worker,
        "nothing was reloaded"
    );
    let service = rig.service("hostile").await;
    assert_eq!(service["rejected"].as_array().unwrap().len(), rows.len());
    assert_eq!(service["origin"], "live");
    let told = rig.whole_log();
    let told = told.matches("an entry of the registry is not used").count();
    assert_eq!(told, rows.len(), "each is told once\n{}", rig.log());

    let rows = used();
    for row in &rows {
        register(&client, &row.znode, row.data.as_bytes()).await;
    }
    let expected: Vec<String> = good()
        .into_iter()
        .chain(rows.iter().map(|row| row.server.clone()))
        .collect();
    rig.serves("hostile", &expected).await;
    rig.status_shows("file and haproxy agree", |status| {
        status["haproxy"]["divergence"] == 0
    })
    .await;
    let (service, text) = (rig.service("hostile").await, rig.text());
    let lines = server_lines(&text);
    assert_eq!(
        lines.keys().cloned().collect::<BTreeSet<_>>(),
        expected.into_iter().collect()
    );
    for Used {
        znode,
        data,
        server,
        line,
        note,
    } in &rows
    {
        let notes = reasons(&service, "notes", znode);
        assert_eq!(notes.is_empty(), note.is_empty(), "{data}: {notes:?}");
        assert!(
            note.is_empty() || notes.iter().any(|given| given.contains(note)),
            "{data}: {notes:?}"
        );
        let written = &lines[server];
        let (_, options) = written.split_once(" cookie ").unwrap();
        assert_eq!(options, format!("{server}{line}"), "{data}");
    }
    assert_eq!(
        structure(&text),
        structure(&baseline),
        "no line but servers"
    );
    rig.assert_sound("with odd znodes");
    assert_eq!(rig.weights("hostile").await["b_127.0.0.1:1002"], 7);

    // On such a registry a restart of haproxy, and of synapse, give the same.
    rig.kill_haproxy().await;
    rig.serves("hostile", &lines.into_keys().collect::<Vec<_>>())
        .await;
}

#[tokio::test]
async fn what_stands_on_the_path_itself_and_below_children_is_not_used() {
    // Airbnb publishes haproxy options there: not honoured, only told.
    let parent = json!({"haproxy": {"listen": ["no such line", "bind \u{0}"], "server_options": "nonsense\nlisten evil"}})
        .to_string();
    let (_zookeeper, client, mut rig) = start(parent.as_bytes()).await;
    let baseline = rig.text();
    assert!(!baseline.contains("evil"));
    let told = rig.service("hostile").await["parent_data"].clone();
    assert_eq!(told, parent.len());
    put(&client, "fixed", br#"{"host":"127.0.0.1","port":1003}"#).await;
    ZooKeeper::put(
        &client,
        &format!("{PATH}/fixed/below"),
        br#"{"host":"127.0.0.1","port":6666}"#,
    )
    .await;
    ZooKeeper::put(
        &client,
        &format!("{PATH}/folder/below"),
        br#"{"host":"127.0.0.1","port":6667}"#,
    )
    .await;
    let mut all = good();
    all.push("127.0.0.1:1003".to_owned());
    rig.serves("hostile", &all).await;
    rig.status_shows("the folder is refused", |status| {
        reasons(&status["services"]["hostile"], "rejected", "folder") == ["empty data"]
    })
    .await;
    // Each is followed by a change that is seen, so it has been seen itself.
    for (port, garbage) in [
        (1004, &b"\xff\xfe"[..]),
        (1005, &[b'x'; 900_000]),
        (1006, b"[]"),
        (1007, b""),
    ] {
        client.set_data(PATH, garbage, None).await.unwrap();
        let data = json!({"host": "127.0.0.1", "port": port}).to_string();
        register(&client, &format!("more_{port:010}"), data.as_bytes()).await;
        all.push(format!("127.0.0.1:{port}"));
        rig.serves("hostile", &all).await;
    }
    assert_eq!(structure(&rig.text()), structure(&baseline));

    // The path goes with all below it: the last set stays. It comes back as another one: that one is used.
    ZooKeeper::wipe(&client, PATH).await;
    rig.status_shows("the last servers are held", |status| {
        status["services"]["hostile"]["origin"] == "held"
    })
    .await;
    assert!(!rig.live("hostile").await.is_empty());
    rig.assert_sound("without the path");
    register(
        &client,
        "new_0000000009",
        br#"{"host":"127.0.0.1","port":1009}"#,
    )
    .await;
    rig.serves("hostile", &["127.0.0.1:1009".to_owned()]).await;
    rig.status_shows("live again", |status| {
        status["services"]["hostile"]["origin"] == "live"
    })
    .await;
    rig.assert_sound("with the new path");
}

#[tokio::test]
async fn a_bad_change_in_place_keeps_the_last_valid_value() {
    let (_zookeeper, client, mut rig) = start(b"").await;
    let (znode, worker) = ("good-a_0000000001", rig.haproxy.worker_pid().await);
    let path = format!("{PATH}/{znode}");
    for bad in [
        "",
        "garbage",
        "[]",
        r#"{"host":null,"port":1}"#,
        r#"{"host":"127.0.0.1","port":0}"#,
        r#"{"host":"127.0.0.1\nlisten evil","port":1001}"#,
        r#"{"host":"127.0.0.1","port":1001,"name":"a\u0000"}"#,
        r#"{"host":"127.0.0.1","port":1001,"haproxy_server_options":"check\n"}"#,
    ] {
        client.set_data(&path, bad.as_bytes(), None).await.unwrap();
        rig.status_shows(&format!("{bad} is told"), |status| {
            let reasons = reasons(&status["services"]["hostile"], "rejected", znode);
            matches!(reasons.as_slice(), [reason] if reason.contains("last valid value is kept"))
        })
        .await;
        assert_eq!(
            rig.live("hostile").await,
            good().into_iter().collect(),
            "{bad}"
        );
        // Taken back.
        client
            .set_data(&path, GOOD[0].1.as_bytes(), None)
            .await
            .unwrap();
        rig.status_shows("nothing is rejected", |status| {
            status["services"]["hostile"]["rejected"] == json!([])
        })
        .await;
    }
    assert_eq!(
        rig.haproxy.worker_pid().await,
        worker,
        "nothing was reloaded"
    );

    // A valid change is taken, with the node's new address.
    client
        .set_data(
            &path,
            br#"{"host":"127.0.0.1","port":1005,"name":"a"}"#,
            None,
        )
        .await
        .unwrap();
    rig.serves(
        "hostile",
        &["a_127.0.0.1:1005".to_owned(), good()[1].clone()],
    )
    .await;

    // Twins: one server each, the newest znode's.
    register(&client, "twin_0000000020", GOOD[1].1.as_bytes()).await;
    register(
        &client,
        "twin_0000000021",
        GOOD[1].1.replace("\"weight\":7", "\"weight\":9").as_bytes(),
    )
    .await;
    eventually("the newest twin's weight", SOON, async || {
        let weights = rig.weights("hostile").await;
        if weights.get("b_127.0.0.1:1002") == Some(&9) && weights.len() == 2 {
            Ok(())
        } else {
            Err(format!("{weights:?}"))
        }
    })
    .await;
    let service = rig.service("hostile").await;
    assert!(
        reasons(&service, "notes", "twin_0000000020")[0]
            .contains("same server as `twin_0000000021`"),
        "{service:#}"
    );
    assert!(
        reasons(&service, "notes", "good-b_0000000002")[0].contains("same server as"),
        "{service:#}"
    );
    // Names that become the same name after mapping.
    register(
        &client,
        "x_0000000030",
        br#"{"host":"127.0.0.1","port":1006,"name":"a b"}"#,
    )
    .await;
    register(
        &client,
        "x_0000000031",
        br#"{"host":"127.0.0.1","port":1006,"name":"a_b"}"#,
    )
    .await;
    rig.serves(
        "hostile",
        &[
            "a_127.0.0.1:1005".to_owned(),
            good()[1].clone(),
            "a_b_127.0.0.1:1006".to_owned(),
        ],
    )
    .await;
    assert_eq!(accepted(&rig.config_file()), Ok(()));
}

/// Who reads the log, the status or the numbers learns of every option that is left out, and of every server that an option
/// keeps out; the user may allow it.
#[tokio::test]
async fn options_left_out_are_told_and_can_be_allowed() {
    let (_zookeeper, client, mut rig) = start(b"").await;
    let tuned = json!({"haproxy_server_options": "check cookie x on-error mark-down"});
    let encrypted = json!({"haproxy_server_options": "check port 1 ssl verify none"});
    let mut servers = good();
    for (znode, port, fields) in [
        ("tuned_0000000501", 1501, &tuned),
        ("tuned_0000000502", 1502, &tuned),
        ("tls_0000000503", 1503, &encrypted),
    ] {
        let mut data = fields.clone();
        data["host"] = json!("127.0.0.1");
        data["port"] = json!(port);
        register(&client, znode, data.to_string().as_bytes()).await;
        if port < 1503 {
            servers.push(format!("127.0.0.1:{port}"));
        }
    }
    rig.serves("hostile", &servers).await;
    let status = rig
        .status_shows("what is left out and who is", |status| {
            let service = &status["services"]["hostile"];
            service["left_out"].as_array().unwrap().len() == 4
                && service["rejected"].as_array().unwrap().len() == 1
        })
        .await;
    let why = &reasons(&status["services"]["hostile"], "rejected", "tls_0000000503")[0];
    assert!(
        why.ends_with("`haproxy.allowed_server_options: [port, ssl, verify]`"),
        "{why}"
    );
    for (name, value) in [
        ("synapse_options_left_out", 4.0),
        ("synapse_znodes_rejected", 1.0),
    ] {
        let name = format!("{name}{{service=\"hostile\"}}");
        assert_eq!(rig.synapse.metric(&name).await, Some(value), "{name}");
    }
    let log = rig.whole_log();
    for option in ["cookie", "on-error"] {
        let told = log.matches(&format!("option `{option}` left out")).count();
        assert_eq!(told, 1, "{log}");
    }
    let output = std::process::Command::new(smartstack_common::testing::Program::path("synapse"))
        .args(["status", "-c", "synapse.json"])
        .current_dir(rig.dir.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    for line in [
        "  tuned_0000000501 and 1 more: option `cookie` left out: not allowed (`haproxy.allowed_server_options`)",
        &format!("  rejected tls_0000000503: {why}"),
    ] {
        assert!(text.lines().any(|l| l == line), "no `{line}` in\n{text}");
    }

    let mut config: Value =
        serde_json::from_str(&std::fs::read_to_string(rig.dir.join("synapse.json")).unwrap())
            .unwrap();
    config["haproxy"]["allowed_server_options"] = json!(["port", "ssl", "verify"]);
    rig.configure(&config);
    servers.push("127.0.0.1:1503".to_owned());
    rig.serves("hostile", &servers).await;
    let written = &server_lines(&rig.text())["127.0.0.1:1503"];
    assert!(
        written.ends_with(" check port 1 ssl verify none"),
        "{written}"
    );
    rig.assert_sound("with TLS to a server");
}
