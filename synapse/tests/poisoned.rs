//! Requests that take the connection down: a device between client and server that closes it, as one with a limit on the
//! size of an answer does, or a defect of a server that always hits the same request. The source in question must lose
//! that one child, and nobody else anything.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use smartstack_common::testing::{ZooKeeper, read_frame, relay};
use smartstack_common::units::{Ensemble, ZkPath};
use smartstack_common::zk::{self, Link, supervise};
use synapse::model::source::{SourceKey, SourceView};
use synapse::sources::zookeeper::{Counters, Settings, Shared, Source, follow};
use tokio::io::AsyncWriteExt;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::watch;
use tokio::task::JoinSet;
use zookeeper_client::Client;

const SOON: Duration = Duration::from_secs(60);
const WEB: &str = "/services/web";
const OTHER: &str = "/services/other";

/// Whether a frame closes the connection: to the server (`true`) or to the client, without its length.
type Fatal = dyn Fn(bool, &[u8]) -> bool + Send + Sync;

/// A device between that closes connections on certain frames while it is `on`.
struct Device {
    host: String,
    on: Arc<AtomicBool>,
    closed: Arc<AtomicU64>,
    _task: JoinSet<()>,
}

impl Device {
    async fn start(target: String, on: bool, fatal: Arc<Fatal>) -> Self {
        let (on, closed) = (Arc::new(AtomicBool::new(on)), Arc::new(AtomicU64::new(0)));
        let (state, count) = (Arc::clone(&on), Arc::clone(&closed));
        let (host, task) = relay(&target, move |client, server| {
            let (state, count, fatal) = (state.clone(), count.clone(), fatal.clone());
            async move {
                let (from_client, to_client) = client.into_split();
                let (from_server, to_server) = server.into_split();
                let up = |frame: &[u8]| state.load(Ordering::Acquire) && fatal(true, frame);
                let down = |frame: &[u8]| state.load(Ordering::Acquire) && fatal(false, frame);
                // The first of them ends the connection.
                let refused = tokio::select! {
                    refused = hand_on(from_client, to_server, up) => refused,
                    refused = hand_on(from_server, to_client, down) => refused,
                };
                count.fetch_add(u64::from(refused), Ordering::AcqRel);
            }
        })
        .await;
        Self {
            host,
            on,
            closed,
            _task: task,
        }
    }

    fn closed(&self) -> u64 {
        self.closed.load(Ordering::Acquire)
    }
}

/// Hands frames on until the end (`false`) or a fatal one (`true`).
async fn hand_on(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    fatal: impl Fn(&[u8]) -> bool,
) -> bool {
    while let Ok(frame) = read_frame(&mut from).await {
        if fatal(&frame[4..]) {
            return true;
        }
        if to.write_all(&frame).await.is_err() {
            return false;
        }
    }
    false
}

fn contains(frame: &[u8], text: &str) -> bool {
    frame.windows(text.len()).any(|at| at == text.as_bytes())
}

/// Two sources that share one client, through the device.
struct Stage {
    _zookeeper: ZooKeeper,
    device: Device,
    direct: Client,
    link: watch::Receiver<Link>,
    web: watch::Receiver<SourceView>,
    other: watch::Receiver<SourceView>,
    counters: Arc<Counters>,
    _tasks: JoinSet<()>,
}

