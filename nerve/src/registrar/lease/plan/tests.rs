//! The planner's laws, on a tree in memory.

use proptest::prelude::*;

use super::*;
use crate::wanted::Reason;

const ABSENT: Stance = Stance::Absent(Reason::Unhealthy);

fn registration(port: u16, weight: u8, node_type: NodeType) -> Registration {
    Registration {
        hosts: "z:1".to_owned(),
        path: "/s".to_owned(),
        instance_id: "i".to_owned(),
        prefix: if node_type == NodeType::Ephemeral && port > 1 {
            format!("i{port}_")
        } else {
            "i_".to_owned()
        },
        node_type,
        payload: format!(r#"{{"host":"h","port":{port},"name":"i","weight":{weight}}}"#)
            .into_bytes(),
    }
}

fn node(name: &str, owner: Owner, czxid: i64, data: &[u8]) -> Node {
    Node {
        name: name.to_owned(),
        owner,
        czxid,
        version: 0,
        data: data.to_vec(),
    }
}

/// Applies one transaction as ZooKeeper would; refuses what ZooKeeper refuses.
fn apply(tree: &mut Vec<Node>, change: &Change, sequence: &mut i64) {
    let create = |tree: &mut Vec<Node>, sequence: &mut i64| {
        let Some(create) = &change.create else { return };
        let name = match create.node_type {
            NodeType::Ephemeral => create.prefix.clone(),
            NodeType::EphemeralSequential => format!("{}{sequence:010}", create.prefix),
        };
        assert!(tree.iter().all(|n| n.name != name), "NodeExists: {name}");
        tree.push(Node {
            name,
            owner: Owner::Own,
            czxid: 1000 + *sequence,
            version: 0,
            data: create.payload.clone(),
        });
        *sequence += 1;
    };
    let fixed = change
        .create
        .as_ref()
        .is_some_and(|c| c.node_type == NodeType::Ephemeral);
    if !fixed {
        create(tree, sequence);
    }
    for name in change.removed() {
        let at = tree.iter().position(|n| n.name == name).expect("NoNode");
        tree.remove(at);
    }
    if fixed {
        create(tree, sequence);
    }
}

fn one<'a>(registration: &'a Registration, stance: Stance) -> Want<'a> {
    Want {
        service: "web",
        registration,
        stance,
    }
}

