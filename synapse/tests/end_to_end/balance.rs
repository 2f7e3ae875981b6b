//! Servers added to a running backend get what its balance algorithm promises, as after a reload, and their connections
//! are used again. One haproxy, a service for each algorithm, four servers each: two from the file, two added later.

#![expect(clippy::print_stdout, reason = "what was measured")]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};

use serde_json::{Value, json};
use smartstack_common::testing::{App, Behaviour, ask_once, eventually, free_port};

use crate::pair::{Pair, SOON, Way, in_step, reloaded_by_hand, reloads};

/// Requests of one measurement; many where chance decides, so that five points are five standard deviations.
const REQUESTS: usize = 1_000;
const RANDOM_REQUESTS: usize = 4_000;
/// Connections of the client that keeps its own.
const KEPT: usize = 3;

/// What an algorithm promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Promise {
    /// All get the same.
    Equal,
    /// Each key has its server: the same after a reload.
    Keys,
    /// The lowest id gets everything, until it has all it takes.
    First,
}

struct Case {
    name: &'static str,
    lines: Value,
    options: &'static str,
    /// `None` = at runtime; else a word of the reason why a reload is needed.
    reload: Option<&'static str>,
    promise: Promise,
}

/// Those that need a reload come first: a reload makes servers of the file of all that were added before.
fn cases() -> Vec<Case> {
    let case = |name, lines, options, reload, promise| Case {
        name,
        lines,
        options,
        reload,
        promise,
    };
    use Promise::{Equal, First, Keys};
    vec![
        case(
            "static-rr",
            json!(["balance static-rr"]),
            "",
            Some("static-rr"),
            Equal,
        ),
        case(
            "cookie",
            json!(["cookie SERVER insert indirect nocache"]),
            "",
            Some("`cookie`"),
            Equal,
        ),
        case(
            "map-based",
            json!(["balance uri whole"]),
            "",
            Some("hash-type consistent"),
            Keys,
        ),
        case("roundrobin", json!(["balance roundrobin"]), "", None, Equal),
        case("leastconn", json!(["balance leastconn"]), "", None, Equal),
        // With less weight it is as uneven as the ids fall, added or loaded: it draws from the same ring as `consistent`.
        case(
            "random",
            json!(["balance random"]),
            "weight 100",
            None,
            Equal,
        ),
        case("tcp", json!(["mode tcp"]), "", None, Equal),
        case(
            "consistent",
            json!(["balance uri whole", "hash-type consistent"]),
            "weight 100",
            None,
            Keys,
        ),
        case("first", json!(["balance first"]), "maxconn 3", None, First),
    ]
}

/// A service on its port with its apps.
struct Service {
    case: Case,
    port: u16,
    apps: Vec<App>,
    nodes: Vec<String>,
}

impl Service {
    fn path(name: &str) -> String {
        format!("/nerve/services/{name}/services")
    }

    fn target(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))
    }

    async fn add(&mut self, pair: &Pair) {
        let app = App::start(&format!("{}{}", self.case.name, self.apps.len())).await;
        let node = pair
            .register_in(&Self::path(self.case.name), &app, &json!({}))
            .await;
        let what = format!("haproxy has {}", app.name);
        eventually(&what, SOON, async || {
            let connected = tokio::net::UnixStream::connect(pair.dir.join("stats.sock")).await;
            connected.map_err(|e| e.to_string())?;
            match self.row(pair, &app).await {
                Some(row) if row["srv_admin_state"] == "0" => Ok(()),
                row => Err(format!("{row:?}")),
            }
        })
        .await;
        self.apps.push(app);
        self.nodes.push(node);
    }

    async fn row(&self, pair: &Pair, app: &App) -> Option<BTreeMap<String, String>> {
        let (rows, port) = (
            pair.haproxy.servers_state().await,
            app.address.port().to_string(),
        );
        rows.into_iter()
            .find(|row| row["be_name"] == self.case.name && row["srv_port"] == port)
    }

    /// Who has answered each of the requests.
    async fn answers(&self) -> Vec<String> {
        let (target, by_connection) = (self.target(), self.case.name == "tcp");
        let requests = match self.case.name {
            "random" => RANDOM_REQUESTS,
            _ => REQUESTS,
        };
        let ask = move || {
            let mut client = Client::new(target);
            let one = |number| match by_connection {
                true => ask_once(target).unwrap(),
                false => client.get(number, None).body,
            };
            let bodies = (0..requests).map(one);
            bodies.map(|body| body.trim().to_owned()).collect()
        };
        tokio::task::spawn_blocking(ask).await.unwrap()
    }

    /// Of the answers, in per cent.
    fn shares(&self, answers: &[String]) -> Vec<f64> {
        let of = |app: &App| answers.iter().filter(|name| **name == app.name).count();
        let percent = |count| count as f64 * 100.0 / answers.len() as f64;
        self.apps.iter().map(|app| percent(of(app))).collect()
    }

    /// The apps by id.
    async fn in_order(&self, pair: &Pair) -> Vec<usize> {
        let mut ids = Vec::new();
        for (index, app) in self.apps.iter().enumerate() {
            if let Some(row) = self.row(pair, app).await
                && row["srv_admin_state"] == "0"
            {
                ids.push((row["srv_id"].parse::<u32>().unwrap(), index));
            }
        }
        ids.sort_unstable();
        ids.into_iter().map(|(_, index)| index).collect()
    }

    async fn assert_kept(&self, pair: &Pair, answers: &[String], when: &str) {
        let shares = self.shares(answers);
        println!("{:>10} {when}: {shares:.1?}", self.case.name);
        match self.case.promise {
            Promise::Equal => {
                for share in &shares {
                    assert!(
                        (share - 25.0).abs() <= 5.0,
                        "{} {when}: {shares:?}",
                        self.case.name
                    );
                }
            }
            // How even it is depends on the ids; that it is what the file gives is compared beside.
            Promise::Keys => assert!(shares.iter().all(|share| *share > 10.0), "{shares:?}"),
            Promise::First => {
                let lowest = self.in_order(pair).await[0];
                // haproxy may not have counted the ends of requests when the next one comes.
                assert!(shares[lowest] >= 95.0, "{when}: {shares:?}");
            }
        }
    }
}

