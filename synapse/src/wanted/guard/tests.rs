//! The rules line by line, in one file because they share one scene. Times are seconds since an arbitrary boot.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::*;
use crate::config::Decode;
use crate::config::guard::{Mode, Settings, Unannounced};
use crate::model::member::{Address, Evidence};
use crate::model::source::{Child, Children, Farewell, SourceView};

/// A registry, a haproxy and a clock around one guard.
pub(super) struct Scene {
    pub(super) view: SourceView,
    pub(super) registry: Registry,
    pub(super) guard: Guard,
    pub(super) now: Duration,
    pub(super) world: World,
    /// What is added from now on is registered by nerves that announce what they withdraw.
    pub(super) announces: bool,
    sequence: u64,
}

#[derive(Default)]
pub(super) struct World {
    /// What the checks say of a port; the rest has no check.
    pub(super) evidence: BTreeMap<u16, Evidence>,
    /// What they say of all others.
    pub(super) others: Option<Evidence>,
    pub(super) elsewhere: BTreeSet<u16>,
}

impl Facts for World {
    fn evidence(&self, address: &Address, _held: &Held) -> Evidence {
        let known = self.evidence.get(&address.port).copied();
        known.or(self.others).unwrap_or(Evidence::Nothing)
    }

    fn elsewhere(&self, address: &Address) -> bool {
        self.elsewhere.contains(&address.port)
    }
}

const MARK: &str = ",\"announces\":true";

fn child(port: u16, more: &str) -> Child {
    let data = format!("{{\"host\":\"10.0.0.1\",\"port\":{port}{more}}}");
    Child {
        data: data.into_bytes().into(),
        czxid: 0,
        mzxid: 0,
    }
}

fn settings(mode: Mode) -> Settings {
    Settings {
        mode,
        ..Settings::default()
    }
}

impl Scene {
    /// `size` instances, known to a guard in force; every check passes.
    fn of(size: u16) -> Self {
        let mut scene = Self::empty(settings(Mode::On), WhenEmpty::Keep);
        scene.add(1..=size);
        scene.step();
        assert_eq!(scene.passed(), (1..=size).collect());
        scene
    }

    pub(super) fn empty(settings: Settings, when_empty: WhenEmpty) -> Self {
        Self {
            view: SourceView::default(),
            registry: Registry::new(Decode::Nerve, &Arc::default()),
            guard: Guard::new(settings, when_empty, 0, false),
            now: Duration::from_secs(1000),
            world: World {
                others: Some(Evidence::Passing),
                ..World::default()
            },
            announces: true,
            sequence: 0,
        }
    }

    fn children(&mut self) -> &mut Children {
        Arc::make_mut(&mut self.view.children)
    }

    pub(super) fn add(&mut self, ports: impl IntoIterator<Item = u16>) {
        for port in ports {
            self.sequence += 1;
            let name = format!("i-{port}_{:010}", self.sequence);
            let mark = if self.announces { MARK } else { "" };
            self.children().insert(name, child(port, mark));
        }
    }

    /// Deletes the nodes of these ports.
    pub(super) fn delete(&mut self, ports: impl IntoIterator<Item = u16>, announced: bool) {
        let said = match announced {
            true => Farewell::Announced,
            false => Farewell::Silent,
        };
        self.leave(ports, said);
    }

    fn leave(&mut self, ports: impl IntoIterator<Item = u16>, said: Farewell) {
        for port in ports {
            let prefix = format!("i-{port}_");
            let names: Vec<String> = self
                .view
                .children
                .keys()
                .filter(|name| name.starts_with(&prefix))
                .cloned()
                .collect();
            for name in names {
                let gone = self.children().remove(&name).unwrap();
                let removals = Arc::make_mut(&mut self.view.removals);
                removals.push(&name, gone.data, said, Instant::now());
            }
        }
    }

    pub(super) fn step(&mut self) {
        let change = self.registry.look(&self.view);
        self.guard.step(Some(change), &self.world, self.now);
    }

