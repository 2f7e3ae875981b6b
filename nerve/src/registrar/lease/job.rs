//! One piece of work: write what was planned for one or more parents, then look at each. The reconciler asks for it, the
//! registrar starts it; nothing is decided here.
//!
//! Withdrawals go first, each a transaction of its own. All registrations of the job go out as one transaction (several, if
//! they are large): a nerve that registers again after an expiry costs the ensemble one write, not one per service. When one
//! operation is refused, the transaction is tried again without it; its own service alone learns of the refusal.

use std::collections::BTreeSet;

use tokio::task::JoinSet;

use super::plan::Change;
use super::registry::{Failure, Found, Refusal, Registry};

/// Bytes of one transaction at most; the servers' limit of a request is 1 MiB, above which they drop the connection.
const BATCH_BYTES: usize = 512 << 10;
/// Operations of one transaction at most.
const BATCH_OPERATIONS: usize = 1000;
/// Refused operations after which the rest of a transaction goes out one by one.
const BATCH_REFUSALS: usize = 3;

/// Work on one or more groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Job {
    /// Whether to look at least as new as the present.
    pub(crate) sync: bool,
    pub(crate) works: Vec<Work>,
}

/// Work on one group: write, then look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Work {
    pub(crate) path: String,
    /// Ids whose nodes are looked for.
    pub(crate) ids: BTreeSet<String>,
    /// Whether to create the path first.
    pub(crate) parents: bool,
    pub(crate) changes: Vec<Change>,
}

/// The end of the work on one group.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) path: String,
    /// Changes that were confirmed.
    pub(crate) written: Vec<Change>,
    /// Creations of which it is not known whether they took place.
    pub(crate) unsure: Vec<Change>,
    /// Names of the nodes that were created for sure.
    pub(crate) created: Vec<String>,
    /// Writes that were refused for sure, with the service that each was for; the look is good all the same.
    pub(crate) refused: Vec<(Option<String>, Failure)>,
    /// What stands below the parent, or why that is not known.
    pub(crate) look: Result<Option<Vec<Found>>, Failure>,
}

/// Work under way.
struct Progress {
    work: Work,
    written: Vec<Change>,
    unsure: Vec<Change>,
    created: Vec<String>,
    refused: Vec<(Option<String>, Failure)>,
    /// Why there will be no look.
    failed: Option<Failure>,
}

/// Carries a job out. Dropping it leaves an unknown outcome.
pub(crate) async fn perform(registry: impl Registry, job: Job) -> Vec<Done> {
    let begin = |work| Progress {
        work,
        written: Vec::new(),
        unsure: Vec::new(),
        created: Vec::new(),
        refused: Vec::new(),
        failed: None,
    };
    let mut all: Vec<Progress> = job.works.into_iter().map(begin).collect();
    let synced = if job.sync {
        registry.sync().await
    } else {
        Ok(())
    };
    if let Err(failure) = &synced {
        all.iter_mut()
            .for_each(|one| one.failed = Some(failure.clone()));
    }
    for one in all.iter_mut().filter(|one| one.failed.is_none()) {
        prepare(&registry, one).await;
    }
    let creating: Vec<(usize, Change)> = all
        .iter_mut()
        .enumerate()
        .filter(|(_, one)| one.failed.is_none())
        .flat_map(|(at, one)| {
            std::mem::take(&mut one.work.changes)
                .into_iter()
                .map(move |c| (at, c))
        })
        .collect();
    for batch in batches(creating) {
        write(&registry, &mut all, batch).await;
    }
    look(registry, all).await
}

/// Withdrawals, and the parents of what is to be created. Leaves the creating changes.
async fn prepare(registry: &impl Registry, one: &mut Progress) {
    let (creating, removing): (Vec<_>, Vec<_>) = std::mem::take(&mut one.work.changes)
        .into_iter()
        .partition(|change| change.create.is_some());
    one.work.changes = creating;
    for change in removing {
        match registry.apply(&[(&one.work.path, &change)]).await {
            Ok(_) => one.written.push(change),
            Err(refusal) => note(one, &change, refusal.failure),
        }
        if one.failed.is_some() {
            return;
        }
    }
    if one.work.parents {
        one.failed = registry.make_parents(&one.work.path).await.err();
    }
}

