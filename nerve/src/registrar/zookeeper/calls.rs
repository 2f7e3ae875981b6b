//! What the registrar asks of ZooKeeper, and the real thing. Nothing is decided or retried here.
//!
//! A trait only so that a test can put a tree in memory in its place that loses replies and expires sessions on cue,
//! which no real server does.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use smartstack_common::report::Chain;
use smartstack_common::zk::{Armed, CallError, Doubt, Suspicion, Trouble, arm, call};
use zookeeper_client::{
    Acls, Client, CreateMode, CreateOptions, MultiWriteError, MultiWriteResult, MultiWriter,
};

use crate::config::NodeType;
use crate::registrar::lease::plan::{Change, Create};
use crate::registrar::lease::registry::{Failure, Found, Refusal, Registry};
use crate::wanted::claims;

/// Open to all, as Ruby nerve makes its nodes and their parents.
const PARENT: CreateOptions<'static> = CreateMode::Persistent.with_acls(Acls::anyone_all());
const SEQUENTIAL: CreateOptions<'static> =
    CreateMode::EphemeralSequential.with_acls(Acls::anyone_all());
const FIXED: CreateOptions<'static> = CreateMode::Ephemeral.with_acls(Acls::anyone_all());

/// What a transaction does, for people.
const STEP: &str = "write below";

/// A connected client.
#[derive(Clone)]
pub(crate) struct ZooKeeper {
    pub(crate) client: Client,
    /// Raised when the servers do not know the session, or do not answer.
    pub(crate) doubt: Doubt,
    /// Limit of each call.
    pub(crate) limit: Duration,
    /// Whether a server did not understand a transaction that creates: see [`ZooKeeper::in_steps`]. As old as the client.
    pub(crate) old: Arc<AtomicBool>,
}

impl ZooKeeper {
    async fn call<T, E>(
        &self,
        step: &'static str,
        path: &str,
        request: impl Future<Output = Result<T, E>>,
    ) -> Result<T, Failure>
    where
        E: std::error::Error + 'static,
        for<'a> Trouble: From<&'a E>,
    {
        let fail = |error: CallError<E>| Failure {
            step,
            path: path.to_owned(),
            reason: reason(&error),
            trouble: self.judged(&error),
        };
        call(self.limit, request).await.map_err(fail)
    }
}

impl ZooKeeper {
    /// Tells the supervisor of a session that is gone, or a connection that is of no use.
    fn judged<E: std::error::Error + 'static>(&self, error: &CallError<E>) -> Trouble
    where
        for<'a> Trouble: From<&'a E>,
    {
        let trouble = error.trouble();
        match error {
            CallError::TimedOut(_) => self.doubt.raise(Suspicion::NoAnswer),
            CallError::Failed(_) if trouble == Trouble::Terminal => {
                self.doubt.raise(Suspicion::SessionUnknown);
            }
            CallError::Failed(_) => {}
        }
        trouble
    }
}

/// The error, and what an administrator can do about an answer that will not change by itself.
fn reason<E: std::error::Error + 'static>(error: &CallError<E>) -> String
where
    for<'a> Trouble: From<&'a E>,
{
    match error.trouble() {
        Trouble::NoAuth => format!("{} (its ACL does not let this client)", Chain(error)),
        Trouble::LocalSession => format!(
            "{} (the servers have `localSessionsEnabled=true` without `localSessionsUpgradingEnabled=true`, so that no ephemeral \
             node can be made: set both in zoo.cfg, or none)",
            Chain(error)
        ),
        _ => Chain(error).to_string(),
    }
}

/// What of a change is written first. A sequential node is there before what it replaces goes, unless the parent's counter is
/// at its end: there it stays, 2147483647 is the number of every further node, and what has that name must go first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum First {
    Sequential,
    Removals,
}

/// Adds one change's operations to a transaction, and returns their number.
fn add(
    multi: &mut MultiWriter<'_>,
    path: &str,
    change: &Change,
    first: First,
) -> Result<usize, zookeeper_client::Error> {
    let create = |multi: &mut MultiWriter<'_>, now: bool| {
        let sequential = |c: &Create| c.node_type == NodeType::EphemeralSequential;
        let wanted = change.create.as_ref();
        let kind = |c: &&Create| (sequential(c) && first == First::Sequential) == now;
        let Some(create) = wanted.filter(kind) else {
            return Ok(0);
        };
        let options = if sequential(create) {
            &SEQUENTIAL
        } else {
            &FIXED
        };
        let path = format!("{path}/{}", create.prefix);
        multi
            .add_create(&path, &create.payload, options)
            .map(|()| 1)
    };
    let mut operations = create(multi, true)?;
    for name in &change.delete {
        multi.add_delete(&format!("{path}/{name}"), None)?;
    }
    for node in &change.withdraw {
        let child = format!("{path}/{}", node.name);
        multi.add_set_data(&child, &node.mark, Some(node.version))?;
        // Setting the data has raised the version by one.
        multi.add_delete(&child, Some(node.version.wrapping_add(1)))?;
    }
    operations += change.delete.len() + 2 * change.withdraw.len();
    operations += create(multi, false)?;
    Ok(operations)
}

