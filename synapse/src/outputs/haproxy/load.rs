//! Everything that needs the file: check, quarantine, write, reload, proof. One job at a time, beside the reconciler, so
//! that a removal never waits for a slow check or a reload in flight.
//!
//! A job is given each service in two forms, as configured now and as last accepted, and finds the largest combination
//! that haproxy takes: one bad service costs itself, one bad option its server. It ends with the file in a form that
//! haproxy would start with, whatever failed.

pub mod blame;

mod check;
mod frame;
mod work;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::unistd::{AccessFlags, access};
use tokio::time::Instant;

use crate::config::Config;
use crate::model::server::Digest;
use crate::outputs::haproxy::cfg::generation::Generation;
use crate::outputs::haproxy::file::{Assembly, Piece};
use crate::outputs::haproxy::plan::Running;
use crate::outputs::haproxy::process::Haproxy;
use crate::outputs::haproxy::render::Renderer;
use work::Work;

/// A supervised haproxy has this long for the requests in flight when it is to be stopped.
const STOP_DEADLINE: Duration = Duration::from_secs(30);

/// The hands: haproxy and its file.
pub(crate) struct Driver {
    haproxy: Haproxy,
    file: PathBuf,
    candidate: PathBuf,
    writes: bool,
    stop_haproxy: bool,
}

/// A service in its forms.
pub(crate) struct Candidate {
    /// Its name.
    pub(crate) name: String,
    /// As configured; `None` = the template refuses it.
    pub(crate) new: Option<Piece>,
    /// As last accepted.
    pub(crate) good: Option<Piece>,
}

/// What is wanted.
pub(crate) struct Job {
    pub(crate) candidates: Vec<Candidate>,
    pub(crate) frame: Arc<Renderer>,
    pub(crate) good_frame: Option<Arc<Renderer>>,
    /// Ask haproxy before the file is replaced.
    pub(crate) check: bool,
    /// Why a reload is needed; `None` = only the file.
    pub(crate) reload: Option<String>,
    /// What the worker runs; `None` = nobody answers.
    pub(crate) running: Option<Running>,
    /// The stats socket can be used.
    pub(crate) socket: bool,
}

/// What became of it.
pub(crate) struct Done {
    pub(crate) driver: Driver,
    pub(crate) started: Instant,
    /// Why a reload was wanted.
    pub(crate) reason: Option<String>,
    pub(crate) outcome: Outcome,
    /// What a check has accepted: structure, and digests of server options.
    pub(crate) proven: Option<(Generation, BTreeSet<Digest>)>,
    /// Services that were refused.
    pub(crate) bad: BTreeMap<String, Bad>,
    /// The frame was refused as configured.
    pub(crate) bad_frame: Option<BadFrame>,
    /// What could not be checked, because we may not read it.
    pub(crate) unchecked: Option<String>,
    /// `(backend, options)` that haproxy refuses.
    pub(crate) refused_options: BTreeMap<(String, String), String>,
}

/// A service that was refused.
pub(crate) struct Bad {
    /// What was refused, as [`Piece::structure`] tells it; `None` = there was only its last good form.
    pub(crate) structure: Option<Vec<u8>>,
    /// haproxy's words.
    pub(crate) words: String,
    /// What stands in the file instead.
    pub(crate) kept: Kept,
    /// A worker failed to start with it, though nothing that can be tried beforehand was in the way.
    pub(crate) unforeseen: bool,
}

/// A frame that was refused as configured.
pub(crate) struct BadFrame {
    /// That one.
    pub(crate) refused: Arc<Renderer>,
    /// What stands in for it: the last good one, or the same without some parts.
    pub(crate) instead: Arc<Renderer>,
    /// What is not as configured and why, a sentence each.
    pub(crate) words: Vec<String>,
    /// As in [`Bad`].
    pub(crate) unforeseen: bool,
}

