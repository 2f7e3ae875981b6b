//! What `haproxy -c` accepts and a start does not, what is at fault in the frame, and what the check cannot see.

use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Gid, Pid, Uid, chown};
use serde_json::{Value, json};
use smartstack_common::admin::Bind;
use smartstack_common::atomic::{Durability, Mode, replace};
use smartstack_common::testing::{Dir, Haproxy, Program, ask_once, eventually, free_port};

use crate::rig::{Rig, SOON, accepted, fixed, server, settings};

/// A section that answers by itself.
fn answering(port: u16) -> Value {
    json!([
        "mode http",
        "timeout client 5s",
        format!("bind 127.0.0.1:{port}"),
        "http-request return status 200 content-type text/plain string section"
    ])
}

async fn answer(port: u16) -> Result<String, String> {
    let target = SocketAddr::from(([127, 0, 0, 1], port));
    let asked = tokio::task::spawn_blocking(move || ask_once(target));
    asked.await.unwrap()
}

fn push(list: &mut Value, line: &str) {
    list.as_array_mut().unwrap().push(json!(line));
}

#[tokio::test]
async fn a_first_start_leaves_out_the_bad_parts_of_the_frame_alone_and_names_them() {
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = other.local_addr().unwrap().port();
    let dir = Dir::new();
    let mut config = settings(&dir);
    let (good, stats, web) = (free_port(), free_port(), free_port());
    config["services"]["web"] = fixed(web, &[1, 2]);
    config["haproxy"]["extra_sections"] = json!({
        "listen taken": answering(taken),
        "frontend fine": answering(good),
        "userlist odd": ["nonsense here"],
        // The form of haproxy before 1.8.
        format!("listen stats 127.0.0.1:{stats}"): ["mode http", "timeout client 5s", "http-request return status 200"],
    });
    for line in [
        "option nosuchoption",
        "contimeout 4s",
        "timeout queue never",
    ] {
        push(&mut config["haproxy"]["defaults"], line);
    }
    push(&mut config["haproxy"]["global"], "nosuchword 7");
    let mut rig = Rig::start(dir, &config).await;
    rig.serves("web", &[server(1), server(2)]).await;
    let parts = [
        (
            "haproxy.extra_sections.listen taken",
            format!("127.0.0.1:{taken}"),
        ),
        ("haproxy.extra_sections.userlist odd", "nonsense".to_owned()),
        ("haproxy.defaults[4]", "nosuchoption".to_owned()),
        ("haproxy.defaults[6]", "timeout queue never".to_owned()),
        ("haproxy.global[1]", "nosuchword".to_owned()),
    ];
    let status = rig
        .status_shows("every part is named", |status| {
            let problems = status["problems"].as_array().cloned().unwrap_or_default();
            parts.iter().all(|(key, words)| {
                problems.iter().any(|problem| {
                    let problem = problem.as_str().unwrap_or_default();
                    problem.contains("synapse.json:")
                        && problem.contains(key)
                        && problem.contains(words.as_str())
                })
            })
        })
        .await;
    assert_eq!(
        status["problems"].as_array().unwrap().len(),
        parts.len(),
        "{status:#}"
    );
    assert_eq!(status["ready"], true, "{status:#}");
    rig.assert_sound("without the bad parts");
    let text = rig.text();
    for gone in [
        "nonsense",
        "nosuchoption",
        "nosuchword",
        "queue never",
        "listen taken",
    ] {
        assert!(!text.contains(gone), "{gone}: {text}");
    }
    assert!(text.contains("\ttimeout connect 4s\n"), "{text}");
    for port in [good, stats] {
        answer(port).await.unwrap();
    }

    // What was left out is no reason to keep the old frame when another line of it changes.
    push(&mut config["haproxy"]["global"], "maxconn 777");
    rig.configure(&config);
    eventually("the other line is taken", SOON, async || {
        let text = rig.text();
        let now = rig.haproxy.info().await;
        match text.contains("maxconn 777") && now["Maxconn"] == "777" {
            true => Ok(()),
            false => Err(format!("{text}\n{}", rig.log())),
        }
    })
    .await;
    rig.serves("web", &[server(1), server(2)]).await;

    // Mended, everything is back.
    let haproxy = &mut config["haproxy"];
    haproxy["extra_sections"] = json!({"frontend fine": answering(good)});
    haproxy["defaults"].as_array_mut().unwrap().truncate(4);
    haproxy["global"].as_array_mut().unwrap().truncate(1);
    rig.configure(&config);
    rig.status_shows("nothing is left out", |status| {
        status["problems"] == json!([]) && status["haproxy"]["divergence"] == 0
    })
    .await;
    answer(good).await.unwrap();
}

