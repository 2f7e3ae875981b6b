//! The command line: Ruby's options and the subcommands, down to the exit code.
//!
//! Empty environment variables count as unset, and `NERVE_CHECK_CONFIG` is on as `true` or `1` only (in Ruby its mere
//! presence, as `false` too, keeps nerve from starting).

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, CommandFactory, Parser, Subcommand};
use serde_json::Value;
use smartstack_common::config::Listeners;
use smartstack_common::descriptors;
use smartstack_common::report::{Chain, exit};
use smartstack_common::shutdown::Signals;
use smartstack_common::telemetry::LogFormat;
use smartstack_common::terminal::{self, Found, Order, Question, blocking, complain, print};
use tokio::signal::unix::{SignalKind, signal};

use super::run::{self as app, RunError};
use crate::config::{self, Config, Environment, LoadOptions, Loaded, Report};

/// Health-checks the local services and keeps an ephemeral ZooKeeper node for each while it is healthy.
#[derive(Debug, Parser)]
#[command(name = "nerve", version = smartstack_common::BUILD, infer_long_args = true)]
struct Cli {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Args)]
struct Options {
    /// The configuration, YAML or JSON [env: NERVE_CONFIG]
    #[arg(short, long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// Wins over the file's instance_id [env: NERVE_INSTANCE_ID]
    #[arg(
        short,
        long = "instance_id",
        visible_alias = "instance-id",
        value_name = "ID",
        global = true,
        value_parser = NonEmptyStringValueParser::new()
    )]
    instance_id: Option<String>,
    /// Check the configuration and exit [env: NERVE_CHECK_CONFIG=true]
    #[arg(short = 'k', long = "check-config", alias = "check_config")]
    check_config: bool,
    /// How log lines look
    #[arg(long, value_enum, default_value_t, global = true)]
    log_format: LogFormat,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Check the services and register them (the default)
    Run,
    /// Report every problem of the configuration and start nothing
    Check,
    /// Show what a running nerve sees
    Status(Question),
    /// Withdraw services, announced, and hold them out until `enable`, across restarts
    Drain(Order),
    /// Let drained or disabled services be registered again
    Enable(Order),
    /// As drain, and rest the services' checks as well
    Disable(Order),
    /// Print the JSON Schema of the configuration
    Schema,
    /// Print the completions of a shell
    Completions {
        /// Which one
        shell: clap_complete::Shell,
    },
}

/// Runs the command line and returns the exit code.
#[must_use]
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            let usage = error.use_stderr();
            // Nobody to tell when even this cannot be printed.
            let _printed = error.print().is_ok();
            return if usage { exit::USAGE } else { exit::OK };
        }
    };
    let environment = Environment::current();
    let on = |name| environment.variable(name).filter(|value| !value.is_empty());
    let checking =
        cli.options.check_config || matches!(on("NERVE_CHECK_CONFIG"), Some("true" | "1"));
    let command = match cli.command.unwrap_or(Command::Run) {
        Command::Run if checking => Command::Check,
        command => command,
    };
    let source = cli
        .options
        .config
        .or_else(|| on("NERVE_CONFIG").map(PathBuf::from))
        .map(|path| LoadOptions {
            path,
            instance_id: cli
                .options
                .instance_id
                .or_else(|| on("NERVE_INSTANCE_ID").map(str::to_owned)),
            environment: environment.clone(),
        });
    match (command, source) {
        (Command::Schema, _) => print(&format!("{:#}", config::schema())),
        (Command::Completions { shell }, _) => {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "nerve", &mut text);
            print(&String::from_utf8_lossy(&text))
        }
        (Command::Status(question), source) => blocking(status(question, source)),
        (Command::Drain(given), source) => blocking(order("drain", given, source)),
        (Command::Enable(given), source) => blocking(order("enable", given, source)),
        (Command::Disable(given), source) => blocking(order("disable", given, source)),
        (Command::Run | Command::Check, None) => {
            complain("no configuration\nhint: `nerve -c FILE`, or set NERVE_CONFIG");
            exit::USAGE
        }
        (Command::Check, Some(source)) => check(&source),
        (Command::Run, Some(source)) => {
            terminal::logging(cli.options.log_format, || blocking(run(source)))
        }
    }
}

async fn run(source: LoadOptions) -> u8 {
    // First of all: an early HUP or USR2 must not kill the process.
    let installed =
        Signals::install().and_then(|signals| Ok((signals, signal(SignalKind::user_defined2())?)));
    let (signals, leave) = match installed {
        Ok(installed) => installed,
        Err(error) => {
            complain(&format!("cannot install signal handlers: {error}"));
            return exit::START;
        }
    };
    let Loaded { config, warnings } = match config::load(&source) {
        Ok(loaded) => loaded,
        Err(report) => {
            complain(&report.to_string());
            return exit::CONFIG;
        }
    };
    tracing::info!(version = smartstack_common::BUILD, config = %source.path.display(), "nerve starts");
    descriptors::raise();
    tell(&warnings);
    let reload = || -> Result<Config, String> {
        let Loaded { config, warnings } =
            config::load(&source).map_err(|report| report.to_string())?;
        tell(&warnings);
        Ok(config)
    };
    match app::run(config, reload, signals, leave).await {
        Ok(()) => exit::OK,
        Err(error) => {
            tracing::error!(error = %Chain(&error), "nerve ends");
            match error {
                RunError::Listen(_) => exit::START,
                RunError::Ended(_) => exit::INTERNAL,
            }
        }
    }
}

