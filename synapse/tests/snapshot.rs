//! The snapshot file and its lock as other processes meet them.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use smartstack_common::shutdown::Shutdown;
use smartstack_common::testing::{Dir, Process, eventually};
use synapse::model::source::Child;
use synapse::snapshot::{
    Counters, Lock, LockError, Snapshot, SourceRecord, Worker, read, write_behind,
};
use tokio::sync::watch;
use tokio::task::JoinSet;

const SOON: Duration = Duration::from_secs(30);

/// A snapshot large enough that half of it would be noticed.
fn snapshot(pid: u32) -> Arc<Snapshot> {
    let payload = format!("{{\"host\":\"10.0.0.1\",\"port\":80,\"name\":\"{pid}\"}}");
    let child = |n: u32| {
        (
            format!("i_{n:010}"),
            Child {
                data: payload.as_bytes().into(),
                czxid: 0,
                mzxid: 0,
            },
        )
    };
    let record = |n: u32| {
        let children = Arc::new((0..10).map(child).collect());
        (
            format!("a:1|/services/s{n}"),
            SourceRecord {
                agreed_at: None,
                agreed_boot: None,
                fresh: true,
                children,
            },
        )
    };
    Arc::new(Snapshot {
        machine: "m".to_owned(),
        sources: (0..300).map(record).collect(),
        worker: Some(Arc::new(Worker {
            pid,
            start: None,
            options: BTreeMap::new(),
        })),
        ..Snapshot::default()
    })
}

#[tokio::test]
async fn a_reader_finds_a_whole_snapshot_at_every_moment() {
    let dir = Dir::new();
    let path = dir.join("snapshot.json");
    let counters = Arc::new(Counters::default());
    let writes = || counters.writes.load(std::sync::atomic::Ordering::Relaxed);
    // Each writer ends at once, so that the pauses between writes do not slow the test down.
    for pid in 1..=40 {
        let (state, receiver) = watch::channel(Arc::new(Snapshot::default()));
        let (stop, shutdown) = Shutdown::channel();
        let mut tasks = JoinSet::new();
        state.send_replace(snapshot(pid));
        stop.send_replace(true);
        tasks.spawn(write_behind(
            path.clone(),
            receiver,
            counters.clone(),
            shutdown,
        ));
        while !tasks.is_empty() {
            let loaded = read(&path, "m");
            assert!(loaded.problem.is_none(), "{:?}", loaded.problem);
            if let Some(found) = loaded.snapshot {
                assert_eq!(found.sources.len(), 300);
                let found = found.worker.map(|w| w.pid).unwrap_or_default();
                assert!(
                    found == pid || found == pid - 1,
                    "{found} while writing {pid}"
                );
            }
            tokio::task::yield_now().await;
            while tasks.try_join_next().is_some() {}
        }
        assert_eq!(writes(), u64::from(pid));
        assert_eq!(read(&path, "m").snapshot.unwrap().worker.unwrap().pid, pid);
    }
    let beside: Vec<_> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(beside, ["snapshot.json"], "nothing is left beside it");
}

#[tokio::test]
async fn the_lock_goes_with_the_process_that_holds_it() {
    let dir = Dir::new();
    let path = dir.join("snapshot.json");
    // Takes the lock as any process would, and writes its pid into it.
    let script = format!(
        "exec 9<>'{0}.lock' && flock 9 && echo $$ >&9 && exec tail -f /dev/null",
        path.display()
    );
    let mut command = Command::new("sh");
    command.args(["-c", &script]);
    let mut other = Process::spawn(
        "sh",
        &mut command,
        &dir.join("log"),
        "install util-linux for `flock`",
    );
    let pid = other.pid();
    eventually(
        "the other process holds the lock",
        SOON,
        async || match Lock::acquire(&path) {
            Err(LockError::Held {
                holder: Some(holder),
                ..
            }) if holder == pid => Ok(()),
            Err(error) => Err(error.to_string()),
            Ok(_free) => Err("it is free".to_owned()),
        },
    )
    .await;
    other.kill();
    let lock = Lock::acquire(&path).expect("free once the holder is dead");
    let text = std::fs::read_to_string(dir.join("snapshot.json.lock")).unwrap();
    assert_eq!(text.trim(), std::process::id().to_string());
    drop(lock);
}
