//! Configurations and options that haproxy refuses, met while running: they cost the service, or the server, that they
//! belong to. Everything beside goes on, the file on disk stays one that haproxy would start on, and `/status` names the
//! culprit. The registry is not needed for most of it: services with servers of the configuration, changed by HUP.
//!
//! Over 600 lines because each refusal is a scene of its own on the same stage.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod own;
#[path = "refused/removed.rs"]
mod removed;
mod rig;
#[path = "refused/starts.rs"]
mod starts;

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;

use serde_json::{Value, json};
use smartstack_common::admin::Bind;
use smartstack_common::testing::{App, Dir, Haproxy, ZooKeeper, eventually, free_port, get};

use rig::{Rig, SOON, fixed, server, settings};

/// A rig with three services: `kept`, `gone` and `bad`, all of them good.
struct Site {
    rig: Rig,
    config: Value,
    ports: [u16; 4],
}

/// Names of the servers `1` and `2` of every service.
fn both() -> Vec<String> {
    vec![server(1), server(2)]
}

impl Site {
    async fn start() -> Self {
        Self::start_with(|_, _| {}).await
    }

    async fn start_with(edit: impl FnOnce(&mut Value, &Dir)) -> Self {
        let dir = Dir::new();
        let mut config = settings(&dir);
        let ports = [free_port(), free_port(), free_port(), free_port()];
        for (name, port) in ["kept", "gone", "bad"].into_iter().zip(ports) {
            config["services"][name] = fixed(port, &[1, 2]);
        }
        edit(&mut config, &dir);
        let rig = Rig::start(dir, &config).await;
        let mut site = Self { rig, config, ports };
        for name in ["kept", "gone", "bad"] {
            site.rig.serves(name, &both()).await;
        }
        site.rig.assert_sound("at the start");
        site
    }

    /// Beside whatever was done to `bad`: a new service, a service less, and a changed frontend line, all by one HUP.
    fn change_the_others(&mut self) {
        let services = self.config["services"].as_object_mut().unwrap();
        services.remove("gone");
        services.insert("new".to_owned(), fixed(self.ports[3], &[1, 2]));
        services["kept"]["haproxy"]["frontend"] = json!(["timeout client 11s"]);
        self.rig.configure(&self.config);
    }

    /// The three changes have taken place.
    async fn others_changed(&mut self, what: &str) {
        for name in ["kept", "new"] {
            self.rig.serves(name, &both()).await;
        }
        self.rig
            .status_shows(&format!("{what}: the service is gone"), |status| {
                status["services"]["gone"].is_null() && status["haproxy"]["divergence"] == 0
            })
            .await;
        let text = self.rig.text();
        assert!(text.contains("\ttimeout client 11s\n"), "{what}: {text}");
        assert!(!text.contains("backend gone\n"), "{what}: {text}");
        self.rig.assert_sound(what);
    }