/// A client with a few connections of its own, one request after the other.
struct Client {
    target: SocketAddr,
    streams: Vec<TcpStream>,
}

struct Answer {
    body: String,
    cookie: Option<String>,
}

impl Client {
    fn new(target: SocketAddr) -> Self {
        let streams = (0..KEPT)
            .map(|_| TcpStream::connect(target).unwrap())
            .collect();
        Self { target, streams }
    }

    /// Request number `number`: each has a path of its own.
    fn get(&mut self, number: usize, cookie: Option<&str>) -> Answer {
        let cookie = cookie
            .map(|value| format!("Cookie: {value}\r\n"))
            .unwrap_or_default();
        let request = format!(
            "GET /?{number} HTTP/1.1\r\nHost: {}\r\n{cookie}\r\n",
            self.target
        );
        let stream = &mut self.streams[number % KEPT];
        stream.write_all(request.as_bytes()).unwrap();
        let (mut reply, mut chunk) = (Vec::new(), [0; 4096]);
        loop {
            let text = String::from_utf8_lossy(&reply);
            if let Some((head, body)) = text.split_once("\r\n\r\n") {
                assert!(head.starts_with("HTTP/1.1 200"), "{head}");
                let header = |name: &str| {
                    let mut lines = head.lines();
                    lines.find_map(|line| {
                        let (found, value) = line.split_once(": ")?;
                        found.eq_ignore_ascii_case(name).then(|| value.to_owned())
                    })
                };
                let length: usize = header("content-length").unwrap().parse().unwrap();
                if body.len() >= length {
                    let cookie = header("set-cookie");
                    let cookie = cookie.map(|value| value.split(';').next().unwrap().to_owned());
                    return Answer {
                        body: body.to_owned(),
                        cookie,
                    };
                }
            }
            let size = stream.read(&mut chunk).unwrap();
            assert!(size > 0, "closed by haproxy");
            reply.extend_from_slice(&chunk[..size]);
        }
    }
}