    /// Lets time pass, a second at a time.
    fn wait(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.now += Duration::from_secs(1);
            self.guard.step(None, &self.world, self.now);
        }
    }

    pub(super) fn held(&self) -> BTreeSet<u16> {
        self.guard.held().map(|(a, _)| a.port).collect()
    }

    /// What the funnel gets.
    pub(super) fn passed(&self) -> BTreeSet<u16> {
        let registered = self.registry.addresses().map(|a| a.port);
        registered.chain(self.held()).collect()
    }

    /// A new process: what the snapshot holds is all it has.
    pub(super) fn restart(&mut self, boot: &str, old: bool) {
        let saved = serde_json::to_string(&self.guard.save("boot-1")).unwrap();
        let saved: Saved = serde_json::from_str(&saved).unwrap();
        self.registry = Registry::new(Decode::Nerve, &self.view.children);
        let size = self.registry.addresses().count();
        let when_empty = self.guard.when_empty();
        let settings = *self.guard.settings();
        self.guard = Guard::new(settings, when_empty, size, old);
        self.guard.restore(&saved, boot);
    }
}

fn all(from: u16, to: u16) -> BTreeSet<u16> {
    (from..=to).collect()
}

#[test]
fn what_vanishes_while_it_answers_is_held_until_the_end() {
    let mut scene = Scene::of(100);
    scene.delete(4..=100, false);
    scene.step();
    assert_eq!(scene.held(), all(4, 100));
    assert_eq!(scene.guard.trips(), 1);
    let words = scene.guard.words().unwrap();
    assert!(words.starts_with("97 held: too many vanished"), "{words}");
    scene.wait(599);
    assert_eq!(scene.passed(), all(1, 100));
    scene.wait(1);
    assert_eq!(scene.passed(), all(1, 3));
    assert_eq!(scene.guard.words(), None);
}

#[test]
fn a_restart_late_in_a_hold_waits_for_the_checks() {
    let mut scene = Scene::of(100);
    scene.delete(4..=100, false);
    scene.step();
    scene.wait(40);
    scene.restart("boot-1", false);
    scene.world.others = Some(Evidence::Awaited);
    scene.wait(1);
    assert_eq!(scene.passed(), all(1, 100));
    scene.world.others = Some(Evidence::Passing);
    scene.world.evidence.insert(7, Evidence::Failing);
    scene.world.evidence.insert(8, Evidence::Nothing);
    scene.wait(1);
    assert_eq!(scene.passed().len(), 98);
    // haproxy that never answers does not keep them for ever.
    scene.world.others = Some(Evidence::Awaited);
    scene.wait(557);
    assert_eq!(scene.passed().len(), 98);
    scene.wait(1);
    assert_eq!(scene.passed(), all(1, 3));
}

#[test]
fn what_vanishes_and_is_dead_leaves_when_its_check_fails() {
    let mut scene = Scene::of(100);
    scene.delete(4..=100, false);
    scene.step();
    scene.wait(1);
    scene.world.others = Some(Evidence::Failing);
    scene.world.evidence.insert(7, Evidence::Passing);
    scene.wait(1);
    assert_eq!(scene.held(), [7].into());
    scene.wait(600);
    assert_eq!(scene.passed(), all(1, 3));
}

#[test]
fn without_a_check_that_vouches_a_hold_lasts_half_a_minute() {
    for evidence in [Evidence::Nothing, Evidence::Pending] {
        let mut scene = Scene::of(100);
        scene.world.others = Some(evidence);
        scene.delete(4..=100, false);
        scene.step();
        scene.wait(29);
        assert_eq!(scene.passed(), all(1, 100));
        scene.wait(1);
        assert_eq!(scene.passed(), all(1, 3), "{evidence:?}");
    }
}

