//! The session supervisor against a real ZooKeeper, through a proxy that does what networks do. Each test fails when
//! the work-around it names is taken out of `smartstack_common::zk`.

use std::time::Duration;

use smartstack_common::testing::{Cut, Mode, TcpProxy, ZooKeeper};
use smartstack_common::units::Ensemble;
use smartstack_common::zk::{Link, Live, Settings, supervise};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

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
            .map(|link| link.unwrap().clone());
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

#[tokio::test]
async fn a_close_removes_the_ephemeral_nodes_within_a_second() {
    let zookeeper = ZooKeeper::start().await;
    let other = zookeeper.connect().await;
    let mut supervised = Supervised::start(&zookeeper.hosts(), Duration::from_secs(30));
    let live = supervised.live(1).await;
    assert_eq!(live.epoch, 1);
    ZooKeeper::make_ephemeral(&live.client, "/t12/node", b"x").await;
    let owner = other
        .check_stat("/t12/node")
        .await
        .unwrap()
        .unwrap()
        .ephemeral_owner;
    assert_eq!(owner, live.session);
    drop(live);
    let took = supervised.close().await;
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert!(matches!(*supervised.link.borrow(), Link::Closed));
    assert_eq!(ZooKeeper::list(&other, "/t12").await, Vec::<String>::new());
}

#[tokio::test]
async fn a_cut_suspends_and_a_new_epoch_follows_in_the_same_session() {
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
    proxy.cut(Cut::Close).await;
    assert_eq!(supervised.live(3).await.session, first.session);
}
