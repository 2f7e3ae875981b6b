//! Sections of the file that listen on one address, and servers that are this host's own frontends: haproxy takes both, and
//! other services pay.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use serde_json::{Value, json};
use smartstack_common::testing::{
    App, Dir, Load, Program, SteadyClient, Tally, ZooKeeper, free_port,
};

use crate::rig::{Rig, SOON, fixed, settings};

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn load(port: u16) -> SteadyClient {
    SteadyClient::start(Load::new(local(port)))
}

/// The built-in template, with one more line in the frontend of `thief`.
fn template(line: &str) -> String {
    let built_in = include_str!("../../../templates/service.cfg.tera");
    let begin = "frontend {{ service.frontend_name }}\n";
    assert!(built_in.contains(begin));
    let stolen = format!("{begin}{{% if service.name == \"thief\" %}}\t{line}\n{{% endif %}}");
    built_in.replacen(begin, &stolen, 1)
}

fn all_from(tally: &Tally, app: &str) {
    assert_eq!(tally.failed(), 0, "{tally}");
    let names: BTreeSet<&str> = tally.answers.keys().map(String::as_str).collect();
    assert_eq!(names, [app].into(), "{tally}");
}

/// A service runs; others come by HUP that would listen where it does: in the configuration's own lines the configuration
/// is refused, behind a template the newcomer is left out. No request of the first is answered by anybody else.
#[tokio::test]
async fn who_listens_already_keeps_every_request() {
    let (dir, port, other) = (Dir::new(), free_port(), free_port());
    let (ours, theirs) = (App::start("ours").await, App::start("theirs").await);
    let mut config = settings(&dir);
    config["services"]["web"] = fixed(port, &[ours.address.port()]);
    let stealing = dir.write("stealing.tera", template(&format!("bind *:{port}")));
    let honest = dir.write("honest.tera", template("option httplog"));
    config["haproxy"]["templates"]["service"] = json!(honest);
    let mut rig = Rig::start(dir, &config).await;
    let load = load(port);
    let before = load.more(20, SOON).await;
    all_from(&before, "ours");

    // Seen at load: the configuration is not taken.
    let mut seen = config.clone();
    seen["haproxy"].as_object_mut().unwrap().remove("templates");
    seen["haproxy"]["extra_sections"] =
        json!({"frontend thief": [format!("bind localhost:{port}")]});
    rig.configure(&seen);
    smartstack_common::testing::eventually("both are named", SOON, async || {
        let log = rig.whole_log();
        let both = format!(
            "listens on `127.0.0.1:{port}`, as `frontend thief` does on `localhost:{port}` (at"
        );
        match log.contains(&both) {
            true => Ok(()),
            false => Err(log),
        }
    })
    .await;

    // Behind a template, beside a change that is good.
    config["haproxy"]["templates"]["service"] = json!(stealing);
    config["services"]["thief"] = fixed(other, &[theirs.address.port()]);
    config["services"]["web"]["haproxy"]["frontend"] = json!(["timeout client 9s"]);
    rig.configure(&config);
    let status = rig
        .status_shows("the newcomer is quarantined", |s| {
            s["services"]["thief"]["quarantined"].is_string() && s["haproxy"]["divergence"] == 0
        })
        .await;
    let words = status["services"]["thief"]["quarantined"].as_str().unwrap();
    assert!(
        words.contains("`frontend thief` listens on") && words.contains("`frontend web` does on"),
        "{words}"
    );
    assert!(rig.text().contains("timeout client 9s"), "{}", rig.text());
    let tally = load.more(100, SOON).await;
    all_from(&tally, "ours");
    // Also over a death of haproxy and a new start of synapse.
    rig.kill_haproxy().await;
    rig.restart_synapse().await;
    let _in_between = load.reset();
    all_from(&load.more(50, SOON).await, "ours");
    // Away from the address it is served.
    config["haproxy"]["templates"]["service"] = json!(honest);
    rig.configure(&config);
    rig.status_shows("it is served", |s| {
        s["services"]["thief"]["quarantined"].is_null() && s["haproxy"]["divergence"] == 0
    })
    .await;
    all_from(
        &SteadyClient::start(Load::new(local(other)))
            .more(20, SOON)
            .await,
        "theirs",
    );
    all_from(&load.more(20, SOON).await, "ours");
    rig.assert_sound("at the end");
}

/// The host's first address that is not of the loopback, if it has any.
fn own_address() -> IpAddr {
    let all = synapse::outputs::haproxy::host::own_addresses();
    let mut v4 = all.into_iter().filter(|a| a.is_ipv4() && !a.is_loopback());
    v4.next().unwrap_or_else(|| IpAddr::from([127, 9, 9, 9]))
}

