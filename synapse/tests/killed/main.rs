//! synapse is killed again and again while the registry changes: after each kill the snapshot on disk is absent (only
//! before the first was written) or complete, the one before or the new one; nothing piles up beside it; and the next
//! start begins with it. And a disk that is full, or on which a write takes for ever, holds up nobody's servers.
//! `KILLS` is how many (40), `KILLS_SEED` replays their moments.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

#[path = "../soak/disk.rs"]
mod disk;
mod registry;
#[path = "../rig/mod.rs"]
mod rig;
mod slow;
mod watchdog;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use smartstack_common::process::machine_id;
use smartstack_common::testing::{Dir, ZooKeeper, eventually, free_port};
use synapse::snapshot::{self, Snapshot};

use disk::Disk;
use registry::{Churn, History};
use rig::{Rig, SOON, patient, settings};
use slow::Slow;

const WEB: &str = "/killed/web";
const BALLAST: &str = "/killed/ballast";
/// Nodes that make the snapshot large enough for a kill to find it half written, and their size.
const BALLAST_NODES: u32 = 200;
const BALLAST_BYTES: usize = 4 << 10;

fn configuration(dir: &Dir, zookeeper: &ZooKeeper) -> Value {
    let mut config = settings(dir);
    config["guard"] = json!("off");
    for (name, path) in [("web", WEB), ("ballast", BALLAST)] {
        config["services"][name] = json!({
            "discovery": {"method": "zookeeper", "hosts": [zookeeper.hosts()], "path": path},
            "haproxy": {"port": free_port(), "bind_address": "127.0.0.1"},
        });
    }
    config
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text}")))
}

/// What lies beside the snapshot that is neither it nor its lock.
fn beside(snapshot: &Path) -> Vec<String> {
    let names = std::fs::read_dir(snapshot.parent().unwrap()).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names
        .filter(|name| {
            // The lock, and the notes of removals.
            let others = [
                "snapshot.json",
                "snapshot.json.lock",
                "snapshot.json.removed",
            ];
            !others.contains(&name.as_str())
        })
        .collect()
}

/// The servers that a snapshot has of `web`: numbers. Everything else in it must be whole, too.
fn servers(snapshot: &Snapshot) -> Option<BTreeSet<u32>> {
    let of = |path: &str| {
        let mut sources = snapshot.sources.iter();
        sources.find(|(key, _)| key.ends_with(&format!("|{path}")))
    };
    if let Some((_, ballast)) = of(BALLAST) {
        assert_eq!(ballast.children.len(), BALLAST_NODES as usize);
        for child in ballast.children.values() {
            assert!(child.data.len() > BALLAST_BYTES);
        }
    }
    let (_, web) = of(WEB)?;
    let number = |(name, child): (&String, &synapse::model::source::Child)| {
        let number: u32 = name.rsplit_once('_').unwrap().1.parse().unwrap();
        assert_eq!(*child.data, *registry::payload(number, 0));
        number
    };
    Some(web.children.iter().map(number).collect())
}

/// What was found after the kills.
#[derive(Debug, Default)]
struct Found {
    absent: u32,
    whole: u32,
    /// Snapshots that are exactly what the registry was at some time.
    exact: u32,
    /// What kills left half written beside the snapshot.
    half_way: BTreeSet<String>,
    versions: BTreeSet<Vec<u8>>,
    /// The earliest state of the registry that the last one can be, and those of all.
    state: usize,
    states: BTreeSet<usize>,
    /// The servers of the last one.
    servers: BTreeSet<u32>,
}

impl Found {
    fn look(&mut self, path: &Path, history: &History) {
        let Ok(bytes) = std::fs::read(path) else {
            assert_eq!(self.whole, 0, "a snapshot that was there is gone");
            self.absent += 1;
            return;
        };
        // The program's own reader: format, checksum, machine.
        let snapshot = snapshot::peek(path, &machine_id());
        let snapshot = snapshot
            .unwrap_or_else(|| panic!("not whole: {} bytes of {}", bytes.len(), path.display()));
        self.whole += 1;
        self.versions.insert(bytes);
        if let Some(servers) = servers(&snapshot) {
            // Never back: the one before, or a newer one.
            let state = history.earliest(&servers, &self.servers, self.state);
            self.state = state.unwrap_or_else(|| {
                panic!(
                    "the registry never was {servers:?} after state {} (then {:?}): {history}",
                    self.state, self.servers
                )
            });
            self.states.insert(self.state);
            self.exact += u32::from(history.was(&servers));
            self.servers = servers;
        }
        let left = beside(path);
        // The notes are replaced beside it.
        let is_note = |name: &String| name.contains("snapshot.json.removed");
        let (notes, left): (Vec<String>, Vec<String>) = left.into_iter().partition(is_note);
        assert!(
            left.len() <= 1 && notes.len() <= 1,
            "files pile up: {left:?} {notes:?}"
        );
        self.half_way.extend(left);
    }
}

