//! How nerve ends: by TERM everything is withdrawn first, by USR2 everything stays for the successor.

use tokio::time::{Duration, Instant, timeout, timeout_at};

use super::App;
use crate::wanted::{Intent, Places};

/// What of the stop's deadline is kept for closing the sessions.
const CLOSING: Duration = Duration::from_secs(2);
/// How long writes under way may hold up a leave.
const AT_REST: Duration = Duration::from_secs(2);

impl App {
    /// Withdraws everything and confirms it, lingers, closes the sessions; all within the deadline.
    pub(super) async fn stop(&mut self) {
        let limit = self.config.stop_deadline;
        tracing::info!(
            "stopping: everything is withdrawn first, within {limit:?}; a second signal ends nerve at once, and nodes stay until their session expires"
        );
        let deadline = Instant::now() + limit;
        let withdrawn_by = deadline - CLOSING.min(self.config.stop_deadline / 2);
        for running in self.services.values() {
            running.task.abort();
        }
        self.intend(Intent::Withdraw);
        let mut reports = self.boards.ensembles.subscribe();
        let all_gone =
            reports.wait_for(|ensembles| ensembles.values().all(|report| report.withdrawn));
        match timeout_at(withdrawn_by, all_gone).await {
            Ok(_) => tracing::info!("everything of this nerve's is withdrawn"),
            Err(_) => self.tell_left(),
        }
        self.tell_elsewhere();
        if !self.config.linger.is_zero() {
            tokio::time::sleep_until((Instant::now() + self.config.linger).min(withdrawn_by)).await;
        }
        // The registrars first: whoever holds a client keeps its session open.
        self.tasks.shutdown().await;
        self.closing.0.send_replace(true);
        let closed = async { while self.sessions.join_next().await.is_some() {} };
        if timeout_at(deadline, closed).await.is_err() {
            tracing::warn!("not all sessions could be closed");
        }
    }

    /// From here on this is meant with every registration.
    fn intend(&self, intent: Intent) {
        let all = |places: &mut Places| places.values_mut().for_each(|p| p.intent = intent);
        self.places.send_modify(all);
    }

    /// Nodes of other sessions that advertise our addresses.
    fn tell_elsewhere(&self) {
        for report in self.boards.ensembles.borrow().values() {
            for there in report.registrations.values() {
                for node in &there.elsewhere {
                    tracing::warn!(
                        service = there.service,
                        hosts = report.link.hosts,
                        path = there.path,
                        node,
                        "another session's node advertises the service's address, and stays"
                    );
                }
            }
        }
    }

    fn tell_left(&self) {
        for report in self
            .boards
            .ensembles
            .borrow()
            .values()
            .filter(|report| !report.withdrawn)
        {
            for left in report.registrations.values() {
                let (hosts, node) = (&report.link.hosts, left.node.as_deref().unwrap_or("?"));
                let state = report.link.state;
                tracing::warn!(
                    service = left.service,
                    hosts,
                    state,
                    path = left.path,
                    node,
                    "not withdrawn: stays until its session expires"
                );
            }
        }
    }

    /// Ends the writes under way and starts no other. The caller must end the process at once.
    ///
    /// The sessions stay open, and with them the nodes: no client is dropped while the runtime still polls the client's
    /// task, so nothing sends CloseSession. The successor finds the sessions in `state_path`, of a process that is no
    /// more, and swaps the nodes; without a successor they go when the sessions expire.
    pub(super) async fn leave(&mut self) {
        for running in self.services.values() {
            running.task.abort();
        }
        self.intend(Intent::HandOver);
        let mut reports = self.boards.ensembles.subscribe();
        let at_rest = reports.wait_for(|ensembles| ensembles.values().all(|e| e.at_rest));
        if timeout(AT_REST, at_rest).await.is_err() {
            tracing::warn!("leaving while writes are under way");
        }
        for (hosts, report) in &*self.boards.ensembles.borrow() {
            if !report.remembered {
                tracing::warn!(
                    hosts,
                    "session not in state_path: its nodes stay beside the successor's until it expires"
                );
            }
        }
        tracing::info!("leaving: every node stays for the successor");
    }
}