fn only_change(wants: &[Want<'_>], observed: &[Node]) -> Change {
    let plan = plan(wants, observed, &BTreeSet::new());
    assert_eq!(plan.changes.len(), 1, "{plan:?}");
    plan.changes.into_iter().next().unwrap()
}

#[test]
fn a_former_node_is_swapped_in_one_transaction() {
    let web = registration(1, 1, NodeType::EphemeralSequential);
    let old = node("i_0000000003", Owner::Former, 5, &web.payload);
    for stance in [Stance::Present, Stance::Keep] {
        let change = only_change(&[one(&web, stance)], std::slice::from_ref(&old));
        assert!(change.create.is_some());
        assert_eq!(change.delete, ["i_0000000003"]);
    }
    assert!(
        plan(
            &[one(&web, Stance::Leave)],
            std::slice::from_ref(&old),
            &BTreeSet::new()
        )
        .changes
        .is_empty()
    );
}

fn withdrawn(change: &Change) -> Vec<&str> {
    assert!(
        change.create.is_none() && change.delete.is_empty(),
        "{change:?}"
    );
    change.removed().collect()
}

#[test]
fn a_removal_on_purpose_is_announced() {
    let web = registration(1, 1, NodeType::EphemeralSequential);
    for owner in [Owner::Own, Owner::Former] {
        let node = Node {
            version: 4,
            ..node("i_0000000003", owner, 5, &web.payload)
        };
        let change = only_change(&[one(&web, ABSENT)], std::slice::from_ref(&node));
        let mark = br#"{"host":"h","port":1,"name":"i","weight":1,"available":false,"reason":"unhealthy"}"#;
        let withdrawal = Withdrawal {
            name: node.name.clone(),
            version: 4,
            mark: mark.to_vec(),
        };
        assert_eq!(change.withdraw, [withdrawal]);
        assert!(change.create.is_none() && change.delete.is_empty());
        let change = only_change(&[], &[node]);
        let mark = String::from_utf8(change.withdraw[0].mark.clone()).unwrap();
        assert!(mark.contains("removed from the configuration"), "{mark}");
    }
}

#[test]
fn keep_creates_nothing_out_of_nothing() {
    let web = registration(1, 1, NodeType::EphemeralSequential);
    assert!(
        plan(&[one(&web, Stance::Keep)], &[], &BTreeSet::new())
            .changes
            .is_empty()
    );
}

#[test]
fn a_changed_payload_or_port_is_a_swap() {
    let (old, new) = (
        registration(1, 1, NodeType::EphemeralSequential),
        registration(1, 9, NodeType::EphemeralSequential),
    );
    let moved = registration(2, 1, NodeType::EphemeralSequential);
    let own = node("i_0000000003", Owner::Own, 5, &old.payload);
    for registration in [&new, &moved] {
        let change = only_change(
            &[one(registration, Stance::Present)],
            std::slice::from_ref(&own),
        );
        assert_eq!(change.create.unwrap().payload, registration.payload);
        assert_eq!(change.delete, ["i_0000000003"]);
    }
}

#[test]
fn two_services_at_one_path_keep_their_own_nodes() {
    let (a, b) = (
        registration(1, 1, NodeType::EphemeralSequential),
        registration(2, 1, NodeType::EphemeralSequential),
    );
    let tree = [
        node("i_0000000001", Owner::Own, 1, &b.payload),
        node("i_0000000002", Owner::Own, 2, &a.payload),
    ];
    let wants = |first, second| {
        [
            Want {
                service: "a",
                registration: &a,
                stance: first,
            },
            Want {
                service: "b",
                registration: &b,
                stance: second,
            },
        ]
    };
    assert!(
        plan(
            &wants(Stance::Present, Stance::Present),
            &tree,
            &BTreeSet::new()
        )
        .changes
        .is_empty()
    );
    assert_eq!(
        withdrawn(&only_change(&wants(ABSENT, Stance::Present), &tree)),
        ["i_0000000002"]
    );
}

/// Airbnb's own cookbook makes two services of one payload: what is withdrawn of the one is never the other's.
#[test]
fn services_of_one_payload_have_a_node_each_and_keep_it() {
    let registration = registration(1, 1, NodeType::EphemeralSequential);
    let at = |number: u32, owner| {
        let name = format!("i_{number:010}");
        node(&name, owner, i64::from(number), &registration.payload)
    };
    let (first, second) = (at(1, Owner::Own), at(2, Owner::Own));
    let both = [first.clone(), second.clone()];
    for (stances, tree, withdrawn_nodes, creates) in [
        ([Stance::Present; 2], &both[..1], vec![], 1),
        ([Stance::Present; 2], &both[..], vec![], 0),
        (
            [ABSENT, Stance::Present],
            &both[..],
            vec!["i_0000000002"],
            0,
        ),
        (
            [Stance::Present, ABSENT],
            &both[..],
            vec!["i_0000000002"],
            0,
        ),
        // Settled: nothing is done to the one that is left.
        ([ABSENT, Stance::Present], &both[..1], vec![], 0),
        ([Stance::Present, ABSENT], &both[1..], vec![], 0),
        ([ABSENT, Stance::Present], &[], vec![], 1),
        ([ABSENT, Stance::Keep], &both[..1], vec![], 0),
        ([ABSENT, Stance::Leave], &both[..1], vec![], 0),
        (
            [ABSENT; 2],
            &both[..],
            vec!["i_0000000001", "i_0000000002"],
            0,
        ),
    ] {
        let services = ["a", "b"].into_iter().zip(stances);
        let wants: Vec<Want<'_>> = services
            .map(|(service, stance)| Want {
                service,
                registration: &registration,
                stance,
            })
            .collect();
        let plan = plan(&wants, tree, &BTreeSet::new());
        let gone: Vec<&str> = plan.changes.iter().flat_map(Change::removed).collect();
        let created = plan.changes.iter().filter(|change| change.create.is_some());
        assert_eq!(
            (gone, created.count()),
            (withdrawn_nodes, creates),
            "{stances:?} {tree:?}"
        );
        assert!(plan.changes.iter().all(|change| change.delete.is_empty()));
    }
}

#[test]
fn surplus_and_unclaimed_own_nodes_go() {
    let web = registration(1, 1, NodeType::EphemeralSequential);
    let tree = [
        node("i_0000000001", Owner::Own, 1, &web.payload),
        node("i_0000000002", Owner::Own, 2, &web.payload),
    ];
    assert_eq!(
        only_change(&[one(&web, Stance::Present)], &tree).delete,
        ["i_0000000002"]
    );
    assert_eq!(
        withdrawn(&only_change(&[], &tree)),
        ["i_0000000001", "i_0000000002"]
    );
}

/// Of equal wants, one whose node stands has it whatever the others find; what is too many goes, and nothing is created.
#[test]
fn a_want_that_is_met_loses_its_node_to_none_that_only_leaves_it() {
    let web = registration(1, 1, NodeType::EphemeralSequential);
    for other in [Stance::Keep, Stance::Leave, ABSENT] {
        for present_first in [false, true] {
            let mut wants = vec![
                Want {
                    service: "other",
                    ..one(&web, other)
                },
                Want {
                    service: "web",
                    ..one(&web, Stance::Present)
                },
            ];
            if present_first {
                wants.reverse();
            }
            let tree = [
                node("i_0000000009", Owner::Former, 9, &web.payload),
                node("i_0000000010", Owner::Former, 10, &web.payload),
                node("i_0000000014", Owner::Own, 14, &web.payload),
            ];
            let plan = plan(&wants, &tree, &BTreeSet::new());
            let web = plan
                .changes
                .iter()
                .filter(|c| c.service.as_deref() == Some("web"));
            for change in web {
                assert!(change.create.is_none(), "{other:?}: {change:?}");
                assert!(
                    !change.removed().any(|name| name == "i_0000000014"),
                    "{change:?}"
                );
            }
        }
    }
}

#[test]
fn a_sequential_twin_is_reported_and_left_alone() {
    let web = registration(1, 1, NodeType::EphemeralSequential);
    let twin = node("i_0000000003", Owner::Foreign(0xbeef), 5, &web.payload);
    let plan = plan(&[one(&web, Stance::Present)], &[twin], &BTreeSet::new());
    assert!(plan.changes[0].delete.is_empty());
    assert_eq!(
        plan.twins,
        [Twin {
            node: "i_0000000003".to_owned(),
            owner: 0xbeef,
            advertises: vec!["web".to_owned()],
        }]
    );
}

#[test]
fn a_fixed_name_is_taken_back_once_and_only_from_our_address() {
    let web = registration(1, 1, NodeType::Ephemeral);
    let theirs = node("i_", Owner::Foreign(7), 5, &web.payload);
    let change = only_change(&[one(&web, Stance::Present)], std::slice::from_ref(&theirs));
    assert_eq!(
        (change.delete, change.displaces),
        (vec!["i_".to_owned()], Some(7))
    );

    let again = plan(
        &[one(&web, Stance::Present)],
        &[theirs],
        &BTreeSet::from([7]),
    );
    assert!(again.changes.is_empty());
    assert!(
        again.standings[0]
            .conflict
            .as_ref()
            .unwrap()
            .contains("two nerves")
    );

    let elsewhere = node("i_", Owner::Foreign(8), 5, br#"{"host":"other","port":1}"#);
    let refused = plan(
        &[one(&web, Stance::Present)],
        &[elsewhere],
        &BTreeSet::new(),
    );
    assert!(refused.changes.is_empty());
    assert!(
        refused.standings[0]
            .conflict
            .as_ref()
            .unwrap()
            .contains("another address")
    );
}

fn any_stance() -> impl Strategy<Value = Stance> {
    prop_oneof![
        Just(Stance::Present),
        Just(Stance::Keep),
        Just(Stance::Leave),
        Just(ABSENT)
    ]
}

proptest! {
    #[test]
    fn an_applied_plan_keeps_the_laws(
        stances in proptest::collection::vec((any_stance(), 1u8..3), 0..4),
        nodes in proptest::collection::vec((0u8..3, 1u16..5, 1u8..3), 0..7),
        fixed: bool,
    ) {
        let node_type = if fixed { NodeType::Ephemeral } else { NodeType::EphemeralSequential };
        let registrations: Vec<_> = stances.iter().zip(1u16..).map(|((_, w), p)| registration(p, *w, node_type)).collect();
        let wants: Vec<Want<'_>> = registrations.iter().zip(&stances)
            .map(|(registration, (stance, _))| Want { service: "s", registration, stance: *stance }).collect();
        let mut tree: Vec<Node> = Vec::new();
        for (i, (owner, port, weight)) in nodes.iter().enumerate() {
            let owner = [Owner::Own, Owner::Former, Owner::Foreign(9)][usize::from(*owner)];
            let registration = registration(*port, *weight, node_type);
            let name = if fixed { registration.prefix.clone() } else { format!("i_{i:010}") };
            if tree.iter().all(|n| n.name != name) {
                tree.push(node(&name, owner, i as i64, &registration.payload));
            }
        }
        let before = tree.clone();
        let mut displaced = BTreeSet::new();
        let mut sequence = 100;
        let first = plan(&wants, &tree, &displaced);
        for change in &first.changes {
            let serving = tree.len();
            apply(&mut tree, change, &mut sequence);
            if change.create.is_some() && change.delete.len() <= 1 {
                prop_assert!(tree.len() >= serving);
            }
            prop_assert!(change.withdraw.is_empty() || change.create.is_none(), "a swap is announced");
            displaced.extend(change.displaces);
        }
        if !fixed {
            for foreign in before.iter().filter(|n| matches!(n.owner, Owner::Foreign(_))) {
                prop_assert!(tree.contains(foreign), "foreign node touched");
            }
        }
        let second = plan(&wants, &tree, &displaced);
        prop_assert!(second.changes.is_empty(), "not settled: {second:?}");
        for (want, standing) in wants.iter().zip(&second.standings) {
            match want.stance {
                Stance::Present => prop_assert!(standing.nodes.len() == 1 || standing.conflict.is_some()),
                Stance::Keep => prop_assert!(standing.nodes.len() <= 1 || standing.conflict.is_some()),
                Stance::Absent(_) => prop_assert!(standing.nodes.is_empty()),
                Stance::Leave => {}
            }
        }
        let claimed: usize = second.standings.iter().map(|s| s.nodes.len()).sum();
        let ours = tree.iter().filter(|n| !matches!(n.owner, Owner::Foreign(_))).count();
        prop_assert_eq!(claimed, ours, "an own node nobody claims");
    }
}
