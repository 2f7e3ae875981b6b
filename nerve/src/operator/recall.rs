//! What operators had taken out before this start: read from the state file, before anything is registered.
//!
//! While the file cannot be read (a disk that hangs, a permission) or has lost it, every service is in doubt
//! ([`Hold::Unknown`]): not registered anew, but what is registered stays. A service that is found registered had not been
//! taken out: its doubt ends. The others wait for the operator's word.

use std::time::Duration;

use smartstack_common::clock::Moment;
use smartstack_common::report::Chain;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::control::Controls;
use crate::state::{self, StateError};
use crate::wanted::{Held, Hold, Holds};

/// How long the start waits for the state file.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);
/// Between attempts to read a file that cannot be read.
const AGAIN: Duration = Duration::from_secs(10);

/// Runs for ever. `first` is told once the holds, or the doubts in their place, are in force.
pub(crate) async fn run(controls: Controls, services: Vec<String>, first: oneshot::Sender<()>) {
    let mut first = Some(first);
    let mut ensembles = controls.boards.ensembles.subscribe();
    let mut reading = JoinSet::new();
    // When to read; `None` once it is known.
    let mut due = Some(Instant::now());
    let mut told = false;
    loop {
        if due.is_some_and(|due| due <= Instant::now()) && reading.is_empty() {
            let (path, id) = (controls.state_path.clone(), controls.instance_id.clone());
            let services = services.clone();
            reading.spawn_blocking(move || state::recall(&path, &id, &services));
        }
        // A join of a set that keeps its tasks, a watch receive and a deadline kept outside: all cancel-safe.
        tokio::select! {
            Some(read) = reading.join_next() => {
                match read {
                    Ok(Ok(holds)) => {
                        tell(&holds);
                        controls.put_in_force(holds);
                        due = None;
                    }
                    Ok(Err(error)) => {
                        // Once: a doubt that has ended does not come back.
                        if !std::mem::replace(&mut told, true) {
                            complain(&error);
                            doubt(&controls, &services);
                        }
                        due = Some(Instant::now() + AGAIN);
                    }
                    Err(error) => std::panic::resume_unwind(error.into_panic()),
                }
                if let Some(first) = first.take() {
                    // Nobody waits for it after PATIENCE.
                    let _waited = first.send(()).is_ok();
                }
            }
            Ok(()) = ensembles.changed() => {}
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() && reading.is_empty() => {}
        }
        for service in registered(&controls) {
            controls.end_doubt(service).await;
        }
    }
}

/// Puts doubts in force for services of which nothing is known.
pub(crate) fn doubt(controls: &Controls, services: &[String]) {
    let mut holds = controls.boards.holds.borrow().clone();
    for service in services {
        let (by, since) = (Hold::Unknown, Moment::now().seconds());
        holds.entry(service.clone()).or_insert(Held { by, since });
    }
    controls.put_in_force(holds);
}

fn tell(holds: &Holds) {
    for (service, held) in holds {
        match held.by {
            Hold::Drain | Hold::Disable => tracing::warn!(
                service,
                by = held.by.word(),
                "held out since an earlier run"
            ),
            Hold::Unknown => tracing::error!(
                service,
                "not known whether it was drained or disabled: not registered, unless it is already\nhint: `nerve enable` or `nerve drain` it"
            ),
        }
    }
}

fn complain(error: &StateError) {
    let error = Chain(error).to_string();
    tracing::error!(
        error,
        "not known which services were drained or disabled: none is registered, unless it is already\nhint: nerve reads `state_path` again every {AGAIN:?}; let its user read it"
    );
}

/// Services in doubt that stand in the registry.
fn registered(controls: &Controls) -> Vec<String> {
    let holds = controls.boards.holds.borrow();
    let ensembles = controls.boards.ensembles.borrow();
    let stands = |service: &String| {
        let mut places = ensembles.values().flat_map(|e| e.registrations.values());
        places.any(|place| {
            place.service == *service && (place.node.is_some() || !place.elsewhere.is_empty())
        })
    };
    let doubted = holds.iter().filter(|(_, held)| held.by == Hold::Unknown);
    let doubted = doubted.map(|(service, _)| service.clone());
    doubted.filter(stands).collect()
}
