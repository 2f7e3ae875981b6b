//! Plans: cases, then laws over random files. In one file because both share its makers of files and states.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::outputs::haproxy::cfg::effective::Scope;
use crate::outputs::haproxy::cfg::{Model, Ours};

fn desired(text: &str) -> Desired {
    let model = Model::parse(text, Ours::All);
    let generation = Generation::of(model.sections.iter().map(AsRef::as_ref), &BTreeMap::new());
    Desired {
        generation,
        backends: Scope::default().read(&model),
        admits_checked: BTreeSet::new(),
        weights: true,
    }
}

fn file(servers: &[&str]) -> Desired {
    desired(&format!(
        "backend b\n{}",
        servers
            .iter()
            .map(|s| format!(" server {s}\n"))
            .collect::<String>()
    ))
}

fn set(running: &mut Running, server: &str, weight: u16, state: State) {
    let server = running
        .backends
        .get_mut("b")
        .unwrap()
        .get_mut(server)
        .unwrap();
    (server.weight, server.state) = (weight, state);
}

fn ops(plan: &Plan) -> Vec<String> {
    match plan {
        Plan::Unchanged => Vec::new(),
        Plan::Runtime(ops) | Plan::Reload { first: ops, .. } => {
            ops.iter().map(ToString::to_string).collect()
        }
    }
}

fn reason(plan: &Plan) -> Option<&ReloadReason> {
    match plan {
        Plan::Reload { reason, .. } => Some(reason),
        _ => None,
    }
}

fn trash(running: &Running, desired: &Desired) -> Vec<Op> {
    garbage(running, desired, desired.backends.keys())
}

const S1: &str = "s1 127.0.0.1:1 id 1";
const S2: &str = "s2 127.0.0.1:2 id 2";

#[test]
fn removal_and_return_need_no_reload() {
    let (both, one) = (file(&[S1, S2]), file(&[S1]));
    let mut running = Running::loaded(&both);
    let removal = plan(&running, &one);
    assert_eq!(ops(&removal), ["retire b/s2"]);
    assert!(
        matches!(&removal, Plan::Runtime(ops) if { ops.iter().for_each(|op| running.apply(op)); true })
    );
    assert_eq!(plan(&running, &one), Plan::Unchanged);
    assert_eq!(ops(&plan(&running, &both)), ["return b/s2 weight 1"]);
}

#[test]
fn removal_that_empties_a_backend_comes_after_the_servers_it_gains() {
    let running = Running::loaded(&file(&[S1]));
    let replaced = plan(&running, &file(&[S2]));
    let expected = ["add b/s2 127.0.0.1:2 id 2 weight 1", "retire b/s1"];
    assert_eq!(ops(&replaced), expected);
    assert_eq!(reason(&replaced), None);
    // Until the addition can go out, the removal waits for it; any other does not.
    let Plan::Runtime(all) = replaced else {
        panic!()
    };
    assert_eq!(before_adds(&running, &all), []);
    let running = Running::loaded(&file(&[S1, S2]));
    let Plan::Runtime(all) = plan(&running, &file(&[S2, "s3 127.0.0.1:3 id 3"])) else {
        panic!()
    };
    let first = before_adds(&running, &all);
    assert_eq!(ops(&Plan::Runtime(first)), ["retire b/s1"]);
    assert_eq!(
        ops(&Plan::Runtime(all)),
        ["add b/s3 127.0.0.1:3 id 3 weight 1", "retire b/s1"]
    );
    // Nor does it go first where fewer would serve meanwhile than are on their way.
    let three = file(&[S2, "s3 127.0.0.1:3 id 3", "s4 127.0.0.1:4 id 4"]);
    let Plan::Runtime(all) = plan(&running, &three) else {
        panic!()
    };
    assert_eq!(before_adds(&running, &all), []);
    // Nothing is gained: the registry says empty.
    assert_eq!(
        ops(&plan(&running, &file(&[]))),
        ["retire b/s1", "retire b/s2"]
    );
    // A server that stays but is in an operator's maint serves nobody.
    let mut running = Running::loaded(&file(&[S1, S2]));
    set(&mut running, "s2", 1, State::OperatorMaint);
    let Plan::Runtime(all) = plan(&running, &file(&[S2, "s3 127.0.0.1:3 id 3"])) else {
        panic!()
    };
    assert_eq!(before_adds(&running, &all), []);
    // A returning server comes before the one that leaves.
    set(&mut running, "s2", 0, State::Retired);
    assert_eq!(
        ops(&plan(&running, &file(&[S2]))),
        ["return b/s2 weight 1", "retire b/s1"]
    );
}

