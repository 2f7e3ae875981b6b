//! Numbers to text: what is printed, with the goal beside it.

use std::process::Command;

use smartstack_common::testing::{Haproxy, Style};

use crate::churn::{Loaded, Rush};
use crate::cost::Costs;
use crate::propagation::{Kind, Rows, Times};
use crate::site::{Size, Started};

/// Goals of the design for a change, p50 and p95 in milliseconds.
const GOAL: &str = "5 / 20";

/// What the columns mean.
const LEGEND: &str = "  port: the first (last) answer of an added (removed) server through the local port, by a loop with a connection per request;
  table: `show stat` has it so; for the floor, the reply to its commands. look: mean time between two looks (at the port, two
  turns of the server), by which an addition may look too slow, and a removal at the port too fast; n lacks removals without
  a turn between call and effect. floor: create or delete -> event of a bare recursive watcher -> get (additions only) -> raw
  commands to a second haproxy on a copy of the file. The changed server has weight 256 (with use_nerve_weights), so that it
  takes most turns. Changes are 100 to 300 ms apart: each is a change of its own, not part of a burst.";

/// All that was measured, until it is printed.
#[derive(Debug, Default)]
pub(crate) struct Results {
    started: Vec<(Size, Started)>,
    propagated: Vec<(Size, Rows)>,
    costs: Vec<(Size, Costs)>,
    churned: Vec<(Size, Loaded)>,
    rushed: Vec<(Size, Rush)>,
}

/// What the numbers depend on.
pub(crate) fn machine() {
    let read = |path: &str| {
        std::fs::read_to_string(path)
            .unwrap_or_default()
            .trim()
            .to_owned()
    };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let cpu = read("/proc/cpuinfo");
    let cpu = cpu.lines().find_map(|line| line.strip_prefix("model name"));
    println!(
        "{cores} cores{}",
        cpu.unwrap_or_default().replacen("\t", " ", 1)
    );
    println!(
        "Linux {}, load average before: {}",
        read("/proc/sys/kernel/osrelease"),
        read("/proc/loadavg")
    );
    let haproxy = Command::new(Haproxy::binary()).arg("-v").output();
    let haproxy = haproxy
        .map(|o| String::from_utf8_lossy(&o.stdout).into_owned())
        .unwrap_or_default();
    println!("{}", haproxy.lines().next().unwrap_or_default());
    let jar = std::fs::canonicalize("/usr/share/java/zookeeper.jar").unwrap_or_default();
    println!("ZooKeeper {}, one server, forceSync=no", jar.display());
    println!(
        "synapse {}{}",
        smartstack_common::BUILD,
        if cfg!(debug_assertions) {
            ", NOT a release build"
        } else {
            ""
        }
    );
}

/// The value below which the given share of them is.
fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let place = (share * sorted.len() as f64).ceil() as usize;
    sorted
        .get(place.saturating_sub(1))
        .copied()
        .unwrap_or(f64::NAN)
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

impl Results {
    pub(crate) fn started(&mut self, size: Size, started: &Started) {
        self.started.push((size, started.clone()));
        println!(
            "  first answer {:.0} ms after the start, all served after {:.0} ms",
            started.first_answer.as_secs_f64() * 1000.0,
            started.all_served.as_secs_f64() * 1000.0
        );
    }

    pub(crate) fn propagated(&mut self, size: Size, rows: Rows) {
        propagation(std::slice::from_ref(&(size, &rows)));
        self.propagated.push((size, rows));
    }

    pub(crate) fn costs(&mut self, size: Size, costs: Costs) {
        println!("  {:.2} ms of CPU per change", costs.synapse);
        self.costs.push((size, costs));
    }

    pub(crate) fn churned(&mut self, size: Size, loaded: Loaded) {
        println!("  {} changes under load", loaded.changes);
        self.churned.push((size, loaded));
    }

    pub(crate) fn rushed(&mut self, size: Size, rush: Rush) {
        println!("  {} changes without a pause", rush.changes);
        self.rushed.push((size, rush));
    }

    /// All tables.
    pub(crate) fn print(&self) {
        if !self.propagated.is_empty() {
            println!("\nPropagation, ms from just before the call to ZooKeeper");
            let rows: Vec<(Size, &Rows)> = self.propagated.iter().map(|(s, r)| (*s, r)).collect();
            propagation(&rows);
            println!("{LEGEND}");
            println!(
                "  goals of ratios: p50 3 and p95 5 at 1x10 and 100x10; both 5 at 1000x10 and 1x2000"
            );
        }
        self.print_started();
        self.print_costs();
        self.print_churn();
        println!(
            "\nNot measured here: an ensemble of several servers, fsync of ZooKeeper's log (off), a network, machines with more cores."
        );
        println!(
            "Server lines have `check inter 2s`, above 100 servers in all `check inter 60s`: else checks alone would load two cores."
        );
    }

