//! `make demo`: the pair at work on real parts. One ZooKeeper, one haproxy that synapse starts, instances of a tiny HTTP
//! app with a nerve each, one synapse, and a client that sends requests to the haproxy port of localhost all the time
//! and never retries. Then things happen to the parts, and the table at the end says what the client saw of it.
//!
//! Ends with status 0 only if each phase went as said. What it starts has a private folder and free ports, and is ended
//! by its own pid, also on Ctrl-C and on failure. A failure is a panic, as everywhere in the harness.
//!
//! The instances are this same program, started again with `app NAME PORT`: they are processes, so that one can be
//! killed. SIGUSR1 makes `/health` of one answer 503 (and nothing else), SIGUSR2 makes it well again.

#![expect(clippy::print_stdout, reason = "this is a program for people to read")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use smartstack_common::admin::Bind;
use smartstack_common::testing::{
    AppState, Behaviour, Dir, Haproxy, Load, Process, Program, SteadyClient, Tally, ZooKeeper,
    eventually, free_port, get, serve_app,
};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

/// Requests that each phase sends at least, after what it is about has arrived at haproxy.
const REQUESTS: u64 = 200;
/// Requests per second, of all clients together.
const RATE: f64 = 100.0;
/// How long ZooKeeper stays away.
const OUTAGE: Duration = Duration::from_secs(15);
/// The most that anything may take to arrive.
const LIMIT: Duration = Duration::from_secs(30);
const ZK_PATH: &str = "/smartstack/services/hello/services";

fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("threads and sockets can be made");
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["app", name, port] => runtime.block_on(app(name, port.parse().expect("a port"))),
        [] | ["--keep"] => runtime.block_on(async {
            let keep = !arguments.is_empty();
            // Dropping the demo ends everything that it started. Cancel-safe for the same reason.
            tokio::select! {
                () = demo(keep) => ExitCode::SUCCESS,
                () = interrupted() => {
                    say("Interrupted: everything that was started is being ended.");
                    if keep { ExitCode::SUCCESS } else { ExitCode::from(130) }
                }
            }
        }),
        _ => {
            println!("usage: demo [--keep]");
            ExitCode::from(64)
        }
    }
}

async fn interrupted() {
    let listen = |kind| signal(kind).expect("signals can be listened to");
    let (mut int, mut term, mut hup) = (
        listen(SignalKind::interrupt()),
        listen(SignalKind::terminate()),
        listen(SignalKind::hangup()),
    );
    // Cancel-safe: signal receives.
    tokio::select! {
        _ = int.recv() => {}
        _ = term.recv() => {}
        _ = hup.recv() => {}
    }
}

/// One instance of the app, in a process of its own.
async fn app(name: &str, port: u16) -> ExitCode {
    let state = AppState::default();
    let mut sick = signal(SignalKind::user_defined1()).expect("signals can be listened to");
    let mut well = signal(SignalKind::user_defined2()).expect("signals can be listened to");
    let listener = TcpListener::bind(("127.0.0.1", port))
        .await
        .unwrap_or_else(|error| panic!("app {name} on port {port}: {error}"));
    let serve = serve_app(listener, name.to_owned(), state.clone());
    tokio::pin!(serve);
    loop {
        // Cancel-safe: signal receives, and a server that is only borrowed.
        tokio::select! {
            () = &mut serve => return ExitCode::FAILURE,
            _ = sick.recv() => state.set(Behaviour::Unhealthy),
            _ = well.recv() => state.set(Behaviour::Healthy),
        }
    }
}

/// A host with one instance: the app, and the nerve beside it.
struct Host {
    name: &'static str,
    port: u16,
    admin: Bind,
    app: Option<Process>,
    nerve: Process,
}

impl Host {
    async fn start(name: &'static str, dir: &Dir, zookeeper: &str) -> Self {
        let (port, admin) = (free_port(), free_port());
        let config = dir.write(
            &format!("nerve-{name}.yaml"),
            nerve_config(name, dir, zookeeper, port, admin),
        );
        let app = start_app(name, dir, port).await;
        let admin = Bind::Tcp(format!("127.0.0.1:{admin}"));
        let nerve = start_program("nerve", name, dir, &config);
        ready("nerve", &admin).await;
        Self {
            name,
            port,
            admin,
            app: Some(app),
            nerve,
        }
    }

    fn app(&self) -> &Process {
        self.app.as_ref().expect("the app of this host runs")
    }
}

async fn start_app(name: &str, dir: &Dir, port: u16) -> Process {
    let own = std::env::current_exe().expect("the kernel knows the running program");
    let mut command = Command::new(own);
    command.args(["app", name, &port.to_string()]);
    let log = dir.join(&format!("app-{name}.log"));
    let app = Process::spawn("app", &mut command, &log, "is the demo executable?");
    let bind = Bind::Tcp(format!("127.0.0.1:{port}"));
    eventually("the app answers", LIMIT, async || {
        get(&bind, "/").await.map(drop)
    })
    .await;
    app
}

