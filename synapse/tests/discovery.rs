//! Discovery against a real ZooKeeper, through a proxy that cuts, refuses and holds. The names in brackets are the traps
//! of the client that a test guards against; taking the work-around out makes it fail.
//!
//! Over 600 lines because each trap is a scene of its own on the same small stage.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use smartstack_common::testing::{Cut, Mode, TcpProxy, ZooKeeper, eventually};
use smartstack_common::units::{Ensemble, ZkPath};
use smartstack_common::zk::{self, Link, supervise};
use synapse::model::source::{Child, Children, SourceKey, SourceView};
use synapse::sources::zookeeper::{Counters, Settings, Shared, Source, follow};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use zookeeper_client::{Acls, AddWatchMode, Client, CreateMode, CreateOptions, EventType};

const SOON: Duration = Duration::from_secs(30);
const NODE: CreateOptions<'static> = CreateMode::Persistent.with_acls(Acls::anyone_all());
const PATH: &str = "/services/web";

/// A source being followed through the proxy, and a client that changes the registry directly.
struct Follow {
    zookeeper: ZooKeeper,
    proxy: TcpProxy,
    direct: Client,
    link: watch::Receiver<Link>,
    shared: Arc<Shared>,
    view: watch::Receiver<SourceView>,
    counters: Arc<Counters>,
    _stop: oneshot::Sender<()>,
    _tasks: JoinSet<()>,
}

impl Follow {
    async fn start(path: &str) -> Self {
        Self::start_on(ZooKeeper::start().await, "", path, SourceView::default()).await
    }

    async fn start_on(zookeeper: ZooKeeper, chroot: &str, path: &str, seed: SourceView) -> Self {
        Self::start_with(zookeeper, chroot, path, seed, Duration::ZERO).await
    }

    async fn start_with(
        zookeeper: ZooKeeper,
        chroot: &str,
        path: &str,
        seed: SourceView,
        jitter: Duration,
    ) -> Self {
        let direct = zookeeper.connect().await;
        let proxy = TcpProxy::start(&zookeeper.hosts()).await;
        let ensemble =
            Ensemble::new(&[format!("{}{chroot}", proxy.host())]).expect("hosts of the harness");
        let session_timeout = Duration::from_secs(4);
        let (link_tx, link) = watch::channel(Link::Connecting);
        let (_stop, stopped) = oneshot::channel();
        let mut tasks = JoinSet::new();
        let settings = zk::Settings {
            ensemble: ensemble.clone(),
            session_timeout,
        };
        let shared = Arc::new(Shared::new(settings.clone()));
        tasks.spawn(supervise(settings, link_tx, async {
            stopped.await.unwrap_or(())
        }));
        let key = SourceKey {
            ensemble,
            path: ZkPath::new(path).expect("a path of the tests"),
        };
        let source = Source {
            key,
            valid: Arc::new(|_, data| data.starts_with(b"{")),
        };
        let (view_tx, view) = watch::channel(seed);
        let counters = Arc::new(Counters::default());
        let settings = Settings {
            jitter,
            refused: Duration::from_secs(1),
            ..Settings::default()
        };
        tasks.spawn(follow(
            source,
            settings,
            link.clone(),
            shared.clone(),
            view_tx,
            counters.clone(),
        ));
        Self {
            zookeeper,
            proxy,
            direct,
            link,
            shared,
            view,
            counters,
            _stop,
            _tasks: tasks,
        }
    }

    async fn until(&mut self, what: &str, wanted: impl Fn(&SourceView) -> bool) -> SourceView {
        let seen = tokio::time::timeout(SOON, self.view.wait_for(wanted)).await;
        match seen.map(|view| view.expect("the follower runs").clone()) {
            Ok(view) => view,
            Err(_) => panic!(
                "not within {SOON:?}: {what}; last: {}",
                describe(&self.view.borrow())
            ),
        }
    }

    async fn until_names(&mut self, names: &[&str]) -> SourceView {
        self.until(&format!("children {names:?}"), |v| {
            v.fresh && v.children.keys().eq(names)
        })
        .await
    }

