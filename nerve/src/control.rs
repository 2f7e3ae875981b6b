//! `drain`, `enable` and `disable`: what the control socket carries out.
//!
//! A hold is kept in the state file first (a command that cannot keep it changes nothing and says so), then made a part of
//! the wishes, and answered when the registrar has seen every node gone. Commands that change holds go one after another.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use smartstack_common::admin::Answer;
use smartstack_common::admin::control::{Command, Commands};
use smartstack_common::clock::Moment;
use smartstack_common::report::Chain;
use tokio::sync::Mutex;

use crate::metrics::Metrics;
use crate::reconcile::Wants;
use crate::service::{Hold, Wanted};
use crate::state::{self, Held};
use crate::status::{Board, Boards, EnsembleReport};

/// How long a command waits for the nodes to be gone.
const GONE: Duration = Duration::from_secs(10);

/// What commands work with.
#[derive(Debug, Clone)]
pub(crate) struct Controls {
    pub(crate) boards: Boards,
    pub(crate) wants: Board<Wanted>,
    pub(crate) metrics: Metrics,
    pub(crate) state_path: PathBuf,
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
        let written =
            tokio::task::spawn_blocking(move || state::hold(&path, &names, held.as_ref())).await;
        let holds = match written {
            Ok(Ok(holds)) => holds,
            Ok(Err(error)) => return Err(Chain(&error).to_string()),
            Err(error) => return Err(error.to_string()),
        };
        self.metrics.show_holds(&holds);
        // The checks' task looks at the holds, the registrar at the wishes.
        self.boards.holds.send_replace(holds);
        self.wants.send_modify(|wants| {
            let named = wants.values_mut().filter(|w| services.contains(&w.service));
            named.for_each(|wanted| wanted.hold = hold);
        });
        Ok(())
    }

    /// Answers when every node of the services is gone, or says what is left.
    async fn gone(&self, services: &[String]) -> Answer {
        let mut reports = self.boards.ensembles.subscribe();
        let left = |ensembles: &_| left(&self.wants.borrow(), services, ensembles);
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
                    && there.wanted.starts_with("absent") =>
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