#[test]
fn a_removal_waits_for_the_reload_that_brings_the_servers_its_backend_gains() {
    let hashed = |server: &str| desired(&format!("backend b\n balance source\n server {server}\n"));
    let running = Running::loaded(&hashed(S1));
    let replaced = plan(&running, &hashed(S2));
    assert_eq!(ops(&replaced), [""; 0]);
    assert_eq!(
        reason(&replaced).unwrap().to_string(),
        "server `b/s2` added: `balance source` takes servers at runtime only with `hash-type consistent`"
    );
}

/// What is in the section or its defaults, the server's options, and a part of the reason; "" = it is added.
#[test]
fn where_servers_can_be_added() {
    for (defaults, section, options, why) in [
        ("", "", "", ""),
        ("", "balance leastconn", "check inter 1s backup", ""),
        ("balance source", "balance roundrobin", "", ""),
        ("balance uri", "hash-type consistent sdbm", "", ""),
        ("hash-type consistent", "balance hdr(host)", "", ""),
        ("", "balance random(2)", "", ""),
        ("", "balance first", "cookie x", ""),
        ("balance source", "", "", "balance source"),
        (
            "hash-type consistent",
            "balance uri\n hash-type map-based",
            "",
            "balance uri",
        ),
        ("", "balance static-rr", "", "static-rr"),
        ("", "balance rdp-cookie(x)", "", "rdp-cookie"),
        ("", "cookie S insert", "cookie x", ""),
        ("cookie S insert", "", "cookie x", ""),
        ("default-server resolvers r", "", "", "`resolvers`"),
        ("", "", "init-addr none", "`init-addr`"),
        ("", "", "tcp-ut 5s", "`tcp-ut`"),
        ("", "", "mystery 7", "`mystery`"),
        ("", "", "agent-send a;b", "`a;b` cannot be sent"),
    ] {
        let text = |server: &str| {
            desired(&format!(
                "defaults\n {defaults}\nbackend b\n {section}\n{server}"
            ))
        };
        let wanted = text(&format!(" server {S1} {options}\n"));
        let plan = plan(&Running::loaded(&text("")), &wanted);
        match reason(&plan) {
            None => assert_eq!((ops(&plan).len(), why), (1, ""), "{plan:?}"),
            Some(reason) => {
                let words = reason.to_string();
                assert!(!why.is_empty() && words.contains(why), "{words}");
            }
        }
    }
}

#[test]
fn static_algorithms_take_two_weights() {
    for (balance, is_static) in [
        ("static-rr", true),
        ("source", true),
        ("uri whole", true),
        ("hdr(Host)", true),
        ("rdp-cookie", true),
        ("roundrobin", false),
        ("source\n hash-type consistent", false),
    ] {
        let with = |weight: u16| {
            let line = format!("server s1 127.0.0.1:1 id 1 weight {weight}");
            desired(&format!("backend b\n balance {balance}\n {line}\n"))
        };
        let mut running = Running::loaded(&with(7));
        let change = plan(&running, &with(5));
        if is_static {
            let why = reason(&change).unwrap().to_string();
            assert!(
                why.starts_with("weight of server `b/s1`: `balance "),
                "{why}"
            );
            assert_eq!(ops(&change), [""; 0]);
        } else {
            assert_eq!(ops(&change), ["weight b/s1 5"]);
            continue;
        }
        // 0 and the one it was loaded with are taken.
        assert_eq!(ops(&plan(&running, &with(0))), ["weight b/s1 0"]);
        set(&mut running, "s1", 0, State::Retired);
        assert_eq!(ops(&plan(&running, &with(7))), ["return b/s1 weight 7"]);
        let back = plan(&running, &with(5));
        assert!(
            reason(&back)
                .unwrap()
                .to_string()
                .contains("return of server")
        );
        assert_eq!(ops(&back), [""; 0]);
    }
}

#[test]
fn a_socket_that_changes_nothing_leaves_everything_to_reloads() {
    let mut running = Running::loaded(&file(&[S1, S2]));
    running.refuses.changes = Some("level".into());
    let others = [
        file(&[S1]),
        file(&[]),
        file(&[S1, "s2 127.0.0.1:2 id 2 weight 9"]),
        file(&[S1, "s2 127.0.0.1:9 id 2"]),
        file(&[S1, S2, "s3 127.0.0.1:3 id 3"]),
    ];
    for wanted in others {
        let Plan::Reload {
            reason,
            first,
            meanwhile,
        } = plan(&running, &wanted)
        else {
            panic!("no reload for {wanted:?}");
        };
        assert!(reason.to_string().ends_with(": level"), "{reason}");
        assert_eq!((first, meanwhile), (Vec::new(), Vec::new()));
    }
    assert_eq!(plan(&running, &file(&[S1, S2])), Plan::Unchanged);
    set(&mut running, "s2", 0, State::Retired);
    assert_eq!(trash(&running, &file(&[S1])), []);
}

