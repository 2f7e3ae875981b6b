//! A registry in which some children take down whatever asks for them, alone or when too many are asked for at once: all
//! others must be read, the shared connection is lost a few times only, and exactly the guilty ones are left out.

use super::*;

fn names(range: std::ops::Range<u32>) -> Vec<String> {
    range.map(|n| format!("n{n:04}")).collect()
}

fn asks(names: &[String]) -> Vec<Ask> {
    names.iter().cloned().map(Ask::Child).collect()
}

/// Follows a source until nothing is due for a while; returns what was read and the losses of either connection.
fn follow(
    all: &[String],
    poison: &BTreeSet<String>,
    most: usize,
    suspects: &mut Suspects,
    now: &mut Instant,
) -> (BTreeSet<String>, usize, usize) {
    let fatal = |group: &[String]| group.len() > most || group.iter().any(|n| poison.contains(n));
    let (mut chunk, mut shared, mut own) = (64, 0, 0);
    let mut read: BTreeSet<String> = BTreeSet::new();
    'connection: loop {
        suspects.connection_lost(*now);
        let sorted = suspects.sort(all.to_vec());
        let plain = sorted.plain.chunks(chunk).map(<[_]>::to_vec);
        for group in plain.chain(sorted.apart) {
            suspects.asked(asks(&group));
            if fatal(&group) {
                shared += 1;
                chunk = (group.len() / 2).clamp(1, chunk);
                assert!(shared < 50, "the shared connection is lost for ever");
                continue 'connection;
            }
            suspects.answered();
            read.extend(group);
        }
        loop {
            let group = suspects.test(*now);
            if group.is_empty() {
                return (read, shared, own);
            }
            let children: Vec<String> = group
                .iter()
                .map(|ask| match ask {
                    Ask::Child(name) => name.clone(),
                    other => panic!("never asked for: {other}"),
                })
                .collect();
            let lost = fatal(&children);
            own += usize::from(lost);
            let outcome = if lost {
                Outcome::Lost
            } else {
                Outcome::Answered
            };
            let trusted = suspects.tested(group, outcome, *now);
            read.extend(trusted);
            *now += Duration::from_millis(200);
        }
    }
}

#[test]
fn one_poisoned_child_of_a_thousand_is_found_and_costs_the_shared_connection_twice() {
    let all = names(0..1000);
    for at in [0, 1, 63, 64, 500, 999] {
        let poison: BTreeSet<String> = [all[at].clone()].into();
        let (mut suspects, mut now) = (Suspects::default(), Instant::now());
        let (read, shared, own) = follow(&all, &poison, usize::MAX, &mut suspects, &mut now);
        assert_eq!((read.len(), shared), (999, 2), "{at}");
        // 32 are suspected after two losses: five halvings, and once more alone.
        assert!(own <= 7, "{at}: {own}");
        assert_eq!(suspects.guilty(), 1);
        let reason = suspects
            .reason(&Ask::Child(all[at].clone()))
            .expect("guilty");
        assert!(
            reason.contains(&all[at]) && reason.contains("jute.maxbuffer"),
            "{reason}"
        );
    }
}

#[test]
fn several_poisoned_children_are_all_found() {
    let all = names(0..500);
    for seed in 0..200 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let count = rng.usize(0..6);
        let poison: BTreeSet<String> = (0..count)
            .map(|_| all[rng.usize(0..all.len())].clone())
            .collect();
        let (mut suspects, mut now) = (Suspects::default(), Instant::now());
        let (read, shared, _) = follow(&all, &poison, usize::MAX, &mut suspects, &mut now);
        let missing: BTreeSet<String> =
            all.iter().filter(|n| !read.contains(*n)).cloned().collect();
        assert_eq!(missing, poison, "seed {seed}");
        assert!(shared <= 2 * count.max(1), "seed {seed}: {shared}");
        assert_eq!(suspects.guilty(), poison.len());
    }
}

#[test]
fn too_many_at_once_is_nobodys_guilt() {
    let all = names(0..300);
    let (mut suspects, mut now) = (Suspects::default(), Instant::now());
    let (read, shared, _) = follow(&all, &BTreeSet::new(), 7, &mut suspects, &mut now);
    assert_eq!((read.len(), suspects.guilty()), (300, 0));
    assert!(shared < 20, "{shared}");
}

#[test]
fn an_answer_in_between_makes_trusted() {
    let (mut suspects, now) = (Suspects::default(), Instant::now());
    for _ in 0..5 {
        suspects.asked(vec![Ask::List]);
        suspects.connection_lost(now);
        assert!(!suspects.is_suspected(&Ask::List));
        suspects.asked(vec![Ask::List]);
        suspects.answered();
    }
    suspects.connection_lost(now);
    assert!(suspects.known.is_empty(), "nothing was in flight");
    for _ in 0..2 {
        suspects.asked(vec![Ask::List]);
        suspects.connection_lost(now);
    }
    assert_eq!(suspects.test(now), [Ask::List]);
    assert_eq!(
        suspects.tested(vec![Ask::List], Outcome::Answered, now),
        [""; 0]
    );
    assert!(!suspects.is_suspected(&Ask::List) && suspects.due().is_none());
}

#[test]
fn the_guilty_are_tested_ever_more_seldom_and_at_once_when_they_change() {
    let (mut suspects, mut now) = (Suspects::default(), Instant::now());
    let ask = vec![Ask::Child("x".to_owned())];
    for _ in 0..2 {
        suspects.asked(ask.clone());
        suspects.connection_lost(now);
    }
    suspects.tested(ask.clone(), Outcome::Unreachable, now);
    assert_eq!((suspects.due(), suspects.guilty()), (Some(now + PAUSE), 0));
    let mut pauses = Vec::new();
    for _ in 0..8 {
        now = suspects.due().expect("suspected");
        assert_eq!(suspects.test(now), ask);
        suspects.tested(ask.clone(), Outcome::Lost, now);
        pauses.push((suspects.due().expect("suspected") - now).as_secs());
    }
    assert_eq!(pauses, [0, 30, 60, 120, 240, 480, 600, 600]);
    suspects.changed("x", now + Duration::from_secs(60));
    assert_eq!(suspects.due(), Some(now + Duration::from_secs(60)));
    suspects.changed("x", now);
    assert_eq!(
        suspects.due(),
        Some(now + PAUSE),
        "not more often than that"
    );
    suspects.retain(&["y"].into());
    assert_eq!(suspects.due(), None, "deleted");
}
