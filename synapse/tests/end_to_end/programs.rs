//! The programs themselves: signals, listeners, command lines, locks.

use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use smartstack_common::testing::{App, Program, eventually, free_port};

use crate::pair::{Pair, SOON, Traffic, Way, answer, answers, in_step, reloads, status};

/// Every nerve of a service leaves at once, and others come: haproxy is told nothing.
#[tokio::test]
async fn all_nerves_are_upgraded_at_once_and_no_server_goes() {
    let mut pair = Pair::start(Way::Supervise).await;
    pair.config["services"]["web"]["haproxy"]["server_options"] = json!("check inter 500");
    let mut nerves = Vec::new();
    let mut apps = Vec::new();
    for name in ["a", "b", "c", "d"] {
        let app = App::start(name).await;
        nerves.push(pair.nerve(&app).await);
        apps.push(app);
    }
    let synapse = pair.serving().await;
    for app in &apps {
        pair.until(app, "ready").await;
    }
    let before = in_step(&synapse).await;
    let traffic = Traffic::start(pair.port).await;
    for round in 0..5 {
        let mut former = Vec::new();
        for nerve in &nerves {
            former.push(nerve.node().await.unwrap());
        }
        for nerve in &nerves {
            nerve.program.signal(Signal::SIGUSR2);
        }
        for nerve in &mut nerves {
            assert_eq!(nerve.program.wait(SOON).await.code(), Some(0));
            nerve.start_again();
        }
        for (nerve, former) in nerves.iter_mut().zip(&former) {
            nerve.program.ready(SOON).await;
            eventually("its node is another one", SOON, async || {
                match nerve.node().await {
                    Some(node) if node != *former => Ok(()),
                    other => Err(format!("round {round}: {other:?}")),
                }
            })
            .await;
        }
        traffic.more(20).await;
    }
    let after = in_step(&synapse).await;
    let told = |status: &Value| {
        ["pid", "reloads", "runtime_ops"].map(|key| status["haproxy"][key].as_u64().unwrap())
    };
    assert_eq!(told(&after), told(&before), "{}", pair.log());
    assert_eq!(after["services"]["web"]["guard"]["trips"], 0);
    traffic.unharmed().await;
}

#[tokio::test]
async fn a_hangup_applies_the_differences_and_a_broken_file_changes_nothing() {
    let mut pair = Pair::start(Way::Supervise).await;
    let (leaving, joining) = (free_port(), free_port());
    let (a, b, c) = (
        App::start("a").await,
        App::start("b").await,
        App::start("c").await,
    );
    let path = |name: &str| format!("/nerve/services/{name}/services");
    pair.config["services"]["old"] = pair.service(&path("old"), leaving);
    pair.register(&a).await;
    pair.register_in(&path("old"), &b, &json!({})).await;
    pair.register_in(&path("new"), &c, &json!({})).await;
    let synapse = pair.serving().await;
    answers(leaving, &["b"]).await;
    in_step(&synapse).await;
    let traffic = Traffic::start(pair.port).await;
    let before = reloads(&synapse).await;

    let services = pair.config["services"].as_object_mut().unwrap();
    services.remove("old");
    pair.config["services"]["new"] = pair.service(&path("new"), joining);
    pair.config["services"]["web"]["haproxy"]["server_options"] = json!("maxconn 100");
    let _path = pair.configure();
    synapse.signal(Signal::SIGHUP);
    answers(joining, &["c"]).await;
    assert!(
        tokio::net::TcpStream::connect(("127.0.0.1", leaving))
            .await
            .is_err(),
        "nobody listens for a service that is gone"
    );
    assert!(pair.file().contains(" maxconn 100"), "{}", pair.file());
    let after = in_step(&synapse).await;
    assert!(after["services"].get("old").is_none());
    assert_eq!(reloads(&synapse).await, before + 1);

    let (file, made) = (pair.file(), reloads(&synapse).await);
    let mut broken = pair.config.clone();
    broken["services"]["web"]["haproxy"]["port"] = json!("not a port");
    let _path = pair.dir.write("synapse.json", broken.to_string());
    synapse.signal(Signal::SIGHUP);
    eventually("the refusal is in the log", SOON, async || {
        let log = pair.log();
        if log.contains("reload failed, keeping the running configuration")
            && log.contains("not a port")
        {
            Ok(())
        } else {
            Err(log)
        }
    })
    .await;
    answers(joining, &["c"]).await;
    assert_eq!(pair.file(), file);
    assert_eq!(reloads(&synapse).await, made);

    // It still follows the registry, under the former configuration.
    let d = App::start("d").await;
    pair.register(&d).await;
    answers(pair.port, &["a", "d"]).await;
    traffic.unharmed().await;
}

