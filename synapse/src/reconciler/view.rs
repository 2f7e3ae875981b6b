//! What the reconciler publishes after a pass: the view behind `/status` and `/metrics`, and the snapshot.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::observed::Observed;
use super::{Reconciler, Tally};
use crate::assembly::Assembly;
use crate::desired::{Origin, Previous};
use crate::plan::Plan;
use crate::server::Rejected;
use crate::services::{State, source_key};
use crate::snapshot::{Hold, Snapshot, SourceRecord};
use crate::status::{HaproxyView, ServerView, ServiceView, View, seconds};

impl Reconciler {
    /// Publishes view and snapshot. `None` = nothing could be assembled.
    pub(super) fn publish(&mut self, pass: Option<(&Assembly, &Plan)>) {
        let view = self.view_now(pass);
        if view.ready && !self.view.borrow().ready {
            tracing::info!(
                generation = view.haproxy.generation,
                "haproxy serves what the sources say"
            );
        }
        self.view.send_replace(Arc::new(view));
        let snapshot = self.snapshot_now();
        self.snapshot.send_if_modified(|last| {
            let other = **last != snapshot;
            if other {
                *last = Arc::new(snapshot);
            }
            other
        });
    }

    fn view_now(&self, pass: Option<(&Assembly, &Plan)>) -> View {
        let serving = pass.is_some_and(|(assembly, _)| self.serves(assembly));
        let state = match (&self.observed, serving) {
            (None, true) => "unconfirmed",
            (None, false) => "unreachable",
            (Some(_), true) => "serving",
            (Some(_), false) => "other generation",
        };
        let Tally {
            reloads,
            reload_failures,
            last_reload,
            ..
        } = &self.tally;
        let info = self.observed.as_ref().map(|o| &o.info);
        let haproxy = HaproxyView {
            state,
            pid: info.map(|i| i.pid),
            version: info.map(|i| i.version.clone()),
            generation: info.and_then(|i| i.generation()).map(|g| g.to_string()),
            wanted_generation: pass.map(|(assembly, _)| assembly.desired.generation.to_string()),
            // A file that cannot be written is a divergence: the next worker would begin with another state.
            divergence: pass.map_or(0, |(_, plan)| divergence(plan))
                + usize::from(self.write_problem.is_some()),
            reloads: *reloads,
            reload_failures: *reload_failures,
            foreign_reloads: self.tally.foreign_reloads,
            runtime_ops: self.tally.runtime_ops,
            last_reload: last_reload.clone(),
            fallbacks: {
                let known = pass.map(|(assembly, _)| fallbacks(assembly));
                let learned = self.fallbacks.reasons();
                learned.chain(known.into_iter().flatten()).collect()
            },
        };
        let problems = [
            &self.socket_problem,
            &self.write_problem,
            &self.frame_problem,
            &self.reload_problem,
        ];
        View {
            // Ready once, whatever fails later: what serves goes on serving.
            ready: serving || self.view.borrow().ready,
            services: self
                .services
                .iter()
                .map(|s| (s.service.name.clone(), self.service_view(s)))
                .collect(),
            haproxy,
            problems: problems.into_iter().flatten().cloned().collect(),
        }
    }

