//! Several sources as one, their ages, and what one of them may bring back. Times are seconds since an arbitrary boot.

use std::collections::BTreeMap;
use std::time::SystemTime;

use smartstack_common::clock::Moment;
use smartstack_common::units::{Ensemble, ZkPath};

use super::*;
use crate::config::{Decode, DefaultServer, LabelFilter, Multi, Watcher};
use crate::model::source::{Child, Children};
use crate::snapshot::SourceRecord;

fn key(name: &str) -> SourceKey {
    SourceKey {
        ensemble: Ensemble::new(&[format!("{name}:2181")]).unwrap(),
        path: ZkPath::new("/web").unwrap(),
    }
}

fn watcher(name: &str) -> Watcher {
    let key = key(name);
    Watcher {
        name: name.to_owned(),
        ensemble: key.ensemble,
        path: key.path,
        decode: Decode::Nerve,
        label_filters: Vec::new(),
    }
}

fn service(resolver: Resolver, names: &[&str]) -> Service {
    Service {
        discovery: Discovery::Multi(Multi {
            resolver,
            watchers: names.iter().map(|name| watcher(name)).collect(),
        }),
        ..crate::outputs::haproxy::render::tests::service("web")
    }
}

fn single() -> Service {
    let Watcher {
        ensemble,
        path,
        decode,
        ..
    } = watcher("a");
    Service {
        discovery: Discovery::Zookeeper {
            ensemble,
            path,
            decode,
        },
        ..crate::outputs::haproxy::render::tests::service("web")
    }
}

/// Sources, a service and a clock around one intake. Ports stand for instances.
struct Scene {
    service: Service,
    intake: Intake,
    views: BTreeMap<SourceKey, SourceView>,
    now: Duration,
    max_stale: Option<Duration>,
    sequence: u32,
}

impl Scene {
    fn of(service: Service, snapshot: &Snapshot) -> Self {
        Self::at(service, snapshot, Clock::now())
    }

    fn at(service: Service, snapshot: &Snapshot, now: Duration) -> Self {
        let clock = Clock::new();
        Self {
            intake: Intake::new(&service, snapshot, &clock, now),
            service,
            views: BTreeMap::new(),
            now,
            max_stale: None,
            sequence: 0,
        }
    }

    fn two(resolver: Resolver) -> Self {
        Self::of(service(resolver, &["a", "b"]), &Snapshot::default())
    }

    /// The source agrees, and has these instances; those it had keep their nodes.
    fn set(&mut self, name: &str, ports: impl IntoIterator<Item = u16>) {
        let view = self.views.entry(key(name)).or_default();
        let mut children = Children::new();
        for port in ports {
            let prefix = format!("i-{port}_");
            let known = view.children.iter().find(|(z, _)| z.starts_with(&prefix));
            let (znode, child) = match known {
                Some((znode, child)) => (znode.clone(), child.clone()),
                None => {
                    self.sequence += 1;
                    let data =
                        format!("{{\"host\":\"10.0.0.1\",\"port\":{port},\"announces\":true}}");
                    let child = Child {
                        data: data.into_bytes().into(),
                        czxid: 0,
                        mzxid: 0,
                    };
                    (format!("{prefix}{:010}", self.sequence), child)
                }
            };
            children.insert(znode, child);
        }
        view.children = Arc::new(children);
        view.confirmed = true;
        view.fresh = true;
        view.agreed_at = Some(Moment::at(self.now));
    }

    fn lose_contact(&mut self, name: &str) {
        let view = self.views.entry(key(name)).or_default();
        view.fresh = false;
        view.problem = Some("away".to_owned());
        // As the reconciler does when a view is another one.
        self.take();
    }

    fn wait(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
    }

    fn take(&mut self) -> Taken {
        let views = &self.views;
        let view = |key: &SourceKey| views.get(key).cloned().unwrap_or_default();
        self.intake.take(&view, self.max_stale, &Unknown, self.now)
    }

    /// Ports of what goes into the funnel, as the funnel decodes it.
    fn ports(&mut self) -> Vec<u16> {
        ports(&self.take())
    }
}