    /// Why `bad` is quarantined, once it is.
    async fn quarantined(&self, what: &str) -> String {
        let status = self
            .rig
            .status_shows(&format!("{what}: `bad` is quarantined"), |status| {
                status["services"]["bad"]["quarantined"].is_string()
            })
            .await;
        for (name, service) in status["services"].as_object().unwrap() {
            assert!(
                name == "bad" || service["quarantined"].is_null(),
                "{what}: {name} is quarantined too: {status:#}"
            );
        }
        status["services"]["bad"]["quarantined"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    /// A haproxy that dies now comes back with what it had.
    async fn survives_a_death(&mut self, what: &str, bad: &[String]) {
        self.rig.kill_haproxy().await;
        for name in ["kept", "new"] {
            self.rig.serves(name, &both()).await;
        }
        self.rig.serves("bad", bad).await;
        self.rig.assert_sound(what);
    }

    /// The service as it was, by HUP: it is served again.
    async fn mended(&mut self, what: &str) {
        self.config["services"]["bad"] = fixed(self.ports[2], &[1, 2, 3]);
        self.rig.configure(&self.config);
        self.rig
            .serves("bad", &[server(1), server(2), server(3)])
            .await;
        self.rig
            .status_shows(&format!("{what}: nothing is quarantined"), |status| {
                status["services"]["bad"]["quarantined"].is_null()
                    && status["problems"] == json!([])
                    && status["haproxy"]["divergence"] == 0
            })
            .await;
        self.rig.assert_sound(what);
    }
}

#[tokio::test]
async fn refused_server_options_cost_their_service_only() {
    let mut site = Site::start().await;
    for (round, (options, words)) in [
        ("ssl verify required", "CA file"),
        ("track nosuch/x", "nosuch"),
        ("resolvers x", "resolvers"),
        ("proto h9", "h9"),
        ("weight 300", "weight"),
    ]
    .into_iter()
    .enumerate()
    {
        let bad = &mut site.config["services"]["bad"];
        // Another server, and options of one server's own, are no way round it.
        *bad = fixed(site.ports[2], &[1, 2, 4]);
        bad["haproxy"]["server_options"] = json!(options);
        bad["default_servers"][1]["haproxy_server_options"] = json!("backup");
        if round == 0 {
            site.change_the_others();
            site.others_changed(options).await;
        } else {
            let other = fixed(
                site.ports[3],
                if round % 2 == 0 { &[1, 2] } else { &[1, 3] },
            );
            site.config["services"]["new"] = other;
            site.rig.configure(&site.config);
            site.rig
                .serves(
                    "new",
                    &[server(1), server(if round % 2 == 0 { 2 } else { 3 })],
                )
                .await;
        }
        let reason = site.quarantined(options).await;
        assert!(reason.contains(words), "{options}: {reason}");
        // What was there before is still served; what of the new servers the last good form can hold is a bonus.
        let live = site.rig.live("bad").await;
        assert!(
            live.contains(&server(1)) && live.contains(&server(2)),
            "{options}: {live:?}"
        );
        if round == 0 {
            let live: Vec<String> = live.into_iter().collect();
            site.survives_a_death(options, &live).await;
            // Nor does it matter who starts anew on the bad configuration: synapse, or both.
            site.rig.restart_synapse().await;
            assert!(site.quarantined(options).await.contains(words));
            site.rig.serves("bad", &live).await;
            site.rig.haproxy.kill();
            site.rig.restart_synapse().await;
            assert!(site.quarantined(options).await.contains(words));
            site.rig.serves("bad", &live).await;
            site.rig.serves("kept", &both()).await;
        }
        site.rig.assert_sound(options);
        site.mended(options).await;
    }
}

#[tokio::test]
async fn a_service_that_was_never_good_is_left_out() {
    let mut site = Site::start().await;
    // Accepted as long as it has no server: each of them is refused.
    let bad = &mut site.config["services"]["bad"];
    *bad = fixed(site.ports[2], &[]);
    bad["discovery"] = json!({"method": "base"});
    bad["default_servers"] = json!([{"name": "s1", "host": "127.0.0.1", "port": 1}]);
    bad["haproxy"]["backend_name"] = json!("bad2");
    bad["haproxy"]["backend"] = json!(["nosuchword"]);
    site.change_the_others();
    site.others_changed("unknown keyword").await;
    let reason = site.quarantined("unknown keyword").await;
    assert!(reason.contains("nosuchword"), "{reason}");
    site.rig.kill_haproxy().await;
    site.rig.serves("new", &both()).await;
    site.mended("unknown keyword").await;

    // An address that this machine does not have shows only when a worker binds it.
    site.config["services"]["bad"]["haproxy"]["bind_address"] = json!("203.0.113.7");
    site.config["services"]["new"] = fixed(site.ports[3], &[1, 5]);
    site.rig.configure(&site.config);
    site.rig.serves("new", &[server(1), server(5)]).await;
    let reason = site.quarantined("foreign address").await;
    assert!(reason.contains("203.0.113.7"), "{reason}");
    site.rig
        .serves("bad", &[server(1), server(2), server(3)])
        .await;
    site.rig.kill_haproxy().await;
    site.rig
        .serves("bad", &[server(1), server(2), server(3)])
        .await;
    site.mended("foreign address").await;
}

#[tokio::test]
async fn a_port_of_another_process_costs_its_service_only() {
    let mut site = Site::start().await;
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = other.local_addr().unwrap().port();
    site.config["services"]["bad"]["haproxy"]["port"] = json!(taken);
    site.change_the_others();
    site.others_changed("taken port").await;
    let reason = site.quarantined("taken port").await;
    assert!(reason.contains(&taken.to_string()), "{reason}");
    site.survives_a_death("taken port", &both()).await;
    assert!(
        site.rig
            .text()
            .contains(&format!("bind 127.0.0.1:{}\n", site.ports[2])),
        "its last good port"
    );

    // While haproxy is dead, another process takes a port that was good: a start without that service beats none.
    let pid = site.rig.synapse.process().pid();
    site.rig.synapse.signal(nix::sys::signal::Signal::SIGSTOP);
    site.rig.haproxy.kill();
    let thief = eventually("its port is free", SOON, async || {
        TcpListener::bind(("127.0.0.1", site.ports[2]))
    })
    .await;
    site.rig.synapse.signal(nix::sys::signal::Signal::SIGCONT);
    site.rig.serves("kept", &both()).await;
    site.rig.serves("new", &both()).await;
    assert_eq!(site.rig.synapse.process().pid(), pid);
    site.rig.assert_sound("stolen port");
    drop((thief, other));
    site.mended("taken port").await;
}

#[tokio::test]
async fn a_template_that_fails_for_one_service_costs_that_one_only() {
    let built_in = include_str!("../../templates/service.cfg.tera");
    let mut site = Site::start_with(|config, dir| {
        let template = dir.write("service.tera", built_in);
        config["haproxy"]["templates"] = json!({"service": template});
    })
    .await;
    let broken = r#"{% if service.name == "bad" %}{{ nosuch }}{% endif %}"#;
    let _path = site
        .rig
        .dir
        .write("service.tera", format!("{broken}{built_in}"));
    site.change_the_others();
    site.others_changed("template").await;
    let reason = site.quarantined("template").await;
    assert!(
        reason.contains("nosuch") && reason.contains("service.tera"),
        "{reason}"
    );
    site.survives_a_death("template", &both()).await;
    let _path = site.rig.dir.write("service.tera", built_in);
    site.mended("template").await;

    // One that renders what haproxy refuses, for that service.
    let broken = r#"{% if service.name == "bad" %}	no such line{% endif %}"#;
    let _path = site
        .rig
        .dir
        .write("service.tera", format!("{built_in}{broken}"));
    site.config["services"]["new"] = fixed(site.ports[3], &[1, 6]);
    site.rig.configure(&site.config);
    site.rig.serves("new", &[server(1), server(6)]).await;
    site.quarantined("refused template").await;
    site.rig.assert_sound("refused template");

    // One that does not parse: the new configuration is not taken at all.
    let _path = site.rig.dir.write("service.tera", "{% if %}");
    site.config["services"]["new"] = fixed(site.ports[3], &[1, 7]);
    site.rig.configure(&site.config);
    eventually("the log says so", SOON, async || {
        let log = site.rig.log();
        if log.contains("nothing changes") {
            Ok(())
        } else {
            Err(log)
        }
    })
    .await;
    site.rig.serves("new", &[server(1), server(6)]).await;
    let _path = site.rig.dir.write("service.tera", built_in);
    site.mended("template that does not parse").await;
}

#[tokio::test]
async fn a_refused_frame_keeps_the_last_good_one() {
    let mut site = Site::start().await;
    let global = site.config["haproxy"]["global"].clone();
    site.config["haproxy"]["global"]
        .as_array_mut()
        .unwrap()
        .push(json!("nosuchword 7"));
    site.rig.configure(&site.config);
    let told = |status: &Value| status["problems"].to_string().contains("nosuchword");
    site.rig.status_shows("the frame is refused", told).await;
    site.rig.assert_sound("refused frame");
    assert!(!site.rig.text().contains("nosuchword"));

    // Removals and additions go on, in the last good frame.
    site.config["services"]["kept"] = fixed(site.ports[0], &[1]);
    site.rig.configure(&site.config);
    site.rig.serves("kept", &[server(1)]).await;
    site.rig.status_shows("still told", told).await;
    eventually("the file follows", SOON, async || {
        let text = site.rig.text();
        let kept = text
            .split("backend kept\n")
            .nth(1)
            .unwrap_or_default()
            .lines()
            .take(2)
            .collect::<Vec<_>>();
        if text.matches(&server(2)).count() > 0
            && !kept.join("").contains(&server(2))
            && !text.contains("nosuchword")
        {
            Ok(())
        } else {
            Err(text)
        }
    })
    .await;
    site.rig.assert_sound("refused frame, a server less");
    site.config["services"]["kept"] = fixed(site.ports[0], &[1, 8]);
    site.change_the_others();
    site.rig.serves("kept", &[server(1), server(8)]).await;
    site.rig.serves("new", &both()).await;
    site.rig.status_shows("still told", told).await;
    site.survives_frame().await;

    site.config["haproxy"]["global"] = global;
    site.mended("refused frame").await;
}

impl Site {
    async fn survives_frame(&mut self) {
        self.rig.kill_haproxy().await;
        self.rig.serves("kept", &[server(1), server(8)]).await;
        self.rig.serves("new", &both()).await;
        self.rig.assert_sound("refused frame, haproxy killed");
    }
}

#[tokio::test]
async fn refused_options_of_znodes_cost_their_servers_only() {
    const PATH: &str = "/services/web";
    let zookeeper = ZooKeeper::start().await;
    let client = zookeeper.connect().await;
    let dir = Dir::new();
    let mut config = settings(&dir);
    config["haproxy"]["allowed_server_options"] = json!([
        "ssl",
        "verify",
        "track",
        "resolvers",
        "proto",
        "ca-file",
        "observe",
        "sni"
    ]);
    config["services"]["web"] = json!({
        "discovery": {"method": "zookeeper", "hosts": [zookeeper.hosts()], "path": PATH},
        "haproxy": {"port": free_port(), "bind_address": "127.0.0.1", "server_options": "inter 3s"},
    });
    config["services"]["fixed"] = fixed(free_port(), &[1, 2]);
    for port in [1, 2] {
        let data =
            json!({"host": "127.0.0.1", "port": port, "name": format!("s{port}")}).to_string();
        ZooKeeper::make_ephemeral(&client, &format!("{PATH}/good_{port:010}"), data.as_bytes())
            .await;
    }
    let mut rig = Rig::start(dir, &config).await;
    rig.serves("web", &both()).await;
    let rows = [
        "ssl verify required",
        "track nosuch/x",
        "resolvers x",
        "proto h9",
        "ssl verify none sni nonsense",
        "ssl ca-file /no/such.pem",
        "check observe nonsense",
        "backup track web/nosuch",
    ];
    for (index, options) in rows.into_iter().enumerate() {
        let port = 100 + index;
        let bad = json!({"host": "127.0.0.1", "port": port, "name": "bad", "haproxy_server_options": options});
        let good = json!({"host": "127.0.0.1", "port": port, "name": "good", "haproxy_server_options": "backup"});
        for (name, data) in [("bad", bad), ("good", good)] {
            let znode = format!("{PATH}/{name}_{port:010}");
            ZooKeeper::make_ephemeral(&client, &znode, data.to_string().as_bytes()).await;
        }
        let mut all = both();
        all.extend((0..=index).map(|index| format!("good_127.0.0.1:{}", 100 + index)));
        rig.serves("web", &all).await;
        let status = rig
            .status_shows(&format!("{options} is told"), |status| {
                let rejected = status["services"]["web"]["rejected"].as_array().unwrap();
                rejected.len() == index + 1 && status["haproxy"]["divergence"] == 0
            })
            .await;
        let rejected = &status["services"]["web"]["rejected"].as_array().unwrap()[index];
        assert_eq!(rejected["znode"], format!("bad_{port:010}"));
        assert!(
            rejected["reason"].as_str().unwrap().contains(options),
            "{rejected}"
        );
        assert!(
            status["services"]["web"]["quarantined"].is_null(),
            "{status:#}"
        );
        rig.assert_sound(options);
    }
    rig.kill_haproxy().await;
    rig.serves("fixed", &both()).await;
    assert_eq!(rig.live("web").await.len(), 2 + rows.len());
}

/// How many lines of a file are of this server.
fn lines(text: &str, port: u16) -> usize {
    text.matches(&format!("\tserver {} ", server(port))).count()
}

#[tokio::test]
async fn while_every_reload_fails_removals_go_on_and_the_file_stays_good() {
    let mut site = Site::start_with(|config, dir| {
        let (file, stats) = (dir.join("haproxy/haproxy.cfg"), dir.join("stats.sock"));
        // One switch for the test: the command fails while this file is there.
        let broken = dir.join("broken").display().to_string();
        let command = Haproxy::reload_command(&file, &stats);
        let haproxy = config["haproxy"].as_object_mut().unwrap();
        haproxy.remove("supervise");
        haproxy.insert(
            "reload_command".to_owned(),
            json!(format!(
                "if [ -e {broken} ]; then echo reloads are broken; exit 3; fi; {command}"
            )),
        );
    })
    .await;
    let switch = site.rig.dir.write("broken", "");
    let worker = site.rig.haproxy.worker_pid().await;
    // An addition and another structure need a reload; a removal does not.
    site.config["services"]["kept"] = fixed(site.ports[0], &[1, 2, 9]);
    site.config["services"]["bad"]["haproxy"]["frontend"] = json!(["timeout client 12s"]);
    site.config["services"]["gone"] = fixed(site.ports[1], &[2]);
    site.rig.configure(&site.config);
    site.rig.serves("gone", &[server(2)]).await;
    let failing = site
        .rig
        .status_shows("the failure is told", |status| {
            status["haproxy"]["reload_failures"].as_u64() >= Some(2)
                && status["problems"]
                    .to_string()
                    .contains("reloads are broken")
        })
        .await;
    assert_eq!(failing["haproxy"]["last_reload"]["ok"], false);
    // The servers of now stand in the file, the other structure does not.
    eventually(
        "the file is the last good structure with the servers of now",
        SOON,
        async || {
            let text = site.rig.text();
            if lines(&text, 1) == 2 && lines(&text, 9) == 1 && !text.contains("client 12s") {
                Ok(())
            } else {
                Err(text)
            }
        },
    )
    .await;
    site.rig.assert_sound("while reloads fail");
    site.config["services"]["bad"]["default_servers"]
        .as_array_mut()
        .unwrap()
        .pop();
    site.rig.configure(&site.config);
    site.rig.serves("bad", &[server(1)]).await;
    site.rig.assert_sound("while reloads fail, another removal");
    assert_eq!(
        site.rig.haproxy.worker_pid().await,
        worker,
        "the worker is the same"
    );
    // The HUP has forgiven what failed before; from then on the back-off grows: at once, 1 s, 2 s, ...
    let failures = |status: &Value| status["haproxy"]["reload_failures"].as_u64().unwrap();
    let (start, before) = (
        tokio::time::Instant::now(),
        failures(&site.rig.synapse.status().await),
    );
    site.rig
        .status_shows("three failures more", |status| {
            failures(status) >= before + 3
        })
        .await;
    assert!(start.elapsed().as_secs_f64() > 2.5, "{:?}", start.elapsed());

    std::fs::remove_file(switch).unwrap();
    site.rig.configure(&site.config);
    site.rig
        .serves("kept", &[server(1), server(2), server(9)])
        .await;
    site.rig
        .status_shows("nothing is wrong any more", |status| {
            status["problems"] == json!([]) && status["haproxy"]["divergence"] == 0
        })
        .await;
    site.rig.assert_sound("mended");
}

#[tokio::test]
async fn a_folder_that_takes_no_file_is_a_divergence_and_never_a_stop() {
    let mut site = Site::start().await;
    // Renamed away: no user can create a file in it, root neither, until it is back.
    let (folder, away) = (site.rig.dir.join("haproxy"), site.rig.dir.join("away"));
    std::fs::rename(&folder, &away).unwrap();
    let _blocked = site.rig.dir.write("haproxy", "not a folder");
    site.config["services"]["kept"] = fixed(site.ports[0], &[1]);
    site.rig.configure(&site.config);
    site.rig.serves("kept", &[server(1)]).await;
    site.config["services"]["bad"] = fixed(site.ports[2], &[1, 2, 3]);
    site.rig.configure(&site.config);
    let status = site
        .rig
        .status_shows("it is told", |status| {
            status["problems"].to_string().contains("haproxy.cfg")
                && status["haproxy"]["divergence"] != 0
        })
        .await;
    assert_eq!(status["ready"], true);
    // The worker is brought up to date all the same.
    site.rig
        .serves("bad", &[server(1), server(2), server(3)])
        .await;
    assert!(site.rig.synapse.process().ended().is_none());

    std::fs::remove_file(&folder).unwrap();
    std::fs::rename(&away, &folder).unwrap();
    site.rig.configure(&site.config);
    site.rig
        .serves("bad", &[server(1), server(2), server(3)])
        .await;
    site.rig
        .status_shows("nothing is wrong any more", |status| {
            status["problems"] == json!([]) && status["haproxy"]["divergence"] == 0
        })
        .await;
    site.rig.assert_sound("the folder is back");
}

#[tokio::test]
async fn a_snapshot_that_cannot_be_written_is_a_warning_and_a_number() {
    let mut site = Site::start_with(|config, dir| {
        // Its folder is a file.
        let _file = dir.write("state", "not a folder");
        assert!(dir.join("state").metadata().unwrap().permissions().mode() > 0);
        config["snapshot_path"] = json!(dir.join("state/snapshot.json"));
    })
    .await;
    eventually("the failures are counted", SOON, async || {
        let count = site
            .rig
            .synapse
            .metric("synapse_snapshot_write_failures_total")
            .await;
        if count > Some(0.0) {
            Ok(())
        } else {
            Err(site.rig.synapse.get("/metrics").await.unwrap().body)
        }
    })
    .await;
    assert!(
        site.rig.log().contains("the snapshot cannot be written"),
        "{}",
        site.rig.log()
    );
    site.config["services"]["bad"] = fixed(site.ports[2], &[1, 3]);
    site.change_the_others();
    site.others_changed("no snapshot").await;
    site.rig.serves("bad", &[server(1), server(3)]).await;
}

/// Whoever names a service that is left out stays whole: an extra section, the shared frontend, another service.
#[tokio::test]
async fn what_names_a_service_that_is_left_out_is_served() {
    let app = App::start("app").await;
    let dir = Dir::new();
    let mut config = settings(&dir);
    let ports = [(); 6].map(|()| free_port());
    let [kept, bad, off, shared, extra, late] = ports;
    for (name, port) in [("kept", kept), ("bad", bad), ("off", off)] {
        config["services"][name] = fixed(port, &[app.address.port()]);
    }
    let names = |port: u16| {
        json!([
            format!("bind 127.0.0.1:{port}"),
            "use_backend bad if { path /bad }",
            format!(
                "use_backend off if {{ path /off }} or {{ srv_is_up(off/{}) }}",
                server(app.address.port())
            ),
            "default_backend kept",
        ])
    };
    let both = json!([
        "use_backend bad if { path /bad }",
        "use_backend off if { path /off } { nbsrv(off) ge 0 }"
    ]);
    config["services"]["kept"]["haproxy"]["frontend"] = both;
    config["services"]["off"]["haproxy"]["disabled"] = json!(true);
    config["services"]["bad"]["haproxy"]["backend"] = json!(["mode http", "timeout server oops"]);
    config["haproxy"]["shared_frontend"] = names(shared);
    config["haproxy"]["extra_sections"] = json!({"frontend extra": names(extra)});
    let mut rig = Rig::start(dir, &config).await;
    let says = async |port: u16, path: &str| {
        let bind = Bind::Tcp(format!("127.0.0.1:{port}"));
        get(&bind, path).await.unwrap().status
    };
    for port in [kept, shared, extra] {
        assert_eq!(says(port, "/").await, 200, "{}", rig.whole_log());
        assert_eq!(says(port, "/bad").await, 503);
        assert_eq!(says(port, "/off").await, 503);
    }
    rig.assert_sound("a service is refused and one is disabled");
    let status = rig.synapse.status().await;
    let words = status["services"]["bad"]["quarantined"].as_str().unwrap();
    assert!(
        words.contains("timeout server") && words.contains("tried again"),
        "{words}"
    );
    assert_eq!(status["problems"], json!([]), "{status:#}");
    let log = rig.whole_log();
    assert!(
        !log.contains("unable to find"),
        "only the cause is told: {log}"
    );
    assert_eq!(log.matches("haproxy refuses").count(), 1, "{log}");

    // Both come back, and another one goes while it is named.
    config["services"]["bad"]["haproxy"]["backend"] = json!(["mode http"]);
    config["services"]["off"]["haproxy"]["disabled"] = json!(false);
    config["services"]["late"] = fixed(late, &[app.address.port()]);
    config["services"]["late"]["haproxy"]["frontend"] =
        json!(["use_backend kept if { path /kept }"]);
    rig.configure(&config);
    rig.status_shows("both are there", |status| {
        status["services"]["bad"]["quarantined"].is_null()
            && status["services"]["late"].is_object()
            && status["haproxy"]["divergence"] == 0
    })
    .await;
    assert_eq!(
        rig.text().matches("\nbackend bad\n").count(),
        1,
        "{}",
        rig.text()
    );
    for (port, path) in [
        (extra, "/bad"),
        (shared, "/off"),
        (late, "/kept"),
        (bad, "/"),
    ] {
        assert_eq!(says(port, path).await, 200, "{path}");
    }
    config["services"]["kept"]["haproxy"]["disabled"] = json!(true);
    rig.configure(&config);
    let closed = async || match says(late, "/kept").await {
        503 => Ok(()),
        other => Err(format!("{other}")),
    };
    eventually(
        "a disabled service answers 503 where it is named",
        SOON,
        closed,
    )
    .await;
    rig.assert_sound("a named service was disabled");
}
