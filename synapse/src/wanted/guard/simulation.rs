//! Registries that lose, return, replace and withdraw at random, under checks, restarts and other services; after every
//! step the guard's promises must hold. Seeds: [`crate::testing`].

use std::collections::BTreeSet;
use std::time::Duration;

use fastrand::Rng;
use proptest::prelude::*;

use super::tests::{Scene, World};
use super::*;
use crate::config::Decode;
use crate::config::guard::{Mode, Settings, Unannounced};
use crate::model::member::{Address, Evidence};
use crate::model::source::{Child, Children, SourceView};
use std::sync::Arc;

const PORTS: u16 = 40;

/// What the promises depend on and the guard does not say.
struct Model {
    /// Addresses whose last removal was announced.
    withdrawn: BTreeSet<u16>,
    /// Addresses registered by somebody who announces.
    announcing: BTreeSet<u16>,
    /// The last time the set became empty, it was by announcements.
    emptied_on_purpose: bool,
    /// A held address has been registered elsewhere, so that the held set may end early.
    reused: bool,
    registered: BTreeSet<u16>,
    last_addition: Option<Duration>,
    last_removal: Option<Duration>,
}

fn settings(rng: &mut Rng) -> (Settings, WhenEmpty) {
    let settings = Settings {
        mode: Mode::On,
        max_loss: [0.1, 0.5, 0.9][rng.usize(..3)],
        min_loss: rng.usize(..4),
        window: Duration::from_secs([1, 30, 120][rng.usize(..3)]),
        hold: Duration::from_secs([60, 600][rng.usize(..2)]),
        unannounced: [Unannounced::Believe, Unannounced::Hold][rng.usize(..2)],
    };
    let when_empty = [WhenEmpty::Keep, WhenEmpty::Empty, WhenEmpty::Defaults][rng.usize(..3)];
    (settings, when_empty)
}

fn pick(rng: &mut Rng, of: &BTreeSet<u16>, share: f64) -> Vec<u16> {
    of.iter().copied().filter(|_| rng.f64() < share).collect()
}

#[test]
fn whatever_happens_the_promises_hold() {
    crate::testing::run("guard::simulation", |seed| {
        let mut rng = Rng::with_seed(seed);
        let (settings, when_empty) = settings(&mut rng);
        let mut scene = Scene::empty(settings, when_empty);
        let mut model = Model {
            withdrawn: BTreeSet::new(),
            announcing: BTreeSet::new(),
            emptied_on_purpose: true,
            reused: false,
            registered: BTreeSet::new(),
            last_addition: None,
            last_removal: None,
        };
        let kind = [Evidence::Passing, Evidence::Failing, Evidence::Nothing];
        scene.world.others = Some(kind[rng.usize(..3)]);
        for _ in 0..60 {
            let pause = [0, 20, 900, 20_000, 61_000][rng.usize(..5)];
            scene.now += Duration::from_millis(pause);
            change(&mut rng, &mut scene, &mut model);
            check(&scene, &model);
        }
    });
}

fn change(rng: &mut Rng, scene: &mut Scene, model: &mut Model) {
    let share = [0.05, 0.5, 0.95, 1.0][rng.usize(..4)];
    let mut lost = Vec::new();
    match rng.u8(..10) {
        0..3 => {
            let absent = (1..=PORTS)
                .filter(|p| !model.registered.contains(p))
                .collect();
            let new = pick(rng, &absent, share);
            model.registered.extend(&new);
            model.withdrawn.retain(|p| !new.contains(p));
            if !new.is_empty() {
                model.last_addition = Some(scene.now);
            }
            for port in new {
                scene.announces = rng.bool();
                model.announcing.remove(&port);
                if scene.announces {
                    model.announcing.insert(port);
                }
                scene.add([port]);
            }
        }
        3..6 => {
            lost = pick(rng, &model.registered, share);
            scene.delete(lost.iter().copied(), false);
        }
        6 => {
            let gone = pick(rng, &model.registered, share);
            scene.delete(gone.iter().copied(), true);
            model.registered.retain(|p| !gone.contains(p));
            model.withdrawn.extend(&gone);
            if !gone.is_empty() {
                model.last_removal = Some(scene.now);
                model.emptied_on_purpose |= model.registered.is_empty();
            }
        }
        7 => {
            let kind = [Evidence::Passing, Evidence::Failing, Evidence::Nothing];
            scene
                .world
                .evidence
                .insert(rng.u16(1..=PORTS), kind[rng.usize(..3)]);
        }
        8 => {
            let before: Vec<_> = scene
                .guard
                .held()
                .map(|(a, h)| (a.clone(), h.clone()))
                .collect();
            scene.restart("boot-1", false);
            let after = scene.guard.held().map(|(a, h)| (a.clone(), h.clone()));
            assert_eq!(
                after.collect::<Vec<_>>(),
                before,
                "a restart changes no hold"
            );
        }
        _ => {
            model.reused |= scene.world.elsewhere.insert(rng.u16(1..=PORTS));
        }
    }
    let counts = |port: &u16| {
        let held = scene.guard.settings().unannounced == Unannounced::Hold;
        held || model.announcing.contains(port)
    };
    let (counted, believed): (Vec<u16>, Vec<u16>) = lost.iter().partition(|p| counts(p));
    let before = model.registered.len() - believed.len();
    model.registered.retain(|p| !lost.contains(p));
    if !lost.is_empty() && model.registered.is_empty() {
        model.emptied_on_purpose = false;
    }
    model.withdrawn.retain(|p| !lost.contains(p));
    scene.step();

    let settings = scene.guard.settings();
    let quiet = |at: Option<Duration>| at.is_none_or(|at| at + settings.window < scene.now);
    #[expect(clippy::cast_precision_loss, reason = "at most forty")]
    let too_many = counted.len() > settings.min_loss
        && (model.registered.len() as f64) < (1.0 - settings.max_loss) * before as f64;
    if too_many && quiet(model.last_addition) && quiet(model.last_removal) && !model.reused {
        let vouched = |p: &&u16| {
            let own = scene.world.evidence.get(p).copied();
            own.or(scene.world.others) == Some(Evidence::Passing)
        };
        for port in counted.iter().filter(vouched) {
            assert!(scene.held().contains(port), "{port} was lost with too many");
        }
    }
    if !model.registered.is_empty() {
        for port in &believed {
            assert!(!scene.held().contains(port), "{port} cannot be announced");
        }
    }
    if !lost.is_empty() {
        model.last_removal = Some(scene.now);
    }
}