fn start_program(program: &str, name: &str, dir: &Dir, config: &std::path::Path) -> Process {
    let mut command = Command::new(Program::path(program));
    command.arg("-c").arg(config).current_dir(dir.path());
    let log = dir.join(&format!("{program}-{name}.log"));
    Process::spawn(program, &mut command, &log, "is it executable?")
}

async fn ready(program: &str, admin: &Bind) {
    eventually(&format!("{program} is ready"), LIMIT, async || {
        let reply = get(admin, "/ready").await.map_err(|e| e.to_string())?;
        if reply.status == 200 {
            Ok(())
        } else {
            Err(reply.body)
        }
    })
    .await;
}

async fn status(admin: &Bind) -> Result<Value, String> {
    let reply = get(admin, "/status").await.map_err(|e| e.to_string())?;
    serde_json::from_str(&reply.body).map_err(|e| e.to_string())
}

/// Everything that runs. Dropped from the top: synapse before haproxy, or it would start it again.
struct Stage {
    client: SteadyClient,
    synapse: Process,
    haproxy: Haproxy,
    hosts: BTreeMap<&'static str, Host>,
    zookeeper: ZooKeeper,
    admin: Bind,
    proxy: SocketAddr,
    config: PathBuf,
    rows: Vec<Row>,
    dir: Dir,
}

/// One line of the table.
struct Row {
    phase: &'static str,
    tally: Tally,
}

async fn start() -> Stage {
    say("Starting one ZooKeeper ...");
    let zookeeper = ZooKeeper::start().await;
    let dir = Dir::new();
    say("Starting instances a and b of a tiny HTTP app, each with a nerve that checks it ...");
    let mut hosts = BTreeMap::new();
    for name in ["a", "b"] {
        hosts.insert(name, Host::start(name, &dir, &zookeeper.hosts()).await);
    }
    say("Starting one synapse, which starts haproxy ...");
    let (port, admin) = (free_port(), free_port());
    let config = dir.write(
        "synapse.yaml",
        synapse_config(&dir, &zookeeper.hosts(), port, admin),
    );
    // Taken first: if synapse fails, a haproxy that it started is ended all the same.
    let (cfg, socket) = (dir.join("haproxy.cfg"), dir.join("haproxy.sock"));
    let haproxy = Haproxy::attach(&cfg, &socket);
    let synapse = start_program("synapse", "client", &dir, &config);
    let admin = Bind::Tcp(format!("127.0.0.1:{admin}"));
    let proxy = SocketAddr::from(([127, 0, 0, 1], port));
    arrived(&admin, &hosts, "ab").await;
    let client = SteadyClient::start(Load {
        rate: RATE,
        ..Load::new(proxy)
    });
    Stage {
        client,
        synapse,
        haproxy,
        hosts,
        zookeeper,
        admin,
        proxy,
        config: cfg,
        rows: Vec::new(),
        dir,
    }
}

/// Waits until haproxy has exactly the servers of `wanted` in service; returns how long that took.
async fn arrived(admin: &Bind, hosts: &BTreeMap<&'static str, Host>, wanted: &str) -> Duration {
    let wanted: BTreeSet<&str> = wanted.split_inclusive(|_| true).collect();
    let began = Instant::now();
    let what = format!("haproxy has exactly the instances {wanted:?} in service");
    eventually(&what, LIMIT, async || {
        let status = status(admin).await?;
        let servers = status["services"]["hello"]["servers"].as_array();
        let up: BTreeSet<&str> = servers
            .into_iter()
            .flatten()
            .filter(|server| server["haproxy"] == "up")
            .filter_map(|server| hosts.values().find(|host| server["port"] == host.port))
            .map(|host| host.name)
            .collect();
        if up == wanted && status["haproxy"]["state"] == "serving" {
            Ok(())
        } else {
            Err(format!("{up:?}, haproxy {}", status["haproxy"]["state"]))
        }
    })
    .await;
    began.elapsed()
}

impl Stage {
    /// Waits for `wanted` at haproxy, then sends the phase's requests: exactly those answer. `clean` = none fails, from
    /// the beginning of the phase.
    async fn phase(&mut self, phase: &'static str, wanted: &str, clean: bool) {
        let took = arrived(&self.admin, &self.hosts, wanted)
            .await
            .as_secs_f64();
        let took = if took < 0.1 {
            String::new()
        } else {
            format!(" {took:.1} s later")
        };
        say(&format!(
            "  haproxy has exactly {} in service{took}; {REQUESTS} requests follow ...",
            list(wanted)
        ));
        // What was under way meanwhile counts for the phase, but may have been answered by either set.
        let _under_way = self.client.more(8, LIMIT).await;
        let mut tally = self.client.reset();
        let settled = self.settled(wanted).await;
        add(&mut tally, &settled);
        self.record(phase, tally, clean);
    }

