//! When a change is seen: by the answers of the local port, and by haproxy's own table. Threads of their own that do
//! nothing else; they run only around a change.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use smartstack_common::testing::ask_once;
use tokio::task::JoinHandle;

use crate::floor::Session;

/// Requests without an answer of a server until it is believed that none comes any more, and the least time.
const SILENT: u64 = 300;
const SILENCE: Duration = Duration::from_millis(60);
/// Ten times what a change should take at the slowest.
const LIMIT: Duration = Duration::from_secs(10);
/// Pause between two looks at the table.
const PAUSE: Duration = Duration::from_micros(150);

/// Something that is being watched for.
pub(crate) struct Probe {
    task: JoinHandle<Seen>,
    rounds: Arc<AtomicU64>,
    acted: Arc<AtomicBool>,
}

/// What a probe found.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seen {
    /// The first answer, the last answer, the first table that has it so.
    pub(crate) at: Instant,
    /// Mean time between two requests or looks.
    pub(crate) step: Duration,
}

impl Probe {
    /// The first answer of `server` through `port`.
    pub(crate) async fn first_answer(port: SocketAddr, server: IpAddr) -> Self {
        let server = server.to_string();
        Self::spawn(move |rounds, _| {
            let began = Instant::now();
            loop {
                let answer = ask(port);
                let at = Instant::now();
                let round = rounds.fetch_add(1, Ordering::AcqRel) + 1;
                if answer == server {
                    return Seen {
                        at,
                        step: step(began, at, round),
                    };
                }
                assert!(at - began < LIMIT, "{server} never answers at {port}");
            }
        })
        .await
    }

    /// The last answer of `server` through `port`.
    pub(crate) async fn last_answer(port: SocketAddr, server: IpAddr, turns: u64) -> Self {
        let server = server.to_string();
        Self::spawn(move |rounds, acted| {
            let began = Instant::now();
            let (mut last, mut silent) = (began, 0);
            loop {
                let answer = ask(port);
                let at = Instant::now();
                let round = rounds.fetch_add(1, Ordering::AcqRel) + 1;
                if answer == server {
                    (last, silent) = (at, 0);
                } else {
                    silent += 1;
                }
                let enough = silent >= SILENT.max(turns) && at - last > SILENCE;
                if enough && acted.load(Ordering::Acquire) {
                    return Seen {
                        at: last,
                        step: step(began, at, round),
                    };
                }
                assert!(at - began < LIMIT, "{server} answers at {port} for ever");
            }
        })
        .await
    }

    /// haproxy's table shows the server as taking requests (`there`), or not.
    pub(crate) async fn table(stats: &Path, backend: &str, id: u32, there: bool) -> Self {
        let (stats, command) = (stats.to_owned(), format!("show stat {backend} 4 {id}"));
        Self::spawn(move |rounds, _| {
            let mut session = Session::new(&stats);
            let began = Instant::now();
            loop {
                let reply = session.command(&command, "pxname");
                let at = Instant::now();
                let round = rounds.fetch_add(1, Ordering::AcqRel) + 1;
                if serving(&reply) == there {
                    return Seen {
                        at,
                        step: step(began, at, round),
                    };
                }
                assert!(at - began < LIMIT, "{command}: {reply}");
                std::thread::sleep(PAUSE);
            }
        })
        .await
    }

    /// Starts the thread and waits until it is under way.
    async fn spawn(probe: impl FnOnce(&AtomicU64, &AtomicBool) -> Seen + Send + 'static) -> Self {
        let (rounds, acted) = (
            Arc::new(AtomicU64::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let (counter, flag) = (Arc::clone(&rounds), Arc::clone(&acted));
        let task = tokio::task::spawn_blocking(move || probe(&counter, &flag));
        let probe = Self {
            task,
            rounds,
            acted,
        };
        while probe.rounds.load(Ordering::Acquire) < 5 && !probe.task.is_finished() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        probe
    }

    /// The change was made: what is found now is its effect.
    pub(crate) async fn seen(self) -> Seen {
        self.acted.store(true, Ordering::Release);
        self.task.await.expect("a probe does not panic")
    }
}

fn ask(port: SocketAddr) -> String {
    ask_once(port).unwrap_or_else(|kind| panic!("a request to {port} failed: {kind}"))
}

fn step(began: Instant, now: Instant, rounds: u64) -> Duration {
    (now - began).div_f64(rounds as f64)
}

/// Whether a `show stat` of one server has it, and it takes requests.
fn serving(reply: &str) -> bool {
    let mut lines = reply.lines().map(|line| line.trim_start_matches("> "));
    let titles = lines.find(|line| line.starts_with("# pxname"));
    let column = titles.and_then(|titles| titles.split(',').position(|title| title == "status"));
    let row = lines.find(|line| line.contains(','));
    let status = column.and_then(|column| row?.split(',').nth(column));
    status.is_some_and(|status| status.starts_with("UP") || status == "no check")
}
