//! Operators' orders when the disk or the configuration is not as it should be.

use std::path::Path;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use smartstack_common::admin::Bind;
use smartstack_common::testing::{Program, eventually, free_port};

use crate::rig::{Host, SOON, attempted};
use crate::{done, holds, order, refused, told};

/// A user without any rights.
const NOBODY: u32 = 65_534;

fn spoil(host: &Host, names: &[&str]) {
    for name in names {
        let _path = host.dir.write(name, "{\"format\": 1, \"sess");
    }
}

/// Waits until a service's registration is as `wanted`, `observed`, held by `by`, and gives its status.
async fn stands(nerve: &Program, wanted: &str, observed: &str, by: Option<&str>) -> Value {
    eventually("it stands so", SOON * 3, async || {
        let status = nerve.status().await;
        let web = &status["services"]["web"];
        let place = &web["registrations"][0];
        if place["wanted"] == wanted
            && place["observed"] == observed
            && web["held"]["by"].as_str() == by
        {
            Ok(status)
        } else {
            Err(web.to_string())
        }
    })
    .await
}

async fn end(mut nerve: Program) {
    nerve.signal(Signal::SIGTERM);
    assert_eq!(nerve.wait(SOON).await.code(), Some(0));
}

#[tokio::test]
async fn a_damaged_state_file_forgets_no_order() {
    let host = Host::start().await;
    let (nerve, admin) = host.nerve().await;
    host.one_node("").await;
    done(&host, "disable", &["web"]).await;
    end(nerve).await;
    for damaged in ["state.json", "state.copy"] {
        spoil(&host, &[damaged]);
        let nerve = host.launch(&admin).await;
        stands(&nerve, "absent: disabled", "absent", Some("disable")).await;
        end(nerve).await;
        // The session's note has mended it.
        assert_eq!(holds(&host.dir.join(damaged))["web"]["by"], "disable");
    }
}

