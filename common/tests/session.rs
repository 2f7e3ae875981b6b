//! The session supervisor against a real ZooKeeper, through a proxy that does what networks do. Each test fails when
//! the work-around it names is taken out of `smartstack_common::zk`.

use std::collections::BTreeSet;
use std::time::Duration;

use smartstack_common::testing::{
    Cut, Fate, Mode, Options, Request, TcpProxy, ZooKeeper, eventually, rewriting,
};
use smartstack_common::units::Ensemble;
use smartstack_common::zk::{
    Link, LinkStatus, Live, Settings, Suspicion, Trouble, call, supervise,
};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use zookeeper_client::{AddWatchMode, Client, EventType, PersistentWatcher, SessionState};

const SESSION: Duration = Duration::from_secs(2);
/// For everything that takes milliseconds on a quiet machine.
const SOON: Duration = Duration::from_secs(20);

/// A supervised link as a program would hold it.
struct Supervised {
    link: watch::Receiver<Link>,
    shutdown: Option<oneshot::Sender<()>>,
    task: JoinSet<()>,
}

impl Supervised {
    fn start(hosts: &str, session_timeout: Duration) -> Self {
        let hosts: Vec<&str> = hosts.split(',').collect();
        let ensemble = Ensemble::new(&hosts).expect("hosts of the harness");
        let (link_tx, link) = watch::channel(Link::Connecting);
        let (shutdown, stop) = oneshot::channel();
        let mut task = JoinSet::new();
        task.spawn(supervise(
            Settings {
                ensemble,
                session_timeout,
            },
            link_tx,
            async { stop.await.unwrap_or(()) },
        ));
        Self {
            link,
            shutdown: Some(shutdown),
            task,
        }
    }

    /// Waits until the link is live with an epoch of at least `epoch`.
    async fn live(&mut self, epoch: u64) -> Live {
        let what = format!("live, epoch {epoch}");
        match self
            .until(
                &what,
                |link| matches!(link, Link::Live(live) if live.epoch >= epoch),
            )
            .await
        {
            Link::Live(live) => live,
            other => unreachable!("{other:?}"),
        }
    }

    async fn until(&mut self, what: &str, wanted: impl FnMut(&Link) -> bool) -> Link {
        let waited = tokio::time::timeout(SOON, self.link.wait_for(wanted))
            .await
            .map(|link| link.expect("the supervisor keeps its sender").clone());
        waited.unwrap_or_else(|_| panic!("link is not {what}, but {:?}", *self.link.borrow()))
    }

    /// Asks for the end, and returns how long it took.
    async fn close(&mut self) -> Duration {
        let began = tokio::time::Instant::now();
        self.shutdown
            .take()
            .expect("closed once")
            .send(())
            .expect("the supervisor listens");
        self.task
            .join_next()
            .await
            .expect("one task")
            .expect("no panic");
        began.elapsed()
    }
}

/// The children as another client sees them, as a set.
async fn names(client: &Client, path: &str) -> BTreeSet<String> {
    ZooKeeper::list(client, path).await.into_iter().collect()
}

/// Waits for the watcher's session event, past the node events before it.
async fn session_event(watcher: &mut PersistentWatcher, state: SessionState) {
    eventually(&format!("the watcher receives {state}"), SOON, async || {
        let event = watcher.changed().await;
        let found = event.event_type == EventType::Session && event.session_state == state;
        if found {
            Ok(())
        } else {
            Err(format!("{event:?}"))
        }
    })
    .await;
}

