//! One reload, by any of the ways, and the proof that it took: another worker that has loaded the file's generation,
//! seen on fresh connections to the stats socket.
//!
//! Never two in flight: the owner lends itself mutably.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::check::Complaints;
use super::child::{self, Left, shell};
use super::master::{Asked, Master, Processes};
use crate::outputs::haproxy::cfg::generation::Generation;
use crate::outputs::haproxy::socket::{ApiError, Info, RuntimeApi};

/// First pause between looks at the new worker; doubled up to [`PAUSE_MAX`].
const PAUSE: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_millis(100);
/// Time for a worker to show itself, and more for each 10,000 servers (measured: 0.2 to 0.7 s for 10,000).
const CONFIRM: Duration = Duration::from_secs(5);
/// Answers that are none, until a stats socket is of no use: one may be cut by the end of a worker.
const USELESS: u32 = 2;

/// What became of a reload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReloadOutcome {
    /// A worker with the file's generation serves.
    Confirmed {
        /// The worker.
        pid: u32,
        /// What it has loaded; `None` when none was asked for.
        generation: Option<Generation>,
        /// From the request until it was seen.
        took: Duration,
    },
    /// The command ended well and there is no stats socket to ask.
    Unconfirmed,
    /// haproxy serves what it served before, as far as can be told.
    Failed {
        /// In words.
        reason: String,
        /// The end of what the command or haproxy said.
        output: String,
    },
}

impl ReloadOutcome {
    /// Not `Failed`.
    #[must_use]
    pub fn succeeded(&self) -> bool {
        !matches!(self, Self::Failed { .. })
    }

    pub(super) fn failed(reason: impl Into<String>, output: impl Into<String>) -> Self {
        Self::Failed {
            reason: reason.into(),
            output: output.into(),
        }
    }
}

/// What a new worker has to show.
#[derive(Debug, Clone, Copy)]
pub(super) struct Proof<'a> {
    /// The worker before; `None` = there was none.
    pub(super) before: Option<u32>,
    /// The file's; `None` = not known (somebody else writes the file).
    pub(super) generation: Option<&'a Generation>,
    /// Servers of the file.
    pub(super) servers: usize,
    /// When the reload was asked for.
    pub(super) since: Instant,
}