#[test]
fn deletions_spread_over_the_window_are_all_restored() {
    for tenths in [1, 50, 290] {
        for restart_at in [None, Some(5), Some(30), Some(80)] {
            let mut scene = Scene::of(100);
            for (n, port) in (4..=100).enumerate() {
                scene.delete([port], false);
                scene.step();
                scene.now += Duration::from_millis(tenths * 100 / 97);
                if restart_at == Some(n) {
                    scene.restart("boot-1", false);
                }
            }
            assert_eq!(scene.passed(), all(1, 100), "{tenths} {restart_at:?}");
            scene.wait(570);
            assert_eq!(scene.passed(), all(1, 100));
            scene.wait(30);
            assert_eq!(scene.passed(), all(1, 3));
        }
    }
}

#[test]
fn a_restart_neither_drops_nor_renews_a_hold() {
    let mut scene = Scene::of(100);
    scene.delete(4..=100, false);
    scene.step();
    scene.wait(300);
    scene.restart("boot-1", false);
    assert_eq!(scene.passed(), all(1, 100), "before the registry is asked");
    scene.step();
    assert_eq!(scene.passed(), all(1, 100));
    scene.wait(299);
    assert_eq!(scene.passed(), all(1, 100));
    scene.wait(1);
    assert_eq!(scene.passed(), all(1, 3));
}

#[test]
fn announced_removals_skip_the_share_rule() {
    // Withdrawn, and unhealthy: any number at once, by deletion or by the node's own word.
    for gone in [97, 60] {
        let mut scene = Scene::of(100);
        scene.delete(101 - gone..=100, true);
        scene.step();
        assert_eq!(scene.passed(), all(1, 100 - gone));
        assert_eq!(scene.guard.trips(), 0);
        // The few that vanish then are judged by what was left.
        scene.delete([1, 2, 3], false);
        scene.step();
        let trips = u64::from(100 - gone == 3);
        assert_eq!(scene.guard.trips(), trips, "{gone} withdrawn before");
    }
    let mut scene = Scene::of(100);
    for (name, _) in scene.view.children.clone().iter().skip(40) {
        let port = scene.registry.address_of(name).unwrap().port;
        let withdrawn = child(port, ",\"available\":false");
        scene.children().insert(name.clone(), withdrawn);
    }
    scene.step();
    assert_eq!(scene.passed().len(), 40);
    assert_eq!(scene.guard.trips(), 0);
}

#[test]
fn the_last_servers_withdrawn_stay_until_their_checks_fail_or_the_hold_ends() {
    let mut scene = Scene::of(1);
    scene.delete([1], true);
    scene.step();
    assert_eq!(scene.passed(), [1].into());
    scene.wait(400);
    assert!(!scene.guard.believes_empty());
    scene.world.others = Some(Evidence::Failing);
    scene.wait(1);
    assert!(scene.passed().is_empty() && scene.guard.believes_empty());

    let mut scene = Scene::of(3);
    scene.delete(1..=3, true);
    scene.step();
    assert_eq!(scene.passed(), all(1, 3));
    let words = scene.guard.words().unwrap();
    let start = "3 held: the last servers were withdrawn (0 registered); while";
    assert!(words.starts_with(start), "{words}");
    scene.wait(600);
    assert!(scene.passed().is_empty() && scene.guard.believes_empty());

    // Another server there: they have said that they leave.
    let mut scene = Scene::of(3);
    scene.delete(1..=3, true);
    scene.step();
    scene.add([9]);
    scene.step();
    assert_eq!(scene.passed(), [9].into());

    for when_empty in [WhenEmpty::Empty, WhenEmpty::Defaults] {
        let mut scene = Scene::empty(settings(Mode::On), when_empty);
        scene.add([1]);
        scene.step();
        scene.delete([1], true);
        scene.step();
        assert!(scene.passed().is_empty() && scene.guard.believes_empty());
    }
}