fn ports(taken: &Taken) -> Vec<u16> {
    let decoded = taken.view.children.iter();
    let mut ports: Vec<u16> = decoded
        .map(|(znode, child)| {
            crate::sources::decode::child(znode, &child.data, &Decode::Nerve).unwrap()
        })
        .map(|instance| instance.port)
        .collect();
    ports.sort_unstable();
    ports
}

#[test]
fn a_single_source_passes_as_it_is() {
    let mut scene = Scene::of(single(), &Snapshot::default());
    assert!(!scene.take().view.confirmed);
    scene.set("a", [1, 2]);
    let taken = scene.take();
    assert!(Arc::ptr_eq(
        &taken.view.children,
        &scene.views[&key("a")].children
    ));
    assert!(taken.held.is_empty() && taken.view.confirmed);
}

#[test]
fn what_a_guard_holds_goes_into_the_funnel_and_is_named() {
    let mut scene = Scene::of(single(), &Snapshot::default());
    scene.set("a", 1..=10);
    scene.take();
    scene.set("a", [1]);
    let taken = scene.take();
    assert_eq!(ports(&taken), (1..=10).collect::<Vec<_>>());
    assert_eq!(taken.held.len(), 9);
    assert!(scene.intake.is_waiting() && scene.intake.asks_checks());
    let again = scene.take();
    assert!(
        Arc::ptr_eq(&taken.view.children, &again.view.children),
        "the same set is the same"
    );
    // Over a restart, before and after the registry has spoken.
    let clock = Clock::new();
    let mut snapshot = Snapshot {
        boot: clock.boot().to_owned(),
        ..Snapshot::default()
    };
    let saved = scene.intake.save(&clock);
    snapshot.guards.insert("web".to_owned(), saved);
    let view = scene.views[&key("a")].clone();
    snapshot
        .sources
        .insert(key("a").to_string(), (&view).into());
    let mut later = Scene::of(single(), &snapshot);
    later.views.insert(key("a"), snapshot.view(&key("a")));
    assert_eq!(later.ports().len(), 10);
    later.views.insert(key("a"), view);
    assert_eq!(later.ports().len(), 10);
    assert_eq!(later.intake.release(), 9);
    assert_eq!(later.ports(), [1]);
}

#[test]
fn a_union_has_each_address_once_and_a_registered_one_before_a_held_one() {
    let mut scene = Scene::two(Resolver::Union);
    scene.set("a", 1..=6);
    scene.set("b", 4..=9);
    let taken = scene.take();
    assert_eq!(ports(&taken), (1..=9).collect::<Vec<_>>());
    let of_a = taken.view.children.keys().filter(|z| z.starts_with("a/"));
    assert_eq!(of_a.count(), 6, "the first source's word counts");
    // Ensemble a is wiped: b has some of them, the guard of a holds the rest.
    scene.set("a", []);
    let taken = scene.take();
    assert_eq!(ports(&taken), (1..=9).collect::<Vec<_>>());
    assert_eq!(taken.held.len(), 3);
    assert!(taken.held.iter().all(|znode| znode.starts_with("a/")));
    assert!(!taken.believed_empty);
}

#[test]
fn either_source_may_be_away_for_good() {
    for (away, other) in [("a", "b"), ("b", "a")] {
        let mut scene = Scene::two(Resolver::Union);
        scene.set("a", 1..=4);
        scene.set("b", 1..=4);
        scene.take();
        scene.lose_contact(away);
        scene.wait(3600);
        scene.set(other, 1..=5);
        assert_eq!(scene.ports(), [1, 2, 3, 4, 5], "an addition");
        scene.set(other, 2..=5);
        assert_eq!(scene.ports(), [2, 3, 4, 5], "a removal");
        let taken = scene.take();
        assert!(taken.view.confirmed && !taken.view.fresh);
        assert_eq!(
            taken.view.problem.as_deref(),
            Some(format!("{away}: away").as_str())
        );
    }
}