fn note(one: &mut Progress, change: &Change, failure: Failure) {
    if failure.is_unknown() {
        one.failed = Some(failure);
    } else {
        one.refused.push((change.service.clone(), failure));
    }
}

/// Cuts changes into transactions of a bearable size.
fn batches(changes: Vec<(usize, Change)>) -> Vec<Vec<(usize, Change)>> {
    let mut batches: Vec<Vec<(usize, Change)>> = Vec::new();
    let (mut bytes, mut operations) = (0, 0);
    for (at, change) in changes {
        let (more_bytes, more_operations) = change.size();
        bytes += more_bytes;
        operations += more_operations;
        match batches.last_mut() {
            Some(batch) if bytes <= BATCH_BYTES && operations <= BATCH_OPERATIONS => {
                batch.push((at, change));
            }
            _ => {
                batches.push(vec![(at, change)]);
                (bytes, operations) = (more_bytes, more_operations);
            }
        }
    }
    batches
}

/// Writes one batch: together, without what is refused; one by one when that does not help.
async fn write(registry: &impl Registry, all: &mut [Progress], batch: Vec<(usize, Change)>) {
    let mut queue = vec![batch];
    let mut refusals = 0;
    while let Some(mut batch) = queue.pop() {
        // Of a group whose outcome is unknown nothing more is written before a look.
        batch.retain(|(at, _)| all[*at].failed.is_none());
        if batch.is_empty() {
            continue;
        }
        let result = {
            let changes: Vec<(&str, &Change)> = batch
                .iter()
                .map(|(at, change)| (all[*at].work.path.as_str(), change))
                .collect();
            registry.apply(&changes).await
        };
        let Refusal { change, failure } = match result {
            Ok(created) => {
                for (at, change) in batch {
                    let one = &mut all[at];
                    let parent = &one.work.path;
                    let below = |path: &String| {
                        let name = path.strip_prefix(parent.as_str())?.strip_prefix('/')?;
                        (!name.contains('/')).then(|| name.to_owned())
                    };
                    one.created.extend(created.iter().filter_map(below));
                    one.written.push(change);
                }
                continue;
            }
            Err(refusal) => refusal,
        };
        if failure.is_unknown() {
            for (at, change) in batch {
                note(&mut all[at], &change, failure.clone());
                all[at].unsure.push(change);
            }
            continue;
        }
        refusals += 1;
        match change.filter(|change| *change < batch.len()) {
            Some(refused) => {
                let (at, change) = batch.remove(refused);
                note(&mut all[at], &change, failure);
                if refusals < BATCH_REFUSALS {
                    queue.push(batch);
                } else {
                    queue.extend(batch.into_iter().rev().map(|one| vec![one]));
                }
            }
            None if batch.len() == 1 => note(&mut all[batch[0].0], &batch[0].1, failure),
            None => queue.extend(batch.into_iter().rev().map(|one| vec![one])),
        }
    }
}

/// Looks at all groups at the same time.
async fn look(registry: impl Registry, all: Vec<Progress>) -> Vec<Done> {
    let mut looks = JoinSet::new();
    for (at, one) in all.iter().enumerate() {
        if one.failed.is_some() {
            continue;
        }
        let (registry, path, ids) = (
            registry.clone(),
            one.work.path.clone(),
            one.work.ids.clone(),
        );
        looks.spawn(async move { (at, registry.look(&path, &ids).await) });
    }
    let mut done: Vec<Done> = all
        .into_iter()
        .map(|one| Done {
            path: one.work.path,
            written: one.written,
            unsure: one.unsure,
            created: one.created,
            refused: one.refused,
            look: one.failed.map_or(Ok(None), Err),
        })
        .collect();
    for (at, look) in looks.join_all().await {
        done[at].look = look;
    }
    done
}