    /// Waits until the view is what a direct read of the registry gives.
    async fn until_identical(&mut self, path: &str) {
        let real = read_all(&self.direct, path).await;
        self.until("identical to the registry", |v| {
            v.fresh && *v.children == real
        })
        .await;
    }

    /// Cuts the connection once there is one.
    async fn cut(&self) {
        eventually("a connection to cut", SOON, async || {
            if self.proxy.open() > 0 {
                Ok(())
            } else {
                Err("none")
            }
        })
        .await;
        self.proxy.cut(Cut::Reset).await;
    }

    fn session(&self) -> Option<i64> {
        match &*self.link.borrow() {
            Link::Live(live) => Some(live.session),
            _ => None,
        }
    }

    async fn watches(&self) -> String {
        let summary = self.zookeeper.four_letters(0, "wchs").await;
        summary.lines().last().unwrap_or_default().to_owned()
    }

    async fn one_watch_is_left(&self) {
        eventually("one watch on the server", SOON, async || {
            match self.watches().await {
                total if total == "Total watches:1" => Ok(()),
                other => Err(other),
            }
        })
        .await;
    }
}

fn describe(view: &SourceView) -> String {
    let names: Vec<&String> = view.children.keys().take(10).collect();
    let SourceView {
        confirmed,
        fresh,
        problem,
        skipped,
        ..
    } = view;
    format!(
        "{} children {names:?}, confirmed {confirmed}, fresh {fresh}, problem {problem:?}, skipped {skipped:?}",
        view.children.len()
    )
}