/// The moment of a kill.
#[derive(Debug, Clone, Copy)]
enum Moment {
    /// So long after the start.
    After(Duration),
    /// As soon as the file is being written for the so-manieth time.
    Write(u32),
}

impl Moment {
    fn some(rng: &mut fastrand::Rng, number: u64) -> Self {
        match number % 2 {
            0 => Self::After(Duration::from_millis(rng.u64(0..2_500))),
            _ => Self::Write(1 + rng.u32(0..3) / 2),
        }
    }

    /// Waits for it and kills: from the same thread, or the write would be over.
    async fn strike(self, pid: u32, path: PathBuf) {
        let pid = Pid::from_raw(i32::try_from(pid).unwrap());
        let wait = move || {
            #[expect(
                clippy::disallowed_methods,
                reason = "a thread of its own, in real time"
            )]
            let began = std::time::Instant::now();
            let mut seen: BTreeSet<String> = beside(&path).into_iter().collect();
            let mut writes = 0;
            loop {
                // A write that is over was counted when its file was there; few are missed.
                let new = beside(&path)
                    .into_iter()
                    .filter(|name| seen.insert(name.clone()));
                writes += u32::try_from(new.count()).unwrap();
                let (limit, is_due) = match self {
                    Self::After(time) => (time, false),
                    Self::Write(number) => (Duration::from_secs(4), writes >= number),
                };
                if is_due || began.elapsed() >= limit {
                    return kill(pid, Signal::SIGKILL).unwrap();
                }
            }
        };
        tokio::task::spawn_blocking(wait).await.unwrap();
    }
}

#[tokio::test]
async fn a_kill_at_any_moment_leaves_the_previous_or_the_new_snapshot() {
    let kills = number("KILLS").unwrap_or(40);
    let seed = number("KILLS_SEED").unwrap_or_else(|| fastrand::u64(0..1_000_000));
    println!("KILLS_SEED={seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let (mut zookeeper, dir) = (ZooKeeper::start().await, Dir::new());
    let client = patient(&zookeeper).await;
    for path in [WEB, BALLAST] {
        ZooKeeper::make_path(&client, path).await;
    }
    for number in 0..BALLAST_NODES {
        registry::create(&client, BALLAST, number, BALLAST_BYTES).await;
    }
    let churn = Churn::start(client, WEB, rng.u64(..)).await;
    let path = dir.join("state/snapshot.json");
    let config = configuration(&dir, &zookeeper);
    // In memory: a slow disk makes writes rare (they take a hundredth of the time at most), and so what there is to see.
    let _disk = Disk::mount(dir.join("state"));
    let mut rig = Rig::launch(dir, &config);
    let mut found = Found::default();
    for number in 0..kills {
        let pid = rig.synapse.process().pid();
        let moment = Moment::some(&mut rng, number);
        moment.strike(pid, path.clone()).await;
        rig.synapse.wait(SOON).await;
        found.look(&path, &churn.history());
        rig.start_synapse();
    }
    rig.synapse.ready(SOON).await;
    let history = churn.stop().await;
    let log = rig.whole_log();
    assert!(!log.contains("the snapshot cannot be used"), "{log}");
    println!(
        "{kills} kills: {} snapshots ({} exactly a state of the registry), {} distinct, of {} states, {} absent; {} found a file being written; {} changes of the registry, \
         the last snapshot is of change {}",
        found.whole,
        found.exact,
        found.versions.len(),
        found.states.len(),
        found.absent,
        found.half_way.len(),
        history.len(),
        found.state,
    );
    // How many of the strikes at a write come in time is the machine's load: 4, 2 and 1 of 20 when three ran at once.
    assert!(
        found.states.len() > 3 && !found.half_way.is_empty(),
        "the kills met nothing"
    );

    // What it says is what a host without anything else begins with.
    let now = history.last();
    eventually("the snapshot is the registry", SOON, async || {
        let snapshot = snapshot::peek(&path, &machine_id());
        match snapshot.as_ref().and_then(servers) {
            Some(found) if found == now => Ok(()),
            found => Err(format!("{found:?}, not {now:?}")),
        }
    })
    .await;
    rig.synapse.signal(Signal::SIGKILL);
    rig.synapse.wait(SOON).await;
    zookeeper.stop_all();
    rig.haproxy.kill();
    std::fs::remove_file(rig.config_file()).unwrap();
    rig.start_synapse();
    rig.synapse.ready(SOON).await;
    let names: Vec<String> = now.iter().map(|number| registry::name(*number)).collect();
    rig.serves("web", &names).await;
    assert_eq!(
        beside(&path),
        [""; 0],
        "what a kill has left goes at the next start"
    );
}

/// Servers come and go, and haproxy follows, ten times.
async fn propagates(
    rig: &mut Rig,
    client: &zookeeper_client::Client,
    numbers: std::ops::Range<u32>,
) {
    let mut there: BTreeSet<u32> = [0].into();
    for number in numbers {
        registry::create(client, WEB, number, 0).await;
        there.insert(number);
        let names =
            |there: &BTreeSet<u32>| there.iter().map(|n| registry::name(*n)).collect::<Vec<_>>();
        rig.serves("web", &names(&there)).await;
        if number % 2 == 0 {
            let gone = there.pop_last().unwrap();
            registry::delete(client, WEB, gone).await;
            rig.serves("web", &names(&there)).await;
        }
    }
    for number in there.into_iter().skip(1) {
        registry::delete(client, WEB, number).await;
    }
    rig.serves("web", &[registry::name(0)]).await;
}

async fn counters(rig: &Rig) -> BTreeMap<&'static str, f64> {
    let mut counters = BTreeMap::new();
    for name in [
        "synapse_snapshot_writes_total",
        "synapse_snapshot_write_failures_total",
        "synapse_reloads_total",
    ] {
        counters.insert(name, rig.synapse.metric(name).await.unwrap());
    }
    counters
}