#[test]
fn few_losses_and_replacements_are_believed_at_once() {
    let mut scene = Scene::of(100);
    scene.delete(1..=3, false);
    scene.step();
    assert_eq!(scene.passed(), all(4, 100));

    // 100 of 100 by others: in one batch, before and after.
    for order in 0..3 {
        let mut scene = Scene::of(100);
        if order == 1 {
            scene.add(201..=300);
            scene.step();
        }
        for port in 1..=100 {
            scene.delete([port], false);
            if order == 2 {
                scene.add([200 + port]);
                scene.step();
            }
        }
        if order == 0 {
            scene.add(201..=300);
        }
        scene.step();
        assert_eq!(scene.passed(), all(201, 300), "{order}");
        assert_eq!(scene.guard.trips(), 0);
    }
}

#[test]
fn what_was_replaced_is_not_restored_by_a_later_loss() {
    for one_by_one in [false, true] {
        let mut scene = Scene::of(100);
        for port in 1..=100 {
            scene.delete([port], false);
            scene.add([200 + port]);
            if one_by_one {
                scene.step();
            }
        }
        scene.step();
        assert_eq!(scene.passed(), all(201, 300));
        scene.wait(1);
        scene.delete(204..=300, false);
        scene.step();
        assert_eq!(scene.held(), all(204, 300), "{one_by_one}");
        assert_eq!(scene.passed(), all(201, 300));
        scene.delete(201..=203, false);
        scene.step();
        assert_eq!(scene.held(), all(201, 300), "{one_by_one}");
    }
    // For a moment some are there twice.
    let mut scene = Scene::of(100);
    scene.wait(60);
    for port in 1..=100 {
        scene.add([200 + port]);
        scene.step();
        scene.delete([port], false);
        scene.step();
    }
    scene.delete(201..=300, false);
    scene.step();
    assert_eq!(scene.held(), all(201, 300));
    // And the hold ends when as many others have come.
    scene.add(1..=99);
    scene.step();
    assert_eq!(scene.held().len(), 100);
    scene.add([100]);
    scene.step();
    assert_eq!(scene.passed(), all(1, 100));
    // What was replaced makes up for nothing else either.
    let mut scene = Scene::of(100);
    scene.delete(1..=40, false);
    scene.step();
    scene.add(201..=240);
    scene.step();
    scene.delete(41..=92, false);
    scene.step();
    assert_eq!(scene.held(), all(41, 92));
    // Additions alone make the set larger and replace nothing yet.
    let mut scene = Scene::of(100);
    scene.delete(1..=10, false);
    scene.step();
    scene.add(201..=205);
    scene.step();
    scene.delete(11..=60, false);
    scene.step();
    assert_eq!(scene.held(), all(1, 60));
}

#[test]
fn a_set_that_has_just_recovered_is_lost_again() {
    let mut scene = Scene::of(100);
    for port in 4..=100 {
        scene.now += Duration::from_millis(300);
        scene.delete([port], false);
        scene.step();
    }
    scene.wait(2);
    scene.add(4..=100);
    scene.step();
    assert_eq!(scene.guard.words(), None);
    for port in 4..=100 {
        scene.now += Duration::from_millis(50);
        scene.delete([port], false);
        scene.step();
    }
    assert_eq!(scene.held(), all(4, 100));
}

#[test]
fn the_share_is_of_the_largest_set_of_the_window_and_min_loss_is_free() {
    // (before, lost, held)
    for (before, lost, held) in [
        (100, 50, false),
        (100, 51, true),
        (4, 2, false),
        (5, 3, true),
        (3, 2, false),
        (10, 5, false),
    ] {
        let mut scene = Scene::of(before);
        scene.delete(1..=lost, false);
        scene.step();
        let expected = if held { lost } else { 0 };
        assert_eq!(
            scene.guard.holding(),
            usize::from(expected),
            "{before} {lost}"
        );
    }
    // Outside the window they do not add up.
    let mut scene = Scene::of(100);
    for part in 0..2 {
        scene.delete(part * 40 + 1..=part * 40 + 40, false);
        scene.step();
        scene.wait(31);
    }
    assert_eq!(scene.guard.trips(), 1, "40 of 100, then 40 of 60");
    assert_eq!(scene.held(), all(41, 80));
}