#[test]
fn a_change_that_was_left_half_way_is_made_by_a_reload() {
    let wanted = file(&[S1, S2]);
    let mut running = Running::loaded(&wanted);
    let why = BTreeMap::from([("s2".to_owned(), (Kind::Return, "no checks".to_owned()))]);
    running.refuses.servers.insert("b".into(), why);
    let words = reason(&plan(&running, &wanted)).unwrap().to_string();
    assert_eq!(words, "return of server `b/s2`: no checks");
    assert_eq!(ops(&plan(&running, &file(&[S1]))), ["retire b/s2"]);
}

fn refuse(running: &mut Running, kind: Kind) {
    let learned = running.refuses.backends.entry("b".into()).or_default();
    learned.insert(kind, "no".into());
}

#[test]
fn a_worker_that_refuses_servers_is_reloaded() {
    let (none, one) = (file(&[]), file(&[S1]));
    let mut running = Running::loaded(&none);
    refuse(&mut running, Kind::Add);
    assert!(
        reason(&plan(&running, &one))
            .unwrap()
            .to_string()
            .ends_with("added: no")
    );
    running.refuses = Refuses {
        all: Some("too old".into()),
        ..Refuses::default()
    };
    assert!(
        reason(&plan(&running, &one))
            .unwrap()
            .to_string()
            .ends_with("too old")
    );
    // Without an id, or with one that is taken, the file decides.
    let running = Running::loaded(&file(&[S1]));
    let nameless = plan(&running, &file(&[S1, "s2 127.0.0.1:2"]));
    assert!(reason(&nameless).unwrap().to_string().contains("no `id`"));
    let taken = plan(&running, &file(&["s2 127.0.0.1:2 id 1"]));
    assert!(
        reason(&taken)
            .unwrap()
            .to_string()
            .contains("that of server `s1`")
    );
}

#[test]
fn a_disabled_server_is_added_in_maint() {
    let wanted = file(&["s1 127.0.0.1:1 id 1 disabled weight 3"]);
    let mut running = Running::loaded(&file(&[]));
    let plan = plan(&running, &wanted);
    assert_eq!(ops(&plan), ["add b/s1 127.0.0.1:1 id 1 weight 3 in maint"]);
    assert!(
        matches!(plan, Plan::Runtime(ops) if { ops.iter().for_each(|op| running.apply(op)); true })
    );
    assert_eq!(running, Running::loaded(&wanted));
}

#[test]
fn what_nobody_wants_is_deleted() {
    let mut running = Running::loaded(&file(&[S1, S2]));
    set(&mut running, "s2", 0, State::Retired);
    assert_eq!(trash(&running, &file(&[S1, S2])), []);
    let ops = trash(&running, &file(&[S1]));
    assert_eq!(ops[0].to_string(), "delete b/s2");
    running.apply(&ops[0]);
    assert_eq!(running, Running::loaded(&file(&[S1])));
    // In maint by an operator's hand, or in a backend that is not ours.
    set(&mut running, "s1", 1, State::OperatorMaint);
    assert_eq!(trash(&running, &file(&[])), []);
    set(&mut running, "s1", 0, State::Retired);
    assert_eq!(trash(&running, &desired("backend other\n")), []);
    // Where it could not be added again.
    let wanted = desired("backend b\n balance source\n");
    assert_eq!(trash(&running, &wanted), []);
    assert_eq!(trash(&running, &desired("backend b\n")).len(), 1);
    refuse(&mut running, Kind::Add);
    assert_eq!(trash(&running, &desired("backend b\n")), []);
}

#[test]
fn operators_states_are_never_undone() {
    let both = file(&[S1, S2]);
    let mut running = Running::loaded(&both);
    set(&mut running, "s1", 1, State::OperatorMaint);
    set(&mut running, "s2", 1, State::OperatorDrain);
    assert_eq!(plan(&running, &both), Plan::Unchanged);
    // Gone from the registry: drain still serves sticky clients, maint nobody.
    assert_eq!(ops(&plan(&running, &file(&[]))), ["retire b/s2"]);
    // Whatever its weight, which is right when the operator makes it ready.
    let weightless = file(&[
        "s1 127.0.0.1:1 id 1 weight 0",
        "s2 127.0.0.1:2 id 2 weight 0",
    ]);
    assert_eq!(
        ops(&plan(&running, &weightless)),
        ["weight b/s1 0", "weight b/s2 0"]
    );
    set(&mut running, "s1", 0, State::OperatorMaint);
    assert_eq!(ops(&plan(&running, &both)), ["weight b/s1 1"]);
    assert_eq!(trash(&running, &file(&[S2])), []);
}