#[tokio::test]
async fn a_close_removes_the_ephemeral_nodes_within_a_second() {
    let zookeeper = ZooKeeper::start().await;
    let other = zookeeper.connect().await;
    let mut supervised = Supervised::start(&zookeeper.hosts(), Duration::from_secs(30));
    let live = supervised.live(1).await;
    ZooKeeper::make_ephemeral(&live.client, "/a/node", b"x").await;
    let owner = other
        .check_stat("/a/node")
        .await
        .expect("read")
        .expect("there")
        .ephemeral_owner;
    assert_eq!((owner, live.epoch), (live.session, 1));
    let status = LinkStatus::of(&zookeeper.ensemble(), &supervised.link.borrow());
    assert!(
        zookeeper
            .four_letters(0, "dump")
            .await
            .contains(&status.session.expect("live"))
    );
    drop(live);
    let took = supervised.close().await;
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert!(matches!(*supervised.link.borrow(), Link::Closed));
    assert_eq!(ZooKeeper::list(&other, "/a").await, Vec::<String>::new());
}

/// Why nobody may keep a clone beyond the link value it came with.
#[tokio::test]
async fn a_leaked_client_keeps_its_nodes_and_costs_the_whole_close_limit() {
    let zookeeper = ZooKeeper::start().await;
    let other = zookeeper.connect().await;
    let mut supervised = Supervised::start(&zookeeper.hosts(), Duration::from_secs(30));
    let leaked = supervised.live(1).await;
    ZooKeeper::make_ephemeral(&leaked.client, "/a/node", b"").await;
    let took = supervised.close().await;
    assert!(
        took >= Duration::from_secs(2) && took < Duration::from_secs(10),
        "{took:?}"
    );
    assert_eq!(ZooKeeper::list(&other, "/a").await, ["node"]);
}

#[tokio::test]
async fn a_link_is_live_only_while_connected_and_each_return_is_an_epoch() {
    let zookeeper = ZooKeeper::start().await;
    let proxy = TcpProxy::start(&zookeeper.hosts()).await;
    let mut supervised = Supervised::start(&proxy.host(), SESSION);
    let first = supervised.live(1).await;
    proxy.set(Mode::Refuse).await;
    supervised
        .until("suspended", |link| matches!(link, Link::Suspended { .. }))
        .await;
    proxy.set(Mode::Pass).await;
    let second = supervised.live(2).await;
    assert_eq!((second.epoch, second.session), (2, first.session));
    for (epoch, cut) in [(3, Cut::Close), (4, Cut::After(3))] {
        proxy.cut(cut).await;
        let live = supervised.live(epoch).await;
        assert_eq!((live.epoch, live.session), (epoch, first.session));
    }
}

/// Persistent watches are dead after a reconnect; a new epoch is the order to arm them again and to read everything.
#[tokio::test]
async fn thirty_eight_cuts_under_writes_lose_nothing_and_leave_one_watch() {
    const CUTS: u64 = 38;
    let zookeeper = ZooKeeper::start().await;
    let other = zookeeper.connect().await;
    ZooKeeper::make_path(&other, "/m").await;
    let proxy = TcpProxy::start(&zookeeper.hosts()).await;
    let mut supervised = Supervised::start(&proxy.host(), SESSION);
    let first = supervised.live(1).await;
    let mut watcher = first
        .client
        .watch("/m", AddWatchMode::PersistentRecursive)
        .await
        .expect("armed");
    for epoch in 2..=CUTS + 1 {
        proxy.cut(Cut::Reset).await;
        ZooKeeper::make_path(&other, &format!("/m/n{epoch}")).await;
        session_event(&mut watcher, SessionState::Disconnected).await;
        session_event(&mut watcher, SessionState::SyncConnected).await;
        let live = supervised.live(epoch).await;
        assert_eq!(
            (live.epoch, live.session),
            (epoch, first.session),
            "one epoch per cut, one session"
        );
        watcher = live
            .client
            .watch("/m", AddWatchMode::PersistentRecursive)
            .await
            .expect("armed again");
        assert_eq!(names(&live.client, "/m").await, names(&other, "/m").await);
    }
    ZooKeeper::make_path(&other, "/m/last").await;
    eventually("the watch still delivers", SOON, async || {
        let event = watcher.changed().await;
        if event.path == "/m/last" {
            Ok(())
        } else {
            Err(event.path)
        }
    })
    .await;
    let watches = zookeeper.four_letters(0, "wchs").await;
    assert!(watches.contains("Total watches:1\n"), "{watches}");
}