#[tokio::test]
async fn both_programs_tell_what_they_do() {
    let pair = Pair::start(Way::Supervise).await;
    let app = App::start("a").await;
    let nerve = pair.nerve(&app).await;
    let synapse = pair.serving().await;
    answers(pair.port, &["a"]).await;

    let status = in_step(&synapse).await;
    envelope(&status, "synapse");
    let web = &status["services"]["web"];
    assert_eq!(web["origin"], "live");
    assert!(web["agreed_at"].is_f64() && web["hold"].is_null(), "{web}");
    assert_eq!(web["rejected"], json!([]));
    // It agrees now, however long nothing has changed.
    let agreed = |status: &Value| status["services"]["web"]["agreed_at"].as_f64();
    let moves = |now: &Value| agreed(now) > agreed(&status);
    crate::pair::status(&synapse, "agreed_at moves", moves).await;
    let server = &web["servers"][0];
    assert_eq!(server["address"], "127.0.0.1");
    assert_eq!(server["port"], app.address.port());
    assert_eq!(server["znode"], nerve.node().await.unwrap());
    assert_eq!(server["wanted"], true);
    assert_eq!(server["haproxy"], "up");
    assert_eq!(server["held"], false);
    assert!(
        server["id"].is_u64() && server["name"].is_string(),
        "{server}"
    );
    let haproxy = &status["haproxy"];
    assert_eq!(haproxy["state"], "serving");
    assert_eq!(haproxy["pid"], pair.haproxy.worker_pid().await);
    assert_eq!(
        haproxy["generation"],
        json!(pair.haproxy.generation().await)
    );
    let last = &haproxy["last_reload"];
    assert!(last["at"].is_f64() && last["ms"].is_u64(), "{haproxy}");
    assert!(
        last["ok"] == true && last["reason"].is_string(),
        "{haproxy}"
    );
    assert_eq!(haproxy["fallbacks"], json!({}));

    let status = nerve.program.status().await;
    envelope(&status, "nerve");
    let web = &status["services"]["web"];
    assert_eq!(web["health"], "up");
    assert!(web["since"].is_f64(), "{web}");
    let check = &web["checks"][0];
    assert_eq!(check["health"], "up");
    assert!(
        check["at"].is_f64() && check["ms"].is_f64() && check["error"].is_null(),
        "{check}"
    );
    let registration = &web["registrations"][0];
    assert_eq!(registration["path"], crate::pair::WEB);
    assert_eq!(registration["observed"], "present");
    assert!(registration["since"].is_f64(), "{registration}");

    for (program, lines) in [
        (
            &synapse,
            [
                "synapse_ready 1",
                "synapse_divergence 0",
                "synapse_servers_up{service=\"web\"} 1",
            ],
        ),
        (
            &nerve.program,
            [
                "nerve_service_up{service=\"web\"} 1",
                "nerve_registered{service=\"web\"",
                "nerve_zk_connected{",
            ],
        ),
    ] {
        assert_eq!(program.get("/ready").await.unwrap().status, 200);
        assert_eq!(program.get("/live").await.unwrap().status, 200);
        assert_eq!(program.get("/").await.unwrap().status, 200);
        assert_eq!(program.get("/nonsense").await.unwrap().status, 404);
        let metrics = program.get("/metrics").await.unwrap().body;
        for line in lines {
            assert!(
                metrics.lines().any(|l| l.starts_with(line)),
                "no {line} in\n{metrics}"
            );
        }
    }

    let synapse_json = pair.dir.join("synapse.json");
    let nerve_json = nerve.dir.join("nerve.json");
    for (name, config, words) in [
        (
            "synapse",
            &synapse_json,
            ["ready", "haproxy serving", "web live", " up"],
        ),
        ("nerve", &nerve_json, ["ready", "web", "up", "i-a"]),
    ] {
        let text = command(name, &["status", "-c", config.to_str().unwrap()]);
        for word in words {
            assert!(text.contains(word), "no {word:?} in\n{text}");
        }
        let json = command(name, &["status", "--json", "-c", config.to_str().unwrap()]);
        envelope(&serde_json::from_str(&json).unwrap(), name);
    }

    for (asked, config, answers) in [
        ("nerve", &synapse_json, "synapse"),
        ("synapse", &nerve_json, "nerve"),
    ] {
        let config: Value = serde_json::from_slice(&std::fs::read(config).unwrap()).unwrap();
        let bind = config["admin"]["bind"].as_str().unwrap();
        let output = Command::new(Program::path(asked))
            .args(["status", "--admin", bind])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(
            said.contains(&format!("is {answers}, not {asked}")),
            "{said}"
        );
    }
    let _broken = pair.dir.write("synapse.json", "services: [");
    let text = command(
        "synapse",
        &[
            "status",
            "-c",
            synapse_json.to_str().unwrap(),
            "--admin",
            &pair.admin.to_string(),
        ],
    );
    assert!(text.contains("web live"), "{text}");
}