/// Whether it replaces a node by one of a sequential name.
fn is_swap_of_sequential(change: &Change) -> bool {
    let create = change.create.as_ref();
    let sequential = create.is_some_and(|c| c.node_type == NodeType::EphemeralSequential);
    sequential && change.removed().next().is_some()
}

/// What it means that a node exists which has yet to be given its number.
fn exhausted(create: &Create) -> &'static str {
    match create.node_type {
        NodeType::Ephemeral => "",
        NodeType::EphemeralSequential => {
            " (the counter of the path is at its end, 2147483647, and somebody else has that name: the servers give out no \
             other until the path is deleted, once it is empty, and made again)"
        }
    }
}

/// The path alone: the stat in the answer to a transaction is empty (ZOOKEEPER-4667; measured with 3.8).
fn created(result: MultiWriteResult) -> Option<String> {
    match result {
        MultiWriteResult::Create { path, .. } => Some(path),
        _ => None,
    }
}

impl ZooKeeper {
    /// All changes or none.
    async fn transact(&self, changes: &[(&str, &Change)]) -> Result<Vec<String>, Refusal> {
        let mut turned = BTreeSet::new();
        loop {
            match self.transact_once(changes, &turned).await {
                Err(Refusal {
                    change: Some(at),
                    failure,
                }) if failure.trouble == Trouble::NodeExists
                    && is_swap_of_sequential(changes[at].1)
                    && turned.insert(at) => {}
                result => return result,
            }
        }
    }

    /// The same; removals first for the changes of these numbers.
    async fn transact_once(
        &self,
        changes: &[(&str, &Change)],
        turned: &BTreeSet<usize>,
    ) -> Result<Vec<String>, Refusal> {
        let mut multi = self.client.new_multi_writer();
        // For each operation the change it belongs to.
        let mut owners = Vec::new();
        for (at, (path, change)) in changes.iter().enumerate() {
            let first = match turned.contains(&at) {
                true => First::Removals,
                false => First::Sequential,
            };
            let operations = add(&mut multi, path, change, first).map_err(|error| Refusal {
                change: Some(at),
                failure: Failure {
                    step: STEP,
                    path: (*path).to_owned(),
                    reason: error.to_string(),
                    trouble: Trouble::from(&error),
                },
            })?;
            owners.extend(std::iter::repeat_n(at, operations));
        }
        let error = match call(self.limit, multi.commit()).await {
            Ok(results) => return Ok(results.into_iter().filter_map(created).collect()),
            Err(error) => error,
        };
        let change = match &error {
            CallError::Failed(MultiWriteError::OperationFailed { index, .. }) => {
                owners.get(*index).copied()
            }
            _ => None,
        };
        let (path, first) = match changes.get(change.unwrap_or(0)) {
            Some((path, change)) => (*path, change.create.as_ref()),
            None => ("", None),
        };
        let mut reason = reason(&error);
        if change.is_some() && error.trouble() == Trouble::NodeExists {
            reason.push_str(first.map_or("", exhausted));
        }
        Err(Refusal {
            change,
            failure: Failure {
                step: STEP,
                path: path.to_owned(),
                reason,
                trouble: self.judged(&error),
            },
        })
    }

    /// One change on servers before 3.5, which know neither a transaction that creates a node nor, in the client's, any other
    /// way in one. The node of a sequential name is there before what it replaces goes, as ever; that of a fixed name cannot,
    /// and is missing for a moment. What came to nothing after the first step is left to the next look.
    async fn in_steps(&self, path: &str, change: &Change) -> Result<Vec<String>, Refusal> {
        let Some(create) = &change.create else {
            return self.transact(&[(path, change)]).await;
        };
        let removal = Change {
            create: None,
            ..change.clone()
        };
        let removes = removal.removed().next().is_some();
        let unfinished = |mut refusal: Refusal| {
            refusal.failure.trouble = Trouble::Lost;
            refusal
        };
        if create.node_type == NodeType::EphemeralSequential {
            match self.create(path, create, &SEQUENTIAL).await {
                Ok(created) => {
                    if removes {
                        let removed = self.transact(&[(path, &removal)]).await;
                        removed.map_err(unfinished)?;
                    }
                    return Ok(vec![created]);
                }
                // The counter is at its end: as one of a fixed name.
                Err(refusal) if removes && refusal.failure.trouble == Trouble::NodeExists => {}
                Err(refusal) => return Err(refusal),
            }
        }
        if removes {
            self.transact(&[(path, &removal)]).await?;
        }
        let options = match create.node_type {
            NodeType::EphemeralSequential => &SEQUENTIAL,
            NodeType::Ephemeral => &FIXED,
        };
        let created = self.create(path, create, options).await;
        let created = created.map_err(|refusal| match removes {
            true => unfinished(refusal),
            false => refusal,
        })?;
        Ok(vec![created])
    }