    fn service_view(&self, state: &State) -> ServiceView {
        let source = source_key(&state.service).map(|key| self.sources.view(&key));
        let desired = state.desired.as_ref();
        let backend = state.backend();
        let mut servers: Vec<ServerView> = state
            .servers
            .iter()
            .map(|s| ServerView {
                name: s.server.name.clone(),
                address: s.server.address.to_string(),
                port: s.server.port,
                id: backend.map(|_| s.id),
                weight: s.server.weight,
                znode: s.server.znode.clone(),
                wanted: true,
                haproxy: backend.and_then(|b| self.observed.as_ref()?.word(b, &s.server.name)),
                held: desired.is_some_and(|d| d.origin == Origin::Held),
            })
            .collect();
        if let (Some(observed), Some(backend)) = (&self.observed, backend) {
            servers.extend(unwanted(observed, backend, state));
        }
        let seeded = state.is_seeded();
        let origin = if seeded {
            "snapshot"
        } else {
            desired.map_or("snapshot", |d| d.origin.as_str())
        };
        let hold = desired.filter(|d| d.origin == Origin::Held).map(|_| {
            "nothing is registered; the last set stays because `use_previous_backends` is true"
                .to_owned()
        });
        let mut rejected: Vec<Rejected> = desired.map(|d| d.rejected.clone()).unwrap_or_default();
        rejected.extend(state.refused.iter().cloned());
        let mut notes: Vec<Rejected> = state.id_notes.clone();
        notes.extend(
            desired
                .into_iter()
                .flat_map(|d| &d.notes)
                .map(|n| Rejected {
                    znode: n.znode.clone(),
                    reason: n.text.clone(),
                }),
        );
        let template = state
            .piece
            .as_ref()
            .and_then(|piece| piece.as_ref().err())
            .cloned();
        let fresh = source.as_ref().is_none_or(|s| s.fresh);
        let now = std::time::SystemTime::now();
        ServiceView {
            origin,
            agreed_at: source
                .as_ref()
                .and_then(|s| if s.fresh { Some(now) } else { s.agreed_at })
                .map(seconds),
            fresh,
            backend: backend.map(str::to_owned),
            servers,
            rejected,
            notes,
            withdrawn: desired.map(|d| d.withdrawn.clone()).unwrap_or_default(),
            filtered: desired
                .map(|d| d.filtered.iter().cloned().collect())
                .unwrap_or_default(),
            hold,
            quarantined: template.or_else(|| {
                self.quarantined
                    .get(&state.service.name)
                    .map(|q| q.reason.clone())
            }),
            problem: source.as_ref().and_then(|s| s.problem.clone()),
            parent_data: source.as_ref().map_or(0, |s| s.parent_data),
        }
    }

    fn snapshot_now(&self) -> Snapshot {
        let record = |view: crate::source::SourceView| SourceRecord {
            agreed_at: view.agreed_at,
            fresh: view.fresh,
            children: view.children,
        };
        let sources = self
            .sources
            .all()
            .filter(|(_, v)| v.confirmed || v.agreed_at.is_some());
        let hold = |state: &State| {
            let Previous::Children(children) = state.held()? else {
                return None;
            };
            let source = source_key(&state.service)?.to_string();
            Some((
                state.service.name.clone(),
                Hold {
                    source,
                    children: Arc::clone(children),
                },
            ))
        };
        let operator = self
            .operator_maint
            .iter()
            .map(|(backend, name)| (format!("{backend}/{name}"), "maint".to_owned()));
        Snapshot {
            machine: self.machine.clone(),
            sources: sources
                .map(|(key, view)| (key.to_string(), record(view)))
                .collect(),
            resolved: self.sources.resolved().borrow().clone(),
            ids: Arc::new(self.ids.clone()),
            operator: Arc::new(operator.collect()),
            holds: self.services.iter().filter_map(hold).collect(),
            worker: self.digests.worker().map(Arc::new),
        }
    }
}

/// What haproxy has in the backend beside the wanted servers and the user's own lines: removed ones waiting for the next
/// reload, or ones that somebody else added.
fn unwanted<'a>(
    observed: &'a Observed,
    backend: &'a str,
    state: &'a State,
) -> impl Iterator<Item = ServerView> + 'a {
    let wanted = |name: &str| state.servers.iter().any(|s| s.server.name == name);
    observed
        .names(backend)
        .filter(move |name| !wanted(name))
        .filter_map(move |name| {
            let server = observed.server(backend, name)?;
            Some(ServerView {
                name: name.clone(),
                address: server
                    .address
                    .map(|a| a.ip().to_string())
                    .unwrap_or_default(),
                port: server.address.map_or(0, |a| a.port()),
                id: Some(server.id),
                weight: Some(server.weight),
                znode: None,
                wanted: false,
                haproxy: observed.word(backend, name),
                held: false,
            })
        })
}

/// Servers and structures in which haproxy and the wanted state differ.
fn divergence(plan: &Plan) -> usize {
    match plan {
        Plan::Unchanged => 0,
        Plan::Runtime(ops) => ops.len(),
        Plan::Reload { first, .. } => first.len() + 1,
    }
}

/// Backends in which a new server needs a reload, and why.
fn fallbacks(assembly: &Assembly) -> BTreeMap<String, String> {
    let backends = assembly.desired.backends.iter();
    backends
        .filter_map(|(name, backend)| Some((name.clone(), backend.reload_only.clone()?)))
        .collect()
}
