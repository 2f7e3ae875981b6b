//! synapse's commands and its own options.

use std::ffi::OsString;
use std::path::Path;

use clap::{Args, Parser, Subcommand};
use smartstack_common::exit;
use smartstack_common::program::{
    self, Completions, Exit, Frame, Options, Order, Question, blocking, print,
};
use smartstack_common::report::Chain;

use super::offline;
use super::run::run;
use super::summary::summary;
use crate::config::{self, Config, LoadOptions, PROGRAM};

/// Keeps the local haproxy in step with the services registered in ZooKeeper.
#[derive(Debug, Parser)]
struct Cli {
    #[command(flatten)]
    options: Options,
    #[command(flatten)]
    own: Own,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Args)]
struct Own {
    /// Stop the haproxy that synapse started when synapse itself is stopped (for containers)
    #[arg(long, global = true)]
    stop_haproxy: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Keep haproxy in step (the default)
    Run,
    /// Report every problem of the configuration, let haproxy check what it renders, and start nothing
    Check,
    /// Print the haproxy configuration for the snapshot (or the default servers)
    Render,
    /// Show what a running synapse sees
    Status(Question),
    /// End what the guards of services hold: the registry is believed as it is
    Release(Order),
    /// Print the JSON Schema of the configuration
    Schema,
    /// Print the completions of a shell
    Completions(Completions),
}

/// Runs the command line and returns the exit code.
#[must_use]
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    command(arguments).unwrap_or_else(|code| code)
}

fn command(arguments: impl IntoIterator<Item = OsString>) -> Exit {
    let cli: Cli = program::parse(PROGRAM, arguments)?;
    let frame = Frame::new(PROGRAM, cli.options);
    let load = |path: &Path| {
        config::load(&LoadOptions {
            path: path.to_owned(),
            environment: frame.environment.clone(),
        })
    };
    Ok(match cli.command.unwrap_or(Command::Run) {
        Command::Run if !frame.only_checks() => {
            frame.run(false, load, async |config, signals, reload| {
                run(config, signals, reload, cli.own.stop_haproxy).await
            })?
        }
        Command::Run | Command::Check => blocking(check(&frame, &frame.load(load)?)),
        Command::Render => blocking(render(&frame, &frame.load(load)?)),
        Command::Status(question) => frame.status(question, summary),
        Command::Release(order) => frame.order("release", order),
        Command::Schema => frame.schema(),
        Command::Completions(asked) => frame.completions::<Cli>(&asked),
    })
}

async fn check(frame: &Frame, config: &Config) -> Exit {
    let problems = offline::check(config).await;
    for warning in &problems.warnings {
        frame.complain("warning", warning);
    }
    for error in &problems.errors {
        frame.complain("error", error);
    }
    match problems.errors.is_empty() {
        true => Ok(frame.is_good(config.services.len())),
        false => Err(exit::CONFIG),
    }
}

async fn render(frame: &Frame, config: &Config) -> Exit {
    match offline::render(config).await {
        Ok((assembly, left_out)) => {
            for words in left_out {
                frame.complain("warning", &words);
            }
            Ok(print(&assembly.text))
        }
        Err(error) => {
            frame.complain("error", &Chain(&error).to_string());
            Err(exit::CONFIG)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn parse(line: &str) -> Result<Cli, u8> {
        program::parse(PROGRAM, line.split(' ').map(OsString::from))
    }

    #[test]
    fn spellings() {
        program::command::<Cli>(PROGRAM).debug_assert();
        for line in [
            "synapse -c f",
            "synapse --config=f",
            "synapse --conf f",
            "synapse run -c f",
            "synapse -c f check",
            "synapse -c f render",
            "synapse -c f release web search",
            "synapse -c f release --all",
        ] {
            let options = parse(line).unwrap().options;
            assert_eq!(options.config, Some(PathBuf::from("f")), "{line}");
        }
        for line in [
            "synapse -c",
            "synapse --nonsense",
            "synapse stray",
            "synapse release",
            "synapse release web --all",
            "synapse -c f explain",
        ] {
            assert_eq!(parse(line).err(), Some(exit::USAGE), "{line}");
        }
    }
}