/// What both documents have in common (SPEC §5).
fn envelope(status: &Value, program: &str) {
    assert_eq!(status["schema"], 1);
    assert_eq!(status["program"], program);
    assert_eq!(status["ready"], true);
    assert!(
        status["version"].is_string() && status["started"].is_f64(),
        "{status}"
    );
    assert!(status["pid"].is_u64(), "{status}");
    let link = &status["zookeeper"][0];
    assert_eq!(link["state"], "live");
    assert!(
        link["hosts"].is_string() && link["session"].is_string(),
        "{link}"
    );
    assert!(link["epoch"].is_u64() && link["since"].is_f64(), "{link}");
}

/// What a command that succeeds prints.
fn command(name: &str, arguments: &[&str]) -> String {
    let output = Command::new(Program::path(name))
        .args(arguments)
        .output()
        .unwrap();
    assert!(output.status.success(), "{name} {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn a_second_synapse_on_the_same_files_is_refused() {
    let pair = Pair::start(Way::Supervise).await;
    let app = App::start("a").await;
    pair.register(&app).await;
    let mut synapse = pair.serving().await;
    answer(pair.port).await;
    in_step(&synapse).await;
    let file = pair.file();
    let path = pair.dir.join("synapse.json");
    let output = Command::new(Program::path("synapse"))
        .args(["-c", path.to_str().unwrap()])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr);
    let holder = format!("(pid {})", synapse.process().pid());
    assert!(said.contains(&holder), "no {holder} in {said}");
    assert_eq!(pair.file(), file);
    assert_eq!(answer(pair.port).await, "a");
}

#[tokio::test]
async fn without_a_stats_socket_every_change_is_a_reload() {
    let mut pair = Pair::start(Way::Command).await;
    pair.config["haproxy"]["do_socket"] = json!(false);
    let (a, b) = (App::start("a").await, App::start("b").await);
    pair.register(&a).await;
    let node = pair.register(&b).await;
    let synapse = pair.serving().await;
    answers(pair.port, &["a", "b"]).await;
    let unconfirmed = |status: &Value| status["haproxy"]["state"] == "unconfirmed";
    status(&synapse, "nobody can be asked", unconfirmed).await;
    let traffic = Traffic::start(pair.port).await;
    pair.withdraw(&node).await;
    answers(pair.port, &["a"]).await;
    pair.register(&b).await;
    answers(pair.port, &["a", "b"]).await;
    let status = status(&synapse, "nobody can be asked", unconfirmed).await;
    assert!(
        status["haproxy"]["reloads"].as_u64() >= Some(3),
        "{status:#}"
    );
    assert_eq!(status["haproxy"]["reload_failures"], 0);
    traffic.unharmed().await;
}

/// Waits until a command has written its pid.
async fn begun(marker: &std::path::Path) -> u32 {
    eventually("the command runs", SOON, async || {
        let text = std::fs::read_to_string(marker).unwrap_or_default();
        text.trim().parse::<u32>().map_err(|e| e.to_string())
    })
    .await
}

fn send(pid: u32, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal).unwrap();
}

/// It takes less than a second; five are for a busy machine, and less than any limit of what is under way.
async fn ends_at_once(synapse: &mut Program, what: &str) {
    let told = tokio::time::Instant::now();
    synapse.signal(Signal::SIGTERM);
    let status = synapse.wait(SOON).await;
    let took = told.elapsed();
    assert!(status.success(), "{what}: {status}");
    assert!(took < Duration::from_secs(5), "{what}: {took:?}");
}

