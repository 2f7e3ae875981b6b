//! Seeds of the simulations. Each prints the seed it failed with; `SYNAPSE_SIMULATION_SEED=N` runs that one alone,
//! `SYNAPSE_SIMULATION_SEEDS=10000` so many of them:
//!
//! ```text
//! SYNAPSE_SIMULATION_SEEDS=10000 cargo test --release -p synapse --lib simulation
//! SYNAPSE_SIMULATION_SEED=4711 cargo test -p synapse --lib guard::simulation
//! ```

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// Runs `one` with every seed asked for.
pub(crate) fn run(name: &str, one: impl Fn(u64)) {
    let variable = |name: &str| {
        let text = std::env::var(name).ok()?;
        Some(
            text.parse()
                .unwrap_or_else(|_| panic!("{name}={text}: not a number")),
        )
    };
    let seeds = match variable("SYNAPSE_SIMULATION_SEED") {
        Some(seed) => seed..=seed,
        None => 1..=variable("SYNAPSE_SIMULATION_SEEDS").unwrap_or(300),
    };
    for seed in seeds {
        if let Err(cause) = catch_unwind(AssertUnwindSafe(|| one(seed))) {
            report(name, seed);
            resume_unwind(cause);
        }
    }
}

fn report(name: &str, seed: u64) {
    eprintln!("failed with SYNAPSE_SIMULATION_SEED={seed} cargo test -p synapse --lib {name}");
}
