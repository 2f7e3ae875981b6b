//! One piece of work below one parent: write what was planned, then look. The reconciler asks for it, the registrar
//! starts it; nothing is decided or retried here.

use std::collections::BTreeSet;

use crate::registration::Change;
use crate::registry::{Failure, Found, Registry};

/// Work on one group: write, then look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Job {
    pub(crate) path: String,
    /// Ids whose nodes are looked for.
    pub(crate) ids: BTreeSet<String>,
    /// Whether to look at least as new as the present.
    pub(crate) sync: bool,
    /// Whether to create the path first.
    pub(crate) parents: bool,
    pub(crate) changes: Vec<Change>,
}

/// A job's end.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) path: String,
    /// Changes that were confirmed.
    pub(crate) written: Vec<Change>,
    /// A write that was refused for sure; the look is good all the same.
    pub(crate) refused: Option<Failure>,
    /// What stands below the parent, or why that is not known.
    pub(crate) look: Result<Option<Vec<Found>>, Failure>,
}

/// Carries a job out. Dropping it leaves an unknown outcome.
pub(crate) async fn perform(registry: impl Registry, job: Job) -> Done {
    let mut done = Done {
        path: job.path.clone(),
        written: Vec::new(),
        refused: None,
        look: Ok(None),
    };
    done.look = write_and_look(&registry, job, &mut done.written, &mut done.refused).await;
    done
}

async fn write_and_look(
    registry: &impl Registry,
    job: Job,
    written: &mut Vec<Change>,
    refused: &mut Option<Failure>,
) -> Result<Option<Vec<Found>>, Failure> {
    if job.sync {
        registry.sync().await?;
    }
    if job.parents {
        registry.make_parents(&job.path).await?;
    }
    for change in job.changes {
        match registry.apply(&job.path, &change).await {
            Ok(()) => written.push(change),
            Err(failure) if failure.is_unknown() => return Err(failure),
            Err(failure) => *refused = Some(failure),
        }
    }
    registry.look(&job.path, &job.ids).await
}
