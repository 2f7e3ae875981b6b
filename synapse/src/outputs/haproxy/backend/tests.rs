//! Assessing step by step, with what was found before, gives what assessing anew gives.

use std::cell::RefCell;
use std::net::IpAddr;
use std::time::Duration;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::model::source::{Child, Children, SourceView};
use crate::outputs::haproxy::plan::State as ServerState;
use crate::outputs::haproxy::render::tests::{config, service};
use crate::snapshot::Snapshot;
use crate::wanted::funnel::Previous;
use crate::wanted::guard::Clock;
use crate::wanted::intake::{Intake, Unknown};
use crate::wanted::service::{State, World as Outside};
use circles::Circles;

/// How many znodes there are to choose from: more than are worth a memo.
const NODES: u8 = 130;

/// A registration in one of several shapes: plain, with an id of its own, under a name, of a twin, of a host that is a name,
/// withdrawn, unreadable.
fn child(node: u8, shape: u8) -> Child {
    let host = match shape {
        3 => format!("10.0.0.{}", node / 2),
        4 => "app.example".to_owned(),
        _ => format!("10.0.0.{node}"),
    };
    let mut payload = json!({"host": host, "port": 80 + u16::from(shape == 5) });
    match shape {
        1 => payload["haproxy_server_options"] = json!(format!("id {}", node % 9 + 1)),
        2 => payload["name"] = json!(format!("n{}", node % 7)),
        6 => payload["available"] = json!(false),
        7 => payload = json!("?"),
        _ => {}
    }
    Child {
        data: payload.to_string().into_bytes().into(),
        czxid: i64::from(node),
        mzxid: i64::from(shape),
    }
}

fn view(children: &Arc<Children>) -> SourceView {
    SourceView {
        children: Arc::clone(children),
        confirmed: true,
        fresh: true,
        ..SourceView::default()
    }
}

fn state(service: &Arc<Service>) -> (State, Backend) {
    let intake = Intake::new(service, &Snapshot::default(), &Clock::new(), Clock::now());
    let state = State::new(Arc::clone(service), Previous::None, intake);
    (state, Backend::new(Arc::clone(service)))
}

/// What is wanted when these are registered, and every name resolves to `address`.
fn assess(state: &mut State, config: &Config, children: &Arc<Children>, address: Option<IpAddr>) {
    let outside = Outside {
        awaited: &|_| false,
        resolved: &|_| address,
        circles: &RefCell::<Circles>::default(),
    };
    let now = Duration::from_secs(1);
    let taken = state.intake.take(&|_| view(children), None, &Unknown, now);
    state.assess(config, &outside, taken);
}