fn tell(warnings: &Report) {
    for finding in &warnings.findings {
        tracing::warn!("{finding}");
    }
}

fn check(source: &LoadOptions) -> u8 {
    match config::load(source) {
        Ok(Loaded { config, warnings }) => {
            if !warnings.findings.is_empty() {
                complain(&warnings.to_string());
            }
            print(&format!(
                "{}: good, services: {}",
                source.path.display(),
                config.services.len()
            ))
        }
        Err(report) => {
            complain(&report.to_string());
            exit::CONFIG
        }
    }
}

async fn status(question: Question, source: Option<LoadOptions>) -> u8 {
    terminal::show_status("nerve", question, || found(source), summary).await
}

/// Sends a command to the running nerve.
async fn order(command: &str, order: Order, source: Option<LoadOptions>) -> u8 {
    terminal::order("nerve", order, || found(source), command).await
}

/// Where nerve listens.
fn found(source: Option<LoadOptions>) -> Found {
    match source {
        Some(source) => config::listeners(&source),
        None => (
            Listeners::of("nerve", config::ADMIN, &Environment::current()),
            None,
        ),
    }
}

/// `/status` for a terminal.
fn summary(status: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let ready = if status["ready"] == true {
        "ready"
    } else {
        "not ready"
    };
    let mut lines = vec![format!(
        "nerve {} pid {} {ready}",
        text(&status["version"]),
        status["pid"]
    )];
    for link in list(&status["zookeeper"]) {
        lines.push(format!(
            "zookeeper {} {}",
            text(&link["hosts"]),
            text(&link["state"])
        ));
    }
    for (name, service) in status["services"].as_object().into_iter().flatten() {
        let held = match service["held"]["by"].as_str() {
            None => String::new(),
            Some("unknown") => ", not known whether it was drained or disabled".to_owned(),
            Some(by) => format!(", held out by {by}"),
        };
        lines.push(format!(
            "{name} {}{held}",
            service["health"].as_str().unwrap_or("not checked yet")
        ));
        for check in list(&service["checks"]) {
            let error = check["error"]
                .as_str()
                .map(|error| format!(": {error}"))
                .unwrap_or_default();
            lines.push(format!(
                "  {} {}{error}",
                text(&check["name"]),
                text(&check["health"])
            ));
        }
        let places = list(&service["registrations"]);
        for place in &places {
            let error = place["error"]
                .as_str()
                .map(|error| format!(": {error}"))
                .unwrap_or_default();
            let (path, node) = (text(&place["path"]), text(&place["node"]));
            let at = match places.len() {
                1 => String::new(),
                _ => format!(" at {}", text(&place["hosts"])),
            };
            let seen = &place["observed_payload"];
            let differs = match place["in_sync"] == false && place["observed"] != "unknown" {
                true if !seen.is_null() && *seen != place["payload"] => ", with another payload",
                true => ", not confirmed",
                false => "",
            };
            lines.push(format!(
                "  {path}/{node}{at} wanted {}, {}{differs}{error}",
                text(&place["wanted"]),
                text(&place["observed"])
            ));
        }
    }
    lines.extend(
        list(&status["warnings"])
            .iter()
            .map(|warning| format!("warning: {}", text(warning))),
    );
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split(' '))
    }

    #[test]
    fn rubys_spellings_work() {
        Cli::command().debug_assert();
        for line in [
            "nerve -c f -i x",
            "nerve --config f --instance_id x",
            "nerve --config=f --instance-id=x",
            "nerve --conf f --inst x",
            "nerve run -c f -i x",
            "nerve -c f -i x run",
        ] {
            let options = parse(line).unwrap().options;
            assert_eq!(
                (options.config, options.instance_id.as_deref()),
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
            assert!(parse(line).is_err(), "{line}");
        }
        assert!(Cli::try_parse_from(["nerve", "-c", "f", "-i", ""]).is_err());
    }

    #[test]
    fn summary_reads_the_schema() {
        let status = serde_json::json!({
            "version": "1", "pid": 7, "ready": true, "zookeeper": [{"hosts": "z:1", "state": "live"}],
            "services": {"web": {
                "health": "down",
                "checks": [{"name": "http-x:1/", "health": "down", "error": "status 503"}],
                "registrations": [{"path": "/s", "node": null, "wanted": "absent: unhealthy", "observed": "absent", "error": null}],
            }},
            "warnings": ["two nerves claim `/s/i_1`"],
        });
        assert_eq!(
            summary(&status),
            "nerve 1 pid 7 ready\nzookeeper z:1 live\nweb down\n  http-x:1/ down: status 503\n  \
             /s/- wanted absent: unhealthy, absent\nwarning: two nerves claim `/s/i_1`"
        );
    }
}