#[tokio::test]
async fn when_nothing_can_be_started_the_message_says_so() {
    let dir = Dir::new();
    let mut config = settings(&dir);
    // The one line without which nothing can be told: the stats socket, in a folder that is not there.
    let socket = dir.join("nofolder/stats.sock").display().to_string();
    config["haproxy"]["global"] = json!([]);
    config["haproxy"]["socket_file_path"] = json!(socket);
    config["services"]["web"] = fixed(free_port(), &[1]);
    let mut rig = Rig::launch(dir, &config);
    eventually("the log says it", SOON, async || {
        let log = rig.log();
        let told = ["nothing runs", "nofolder", "does not exist"];
        match told.iter().all(|words| log.contains(words)) {
            true => Ok(()),
            false => Err(log),
        }
    })
    .await;
    assert!(rig.synapse.process().ended().is_none());
}

#[tokio::test]
async fn the_last_good_frame_is_remembered_over_restarts() {
    let dir = Dir::new();
    let mut config = settings(&dir);
    let (port, section) = (free_port(), free_port());
    config["services"]["web"] = fixed(port, &[1, 2]);
    push(&mut config["haproxy"]["global"], "description of the user");
    config["haproxy"]["extra_sections"] = json!({"frontend extra": answering(section)});
    let mut rig = Rig::start(dir, &config).await;
    rig.serves("web", &[server(1), server(2)]).await;
    let worker = rig.haproxy.worker_pid().await;

    let mut bad = config.clone();
    push(&mut bad["haproxy"]["global"], "nosuchword 7");
    rig.configure(&bad);
    let told = |status: &Value| status["problems"].to_string().contains("nosuchword");
    rig.status_shows("the frame is refused", told).await;

    // A restart of synapse adopts what runs.
    rig.restart_synapse().await;
    rig.status_shows("the frame is refused after a restart", told)
        .await;
    assert_eq!(
        rig.haproxy.worker_pid().await,
        worker,
        "no reload\n{}",
        rig.log()
    );

    // A reboot starts with it, and servers go on changing.
    rig.synapse.signal(Signal::SIGKILL);
    rig.synapse.wait(SOON).await;
    rig.haproxy.kill();
    rig.start_synapse();
    rig.synapse.ready(SOON).await;
    rig.serves("web", &[server(1), server(2)]).await;
    rig.status_shows("the frame is refused after a reboot", told)
        .await;
    assert!(!rig.text().contains("nosuchword"));
    assert!(
        rig.text().contains("description of the user synapse="),
        "{}",
        rig.text()
    );
    assert_eq!(answer(section).await.unwrap(), "section");
    bad["services"]["web"] = fixed(port, &[1, 2, 3]);
    bad["services"]["other"] = fixed(free_port(), &[4]);
    rig.configure(&bad);
    rig.serves("web", &[server(1), server(2), server(3)]).await;
    rig.serves("other", &[server(4)]).await;
    rig.assert_sound("the last good frame of the file");

    rig.configure(&config);
    rig.status_shows("mended", |status| {
        status["problems"] == json!([]) && status["haproxy"]["divergence"] == 0
    })
    .await;
}

