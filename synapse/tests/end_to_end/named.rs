//! Lines of the configuration that name servers: the file on disk loads at every moment, whether the registry has them or
//! not, and they come and go without a reload.

use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;
use smartstack_common::admin::Bind;
use smartstack_common::atomic::{Durability, Mode, replace};
use smartstack_common::testing::{App, Dir, Haproxy, eventually, free_port, get};
use tokio::task::{JoinHandle, spawn_blocking};

use crate::pair::{Pair, SOON, Traffic, Way, in_step, reloads, status};

/// Asks haproxy about every text that is seen in its file.
struct Watch {
    refused: Arc<Mutex<Vec<String>>>,
    texts: Arc<Mutex<usize>>,
    task: JoinHandle<()>,
}

impl Watch {
    fn start(dir: &Dir) -> Self {
        let (file, copy) = (dir.join("haproxy.cfg"), dir.join("seen.cfg"));
        let (refused, texts) = (Arc::default(), Arc::default());
        let task = tokio::spawn(look(file, copy, Arc::clone(&refused), Arc::clone(&texts)));
        Self {
            refused,
            texts,
            task,
        }
    }

    /// How many texts there were; all of them load.
    fn sound(self) -> usize {
        self.task.abort();
        let refused = self.refused.lock().unwrap();
        assert!(refused.is_empty(), "{refused:#?}");
        *self.texts.lock().unwrap()
    }
}

async fn look(
    file: PathBuf,
    copy: PathBuf,
    refused: Arc<Mutex<Vec<String>>>,
    texts: Arc<Mutex<usize>>,
) {
    let mut last = String::new();
    loop {
        tokio::time::sleep(Duration::from_millis(5)).await;
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        if text == last || text.is_empty() {
            continue;
        }
        replace(&copy, [&text], Mode::Private(0o600), Durability::Rename).unwrap();
        last = text;
        *texts.lock().unwrap() += 1;
        let copy = copy.clone();
        let check = move || {
            let mut command = Command::new(Haproxy::binary());
            command.arg("-c").arg("-f").arg(copy).output().unwrap()
        };
        let output = spawn_blocking(check).await.unwrap();
        if !output.status.success() {
            let words = String::from_utf8_lossy(&output.stderr).into_owned();
            refused.lock().unwrap().push(format!("{words}\n{last}"));
        }
    }
}

/// NAME of an app's server, registered by hand.
fn name(app: &App) -> String {
    format!("i-{}_{}", app.name, app.address)
}

/// Waits until a port answers `path` so.
async fn says(port: u16, path: &str, status: u16, body: &str) {
    let bind = Bind::Tcp(format!("127.0.0.1:{port}"));
    let what = format!("{path} of port {port} is answered with {status} {body}");
    eventually(&what, SOON, async || match get(&bind, path).await {
        Ok(reply) if reply.status == status && reply.body.contains(body) => Ok(()),
        Ok(reply) => Err(format!("{reply:?}")),
        Err(error) => Err(error.to_string()),
    })
    .await;
}

#[tokio::test]
async fn servers_that_lines_name_come_and_go_under_traffic() {
    let mut pair = Pair::start(Way::Supervise).await;
    let (a, b) = (App::start("a").await, App::start("b").await);
    let named = name(&a);
    let (watch_port, other_port) = (free_port(), free_port());
    let web = &mut pair.config["services"]["web"]["haproxy"];
    web["server_options"] = json!("check inter 500ms");
    web["backend"] = json!([format!("use-server {named} if {{ path /a }}")]);
    pair.config["haproxy"]["extra_sections"] = json!({"frontend watch": [
        format!("bind 127.0.0.1:{watch_port}"),
        format!("http-request return status 200 content-type text/plain string up if {{ srv_is_up(web/{named}) }}"),
        format!("http-request set-header X %[srv_conn(web/{named})]"),
        "http-request return status 503",
    ]});
    pair.config["services"]["other"] = json!({
        "discovery": {"method": "base"},
        "default_servers": [{"host": "127.0.0.1", "port": b.address.port()}],
        "haproxy": {"port": other_port, "server_options": format!("track web/{named}")},
    });
    pair.register(&b).await;

    // At first nobody has registered the one that is named.
    let watch = Watch::start(&pair.dir);
    let mut synapse = pair.serving().await;
    in_step(&synapse).await;
    says(pair.port, "/a", 200, "b").await;
    says(watch_port, "/", 503, "").await;
    assert_eq!(reloads(&synapse).await, 1, "{}", pair.log());
    let traffic = Traffic::start(pair.port).await;

    let mut node = pair.register(&a).await;
    pair.until(&a, "ready").await;
    says(pair.port, "/a", 200, "a").await;
    says(watch_port, "/", 200, "up").await;
    traffic.reaches(&a).await;
    assert_eq!(reloads(&synapse).await, 1, "it came without a reload");

    for round in 0..2 {
        pair.withdraw(&node).await;
        pair.until(&a, "retired").await;
        says(pair.port, "/a", 200, "b").await;
        traffic.avoids(&a).await;
        in_step(&synapse).await;
        // Something else changes meanwhile, and costs its reload.
        pair.config["services"]["other"]["haproxy"]["backend"] =
            json!([format!("timeout server 2{round}s")]);
        pair.configure();
        synapse.signal(nix::sys::signal::Signal::SIGHUP);
        status(&synapse, "the change is loaded", |status| {
            status["haproxy"]["reloads"] == 2 + round && status["haproxy"]["divergence"] == 0
        })
        .await;
        says(pair.port, "/a", 200, "b").await;
        node = pair.register(&a).await;
        pair.until(&a, "ready").await;
        says(pair.port, "/a", 200, "a").await;
        in_step(&synapse).await;
        assert_eq!(
            reloads(&synapse).await,
            2 + round,
            "it came back without a reload"
        );
    }

    // A restart while it is away.
    pair.withdraw(&node).await;
    traffic.avoids(&a).await;
    in_step(&synapse).await;
    synapse.signal(nix::sys::signal::Signal::SIGTERM);
    synapse.wait(SOON).await;
    synapse = pair.serving().await;
    in_step(&synapse).await;
    traffic.avoids(&a).await;
    pair.register(&a).await;
    pair.until(&a, "ready").await;
    traffic.reaches(&a).await;
    in_step(&synapse).await;
    assert_eq!(reloads(&synapse).await, 0);
    let log = pair.log();
    assert!(!log.contains("haproxy refuses"), "{log}");
    traffic.unharmed().await;
    println!(
        "named server: 4 times away, 2 reloads for other changes, {} texts of the file, all load; {}",
        watch.sound(),
        traffic.tally()
    );
}
