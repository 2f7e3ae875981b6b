//! What is written is read back; whatever else is in the file is set aside.

use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use proptest::prelude::*;
use smartstack_common::atomic::{Durability, Mode, replace};
use smartstack_common::shutdown::Shutdown;
use smartstack_common::units::{Ensemble, ZkPath};
use tokio::sync::watch;

use super::file::{Cache, parse};
use super::*;
use crate::model::member::Why;
use crate::model::source::Child;
use crate::wanted::guard::{Saved, SavedMember};

fn set(children: &[(&str, &[u8])]) -> Arc<Children> {
    let child = |data: &[u8]| Child {
        data: data.into(),
        czxid: 0,
        mzxid: 0,
    };
    Arc::new(
        children
            .iter()
            .map(|(name, data)| ((*name).to_owned(), child(data)))
            .collect(),
    )
}

fn key(path: &str) -> SourceKey {
    SourceKey {
        ensemble: Ensemble::new(&["b:1", "a:1/root"]).unwrap(),
        path: ZkPath::new(path).unwrap(),
    }
}

fn full() -> Snapshot {
    let source = SourceRecord {
        agreed_at: Some(UNIX_EPOCH + Duration::from_millis(1_700_000_000_125)),
        agreed_boot: Some(Duration::from_millis(1500)),
        fresh: false,
        children: set(&[
            ("i-1_0000000001", b"{\"host\":\"\xc3\xa9\"}"),
            ("odd \"name\"", b"\xff\x00\x01"),
            ("empty", b""),
        ]),
    };
    let hold = Hold {
        source: key("/web").to_string(),
        children: set(&[("i", b"x")]),
    };
    Snapshot {
        machine: "m".to_owned(),
        boot: "b".to_owned(),
        sources: BTreeMap::from([(key("/web").to_string(), source)]),
        resolved: Arc::new(BTreeMap::from([(
            "db".to_owned(),
            vec!["10.0.0.1".parse().unwrap(), "::1".parse().unwrap()],
        )])),
        ids: BTreeMap::from([(
            "web".to_owned(),
            Arc::new(BTreeMap::from([("a_10.0.0.1:80".to_owned(), 7)])),
        )]),
        operator: Arc::new(BTreeMap::from([("web/a".to_owned(), "maint".to_owned())])),
        holds: BTreeMap::from([("web".to_owned(), hold)]),
        guards: BTreeMap::from([(
            "web".to_owned(),
            BTreeMap::from([(key("/web").to_string(), guarded())]),
        )]),
        worker: Some(Arc::new(Worker {
            pid: 4242,
            start: Some(99),
            options: BTreeMap::from([(
                "web".to_owned(),
                Arc::new(BTreeMap::from([("a".to_owned(), "h".into())])),
            )]),
        })),
    }
}

/// A guard that holds an address whose payload is not text.
fn guarded() -> Saved {
    let held = SavedMember {
        host: "10.0.0.9".into(),
        port: 80,
        znode: "i-9_0000000009".into(),
        data: Payload(b"\xff{}"[..].into()),
        since: 1000,
        judged_from: 2000,
        until: Some(602_000),
        why: Some(Why::Share),
        shared: false,
        believed: false,
    };
    Saved {
        boot: "b".to_owned(),
        whole: 100,
        held: vec![held.clone()],
        losses: vec![SavedMember {
            until: None,
            why: None,
            ..held
        }],
        removed: vec![("10.0.0.8".into(), 81)],
    }
}

fn write(path: &Path, text: impl AsRef<[u8]>) {
    replace(
        path,
        [text.as_ref()],
        Mode::Private(0o600),
        Durability::Rename,
    )
    .unwrap();
}

#[test]
fn everything_comes_back() {
    let text = Cache::default().render(&full(), (UNIX_EPOCH, Duration::ZERO));
    let value: serde_json::Value = serde_json::from_str(&text).expect("the whole file is JSON");
    assert_eq!(value["format"], 1);
    assert_eq!(
        value["body"]["sources"]["a:1,b:1/root|/web"]["agreed_at"],
        1_700_000_000.125
    );
    assert_eq!(
        value["body"]["sources"]["a:1,b:1/root|/web"]["children"]["odd \"name\""]["base64"],
        "/wAB"
    );
    let back = parse(&text).unwrap();
    assert_eq!(back, full());
    assert_eq!(back.source(&key("/web")).unwrap().children.len(), 3);
    assert!(back.source(&key("/other")).is_none());
    assert_eq!(back.hold("web", &key("/web").to_string()).unwrap().len(), 1);
    assert!(
        back.hold("web", &key("/other").to_string()).is_none(),
        "a hold of another path is not believed"
    );
    assert!(!back.view(&key("/web")).confirmed);
    assert_eq!(
        parse(&Cache::default().render(&Snapshot::default(), (UNIX_EPOCH, Duration::ZERO)))
            .unwrap(),
        Snapshot::default()
    );
}