#[test]
fn an_emptied_path_is_held_without_end_and_ends_when_the_set_is_whole() {
    let mut scene = Scene::of(10);
    scene.delete(1..=10, false);
    scene.step();
    scene.world.others = Some(Evidence::Failing);
    scene.wait(3600 * 3);
    assert_eq!(scene.passed(), all(1, 10), "checks take them out, not we");
    let words = scene.guard.words().unwrap();
    assert!(
        words.contains("until something is registered again"),
        "{words}"
    );
    scene.world.others = Some(Evidence::Passing);
    scene.add([1]);
    scene.step();
    assert_eq!(scene.passed(), all(1, 10), "one is back: the rest stays");
    scene.wait(500);
    scene.add(2..=9);
    scene.step();
    assert_eq!(scene.held(), [10].into());
    scene.add([77]);
    scene.step();
    assert_eq!(scene.passed(), [1, 2, 3, 4, 5, 6, 7, 8, 9, 77].into());

    // From the first registration they have `hold`.
    let mut scene = Scene::of(10);
    scene.delete(1..=10, false);
    scene.step();
    scene.wait(3600);
    scene.add([1]);
    scene.step();
    scene.wait(599);
    assert_eq!(scene.passed(), all(1, 10));
    scene.wait(1);
    assert_eq!(scene.passed(), [1].into());
}

#[test]
fn without_previous_backends_an_emptied_path_is_held_until_the_end_and_defaults_come_first() {
    let mut scene = Scene::empty(settings(Mode::On), WhenEmpty::Empty);
    scene.add([1]);
    scene.step();
    scene.delete([1], false);
    scene.step();
    scene.wait(599);
    assert_eq!(scene.passed(), [1].into());
    scene.wait(1);
    assert!(scene.guard.believes_empty());

    for (size, held) in [(2, 0), (3, 3)] {
        let mut scene = Scene::empty(settings(Mode::On), WhenEmpty::Defaults);
        scene.add(1..=size);
        scene.step();
        scene.delete(1..=size, false);
        scene.step();
        assert_eq!(scene.guard.holding(), held, "{size} with default servers");
    }
}

#[test]
fn a_held_address_that_another_service_registers_leaves_alone() {
    let mut scene = Scene::of(100);
    scene.world.elsewhere.insert(50);
    scene.delete(4..=100, false);
    scene.step();
    scene.world.elsewhere.insert(60);
    scene.wait(1);
    let mut rest = all(4, 100);
    rest.remove(&60);
    assert_eq!(scene.held(), rest, "50 was shared before the loss");
}

#[test]
fn a_fixed_node_with_another_address_has_left_the_former_one() {
    let mut scene = Scene::empty(settings(Mode::On), WhenEmpty::Keep);
    for port in 1..=10 {
        let (name, child) = (format!("host-{port}"), child(port, MARK));
        scene.children().insert(name, child);
    }
    scene.step();
    for port in 1..=10 {
        let (name, child) = (format!("host-{port}"), child(100 + port, MARK));
        scene.children().insert(name, child);
    }
    scene.step();
    assert_eq!(scene.passed(), all(101, 110));
    // Vanished first, back elsewhere later.
    let before = scene.view.children.clone();
    scene.children().clear();
    scene.step();
    assert_eq!(scene.held(), all(101, 110));
    scene
        .children()
        .insert("host-1".to_owned(), child(201, MARK));
    scene.step();
    assert_eq!(scene.held(), all(102, 110));
    assert_eq!(before.len(), 10);
}

#[test]
fn twins_and_swaps_lose_nothing() {
    let mut scene = Scene::of(10);
    let before = scene.view.children.clone();
    scene.add(1..=10);
    scene.step();
    for name in before.keys() {
        scene.children().remove(name);
    }
    let change = scene.registry.look(&scene.view);
    assert_eq!((change.gone.len(), change.new.len()), (0, 0));
    scene.guard.step(Some(change), &scene.world, scene.now);
    assert_eq!((scene.passed(), scene.guard.holding()), (all(1, 10), 0));
}