#[test]
fn a_full_replacement_seen_by_one_source_is_not_undone_by_the_other() {
    let mut scene = Scene::two(Resolver::Union);
    scene.set("a", 1..=4);
    scene.set("b", 1..=4);
    scene.take();
    // The connection to b is dead; that is noticed only later.
    scene.wait(1);
    for new in 11..=14u16 {
        scene.set("a", (new - 9..=4).chain(11..=new));
        scene.take();
    }
    assert_eq!(scene.ports().len(), 8, "as far as anybody knows b agrees");
    scene.wait(5);
    scene.lose_contact("b");
    assert_eq!(scene.ports(), [11, 12, 13, 14]);
    // Nor by a restart, nor when a goes away as well.
    let clock = Clock::new();
    let mut snapshot = Snapshot {
        boot: clock.boot().to_owned(),
        ..Snapshot::default()
    };
    let saved = scene.intake.save(&clock);
    snapshot.guards.insert("web".to_owned(), saved);
    for name in ["a", "b"] {
        let record = (&scene.views[&key(name)]).into();
        snapshot.sources.insert(key(name).to_string(), record);
    }
    let mut later = Scene::of(service(Resolver::Union, &["a", "b"]), &snapshot);
    later.views.insert(key("b"), snapshot.view(&key("b")));
    later.views.insert(key("a"), scene.views[&key("a")].clone());
    assert_eq!(later.ports(), [11, 12, 13, 14]);
    scene.lose_contact("a");
    scene.wait(3600);
    assert_eq!(scene.ports(), [11, 12, 13, 14]);
    // b is back: it is believed.
    scene.set("b", [11, 12, 13, 14, 15]);
    assert_eq!(scene.ports(), [11, 12, 13, 14, 15]);
}

#[test]
fn what_only_the_stale_source_ever_had_stays() {
    let mut scene = Scene::two(Resolver::Union);
    scene.set("a", [1, 2]);
    scene.set("b", [2, 3]);
    scene.take();
    // Removed from a long before b went away, and b went on having it.
    scene.set("a", [1]);
    scene.take();
    scene.wait(100);
    scene.take();
    scene.lose_contact("b");
    assert_eq!(scene.ports(), [1, 2, 3]);
}

#[test]
fn the_first_word_of_one_source_waits_a_moment_for_the_other() {
    let mut scene = Scene::two(Resolver::Union);
    scene.set("a", [1]);
    assert!(!scene.take().view.confirmed, "b may have most of them");
    assert!(scene.intake.is_waiting());
    scene.wait(10);
    let mark = scene.intake.mark();
    assert!(scene.take().view.confirmed);
    assert_ne!(scene.intake.mark(), mark);
}

#[test]
fn sequential_takes_the_first_that_is_connected_and_has_servers() {
    let mut scene = Scene::two(Resolver::Sequential);
    scene.set("a", [1]);
    scene.set("b", [2]);
    assert_eq!(scene.ports(), [1]);
    scene.lose_contact("a");
    scene.wait(10);
    assert_eq!(scene.ports(), [1], "a short disconnect is none");
    scene.wait(1);
    assert_eq!(scene.ports(), [2]);
    scene.lose_contact("b");
    scene.wait(100);
    assert_eq!(scene.ports(), [1], "nobody is connected: the first one");
    scene.set("b", [2]);
    assert_eq!(scene.ports(), [2]);
    scene.set("a", [3]);
    assert_eq!(scene.ports(), [3]);

    // The first source is empty and may be so: nothing was ever there.
    let mut scene = Scene::two(Resolver::Sequential);
    scene.set("a", []);
    scene.set("b", [2]);
    assert_eq!(scene.ports(), [2]);
}