#[tokio::test]
async fn servers_added_get_their_share_and_their_connections_are_used_again() {
    let mut pair = Pair::start(Way::Supervise).await;
    pair.config["services"] = json!({});
    // Nodes are deleted without an announcement.
    pair.config["guard"] = json!("off");
    let mut services = Vec::new();
    for case in cases() {
        let port = free_port();
        let mut config = pair.service(&Service::path(case.name), port);
        config["haproxy"]["backend"] = case.lines.clone();
        config["haproxy"]["server_options"] = json!(case.options);
        if case.name == "tcp" {
            config["haproxy"]["frontend"] = json!(["mode tcp"]);
        }
        pair.config["services"][case.name] = config;
        services.push(Service {
            case,
            port,
            apps: Vec::new(),
            nodes: Vec::new(),
        });
    }
    let synapse = pair.serving().await;
    for service in &mut services {
        service.add(&pair).await;
        service.add(&pair).await;
    }
    in_step(&synapse).await;
    reloaded_by_hand(&pair, &synapse).await;
    in_step(&synapse).await;

    for service in &mut services {
        let (before, pid) = (reloads(&synapse).await, pair.haproxy.worker_pid().await);
        service.add(&pair).await;
        service.add(&pair).await;
        let status = in_step(&synapse).await;
        let name = service.case.name;
        let fallback = &status["haproxy"]["fallbacks"][name];
        let Some(why) = service.case.reload else {
            assert_eq!(reloads(&synapse).await, before, "{name}");
            assert_eq!(pair.haproxy.worker_pid().await, pid, "{name}");
            assert!(fallback.is_null(), "{fallback}");
            continue;
        };
        assert_eq!(reloads(&synapse).await, before + 2, "{name}");
        for told in [fallback, &status["haproxy"]["last_reload"]["reason"]] {
            assert!(told.to_string().contains(why), "{name}: {told}");
        }
    }
    let (before, pid) = (reloads(&synapse).await, pair.haproxy.worker_pid().await);
    let mut added = Vec::new();
    for service in &services {
        let answers = service.answers().await;
        service.assert_kept(&pair, &answers, "added").await;
        connections_are_used_again(service);
        added.push(answers);
    }
    cookies_stick(&services).await;
    assert_eq!(
        (reloads(&synapse).await, pair.haproxy.worker_pid().await),
        (before, pid)
    );

    reloaded_by_hand(&pair, &synapse).await;
    in_step(&synapse).await;
    for (service, added) in services.iter().zip(&added) {
        let answers = service.answers().await;
        service.assert_kept(&pair, &answers, "after a reload").await;
        let shares = [service.shares(added), service.shares(&answers)];
        for (one, other) in shares[0].iter().zip(&shares[1]) {
            assert!(
                (one - other).abs() <= 5.0,
                "{}: {shares:?}",
                service.case.name
            );
        }
        if service.case.promise == Promise::Keys {
            assert!(*added == answers, "{}: keys have moved", service.case.name);
        }
    }
    let first = services
        .iter()
        .position(|s| s.case.promise == Promise::First);
    first_come(&pair, &mut services[first.unwrap()]).await;
}

/// Of the two that were added. A connection of `mode tcp` is the client's.
fn connections_are_used_again(service: &Service) {
    for app in &service.apps[2..] {
        let (requests, connections) = (app.state.requests(), app.state.connections());
        println!(
            "{:>10} {}: {requests} requests, {connections} connections",
            service.case.name, app.name
        );
        match service.case.name {
            "tcp" => assert!(connections >= requests),
            _ => assert!(
                connections * 10 <= requests.max(10),
                "{}: {requests} requests, {connections} connections",
                app.name
            ),
        }
    }
}

/// A client with the cookie of a server that was added stays with it.
async fn cookies_stick(services: &[Service]) {
    let service = services.iter().find(|s| s.case.name == "cookie").unwrap();
    let (target, added) = (service.target(), service.apps[3].name.clone());
    let ask = move || {
        let mut client = Client::new(target);
        let cookie = (0..20).find_map(|number| {
            let answer = client.get(number, None);
            (answer.body.trim() == added).then_some(answer.cookie?)
        });
        let cookie = cookie.expect("one of twenty");
        for number in 0..30 {
            assert_eq!(client.get(number, Some(&cookie)).body.trim(), added);
        }
    };
    tokio::task::spawn_blocking(ask).await.unwrap();
}

/// `first`: a server that is added with the lowest id of all gets everything; while it has all it takes, the next.
async fn first_come(pair: &Pair, service: &mut Service) {
    // Those with a lower id go, and one more is added to a running backend.
    service.add(pair).await;
    let newest = service.apps.len() - 1;
    loop {
        let order = service.in_order(pair).await;
        if order[0] == newest {
            break;
        }
        pair.withdraw(&service.nodes[order[0]]).await;
        eventually("it is taken out", SOON, async || {
            let now = service.in_order(pair).await;
            if now.contains(&order[0]) {
                Err(format!("{now:?}"))
            } else {
                Ok(())
            }
        })
        .await;
    }
    if service.in_order(pair).await.len() == 1 {
        service.add(pair).await;
    }
    let order = service.in_order(pair).await;
    let (lowest, next) = (order[0], order[1]);
    let shares = service.shares(&service.answers().await);
    assert!(shares[lowest] >= 95.0, "{shares:?}");
    service.apps[lowest].set(Behaviour::Hang);
    let (target, before) = (service.target(), service.apps[lowest].state.requests());
    let held = [0; 3].map(|_| tokio::task::spawn_blocking(move || ask_once(target)));
    eventually("it has all it takes", SOON, async || {
        match service.apps[lowest].state.requests() - before {
            3.. => Ok(()),
            found => Err(found),
        }
    })
    .await;
    let shares = service.shares(&service.answers().await);
    assert!(shares[next] >= 95.0 && shares[lowest] == 0.0, "{shares:?}");
    service.apps[lowest].set(Behaviour::Healthy);
    for request in held {
        let body = request.await.unwrap().unwrap();
        assert_eq!(body.trim(), service.apps[lowest].name);
    }
}
