//! nerve's commands and its own options.

use std::ffi::OsString;
use std::path::Path;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Parser, Subcommand};
use smartstack_common::program::{self, Completions, Exit, Frame, Options, Order, Question};

use super::run::run;
use super::summary::summary;
use crate::config::{self, LoadOptions, PROGRAM};

/// Health-checks the local services and keeps an ephemeral ZooKeeper node for each while it is healthy.
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
    /// Name of this instance, wins over the file's `instance_id` [env: NERVE_INSTANCE_ID]
    #[arg(
        short,
        long = "instance_id",
        visible_alias = "instance-id",
        value_name = "ID",
        global = true,
        value_parser = NonEmptyStringValueParser::new()
    )]
    instance_id: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Check the services and register them (the default)
    Run,
    /// Report every problem of the configuration and start nothing
    Check,
    /// Show what a running nerve sees
    Status(Question),
    /// Withdraw services, announced, until `enable`, also across restarts
    Drain(Order),
    /// Register drained or disabled services again
    Enable(Order),
    /// Like drain, and stop running the services' checks
    Disable(Order),
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
    let by_variable = || frame.variable("INSTANCE_ID").map(str::to_owned);
    let instance_id = cli.own.instance_id.or_else(by_variable);
    let load = |path: &Path| {
        config::load(&LoadOptions {
            path: path.to_owned(),
            instance_id: instance_id.clone(),
            environment: frame.environment.clone(),
        })
    };
    Ok(match cli.command.unwrap_or(Command::Run) {
        Command::Run if !frame.only_checks() => frame.run(true, load, run)?,
        Command::Run | Command::Check => frame.is_good(frame.load(load)?.services.len()),
        Command::Status(question) => frame.status(question, summary),
        Command::Drain(order) => frame.order("drain", order),
        Command::Enable(order) => frame.order("enable", order),
        Command::Disable(order) => frame.order("disable", order),
        Command::Schema => frame.schema(),
        Command::Completions(asked) => frame.completions::<Cli>(&asked),
    })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use smartstack_common::exit;

    use super::*;

    fn parse(line: &str) -> Result<Cli, u8> {
        program::parse(PROGRAM, line.split(' ').map(OsString::from))
    }

    #[test]
    fn rubys_spellings_work() {
        program::command::<Cli>(PROGRAM).debug_assert();
        for line in [
            "nerve -c f -i x",
            "nerve --config f --instance_id x",
            "nerve --config=f --instance-id=x",
            "nerve --conf f --inst x",
            "nerve run -c f -i x",
            "nerve -c f -i x run",
        ] {
            let Cli { options, own, .. } = parse(line).unwrap();
            assert_eq!(
                (options.config, own.instance_id.as_deref()),
                (Some(PathBuf::from("f")), Some("x")),
                "{line}"
            );
        }
        for line in [
            "nerve -c f -k",
            "nerve -c f --check-config",
            "nerve -c f --check",
            "nerve -c f --check_config",
        ] {
            assert!(parse(line).unwrap().options.check_config, "{line}");
        }
    }

    #[test]
    fn commands_name_services_or_all() {
        for (line, all) in [
            ("nerve drain web", false),
            ("nerve disable -c f web api", false),
            ("nerve enable --all", true),
        ] {
            let command = parse(line).unwrap().command;
            let Some(Command::Drain(s) | Command::Enable(s) | Command::Disable(s)) = command else {
                panic!("{line}: {command:?}")
            };
            let s = s.services;
            assert_eq!((s.all, s.services.is_empty()), (all, all), "{line}");
        }
    }

    #[test]
    fn wrong_usage_is_refused() {
        for line in [
            "nerve -c",
            "nerve --nonsense",
            "nerve stray",
            "nerve -c f stray",
            "nerve drain",
            "nerve drain web --all",
            "nerve enable",
        ] {
            assert_eq!(parse(line).err(), Some(exit::USAGE), "{line}");
        }
        let empty = ["nerve", "-c", "f", "-i", ""].map(OsString::from);
        assert!(program::parse::<Cli>(PROGRAM, empty).is_err());
    }
}