    fn print_started(&self) {
        println!("\nStart of synapse and, by it, haproxy, ms     goal: all served 700 at 1000x10");
        println!(
            "  {:<10} {:>13} {:>11}",
            "size", "first answer", "all served"
        );
        for (size, started) in &self.started {
            println!(
                "  {size:<10} {:>13.0} {:>11.0}",
                started.first_answer.as_secs_f64() * 1000.0,
                started.all_served.as_secs_f64() * 1000.0
            );
        }
    }

    fn print_costs(&self) {
        if self.costs.is_empty() {
            return;
        }
        println!(
            "\nCost, 5 changes per second (one server added, one removed, in turns, any service), file and snapshot included"
        );
        println!(
            "  goals: under 2 ms at 1000x10, at 1x10 at most half of that at 1000x10; 8 MB at 1x10, 30 MB at 1000x10; 1 and 0 requests"
        );
        println!(
            "  {:<10} {:>9} {:>9} {:>9} {:>9} {:>9} {:>12} {:>11} {:>11}   requests per",
            "size",
            "CPU ms",
            "of it",
            "haproxy",
            "idle",
            "written",
            "memory MB",
            "haproxy.cfg",
            "snapshot"
        );
        println!(
            "  {:<10} {:>9} {:>9} {:>9} {:>9} {:>9} {:>12} {:>11} {:>11}   added, removed (as the server counts)",
            "", "/change", "not idle", "ms/change", "ms/s", "B/change", "now/highest", "kB", "kB"
        );
        for (size, c) in &self.costs {
            let [add, remove] = c.requests;
            println!(
                "  {size:<10} {:>9.2} {:>9.2} {:>9.2} {:>9.2} {:>9.0} {:>12} {:>11.0} {:>11.0}   {:.2}, {:.2} ({:.2}, {:.2})",
                c.synapse,
                c.net,
                c.haproxy,
                c.idle,
                c.written,
                format!("{:.1}/{:.1}", c.resident, c.highest),
                c.config,
                c.snapshot,
                add.told,
                remove.told,
                add.received,
                remove.received
            );
        }
    }

    fn print_churn(&self) {
        for (size, l) in &self.churned {
            println!(
                "\nChurn at {size} under load     goal: 0 reloads, 0 failed of at least 80,000"
            );
            println!(
                "  {} changes of an address in {:.1} s ({:.1}/s): {} reloads, haproxy's worker {}",
                l.changes,
                l.seconds,
                f64::from(l.changes) / l.seconds,
                l.reloads,
                if l.same_worker {
                    "is the same"
                } else {
                    "is ANOTHER"
                }
            );
            for (style, requests) in &l.requests {
                let failed: Vec<_> = l.failures.iter().filter(|f| f.style == *style).collect();
                let name = match style {
                    Style::KeepAlive => "keep-alive",
                    Style::PerRequest => "a connection per request",
                };
                let kinds: Vec<&str> = failed.iter().map(|f| f.kind.as_str()).collect();
                println!(
                    "  {name}: {requests} requests, {} failed {}",
                    failed.len(),
                    kinds.join(", ")
                );
            }
        }
        if self.rushed.is_empty() {
            return;
        }
        println!(
            "\nChurn without a pause: a delete and a create at a time, each after the reply to the one before"
        );
        println!(
            "  {:<10} {:>8} {:>10} {:>14} {:>9} {:>8} {:>14}",
            "size", "changes", "made in s", "in haproxy, s", "per s", "reloads", "CPU ms/change"
        );
        for (size, r) in &self.rushed {
            let (made, settled) = (r.made.as_secs_f64(), r.settled.as_secs_f64());
            println!(
                "  {size:<10} {:>8} {made:>10.2} {settled:>14.2} {:>9.0} {:>8} {:>14.2}",
                r.changes,
                f64::from(r.changes) / settled,
                r.reloads,
                r.synapse
            );
        }
    }
}

fn propagation(rows: &[(Size, &Rows)]) {
    println!(
        "  {:<10} {:<16} {:>4} {:>7} {:>7} {:>7}   {:>7} {:>7} {:>7}   {:>6} {:>6}   {:>6}  goal p50/p95",
        "size",
        "change, seen by",
        "n",
        "p50",
        "p95",
        "max",
        "floor50",
        "95",
        "max",
        "x50",
        "x95",
        "look",
    );
    for (size, rows) in rows {
        for (kind, times) in *rows {
            let name = match kind {
                Kind::AddPort => "add, port",
                Kind::AddTable => "add, table",
                Kind::RemovePort => "remove, port",
                Kind::RemoveTable => "remove, table",
            };
            let Times {
                synapse,
                floor,
                step,
            } = times;
            let [s50, s95, smax] = [0.5, 0.95, 1.0].map(|share| quantile(synapse, share));
            let [f50, f95, fmax] = [0.5, 0.95, 1.0].map(|share| quantile(floor, share));
            println!(
                "  {size:<10} {name:<16} {:>4} {s50:>7.2} {s95:>7.2} {smax:>7.2}   {f50:>7.2} {f95:>7.2} {fmax:>7.2}   {:>6.1} {:>6.1}   {:>6.2}  {GOAL}",
                synapse.len(),
                s50 / f50,
                s95 / f95,
                mean(step)
            );
        }
    }
}