fn count(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

async fn read_all(client: &Client, path: &str) -> Children {
    let mut children = Children::new();
    for name in ZooKeeper::list(client, path).await {
        let (data, stat) = client
            .get_data(&format!("{path}/{name}"))
            .await
            .expect("a listed child");
        children.insert(
            name,
            Child {
                data: data.into(),
                czxid: stat.czxid,
                mzxid: stat.mzxid,
            },
        );
    }
    children
}

/// Creates `count` children in as few transactions as go.
async fn create_many(client: &Client, path: &str, names: impl Iterator<Item = String>) {
    let names: Vec<String> = names.collect();
    for some in names.chunks(1000) {
        let mut multi = client.new_multi_writer();
        for name in some {
            multi
                .add_create(
                    &format!("{path}/{name}"),
                    b"{\"host\":\"10.0.0.1\",\"port\":80}",
                    &NODE,
                )
                .expect("the registry is up");
        }
        multi.commit().await.expect("the registry is up");
    }
}

#[tokio::test]
async fn changes_are_seen_on_an_absent_path_a_created_one_and_a_deleted_one() {
    let mut f = Follow::start(PATH).await;
    let view = f
        .until("an absent path is a confirmed empty set", |v| {
            v.confirmed && v.fresh
        })
        .await;
    assert!(view.children.is_empty() && view.problem.is_none() && view.agreed_at.is_some());

    ZooKeeper::put(&f.direct, "/services/web/a", b"{1}").await;
    ZooKeeper::put(&f.direct, "/services/web/b", b"{1}").await;
    ZooKeeper::put(&f.direct, "/services/web/b/below", b"{1}").await;
    f.until_names(&["a", "b"]).await;
    f.direct
        .set_data("/services/web/a", b"{2}", None)
        .await
        .unwrap();
    f.until("a change of data in place", |v| {
        v.fresh && v.children.get("a").is_some_and(|c| *c.data == *b"{2}")
    })
    .await;
    f.until_identical(PATH).await;

    ZooKeeper::wipe(&f.direct, PATH).await;
    let view = f.until_names(&[]).await;
    assert!(view.confirmed);
    ZooKeeper::put(&f.direct, "/services/web/c", b"{1}").await;
    f.until_names(&["c"]).await;
    f.until_identical(PATH).await;
    assert_eq!(count(&f.counters.full_reads), 1);
    assert_eq!(count(&f.counters.watches), 1);
}

/// [T1] The client re-arms recursive watches with a request the server does not take them from.
#[tokio::test]
async fn after_a_cut_changes_are_seen_and_one_watch_is_left() {
    let mut f = Follow::start(PATH).await;
    ZooKeeper::put(&f.direct, "/services/web/a", b"{1}").await;
    f.until_names(&["a"]).await;
    for round in 0..3 {
        let (name, watches) = (format!("after-{round}"), count(&f.counters.watches));
        f.cut().await;
        f.until("armed and read again", |v| v.fresh).await;
        eventually("armed again", SOON, async || {
            if count(&f.counters.watches) > watches {
                Ok(())
            } else {
                Err("not yet")
            }
        })
        .await;
        f.one_watch_is_left().await;
        f.until("read again", |v| v.fresh).await;
        let full = count(&f.counters.full_reads);
        ZooKeeper::put(&f.direct, &format!("{PATH}/{name}"), b"{1}").await;
        f.until("the change after the cut", |v| {
            v.fresh && v.children.contains_key(&name)
        })
        .await;
        assert_eq!(
            count(&f.counters.full_reads),
            full,
            "seen by its event, not by another full read"
        );
    }
}

#[tokio::test]
async fn cuts_under_writes_leave_an_identical_copy_and_one_watch() {
    let mut f = Follow::start(PATH).await;
    ZooKeeper::make_path(&f.direct, PATH).await;
    let mut rng = fastrand::Rng::with_seed(38);
    for round in 0..38 {
        for write in 0..60 {
            let path = format!("{PATH}/n{}", rng.u8(..40));
            let data = format!("{{{round} {write}}}");
            // Each may fail because the node is there, or is not: the next ones bring the change.
            let _outcome = match rng.u8(..3) {
                0 => f.direct.create(&path, data.as_bytes(), &NODE).await.is_ok(),
                1 => f.direct.delete(&path, None).await.is_ok(),
                _ => f
                    .direct
                    .set_data(&path, data.as_bytes(), None)
                    .await
                    .is_ok(),
            };
            if write == 30 {
                f.cut().await;
            }
        }
    }
    f.until_identical(PATH).await;
    f.one_watch_is_left().await;
    assert_eq!(count(&f.counters.differences), 0);
    assert!(count(&f.counters.full_reads) >= 2);
}

/// The comparison is a counter of defects: under any writing it must find nothing.
#[tokio::test]
async fn comparisons_under_writes_find_no_difference() {
    let mut f = Follow::start(PATH).await;
    let ensemble = Ensemble::new(&[f.proxy.host()]).unwrap();
    let key = SourceKey {
        ensemble,
        path: ZkPath::new(PATH).unwrap(),
    };
    let source = Source {
        key,
        valid: Arc::new(|_, _| true),
    };
    let settings = Settings {
        jitter: Duration::ZERO,
        compare: Duration::from_millis(20),
        ..Settings::default()
    };
    let (view, second) = watch::channel(SourceView::default());
    let counters = Arc::new(Counters::default());
    f._tasks.spawn(follow(
        source,
        settings,
        f.link.clone(),
        f.shared.clone(),
        view,
        counters.clone(),
    ));
    ZooKeeper::make_path(&f.direct, PATH).await;
    let mut rng = fastrand::Rng::with_seed(7);
    let mut writes = 0;
    while count(&counters.full_reads) < 40 {
        let path = format!("{PATH}/n{}", rng.u8(..40));
        let data = format!("{{{writes}}}");
        let _outcome = match rng.u8(..3) {
            0 => f.direct.create(&path, data.as_bytes(), &NODE).await.is_ok(),
            1 => f.direct.delete(&path, None).await.is_ok(),
            _ => f
                .direct
                .set_data(&path, data.as_bytes(), None)
                .await
                .is_ok(),
        };
        writes += 1;
        assert!(
            writes < 100_000,
            "only {} full reads",
            count(&counters.full_reads)
        );
    }
    assert_eq!(count(&counters.differences), 0);
    f.until_identical(PATH).await;
    f.view = second;
    f.until_identical(PATH).await;
}

/// [T2] Above 128 KiB of watched paths a reconnection fails until the session expires.
#[tokio::test]
async fn thousands_of_instances_cost_one_watch_and_a_cut_keeps_the_session() {
    let mut f = Follow::start(PATH).await;
    ZooKeeper::make_path(&f.direct, PATH).await;
    create_many(
        &f.direct,
        PATH,
        (0..5000).map(|n| format!("i-0123456789abcdef0_{n:010}")),
    )
    .await;
    f.until("all of them", |v| v.fresh && v.children.len() == 5000)
        .await;
    f.one_watch_is_left().await;
    let session = f.session();
    assert!(session.is_some());
    let full = count(&f.counters.full_reads);
    f.cut().await;
    eventually("read again", SOON, async || {
        if count(&f.counters.full_reads) > full {
            Ok(())
        } else {
            Err("not yet")
        }
    })
    .await;
    f.until("all of them again", |v| v.fresh && v.children.len() == 5000)
        .await;
    assert_eq!(f.session(), session);
    f.one_watch_is_left().await;
}

#[tokio::test]
async fn an_added_instance_costs_one_request_and_a_removed_one_none() {
    let mut f = Follow::start(PATH).await;
    ZooKeeper::make_path(&f.direct, PATH).await;
    create_many(&f.direct, PATH, (0..1000).map(|n| format!("i_{n:010}"))).await;
    f.until("all of them", |v| v.fresh && v.children.len() == 1000)
        .await;
    let requests = || count(&f.counters.requests);
    // 64, 128, 256, 512 and the rest; events of one transaction may be drained in two goes.
    let before = requests();
    assert!(
        before <= 12,
        "{before} requests for 1000 instances created at once"
    );
    let packets = f.zookeeper.mntr(0, "zk_packets_received").await;
    let added = "added_0000001001";
    f.direct
        .create(&format!("{PATH}/{added}"), b"{1}", &NODE)
        .await
        .unwrap();
    f.view
        .wait_for(|v| v.fresh && v.children.contains_key(added))
        .await
        .unwrap();
    assert_eq!(count(&f.counters.requests) - before, 1);
    f.direct
        .delete(&format!("{PATH}/{added}"), None)
        .await
        .unwrap();
    f.view
        .wait_for(|v| v.fresh && !v.children.contains_key(added))
        .await
        .unwrap();
    assert_eq!(count(&f.counters.requests) - before, 1);
    let packets = f.zookeeper.mntr(0, "zk_packets_received").await - packets;
    assert!(
        packets < 30.0,
        "{packets} packets, those of the writing client and pings included"
    );
}

/// [T7] Requests made while the connection is away queue without bound and are sent later.
#[tokio::test]
async fn nothing_is_asked_while_the_connection_is_away_and_the_old_set_stays() {
    let mut f = Follow::start(PATH).await;
    ZooKeeper::put(&f.direct, "/services/web/a", b"{1}").await;
    f.until_names(&["a"]).await;
    let (requests, watches) = (count(&f.counters.requests), count(&f.counters.watches));
    f.proxy.set(Mode::Refuse).await;
    let away = f.until("not fresh", |v| !v.fresh).await;
    assert!(away.confirmed && away.agreed_at.is_some() && away.children.contains_key("a"));
    create_many(&f.direct, PATH, (0..50).map(|n| format!("b_{n:010}"))).await;
    assert_eq!(
        (count(&f.counters.requests), count(&f.counters.watches)),
        (requests, watches)
    );
    f.proxy.set(Mode::Pass).await;
    f.until_identical(PATH).await;
    assert_eq!(count(&f.counters.watches), watches + 1);
    // One list and one multi-read; the session may have been resumed by a client of its own, which syncs.
    let asked = count(&f.counters.requests) - requests;
    assert!(asked <= 3, "{asked} requests");
}

#[tokio::test]
async fn the_set_survives_a_crash_of_zookeeper() {
    let mut f = Follow::start(PATH).await;
    ZooKeeper::put(&f.direct, "/services/web/a", b"{1}").await;
    f.until_names(&["a"]).await;
    f.zookeeper.stop_all();
    f.until("not fresh", |v| !v.fresh).await;
    f.zookeeper.start_all().await;
    let direct = f.zookeeper.connect().await;
    ZooKeeper::put(&direct, "/services/web/b", b"{1}").await;
    f.until_names(&["a", "b"]).await;
    f.one_watch_is_left().await;
}

/// So long the full read after a reconnection is put off, which would find out in any case.
const LATER: Duration = Duration::from_secs(300);

async fn put_all(direct: &Client, numbers: std::ops::Range<u32>, data: &[u8]) {
    for number in numbers {
        ZooKeeper::put(direct, &format!("{PATH}/i_{number:010}"), data).await;
    }
}

impl Follow {
    /// Another history is served from now on, by names and numbers a continuation of the one before: the first list must not
    /// leave anything of that one.
    async fn the_first_list_shows(&mut self, data: &[u8], names: usize) {
        let lists = count(&self.counters.full_reads);
        self.proxy.set(Mode::Pass).await;
        self.until("nothing is as before", |v| {
            v.children.len() == names && v.children.values().all(|c| *c.data == *data)
        })
        .await;
        assert_eq!(
            count(&self.counters.full_reads),
            lists + 1,
            "found by the second read"
        );
    }
}

/// Wiped, and further than before; the path was created by a transaction of the same number.
#[tokio::test]
async fn a_wiped_ensemble_that_got_further_is_another_one() {
    let zookeeper = ZooKeeper::start().await;
    let seed = SourceView::default();
    let mut f = Follow::start_with(zookeeper, "", PATH, seed, LATER).await;
    put_all(&f.direct, 0..4, b"{1}").await;
    f.until("all of them", |v| v.fresh && v.children.len() == 4)
        .await;
    let path = f.direct.check_stat(PATH).await.unwrap().unwrap();
    f.proxy.set(Mode::Refuse).await;
    f.zookeeper.stop_all();
    f.zookeeper.erase(0);
    f.zookeeper.start_all().await;
    let direct = f.zookeeper.connect().await;
    let (mut last, _) = direct.create("/services", b"", &NODE).await.unwrap();
    while last.mzxid < path.czxid - 1 {
        last = direct.set_data("/services", b"", None).await.unwrap();
    }
    direct.create(PATH, b"", &NODE).await.unwrap();
    put_all(&direct, 0..8, b"{2}").await;
    let again = direct.check_stat(PATH).await.unwrap().unwrap();
    assert_eq!(again.czxid, path.czxid);
    assert!(again.pzxid > path.pzxid && again.ctime != path.ctime);
    f.the_first_list_shows(b"{2}", 8).await;
}

/// Restored from a backup: the path is the same node, and its numbers are given out a second time.
#[tokio::test]
async fn an_ensemble_restored_from_a_backup_is_another_one() {
    let mut zookeeper = ZooKeeper::start().await;
    let direct = zookeeper.connect().await;
    ZooKeeper::make_path(&direct, PATH).await;
    drop(direct);
    zookeeper.stop_all();
    zookeeper.backup(0);
    zookeeper.start_all().await;
    let seed = SourceView::default();
    let mut f = Follow::start_with(zookeeper, "", PATH, seed, LATER).await;
    put_all(&f.direct, 0..4, b"{1}").await;
    f.until("all of them", |v| v.fresh && v.children.len() == 4)
        .await;
    let path = f.direct.check_stat(PATH).await.unwrap().unwrap();
    f.proxy.set(Mode::Refuse).await;
    f.zookeeper.stop_all();
    f.zookeeper.restore(0);
    f.zookeeper.start_all().await;
    let direct = f.zookeeper.connect().await;
    put_all(&direct, 0..12, b"{2}").await;
    let again = direct.check_stat(PATH).await.unwrap().unwrap();
    assert_eq!((again.czxid, again.ctime), (path.czxid, path.ctime));
    assert!(again.pzxid > path.pzxid);
    f.the_first_list_shows(b"{2}", 12).await;
}

#[tokio::test]
async fn a_seed_is_unconfirmed_until_the_registry_is_read() {
    let mut zookeeper = ZooKeeper::start().await;
    let direct = zookeeper.connect().await;
    ZooKeeper::put(&direct, "/services/web/a", b"{1}").await;
    zookeeper.stop_all();
    zookeeper.start_all().await;
    let old = Child {
        data: b"{0}"[..].into(),
        czxid: 0,
        mzxid: 0,
    };
    let seed = SourceView::seeded(Arc::new(BTreeMap::from([("z".to_owned(), old)])), None);
    let mut f = Follow::start_on(zookeeper, "", PATH, seed).await;
    assert!(f.view.borrow().confirmed || f.view.borrow().children.contains_key("z"));
    let view = f.until_names(&["a"]).await;
    assert!(view.confirmed);
}

/// [T11] Data is never too large for the others, and is not fetched again until it changes.
#[tokio::test]
async fn oversized_data_costs_that_node_only() {
    let mut f = Follow::start(PATH).await;
    ZooKeeper::put(&f.direct, "/services/web/good", b"{1}").await;
    let big = vec![b'x'; 900_000];
    for n in 0..8 {
        ZooKeeper::put(&f.direct, &format!("{PATH}/big-{n}"), &big).await;
    }
    let view = f
        .until("eight skipped", |v| v.fresh && v.skipped.len() == 8)
        .await;
    assert!(view.children.keys().eq(["good"]));
    assert_eq!(
        view.skipped["big-0"],
        "900000 bytes of data, above the limit of 65536"
    );

    let (full, bytes) = (count(&f.counters.full_reads), f.proxy.bytes_to_client());
    f.cut().await;
    eventually("read again", SOON, async || {
        if count(&f.counters.full_reads) > full {
            Ok(())
        } else {
            Err("not yet")
        }
    })
    .await;
    let view = f.until("fresh", |v| v.fresh).await;
    assert_eq!(view.skipped.len(), 8);
    assert!(
        f.proxy.bytes_to_client() - bytes < 100_000,
        "the large data was fetched again"
    );

    f.direct
        .set_data("/services/web/big-0", b"{1}", None)
        .await
        .unwrap();
    f.until_names(&["big-0", "good"]).await;
}

#[tokio::test]
async fn an_invalid_change_in_place_keeps_the_last_valid_value() {
    let mut f = Follow::start(PATH).await;
    ZooKeeper::put(&f.direct, "/services/web/a", b"{1}").await;
    f.until_names(&["a"]).await;
    f.direct
        .set_data("/services/web/a", b"garbage", None)
        .await
        .unwrap();
    let view = f
        .until("noted", |v| v.fresh && v.skipped.contains_key("a"))
        .await;
    assert_eq!(*view.children["a"].data, *b"{1}");
    f.direct
        .set_data("/services/web/a", b"{2}", None)
        .await
        .unwrap();
    let view = f
        .until("the next valid value", |v| v.fresh && v.skipped.is_empty())
        .await;
    assert_eq!(*view.children["a"].data, *b"{2}");
}

#[tokio::test]
async fn a_swap_never_shows_a_gap() {
    let mut f = Follow::start(PATH).await;
    ZooKeeper::put(&f.direct, "/services/web/fixed", b"{1}").await;
    f.until_names(&["fixed"]).await;
    for round in 0..50 {
        let data = format!("{{{round}}}");
        let mut multi = f.direct.new_multi_writer();
        multi.add_delete("/services/web/fixed", None).unwrap();
        multi
            .add_create("/services/web/fixed", data.as_bytes(), &NODE)
            .unwrap();
        multi.commit().await.unwrap();
        let swapped = |v: &SourceView| {
            v.children
                .get("fixed")
                .is_none_or(|c| *c.data == *data.as_bytes())
        };
        let view = f.until("swapped", swapped).await;
        assert!(
            view.children.contains_key("fixed"),
            "round {round}: the set without it was published"
        );
    }
}

/// Ruby's synapse applies a map that lies on the path itself: its keys are known, shortened, so that they can be named.
#[tokio::test]
async fn what_lies_on_the_path_itself_is_known_by_its_keys() {
    let long = "k".repeat(50);
    let many: BTreeMap<String, u8> = (0..20).map(|n| (format!("key{n:02}"), n)).collect();
    let cases: [(Vec<u8>, Vec<String>); 5] = [
        (
            br#"{"haproxy": {"listen": []}, "leader_election": true}"#.to_vec(),
            vec!["haproxy".to_owned(), "leader_election".to_owned()],
        ),
        (
            serde_json::to_vec(&serde_json::json!({(long.clone()): 1, "a\nb": 2})).unwrap(),
            vec![long[..40].to_owned(), "ab".to_owned()],
        ),
        (
            serde_json::to_vec(&many).unwrap(),
            many.keys().take(10).cloned().collect(),
        ),
        (b"[1, 2]".to_vec(), Vec::new()),
        (vec![0xff, b'{'], Vec::new()),
    ];
    let zookeeper = ZooKeeper::start().await;
    let client = zookeeper.connect().await;
    for (number, (data, _)) in cases.iter().enumerate() {
        ZooKeeper::put(&client, &format!("/c{number}"), data).await;
        ZooKeeper::put(&client, &format!("/c{number}/a"), b"{1}").await;
    }
    let mut zookeeper = Some(zookeeper);
    for (number, (data, keys)) in cases.iter().enumerate() {
        let (ensemble, path) = (zookeeper.take().unwrap(), format!("/c{number}"));
        let mut f = Follow::start_on(ensemble, "", &path, SourceView::default()).await;
        let view = f
            .until("read", |v| v.fresh && v.children.contains_key("a"))
            .await;
        assert_eq!(view.parent_data, data.len());
        assert_eq!(
            view.parent_config.to_vec(),
            *keys,
            "{}",
            String::from_utf8_lossy(data)
        );
        zookeeper = Some(f.zookeeper);
    }
}

#[tokio::test]
async fn a_chroot_is_part_of_the_path() {
    let zookeeper = ZooKeeper::start().await;
    let mut f = Follow::start_on(zookeeper, "/chroot/of", PATH, SourceView::default()).await;
    f.until("confirmed", |v| v.confirmed).await;
    ZooKeeper::put(&f.direct, "/chroot/of/services/web/a", b"{1}").await;
    ZooKeeper::put(&f.direct, "/services/web/elsewhere", b"{1}").await;
    f.until_names(&["a"]).await;
}

#[tokio::test]
async fn a_path_that_may_not_be_read_says_so() {
    let zookeeper = ZooKeeper::start().await;
    let owner = Client::connector()
        .with_auth("digest", b"user:pw")
        .connect(&zookeeper.hosts())
        .await
        .unwrap();
    let closed = CreateMode::Persistent.with_acls(Acls::creator_all());
    owner.create("/closed", b"", &closed).await.unwrap();
    let mut f = Follow::start_on(zookeeper, "", "/closed", SourceView::default()).await;
    let view = f.until("a problem", |v| v.problem.is_some()).await;
    assert!(!view.confirmed && !view.fresh);
    let problem = view.problem.unwrap();
    assert!(
        problem.contains("cannot read `/closed`: not authorized (its ACL"),
        "{problem}"
    );
    owner
        .set_acl("/closed", &Acls::anyone_all(), None)
        .await
        .unwrap();
    let view = f.until("read", |v| v.fresh).await;
    assert_eq!(view.problem, None);
}

#[tokio::test]
async fn a_child_that_may_not_be_read_is_left_out_until_it_may() {
    let mut f = Follow::start(PATH).await;
    let owner = Client::connector()
        .with_auth("digest", b"user:pw")
        .connect(&f.zookeeper.hosts())
        .await
        .unwrap();
    ZooKeeper::put(&f.direct, "/services/web/open", b"{1}").await;
    let closed = CreateMode::Persistent.with_acls(Acls::creator_all());
    let path = "/services/web/closed";
    owner.create(path, b"{1}", &closed).await.unwrap();
    f.until_names(&["open"]).await;
    // No event tells of a node to those who may not read it (CVE-2024-23944): lists do.
    f.cut().await;
    let view = f
        .until("left out", |v| v.fresh && v.skipped.contains_key("closed"))
        .await;
    assert!(view.children.keys().eq(["open"]));
    let reason = &view.skipped["closed"];
    assert!(reason.contains("ACL"), "{reason}");
    let full = count(&f.counters.full_reads);
    owner
        .set_acl(path, &Acls::anyone_all(), None)
        .await
        .unwrap();
    f.until_names(&["closed", "open"]).await;
    assert_eq!(count(&f.counters.full_reads), full, "not by a comparison");
}

/// With a spread, a reconnection reads the names and what is new first; what was changed in place meanwhile, which
/// nobody who registers does, is found by the full read that follows, and is no defect.
#[tokio::test]
async fn after_a_reconnection_names_come_first_and_data_after() {
    let jitter = Duration::from_millis(500);
    let zookeeper = ZooKeeper::start().await;
    let mut f = Follow::start_with(zookeeper, "", PATH, SourceView::default(), jitter).await;
    ZooKeeper::make_path(&f.direct, PATH).await;
    create_many(&f.direct, PATH, (0..500).map(|n| format!("i_{n:010}"))).await;
    f.until("all", |v| v.fresh && v.children.len() == 500).await;
    let reads = || (count(&f.counters.full_reads), count(&f.counters.lists));
    let before = reads();
    f.proxy.set(Mode::Refuse).await;
    f.view.wait_for(|v| !v.fresh).await.unwrap();
    let changed = format!("{PATH}/i_0000000007");
    f.direct.set_data(&changed, b"{7}", None).await.unwrap();
    create_many(&f.direct, PATH, ["new_0000000501".to_owned()].into_iter()).await;
    f.direct
        .delete(&format!("{PATH}/i_0000000008"), None)
        .await
        .unwrap();
    f.proxy.set(Mode::Pass).await;
    let listed = f
        .until("the list", |v| v.children.contains_key("new_0000000501"))
        .await;
    assert_eq!(listed.children.len(), 500);
    assert!(!listed.fresh, "not verified yet");
    f.until_identical(PATH).await;
    let after = (count(&f.counters.full_reads), count(&f.counters.lists));
    assert_eq!(after, (before.0 + 2, before.1 + 1));
    assert_eq!(count(&f.counters.differences), 0);
}

/// The announcement of a withdrawal relies on it: both events of one transaction arrive, in order, together.
#[tokio::test]
async fn a_recursive_watch_delivers_a_change_and_deletion_of_one_multi_in_order() {
    let zookeeper = ZooKeeper::start().await;
    let (writer, reader) = (zookeeper.connect().await, zookeeper.connect().await);
    ZooKeeper::make_path(&writer, PATH).await;
    let mut watcher = reader
        .watch(PATH, AddWatchMode::PersistentRecursive)
        .await
        .unwrap();
    for n in 0..200 {
        let path = format!("{PATH}/n_{n:010}");
        writer.create(&path, b"{}", &NODE).await.unwrap();
        let mut multi = writer.new_multi_writer();
        multi
            .add_set_data(&path, b"{\"available\":false}", None)
            .unwrap();
        multi.add_delete(&path, None).unwrap();
        multi.commit().await.unwrap();
        for expected in [
            EventType::NodeCreated,
            EventType::NodeDataChanged,
            EventType::NodeDeleted,
        ] {
            let event = tokio::time::timeout(SOON, watcher.changed())
                .await
                .expect("an event");
            assert_eq!(
                (event.event_type, event.path.as_str()),
                (expected, path.as_str())
            );
        }
    }
}
