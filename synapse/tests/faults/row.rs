//! One row of the table: from the state in which all agree, through a fault, to the state in which all agree again.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use serde_json::Value;
use smartstack_common::testing::eventually;
use tokio::task::JoinSet;

use crate::stage::{SOON, Stage, table};

/// Longest time to agreement after the sessions are back: ten times the goal.
const LIMIT: Duration = Duration::from_secs(10);

/// A row that has begun.
pub(crate) struct Row {
    fault: String,
    before: usize,
    least: Option<usize>,
    fewest: Arc<AtomicUsize>,
    sessions: BTreeMap<String, Value>,
    reloads: u64,
    ended: Option<SystemTime>,
    _sampler: JoinSet<()>,
}

impl Row {
    /// Servers that may be in rotation at the fewest, instead of: those of each nerve that lost its session may go.
    pub(crate) fn least(mut self, least: usize) -> Self {
        self.least = Some(least);
        self
    }

    /// The fault is over.
    pub(crate) fn ended(&mut self) {
        self.ended = Some(SystemTime::now());
    }
}

/// What was found, beyond what is asserted for every row.
pub(crate) struct Figures {
    /// Programs whose session is the one from before.
    pub(crate) kept: usize,
}

/// Sessions of the programs by number (0 is synapse) and hosts; only those that are live.
async fn sessions(stage: &Stage) -> BTreeMap<String, Value> {
    let mut sessions = BTreeMap::new();
    for (index, program) in stage.programs().enumerate() {
        let status = program.status().await;
        for link in status["zookeeper"].as_array().into_iter().flatten() {
            if link["state"] == "live" {
                sessions.insert(format!("{index} {}", link["hosts"]), link.clone());
            }
        }
    }
    sessions
}

/// Looks at haproxy's table all the time and keeps the smallest.
async fn sample(stats: PathBuf, fewest: Arc<AtomicUsize>) {
    let mut ticks = tokio::time::interval(Duration::from_millis(20));
    loop {
        ticks.tick().await;
        // Err = haproxy is being reloaded.
        if let Ok(table) = table(&stats).await {
            fewest.fetch_min(table.len(), Ordering::AcqRel);
        }
    }
}

impl Stage {
    /// Waits until all agree, and begins to count.
    pub(crate) async fn begin(&mut self, fault: &str) -> Row {
        self.settled().await;
        self.begin_unsettled(fault).await
    }

    /// The same while another fault goes on.
    pub(crate) async fn begin_unsettled(&mut self, fault: &str) -> Row {
        let tally = self.tally();
        assert_eq!(tally.failed(), 0, "before {fault}: {tally}");
        let before = self.wanted().len();
        let fewest = Arc::new(AtomicUsize::new(usize::MAX));
        let mut sampler = JoinSet::new();
        sampler.spawn(sample(self.stats(), Arc::clone(&fewest)));
        Row {
            fault: fault.to_owned(),
            before,
            least: None,
            fewest,
            sessions: sessions(self).await,
            reloads: self.reloads().await,
            ended: None,
            _sampler: sampler,
        }
    }

    pub(crate) async fn reloads(&self) -> u64 {
        let status = self.rig.synapse.status().await;
        status["haproxy"]["reloads"].as_u64().unwrap_or_default()
    }

    /// Waits for agreement, prints the row and asserts what must hold of each.
    pub(crate) async fn agree(&mut self, row: Row) -> Figures {
        let fault = &row.fault;
        let ended = row.ended.expect("the fault was ended");
        let links = row.sessions.len();
        self.registry.renew().await;
        let (now, back) = eventually(&format!("agreement after {fault}"), SOON, async || {
            self.agreed().await?;
            let agreed = SystemTime::now();
            let now = sessions(self).await;
            if now.len() < links {
                return Err(format!("{} of {links} sessions are live", now.len()));
            }
            Ok((now, agreed))
        })
        .await;
        let since = now.values().filter_map(|link| link["since"].as_f64());
        let since = since.fold(0.0, f64::max);
        let since = ended.max(SystemTime::UNIX_EPOCH + Duration::from_secs_f64(since));
        let [total, after] =
            [ended, since].map(|from| back.duration_since(from).unwrap_or_default());
        let is_kept = |key: &str| {
            let [before, now] = [&row.sessions, &now].map(|links| links.get(key));
            before.map(|link| &link["session"]) == now.map(|link| &link["session"])
        };
        let lost: Vec<&String> = row.sessions.keys().filter(|key| !is_kept(key)).collect();
        let kept = links - lost.len();
        // Requests in flight.
        self.lasts(Duration::from_millis(200)).await;
        let tally = self.tally();
        let fewest = row.fewest.load(Ordering::Acquire);
        let (sent, failed) = (tally.ok() + tally.failed(), tally.failed());
        println!(
            "fault: {fault}: {sent} requests, {failed} failed; agreement {:.2} s after its end, {:.2} s after the sessions \
             were back; {kept} of {links} sessions kept; never fewer than {fewest} of {} servers; reloads {}",
            total.as_secs_f64(),
            after.as_secs_f64(),
            row.before,
            self.reloads().await.saturating_sub(row.reloads),
        );
        assert!(sent > 0, "{fault}: nobody asked");
        assert_eq!(failed, 0, "{fault}: {tally}\n{}", self.rig.log());
        assert!(after < LIMIT, "{fault}: agreement after {after:?}");
        // What was asked for during the row may be gone, and what was registered by sessions that are.
        let nerves = lost.iter().filter(|key| !key.starts_with("0 ")).count();
        let all = row.before.min(self.wanted().len());
        let least = row.least.unwrap_or(all.saturating_sub(2 * nerves));
        assert!(
            fewest >= least,
            "{fault}: {fewest} servers, {least} expected at least\n{}",
            self.rig.log()
        );
        Figures { kept }
    }
}