    /// Sends the phase's requests and asserts who answered.
    async fn settled(&self, wanted: &str) -> Tally {
        let settled = self.client.more(REQUESTS, LIMIT).await;
        let answered: String = settled.answers.keys().map(String::as_str).collect();
        assert_eq!(
            answered, wanted,
            "these instances should have answered, and no other: {settled}"
        );
        self.client.reset()
    }

    fn record(&mut self, phase: &'static str, tally: Tally, clean: bool) {
        say(&format!(
            "  {} requests, {} failed{}",
            tally.ok() + tally.failed(),
            tally.failed(),
            failures(&tally)
        ));
        assert!(
            !clean || tally.failed() == 0,
            "no request may fail in this phase: {tally}"
        );
        self.rows.push(Row { phase, tally });
    }

    fn host(&mut self, name: &str) -> &mut Host {
        self.hosts.get_mut(name).expect("a host of the demo")
    }

    /// Waits until synapse and all nerves are in session with ZooKeeper, or until none is.
    async fn sessions(&self, live: bool) {
        let admins = self.hosts.values().map(|host| &host.admin);
        for admin in admins.chain([&self.admin]) {
            eventually("ZooKeeper's state is noticed", LIMIT, async || {
                let state = status(admin).await?["zookeeper"][0]["state"].clone();
                if (state == "live") == live {
                    Ok(())
                } else {
                    Err(format!("the session is {state}"))
                }
            })
            .await;
        }
    }

    async fn zookeeper_away(&mut self) {
        title("ZooKeeper is killed (SIGKILL), for 15 seconds");
        self.zookeeper.stop_all();
        let end = Instant::now() + OUTAGE;
        self.sessions(false).await;
        say("  nerves and synapse have lost it; the requests go on ...");
        let second = Duration::from_secs(1);
        while Instant::now() + 5 * second < end {
            tokio::time::sleep(5 * second).await;
            let so_far = self.client.snapshot();
            let sent = so_far.ok() + so_far.failed();
            say(&format!(
                "  {sent} requests so far, {} failed",
                so_far.failed()
            ));
        }
        tokio::time::sleep_until(end).await;
        let mut tally = self.client.reset();
        add(&mut tally, &self.settled("ac").await);
        self.record("ZooKeeper killed", tally, true);
    }

    async fn zookeeper_back(&mut self) {
        title("ZooKeeper comes back; then b is started again, and a leaves for good");
        self.zookeeper.start_all().await;
        self.sessions(true).await;
        say("  nerves and synapse are in session again");
        let dir = &self.dir;
        let port = self.hosts["b"].port;
        let again = start_app("b", dir, port).await;
        self.host("b").app = Some(again);
        arrived(&self.admin, &self.hosts, "abc").await;
        say("  b has joined");
        // TERM: nerve withdraws the registration and exits. The app goes on until nobody sends it anything.
        let leaving = self.host("a");
        leaving.nerve.signal(Signal::SIGTERM);
        let code = leaving.nerve.wait(LIMIT).await.code();
        assert_eq!(code, Some(0), "nerve ends well on TERM");
        self.phase("ZooKeeper back", "bc", true).await;
        self.host("a").app = None;
    }
}

async fn demo(keep: bool) {
    let began = Instant::now();
    title("Start");
    let mut stage = start().await;
    say(&format!("  the client sends to haproxy at {}", stage.proxy));
    stage.phase("start", "ab", true).await;

    title("b fails its health check: /health answers 503, all else still works");
    stage.host("b").app().signal(Signal::SIGUSR1);
    stage.phase("b fails its check", "a", true).await;

    title("b is well again");
    stage.host("b").app().signal(Signal::SIGUSR2);
    stage.phase("b recovers", "ab", true).await;

    title("A third instance, c, is added, with its nerve");
    let c = Host::start("c", &stage.dir, &stage.zookeeper.hosts()).await;
    stage.hosts.insert("c", c);
    stage.phase("c is added", "abc", true).await;

    title("The app of b is killed (SIGKILL): requests may fail until nerve has noticed");
    stage.host("b").app = None;
    stage.phase("b is killed", "ac", false).await;
    if stage.rows.last().is_some_and(|row| row.tally.failed() == 0) {
        say("(none failed: haproxy sends a request whose connection is refused to another server)");
    }

    stage.zookeeper_away().await;
    stage.zookeeper_back().await;

    table(&stage.rows);
    let status = status(&stage.admin).await.expect("synapse answers");
    let haproxy = &status["haproxy"];
    println!(
        "\nAll went as said, in {} s. synapse made {} changes of servers without a reload of haproxy, and {} reloads after its start.",
        began.elapsed().as_secs(),
        haproxy["runtime_ops"],
        // Its start counts as one.
        haproxy["reloads"].as_u64().unwrap_or(0).saturating_sub(1)
    );
    if keep {
        leave_running(&stage);
        std::future::pending::<()>().await;
    }
}

