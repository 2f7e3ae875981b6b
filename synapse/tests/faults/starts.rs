//! What `haproxy -c` accepts and a start does not, and what it refuses, under load: in the frame and in one service. The
//! other services lose no request while it is introduced, while it is tried again, and while synapse is started again; when
//! haproxy dies, those that were asked while nothing ran.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::Duration;

use serde_json::{Value, json};
use smartstack_common::testing::{App, Dir, Load, SteadyClient, free_port};

use crate::boot::first_answer;
use crate::long;
use crate::rig::{Rig, fixed, settings};
use crate::stage::SOON;

/// Requests per second.
const RATE: f64 = 100.0;
/// How often it is tried again.
const RETRIES: usize = 3;
/// How long refused forms rest, and a moment.
const REST: Duration = Duration::from_secs(65);

struct Starts {
    rig: Rig,
    config: Value,
    target: SocketAddr,
    clients: SteadyClient,
    _apps: [App; 2],
}

/// Requests and failed ones.
struct Count(u64, u64);

impl Starts {
    async fn begin() -> Self {
        let apps = [App::start("a").await, App::start("b").await];
        let dir = Dir::new();
        let mut config = settings(&dir);
        let target = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let ports = apps.each_ref().map(|app| app.address.port());
        config["services"]["web"] = fixed(target.port(), &ports);
        let rig = Rig::start(dir, &config).await;
        let clients = SteadyClient::start(Load {
            rate: RATE,
            ..Load::new(target)
        });
        Self {
            rig,
            config,
            target,
            clients,
            _apps: apps,
        }
    }

    async fn lasts(&self, time: Duration) {
        let requests = (time.as_secs_f64() * RATE) as u64;
        self.clients.more(requests, 2 * SOON).await;
    }

    fn count(&self, what: &str, fault: &str) -> Count {
        let tally = self.clients.reset();
        assert_eq!(
            tally.failed(),
            0,
            "{fault}: {what}: {tally}\n{}",
            self.rig.log()
        );
        Count(tally.ok() + tally.failed(), tally.failed())
    }

    /// Once more by HUP, until it was judged.
    async fn configure(&self, config: &Value, words: &str) {
        let taken = || self.rig.whole_log().matches("configuration taken").count();
        let before = taken();
        self.rig.configure(config);
        self.judged(words, |_| taken() > before).await;
    }

    /// What is wrong is told, and everything else is as wanted.
    async fn judged(&self, words: &str, also: impl Fn(&Value) -> bool) {
        let what = format!("`{words}` is told");
        self.rig
            .status_shows(&what, |status| {
                let told = status["problems"].to_string().contains(words)
                    || status["services"]["bad"]["quarantined"]
                        .to_string()
                        .contains(words);
                told && status["haproxy"]["divergence"] == 0
                    && status["haproxy"]["state"] == "serving"
                    && also(status)
            })
            .await;
    }

    /// One fault through all that can happen meanwhile.
    async fn row(&mut self, fault: &str, words: &str, edit: impl FnOnce(&mut Value)) {
        self.lasts(Duration::from_millis(100)).await;
        self.count("before", fault);
        let mut bad = self.config.clone();
        edit(&mut bad);
        self.configure(&bad, words).await;
        self.lasts(Duration::from_millis(500)).await;
        let introduced = self.count("introduction", fault);
        for _ in 0..RETRIES {
            if long() {
                self.lasts(REST).await;
            } else {
                self.configure(&bad, words).await;
                self.lasts(Duration::from_millis(200)).await;
            }
        }
        let retried = self.count("retries", fault);
        self.rig.kill_haproxy().await;
        first_answer(self.target).await;
        // Those in flight at that moment are answered.
        self.lasts(Duration::from_millis(100)).await;
        let down = self.clients.reset().failed();
        self.judged(words, |_| true).await;
        self.lasts(Duration::from_millis(500)).await;
        let died = self.count("after the death of haproxy", fault);
        self.rig.restart_synapse().await;
        self.judged(words, |_| true).await;
        self.lasts(Duration::from_millis(500)).await;
        let restarted = self.count("restart of synapse", fault);
        println!(
            "fault: {fault}: introduced: {} requests, {} failed; tried {RETRIES} times more: {}, {} failed; haproxy killed: \
             {down} failed while nothing ran, then {}, {} failed; synapse killed and started: {}, {} failed",
            introduced.0,
            introduced.1,
            retried.0,
            retried.1,
            died.0,
            died.1,
            restarted.0,
            restarted.1,
        );
        self.rig.assert_sound(fault);
        self.rig.configure(&self.config);
        self.rig
            .status_shows("mended", |status| {
                status["problems"] == json!([]) && status["haproxy"]["divergence"] == 0
            })
            .await;
    }
}

#[tokio::test]
async fn what_cannot_start_costs_the_others_nothing() {
    let mut starts = Starts::begin().await;
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = other.local_addr().unwrap();
    let foreign = "203.0.113.5:8080";
    let section = |bind: &str| json!({"listen extra": ["mode http", "timeout client 5s", format!("bind {bind}"), "http-request return status 200"]});
    let line = |list: &mut Value, line: String| list.as_array_mut().unwrap().push(json!(line));
    let service = |config: &mut Value, address: &str, port: u16| {
        config["services"]["bad"] = fixed(port, &[1]);
        config["services"]["bad"]["haproxy"]["bind_address"] = json!(address);
    };
    let missing = starts.rig.dir.join("missing").display().to_string();

    let bind = taken.to_string();
    let fault = "an extra section binds a port that is taken";
    starts
        .row(fault, &bind, |c| {
            c["haproxy"]["extra_sections"] = section(&bind);
        })
        .await;
    let fault = "an extra section binds an address of another host";
    starts
        .row(fault, foreign, |c| {
            c["haproxy"]["extra_sections"] = section(foreign);
        })
        .await;
    let fault = "an extra section binds a socket in a folder that is not there";
    starts
        .row(fault, &missing, |c| {
            c["haproxy"]["extra_sections"] = section(&format!("unix@{missing}/x.sock"));
        })
        .await;
    let fault = "a line that haproxy does not know in an extra section";
    starts
        .row(fault, "nosuchword", |c| {
            c["haproxy"]["extra_sections"] = json!({"listen extra": ["nosuchword"]});
        })
        .await;
    let fault = "the shared frontend binds a port that is taken";
    starts
        .row(fault, &bind, |c| {
            c["haproxy"]["shared_frontend"] = json!([format!("bind {bind}")]);
        })
        .await;
    let fault = "a service binds a port that is taken";
    starts
        .row(fault, &bind, |c| service(c, "127.0.0.1", taken.port()))
        .await;
    let fault = "a service binds an address of another host";
    starts
        .row(fault, "203.0.113.5", |c| service(c, "203.0.113.5", 8080))
        .await;
    for (fault, words, text) in [
        (
            "a line that haproxy does not know in `global`",
            "nosuchword",
            "nosuchword 7".to_owned(),
        ),
        (
            "a stats socket on a port that is taken",
            bind.as_str(),
            format!("stats socket ipv4@{bind} level admin"),
        ),
        (
            "`chroot` into a folder that is not there",
            missing.as_str(),
            format!("chroot {missing}"),
        ),
        (
            "more descriptors than there may be",
            "FD limit",
            "ulimit-n 1000000000".to_owned(),
        ),
    ] {
        starts
            .row(fault, words, |c| line(&mut c["haproxy"]["global"], text))
            .await;
    }
}