#[test]
fn a_fresh_source_agreed_when_it_was_written() {
    let mut snapshot = full();
    for source in snapshot.sources.values_mut() {
        source.fresh = true;
    }
    let now = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let back = parse(&Cache::default().render(&snapshot, (now, Duration::from_secs(7)))).unwrap();
    let source = back.source(&key("/web")).unwrap();
    assert_eq!(source.agreed_at, Some(now));
    assert_eq!(source.agreed_boot, Some(Duration::from_secs(7)));
}

#[test]
fn the_cache_follows_every_change() {
    let mut cache = Cache::default();
    let mut snapshot = full();
    cache.render(&snapshot, (UNIX_EPOCH, Duration::ZERO));
    let same = cache.render(&snapshot, (UNIX_EPOCH, Duration::ZERO));
    assert_eq!(parse(&same).unwrap(), snapshot);
    let source = snapshot.sources.get_mut(&key("/web").to_string()).unwrap();
    Arc::make_mut(&mut source.children).remove("empty");
    assert_eq!(
        parse(&cache.render(&snapshot, (UNIX_EPOCH, Duration::ZERO))).unwrap(),
        snapshot
    );
    snapshot.sources.clear();
    assert_eq!(
        parse(&cache.render(&snapshot, (UNIX_EPOCH, Duration::ZERO))).unwrap(),
        snapshot
    );
}

#[test]
fn no_file_is_no_problem() {
    let folder = tempfile::tempdir().unwrap();
    let loaded = read(&folder.path().join("none.json"), "m");
    assert!(loaded.snapshot.is_none() && loaded.problem.is_none());
}

#[test]
fn a_good_file_is_read_and_left() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("snapshot.json");
    write(
        &path,
        Cache::default().render(&full(), (UNIX_EPOCH, Duration::ZERO)),
    );
    assert_eq!(read(&path, "m").snapshot, Some(full()));
    assert!(path.exists());
}

#[test]
fn what_cannot_be_used_is_set_aside_with_the_reason() {
    let good = Cache::default().render(&full(), (UNIX_EPOCH, Duration::ZERO));
    let other = good.replacen("\"format\":1", "\"format\":2", 1);
    let flipped = good.replacen("maint", "ready", 1);
    for (content, reason) in [
        (b"".to_vec(), "damaged"),
        (b"{}".to_vec(), "damaged"),
        (b"\xff\xfe".to_vec(), "not UTF-8"),
        (good.as_bytes()[..good.len() / 2].to_vec(), "damaged"),
        (good.trim_end().as_bytes().to_vec(), "damaged"),
        (flipped.into_bytes(), "checksum"),
        (
            other.into_bytes(),
            "it has format `2`, this program reads 1",
        ),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("snapshot.json");
        write(&path, &content);
        let loaded = read(&path, "m");
        assert!(loaded.snapshot.is_none());
        let problem = loaded.problem.unwrap().to_string();
        assert!(
            problem.contains(reason) && problem.contains("snapshot.json.bad-1"),
            "{problem}"
        );
        assert!(!path.exists());
        assert_eq!(
            std::fs::read(folder.path().join("snapshot.json.bad-1")).unwrap(),
            content
        );
    }
}

#[test]
fn another_machine_and_odd_files_count_as_none_and_few_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("snapshot.json");
    for _ in 0..6 {
        write(
            &path,
            Cache::default().render(&full(), (UNIX_EPOCH, Duration::ZERO)),
        );
        let problem = read(&path, "another").problem.unwrap().to_string();
        assert!(
            problem.contains("of another machine (`m`, this is `another`)"),
            "{problem}"
        );
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 3);
    std::fs::create_dir(&path).unwrap();
    let problem = read(&path, "m").problem.unwrap().to_string();
    assert!(problem.contains("not a regular file"), "{problem}");
}