#[test]
fn the_last_word_on_an_address_counts_however_many_views_were_missed() {
    // Swapped (unannounced), then withdrawn; and withdrawn, registered again, then lost.
    for (first, last) in [(false, true), (true, false)] {
        let mut scene = Scene::of(10);
        scene.delete([1], first);
        scene.add([1]);
        scene.delete([1], last);
        let change = scene.registry.look(&scene.view);
        assert_eq!(change.gone.len(), 1);
        assert_eq!(change.gone[0].announced, last);
    }
}

#[test]
fn release_and_configuration_end_holds() {
    let mut scene = Scene::of(100);
    scene.delete(4..=100, false);
    scene.step();
    assert_eq!(scene.guard.release(), 97);
    scene.step();
    assert_eq!(scene.passed(), all(1, 3), "released for good");

    for mode in [Mode::Off, Mode::Shadow] {
        let mut scene = Scene::of(100);
        scene.delete(4..=100, false);
        scene.step();
        scene.guard.configure(settings(mode), WhenEmpty::Keep);
        assert_eq!(scene.passed(), all(1, 3));
    }
    let mut scene = Scene::of(100);
    scene.delete(4..=100, false);
    scene.step();
    let shorter = Settings {
        hold: Duration::from_secs(60),
        ..settings(Mode::On)
    };
    scene.guard.configure(shorter, WhenEmpty::Keep);
    scene.wait(59);
    assert_eq!(scene.passed(), all(1, 100));
    scene.wait(1);
    assert_eq!(scene.passed(), all(1, 3));
}

#[test]
fn shadow_counts_and_changes_nothing_and_off_does_not_even_count() {
    let mut scene = Scene::empty(settings(Mode::Shadow), WhenEmpty::Keep);
    scene.add(1..=100);
    scene.step();
    scene.delete(4..=100, false);
    scene.step();
    assert_eq!(scene.passed(), all(1, 3));
    assert_eq!((scene.guard.trips(), scene.guard.holding()), (1, 97));
    let words = scene.guard.words().unwrap();
    assert!(words.starts_with("97 would be held"), "{words}");
    scene.delete(1..=3, false);
    scene.step();
    assert!(!scene.guard.believes_empty(), "as if there were no guard");

    let mut scene = Scene::empty(settings(Mode::Off), WhenEmpty::Keep);
    scene.add(1..=100);
    scene.step();
    scene.delete(4..=100, false);
    scene.step();
    assert_eq!((scene.guard.trips(), scene.guard.holding()), (0, 0));
    // Switched on, it knows what there is.
    scene.add(4..=100);
    scene.step();
    scene.guard.configure(settings(Mode::On), WhenEmpty::Keep);
    scene.delete(4..=100, false);
    scene.step();
    assert_eq!(scene.guard.holding(), 97);
}

#[test]
fn a_young_seed_is_the_baseline_and_an_old_one_is_replaced() {
    for old in [false, true] {
        let mut scene = Scene::of(100);
        scene.restart("boot-1", old);
        scene.delete(4..=100, false);
        scene.step();
        let expected = if old { all(1, 3) } else { all(1, 100) };
        assert_eq!(scene.passed(), expected, "old: {old}");

        // Nothing at all is no replacement.
        let mut scene = Scene::of(100);
        scene.restart("boot-1", old);
        scene.delete(1..=100, false);
        scene.step();
        assert_eq!(scene.passed(), all(1, 100), "old: {old}");
    }
    // Nothing is known: the first word is taken, and an empty one means nothing yet.
    let mut scene = Scene::empty(settings(Mode::On), WhenEmpty::Keep);
    scene.step();
    assert!(!scene.guard.believes_empty());
    scene.add([1]);
    scene.step();
    assert_eq!(scene.passed(), [1].into());
}