#[test]
fn one_taken_out_whose_agent_is_listened_to_is_taken_out_again() {
    let agent = "s2 127.0.0.1:2 id 2 agent-check agent-port 9";
    let mut running = Running::loaded(&file(&[S1, agent]));
    let silenced = |running: &Running, wanted: &Desired| match plan(running, wanted) {
        Plan::Runtime(ops) => ops
            .into_iter()
            .map(|op| (op.server, op.change))
            .collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    let out = [("s2".to_owned(), Change::Retire { agent: true })];
    let without = file(&[S1]);
    assert_eq!(silenced(&running, &without), out);
    // As after a return that was cut off.
    set(&mut running, "s2", 0, State::Retired);
    assert_eq!(silenced(&running, &without), out);
    let op = Op {
        backend: "b".to_owned(),
        server: "s2".to_owned(),
        change: out[0].1.clone(),
    };
    running.apply(&op);
    assert_eq!(plan(&running, &without), Plan::Unchanged);
    // Its return says so.
    let back = silenced(&running, &file(&[S1, agent]));
    let checks = Checks {
        health: false,
        agent: true,
    };
    let back_of = |weight| [("s2".to_owned(), Change::Return(Return { weight, checks }))];
    assert_eq!(back, back_of(None));
}

#[test]
fn a_server_known_to_be_disabled_returns_to_its_operator() {
    let mut running = Running::loaded(&file(&[S1, S2]));
    set(&mut running, "s2", 0, State::Retired);
    let back = plan(&running, &file(&[S1, "s2 127.0.0.1:2 id 2 disabled"]));
    assert_eq!(ops(&back), ["maint b/s2", "weight b/s2 1"]);
    assert!(
        matches!(back, Plan::Runtime(ops) if { ops.iter().for_each(|op| running.apply(op)); true })
    );
    assert_eq!(running.backends["b"]["s2"].state, State::OperatorMaint);
}

#[test]
fn a_server_that_only_a_line_names_is_out_of_rotation_and_comes_back() {
    let away = "s2 192.0.2.1:2 id 2 disabled";
    let (both, one) = (file(&[S1, S2]), file(&[S1, away]));
    let mut running = Running::loaded(&both);
    let leaves = plan(&running, &one);
    assert_eq!(ops(&leaves), ["retire b/s2"]);
    assert!(
        matches!(leaves, Plan::Runtime(ops) if { ops.iter().for_each(|op| running.apply(op)); true })
    );
    assert_eq!(plan(&running, &one), Plan::Unchanged);
    // It may be named by what the worker has loaded, too.
    assert_eq!(trash(&running, &one), []);
    assert_eq!(ops(&plan(&running, &both)), ["return b/s2 weight 1"]);
    // Loaded while it was away, made ready by hand, or not there.
    let mut running = Running::loaded(&one);
    assert_eq!(plan(&running, &one), Plan::Unchanged);
    assert_eq!(
        ops(&plan(&running, &both)),
        ["readdress b/s2 127.0.0.1:2", "return b/s2 weight 1"]
    );
    set(&mut running, "s2", 1, State::Ready);
    assert_eq!(ops(&plan(&running, &one)), ["retire b/s2"]);
    let running = Running::loaded(&file(&[S1]));
    assert_eq!(plan(&running, &one), Plan::Unchanged);
    // The last one waits for what takes its place, as any other.
    let running = Running::loaded(&file(&[S2]));
    let Plan::Runtime(all) = plan(&running, &file(&[away, "s3 127.0.0.1:3 id 3"])) else {
        panic!()
    };
    assert_eq!(before_adds(&running, &all), []);
    assert_eq!(
        ops(&Plan::Runtime(all)),
        ["add b/s3 127.0.0.1:3 id 3 weight 1", "retire b/s2"]
    );
}

#[test]
fn an_operators_weight_stays_where_the_registry_gives_none() {
    let mut wanted = file(&[S1, "s2 127.0.0.1:2 id 2 weight 5"]);
    wanted.weights = false;
    let mut running = Running::loaded(&wanted);
    set(&mut running, "s1", 7, State::Ready);
    set(&mut running, "s2", 0, State::Ready);
    assert_eq!(plan(&running, &wanted), Plan::Unchanged);
    // What the file changes is ours to change, once.
    let mut other = file(&[
        "s1 127.0.0.1:1 id 1 weight 3",
        "s2 127.0.0.1:2 id 2 weight 5",
    ]);
    other.weights = false;
    let Plan::Runtime(changes) = plan(&running, &other) else {
        panic!()
    };
    assert_eq!(ops(&Plan::Runtime(changes.clone())), ["weight b/s1 3"]);
    changes.iter().for_each(|op| running.apply(op));
    set(&mut running, "s1", 9, State::Ready);
    assert_eq!(plan(&running, &other), Plan::Unchanged);
    other.weights = true;
    assert_eq!(
        ops(&plan(&running, &other)),
        ["weight b/s1 3", "weight b/s2 5"]
    );
}

/// From weight 0 a server takes its share of a queue only by way of maint; not where that ends its sessions.
#[test]
fn from_weight_0_a_server_comes_in_by_way_of_maint() {
    let marked_down = "s2 127.0.0.1:2 id 2 on-marked-down shutdown-sessions";
    let wanted = file(&[S1, marked_down]);
    let mut running = Running::loaded(&wanted);
    let queue = |running: &Running| match plan(running, &wanted) {
        Plan::Runtime(ops) => ops
            .iter()
            .map(|op| match op.change {
                Change::Weight { queue, .. } => queue,
                _ => panic!("{op}"),
            })
            .collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    set(&mut running, "s1", 0, State::Ready);
    set(&mut running, "s2", 0, State::Ready);
    assert_eq!(queue(&running), [true, false]);
    set(&mut running, "s1", 2, State::Ready);
    set(&mut running, "s2", 0, State::OperatorDrain);
    assert_eq!(queue(&running), [false, false]);
}

#[test]
fn weights_are_ours_unless_an_agent_sets_them() {
    let mut running = Running::loaded(&file(&[S1, "s2 127.0.0.1:2 id 2 agent-check agent-port 9"]));
    set(&mut running, "s1", 7, State::Ready);
    set(&mut running, "s2", 7, State::Ready);
    let same = file(&[S1, "s2 127.0.0.1:2 id 2 agent-check agent-port 9"]);
    assert_eq!(ops(&plan(&running, &same)), ["weight b/s1 1"]);
    set(&mut running, "s2", 0, State::Retired);
    assert_eq!(
        ops(&plan(&running, &same)),
        ["return b/s2", "weight b/s1 1"]
    );
}

#[test]
fn changed_servers_reload_and_say_why() {
    let running = Running::loaded(&file(&[S1]));
    for (line, what) in [
        ("s1 127.0.0.1:1 id 5", Difference::Id),
        ("s1 127.0.0.1:1 id 1 check", Difference::Options),
    ] {
        let plan = plan(&running, &file(&[line]));
        let expected = ReloadReason::ServerChanged {
            backend: "b".into(),
            server: "s1".into(),
            what,
        };
        assert_eq!(reason(&plan), Some(&expected));
    }
    // The same said otherwise is the same.
    assert_eq!(
        plan(
            &running,
            &file(&["s1 127.0.0.1:1 id 1 weight 1 inter 2s no-check cookie x"])
        ),
        Plan::Unchanged
    );
    let mut unknown = running;
    unknown
        .backends
        .get_mut("b")
        .unwrap()
        .get_mut("s1")
        .unwrap()
        .digest = None;
    assert!(
        reason(&plan(&unknown, &file(&[S1])))
            .unwrap()
            .to_string()
            .contains("unknown options")
    );
}

#[test]
fn another_address_of_a_name_is_set_around_its_connections() {
    let (here, there) = ("s1 127.0.0.1:1 id 1", "s1 127.0.0.9:7 id 1");
    let mut running = Running::loaded(&file(&[here, S2]));
    let moved = file(&[there, S2]);
    let around = |running: &Running, wanted: &Desired| match plan(running, wanted) {
        Plan::Runtime(ops) => match ops[0].change {
            Change::Readdress {
                address, around, ..
            } => {
                assert_eq!(address, "127.0.0.9:7".parse().unwrap());
                (ops.len(), around.map(|r| r.weight))
            }
            _ => panic!("{ops:?}"),
        },
        other => panic!("{other:?}"),
    };
    assert_eq!(around(&running, &moved), (1, Some(Some(1))));
    // Alone it goes on taking requests; in an operator's hands it stays there.
    let alone = Running::loaded(&file(&[here]));
    assert_eq!(around(&alone, &file(&[there])), (1, None));
    for state in [State::OperatorMaint, State::OperatorDrain] {
        set(&mut running, "s1", 1, state);
        assert_eq!(around(&running, &moved), (1, None));
    }
    set(&mut running, "s1", 0, State::Retired);
    assert_eq!(around(&running, &moved), (2, None), "and returns");
}

#[test]
fn checks_at_the_servers_own_address_go_with_it() {
    let follows =
        |here: &str, there: &str| match plan(&Running::loaded(&file(&[here])), &file(&[there])) {
            Plan::Runtime(ops) => match ops[0].change {
                Change::Readdress { follows, .. } => Ok((follows.health, follows.agent)),
                _ => panic!("{ops:?}"),
            },
            Plan::Reload { reason, .. } => Err(reason.to_string()),
            Plan::Unchanged => panic!("{here} {there}"),
        };
    let line = |address: &str, options: &str| format!("s1 {address}:1 id 1 {options}");
    for (here, there, expected) in [
        (
            "check addr 127.0.0.1",
            "check addr 127.0.0.9",
            (true, false),
        ),
        (
            "check addr [127.0.0.1]",
            "check addr 127.0.0.9",
            (true, false),
        ),
        (
            "agent-check agent-port 5 agent-addr 127.0.0.1",
            "agent-check agent-port 5 agent-addr 127.0.0.9",
            (false, true),
        ),
        (
            "check addr 127.0.0.1 agent-addr 127.0.0.1",
            "check addr 127.0.0.9 agent-addr 127.0.0.9",
            (true, true),
        ),
        ("check addr 10.0.0.1", "check addr 10.0.0.1", (false, false)),
    ] {
        let (here, there) = (line("127.0.0.1", here), line("127.0.0.9", there));
        assert_eq!(follows(&here, &there), Ok(expected), "{here} → {there}");
    }
    // What the stats socket cannot change, or what was not the server's own address, is another option.
    for (here, there) in [
        ("source 127.0.0.1", "source 127.0.0.9"),
        ("check addr 127.0.0.1", "check addr 127.0.0.1"),
        ("check addr 10.0.0.1", "check addr 10.0.0.9"),
        ("check addr 127.0.0.1:5", "check addr 127.0.0.9:5"),
    ] {
        let (here, there) = (line("127.0.0.1", here), line("127.0.0.9", there));
        assert!(follows(&here, &there).is_err(), "{here} → {there}");
    }
}

#[test]
fn a_checked_server_is_admitted_by_its_first_passed_check_where_that_is_asked_for() {
    let mut wanted = file(&[S1, "s2 127.0.0.1:2 id 2 check"]);
    wanted.admits_checked.insert("b".to_owned());
    let mut running = Running::loaded(&file(&[]));
    let Plan::Runtime(adds) = plan(&running, &wanted) else {
        panic!()
    };
    let expected = [
        "add b/s1 127.0.0.1:1 id 1 weight 1",
        "add b/s2 127.0.0.1:2 id 2 weight 1 to be checked",
    ];
    assert_eq!(ops(&Plan::Runtime(adds.clone())), expected);
    adds.iter().for_each(|op| running.apply(op));
    assert_eq!(running.backends["b"]["s2"].state, State::Retired);
    assert_eq!(plan(&running, &wanted), Plan::Unchanged);
    // Nor does it stand in for one that leaves.
    running
        .backends
        .get_mut("b")
        .unwrap()
        .get_mut("s2")
        .unwrap()
        .awaits_check = false;
    assert_eq!(ops(&plan(&running, &wanted)), ["return b/s2 weight 1"]);
}

#[test]
fn a_cookie_that_counts_needs_a_reload_before_3_0() {
    let with = |servers: &str| desired(&format!("backend b\n cookie S insert\n{servers}"));
    let (one, two) = (
        " server s1 127.0.0.1:1 id 1 cookie a\n",
        " server s2 127.0.0.1:2 id 2 cookie b\n",
    );
    let (before, after) = (with(one), with(&format!("{one}{two}")));
    let mut running = Running::loaded(&before);
    assert_eq!(
        ops(&plan(&running, &after)),
        ["add b/s2 127.0.0.1:2 id 2 weight 1"]
    );
    running.refuses.cookie = Some("haproxy 2.6.12 takes it only from the file".to_owned());
    let refused = plan(&running, &after);
    assert!(reason(&refused).unwrap().to_string().contains("2.6.12"));
    // Also into an empty backend, where nobody shows what the servers will have.
    assert!(
        reason(&plan(
            &Running {
                refuses: running.refuses.clone(),
                ..Running::loaded(&with(""))
            },
            &before
        ))
        .is_some()
    );
    let mut retired = Running {
        refuses: running.refuses.clone(),
        ..Running::loaded(&after)
    };
    set(&mut retired, "s2", 0, State::Retired);
    assert_eq!(trash(&retired, &before), [], "its return needs none");
}

#[test]
fn the_users_own_server_lines_are_left_alone() {
    let text = "backend b\n server mine 127.0.0.1:9\n server s1 127.0.0.1:1 id 1\n server-template t 2 127.0.0.1:8\n";
    let names = BTreeMap::from([("b".to_owned(), BTreeSet::from(["s1".to_owned()]))]);
    let model = Model::parse(text, Ours::Names(&names));
    let generation = Generation::of(model.sections.iter().map(AsRef::as_ref), &BTreeMap::new());
    let wanted = Desired {
        generation,
        backends: Scope::default().read(&model),
        admits_checked: BTreeSet::new(),
        weights: true,
    };
    let mut running = Running::loaded(&wanted);
    let like = running.backends["b"]["s1"].clone();
    for name in ["mine", "t1", "t2", "old"] {
        running
            .backends
            .get_mut("b")
            .unwrap()
            .insert(name.to_owned(), like.clone());
    }
    running
        .backends
        .insert("stats".to_owned(), BTreeMap::from([("x".to_owned(), like)]));
    assert_eq!(ops(&plan(&running, &wanted)), ["retire b/old"]);
}

#[test]
fn another_structure_reloads_but_removals_do_not_wait() {
    let running = Running::loaded(&file(&[S1, S2]));
    let other = desired("backend b\n mode tcp\n server s1 127.0.0.1:1 id 1\n");
    let plan = plan(&running, &other);
    assert!(matches!(
        reason(&plan),
        Some(ReloadReason::Structure {
            running: Some(_),
            ..
        })
    ));
    assert_eq!(ops(&plan), ["retire b/s2"]);
}

#[test]
fn only_the_named_backends_are_compared() {
    let two = |b: &str| {
        desired(&format!(
            "backend a\n server s 127.0.0.1:1 id 1\nbackend b\n server s 127.0.0.1:1 id 1 {b}\n"
        ))
    };
    let running = Running::loaded(&two(""));
    let changed = two("weight 9");
    assert_eq!(
        plan_some(&running, &changed, [(&"a".to_owned(), &Reach::Backend)]),
        Plan::Unchanged
    );
    assert_eq!(
        ops(&plan_some(
            &running,
            &changed,
            [(&"b".to_owned(), &Reach::Backend)]
        )),
        ["weight b/s 9"]
    );
}

/// Servers of two backends: present, weight, port, options; and what is in the backends.
fn any_desired() -> impl Strategy<Value = Desired> {
    let server = (
        any::<bool>(),
        0..3u16,
        1..3u16,
        prop::sample::select(vec!["", "", "check", "backup", "agent-check agent-port 1"]),
    );
    (
        prop::collection::vec(server, 6),
        prop::sample::select(vec!["", "", "", " mode tcp\n", " balance source\n"]),
    )
        .prop_map(|(servers, section)| {
            let mut text = String::new();
            for (index, (present, weight, port, options)) in servers.into_iter().enumerate() {
                if index % 3 == 0 {
                    text += &format!("backend b{index}\n{section}");
                }
                if present {
                    text += &format!(
                        " server s{index} 127.0.0.1:{port} id {} weight {weight} {options}\n",
                        index + 1
                    );
                }
            }
            desired(&text)
        })
}

/// What haproxy may refuse, in any backend.
fn any_refused() -> impl Strategy<Value = BTreeSet<Kind>> {
    let kinds = [
        Kind::Add,
        Kind::Retire,
        Kind::Return,
        Kind::Readdress,
        Kind::Weight,
        Kind::Delete,
    ];
    proptest::sample::subsequence(kinds.to_vec(), 0..=3)
        .prop_map(|kinds| kinds.into_iter().collect())
}

fn refuse_all(running: &mut Running, refused: &BTreeSet<Kind>) {
    let learned: BTreeMap<Kind, String> = refused.iter().map(|k| (*k, "no".to_owned())).collect();
    let backends = (0..9).map(|index| (format!("b{index}"), learned.clone()));
    running.refuses.backends = backends.collect();
}

/// What takes part in balancing or would: without servers that await deletion.
fn alive(running: &Running) -> BTreeMap<String, BTreeMap<String, RunningServer>> {
    let mut backends = running.backends.clone();
    for servers in backends.values_mut() {
        servers.retain(|_, s| s.state != State::Retired);
        // A weight that was set since is as good as one from the file.
        servers.values_mut().for_each(|s| s.initial_weight = 0);
    }
    backends.retain(|_, servers| !servers.is_empty());
    backends
}

/// The servers in which the two differ.
fn reached(one: &Desired, other: &Desired) -> BTreeMap<String, Reach> {
    let all = [one, other].map(|d| d.backends.iter());
    let named = all.into_iter().flatten().map(|(backend, servers)| {
        let of =
            |d: &Desired, name: &String| Some(d.backends.get(backend)?.servers.get(name)?.clone());
        let names = servers.servers.keys();
        let names = names.filter(|name| of(one, name) != of(other, name));
        (backend, names.cloned().collect::<BTreeSet<_>>())
    });
    let mut reached: BTreeMap<String, Reach> = BTreeMap::new();
    for (backend, names) in named {
        let reach = Reach::Servers(names);
        let known = reached.entry(backend.clone());
        known.and_modify(|r| r.add(reach.clone())).or_insert(reach);
    }
    reached
}

proptest! {
    #[test]
    fn applying_the_plan_gives_what_was_desired(a in any_desired(), b in any_desired(), c in any_desired()) {
        let mut running = Running::loaded(&a);
        let mut former = &a;
        for wanted in [&b, &c, &a, &b] {
            let plan = plan(&running, wanted);
            // Where all else agrees it is enough to look at what has changed.
            let reached = reached(former, wanted);
            prop_assert_eq!(&plan_some(&running, wanted, &reached), &plan);
            former = wanted;
            match plan {
                Plan::Unchanged => {}
                Plan::Runtime(ops) => {
                    let first = before_adds(&running, &ops);
                    first.iter().for_each(|op| running.apply(op));
                    let Plan::Runtime(ops) = super::plan(&running, wanted) else {
                        prop_assert!(first.len() == ops.len(), "{:?} left nothing to do of {:?}", first, ops);
                        continue;
                    };
                    ops.iter().for_each(|op| running.apply(op));
                }
                Plan::Reload { .. } => running = Running::loaded(wanted),
            }
            let mut expected = alive(&Running::loaded(wanted));
            // An agent's weight is whatever the agent says.
            let mut found = alive(&running);
            for (backend, servers) in &mut expected {
                for (name, server) in servers.iter_mut().filter(|(n, _)| wanted.backends[backend].servers[*n].weight_is_agents()) {
                    let found = found.get_mut(backend).and_then(|b| b.get_mut(name)).unwrap();
                    for server in [server, found] {
                        (server.weight, server.given) = (0, 0);
                    }
                }
            }
            prop_assert_eq!(found, expected);
            prop_assert_eq!(super::plan(&running, wanted), Plan::Unchanged);
        }
    }

    #[test]
    fn what_is_refused_is_not_planned(a in any_desired(), b in any_desired(), refused in any_refused()) {
        let mut running = Running::loaded(&a);
        for (index, server) in running.backends.values_mut().flat_map(BTreeMap::values_mut).enumerate() {
            if index % 2 == 0 {
                (server.weight, server.state) = (0, State::Retired);
            }
        }
        let allowed = plan(&running, &b);
        refuse_all(&mut running, &refused);
        let plan = plan(&running, &b);
        let all = match &plan {
            Plan::Reload { first, meanwhile, .. } => [&first[..], &meanwhile[..]].concat(),
            Plan::Runtime(ops) => ops.clone(),
            Plan::Unchanged => Vec::new(),
        };
        for op in all {
            let kind = op.change.kind();
            prop_assert!(running.refuses.of(&op.backend, kind).is_none(), "{} is known to be refused", op);
        }
        // What is refused is not forgotten: it is the reload's.
        prop_assert_eq!(plan == Plan::Unchanged, allowed == Plan::Unchanged);
    }

    #[test]
    fn no_step_empties_a_backend_that_gains(a in any_desired(), b in any_desired(), refused in any_refused()) {
        let mut loaded = Running::loaded(&a);
        refuse_all(&mut loaded, &refused);
        let (first, all) = match plan(&loaded, &b) {
            Plan::Reload { first, meanwhile, .. } => (first.clone(), [first, meanwhile].concat()),
            Plan::Runtime(ops) => (before_adds(&loaded, &ops), ops),
            Plan::Unchanged => return Ok(()),
        };
        let serves = |servers: &BTreeMap<String, RunningServer>| servers.values().any(|s| s.state == State::Ready);
        for ops in [first, all] {
            let mut running = loaded.clone();
            for op in &ops {
                running.apply(op);
                for (name, servers) in &running.backends {
                    let had = loaded.backends.get(name).is_some_and(serves);
                    let gains = b.backends.get(name).is_some_and(|wanted| {
                        wanted.servers.values().any(|s| !s.disabled)
                    });
                    prop_assert!(!(had && gains) || serves(servers), "{} empties {}", op, name);
                }
            }
        }
    }
}
