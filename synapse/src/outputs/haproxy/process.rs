//! The haproxy process: whether a file is acceptable, what the worker runs, reloading with proof, and, when it is ours,
//! its life.
//!
//! Thin: no decision about servers is made here. It never writes haproxy.cfg; the file must be in place before a reload
//! is asked for. Called by the reconciler, its only owner: a reload borrows it mutably, so there are never two.

use std::path::{Path, PathBuf};
use std::time::Duration;

use smartstack_common::process::start_time;
use smartstack_common::report::Chain;
use tokio::time::{Instant, sleep};

use crate::config;
use crate::outputs::haproxy::cfg::Model;
use crate::outputs::haproxy::cfg::generation::Generation;
use crate::outputs::haproxy::socket::{ApiError, RuntimeApi};

pub mod binary;
pub mod bind;
pub mod check;
pub mod child;
pub mod end;
mod holder;
pub mod live;
pub mod master;
pub mod probe;
pub mod reload;
#[cfg(test)]
pub(crate) mod simulated;
pub mod supervise;

pub use check::{CheckError, Checker, Complaint, Complaints, Verdict};
pub use live::{Digests, Live};
pub use reload::ReloadOutcome;
use reload::{Proof, by_command, by_master, start_by_processes};
use supervise::{Origin, Supervisor};

/// A master whose worker has died ends within this time.
const DYING: Duration = Duration::from_secs(2);
/// How often that is looked at.
const LOOK: Duration = Duration::from_millis(10);

/// How this haproxy is reloaded.
#[derive(Debug)]
enum Way {
    Never,
    Command(String),
    Master(master::Master),
    Supervise(Box<Supervisor>),
}

/// The local haproxy.
#[derive(Debug)]
pub struct Haproxy {
    api: RuntimeApi,
    checker: Checker,
    way: Way,
    reload_timeout: Duration,
    config_file: PathBuf,
}

impl Haproxy {
    /// As configured. Starts nothing.
    #[must_use]
    pub fn new(config: &config::Haproxy) -> Self {
        let sockets = if config.do_socket {
            config.socket_file_path.clone()
        } else {
            Vec::new()
        };
        Self {
            api: RuntimeApi::new(sockets),
            checker: config
                .check_command
                .clone()
                .map_or_else(|| Checker::Binary(config.binary.clone()), Checker::Command),
            way: match &config.reload {
                config::Reload::Never => Way::Never,
                config::Reload::Command(line) => Way::Command(line.clone()),
                config::Reload::MasterSocket(path) => {
                    Way::Master(master::Master::new(path.clone()))
                }
                config::Reload::Supervise => Way::Supervise(Box::new(Supervisor::new(
                    &config.binary,
                    &config.config_file_path,
                ))),
            },
            reload_timeout: config.reload_timeout,
            config_file: config.config_file_path.clone(),
        }
    }

    /// Takes another configuration. A haproxy that is supervised already, with the same file, stays so.
    pub fn configure(&mut self, config: &config::Haproxy) {
        let same = config.reload == config::Reload::Supervise
            && config.config_file_path == self.config_file;
        let next = Self::new(config);
        let former = std::mem::replace(self, next);
        if let (true, Way::Supervise(mut supervisor)) = (same, former.way) {
            // The one that runs stays; the program is taken at the next start. Reloads of a master are its own program's.
            supervisor.set_binary(&config.binary);
            self.way = Way::Supervise(supervisor);
        }
    }

    /// Its stats sockets.
    #[must_use]
    pub fn api(&self) -> &RuntimeApi {
        &self.api
    }

    /// Whether the stats socket is used, as far as there is one.
    pub fn use_socket(&mut self, used: bool) {
        if used {
            self.api.take_up();
        } else {
            self.api.give_up();
        }
    }

    /// What its worker runs.
    ///
    /// # Errors
    /// As [`RuntimeApi::run`].
    pub async fn live(&self) -> Result<Live, ApiError> {
        Live::read(&self.api).await
    }

    /// Whether it would accept a file.
    ///
    /// # Errors
    /// No verdict; see [`CheckError`].
    pub async fn check(&self, candidate: &Path) -> Result<Verdict, CheckError> {
        #[cfg(test)]
        if let Some(simulated) = simulated::Simulated::current() {
            return Ok(simulated.check(candidate));
        }
        let verdict = self.checker.check(candidate, self.reload_timeout).await?;
        let ours = self.has_our_rights() || matches!(self.checker, Checker::Command(_));
        Ok(if ours {
            verdict
        } else {
            verdict.of_another_user()
        })
    }

    /// It is started by us, as us.
    fn has_our_rights(&self) -> bool {
        matches!(self.way, Way::Supervise(_))
    }

    /// Lines of a candidate that haproxy could not start with; see [`probe`]. `loaded` is its file, `gone`: it does not
    /// run, and so has nothing of that.
    #[must_use]
    pub fn obstacles(&self, candidate: &Model, loaded: &Model, gone: bool) -> Vec<probe::Obstacle> {
        #[cfg(test)]
        if simulated::Simulated::current().is_some() {
            return Vec::new();
        }
        let nothing = Model::default();
        let running = if gone { &nothing } else { loaded };
        probe::obstacles(candidate, running, self.has_our_rights())
    }