#[tokio::test]
async fn what_is_lost_is_not_registered_anew_and_stays_where_it_was() {
    let host = Host::start().await;
    let (mut nerve, admin) = host.nerve().await;
    let node = host.one_node("").await;
    nerve.signal(Signal::SIGKILL);
    nerve.wait(SOON).await;
    let both = ["state.json", "state.copy"];
    spoil(&host, &both);
    nerve = host.launch(&admin).await;
    stands(&nerve, "present", "present", None).await;
    host.one_node(&node).await;
    end(nerve).await;
    host.no_node().await;

    spoil(&host, &both);
    for _ in 0..2 {
        let nerve = host.launch(&admin).await;
        let status = stands(&nerve, "keep", "absent", Some("unknown")).await;
        let warned = status["warnings"].to_string();
        assert!(warned.contains("`nerve enable`"), "{warned}");
        // It is up, and stays out for as many rounds as it likes.
        eventually("it is up", SOON, async || {
            let status = nerve.status().await;
            match status["services"]["web"]["health"].as_str() {
                Some("up") => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        let passed = attempted(&nerve, "pass").await;
        eventually("ten rounds more", SOON, async || {
            match attempted(&nerve, "pass").await - passed {
                10.0.. => Ok(()),
                fewer => Err(fewer),
            }
        })
        .await;
        assert_eq!(host.nodes().await, Vec::<String>::new());
        end(nerve).await;
    }
    let log = std::fs::read_to_string(host.dir.join("nerve.log")).unwrap();
    let told = log.matches("not known whether it was drained").count();
    assert_eq!(told, 3, "at each start");

    nerve = host.launch(&admin).await;
    done(&host, "enable", &["web"]).await;
    host.one_node("").await;
    end(nerve).await;
    nerve = host.launch(&admin).await;
    stands(&nerve, "present", "present", None).await;
    end(nerve).await;
}

#[tokio::test]
async fn a_state_file_that_cannot_be_read_is_read_later() {
    let host = Host::start().await;
    let admin = Bind::Tcp(format!("127.0.0.1:{}", free_port()));
    host.write(&host.config(&admin, &host.zookeeper.hosts(), &json!({})));
    // Not even root reads a folder as a file.
    let paths = ["state.json", "state.copy"].map(|name| host.dir.join(name));
    paths
        .iter()
        .for_each(|path| std::fs::create_dir(path).unwrap());
    let nerve = host.launch(&admin).await;
    stands(&nerve, "keep", "absent", Some("unknown")).await;
    let text = refused(&host, "enable", &["web"]).await;
    assert!(text.contains("nothing is changed"), "{text}");
    paths
        .iter()
        .for_each(|path| std::fs::remove_dir(path).unwrap());
    stands(&nerve, "present", "present", None).await;
    end(nerve).await;
}

#[tokio::test]
async fn orders_need_the_socket_and_not_the_rest_of_the_file() {
    let host = Host::start().await;
    let (nerve, admin) = host.nerve().await;
    host.one_node("").await;
    let path = host.dir.join("nerve.json");
    let config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let mut wrong = config.clone();
    wrong["services"]["web"]["port"] = json!("not a port");
    wrong["services"]["other"] = json!(7);
    host.write(&wrong);
    assert_eq!(done(&host, "drain", &["web"]).await, "web: withdrawn\n");
    host.no_node().await;
    let text = done(&host, "status", &[]).await;
    assert!(text.contains("held out by drain"), "{text}");

    let socket = host.dir.join("nerve.sock").display().to_string();
    for broken in ["services: [", "", "\u{0}", "- 1\n- 2\n"] {
        let _path = host.dir.write("nerve.json", broken);
        done(&host, "enable", &["web", "--socket", &socket]).await;
        host.one_node("").await;
        done(&host, "drain", &["--socket", &socket, "--all"]).await;
        host.no_node().await;
        let json = done(&host, "status", &["--json", "--admin", &admin.to_string()]).await;
        assert!(json.contains("\"program\": \"nerve\""), "{json}");
        // Where it is by default is named, and what is wrong.
        let text = refused(&host, "enable", &["web"]).await;
        assert!(
            text.contains("the configuration is broken")
                && text.contains("cannot reach nerve at `/")
                && text.contains("--socket"),
            "{broken:?}: {text}"
        );
    }
    std::fs::remove_file(&path).unwrap();
    let by_default = tokio::process::Command::new(Program::path("nerve"))
        .args(["enable", "web", "-c"])
        .arg(&path)
        .env("RUNTIME_DIRECTORY", host.dir.path())
        .output()
        .await
        .unwrap();
    assert_eq!(told(&by_default).0, Some(0), "{by_default:?}");
    host.one_node("").await;
    end(nerve).await;
}

#[tokio::test]
async fn who_may_not_is_told_who_may() {
    use std::os::unix::fs::PermissionsExt as _;

    let host = Host::start().await;
    let (nerve, _) = host.nerve().await;
    let open = |path: &Path| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    open(host.dir.path());
    let program = host.dir.join("nerve-copy");
    std::fs::copy(Program::path("nerve"), &program).unwrap();
    open(&program);
    let denied = tokio::process::Command::new(&program)
        .args(["drain", "web", "--socket"])
        .arg(host.dir.join("nerve.sock"))
        .uid(NOBODY)
        .gid(NOBODY)
        .output()
        .await
        .unwrap();
    let (code, text) = told(&denied);
    assert_eq!(code, Some(1), "{text}");
    assert!(
        text.contains("Permission denied")
            && text.contains("ls -l")
            && !text.contains("does nerve run"),
        "{text}"
    );
    let absent = order(&host, "drain", &["web", "--socket", "/nowhere"]).await;
    assert!(told(&absent).1.contains("does nerve run?"), "{absent:?}");
    end(nerve).await;
}

/// A folder that is not mounted, or that is being filled anew, looks like one from which all services were removed.
#[tokio::test]
async fn an_emptied_folder_of_services_withdraws_nothing() {
    let host = Host::start().await;
    let admin = Bind::Tcp(format!("127.0.0.1:{}", free_port()));
    let mut config = host.config(&admin, &host.zookeeper.hosts(), &json!({}));
    let web = config["services"]["web"].take();
    config["services"] = json!({});
    config["service_conf_dir"] = json!(host.dir.join("services"));
    host.write(&config);
    let file = host.dir.write("services/web.json", web.to_string());
    let nerve = host.launch(&admin).await;
    let node = host.one_node("").await;
    let counted = async |result: &str, count: f64| {
        let name = format!(r#"nerve_config_reloads_total{{result="{result}"}}"#);
        eventually(
            "it has read its configuration",
            SOON,
            async || match nerve.metric(&name).await {
                Some(now) if now >= count => Ok(()),
                other => Err(format!("{result}: {other:?}")),
            },
        )
        .await;
    };
    std::fs::remove_file(&file).unwrap();
    for count in [1.0, 2.0] {
        nerve.signal(Signal::SIGHUP);
        counted("failed", count).await;
    }
    assert_eq!(host.nodes().await, [node]);
    let log = std::fs::read_to_string(host.dir.join("nerve.log")).unwrap();
    assert!(log.contains("no service is there any more"), "{log}");

    let _other = host.dir.write("services/other.json", web.to_string());
    nerve.signal(Signal::SIGHUP);
    counted("ok", 1.0).await;
    let status = nerve.status().await;
    assert!(status["services"]["web"].is_null(), "{status}");
    end(nerve).await;
}
