//! Workers that were replaced and go on for their old connections, with the table they had: they cannot be told anything
//! (`Proxy is disabled.`, measured), so that they are counted and shown with the servers they may still reach.

use smartstack_common::clock::Moment;
use smartstack_common::process::start_time;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::observed::Observed;
use crate::outputs::haproxy::plan::RunningServer;
use crate::report::status::LingeringView;

/// Most workers whose tables are kept; the oldest go.
const MOST: usize = 64;
/// With so many, reloads that can wait do.
const MANY: usize = 4;

#[derive(Default)]
pub(super) struct Lingering {
    workers: Vec<Worker>,
    views: Arc<Vec<LingeringView>>,
}

struct Worker {
    pid: u32,
    start: Option<u64>,
    since: Moment,
    servers: BTreeMap<String, BTreeMap<String, RunningServer>>,
}

impl Worker {
    /// Pids are used again.
    fn lives(&self) -> bool {
        let now = start_time(self.pid);
        now.is_some() && now == self.start
    }
}

impl Lingering {
    /// Another worker answers now.
    pub(super) fn see(&mut self, former: Option<&Observed>, now: &Observed) {
        let Some(former) = former.filter(|former| former.pid() != now.pid()) else {
            return;
        };
        self.workers.push(Worker {
            pid: former.pid(),
            start: start_time(former.pid()),
            since: Moment::now(),
            servers: former.running.backends.clone(),
        });
        if self.workers.len() > MOST {
            self.workers.remove(0);
        }
        self.look(Some(now));
    }

    /// Forgets those that have ended.
    pub(super) fn look(&mut self, current: Option<&Observed>) {
        self.workers.retain(Worker::lives);
        if !(self.workers.is_empty() && self.views.is_empty()) {
            self.views = Arc::new(self.views(current));
        }
    }

    /// So many that reloads should be rarer.
    pub(super) fn are_many(&self) -> bool {
        self.workers.len() >= MANY
    }

    /// For `/status`, as last looked at.
    pub(super) fn view(&self) -> Arc<Vec<LingeringView>> {
        Arc::clone(&self.views)
    }

    /// Who, since when, and which servers only they may still reach.
    fn views(&self, current: Option<&Observed>) -> Vec<LingeringView> {
        let gone = |backend: &String, name: &String, server: &RunningServer| {
            let now = current.and_then(|current| current.server(backend, name));
            server.is_serving() && !now.is_some_and(RunningServer::is_serving)
        };
        let view = |worker: &Worker| LingeringView {
            pid: worker.pid,
            since: worker.since,
            servers: worker
                .servers
                .iter()
                .flat_map(|(backend, servers)| servers.iter().map(move |(n, s)| (backend, n, s)))
                .filter(|(backend, name, server)| gone(backend, name, server))
                .map(|(backend, name, _)| format!("{backend}/{name}"))
                .collect(),
        };
        self.workers.iter().map(view).collect()
    }
}
