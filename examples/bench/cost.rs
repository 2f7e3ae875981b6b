//! What a change costs: CPU, memory, bytes written, requests to ZooKeeper.

use std::time::{Duration, Instant};

use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;

use crate::site::Site;

/// Changes per second of the paced series.
const RATE: f64 = 5.0;
/// Changes in it.
const CHANGES: usize = 150;
/// Additions, then removals, of which the requests to ZooKeeper are counted.
const COUNTED: u32 = 20;
/// Time in which nothing changes, to see what is spent on nothing.
const IDLE: Duration = Duration::from_secs(10);

/// The costs at one size.
#[derive(Debug, Clone)]
pub(crate) struct Costs {
    /// Milliseconds per change: synapse and the children it has waited for.
    pub(crate) synapse: f64,
    /// The same without what it spends per second when nothing changes.
    pub(crate) net: f64,
    /// Milliseconds per change: haproxy's worker, checks included.
    pub(crate) haproxy: f64,
    /// Milliseconds per second, when nothing changes.
    pub(crate) idle: f64,
    /// Bytes per change given to `write`, files and sockets.
    pub(crate) written: f64,
    /// MB.
    pub(crate) resident: f64,
    pub(crate) highest: f64,
    /// kB.
    pub(crate) config: f64,
    pub(crate) snapshot: f64,
    /// Requests per added and per removed server: synapse's own count, and what the server received on its connections
    /// beyond what it receives when idle.
    pub(crate) requests: [Requests; 2],
}

/// Requests to ZooKeeper: in all, per second, or per changed server.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Requests {
    pub(crate) told: f64,
    pub(crate) received: f64,
}

/// What has been spent up to now.
struct Spent {
    at: Instant,
    synapse: f64,
    haproxy: f64,
    written: f64,
}

/// Measures them.
pub(crate) async fn measure(site: &mut Site) -> Costs {
    site.settled().await;
    // What the last changes left behind is deleted within seconds.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let worker = site.haproxy.worker_pid().await;
    let before = (spent(site, worker), asked(site).await);
    tokio::time::sleep(IDLE).await;
    let (start, after) = (spent(site, worker), asked(site).await);
    let seconds = (start.at - before.0.at).as_secs_f64();
    let idle = (start.synapse - before.0.synapse) / seconds;
    let background = Requests {
        told: (after.told - before.1.told) / seconds,
        received: (after.received - before.1.received) / seconds,
    };

    let start = spent(site, worker);
    let mut ticks = tokio::time::interval(Duration::from_secs_f64(1.0 / RATE));
    let mut added = Vec::new();
    for change in 0..CHANGES {
        ticks.tick().await;
        let gone = if change % 2 == 1 { added.pop() } else { None };
        match gone {
            Some(server) => drop(site.remove(&server).await),
            None => {
                let service = site.service();
                added.push(site.add(service, None).await.1);
            }
        }
    }
    ticks.tick().await;
    let end = spent(site, worker);
    site.settled().await;
    let changes = CHANGES as f64;
    let per_change = (end.synapse - start.synapse) / changes;
    let seconds = (end.at - start.at).as_secs_f64();

    let requests = requests(site, background).await;
    let size = |name: &str| {
        let file = std::fs::metadata(site.dir.join(name));
        file.map_or(0.0, |file| file.len() as f64 / 1000.0)
    };
    let pid = site.synapse.process().pid();
    Costs {
        synapse: per_change,
        net: per_change - idle * seconds / changes,
        haproxy: (end.haproxy - start.haproxy) / changes,
        idle,
        written: (end.written - start.written) / changes,
        resident: memory(pid, "VmRSS:"),
        highest: memory(pid, "VmHWM:"),
        config: size("main/haproxy.cfg"),
        snapshot: size("state/snapshot.json"),
        requests,
    }
}