/// The client's state channel keeps the latest value: a supervisor that was not run in between sees only that the state
/// is `SyncConnected`, as before.
#[tokio::test]
async fn a_loss_and_a_return_that_merged_are_an_epoch() {
    let zookeeper = ZooKeeper::start().await;
    let proxy = TcpProxy::start(&zookeeper.hosts()).await;
    let (link_tx, mut link) = watch::channel(Link::Connecting);
    let settings = Settings {
        ensemble: Ensemble::new(&[proxy.host()]).expect("a host"),
        session_timeout: SESSION,
    };
    let mut supervisor = Box::pin(supervise(settings, link_tx, std::future::pending()));
    let mut run_until_epoch = async |epoch: u64| {
        let reached = link.wait_for(|link| matches!(link, Link::Live(live) if live.epoch >= epoch));
        tokio::select! {
            () = &mut supervisor => unreachable!("nobody asked it to stop"),
            link = tokio::time::timeout(SOON, reached) => match link.expect("in time").expect("open").clone() {
                Link::Live(live) => live,
                other => unreachable!("{other:?}"),
            },
        }
    };
    let first = run_until_epoch(1).await;
    let mut watcher = first
        .client
        .watch("/", AddWatchMode::Persistent)
        .await
        .expect("armed");
    // From here on nobody runs the supervisor.
    for _ in 0..2 {
        proxy.cut(Cut::Reset).await;
        session_event(&mut watcher, SessionState::Disconnected).await;
        session_event(&mut watcher, SessionState::SyncConnected).await;
    }
    let second = run_until_epoch(2).await;
    assert_eq!((second.epoch, second.session), (2, first.session));
}

/// The client takes its session for expired; the restarted servers still hold it. There is never a second client on it.
#[tokio::test]
async fn a_restart_longer_than_the_clients_patience_keeps_session_and_nodes() {
    let mut zookeeper = ZooKeeper::start().await;
    let mut supervised = Supervised::start(&zookeeper.hosts(), SESSION);
    let first = supervised.live(1).await;
    ZooKeeper::make_ephemeral(&first.client, "/a/node", b"").await;
    let session = first.session;
    drop(first);
    zookeeper.stop_all();
    supervised
        .until("lost", |link| matches!(link, Link::Lost { .. }))
        .await;
    zookeeper.start_all().await;
    let second = supervised.live(2).await;
    assert_eq!((second.epoch, second.session), (2, session));
    let owner = second
        .client
        .check_stat("/a/node")
        .await
        .expect("read")
        .expect("there")
        .ephemeral_owner;
    assert_eq!(owner, session);
    let connections = zookeeper.four_letters(0, "cons").await;
    assert_eq!(
        connections.matches(&format!("sid={session:#x}")).count(),
        1,
        "{connections}"
    );
}

#[tokio::test]
async fn expiry_on_the_servers_gives_a_new_session() {
    let zookeeper = ZooKeeper::start().await;
    let other = zookeeper.connect().await;
    let proxy = TcpProxy::start(&zookeeper.hosts()).await;
    let mut supervised = Supervised::start(&proxy.host(), Duration::from_secs(1));
    let first = supervised.live(1).await;
    ZooKeeper::make_ephemeral(&first.client, "/a/node", b"").await;
    proxy.set(Mode::Blackhole).await;
    eventually("the servers expire the session", SOON, async || {
        let left = ZooKeeper::list(&other, "/a").await;
        if left.is_empty() {
            Ok(())
        } else {
            Err(format!("{left:?}"))
        }
    })
    .await;
    proxy.set(Mode::Pass).await;
    let second = supervised.live(2).await;
    assert_eq!(second.epoch, 2);
    assert_ne!(second.session, first.session);
    // A new client may sit on a server that lags behind: none is shown before its `sync`.
    assert_eq!(proxy.operations()["sync"], 2);
}

