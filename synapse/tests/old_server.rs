//! Servers before 3.6, which know neither recursive watches nor multi-reads: a relay answers those as such a server does
//! (`UnimplementedRequestProcessor` of ZooKeeper 3.5), with `Unimplemented` and the end of the connection.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use smartstack_common::testing::{ZooKeeper, eventually, read_frame, relay, reply, request_header};
use smartstack_common::units::{Ensemble, ZkPath};
use smartstack_common::zk::{self, Link, supervise};
use synapse::model::source::{SourceKey, SourceView};
use synapse::sources::zookeeper::{Counters, Settings, Shared, Source, Watch, follow};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

const SOON: Duration = Duration::from_secs(60);
const PATH: &str = "/services/web";
/// removeWatches, multiRead, setWatches2, addWatch, and what only later servers have.
const UNKNOWN: [i32; 5] = [18, 22, 103, 105, 106];
/// `KeeperException.Code.UNIMPLEMENTED`.
const UNIMPLEMENTED: i32 = -6;

/// Requests by their operation.
type Seen = Arc<Mutex<BTreeMap<i32, u64>>>;

/// Answers what an old server does not know as it does, and ends the connection.
async fn look_old(client: TcpStream, server: TcpStream, seen: &Seen) -> std::io::Result<()> {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let unknown = async {
        let mut connected = false;
        loop {
            let frame = read_frame(&mut from_client).await?;
            let header = request_header(&frame).filter(|_| connected);
            connected = true;
            if let Some((xid, operation)) = header {
                let mut seen = seen.lock().expect("a counter");
                *seen.entry(operation).or_default() += 1;
                if UNKNOWN.contains(&operation) {
                    return Ok::<i32, std::io::Error>(xid);
                }
            }
            to_server.write_all(&frame).await?;
        }
    };
    // The first of them ends the connection.
    let xid = tokio::select! {
        xid = unknown => xid?,
        ended = tokio::io::copy(&mut from_server, &mut to_client) => return ended.map(drop),
    };
    to_client.write_all(&reply(xid, UNIMPLEMENTED, &[])).await
}

/// A source followed over an old server.
struct Stage {
    zookeeper: ZooKeeper,
    seen: Seen,
    views: Vec<watch::Receiver<SourceView>>,
    counters: Arc<Counters>,
    link: watch::Receiver<Link>,
    followers: Vec<AbortHandle>,
    _tasks: [JoinSet<()>; 2],
}

impl Stage {
    async fn start(paths: &[&str], watch: Watch) -> Self {
        let zookeeper = ZooKeeper::start().await;
        let (mut tasks, seen) = (JoinSet::new(), Seen::default());
        let all = Arc::clone(&seen);
        let (host, relay) = relay(&zookeeper.hosts(), move |client, server| {
            let seen = Arc::clone(&all);
            async move {
                let _closed = look_old(client, server, &seen).await;
            }
        })
        .await;
        let ensemble = Ensemble::new(&[host]).expect("host and port");
        let settings = zk::Settings {
            ensemble: ensemble.clone(),
            session_timeout: Duration::from_secs(4),
        };
        let shared = Arc::new(Shared::new(settings.clone()));
        let (sender, link) = watch::channel(Link::Connecting);
        tasks.spawn(supervise(settings, sender, std::future::pending()));
        let (mut views, mut followers) = (Vec::new(), Vec::new());
        let counters = Arc::new(Counters::default());
        for path in paths {
            let source = Source {
                key: SourceKey {
                    ensemble: ensemble.clone(),
                    path: ZkPath::new(path).expect("a path"),
                },
                valid: Arc::new(|_, _| true),
            };
            let settings = Settings {
                jitter: Duration::ZERO,
                // Polls are ten times as frequent.
                compare: Duration::from_secs(5),
                watch,
                ..Settings::default()
            };
            let (sender, view) = watch::channel(SourceView::default());
            views.push(view);
            let (link, shared, counters) = (link.clone(), shared.clone(), counters.clone());
            let follower = follow(source, settings, link, shared, sender, counters);
            followers.push(tasks.spawn(follower));
        }
        Self {
            zookeeper,
            seen,
            views,
            counters,
            link,
            followers,
            _tasks: [tasks, relay],
        }
    }

    async fn until(&mut self, source: usize, what: &str, wanted: impl Fn(&SourceView) -> bool) {
        let view = &mut self.views[source];
        let seen = tokio::time::timeout(SOON, view.wait_for(wanted))
            .await
            .is_ok();
        let last = view.borrow();
        assert!(
            seen,
            "not within {SOON:?}: {what}; last: {:?}, fresh {}, problem {:?}",
            last.children.keys().take(10).collect::<Vec<_>>(),
            last.fresh,
            last.problem
        );
    }