/// Requests per server added, then per server removed, without what is asked per second when nothing changes (pings, the
/// comparisons of each source every ten minutes).
async fn requests(site: &mut Site, background: Requests) -> [Requests; 2] {
    let mut added = Vec::new();
    let mut result = Vec::new();
    for add in [true, false] {
        let (began, before) = (Instant::now(), asked(site).await);
        let mut ticks = tokio::time::interval(Duration::from_secs_f64(1.0 / RATE));
        for _ in 0..COUNTED {
            ticks.tick().await;
            let gone = if add { None } else { added.pop() };
            match gone {
                Some(server) => drop(site.remove(&server).await),
                None => {
                    let service = site.service();
                    let (_, server) = site.add(service, None).await;
                    added.insert(0, server);
                }
            }
        }
        ticks.tick().await;
        site.settled().await;
        let (after, seconds) = (asked(site).await, began.elapsed().as_secs_f64());
        let each = |after: f64, before: f64, rate: f64| {
            (after - before - rate * seconds) / f64::from(COUNTED)
        };
        result.push(Requests {
            told: each(after.told, before.told, background.told),
            received: each(after.received, before.received, background.received),
        });
    }
    [result[0], result[1]]
}

async fn asked(site: &Site) -> Requests {
    Requests {
        told: told(site).await,
        received: received(site).await,
    }
}

/// synapse's own counter.
async fn told(site: &Site) -> f64 {
    let requests = site.synapse.metric("synapse_zk_requests_total").await;
    requests.expect("synapse counts its requests")
}

/// Packets that the server has received on connections that are not the bench's: requests and pings of synapse.
async fn received(site: &Site) -> f64 {
    let own = site.own_sessions();
    let text = site.zookeeper.four_letters(0, "cons").await;
    let field = |line: &str, name: &str| {
        let (_, rest) = line.split_once(name)?;
        let end = rest.find([',', ')']).unwrap_or(rest.len());
        Some(rest[..end].to_owned())
    };
    text.lines()
        .filter(|line| field(line, "sid=").is_some_and(|sid| !own.contains(&sid)))
        .filter_map(|line| field(line, "recved=")?.parse::<f64>().ok())
        .sum()
}

fn spent(site: &mut Site, worker: u32) -> Spent {
    Spent {
        at: Instant::now(),
        synapse: synapse_cpu(site),
        haproxy: cpu(worker),
        written: field(site.synapse.process().pid(), "io", "wchar:"),
    }
}

/// Milliseconds of CPU that synapse and the children it has waited for have used.
pub(crate) fn synapse_cpu(site: &mut Site) -> f64 {
    let pid = site.synapse.process().pid();
    cpu(pid) + children(pid)
}

/// Milliseconds of CPU that a process has used, threads that have ended included.
fn cpu(pid: u32) -> f64 {
    let pid = Pid::from_raw(i32::try_from(pid).expect("a pid is an i32"));
    let time = clock_getcpuclockid(pid)
        .and_then(clock_gettime)
        .map(Duration::from);
    time.unwrap_or_else(|e| panic!("CPU clock of {pid}: {e}"))
        .as_secs_f64()
        * 1000.0
}

/// Milliseconds of CPU of the children it has waited for, in steps of 10.
fn children(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    // Behind the name, which may hold anything, `cutime` and `cstime` are numbers 13 and 14.
    let (_, rest) = stat.rsplit_once(')').expect("a name in brackets");
    let ticks: u64 = rest
        .split_whitespace()
        .skip(13)
        .take(2)
        .filter_map(|n| n.parse::<u64>().ok())
        .sum();
    ticks as f64 * 10.0
}

fn memory(pid: u32, name: &str) -> f64 {
    field(pid, "status", name) / 1024.0
}

/// The number behind `name` in a file of `/proc/PID`.
fn field(pid: u32, file: &str, name: &str) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/{file}")).expect("it runs");
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.split_whitespace().next());
    value
        .and_then(|n| n.parse().ok())
        .unwrap_or_else(|| panic!("no {name} in {text}"))
}