async fn connections(rig: &Rig) -> u64 {
    rig.haproxy.info().await["CumConns"].parse().unwrap()
}

fn rejected(status: &Value, service: &str) -> Vec<String> {
    let rejected = status["services"][service]["rejected"].as_array();
    let reasons = rejected.into_iter().flatten();
    reasons
        .map(|r| r["reason"].as_str().unwrap_or_default().to_owned())
        .collect()
}

#[tokio::test]
async fn a_server_that_is_our_own_frontend_is_refused_and_a_chain_is_not() {
    let zookeeper = ZooKeeper::start().await;
    let client = zookeeper.connect().await;
    let (dir, ports) = (
        Dir::new(),
        [free_port(), free_port(), free_port(), free_port()],
    );
    let [billing, front, back, registered] = ports;
    let app = App::start("app").await;
    let mut config = settings(&dir);
    // As in the files that people have: the default server is the service's own port.
    config["services"]["billing"] = json!({
        "discovery": {"method": "base"},
        "default_servers": [{"name": "fallback", "host": "localhost", "port": billing}],
        "haproxy": {"port": billing, "bind_address": "*", "server_options": "check"},
    });
    let watched = |path: &str, port: u16| {
        json!({
            "discovery": {"method": "zookeeper", "hosts": [zookeeper.hosts()], "path": path},
            "haproxy": {"port": port, "bind_address": "*"},
        })
    };
    // A chain: `front` goes to `back`, which goes to the app.
    config["services"]["front"] = fixed(front, &[back]);
    config["services"]["back"] = watched("/back", back);
    config["services"]["registered"] = watched("/registered", registered);
    let put = async |path: &str, host: &str, port: u16| {
        let payload = json!({"host": host, "port": port, "name": "i"}).to_string();
        let node = format!("{path}/i-{host}-{port}_0000000001").replace(':', "-");
        ZooKeeper::put(&client, &node, payload.as_bytes()).await;
    };
    let own = own_address().to_string();
    put("/back", "127.0.0.1", app.address.port()).await;
    put("/registered", &own, registered).await;
    let mut rig = Rig::start(dir, &config).await;
    let app_name = format!("i_{}", app.address);
    rig.serves("back", std::slice::from_ref(&app_name)).await;

    // One request each, answered at once.
    for (service, port) in [("billing", billing), ("registered", registered)] {
        let status = rig
            .status_shows("the server is refused", |s| rejected(s, service).len() == 1)
            .await;
        let words = &rejected(&status, service)[0];
        let place = format!("this host's own `frontend {service}` (`bind *:{port}`)");
        assert!(words.contains(&place), "{words}");
        let before = connections(&rig).await;
        let client = SteadyClient::start(Load {
            clients: 1,
            timeout: SOON,
            ..Load::new(local(port))
        });
        let tally = client.more(1, SOON).await;
        assert!(tally.failures.contains_key("status 503"), "{tally}");
        drop(client);
        let opened = connections(&rig).await - before;
        assert!(opened < 30, "{opened} connections for {tally}");
    }
    all_from(&load(front).more(20, SOON).await, "app");

    // The circle is closed by a znode: that one is refused, the chain stays, and so does the app.
    put("/back", "127.0.0.1", front).await;
    let status = rig
        .status_shows("what closes the circle is refused", |s| {
            rejected(s, "back").len() == 1
        })
        .await;
    let words = &rejected(&status, "back")[0];
    assert!(
        words.contains("own `frontend front`") && words.contains("over `front`"),
        "{words}"
    );
    rig.serves("back", std::slice::from_ref(&app_name)).await;
    all_from(&load(front).more(20, SOON).await, "app");
    // The same port on another host is no loop.
    put("/registered", "127.0.0.1", app.address.port()).await;
    put("/registered", "192.0.2.1", registered).await;
    rig.serves(
        "registered",
        &[app_name.clone(), format!("i_192.0.2.1:{registered}")],
    )
    .await;
    // The chain goes: what was refused leads nowhere now.
    config["services"]["front"] = fixed(front, &[app.address.port()]);
    rig.configure(&config);
    rig.serves("back", &[app_name, format!("i_127.0.0.1:{front}")])
        .await;
    let output = std::process::Command::new(Program::path("synapse"))
        .args(["render", "-c"])
        .arg(rig.dir.join("synapse.json"))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(!text.contains("fallback"), "{text}");
}
