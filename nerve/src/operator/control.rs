//! `drain`, `enable` and `disable`: what the control socket carries out.
//!
//! A hold is kept in the state file first (a command that cannot keep it changes nothing and says so), then made a part of
//! the wishes, and answered when the registrar has seen every node gone. Commands that change holds go one after another.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use smartstack_common::admin::Answer;
use smartstack_common::admin::control::{Command, Commands};
use smartstack_common::clock::Moment;
use smartstack_common::http::StatusCode;
use smartstack_common::report::Chain;
use tokio::sync::{Mutex, watch};

use crate::boards::{Boards, EnsembleReport};
use crate::report::metrics::Metrics;
use crate::state::{self, Own};
use crate::wanted::{Held, Hold, Holds, Stance, Wants};

/// How long a command waits for the nodes to be gone.
const GONE: Duration = Duration::from_secs(10);

/// What commands work with.
#[derive(Debug, Clone)]
pub(crate) struct Controls {
    pub(crate) boards: Boards,
    pub(crate) holds: Arc<watch::Sender<Holds>>,
    pub(crate) metrics: Metrics,
    pub(crate) state_path: PathBuf,
    pub(crate) instance_id: String,
    /// Held while a command changes the holds.
    pub(crate) writing: Arc<Mutex<()>>,
}

impl Controls {
    /// What the socket calls.
    pub(crate) fn commands(self) -> Commands {
        let controls = Arc::new(self);
        Arc::new(move |command| {
            let controls = Arc::clone(&controls);
            Box::pin(async move { controls.carry_out(command).await })
        })
    }

    async fn carry_out(&self, command: Command) -> Answer {
        let hold = match command.name.as_str() {
            "drain" => Some(Hold::Drain),
            "disable" => Some(Hold::Disable),
            "enable" => None,
            _ => {
                let why = "no such command; there are drain, enable, disable";
                return Answer::refusal(StatusCode::NOT_FOUND, why);
            }
        };
        let services = match command.services(self.known()) {
            Ok(services) => services,
            Err(answer) => return answer,
        };
        if let Err(error) = self.keep(&services, hold).await {
            let path = self.state_path.display();
            tracing::error!(command = command.name, error, "command not carried out");
            let why = format!("nothing is changed, `state_path` ({path}) cannot keep it: {error}");
            return Answer::refusal(StatusCode::INTERNAL_SERVER_ERROR, why);
        }
        tracing::warn!(
            services = services.join(", "),
            "{}: by the control socket",
            command.name
        );
        match hold {
            None => Answer::text(lines(
                &services,
                "enabled, registered while its checks are up",
            )),
            Some(_) => self.gone(&services).await,
        }
    }

    /// All that are configured or held, by name.
    fn known(&self) -> Vec<String> {
        let services = self.boards.services.borrow();
        let held = self.boards.holds.borrow();
        let known: BTreeSet<&String> = services.keys().chain(held.keys()).collect();
        known.into_iter().cloned().collect()
    }

    /// Keeps the hold in the state file, then puts it in force.
    async fn keep(&self, services: &[String], hold: Option<Hold>) -> Result<(), String> {
        let _one_at_a_time = self.writing.lock().await;
        let (path, names) = (self.state_path.clone(), services.to_vec());
        let held = hold.map(|by| Held {
            by,
            since: Moment::now().seconds(),
        });
        let (id, known) = (self.instance_id.clone(), self.boards.holds.borrow().clone());
        let write = move || {
            let own = Own {
                instance_id: &id,
                holds: &known,
            };
            state::hold(&path, &own, &names, held.as_ref())
        };
        let holds = match tokio::task::spawn_blocking(write).await {
            Ok(Ok(holds)) => holds,
            Ok(Err(error)) => return Err(Chain(&error).to_string()),
            Err(error) => return Err(error.to_string()),
        };
        self.put_in_force(holds);
        Ok(())
    }

    /// From here on these are the holds.
    pub(crate) fn put_in_force(&self, holds: Holds) {
        self.metrics.show_holds(&holds);
        self.holds.send_replace(holds);
    }

    /// A service of which it is not known whether it was taken out is registered: it was not.
    pub(crate) async fn end_doubt(&self, service: String) {
        tracing::warn!(
            service,
            "it is registered, so that it was neither drained nor disabled: it is registered on"
        );
        if let Err(error) = self.keep(std::slice::from_ref(&service), None).await {
            tracing::warn!(service, error, "the state file does not know of it");
            let mut holds = self.boards.holds.borrow().clone();
            holds.remove(&service);
            self.put_in_force(holds);
        }
    }

    /// Answers when every node of the services is gone, or says what is left.
    async fn gone(&self, services: &[String]) -> Answer {
        let mut reports = self.boards.ensembles.subscribe();
        let left = |ensembles: &_| left(&self.boards.wishes().read(None), services, ensembles);
        let gone = reports.wait_for(|ensembles| left(ensembles).is_empty());
        if tokio::time::timeout(GONE, gone).await.is_ok() {
            return Answer::text(lines(services, "withdrawn"));
        }
        let left = left(&self.boards.ensembles.borrow()).join("; ");
        let why = format!(
            "not withdrawn yet: {left}\nheld out all the same: it will be, as soon as that is possible"
        );
        Answer::refusal(StatusCode::SERVICE_UNAVAILABLE, why)
    }
}

/// Where the services are not known to be withdrawn, and why.
fn left(
    wants: &Wants,
    services: &[String],
    ensembles: &BTreeMap<String, EnsembleReport>,
) -> Vec<String> {
    let mut left = Vec::new();
    for (key, wanted) in wants {
        if !services.contains(&wanted.service) {
            continue;
        }
        let (hosts, service) = (&wanted.registration.hosts, &wanted.service);
        let report = ensembles.get(hosts);
        let there = report.and_then(|report| report.registrations.get(key));
        let state = report.map_or("not asked yet", |report| report.link.state);
        match there {
            Some(there)
                if there.confirmed
                    && there.node.is_none()
                    && matches!(there.wanted, Stance::Absent(_)) =>
            {
                let others = there.elsewhere.iter();
                left.extend(others.map(|node| {
                    format!(
                        "`{service}` at {hosts}: {}/{node} advertises its address and is not this nerve's to delete: a nerve with \
                         the same configuration runs elsewhere, or the node goes when that session expires",
                        there.path
                    )
                }));
            }
            Some(there) if state == "live" => {
                let node = there.node.as_deref().unwrap_or("no node seen");
                let error = there.error.as_deref().unwrap_or("under way");
                left.push(format!(
                    "`{service}` at {hosts}: {}/{node}: {error}",
                    there.path
                ));
            }
            _ => left.push(format!("`{service}` at {hosts}: zookeeper is {state}")),
        }
    }
    left
}

fn lines(services: &[String], what: &str) -> String {
    services
        .iter()
        .map(|service| format!("{service}: {what}\n"))
        .collect()
}