#[tokio::test]
async fn when_nothing_else_starts_the_file_on_disk_does() {
    let dir = Dir::new();
    let mut config = settings(&dir);
    let template = dir.write(
        "whole.tera",
        include_str!("../../../templates/global.cfg.tera").to_owned()
            + "{% for service in services %}"
            + include_str!("../../../templates/service.cfg.tera")
            + "{% endfor %}",
    );
    // One template makes the whole file: nothing of it can be told apart after a restart.
    config["haproxy"]["template"] = json!(template);
    config["services"]["web"] = fixed(free_port(), &[1, 2]);
    let mut rig = Rig::start(dir, &config).await;
    rig.serves("web", &[server(1), server(2)]).await;
    let good = rig.text();
    rig.synapse.signal(Signal::SIGKILL);
    rig.synapse.wait(SOON).await;
    rig.haproxy.kill();

    let broken = std::fs::read_to_string(&template).unwrap() + "\nbackend nowhere\n\tnosuchword\n";
    let _path = rig.dir.write("whole.tera", broken);
    let _path = rig.dir.write("synapse.json", config.to_string());
    rig.start_synapse();
    eventually("synapse answers", SOON, async || {
        rig.synapse.get("/status").await.map(drop)
    })
    .await;
    rig.serves("web", &[server(1), server(2)]).await;
    let status = rig
        .status_shows("it is told", |status| {
            status["problems"].to_string().contains("nosuchword")
        })
        .await;
    assert_eq!(status["ready"], false, "{status:#}");
    assert!(
        rig.log().contains("the file that was on disk"),
        "{}",
        rig.log()
    );
    assert_eq!(rig.text(), good);
}

#[tokio::test]
async fn a_user_or_chroot_that_fails_is_not_tried_on_a_living_haproxy() {
    let dir = Dir::new();
    let mut config = settings(&dir);
    let port = free_port();
    config["services"]["web"] = fixed(port, &[1, 2]);
    let mut rig = Rig::start(dir, &config).await;
    rig.serves("web", &[server(1), server(2)]).await;
    let folder = rig.dir.join("nochroot").display().to_string();
    for (line, words) in [
        (format!("chroot {folder}"), "does not exist"),
        // Accepted by the check; it fails before the old worker is touched.
        ("ulimit-n 1000000000".to_owned(), "FD limit"),
        (
            format!("stats socket {folder}/x.sock level admin"),
            "does not exist",
        ),
    ] {
        let worker = rig.haproxy.worker_pid().await;
        let mut bad = config.clone();
        push(&mut bad["haproxy"]["global"], &line);
        bad["services"]["web"] = fixed(port, &[1, 3]);
        rig.configure(&bad);
        rig.status_shows(&line, |status| {
            status["problems"].to_string().contains(words)
        })
        .await;
        rig.serves("web", &[server(1), server(3)]).await;
        rig.status_shows("the rest is as wanted", |status| {
            status["haproxy"]["divergence"] == 0
        })
        .await;
        assert_eq!(
            rig.haproxy.worker_pid().await,
            worker,
            "{line}\n{}",
            rig.log()
        );
        accepted(&rig.config_file()).unwrap();
        assert!(!rig.text().contains(&line));
        rig.kill_haproxy().await;
        rig.serves("web", &[server(1), server(3)]).await;
        rig.configure(&config);
        rig.serves("web", &[server(1), server(2)]).await;
        rig.status_shows("mended", |status| status["problems"] == json!([]))
            .await;
    }
}

const NOBODY: u32 = 65534;