#[test]
fn encodings_and_filters_of_each_source_are_its_own() {
    let filter = LabelFilter {
        label: "az".to_owned(),
        value: "x".into(),
        equals: true,
    };
    let mut service = service(Resolver::Union, &["a", "b"]);
    let Discovery::Multi(multi) = &mut service.discovery else {
        unreachable!("just made")
    };
    multi.watchers[0].decode = Decode::Serverset {
        endpoint_name: None,
    };
    multi.watchers[1].label_filters = vec![filter];
    let mut scene = Scene::of(service, &Snapshot::default());
    let child = |data: &str| Child {
        data: data.as_bytes().into(),
        czxid: 0,
        mzxid: 0,
    };
    let members =
        "{\"serviceEndpoint\":{\"host\":\"10.0.0.1\",\"port\":1},\"status\":\"ALIVE\",\"shard\":3}";
    let mut view = |name: &str, children: &[(&str, &str)]| {
        let children = children.iter().map(|(z, d)| ((*z).to_owned(), child(d)));
        let view = SourceView {
            children: Arc::new(children.collect()),
            confirmed: true,
            fresh: true,
            ..SourceView::default()
        };
        scene.views.insert(key(name), view);
    };
    view("a", &[("member_0000000001", members)]);
    view(
        "b",
        &[
            (
                "i_1",
                "{\"host\":\"10.0.0.1\",\"port\":2,\"labels\":{\"az\":\"x\"}}",
            ),
            (
                "i_2",
                "{\"host\":\"10.0.0.1\",\"port\":3,\"labels\":{\"az\":\"y\"}}",
            ),
        ],
    );
    let taken = scene.take();
    assert_eq!(ports(&taken), [1, 2]);
    let member = &taken.view.children["a/member_0000000001"];
    let instance = crate::sources::decode::child("z", &member.data, &Decode::Nerve).unwrap();
    assert_eq!(instance.name.as_deref(), Some("3"));
}

fn default_server() -> Vec<DefaultServer> {
    vec![DefaultServer {
        name: None,
        host: "10.0.0.9".to_owned(),
        port: 9,
        weight: None,
        haproxy_server_options: None,
        haproxy_server_id: None,
        labels: BTreeMap::new(),
    }]
}

#[test]
fn a_source_that_is_too_old_gives_way_only_to_something() {
    let hour = Duration::from_secs(3600);
    // Alone, without default servers: it stays.
    let mut scene = Scene::of(single(), &Snapshot::default());
    scene.max_stale = Some(hour);
    scene.set("a", [1]);
    scene.take();
    scene.lose_contact("a");
    scene.wait(3601);
    assert_eq!(scene.ports(), [1]);
    // With default servers it gives way to them.
    scene.service.default_servers = default_server();
    let service = scene.service.clone();
    scene.intake.configure(&service);
    assert!(scene.ports().is_empty());
    scene.set("a", [1]);
    assert_eq!(scene.ports(), [1]);

    // Among several it gives way to another one that is not too old.
    let mut scene = Scene::two(Resolver::Union);
    scene.max_stale = Some(hour);
    scene.set("a", [1]);
    scene.set("b", [2]);
    scene.take();
    scene.lose_contact("a");
    scene.wait(3600);
    assert_eq!(scene.ports(), [1, 2]);
    scene.wait(1);
    assert_eq!(scene.ports(), [2]);
    scene.lose_contact("b");
    scene.wait(3601);
    assert_eq!(scene.ports(), [1, 2], "both are: better old than nothing");
}

/// The clock that people set may be anywhere: what is remembered is as old as the clock since boot says, and over a boot at
/// least as old as this one.
#[test]
fn a_clock_that_was_set_decides_nothing() {
    let hour = Duration::from_secs(3600);
    let (clock, now, wall) = (Clock::new(), Clock::now(), SystemTime::now());
    let mut before = Scene::of(single(), &Snapshot::default());
    before.set("a", 1..=100);
    let children = Arc::clone(&before.views[&key("a")].children);
    for set_to in [
        wall - 2 * hour,
        wall + 2 * hour,
        wall,
        SystemTime::UNIX_EPOCH,
    ] {
        for (boot, young, serves) in [
            (clock.boot(), true, 3580),
            ("another boot", false, hour.saturating_sub(now).as_secs()),
            ("", false, 3580),
        ] {
            let record = SourceRecord {
                agreed_at: Some(set_to),
                agreed_boot: now.checked_sub(Duration::from_secs(10)),
                fresh: false,
                children: Arc::clone(&children),
            };
            let snapshot = Snapshot {
                boot: boot.to_owned(),
                sources: [(key("a").to_string(), record)].into(),
                ..Snapshot::default()
            };
            let mut scene = Scene::of(single(), &snapshot);
            scene.views.insert(key("a"), snapshot.view(&key("a")));
            // Most of it has gone while we were away: a young memory is what that is compared with.
            scene.set("a", 1..=3);
            let expected = if young { 100 } else { 3 };
            assert_eq!(scene.ports().len(), expected, "{set_to:?} {boot}");

            // And how old it is goes on being counted.
            let mut service = single();
            service.default_servers = default_server();
            let mut scene = Scene::of(service, &snapshot);
            scene.views.insert(key("a"), snapshot.view(&key("a")));
            scene.max_stale = Some(hour);
            scene.lose_contact("a");
            if serves > 10 {
                scene.wait(serves - 10);
                assert_eq!(scene.ports().len(), 100, "{set_to:?} {boot}");
            }
            scene.wait(60);
            assert_eq!(scene.ports().len(), 0, "{set_to:?} {boot}");
        }
    }
}