impl Proof<'_> {
    fn limit(&self) -> Duration {
        CONFIRM + Duration::from_secs(u64::try_from(self.servers / 10_000).unwrap_or(u64::MAX))
    }

    fn given_by(&self, info: &Info) -> bool {
        !info.stopping
            && Some(info.pid) != self.before
            && self
                .generation
                .is_none_or(|g| info.generation().as_ref() == Some(g))
    }

    /// What is missing, in words.
    fn missing(&self, seen: Option<&Result<Info, ApiError>>) -> String {
        let limit = self.limit();
        match seen {
            Some(Ok(info)) if Some(info.pid) == self.before => {
                format!("worker {} still serves after {limit:?}", info.pid)
            }
            Some(Ok(info)) => {
                let loaded = info.generation().map_or_else(
                    || "no generation of ours".to_owned(),
                    |g| format!("generation `{g}`"),
                );
                let wanted = self.generation.map_or("any", Generation::as_str);
                format!(
                    "worker {} has loaded {loaded}, not `{wanted}` (does haproxy read `haproxy.config_file_path`?)",
                    info.pid
                )
            }
            Some(Err(error @ (ApiError::Missing(_) | ApiError::Refused(_)))) => format!(
                "no proof within {limit:?}: {error} (was the socket removed? haproxy keeps it over reloads as it is, and only \
                 makes it again when it is stopped and started)"
            ),
            Some(Err(error)) => format!("no proof within {limit:?}: {error}"),
            None => format!("no proof within {limit:?}"),
        }
    }

    /// Waits for the proof. `failure` tells early that it will not come. `None` = the socket is of no use for that.
    pub(super) async fn await_from(
        &self,
        api: &RuntimeApi,
        mut failure: impl AsyncFnMut() -> Option<ReloadOutcome>,
    ) -> Option<ReloadOutcome> {
        let deadline = Instant::now() + self.limit();
        let mut pause = PAUSE;
        let mut useless = 0;
        loop {
            let seen = api.info().await;
            if matches!(&seen, Err(error) if error.is_useless()) {
                useless += 1;
                if useless >= USELESS {
                    return None;
                }
            }
            if let Ok(info) = &seen
                && self.given_by(info)
            {
                return Some(ReloadOutcome::Confirmed {
                    pid: info.pid,
                    generation: info.generation(),
                    took: self.since.elapsed(),
                });
            }
            if let Some(outcome) = failure().await {
                return Some(outcome);
            }
            if Instant::now() >= deadline {
                return Some(ReloadOutcome::failed(self.missing(Some(&seen)), ""));
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }
}

/// By a shell command: exit status 0 within `limit`, then the proof.
pub(super) async fn by_command(
    line: &str,
    limit: Duration,
    api: &RuntimeApi,
    proof: &Proof<'_>,
) -> ReloadOutcome {
    let done = match child::run(shell(line), line, limit, Left::Running).await {
        Ok(done) => done,
        Err(error) => {
            return ReloadOutcome::failed(
                smartstack_common::report::Chain(&error).to_string(),
                error.output(),
            );
        }
    };
    if !done.status.success() {
        let why = Complaints::parse(&done.output).summary();
        return ReloadOutcome::failed(
            format!("`{line}` ended with {}: {why}", done.status),
            done.output,
        );
    }
    if !api.is_configured() {
        return ReloadOutcome::Unconfirmed;
    }
    match proof.await_from(api, async || None).await {
        None => ReloadOutcome::Unconfirmed,
        Some(ReloadOutcome::Failed { reason, .. }) => {
            ReloadOutcome::failed(format!("`{line}` ended well, but {reason}"), done.output)
        }
        Some(other) => other,
    }
}

/// By the master CLI. `said` gives what haproxy has written since the request, and `gone` whether the master has ended,
/// where that is known.
pub(super) async fn by_master(
    master: &Master,
    limit: Duration,
    api: &RuntimeApi,
    proof: &Proof<'_>,
    mut said: impl FnMut() -> String,
    gone: impl Fn() -> bool,
) -> ReloadOutcome {
    let before = match master.settled().await {
        Ok(before) => before,
        Err(error) => {
            return ReloadOutcome::failed(smartstack_common::report::Chain(&error).to_string(), "");
        }
    };
    match master.reload(limit).await {
        Ok(Asked::Failure(output)) => {
            return ReloadOutcome::failed(
                format!(
                    "haproxy kept its old worker: {}",
                    Complaints::parse(&output).summary()
                ),
                output,
            );
        }
        Ok(Asked::Busy) => {
            let reason = format!("haproxy was still loading another file after {limit:?}");
            return ReloadOutcome::failed(reason, "");
        }
        Ok(Asked::Success | Asked::Unknown) => {}
        Err(error) => {
            return ReloadOutcome::failed(smartstack_common::report::Chain(&error).to_string(), "");
        }
    }
    let mut refused = async || {
        if gone() {
            return Some(ReloadOutcome::failed("haproxy's master has ended", said()));
        }
        // The socket may reset for about a second while the master loads: no answer proves nothing.
        let now = master.processes().await.ok()?;
        if !is_refusal(&before, &now) {
            return None;
        }
        let output = said();
        let why = match output.is_empty() {
            true => "the reason is in haproxy's own log".to_owned(),
            false => Complaints::parse(&output).summary(),
        };
        let reason = format!(
            "haproxy kept its old worker ({} failed in a row): {why}",
            now.failed
        );
        Some(ReloadOutcome::failed(reason, output))
    };
    if api.is_configured()
        && let Some(outcome) = proof.await_from(api, &mut refused).await
    {
        return outcome;
    }
    by_processes(master, &before, proof, refused).await
}

/// A start without a stats socket: the master lists a worker, or `died` tells why there will be none.
pub(super) async fn start_by_processes(
    master: &Master,
    proof: &Proof<'_>,
    mut died: impl AsyncFnMut() -> Option<ReloadOutcome>,
) -> ReloadOutcome {
    let deadline = Instant::now() + proof.limit();
    loop {
        let seen = master.processes().await;
        if let Some(outcome) = died().await {
            return outcome;
        }
        if seen.is_ok_and(|now| now.failed == 0 && now.worker.is_some()) {
            return ReloadOutcome::Unconfirmed;
        }
        if Instant::now() >= deadline {
            let limit = proof.limit();
            return ReloadOutcome::failed(
                format!("haproxy's master shows no worker within {limit:?}"),
                "",
            );
        }
        sleep(PAUSE_MAX).await;
    }
}

/// Without a stats socket the master's list of processes is all there is: success is seen, the generation is not.
async fn by_processes(
    master: &Master,
    before: &Processes,
    proof: &Proof<'_>,
    mut refused: impl AsyncFnMut() -> Option<ReloadOutcome>,
) -> ReloadOutcome {
    let deadline = Instant::now() + proof.limit();
    while Instant::now() < deadline {
        if let Ok(now) = master.processes().await
            && now.failed == 0
            && now.worker.is_some()
            && now.worker != before.worker
        {
            return ReloadOutcome::Unconfirmed;
        }
        if let Some(outcome) = refused().await {
            return outcome;
        }
        sleep(PAUSE_MAX).await;
    }
    ReloadOutcome::failed(proof.missing(None), "")
}

/// The master has tried and failed since `before`.
fn is_refusal(before: &Processes, now: &Processes) -> bool {
    now.master == before.master && now.reloads > before.reloads && now.failed > 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_reload_is_told_from_an_earlier_one() {
        let at = |reloads, failed| Processes {
            master: 1,
            reloads,
            failed,
            worker: Some(2),
            old_workers: vec![],
        };
        assert!(is_refusal(&at(3, 0), &at(4, 1)));
        assert!(is_refusal(&at(3, 1), &at(4, 2)));
        assert!(!is_refusal(&at(3, 1), &at(3, 1)));
        assert!(!is_refusal(&at(3, 1), &at(4, 0)));
    }
}