/// haproxy as root, synapse as nobody, which may not read what haproxy may.
#[tokio::test]
async fn a_check_that_cannot_see_is_no_refusal() {
    let dir = Dir::new();
    let secret = dir.write("secret.http", "HTTP/1.0 503 No\r\n\r\nsecret\n");
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::create_dir(dir.join("haproxy")).unwrap();
    for path in [dir.path().to_owned(), dir.join("haproxy")] {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        chown(
            &path,
            Some(Uid::from_raw(NOBODY)),
            Some(Gid::from_raw(NOBODY)),
        )
        .unwrap();
    }
    let (plain, sees) = (free_port(), free_port());
    let stats = dir.join("stats.sock");
    let socket = format!(
        "stats socket {} mode 666 level admin expose-fd listeners",
        stats.display()
    );
    let mut config = settings(&dir);
    config["haproxy"]["supervise"] = json!(false);
    // Somebody with the rights to reload does it.
    let request = dir.join("haproxy/reload");
    let asks = format!(
        "touch {0}; while [ -e {0} ]; do sleep 0.02; done",
        request.display()
    );
    config["haproxy"]["reload_command"] = json!(asks);
    config["haproxy"]["global"] = json!([socket]);
    config["services"]["plain"] = fixed(plain, &[1, 2]);
    config["services"]["sees"] = fixed(sees, &[]);
    config["services"]["sees"]["default_servers"] =
        json!([{"name": "s1", "host": "127.0.0.1", "port": 1}]);
    config["services"]["sees"]["haproxy"]["backend"] = json!([
        format!("errorfile 503 {}", secret.display()),
        "http-request return status 503 default-errorfiles",
    ]);
    let file = dir.join("haproxy/haproxy.cfg");
    let first = format!(
        "global\n\t{socket}\nfrontend f\n\tbind 127.0.0.1:{}\n",
        free_port()
    );
    replace(&file, [first], Mode::Kept(0o644), Durability::Rename).unwrap();
    let mut haproxy = Haproxy::start(&file, &stats).await;
    let pid = std::fs::read_to_string(dir.join("haproxy/haproxy.pid")).unwrap();
    let pid = Pid::from_raw(pid.trim().parse().unwrap());
    let mut reloader = tokio::task::JoinSet::new();
    reloader.spawn(async move {
        let mut ticks = tokio::time::interval(Duration::from_millis(20));
        loop {
            ticks.tick().await;
            if request.exists() {
                kill(pid, Signal::SIGUSR2).unwrap();
                std::fs::remove_file(&request).unwrap();
            }
        }
    });
    let _path = dir.write("synapse.json", config.to_string());
    let admin = Bind::Unix(dir.join("admin.sock"));
    let mut synapse = Program::start_as(
        NOBODY,
        &dir.join("program"),
        "synapse",
        &dir,
        &["-c", "synapse.json"],
        admin,
    );
    synapse.ready(SOON).await;
    haproxy.ready().await;
    let answers = async |port: u16, words: &str| {
        eventually("it answers", SOON, async || {
            let said = match answer(port).await {
                Ok(said) => said,
                Err(error) => error,
            };
            if said.contains(words) {
                Ok(())
            } else {
                Err(said)
            }
        })
        .await;
    };
    answers(sees, "503").await;
    let shows = async |what: &str, holds: &dyn Fn(&Value) -> bool| {
        eventually(what, SOON, async || {
            let status = synapse.status().await;
            if holds(&status) {
                Ok(())
            } else {
                Err(format!("{status:#}"))
            }
        })
        .await;
    };
    shows("nothing is quarantined, and it is told", &|status| {
        let services = status["services"].as_object().unwrap();
        services
            .values()
            .all(|service| service["quarantined"].is_null())
            && status["problems"].to_string().contains("may not read")
            && status["haproxy"]["divergence"] == 0
    })
    .await;

    // What can be seen is still judged: the next reload is not spoiled by it.
    config["services"]["plain"]["haproxy"]["backend"] = json!(["nosuchword"]);
    config["services"]["new"] = fixed(free_port(), &[4]);
    let _path = dir.write("synapse.json", config.to_string());
    synapse.signal(Signal::SIGHUP);
    shows("the bad one is found, the others proceed", &|status| {
        let quarantined = |name: &str| status["services"][name]["quarantined"].clone();
        quarantined("plain").to_string().contains("nosuchword")
            && quarantined("sees").is_null()
            && quarantined("new").is_null()
            && status["haproxy"]["state"] == "serving"
    })
    .await;
    answers(sees, "503").await;
    // It rests: what is unknown is not asked for again and again.
    let before = synapse.metric("synapse_reloads_total").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(synapse.metric("synapse_reloads_total").await, before);
}