#[test]
fn over_a_boot_only_what_an_empty_path_holds_is_believed() {
    let mut scene = Scene::of(100);
    scene.delete(4..=100, false);
    scene.step();
    scene.restart("boot-2", true);
    assert_eq!(scene.passed(), all(1, 3));

    let mut scene = Scene::of(10);
    scene.delete(1..=10, false);
    scene.step();
    scene.restart("boot-2", true);
    scene.step();
    scene.wait(3600);
    assert_eq!(scene.passed(), all(1, 10));
    scene.add([11]);
    scene.step();
    assert_eq!(scene.passed(), all(1, 11), "a hold of this boot by now");
    scene.restart("boot-2", true);
    scene.add([12]);
    scene.step();
    assert_eq!(scene.passed(), [11, 12].into());
}

/// Four instances of Ruby's nerve.
fn plain(size: u16, unannounced: Unannounced) -> Scene {
    let settings = Settings {
        unannounced,
        ..Settings::default()
    };
    let mut scene = Scene::empty(settings, WhenEmpty::Keep);
    scene.announces = false;
    scene.add(1..=size);
    scene.step();
    scene.wait(60);
    scene
}

#[test]
fn what_cannot_be_announced_is_believed_unless_it_is_to_be_held() {
    for (unannounced, passed) in [
        (Unannounced::Believe, all(4, 4)),
        (Unannounced::Hold, all(1, 4)),
    ] {
        let mut scene = plain(4, unannounced);
        scene.delete(1..=3, false);
        scene.step();
        assert_eq!(scene.passed(), passed, "{unannounced:?}");
        assert_eq!(scene.guard.trips(), u64::from(passed.len() == 4));
    }
    // Over a restart the remembered set tells who announces.
    for (announces, passed) in [(false, all(98, 100)), (true, all(1, 100))] {
        let mut scene = Scene::empty(settings(Mode::On), WhenEmpty::Keep);
        scene.announces = announces;
        scene.add(1..=100);
        scene.step();
        scene.restart("boot-1", false);
        scene.delete(1..=97, false);
        scene.step();
        assert_eq!(scene.passed(), passed, "announces: {announces}");
    }
}

/// Of servers before 3.6 only the list is known: nobody is silent there, whoever announces.
#[test]
fn what_could_not_be_heard_is_no_silence() {
    let mut scene = Scene::of(40);
    scene.leave(1..=22, Farewell::Unheard);
    scene.step();
    assert_eq!(scene.passed(), all(23, 40));
    assert_eq!(scene.guard.trips(), 0);
    // What is heard again is as before, and what is left is never all withdrawn.
    scene.leave(23..=38, Farewell::Silent);
    scene.step();
    assert_eq!(scene.passed(), all(23, 40));
    let mut scene = Scene::of(40);
    scene.leave(1..=40, Farewell::Unheard);
    scene.step();
    assert_eq!(scene.passed(), all(1, 40));
}

#[test]
fn in_a_mixed_fleet_those_are_held_that_would_have_announced() {
    // 1..=50 by Ruby's nerves, 51..=100 by ours.
    let mixed = || {
        let mut scene = plain(50, Unannounced::Believe);
        scene.announces = true;
        scene.add(51..=100);
        scene.step();
        scene.wait(60);
        scene
    };
    let mut scene = mixed();
    scene.delete(4..=97, false);
    scene.step();
    assert_eq!(scene.held(), all(51, 97));
    // They count on neither side of the share: half of what is left is not too many.
    let mut scene = mixed();
    scene.delete(1..=50, false);
    scene.step();
    assert_eq!(scene.passed(), all(51, 100));
    scene.delete(51..=75, false);
    scene.step();
    assert_eq!(scene.passed(), all(76, 100));
    scene.delete([76], false);
    scene.step();
    assert_eq!(scene.held(), all(51, 76));
    // The hold does not wait for those that were believed.
    let before = scene.guard.words().unwrap();
    assert!(before.contains("(24 registered, 50 before)"), "{before}");
    scene.add(201..=226);
    scene.step();
    assert_eq!(scene.held(), BTreeSet::new());
    // What replaced them makes up for no other loss.
    let mut scene = mixed();
    for port in 1..=50 {
        scene.delete([port], false);
        scene.step();
        scene.add([200 + port]);
        scene.step();
    }
    assert_eq!(scene.passed().len(), 100);
    scene.delete(51..=100, false);
    scene.delete([201], false);
    scene.step();
    assert_eq!(scene.held(), (51..=100).chain([201]).collect());
}