/// The snapshot on disk has these servers.
async fn remembered(path: &Path, wanted: &[u32]) {
    eventually(
        "the snapshot is the registry",
        Duration::from_secs(60),
        async || {
            let snapshot = snapshot::peek(path, &machine_id());
            match snapshot.as_ref().and_then(servers) {
                Some(found) if found.iter().eq(wanted) => Ok(()),
                found => Err(format!("{found:?}")),
            }
        },
    )
    .await;
}

#[tokio::test]
async fn a_disk_that_is_full_or_never_answers_holds_up_nobody() {
    let (zookeeper, dir) = (ZooKeeper::start().await, Dir::new());
    let client = patient(&zookeeper).await;
    for path in [WEB, BALLAST] {
        ZooKeeper::make_path(&client, path).await;
    }
    for number in 0..BALLAST_NODES {
        registry::create(&client, BALLAST, number, BALLAST_BYTES).await;
    }
    registry::create(&client, WEB, 0, 0).await;
    let path = dir.join("state/snapshot.json");
    let disk = Disk::mount(dir.join("state"));
    let config = configuration(&dir, &zookeeper);
    let mut rig = Rig::start(dir, &config).await;
    rig.serves("web", &[registry::name(0)]).await;
    remembered(&path, &[0]).await;
    let before = counters(&rig).await;

    let filler = disk.fill();
    propagates(&mut rig, &client, 1..11).await;
    eventually("a snapshot could not be written", SOON, async || {
        let now = counters(&rig).await;
        let name = "synapse_snapshot_write_failures_total";
        if now[name] > before[name] {
            Ok(())
        } else {
            Err(format!("{now:?}"))
        }
    })
    .await;
    propagates(&mut rig, &client, 11..21).await;
    let full = counters(&rig).await;
    assert!(
        snapshot::peek(&path, &machine_id()).is_some(),
        "the last one that could be written stays"
    );
    std::fs::remove_file(filler).unwrap();
    registry::create(&client, WEB, 21, 0).await;
    remembered(&path, &[0, 21]).await;
    registry::delete(&client, WEB, 21).await;
    remembered(&path, &[0]).await;

    // From here on a write never ends.
    let slow = Slow::disk(path.parent().unwrap());
    registry::create(&client, WEB, 22, 0).await;
    let names = [0, 22].map(registry::name);
    let (waits, ()) = tokio::join!(slow.somebody_waits(), rig.serves("web", &names));
    let stuck = counters(&rig).await;
    registry::delete(&client, WEB, 22).await;
    propagates(&mut rig, &client, 23..43).await;
    let now = counters(&rig).await;
    assert_eq!(
        now["synapse_snapshot_writes_total"], stuck["synapse_snapshot_writes_total"],
        "it is still being written"
    );
    slow.let_go(&waits);
    drop((waits, slow));
    remembered(&path, &[0]).await;
    println!("before {before:?}; full {full:?}; stuck {stuck:?}, then {now:?}");
    for state in [&full, &stuck, &now] {
        assert_eq!(
            state["synapse_reloads_total"],
            before["synapse_reloads_total"]
        );
    }
    assert!(
        full["synapse_snapshot_write_failures_total"]
            > before["synapse_snapshot_write_failures_total"]
    );
    // At most one each second: rarer than the changes, which were all seen by haproxy.
    assert_eq!(
        counters(&rig).await["synapse_snapshot_write_failures_total"],
        stuck["synapse_snapshot_write_failures_total"]
    );
}