proptest! {
    #[test]
    fn any_payload_survives(children in proptest::collection::btree_map(".{1,12}", proptest::collection::vec(any::<u8>(), 0..40), 0..8)) {
        let mut snapshot = full();
        let child = |data: Vec<u8>| Child { data: data.into(), czxid: 0, mzxid: 0 };
        let set = children.into_iter().map(|(name, data)| (name, child(data))).collect();
        snapshot.sources.get_mut(&key("/web").to_string()).unwrap().children = Arc::new(set);
        prop_assert_eq!(parse(&Cache::default().render(&snapshot, (UNIX_EPOCH, Duration::ZERO))).unwrap(), snapshot);
    }

    #[test]
    fn any_damage_is_noticed(at in any::<prop::sample::Index>(), byte in 0x20u8..0x7f) {
        let good = Cache::default().render(&full(), (UNIX_EPOCH, Duration::ZERO));
        let mut bytes = good.clone().into_bytes();
        let at = at.index(bytes.len());
        prop_assume!(bytes[at].is_ascii() && bytes[at] != byte);
        bytes[at] = byte;
        if let Ok(text) = String::from_utf8(bytes) {
            prop_assert!(parse(&text).is_err());
        }
    }
}

/// A writer with its channel, under a paused clock.
struct Writing {
    path: std::path::PathBuf,
    state: watch::Sender<Arc<Snapshot>>,
    counters: Arc<Counters>,
    stop: watch::Sender<bool>,
    tasks: tokio::task::JoinSet<()>,
}

impl Writing {
    fn start(path: &Path) -> Self {
        let (state, receiver) = watch::channel(Arc::new(Snapshot::default()));
        let (stop, shutdown) = Shutdown::channel();
        let counters = Arc::new(Counters::default());
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(write_behind(
            path.to_owned(),
            receiver,
            counters.clone(),
            shutdown,
        ));
        Self {
            path: path.to_owned(),
            state,
            counters,
            stop,
            tasks,
        }
    }

    fn publish(&self, pid: u32) {
        let worker = Some(Arc::new(Worker {
            pid,
            ..Worker::default()
        }));
        self.state
            .send_replace(Arc::new(Snapshot { worker, ..full() }));
    }

    async fn end(mut self) {
        self.stop.send_replace(true);
        self.tasks.join_next().await.unwrap().unwrap();
    }

    fn pid(&self) -> u32 {
        read(&self.path, "m")
            .snapshot
            .and_then(|s| s.worker.as_ref().map(|w| w.pid))
            .unwrap_or_default()
    }

    fn count(&self) -> (u64, u64) {
        let load = |n: &std::sync::atomic::AtomicU64| n.load(std::sync::atomic::Ordering::Relaxed);
        (load(&self.counters.writes), load(&self.counters.failures))
    }
}

#[tokio::test(start_paused = true)]
async fn the_latest_state_is_written_at_most_once_a_second_and_at_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("snapshot.json");
    let writing = Writing::start(&path);
    for pid in 1..=50 {
        writing.publish(pid);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let (writes, failures) = writing.count();
    assert!((3..=7).contains(&writes), "{writes} writes in 5 s");
    assert_eq!(failures, 0);
    assert!(
        writing.pid() > 30,
        "the latest, not the next: {}",
        writing.pid()
    );
    writing.publish(99);
    let (path, counters) = (writing.path.clone(), writing.counters.clone());
    writing.end().await;
    assert_eq!(read(&path, "m").snapshot.unwrap().worker.unwrap().pid, 99);
    assert_eq!(
        counters.bytes.load(std::sync::atomic::Ordering::Relaxed),
        std::fs::metadata(&path).unwrap().len()
    );
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn a_stop_before_anything_was_published_keeps_the_old_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("snapshot.json");
    write(
        &path,
        Cache::default().render(&full(), (UNIX_EPOCH, Duration::ZERO)),
    );
    Writing::start(&path).end().await;
    assert_eq!(read(&path, "m").snapshot, Some(full()));
}

#[tokio::test(start_paused = true)]
async fn a_folder_that_is_missing_is_a_counter_and_tried_again_until_it_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("later/snapshot.json");
    let writing = Writing::start(&path);
    writing.publish(1);
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(writing.count(), (0, 1));
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(writing.count(), (0, 2));
    std::fs::create_dir(path.parent().unwrap()).unwrap();
    // Nothing changes, and it is written all the same.
    tokio::time::sleep(Duration::from_secs(7)).await;
    assert_eq!((writing.count(), writing.pid()), ((1, 2), 1));
}
