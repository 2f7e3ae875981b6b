//! The tasks that follow the sources of the current configuration: one session for each shard, one follower for each
//! source, one resolver. It decides nothing: it starts and stops tasks and hands out what they publish.

pub mod decode;
pub mod names;
pub mod zookeeper;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use smartstack_common::shutdown::Shutdown;
use smartstack_common::units::Ensemble;
use smartstack_common::zk::{self, Link, LinkStatus};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

use crate::config::Config;
use crate::config::sources::watched;
use crate::model::source::{Resolved, SourceKey, SourceView};
use crate::snapshot::Snapshot;
use crate::sources::zookeeper::{Counters, PATH_BUDGET, Shard, Validity};

/// The links by ensemble, for `/status`.
pub type Links = Vec<(Ensemble, watch::Receiver<Link>)>;

/// Makes the judge of a source's payloads. Judging is not this room's business.
pub type ValidityOf = fn(&Config, &SourceKey) -> Validity;

/// What is followed, and what has been learnt.
pub struct Sources {
    shutdown: Shutdown,
    /// Tasks that read, and the sessions, which close themselves at shutdown.
    tasks: JoinSet<()>,
    views: BTreeMap<SourceKey, View>,
    sessions: Vec<Session>,
    links: watch::Sender<Links>,
    /// Sources whose view has changed since the reconciler last looked.
    changed: watch::Sender<BTreeSet<SourceKey>>,
    /// Counters of all followers.
    pub counters: Arc<Counters>,
    /// `None` = nothing is followed; what is published comes from [`Sources::publisher`].
    validity: Option<ValidityOf>,
    wanted_names: watch::Sender<Arc<BTreeSet<String>>>,
    resolved: watch::Receiver<Arc<Resolved>>,
}

struct View {
    sender: watch::Sender<SourceView>,
    /// Follower and notifier.
    tasks: Vec<AbortHandle>,
}

struct Session {
    shard: Shard,
    stop: watch::Sender<bool>,
    link: watch::Receiver<Link>,
    shared: Arc<zookeeper::Shared>,
}

impl Sources {
    /// Nothing is followed yet; what the snapshot resolved is known.
    #[must_use]
    pub fn new(snapshot: &Snapshot, shutdown: Shutdown, validity: Option<ValidityOf>) -> Self {
        let mut tasks = JoinSet::new();
        let (wanted_names, wanted) = watch::channel(Arc::new(BTreeSet::new()));
        let (sender, resolved) = watch::channel(Arc::clone(&snapshot.resolved));
        tasks.spawn(names::resolve(wanted, sender, names::system()));
        Self {
            shutdown,
            tasks,
            views: BTreeMap::new(),
            sessions: Vec::new(),
            links: watch::channel(Vec::new()).0,
            changed: watch::channel(BTreeSet::new()).0,
            counters: Arc::default(),
            validity,
            wanted_names,
            resolved,
        }
    }

    /// Takes the sources of a configuration: views of new ones begin with what the snapshot knows, those of removed ones
    /// go. No network until [`Sources::follow`].
    pub fn configure(&mut self, config: &Config, snapshot: &Snapshot) {
        let keys = config.services.iter().flat_map(watched).map(|w| w.key);
        let wanted: BTreeSet<SourceKey> = keys.collect();
        self.views.retain(|key, view| {
            let keep = wanted.contains(key);
            if !keep {
                view.tasks.iter().for_each(AbortHandle::abort);
            }
            keep
        });
        for key in wanted {
            self.views.entry(key.clone()).or_insert_with(|| View {
                sender: watch::channel(snapshot.view(&key)).0,
                tasks: Vec::new(),
            });
        }
    }

    /// Opens the sessions and follows every source that is not followed yet.
    pub fn follow(&mut self, config: &Config) {
        let Some(validity) = self.validity else {
            return;
        };
        // Those of sources and ensembles that are not configured any more.
        while self.tasks.try_join_next().is_some() {}
        let keys: Vec<SourceKey> = self.views.keys().cloned().collect();
        let shards = zookeeper::shards(&keys, PATH_BUDGET);
        let mut former = std::mem::take(&mut self.sessions);
        for shard in &shards {
            let only = shards
                .iter()
                .filter(|s| s.ensemble == shard.ensemble)
                .count()
                == 1;
            let serves = |session: &Session| {
                session.shard == *shard || (only && session.shard.ensemble == shard.ensemble)
            };
            let mut session = match former.iter().position(serves) {
                Some(at) => former.swap_remove(at),
                None => self.open(config, shard),
            };
            for key in &shard.sources {
                let followed = session.shard.sources.contains(key);
                if !followed
                    || self
                        .views
                        .get(key)
                        .is_some_and(|view| view.tasks.is_empty())
                {
                    self.follow_one(config, key, &session, validity);
                }
            }
            session.shard = shard.clone();
            self.sessions.push(session);
        }
        for session in former {
            session.stop.send_replace(true);
        }
        self.links.send_replace(
            self.sessions
                .iter()
                .map(|s| (s.shard.ensemble.clone(), s.link.clone()))
                .collect(),
        );
    }

