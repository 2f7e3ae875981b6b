//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use smartstack_common::telemetry::LogFormat;

/// Keeps the local haproxy in step with the services registered in ZooKeeper.
#[derive(Debug, Parser)]
#[command(name = "synapse", version = smartstack_common::BUILD, infer_long_args = true, args_conflicts_with_subcommands = false)]
pub struct Cli {
    /// What to do; `run` when nothing is said.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Options of every command.
    #[command(flatten)]
    pub common: Common,
    /// Check the configuration and exit (as `synapse check`).
    #[arg(short = 'k', long)]
    pub check_config: bool,
    /// End the haproxy that synapse started when synapse itself is stopped (for containers).
    #[arg(long)]
    pub stop_haproxy: bool,
}

/// Options of every command.
#[derive(Debug, Args)]
pub struct Common {
    /// The configuration file: YAML or JSON.
    #[arg(short, long, value_name = "FILE", env = "SYNAPSE_CONFIG", global = true)]
    pub config: Option<PathBuf>,
    /// How log lines look.
    #[arg(long, value_enum, default_value_t, global = true)]
    pub log_format: LogFormat,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run in the foreground (the default).
    Run {
        /// End the haproxy that synapse started when synapse itself is stopped (for containers).
        #[arg(long)]
        stop_haproxy: bool,
    },
    /// Check the configuration, render it and let haproxy check the result; start nothing.
    Check,
    /// Print the haproxy configuration for the current snapshot (or the default servers).
    Render,
    /// Ask the running synapse what it sees.
    Status {
        /// The whole answer as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print the configuration's JSON Schema.
    Schema,
    /// Print a completion script.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}
