//! `make bench`: how fast synapse is, and at what cost, on a real ZooKeeper and a real haproxy, beside what is possible at
//! all (the floor), measured in the same run. Prints tables with the goal beside each number; asserts none of them.
//!
//! ```text
//! site         ZooKeeper, its znodes, stub servers, synapse with its haproxy: one per size
//! floor        the least one could do: a bare watcher, one get, two raw commands to a second haproxy of the same file
//! propagation  a change in ZooKeeper until haproxy's table says so, until the local port answers accordingly
//! churn        changes per second, under two kinds of clients that never retry
//! cost         CPU, memory, bytes, ZooKeeper requests
//! probe        when the port, or the table, shows a change
//! table        numbers to text
//! ```

#![expect(clippy::print_stdout, reason = "this is a program for people to read")]
#![expect(
    clippy::disallowed_methods,
    reason = "the probes are threads, and all times are real"
)]

mod churn;
mod cost;
mod floor;
mod probe;
mod propagation;
mod site;
mod table;

use std::process::ExitCode;

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

use site::{Site, Size};

/// Sizes of `make bench` unless others are given.
const SIZES: &str = "1x10 100x10 1000x10 100x100 1x2000";

#[derive(Debug, Parser)]
#[command(about = "Measures synapse beside the floor, on a real ZooKeeper and a real haproxy")]
struct Options {
    /// Services x servers of each, e.g. `1x10`.
    #[arg(default_values_t = SIZES.split(' ').map(|s| s.parse::<Size>().expect("ours")))]
    sizes: Vec<Size>,
    /// Only these parts: start, propagation, cost, churn.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Part>,
    /// Changes per row; by default 60, at sizes above 1000 servers 40.
    #[arg(long)]
    changes: Option<usize>,
    /// Sizes at which the 60 s of churn under load are run.
    #[arg(long, value_delimiter = ',', default_value = "1x10")]
    churn: Vec<Size>,
    /// `maxconn` of synapse's haproxy. It bounds the checks that run at once, and with every server in the
    /// file haproxy needs 2 x maxconn + servers + services descriptors: see `ulimit -n`.
    #[arg(long, default_value_t = 4096)]
    maxconn: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// From the start of synapse until all is served.
    Start,
    /// How long a change takes.
    Propagation,
    /// CPU, memory, ZooKeeper requests.
    Cost,
    /// Changes under load.
    Churn,
}

impl Options {
    fn wants(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("threads and sockets can be made");
    runtime.block_on(async {
        // Dropping the bench ends everything that it started. Cancel-safe for the same reason.
        tokio::select! {
            () = bench(&options) => ExitCode::SUCCESS,
            () = interrupted() => {
                println!("Interrupted: everything that was started is being ended.");
                ExitCode::from(130)
            }
        }
    })
}

async fn interrupted() {
    let listen = |kind| signal(kind).expect("signals can be listened to");
    let (mut int, mut term) = (
        listen(SignalKind::interrupt()),
        listen(SignalKind::terminate()),
    );
    // Cancel-safe: signal receives.
    tokio::select! {
        _ = int.recv() => {}
        _ = term.recv() => {}
    }
}

async fn bench(options: &Options) {
    table::machine();
    let mut results = table::Results::default();
    for size in &options.sizes {
        println!("\n{size} (services x servers) ...");
        let mut site = Site::start(*size, options.maxconn).await;
        results.started(*size, &site.started);
        if options.wants(Part::Propagation) {
            let changes = options
                .changes
                .unwrap_or(if size.total() > 1000 { 40 } else { 60 });
            let rows = propagation::measure(&mut site, changes).await;
            results.propagated(*size, rows);
        }
        if options.wants(Part::Cost) {
            results.costs(*size, cost::measure(&mut site).await);
        }
        if options.wants(Part::Churn) {
            if options.churn.contains(size) {
                results.churned(*size, churn::under_load(&mut site).await);
            }
            results.rushed(*size, churn::unthrottled(&mut site).await);
        }
        site.close().await;
    }
    results.print();
}