    /// At start, with the file in place: makes haproxy serve it. Adopts a worker that has loaded `expected` already;
    /// else starts the supervised one, or reloads once.
    pub async fn start(&mut self, expected: Option<&Generation>, servers: usize) -> ReloadOutcome {
        #[cfg(test)]
        if let Some(simulated) = simulated::Simulated::current() {
            return simulated.reload().await;
        }
        let since = Instant::now();
        if let Way::Supervise(supervisor) = &mut self.way {
            let end = supervisor.mark_log();
            match supervisor.ensure().await {
                Ok(Origin::Started) => return self.started(expected, servers, since, end).await,
                Ok(Origin::Adopted) => {}
                Err(error) => return ReloadOutcome::failed(Chain(&error).to_string(), ""),
            }
        }
        if let Ok(info) = self.api.info().await
            && !info.stopping
            && expected.is_some_and(|e| info.generation().as_ref() == Some(e))
        {
            return ReloadOutcome::Confirmed {
                pid: info.pid,
                generation: info.generation(),
                took: since.elapsed(),
            };
        }
        self.reload(expected, servers).await
    }

    /// Reloads, with the file in place. `expected` is its generation (`None` = not known), `servers` its size.
    pub async fn reload(&mut self, expected: Option<&Generation>, servers: usize) -> ReloadOutcome {
        #[cfg(test)]
        if let Some(simulated) = simulated::Simulated::current() {
            return simulated.reload().await;
        }
        let before = self.api.info().await.ok().map(|info| info.pid);
        let proof = Proof {
            before,
            generation: expected,
            servers,
            since: Instant::now(),
        };
        let supervisor = match &mut self.way {
            Way::Never => {
                return ReloadOutcome::failed("reloads are switched off (`do_reloads: false`)", "");
            }
            Way::Command(line) => {
                return by_command(line, self.reload_timeout, &self.api, &proof).await;
            }
            Way::Master(master) => {
                let (said, gone) = (String::new, || false);
                return by_master(master, self.reload_timeout, &self.api, &proof, said, gone).await;
            }
            Way::Supervise(supervisor) => supervisor,
        };
        let end = supervisor.mark_log();
        match supervisor.ensure().await {
            Ok(Origin::Started) => return self.started(expected, servers, proof.since, end).await,
            Ok(Origin::Adopted) => {}
            Err(error) => return ReloadOutcome::failed(Chain(&error).to_string(), ""),
        }
        let said = || supervisor.said_since(end);
        let gone = || supervisor.has_ended();
        let (master, limit) = (supervisor.master(), self.reload_timeout);
        let outcome = by_master(master, limit, &self.api, &proof, said, gone).await;
        if outcome.succeeded() {
            return outcome;
        }
        // A worker that dies takes the master with it, which may answer something until then.
        let dying = before.is_none_or(|pid| start_time(pid).is_none());
        let patience = Instant::now() + DYING;
        while dying && supervisor.is_alive() && Instant::now() < patience {
            sleep(LOOK).await;
        }
        if supervisor.is_alive() {
            return outcome;
        }
        match supervisor.ensure().await {
            Ok(Origin::Started) => self.started(expected, servers, proof.since, end).await,
            // Another master runs by now: it has not been asked for anything.
            Ok(Origin::Adopted) => outcome,
            Err(error) => ReloadOutcome::failed(Chain(&error).to_string(), ""),
        }
    }

    /// A supervised haproxy that was started or adopted does not run any more.
    pub fn has_ended(&mut self) -> bool {
        match &mut self.way {
            Way::Supervise(supervisor) => supervisor.pid().is_some() && !supervisor.is_alive(),
            _ => false,
        }
    }

    /// Kills what is left of a supervised haproxy whose worker was killed because it hung.
    pub async fn kill(&mut self) {
        if let Way::Supervise(supervisor) = &mut self.way {
            supervisor.kill().await;
        }
    }

    /// Ends a supervised haproxy; any other is not ours to end. Requests in flight have until `deadline`.
    pub async fn stop(&mut self, deadline: Duration) {
        if let Way::Supervise(supervisor) = &mut self.way {
            supervisor.stop(deadline).await;
        }
    }

    /// Proof of a start.
    async fn started(
        &mut self,
        expected: Option<&Generation>,
        servers: usize,
        since: Instant,
        end: u64,
    ) -> ReloadOutcome {
        let (api, config_file) = (&self.api, &self.config_file);
        let Way::Supervise(supervisor) = &mut self.way else {
            return ReloadOutcome::Unconfirmed;
        };
        let proof = Proof {
            before: None,
            generation: expected,
            servers,
            since,
        };
        let master = supervisor.master().clone();
        let mut died = async || {
            if supervisor.is_alive() {
                return None;
            }
            let output = supervisor.said_since(end);
            let why = Complaints::parse(&output).summary();
            Some(ReloadOutcome::failed(
                format!(
                    "haproxy ended at its start on `{}`: {why}",
                    config_file.display()
                ),
                output,
            ))
        };
        if api.is_configured()
            && let Some(outcome) = proof.await_from(api, &mut died).await
        {
            return outcome;
        }
        start_by_processes(&master, &proof, died).await
    }
}