#[tokio::test]
async fn it_ends_at_once_whatever_is_under_way() {
    let mut pair = Pair::start(Way::Supervise).await;
    let marker = pair.dir.join("check");
    let line = format!("echo $$ > {}; exec sleep 600", marker.display());
    pair.config["haproxy"]["do_checks"] = json!(true);
    pair.config["haproxy"]["check_command"] = json!(line);
    let mut synapse = pair.synapse();
    let check = begun(&marker).await;
    ends_at_once(&mut synapse, "a check that does not end").await;
    eventually(
        "the check is killed",
        SOON,
        async || match smartstack_common::process::start_time(check) {
            None => Ok(()),
            Some(_) => Err("it lives"),
        },
    )
    .await;

    let mut pair = Pair::start(Way::Command).await;
    let marker = pair.dir.join("reload");
    let line = format!("echo $$ > {}; exec sleep 600", marker.display());
    pair.config["haproxy"]["reload_command"] = json!(line);
    let mut synapse = pair.synapse();
    let reload = begun(&marker).await;
    ends_at_once(&mut synapse, "a reload command that does not end").await;
    let lives = smartstack_common::process::start_time(reload).is_some();
    assert!(lives, "it is not stopped half-way");
    send(reload, Signal::SIGKILL);

    let mut pair = Pair::start(Way::Master).await;
    let silent = pair.dir.join("silent.sock");
    let master = tokio::net::UnixListener::bind(&silent).unwrap();
    pair.config["haproxy"]["master_socket"] = json!(silent);
    let mut synapse = pair.synapse();
    let (_kept, _) = tokio::time::timeout(SOON, master.accept())
        .await
        .expect("the master is asked")
        .unwrap();
    ends_at_once(&mut synapse, "a master that does not answer").await;

    let pair = Pair::start(Way::Supervise).await;
    let app = App::start("app").await;
    let mut synapse = pair.serving().await;
    let stopped = pair.haproxy.pids();
    stopped.iter().for_each(|pid| send(*pid, Signal::SIGSTOP));
    let _node = pair.register(&app).await;
    eventually("haproxy is asked in vain", SOON, async || {
        let problems = synapse.status().await["problems"].to_string();
        if problems.contains("did not answer within") {
            Ok(())
        } else {
            Err(problems)
        }
    })
    .await;
    ends_at_once(&mut synapse, "a haproxy that is stopped").await;
    // Also while it is being read at the start.
    let mut synapse = pair.synapse();
    eventually("it is read", SOON, async || {
        let log = pair.log();
        if log.matches("synapse starts").count() == 2 {
            Ok(())
        } else {
            Err(log)
        }
    })
    .await;
    ends_at_once(&mut synapse, "a start before a haproxy that is stopped").await;
    for pid in pair.haproxy.pids() {
        assert!(stopped.contains(&pid), "{pid} is none of {stopped:?}");
        send(pid, Signal::SIGCONT);
    }
}

/// haproxy takes its size from the limit of open files, and shells' programs may not stand a high one.
#[tokio::test]
async fn what_synapse_starts_has_the_limit_of_open_files_that_synapse_began_with() {
    use std::os::unix::fs::PermissionsExt as _;

    let mut pair = Pair::start(Way::Supervise).await;
    let told = pair.dir.join("limits");
    let note = |what: &str| {
        format!(
            "echo {what} $(ulimit -Sn) $(ulimit -Hn) >> {}",
            told.display()
        )
    };
    let binary = pair.dir.write(
        "haproxy",
        format!(
            "#!/bin/sh\n{}\nexec {} \"$@\"\n",
            note("\"$1\""),
            smartstack_common::testing::Haproxy::binary().display()
        ),
    );
    std::fs::set_permissions(&binary, std::fs::Permissions::from_mode(0o755)).unwrap();
    pair.config["haproxy"]["binary"] = json!(binary);
    let mut synapse = pair.limited("1000:4000");
    synapse.ready(SOON).await;
    let pid = synapse.process().pid();
    let own = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let own = own.lines().find(|line| line.starts_with("Max open files"));
    let own: Vec<&str> = own.unwrap().split_whitespace().collect();
    assert_eq!(own[3..5], ["4000", "4000"]);
    synapse.signal(Signal::SIGTERM);
    assert_eq!(synapse.wait(SOON).await.code(), Some(0));

    pair.config["haproxy"]["supervise"] = json!(false);
    pair.config["haproxy"]["do_checks"] = json!(true);
    pair.config["haproxy"]["check_command"] = json!(note("check"));
    pair.config["haproxy"]["reload_command"] = json!(note("reload"));
    pair.config["services"]["web"]["haproxy"]["server_options"] = json!("maxconn 7");
    let synapse = pair.limited("1000:4000");
    let lines = eventually("all have been started", SOON, async || {
        let lines = std::fs::read_to_string(&told).unwrap_or_default();
        let all = ["-v ", "-c ", "-W ", "check ", "reload "];
        if all.iter().all(|word| lines.contains(word)) {
            Ok(lines)
        } else {
            Err(lines)
        }
    })
    .await;
    for line in lines.lines() {
        assert!(line.ends_with(" 1000 4000"), "{lines}");
    }
    drop(synapse);
}