impl Stage {
    async fn start(
        on: bool,
        fatal: impl Fn(bool, &[u8]) -> bool + Send + Sync + 'static,
        children: &[(&str, &[u8])],
    ) -> Self {
        let zookeeper = ZooKeeper::start().await;
        let direct = zookeeper.connect().await;
        for (name, data) in children {
            ZooKeeper::put(&direct, &format!("{WEB}/{name}"), data).await;
        }
        ZooKeeper::put(&direct, &format!("{OTHER}/a"), b"{1}").await;
        let device = Device::start(zookeeper.hosts(), on, Arc::new(fatal)).await;
        let ensemble = Ensemble::new(std::slice::from_ref(&device.host)).expect("host and port");
        let settings = zk::Settings {
            ensemble: ensemble.clone(),
            session_timeout: Duration::from_secs(4),
        };
        let shared = Arc::new(Shared::new(settings.clone()));
        let (sender, link) = watch::channel(Link::Connecting);
        let mut tasks = JoinSet::new();
        tasks.spawn(supervise(settings, sender, std::future::pending()));
        let counters = Arc::new(Counters::default());
        let mut views = Vec::new();
        for path in [WEB, OTHER] {
            let source = Source {
                key: SourceKey {
                    ensemble: ensemble.clone(),
                    path: ZkPath::new(path).expect("a path"),
                },
                valid: Arc::new(|_, _| true),
            };
            let settings = Settings {
                jitter: Duration::ZERO,
                ..Settings::default()
            };
            let (sender, view) = watch::channel(SourceView::default());
            views.push(view);
            tasks.spawn(follow(
                source,
                settings,
                link.clone(),
                shared.clone(),
                sender,
                counters.clone(),
            ));
        }
        let (other, web) = (views.pop().expect("two"), views.pop().expect("two"));
        Self {
            _zookeeper: zookeeper,
            device,
            direct,
            link,
            web,
            other,
            counters,
            _tasks: tasks,
        }
    }

    fn epoch(&self) -> u64 {
        match &*self.link.borrow() {
            Link::Live(live) => live.epoch,
            _ => 0,
        }
    }

    /// A change of the other source, and of this one, arrives by its event on the connection there is.
    async fn all_proceed(&mut self) {
        let epoch = self.epoch();
        for (path, view) in [(OTHER, &mut self.other), (WEB, &mut self.web)] {
            ZooKeeper::put(&self.direct, &format!("{path}/later"), b"{1}").await;
            until(view, "the change of a neighbour", |v| {
                v.fresh && v.children.contains_key("later")
            })
            .await;
        }
        assert_eq!(self.epoch(), epoch, "the shared connection stays");
    }
}

async fn until(
    view: &mut watch::Receiver<SourceView>,
    what: &str,
    wanted: impl Fn(&SourceView) -> bool,
) -> SourceView {
    let seen = tokio::time::timeout(SOON, view.wait_for(wanted)).await;
    match seen.map(|view| view.expect("the follower runs").clone()) {
        Ok(view) => view,
        Err(_) => {
            let last = view.borrow();
            panic!(
                "not within {SOON:?}: {what}; last: {} children, fresh {}, problem {:?}, skipped {:?}",
                last.children.len(),
                last.fresh,
                last.problem,
                last.skipped
            )
        }
    }
}

#[tokio::test]
async fn a_child_that_takes_connections_down_keeps_its_last_payload_and_costs_nobody_else() {
    let names: Vec<String> = (0..100).map(|n| format!("n{n:03}")).collect();
    let mut children: Vec<(&str, &[u8])> =
        names.iter().map(|n| (n.as_str(), &b"{1}"[..])).collect();
    children.push(("poison", b"{1}"));
    let fatal = |up: bool, frame: &[u8]| up && contains(frame, "/services/web/poison");
    let mut stage = Stage::start(false, fatal, &children).await;
    until(&mut stage.web, "all", |v| {
        v.fresh && v.children.len() == 101
    })
    .await;
    until(&mut stage.other, "all", |v| v.fresh).await;

    stage.device.on.store(true, Ordering::Release);
    let poison = format!("{WEB}/poison");
    stage.direct.set_data(&poison, b"{2}", None).await.unwrap();
    let view = until(&mut stage.web, "found guilty", |v| {
        let reason = v.skipped.get("poison");
        v.fresh && reason.is_some_and(|r| r.contains("takes each connection down"))
    })
    .await;
    let reason = &view.skipped["poison"];
    assert!(
        reason.contains("`poison`") && reason.contains("jute.maxbuffer"),
        "{reason}"
    );
    assert_eq!(
        (view.children.len(), &*view.children["poison"].data),
        (101, &b"{1}"[..])
    );
    // Twice the shared connection, twice one of its own.
    assert_eq!((stage.epoch(), stage.device.closed()), (3, 4));
    stage.all_proceed().await;
    assert_eq!(stage.device.closed(), 4);

    stage.device.on.store(false, Ordering::Release);
    stage.direct.set_data(&poison, b"{3}", None).await.unwrap();
    let view = until(&mut stage.web, "read again once it is harmless", |v| {
        v.fresh && v.skipped.is_empty()
    })
    .await;
    assert_eq!(*view.children["poison"].data, *b"{3}");
    assert_eq!(stage.epoch(), 3);
}