    /// Connections so far.
    fn epoch(&self) -> u64 {
        match &*self.link.borrow() {
            Link::Live(live) => live.epoch,
            other => panic!("{other:?}"),
        }
    }

    fn asked(&self, operation: i32) -> u64 {
        let seen = self.seen.lock().expect("a counter");
        seen.get(&operation).copied().unwrap_or(0)
    }
}

#[tokio::test]
async fn a_source_of_an_old_server_is_followed_by_its_list_and_by_polls() {
    for watch in [Watch::Children, Watch::Recursive] {
        let mut f = Stage::start(&[PATH], watch).await;
        let direct = f.zookeeper.connect().await;
        f.until(0, "an absent path", |v| v.confirmed && v.fresh)
            .await;
        for n in 0..100 {
            let path = format!("{PATH}/i_{n:010}");
            ZooKeeper::put(&direct, &path, b"{1}").await;
        }
        f.until(0, "all of them", |v| v.fresh && v.children.len() == 100)
            .await;
        let path = format!("{PATH}/i_0000000007");
        direct.set_data(&path, b"{2}", None).await.unwrap();
        f.until(0, "a change in place", |v| {
            v.children
                .get("i_0000000007")
                .is_some_and(|c| *c.data == *b"{2}")
        })
        .await;
        direct.delete(&path, None).await.unwrap();
        f.until(0, "a removal", |v| v.fresh && v.children.len() == 99)
            .await;
        ZooKeeper::wipe(&direct, PATH).await;
        f.until(0, "the path removed", |v| v.fresh && v.children.is_empty())
            .await;
        ZooKeeper::put(&direct, &format!("{PATH}/again"), b"{1}").await;
        f.until(0, "the path again", |v| {
            v.fresh && v.children.contains_key("again")
        })
        .await;

        let armed = u64::from(watch == Watch::Recursive);
        assert_eq!((f.asked(106), f.asked(22), f.asked(18)), (armed, 0, 0));
        assert_eq!(f.counters.differences.load(Ordering::Relaxed), 0);
        // Between the event of a watch and the next list there is none. (`wchs` does not count watches of children.)
        eventually("one watch on the server", SOON, async || {
            match f.zookeeper.mntr(0, "zk_watch_count").await {
                1.0 => Ok(()),
                other => Err(other),
            }
        })
        .await;
    }
}

/// Each attempt with a recursive watch costs the connection: one source finds it out for all of them.
#[tokio::test]
async fn many_sources_find_out_together_that_the_server_is_old() {
    static PATHS: [&str; 12] = [
        "/s/0", "/s/1", "/s/2", "/s/3", "/s/4", "/s/5", "/s/6", "/s/7", "/s/8", "/s/9", "/s/10",
        "/s/11",
    ];
    let mut f = Stage::start(&PATHS, Watch::Recursive).await;
    let direct = f.zookeeper.connect().await;
    for path in PATHS {
        ZooKeeper::put(&direct, &format!("{path}/a"), b"{1}").await;
    }
    for source in 0..PATHS.len() {
        f.until(source, "read", |v| v.fresh && v.children.contains_key("a"))
            .await;
    }
    // The first answer tells everybody; a second attempt is sent only where the connection took that answer with it.
    assert!(f.epoch() <= 3, "{} connections", f.epoch());
    assert_eq!(f.asked(18), 0, "removals of watches");
}

/// A watch that nobody wants any more is not removed: such a server would close everybody's connection.
#[tokio::test]
async fn a_source_that_is_not_followed_any_more_costs_the_others_nothing() {
    let mut f = Stage::start(&["/s/a", "/s/b", "/s/c"], Watch::Children).await;
    let direct = f.zookeeper.connect().await;
    ZooKeeper::put(&direct, "/s/a/one", b"{1}").await;
    ZooKeeper::put(&direct, "/s/c/one", b"{1}").await;
    for (source, there) in [1, 0, 1].into_iter().enumerate() {
        f.until(source, "read", |v| v.fresh && v.children.len() == there)
            .await;
    }
    // One watch is of a list, the other of a path that is absent.
    for follower in &f.followers[..2] {
        follower.abort();
    }
    for n in 0..3 {
        ZooKeeper::put(&direct, &format!("/s/a/more-{n}"), b"{1}").await;
        ZooKeeper::put(&direct, &format!("/s/b/more-{n}"), b"{1}").await;
        ZooKeeper::put(&direct, &format!("/s/c/more-{n}"), b"{1}").await;
        f.until(2, "followed", |v| v.fresh && v.children.len() == n + 2)
            .await;
    }
    assert_eq!((f.epoch(), f.asked(18)), (1, 0));
}