#[test]
fn an_emptied_path_is_held_whoever_registered() {
    for parts in [1, 4] {
        for restart in [false, true] {
            let mut scene = plain(8, Unannounced::Believe);
            for part in 0..parts {
                scene.delete((1..=8).filter(|p| p % parts == part), false);
                scene.step();
                scene.wait(1);
                if restart {
                    scene.restart("boot-1", false);
                }
            }
            assert_eq!(scene.passed(), all(1, 8), "{parts} {restart}");
            scene.wait(3600);
            assert_eq!(scene.passed(), all(1, 8), "{parts} {restart}");
            // One is back: the others stay until the set is as large as it was.
            scene.add(1..=7);
            scene.step();
            assert_eq!(scene.held(), [8].into(), "{parts} {restart}");
            scene.add([9]);
            scene.step();
            assert_eq!(scene.held(), BTreeSet::new(), "{parts} {restart}");
        }
    }
    // What was replaced or is older than the window is not brought back.
    let mut scene = plain(8, Unannounced::Believe);
    for port in 1..=8 {
        scene.delete([port], false);
        scene.add([100 + port]);
        scene.step();
    }
    scene.delete(101..=104, false);
    scene.step();
    scene.wait(31);
    scene.delete(105..=108, false);
    scene.step();
    assert_eq!(scene.passed(), all(105, 108));
    // As Ruby: defaults come before the previous set.
    let mut scene = Scene::empty(settings(Mode::On), WhenEmpty::Defaults);
    scene.announces = false;
    scene.add(1..=8);
    scene.step();
    scene.delete(1..=8, false);
    scene.step();
    assert_eq!(scene.passed(), BTreeSet::new());
}

#[test]
fn of_twins_the_one_that_would_have_announced_counts() {
    // Each address by Ruby's nerve and by ours: overlap while a host is moved.
    let both = || {
        let mut scene = plain(10, Unannounced::Believe);
        let rubys: Vec<String> = scene.view.children.keys().cloned().collect();
        scene.announces = true;
        scene.add(1..=10);
        scene.step();
        (scene, rubys)
    };
    // Ruby's stops first, then ours is lost.
    let (mut scene, rubys) = both();
    for name in &rubys {
        let gone = scene.children().remove(name).unwrap();
        let removals = Arc::make_mut(&mut scene.view.removals);
        removals.push(name, gone.data, Farewell::Silent, Instant::now());
    }
    scene.step();
    scene.delete(2..=10, false);
    scene.step();
    assert_eq!(scene.held(), all(2, 10));
    // Both are lost at one look, with and without a memory of the removals.
    for remembered in [true, false] {
        let (mut scene, _) = both();
        scene.delete(2..=10, false);
        if !remembered {
            scene.view.removals = Arc::default();
        }
        scene.step();
        assert_eq!(scene.held(), all(2, 10), "{remembered}");
    }
    // Ours is withdrawn with a word, and Ruby's is lost later: it was the last.
    let (mut scene, rubys) = both();
    let ours: Vec<String> = scene.view.children.keys().cloned().collect();
    for name in ours.iter().filter(|name| !rubys.contains(name)) {
        let gone = scene.children().remove(name).unwrap();
        let removals = Arc::make_mut(&mut scene.view.removals);
        removals.push(name, gone.data, Farewell::Announced, Instant::now());
    }
    scene.delete(2..=10, false);
    scene.step();
    assert_eq!(scene.held(), BTreeSet::new());
}