/// What stays of a service that is refused as configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kept {
    /// Its last good form with the current servers.
    Good,
    /// That with these servers at most: with others it is refused as well.
    Only(BTreeSet<String>),
    /// Nothing: its last good form is refused by now, too.
    Nothing,
}

impl Kept {
    /// What is served instead, in words.
    pub(crate) fn words(&self) -> String {
        match self {
            Self::Good => "its last good form".to_owned(),
            Self::Only(names) => format!("its last good form with {} servers", names.len()),
            Self::Nothing => {
                "nothing: its port is closed, and who names its backend gets 503".to_owned()
            }
        }
    }

    /// What of the last good form this is.
    pub(crate) fn of(&self, good: Option<Piece>) -> Option<Piece> {
        match self {
            Self::Good => good,
            Self::Only(names) => good.map(|piece| piece.keeping(|name| names.contains(name))),
            Self::Nothing => None,
        }
    }
}

/// How it ended.
pub(crate) enum Outcome {
    /// The worker serves the best there is already.
    Unneeded,
    /// The file is written; no reload was needed.
    Written,
    /// A new worker was seen to serve this.
    Reloaded { pid: u32, assembly: Box<Assembly> },
    /// The command ended well, nobody can be asked.
    Unconfirmed { assembly: Box<Assembly> },
    /// Nothing of what is wanted starts: haproxy was started on the file that was on disk.
    Former(String),
    /// haproxy serves what it served before, if it did.
    Failed(String),
}

/// Where what haproxy is asked about is written: as configured; by default beside haproxy.cfg, or beside the snapshot where
/// that folder is another user's. A `check_command` names the place itself.
fn candidate(config: &Config) -> PathBuf {
    let haproxy = &config.haproxy;
    let given = haproxy.candidate_config_file_path.clone();
    let is_default = given.as_os_str().as_encoded_bytes()
        == [
            haproxy.config_file_path.as_os_str().as_encoded_bytes(),
            b".tmp",
        ]
        .concat();
    let is_ours = |path: &Path| access(path, AccessFlags::W_OK).is_ok();
    let folder = given.parent().unwrap_or(Path::new("/"));
    let refused = folder.is_dir() && !is_ours(folder) && !is_ours(&given);
    match (config.snapshot_path.parent(), given.file_name()) {
        (Some(folder), Some(name)) if is_default && refused && haproxy.check_command.is_none() => {
            folder.join(name)
        }
        _ => given,
    }
}

impl Driver {
    pub(crate) fn new(config: &Config, stop_haproxy: bool) -> Self {
        let haproxy = &config.haproxy;
        Self {
            haproxy: Haproxy::new(haproxy),
            file: haproxy.config_file_path.clone(),
            candidate: candidate(config),
            writes: haproxy.do_writes,
            stop_haproxy,
        }
    }

    /// Takes another configuration. A supervised haproxy stays the same one.
    pub(crate) fn configure(&mut self, config: &Config) {
        let haproxy = &config.haproxy;
        self.haproxy.configure(haproxy);
        self.file.clone_from(&haproxy.config_file_path);
        self.candidate = candidate(config);
        self.writes = haproxy.do_writes;
    }

    /// A haproxy of ours does not run any more.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.haproxy.has_ended()
    }

    /// What is left of a haproxy of ours whose worker was killed.
    pub(crate) async fn kill(&mut self) {
        self.haproxy.kill().await;
    }

    /// The end of the program.
    pub(crate) async fn close(mut self) {
        if self.stop_haproxy {
            self.haproxy.stop(STOP_DEADLINE).await;
        }
    }

    /// Does the job.
    pub(crate) async fn run(mut self, job: Job) -> Done {
        self.haproxy.use_socket(job.socket);
        let mut work = Work::new(self, job);
        let outcome = work.run().await;
        let bad_frame = work.bad_frame();
        Done {
            driver: work.driver,
            started: work.started,
            reason: work.job.reload,
            outcome,
            proven: work.proven,
            bad: work.bad,
            bad_frame,
            unchecked: work.unchecked,
            refused_options: work.refused_options,
        }
    }
}