fn row(id: u32) -> RunningServer {
    RunningServer {
        address: None,
        id,
        weight: 1,
        initial_weight: 1,
        given: 1,
        state: ServerState::Ready,
        agent: None,
        digest: None,
        awaits_check: false,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn step_by_step_as_anew(
        first in proptest::collection::vec(0u8..9, usize::from(NODES)),
        steps in proptest::collection::vec((proptest::collection::btree_map(0..NODES, 0u8..10, 0..4), 0u32..40, any::<bool>()), 1..12),
        no_shuffle: bool,
    ) {
        let config = config();
        let mut service = service("web");
        service.guard.mode = crate::config::guard::Mode::Off;
        if no_shuffle {
            service.haproxy.as_mut().unwrap().backend_order = crate::config::BackendOrder::NoShuffle;
        }
        let service = Arc::new(service);
        let (mut kept, mut known) = (state(&service), Arc::default());
        let node = |node: u8| format!("i_{:03}_{:010}", node.wrapping_mul(37), node);
        let children: Children = (0..NODES).zip(first).filter(|(_, shape)| *shape < 8)
            .map(|(n, shape)| (node(n), child(n, shape))).collect();
        let mut children = Arc::new(children);
        let (mut live, mut looks) = (BTreeMap::new(), 0);
        for (changes, foreign, looked) in std::iter::once((BTreeMap::new(), 0, false)).chain(steps) {
            let set = Arc::make_mut(&mut children);
            for (n, shape) in changes {
                match shape {
                    8.. => drop(set.remove(&node(n))),
                    shape => drop(set.insert(node(n), child(n, shape))),
                }
            }
            if looked {
                // Somebody has loaded a file in which some servers have other ids.
                looks += 1;
                let servers = kept.1.servers.iter().filter(|s| s.id % 5 != 0);
                let other = |s: &Identified| if s.id % 7 == 1 { s.id + foreign } else { s.id };
                // haproxy refuses a file in which two servers of a backend have one id.
                let mut there = BTreeSet::new();
                let rows = servers.map(|s| (s.server.name.clone(), other(s)));
                live = rows.filter(|(_, id)| there.insert(*id)).map(|(name, id)| (name, row(id))).collect();
            }
            let take = |(state, backend): &mut (State, Backend), known: &mut _, looks| {
                let world = World {
                    named: &[],
                    operator_maint: &BTreeMap::new(),
                    refused_options: &BTreeMap::new(),
                    live: &|_| Some(&live),
                    looks,
                    host: "h",
                };
                assess(state, &config, &children, Some([10, 1, 1, 1].into()));
                backend.take(state.servers(), &config, &world, known);
            };
            let (mut anew, mut known_anew) = (state(&service), Arc::clone(&known));
            take(&mut kept, &mut known, looks);
            take(&mut anew, &mut known_anew, looks);
            prop_assert_eq!(&kept.0.desired, &anew.0.desired);
            prop_assert_eq!(&kept.0.names, &anew.0.names);
            let (_, anew) = anew;
            let (_, kept) = &kept;
            prop_assert_eq!(&known, &known_anew);
            prop_assert_eq!(&kept.servers, &anew.servers);
            for server in &kept.servers {
                let has = live.get(&server.server.name);
                prop_assert!(has.is_none_or(|row| row.id == server.id), "{:?}, and has {:?}", server, has);
            }
            // A note stays for as long as its server; who comes to it anew sees the id as known.
            let ids: BTreeSet<u32> = kept.servers.iter().map(|s| s.id).collect();
            prop_assert_eq!(ids.len(), kept.servers.len());
            prop_assert!(kept.id_notes.iter().all(|note| known.contains_key(&note.znode)));
        }
    }
}

/// What lines name stays, with what is known of it, until it is there again.
#[test]
fn a_named_server_keeps_its_place() {
    let mut config = config();
    let mut service = service("web");
    service.guard.mode = crate::config::guard::Mode::Off;
    service.haproxy.as_mut().unwrap().backend = [
        "use-server 10.0.0.2:80 if TRUE",
        "use-server n3_10.0.0.9:8080 if TRUE",
        "use-server spare if TRUE",
        "server spare 10.0.0.8:1",
        "http-request set-header X some-way-of-naming(10.0.0.1:80)",
    ]
    .map(str::to_owned)
    .to_vec();
    config.services = vec![service.clone()];
    let named = Named::of(&config);
    let service = Arc::new(service);
    let ((mut state, mut backend), mut known) = (state(&service), Arc::default());
    let mut take = |nodes: &[u8]| {
        let children: Children = nodes
            .iter()
            .map(|n| (format!("i_{n:010}"), child(*n, 1)))
            .collect();
        let children = Arc::new(children);
        let world = World {
            operator_maint: &BTreeMap::new(),
            refused_options: &BTreeMap::new(),
            live: &|_| None,
            looks: 0,
            named: &[&named],
            host: "h",
        };
        assess(&mut state, &config, &children, None);
        backend.take(state.servers(), &config, &world, &mut known);
        let mut found: Vec<(String, u32, bool)> = backend
            .servers
            .iter()
            .map(|s| (s.server.name.clone(), s.id, s.server.is_parked()))
            .collect();
        found.sort();
        found
    };
    let parked = |found: &[(String, u32, bool)]| -> Vec<String> {
        found
            .iter()
            .filter(|(.., parked)| *parked)
            .map(|(name, ..)| name.clone())
            .collect()
    };
    let (never, second) = ("n3_10.0.0.9:8080", "10.0.0.2:80");
    // Not one that nobody has named so far.
    let first = take(&[3]);
    assert_eq!(parked(&first), [second, never]);
    let all = take(&[1, 2, 3]);
    assert_eq!((all.len(), parked(&all)), (4, vec![never.to_owned()]));
    // Whoever has been there and may be named stays as well.
    let gone = take(&[3]);
    assert_eq!(parked(&gone), ["10.0.0.1:80", second, never]);
    let ids = |found: &[(String, u32, bool)]| -> Vec<(String, u32)> {
        found
            .iter()
            .map(|(name, id, _)| (name.clone(), *id))
            .collect()
    };
    assert_eq!(ids(&gone), ids(&all), "they keep their ids");
    assert_eq!(take(&[1, 2, 3]), all);
}