fn check(scene: &Scene, model: &Model) {
    let registered: BTreeSet<u16> = scene.registry.addresses().map(|a| a.port).collect();
    assert_eq!(registered, model.registered);
    let settings = scene.guard.settings();
    for (address, held) in scene.guard.held() {
        assert!(!registered.contains(&address.port), "{address} is both");
        match held.until {
            None => assert!(registered.is_empty(), "{address} without end"),
            Some(until) => {
                assert!(until > scene.now && until <= scene.now + settings.hold);
            }
        }
        let on_purpose = model.withdrawn.contains(&address.port);
        assert_eq!(held.why == Why::Last, on_purpose, "{address}: {held:?}");
    }
    if scene.guard.believes_empty() && scene.guard.when_empty() == WhenEmpty::Keep {
        assert!(
            model.emptied_on_purpose || model.reused,
            "emptied by a loss"
        );
    }
}

fn children() -> impl Strategy<Value = Children> {
    let one = (
        0u8..6,
        0u16..5,
        prop_oneof![Just(true), Just(true), Just(false)],
        any::<bool>(),
    );
    proptest::collection::vec(one, 0..8).prop_map(|all| {
        let child = |(name, port, available, valid): (u8, u16, bool, bool)| {
            let data = match valid {
                true => format!(
                    "{{\"host\":\"h\",\"port\":{},\"available\":{available}}}",
                    port + 1
                ),
                false => "junk".to_owned(),
            };
            let child = Child {
                data: data.into_bytes().into(),
                czxid: 0,
                mzxid: 0,
            };
            (format!("n{name}"), child)
        };
        all.into_iter().map(child).collect()
    })
}

proptest! {
    #[test]
    fn looking_again_is_looking_anew(sets in proptest::collection::vec(children(), 1..6)) {
        let mut registry = Registry::new(Decode::Nerve, &Arc::default());
        let mut before = BTreeSet::new();
        for set in sets {
            let view = SourceView { children: Arc::new(set), ..SourceView::default() };
            let change = registry.look(&view);
            let anew = Registry::new(Decode::Nerve, &view.children);
            let now: BTreeSet<Address> = anew.addresses().cloned().collect();
            prop_assert!(registry.addresses().eq(anew.addresses()));
            prop_assert_eq!(change.size, now.len());
            let gone: BTreeSet<Address> = change.gone.into_iter().map(|g| g.address).collect();
            let new: BTreeSet<Address> = change.new.into_iter().map(|(a, _)| a).collect();
            prop_assert_eq!(gone, before.difference(&now).cloned().collect::<BTreeSet<_>>());
            prop_assert_eq!(new, now.difference(&before).cloned().collect::<BTreeSet<_>>());
            before = now;
        }
    }

    #[test]
    fn a_guard_that_is_saved_and_restored_goes_on_as_before(lost in 1u16..40, at in 0u64..700) {
        let settings = Settings::default();
        let mut scene = Scene::empty(settings, WhenEmpty::Keep);
        scene.add(1..=PORTS);
        scene.step();
        scene.delete(1..=lost, false);
        scene.step();
        let mut twin = scene.guard.clone();
        scene.restart("boot-1", false);
        let later = scene.now + Duration::from_secs(at);
        let world = World { others: Some(Evidence::Passing), ..World::default() };
        scene.guard.step(None, &world, later);
        twin.step(None, &world, later);
        prop_assert!(scene.guard.held().eq(twin.held()));
    }
}