fn leave_running(stage: &Stage) {
    println!("\nLeft running until Ctrl-C:");
    println!("  the service   curl http://{}/", stage.proxy);
    println!(
        "  synapse       http://{}/status   (/ for people)",
        stage.admin
    );
    for host in stage.hosts.values().filter(|host| host.app.is_some()) {
        println!("  nerve of {}    http://{}/status", host.name, host.admin);
    }
    println!("  haproxy.cfg   {}", stage.config.display());
    println!("  logs          {}/*.log", stage.dir.path().display());
    println!("  ZooKeeper     {}  {ZK_PATH}", stage.zookeeper.hosts());
    println!(
        "  synapse is pid {}, haproxy {:?}. Try:",
        stage.synapse.pid(),
        stage.haproxy.pids()
    );
    for host in stage.hosts.values().filter(|host| host.app.is_some()) {
        let pid = host.app().pid();
        println!(
            "    kill -USR1 {pid}   # {} fails its check; -USR2: well again; -KILL",
            host.name
        );
    }
}

fn add(sum: &mut Tally, more: &Tally) {
    for (sum, more) in [
        (&mut sum.answers, &more.answers),
        (&mut sum.failures, &more.failures),
    ] {
        for (kind, count) in more {
            *sum.entry(kind.clone()).or_default() += count;
        }
    }
}

fn table(rows: &[Row]) {
    title("What the client saw (it never retries)");
    println!(
        "  {:<18} {:>6} {:>7}   {:>5} {:>5} {:>5}",
        "phase", "sent", "failed", "by a", "by b", "by c"
    );
    for Row { phase, tally } in rows {
        let by = |name| tally.answers.get(name).copied().unwrap_or_default();
        println!(
            "  {phase:<18} {:>6} {:>7}   {:>5} {:>5} {:>5}",
            tally.ok() + tally.failed(),
            tally.failed(),
            by("a"),
            by("b"),
            by("c")
        );
    }
}

fn failures(tally: &Tally) -> String {
    let kinds = tally.failures.iter();
    let kinds: Vec<String> = kinds.map(|(kind, n)| format!("{n} {kind}")).collect();
    if kinds.is_empty() {
        String::new()
    } else {
        format!(" ({})", kinds.join(", "))
    }
}

/// `abc` as people write it.
fn list(names: &str) -> String {
    let names: Vec<&str> = names.split_inclusive(|_| true).collect();
    match &names[..] {
        [first @ .., last] if !first.is_empty() => format!("{} and {last}", first.join(", ")),
        _ => names.concat(),
    }
}

fn title(text: &str) {
    println!("\n{text}");
}

fn say(text: &str) {
    println!("  {}", text.trim_start());
}

fn nerve_config(name: &str, dir: &Dir, zookeeper: &str, port: u16, admin: u16) -> String {
    let state = dir.join(&format!("nerve-{name}.state.json"));
    format!(
        r#"nerve:
  instance_id: host-{name}
  state_path: {}
  admin: {{bind: "127.0.0.1:{admin}"}}
  services:
    hello:
      host: 127.0.0.1
      port: {port}
      zk_hosts: ["{zookeeper}"]
      zk_path: {ZK_PATH}
      check_interval: 0.5
      checks:
        - {{type: http, uri: /health, timeout: 0.5, rise: 2, fall: 2}}
"#,
        state.display()
    )
}

fn synapse_config(dir: &Dir, zookeeper: &str, port: u16, admin: u16) -> String {
    let folder = dir.path().display();
    let binary = Haproxy::binary();
    let binary = binary.display();
    format!(
        r#"synapse:
  snapshot_path: {folder}/snapshot.json
  admin: {{bind: "127.0.0.1:{admin}"}}
  haproxy:
    supervise: true
    binary: {binary}
    config_file_path: {folder}/haproxy.cfg
    socket_file_path: {folder}/haproxy.sock
    global:
      - maxconn 1024
      - stats socket {folder}/haproxy.sock mode 600 level admin expose-fd listeners
    defaults:
      - mode http
      - timeout connect 1s
      - timeout client 10s
      - timeout server 10s
  services:
    hello:
      discovery:
        method: zookeeper
        hosts: ["{zookeeper}"]
        path: {ZK_PATH}
      haproxy:
        port: {port}
"#
    )
}