    /// Creates one node, and says where.
    async fn create(
        &self,
        path: &str,
        create: &Create,
        options: &CreateOptions<'_>,
    ) -> Result<String, Refusal> {
        let prefix = format!("{path}/{}", create.prefix);
        let request = self.client.create(&prefix, &create.payload, options);
        let (_, sequence) = self
            .call(STEP, path, request)
            .await
            .map_err(|failure| Refusal {
                change: Some(0),
                failure,
            })?;
        Ok(match create.node_type {
            NodeType::EphemeralSequential => format!("{prefix}{sequence}"),
            NodeType::Ephemeral => prefix.clone(),
        })
    }
}

impl Registry for ZooKeeper {
    async fn sync(&self) -> Result<(), Failure> {
        self.call("sync", "/", self.client.sync("/")).await
    }

    async fn look(
        &self,
        path: &str,
        ids: &BTreeSet<String>,
    ) -> Result<Option<Vec<Found>>, Failure> {
        let mut names = match self
            .call("list", path, self.client.list_children(path))
            .await
        {
            Err(failure) if failure.trouble == Trouble::NoNode => return Ok(None),
            names => names?,
        };
        names.retain(|name| ids.iter().any(|id| claims(name, id)));
        // Requests are sent when the method is called: all of them go out before the first reply is waited for.
        let reads: Vec<_> = names
            .into_iter()
            .map(|name| {
                let child = format!("{path}/{name}");
                let read = self.client.get_data(&child);
                (name, child, read)
            })
            .collect();
        let mut found = Vec::with_capacity(reads.len());
        for (name, child, read) in reads {
            match self.call("read", &child, read).await {
                Ok((data, stat)) => {
                    found.push(Found {
                        name,
                        owner: stat.ephemeral_owner,
                        czxid: stat.czxid,
                        version: stat.version,
                        data,
                    });
                }
                Err(failure) if failure.trouble == Trouble::NoNode => {}
                Err(failure) => return Err(failure),
            }
        }
        Ok(Some(found))
    }

    async fn make_parents(&self, path: &str) -> Result<(), Failure> {
        self.call(
            "create the parents of",
            path,
            self.client.mkdir(path, &PARENT),
        )
        .await
    }

    async fn apply(&self, changes: &[(&str, &Change)]) -> Result<Vec<String>, Refusal> {
        let creates = changes.iter().any(|(_, change)| change.create.is_some());
        if !creates {
            return self.transact(changes).await;
        }
        if !self.old.load(Ordering::Acquire) {
            match self.transact(changes).await {
                Err(refusal) if refusal.failure.trouble == Trouble::TooOld => {
                    if !self.old.swap(true, Ordering::AcqRel) {
                        tracing::warn!(
                            "zookeeper is older than 3.5: it knows no transaction that creates a node, so that nodes are created \
                             and deleted in steps, each service by itself"
                        );
                    }
                }
                result => return result,
            }
        }
        match changes {
            [(path, change)] => self.in_steps(path, change).await,
            // All of it or nothing: the caller goes on with one by one.
            _ => Err(Refusal {
                change: None,
                failure: Failure {
                    step: STEP,
                    path: String::new(),
                    reason: "the servers are too old for it".to_owned(),
                    trouble: Trouble::TooOld,
                },
            }),
        }
    }

    async fn touched(self, path: String) -> Result<(), Failure> {
        let (client, node) = (self.client.clone(), path.clone());
        // Never removed: a server before 3.5 closes the connection that asks for it.
        let armed = arm(async move {
            let (stat, watcher) = client.check_and_watch_stat(&node).await?;
            Ok((stat, Armed::new(watcher)))
        });
        let (stat, mut watch) = self.call("watch", &path, armed).await?;
        drop(self);
        if stat.is_some() {
            let _any = watch.changed().await;
        }
        Ok(())
    }
}