#[tokio::test]
async fn silence_is_noticed_within_two_fifths_of_the_session() {
    const LONG: Duration = Duration::from_secs(5);
    let zookeeper = ZooKeeper::start().await;
    let proxy = TcpProxy::start(&zookeeper.hosts()).await;
    let mut supervised = Supervised::start(&proxy.host(), LONG);
    supervised.live(1).await;
    proxy.set(Mode::Blackhole).await;
    let began = tokio::time::Instant::now();
    supervised
        .until("suspended", |link| matches!(link, Link::Suspended { .. }))
        .await;
    let took = began.elapsed();
    assert!(took < LONG * 4 / 5, "{took:?}");
}

/// A server that grants other time-outs than are asked for.
async fn granting(setting: &str) -> ZooKeeper {
    ZooKeeper::start_with(Options {
        settings: vec![setting.to_owned()],
        ..Options::default()
    })
    .await
}

/// What the servers grant is what counts; but no connection may be silent for two fifths of half a minute, and no outage that
/// is over may go on for as long as it has lasted, which is what the client alone makes of it.
#[tokio::test]
async fn a_granted_time_out_that_is_longer_makes_nothing_slower() {
    const GRANTED: Duration = Duration::from_secs(40);
    let zookeeper = granting("minSessionTimeout=40000").await;
    let proxy = TcpProxy::start(&zookeeper.hosts()).await;
    let mut supervised = Supervised::start(&proxy.host(), SESSION);
    let live = supervised.live(1).await;
    let timeout = (live.timeout.asked, live.timeout.granted);
    assert_eq!(timeout, (SESSION, GRANTED));
    assert!(live.timeout.differs() && live.call_limit() < GRANTED);
    let status = LinkStatus::of(&zookeeper.ensemble(), &supervised.link.borrow());
    let shown = serde_json::to_value(status.session_timeout).expect("plain data");
    assert_eq!(shown, serde_json::json!({"asked": 2.0, "granted": 40.0}));
    let session = live.session;
    drop(live);
    // The last comes so soon that the connection has shaken hands and nothing else, which the client does not tell.
    for (mode, outage) in [(Mode::Refuse, 14), (Mode::Blackhole, 4), (Mode::Refuse, 11)] {
        proxy.set(mode).await;
        let began = tokio::time::Instant::now();
        supervised
            .until("suspended", |link| !matches!(link, Link::Live(_)))
            .await;
        let noticed = began.elapsed();
        tokio::time::sleep_until(began + Duration::from_secs(outage)).await;
        proxy.set(Mode::Pass).await;
        let back = tokio::time::Instant::now();
        let live = supervised.live(2).await;
        let took = back.elapsed();
        println!("{mode:?} for {outage} s: noticed after {noticed:?}, over {took:?} after it was");
        assert!(noticed < Duration::from_secs(15), "{mode:?}: {noticed:?}");
        assert!(took < Duration::from_secs(9), "{mode:?}: {took:?}");
        assert_eq!(live.session, session, "{mode:?}");
    }
    supervised.close().await;
}