#[tokio::test]
async fn one_poisoned_child_among_hundreds_is_found_at_the_first_read() {
    let names: Vec<String> = (0..300).map(|n| format!("n{n:03}")).collect();
    let children: Vec<(&str, &[u8])> = names.iter().map(|n| (n.as_str(), &b"{1}"[..])).collect();
    let fatal = |up: bool, frame: &[u8]| up && contains(frame, "/services/web/n017");
    let mut stage = Stage::start(true, fatal, &children).await;
    until(&mut stage.other, "the neighbour", |v| v.fresh).await;
    let view = until(&mut stage.web, "all but one", |v| {
        v.fresh && v.children.len() == 299 && v.skipped.len() == 1
    })
    .await;
    assert!(!view.children.contains_key("n017"));
    assert_eq!(stage.epoch(), 3, "the shared connection is lost twice");
    let tests = stage.counters.tests.load(Ordering::Relaxed);
    assert!((5..20).contains(&tests), "{tests} tests by halves");
    stage.all_proceed().await;
}

/// Together above the limit is no child's fault; alone above it is.
#[tokio::test]
async fn answers_above_a_frame_limit_are_made_smaller_and_the_one_that_cannot_be_is_named() {
    let some = vec![b'x'; 30_000];
    let names: Vec<String> = (0..20).map(|n| format!("n{n:03}")).collect();
    let mut children: Vec<(&str, &[u8])> = names.iter().map(|n| (n.as_str(), &some[..])).collect();
    let large = vec![b'x'; 200_000];
    children.push(("large", &large));
    let fatal = |up: bool, frame: &[u8]| !up && frame.len() > 100_000;
    let mut stage = Stage::start(true, fatal, &children).await;
    let view = until(&mut stage.web, "all but the large one", |v| {
        v.fresh && v.children.len() == 20 && v.skipped.len() == 1
    })
    .await;
    let view = match view.skipped["large"].contains("takes each connection down") {
        true => view,
        false => {
            until(&mut stage.web, "named", |v| {
                let reason = v.skipped.get("large");
                reason.is_some_and(|r| r.contains("takes each connection down"))
            })
            .await
        }
    };
    assert!(view.skipped["large"].contains("too large"));
    stage.all_proceed().await;
}

#[tokio::test]
async fn a_list_that_takes_connections_down_is_a_state_of_its_path() {
    // `getChildren2` is operation 12.
    let fatal = |up: bool, frame: &[u8]| {
        up && frame.get(4..8) == Some(&12_i32.to_be_bytes()[..]) && contains(frame, WEB)
    };
    let mut stage = Stage::start(true, fatal, &[("a", b"{1}")]).await;
    let view = until(&mut stage.web, "a problem", |v| {
        let problem = v.problem.as_ref();
        problem.is_some_and(|p| p.contains("takes each connection down"))
    })
    .await;
    let problem = view.problem.expect("just seen");
    assert!(
        problem.contains(WEB) && problem.contains("the list of its children"),
        "{problem}"
    );
    assert!(!view.fresh && !view.confirmed);
    let epoch = stage.epoch();
    ZooKeeper::put(&stage.direct, &format!("{OTHER}/later"), b"{1}").await;
    until(&mut stage.other, "the neighbour proceeds", |v| {
        v.fresh && v.children.contains_key("later")
    })
    .await;
    assert_eq!((stage.epoch(), epoch), (3, 3));
}