    fn open(&mut self, config: &Config, shard: &Shard) -> Session {
        let (stop, mut stopped) = watch::channel(false);
        let (sender, link) = watch::channel(Link::Connecting);
        let settings = zk::Settings {
            ensemble: shard.ensemble.clone(),
            session_timeout: config.session_timeout,
        };
        let shared = Arc::new(zookeeper::Shared::new(settings.clone()));
        let mut shutdown = self.shutdown.clone();
        self.tasks
            .spawn(zk::supervise(settings, sender, async move {
                // Cancel-safe: two watch receives.
                tokio::select! {
                    () = shutdown.wait() => {}
                    _ = stopped.wait_for(|stop| *stop) => {}
                }
            }));
        Session {
            shard: Shard {
                sources: Vec::new(),
                ..shard.clone()
            },
            stop,
            link,
            shared,
        }
    }

    fn follow_one(
        &mut self,
        config: &Config,
        key: &SourceKey,
        session: &Session,
        validity: ValidityOf,
    ) {
        let Some(view) = self.views.get_mut(key) else {
            return;
        };
        view.tasks.iter().for_each(AbortHandle::abort);
        let source = zookeeper::Source {
            key: key.clone(),
            valid: validity(config, key),
        };
        let settings = zookeeper::Settings {
            jitter: config.jitter,
            ..zookeeper::Settings::default()
        };
        let counters = Arc::clone(&self.counters);
        let follower = zookeeper::follow(
            source,
            settings,
            session.link.clone(),
            session.shared.clone(),
            view.sender.clone(),
            counters,
        );
        let (mut receiver, changed, key) =
            (view.sender.subscribe(), self.changed.clone(), key.clone());
        let notifier = async move {
            while receiver.changed().await.is_ok() {
                receiver.mark_unchanged();
                changed.send_modify(|set| {
                    set.insert(key.clone());
                });
            }
        };
        view.tasks = vec![self.tasks.spawn(follower), self.tasks.spawn(notifier)];
    }

    /// A hand on the views, in place of the followers.
    #[cfg(test)]
    pub(crate) fn publisher(&self) -> impl Fn(&SourceKey, SourceView) + use<> {
        let changed = self.changed.clone();
        let of = |(key, view): (&SourceKey, &View)| (key.clone(), view.sender.clone());
        let views: BTreeMap<SourceKey, watch::Sender<SourceView>> =
            self.views.iter().map(of).collect();
        move |key, view| {
            if let Some(sender) = views.get(key) {
                sender.send_replace(view);
                changed.send_modify(|set| _ = set.insert(key.clone()));
            }
        }
    }

    /// The latest view of a source.
    #[must_use]
    pub fn view(&self, key: &SourceKey) -> SourceView {
        self.views
            .get(key)
            .map(|view| view.sender.borrow().clone())
            .unwrap_or_default()
    }

    /// All sources with their latest views.
    pub fn all(&self) -> impl Iterator<Item = (&SourceKey, SourceView)> {
        self.views
            .iter()
            .map(|(key, view)| (key, view.sender.borrow().clone()))
    }

    /// Wakes when a view changes.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<BTreeSet<SourceKey>> {
        self.changed.subscribe()
    }

    /// The sources that have changed since the last call.
    #[must_use]
    pub fn take_changed(&self) -> BTreeSet<SourceKey> {
        let mut taken = BTreeSet::new();
        self.changed.send_if_modified(|set| {
            taken = std::mem::take(set);
            false
        });
        taken
    }

    /// Names to keep resolved.
    pub fn want_names(&self, names: BTreeSet<String>) {
        self.wanted_names.send_if_modified(|wanted| {
            let other = **wanted != names;
            if other {
                *wanted = Arc::new(names);
            }
            other
        });
    }

    /// Addresses of names.
    #[must_use]
    pub fn resolved(&self) -> watch::Receiver<Arc<Resolved>> {
        self.resolved.clone()
    }

    /// The links, for `/status`.
    #[must_use]
    pub fn links(&self) -> watch::Receiver<Links> {
        self.links.subscribe()
    }

    /// Ends every task; the sessions close first (their supervisors have seen the shutdown).
    pub async fn close(mut self) {
        for view in self.views.values() {
            view.tasks.iter().for_each(AbortHandle::abort);
        }
        drop((self.wanted_names, self.views));
        while self.tasks.join_next().await.is_some() {}
    }
}

/// The links as `/status` shows them.
#[must_use]
pub fn link_status(links: &Links) -> Vec<LinkStatus> {
    links
        .iter()
        .map(|(ensemble, link)| LinkStatus::of(ensemble, &link.borrow()))
        .collect()
}