/// Asked for ten seconds, granted one and a half: attempts that come every five would miss each session that a restart holds.
#[tokio::test]
async fn a_granted_time_out_that_is_shorter_makes_everything_quicker() {
    let zookeeper = granting("maxSessionTimeout=1500").await;
    let proxy = TcpProxy::start(&zookeeper.hosts()).await;
    let mut supervised = Supervised::start(&proxy.host(), Duration::from_secs(10));
    let live = supervised.live(1).await;
    assert_eq!(live.call_limit(), Duration::from_millis(1500));
    drop(live);
    proxy.set(Mode::Refuse).await;
    supervised
        .until("lost", |link| matches!(link, Link::Lost { .. }))
        .await;
    // Long enough for the pauses to have grown.
    let grown = tokio::time::Instant::now() + Duration::from_secs(6);
    tokio::time::sleep_until(grown).await;
    for epoch in 2..5 {
        proxy.set(Mode::Pass).await;
        let began = tokio::time::Instant::now();
        supervised.live(epoch).await;
        let took = began.elapsed();
        println!("connected {took:?} after the service returned");
        assert!(took < Duration::from_secs(3), "{took:?}");
        proxy.set(Mode::Refuse).await;
        supervised
            .until("lost", |link| matches!(link, Link::Lost { .. }))
            .await;
    }
}

/// Signs of life are no answers: the connection is given up, and the session, with all that it holds, is resumed over another.
#[tokio::test]
async fn a_connection_that_answers_nothing_but_pings_is_given_up() {
    const SYNC: i32 = 9;
    let zookeeper = ZooKeeper::start().await;
    let other = zookeeper.connect().await;
    let deaf = |request: &Request<'_>| match (request.connection, request.operation) {
        (1 | 3, SYNC) => Fate::Lost,
        _ => Fate::Pass,
    };
    let (host, _relay) = rewriting(&zookeeper.hosts(), deaf, |granted| granted).await;
    // The sync of the first connection is never answered, and the second takes over.
    let mut supervised = Supervised::start(&host, SESSION);
    let live = supervised.live(1).await;
    let session = live.session;
    ZooKeeper::make_ephemeral(&live.client, "/held", b"x").await;
    // A user's call is not answered.
    live.doubt.raise(Suspicion::NoAnswer);
    drop(live);
    let live = supervised.live(2).await;
    assert_eq!(live.session, session);
    // Nothing was closed by the connections that were given up.
    let held = other
        .check_stat("/held")
        .await
        .expect("read")
        .expect("there");
    assert_eq!(held.ephemeral_owner, session);
    drop(live);
    supervised.close().await;
    assert_eq!(other.check_stat("/held").await, Ok(None));
}

#[tokio::test]
async fn a_call_that_timed_out_is_carried_out_all_the_same() {
    let zookeeper = ZooKeeper::start().await;
    let proxy = TcpProxy::start(&zookeeper.hosts()).await;
    let mut supervised = Supervised::start(&proxy.host(), SESSION);
    let live = supervised.live(1).await;
    proxy.set(Mode::Delay(Duration::from_millis(200))).await;
    let write = call(
        Duration::from_millis(50),
        ZooKeeper::create_ephemeral(&live.client, "/late"),
    )
    .await;
    assert_eq!(write.map_err(|e| e.trouble()), Err(Trouble::Lost));
    eventually("the node is there", SOON, async || {
        let stat = live
            .client
            .check_stat("/late")
            .await
            .map_err(|e| e.to_string())?;
        stat.map(drop).ok_or_else(|| "absent".to_owned())
    })
    .await;
}

#[tokio::test]
async fn bad_hosts_are_passed_over_and_an_absent_server_is_waited_for() {
    let zookeeper = ZooKeeper::start().await;
    let proxy = TcpProxy::start(&zookeeper.hosts()).await;
    proxy.set(Mode::Refuse).await;
    let hosts = format!(
        "127.0.0.1:1,[::1]:1,no-such-name.invalid:2181,{}",
        proxy.host()
    );
    let mut supervised = Supervised::start(&hosts, SESSION);
    let live = tokio::time::timeout(Duration::from_millis(300), supervised.live(1)).await;
    assert!(live.is_err() && matches!(*supervised.link.borrow(), Link::Connecting));
    proxy.set(Mode::Pass).await;
    assert_eq!(supervised.live(1).await.epoch, 1);

    let mut never = Supervised::start("127.0.0.1:1", SESSION);
    let took = never.close().await;
    assert!(took < Duration::from_secs(1), "{took:?}");
}
