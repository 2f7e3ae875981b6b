//! The reconciler's rules one by one, on the tree of the simulation without its faults.

use std::sync::{Arc, Mutex};

use smartstack_common::zk::Trouble;

use super::simulation::{Fake, Tree};
use super::*;
use crate::boards::{LeftOver, Observed};
use crate::config::NodeType;
use crate::health::Verdict;
use crate::registrar::lease::job::perform;
use crate::registrar::lease::registry::Failure;
use crate::wanted::{Intent, PlaceKey, Registration};

pub(super) const PATH: &str = "/s";

/// Of every session.
pub(super) const TIMEOUT: Duration = Duration::from_secs(10);

pub(super) fn manner(write_rate: u32) -> Manner {
    Manner {
        jitter: Duration::ZERO,
        write_rate,
        write_rate_mode: RateMode::On,
    }
}

pub(super) fn failure(trouble: Trouble) -> Failure {
    Failure {
        step: "do",
        path: PATH.to_owned(),
        reason: format!("{trouble:?}"),
        trouble,
    }
}

/// The wish of a service: up, at `/s` (3: at `/other`). Its number is its port; 4 registers what 1 does.
pub(super) fn wish(number: u8, node_type: NodeType, weight: u8, now: Instant) -> Wanted {
    let path = if number == 3 { "/other" } else { PATH };
    let port = if number == 4 { 1 } else { number };
    let registration = Registration {
        hosts: "z:1".to_owned(),
        path: path.to_owned(),
        instance_id: "i".to_owned(),
        prefix: "i_".to_owned(),
        node_type,
        payload: format!(r#"{{"host":"h","port":{port},"name":"i","weight":{weight}}}"#)
            .into_bytes(),
    };
    Wanted {
        service: format!("s{number}"),
        registration,
        intent: Intent::Follow,
        verdict: Verdict::Up,
        hold: None,
        as_of: now,
        window: Duration::from_secs(3600),
    }
}

/// A nerve of services at paths of their own, and the tree.
struct Rig {
    fake: Fake,
    reconciler: Reconciler,
    wants: Wants,
    now: Instant,
}

impl Rig {
    fn new(services: u8, manner: Manner) -> Self {
        let now = Instant::now();
        let mut tree = Tree::default();
        tree.sessions.extend([1, 2, 3]);
        tree.parents.extend((0..services).map(|i| format!("/s{i}")));
        let at = |i: u8| {
            let mut wanted = wish(i, NodeType::EphemeralSequential, 1, now);
            wanted.registration.path = format!("/s{i}");
            (wanted.key(), wanted)
        };
        Self {
            fake: Fake {
                tree: Arc::new(Mutex::new(tree)),
                session: 1,
                rng: Arc::new(Mutex::new(fastrand::Rng::with_seed(1))),
            },
            reconciler: Reconciler::new("z:1", manner, fastrand::Rng::with_seed(1), now),
            wants: (0..services).map(at).collect(),
            now,
        }
    }

    fn connect(&mut self, session: i64) {
        self.fake.session = session;
        self.reconciler
            .connected(session, TIMEOUT, &BTreeSet::from([1, 2]), self.now);
    }

    /// Runs what is due now, and again, until it is everything.
    async fn run(&mut self) {
        self.reconciler.tick(self.now, Duration::ZERO);
        for _ in 0..4 {
            for job in self.reconciler.jobs(&self.wants, self.now) {
                let done = perform(self.fake.clone(), job).await;
                self.reconciler.finished(done, &self.wants, self.now);
            }
        }
    }

    fn nodes(&self) -> Vec<Found> {
        self.fake.tree.lock().unwrap().nodes.clone()
    }

    fn of_session(&self, session: i64) -> usize {
        self.nodes().iter().filter(|n| n.owner == session).count()
    }

    fn transactions(&self) -> u32 {
        self.fake.tree.lock().unwrap().transactions
    }

    fn set_all(&mut self, verdict: Verdict) {
        for wanted in self.wants.values_mut() {
            wanted.verdict = verdict;
            wanted.as_of = self.now;
        }
    }
}

/// The process stands still, or the whole machine sleeps, which a clock that stops meanwhile does not tell.
#[tokio::test]
async fn hands_off_before_the_first_result_and_after_a_stop() {
    let hours = Duration::from_secs(7200);
    for (passed, slept) in [(hours, Duration::ZERO), (Duration::from_millis(1), hours)] {
        hands_off_after(passed, slept).await;
    }
}

async fn hands_off_after(passed: Duration, slept: Duration) {
    let mut rig = Rig::new(1, manner(50));
    rig.set_all(Verdict::Unknown);
    rig.connect(1);
    rig.run().await;
    assert!(rig.nodes().is_empty());
    rig.set_all(Verdict::Up);
    rig.run().await;
    assert_eq!(rig.nodes().len(), 1);
    // Its session expires.
    rig.fake.tree.lock().unwrap().nodes.clear();
    rig.now += passed;
    rig.reconciler.tick(rig.now, slept);
    rig.reconciler.disconnected(rig.now);
    rig.connect(2);
    rig.run().await;
    assert!(rig.nodes().is_empty(), "registered on a stale result");
    let wake = rig.reconciler.wake_at(&rig.wants, rig.now);
    assert!(
        wake <= rig.now + AWAITING,
        "a fresh result is not waited for"
    );
    rig.set_all(Verdict::Up);
    rig.run().await;
    assert_eq!(rig.nodes().len(), 1);
    // No fresh result for longer than another window: withdrawn.
    for _ in 0..3 {
        rig.now += Duration::from_secs(3700);
        rig.run().await;
    }
    assert!(rig.nodes().is_empty());
}

/// The client does not tell of a session that it was given instead of the one that it asked for.
#[tokio::test]
async fn the_owner_of_what_was_created_is_the_session_in_force() {
    let mut rig = Rig::new(3, manner(50));
    rig.connect(1);
    rig.run().await;
    assert_eq!(rig.of_session(1), 3);
    rig.fake.session = 3;
    // Nothing was created yet: nothing can be known.
    rig.run().await;
    assert_eq!((rig.of_session(1), rig.transactions()), (3, 1));
    // One path is touched, by whomever: what is created there tells of all.
    rig.now += Duration::from_secs(1);
    rig.fake.tree.lock().unwrap().nodes.remove(0);
    rig.reconciler.touched("/s0", rig.now);
    rig.run().await;
    assert_eq!((rig.of_session(1), rig.of_session(3)), (0, 3));
    let before = rig.transactions();
    rig.now += Duration::from_secs(300);
    rig.reconciler.tick(rig.now, Duration::ZERO);
    rig.set_all(Verdict::Up);
    rig.run().await;
    assert_eq!(rig.transactions(), before, "settled");
    rig.set_all(Verdict::Down);
    rig.run().await;
    assert!(rig.nodes().is_empty() && rig.reconciler.is_withdrawn());
}

#[tokio::test]
async fn registrations_are_limited_and_removals_are_not() {
    let mut rig = Rig::new(20, manner(5));
    rig.connect(1);
    rig.run().await;
    assert_eq!(rig.nodes().len(), 5, "at once");
    assert_eq!(rig.reconciler.take_delayed(), 15);
    let wake = rig.reconciler.wake_at(&rig.wants, rig.now);
    assert!(wake > rig.now && wake <= rig.now + Duration::from_millis(250));
    rig.now = wake;
    rig.run().await;
    assert_eq!(rig.nodes().len(), 6);
    assert_eq!(rig.reconciler.take_delayed(), 0, "each counted once");
    rig.set_all(Verdict::Down);
    rig.run().await;
    assert!(rig.nodes().is_empty(), "removals wait for nothing");
}

/// The predecessor's nodes go with its session: none of them may wait for the rate.
#[tokio::test]
async fn a_successor_swaps_everything_at_once() {
    let mut rig = Rig::new(20, manner(50));
    rig.connect(1);
    rig.run().await;
    let mut manner = manner(1);
    manner.jitter = Duration::from_millis(500);
    rig.reconciler = Reconciler::new("z:1", manner, fastrand::Rng::with_seed(1), rig.now);
    rig.connect(2);
    rig.run().await;
    assert_eq!((rig.of_session(1), rig.of_session(2)), (0, 20));
    assert_eq!((rig.transactions(), rig.reconciler.take_delayed()), (2, 0));
}

#[tokio::test]
async fn shadow_mode_only_counts() {
    for (mode, delayed) in [(RateMode::Shadow, 15), (RateMode::Off, 0)] {
        let mut rig = Rig::new(
            20,
            Manner {
                write_rate_mode: mode,
                ..manner(5)
            },
        );
        rig.connect(1);
        rig.run().await;
        assert_eq!(rig.nodes().len(), 20);
        assert_eq!(rig.reconciler.take_delayed(), delayed);
        assert_eq!(rig.transactions(), 1);
    }
}

#[tokio::test]
async fn what_is_due_together_is_one_transaction() {
    let mut rig = Rig::new(30, manner(50));
    rig.connect(1);
    rig.run().await;
    assert_eq!(
        (rig.nodes().len(), rig.transactions()),
        (30, 1),
        "registered"
    );
    // Expired: a new session, at once although there is a jitter.
    rig.fake.tree.lock().unwrap().nodes.clear();
    rig.now += Duration::from_secs(100);
    rig.reconciler.tick(rig.now, Duration::ZERO);
    rig.set_all(Verdict::Up);
    rig.reconciler.disconnected(rig.now);
    rig.connect(2);
    rig.run().await;
    assert_eq!((rig.of_session(2), rig.transactions()), (30, 2), "again");
    // A path that is gone costs its own service only.
    rig.fake.tree.lock().unwrap().nodes.clear();
    rig.now += Duration::from_secs(100);
    rig.reconciler.tick(rig.now, Duration::ZERO);
    rig.set_all(Verdict::Up);
    rig.reconciler.disconnected(rig.now);
    rig.connect(3);
    for job in rig.reconciler.jobs(&rig.wants, rig.now) {
        let done = perform(rig.fake.clone(), job).await;
        rig.reconciler.finished(done, &rig.wants, rig.now);
    }
    rig.fake.tree.lock().unwrap().parents.remove("/s7");
    for job in rig.reconciler.jobs(&rig.wants, rig.now) {
        let done = perform(rig.fake.clone(), job).await;
        rig.reconciler.finished(done, &rig.wants, rig.now);
    }
    assert_eq!((rig.of_session(3), rig.transactions()), (29, 3));
    let report = rig.reconciler.report();
    let wrong: Vec<_> = report.values().filter(|r| r.error.is_some()).collect();
    assert_eq!((wrong.len(), wrong[0].service.as_str()), (1, "s7"));
    rig.now += Duration::from_secs(1);
    rig.run().await;
    assert_eq!(rig.of_session(3), 30);
}

/// Who registers again when: at once after an isolated expiry, over a share of the outage after one.
#[test]
fn spread_of_a_registration() {
    let jitter = Duration::from_millis(500);
    for (away, session, jitter, most) in [
        (9.0, 2, jitter, 0.0),
        (9.0, 1, jitter, 0.5),
        (12.0, 2, jitter, 3.0),
        (12.0, 1, jitter, 3.0),
        (3600.0, 2, jitter, 10.0),
        (3600.0, 2, Duration::ZERO, 0.0),
    ] {
        let away = Duration::from_secs_f64(away);
        let mut longest = Duration::ZERO;
        for seed in 0..50 {
            let mut rig = Rig::new(
                3,
                Manner {
                    jitter,
                    ..manner(50)
                },
            );
            rig.reconciler.rng = fastrand::Rng::with_seed(seed);
            rig.connect(1);
            rig.reconciler.jobs(&rig.wants, rig.now);
            rig.reconciler.disconnected(rig.now);
            rig.now += away;
            rig.connect(session);
            let dues: BTreeSet<_> = rig.reconciler.groups.values().map(|g| g.due).collect();
            assert_eq!(dues.len(), 1, "all together");
            let due = dues.into_iter().next().flatten().unwrap() - rig.now;
            longest = longest.max(due);
        }
        let most = Duration::from_secs_f64(most);
        assert!(
            longest <= most && longest >= most.mul_f64(0.8),
            "{away:?} {session}: {longest:?}, not {most:?}"
        );
    }
}

/// What was planned for other wishes is not written any more.
#[tokio::test]
async fn a_wish_that_changes_while_its_creation_waits_creates_nothing() {
    let mut rig = Rig::new(2, manner(1));
    rig.connect(1);
    rig.run().await;
    assert_eq!(rig.nodes().len(), 1, "one waits for the rate");
    rig.set_all(Verdict::Down);
    rig.now += Duration::from_secs(5);
    rig.reconciler.tick(rig.now, Duration::ZERO);
    rig.set_all(Verdict::Down);
    rig.run().await;
    assert!(rig.nodes().is_empty());
    assert_eq!(rig.transactions(), 2, "one creation, one withdrawal");
}

#[tokio::test]
async fn what_is_refused_to_one_is_no_error_of_its_siblings() {
    let mut rig = Rig::new(3, manner(50));
    for wanted in rig.wants.values_mut() {
        wanted.registration.path = "/s0".to_owned();
    }
    rig.connect(1);
    rig.run().await;
    rig.fake.tree.lock().unwrap().no_delete = true;
    for wanted in rig.wants.values_mut().filter(|w| w.service == "s1") {
        wanted.verdict = Verdict::Down;
    }
    rig.run().await;
    let with_error = |rig: &Rig| -> Vec<String> {
        let report = rig.reconciler.report();
        let wrong = report.values().filter(|there| there.error.is_some());
        wrong.map(|there| there.service.clone()).collect()
    };
    assert_eq!(with_error(&rig), ["s1"]);
    // What no service claims concerns all of the path.
    rig.wants.retain(|_, wanted| wanted.service != "s1");
    rig.run().await;
    assert_eq!(with_error(&rig), ["s0", "s2"]);
}

/// The ACL of the path forbids to delete: the node stays, and the ensemble is asked less and less often.
#[tokio::test]
async fn a_removal_that_is_denied_is_tried_again_with_growing_pauses() {
    let mut rig = Rig::new(1, manner(50));
    rig.connect(1);
    rig.run().await;
    rig.fake.tree.lock().unwrap().no_delete = true;
    let attempts = |rig: &Rig| rig.fake.tree.lock().unwrap().attempts;
    let (before, begin) = (attempts(&rig), rig.now);
    let mut counts = Vec::new();
    for minute in 1..=10 {
        while rig.now < begin + Duration::from_secs(60 * minute) {
            rig.set_all(Verdict::Down);
            rig.run().await;
            rig.now = rig.reconciler.wake_at(&rig.wants, rig.now);
        }
        counts.push(attempts(&rig) - before);
    }
    // The ramp from 100 ms to 30 s is some ten attempts; from there on one in 15 s on average.
    assert!(counts[0] < 25 && counts[9] < 80, "{counts:?}");
    assert!(
        counts.windows(2).all(|pair| pair[0] < pair[1]),
        "given up: {counts:?}"
    );
    rig.fake.tree.lock().unwrap().no_delete = false;
    rig.now += RETRY.1;
    rig.set_all(Verdict::Down);
    rig.run().await;
    assert!(rig.nodes().is_empty(), "removed once it is allowed");
}

/// While nothing can be asked, what is shown is what was seen last, with its age, beside what is wanted now; and nodes of
/// services that are no more are named until they are known to be gone.
#[tokio::test]
async fn what_is_kept_is_told() {
    let mut rig = Rig::new(2, manner(50));
    rig.connect(1);
    rig.run().await;
    let seen = rig.now;
    let report = |rig: &Rig, key: &PlaceKey| rig.reconciler.report()[key].clone();
    let keys: Vec<PlaceKey> = rig.wants.keys().cloned().collect();
    let settled = report(&rig, &keys[0]);
    assert!(settled.in_sync && settled.confirmed);
    assert_eq!(settled.observed_payload.as_ref(), Some(&settled.payload));
    assert_eq!(settled.observed_at, Some(seen));

    rig.reconciler.disconnected(rig.now);
    rig.now += Duration::from_secs(5);
    let mut heavy = wish(0, NodeType::EphemeralSequential, 9, rig.now);
    heavy.registration.path = "/s0".to_owned();
    let wanted = heavy.registration.payload.clone();
    rig.wants.insert(keys[0].clone(), heavy);
    rig.wants.remove(&keys[1]);
    rig.run().await;
    let cut = report(&rig, &keys[0]);
    assert_eq!(
        (cut.wanted, cut.observed),
        (Stance::Present, Observed::Present)
    );
    assert!(!cut.in_sync && !cut.confirmed);
    assert_eq!(cut.payload, wanted);
    assert_eq!(cut.observed_payload.as_ref(), Some(&settled.payload));
    assert_eq!(cut.observed_at, Some(seen));
    assert_eq!(
        rig.reconciler.left_over(),
        [LeftOver {
            service: Some("s1".to_owned()),
            path: "/s1".to_owned(),
            node: rig.nodes()[1].name["/s1/".len()..].to_owned(),
            observed_at: Some(seen),
        }]
    );

    rig.connect(1);
    rig.run().await;
    let back = report(&rig, &keys[0]);
    assert!(back.in_sync);
    assert_eq!(back.observed_payload.as_ref(), Some(&wanted));
    assert_eq!(rig.reconciler.left_over(), []);
    assert_eq!(rig.nodes().len(), 1);
}

/// Nothing is left for a registrar to do where nothing is wished and nothing of ours is, or where it never got to.
#[tokio::test]
async fn vacant_is_what_is_not_wished_and_holds_nothing_of_ours() {
    let never_reached = |rig: &mut Rig| {
        let _none = rig.reconciler.jobs(&rig.wants, rig.now);
        assert!(!rig.reconciler.is_vacant(), "something is wished");
        rig.wants.clear();
        let _none = rig.reconciler.jobs(&rig.wants, rig.now);
        assert!(rig.reconciler.is_vacant());
    };
    never_reached(&mut Rig::new(3, manner(100)));

    // Reached, and what it wants is held back by the write rate: nothing is there, also when the connection is lost then.
    let mut rig = Rig::new(3, manner(1));
    rig.connect(1);
    rig.run().await;
    assert_eq!(rig.nodes().len(), 1);
    rig.reconciler.disconnected(rig.now);
    let standing = rig.nodes()[0].name.clone();
    rig.wants.clear();
    let _none = rig.reconciler.jobs(&rig.wants, rig.now);
    assert!(!rig.reconciler.is_vacant(), "{standing} is left");
    assert_eq!(rig.reconciler.left_over().len(), 1);
    rig.connect(1);
    assert!(!rig.reconciler.is_vacant(), "to be looked at first");
    rig.run().await;
    assert_eq!(rig.nodes(), []);
    assert!(rig.reconciler.is_vacant());

    // One that is not looked at, and is removed before its first check, leaves no entry.
    let mut rig = Rig::new(1, manner(1));
    rig.wants
        .values_mut()
        .for_each(|wanted| wanted.verdict = Verdict::Unknown);
    rig.connect(1);
    rig.run().await;
    assert!(!rig.reconciler.is_vacant());
    rig.wants.clear();
    rig.run().await;
    assert!(rig.reconciler.is_vacant());
}

/// Services come and go below one path that others keep: what is remembered is of those that are there.
#[tokio::test]
async fn a_removed_service_leaves_no_entry() {
    let mut rig = Rig::new(0, manner(1000));
    rig.fake
        .tree
        .lock()
        .unwrap()
        .parents
        .insert(PATH.to_owned());
    rig.connect(1);
    let keeper = wish(0, NodeType::EphemeralSequential, 1, rig.now);
    rig.wants.insert(keeper.key(), keeper.clone());
    for number in 0..50 {
        let mut other = wish(1, NodeType::EphemeralSequential, 1, rig.now);
        other.service = format!("other{number}");
        other.as_of = rig.now;
        let key = other.key();
        rig.wants.insert(key.clone(), other);
        rig.run().await;
        assert_eq!(rig.nodes().len(), 2);
        rig.wants.remove(&key);
        rig.run().await;
        assert_eq!(rig.nodes().len(), 1);
        rig.now += Duration::from_millis(10);
    }
    let state = format!("{:?}", rig.reconciler);
    assert!(!state.contains("other"), "{state}");
}