impl Scene {
    /// Killed and started again `now` after the boot that the snapshot calls `boot`. What it has noted by the clock on the
    /// wall is `wall`.
    fn restarted(&self, boot: &str, now: Duration, mut wall: impl FnMut() -> SystemTime) -> Self {
        let agreed = self.intake.agreed_boot(self.now);
        let agreed: BTreeMap<String, Duration> =
            agreed.map(|(k, at)| (k.to_string(), at)).collect();
        let record = |(key, view): (&SourceKey, &SourceView)| {
            let record = SourceRecord {
                agreed_at: view.agreed_at.map(|_| wall()),
                agreed_boot: agreed.get(&key.to_string()).copied(),
                fresh: false,
                children: Arc::clone(&view.children),
            };
            (key.to_string(), record)
        };
        let guards = self.intake.save(&Clock::new());
        let snapshot = Snapshot {
            boot: boot.to_owned(),
            sources: self.views.iter().map(record).collect(),
            guards: [("web".to_owned(), guards)].into(),
            ..Snapshot::default()
        };
        let mut scene = Self::at(self.service.clone(), &snapshot, now);
        let views = self
            .views
            .keys()
            .map(|key| (key.clone(), snapshot.view(key)));
        scene.views = views.collect();
        (scene.max_stale, scene.sequence) = (self.max_stale, self.sequence);
        scene
    }
}

/// Two hosts that are told the same. On one of them the clock on the wall is set anywhere before each step.
#[test]
fn no_decision_depends_on_the_wall_clock() {
    crate::testing::run("intake::tests::no_decision", |seed| {
        let mut rng = fastrand::Rng::with_seed(seed);
        let names = &["a", "b"][..rng.usize(1..=2)];
        let mut service = match names {
            [_] => single(),
            _ => service(Resolver::Union, names),
        };
        if rng.bool() {
            service.default_servers = default_server();
        }
        let start = Duration::from_secs(100_000);
        let max_stale = rng.bool().then(|| Duration::from_secs(rng.u64(1..7200)));
        let mut scenes = [(); 2].map(|()| {
            let mut scene = Scene::at(service.clone(), &Snapshot::default(), start);
            scene.max_stale = max_stale;
            scene
        });
        let clock = Clock::new();
        for step in 0..40 {
            let (dice, name) = (rng.u8(0..10), names[rng.usize(0..names.len())]);
            let (from, wait) = (rng.u16(1..6), rng.u64(0..3000));
            let ports = from..from + rng.u16(0..8);
            let boot = [clock.boot(), "another boot", ""][rng.usize(0..3)];
            let walls = rng.fork();
            for (scene, jumps) in scenes.iter_mut().zip([false, true]) {
                let mut walls = walls.clone();
                let mut wall = || match jumps {
                    true => {
                        SystemTime::UNIX_EPOCH + Duration::from_secs(walls.u64(0..4_000_000_000))
                    }
                    false => SystemTime::now(),
                };
                match dice {
                    0..4 => {
                        scene.set(name, ports.clone());
                        let view = scene.views.get_mut(&key(name)).unwrap();
                        view.agreed_at = Some(Moment::of_wall(wall()));
                    }
                    4..6 => scene.lose_contact(name),
                    6..8 => scene.wait(wait),
                    _ => {
                        let now = match boot == clock.boot() {
                            true => scene.now,
                            false => Duration::from_secs(wait),
                        };
                        *scene = scene.restarted(boot, now, wall);
                    }
                }
            }
            let [right, wrong] = scenes.each_mut().map(Scene::ports);
            assert_eq!(right, wrong, "step {step}");
        }
    });
}
