//! The command line: Ruby's options and the subcommands, down to the exit code. An empty `SYNAPSE_CONFIG` counts as unset.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, CommandFactory, Parser, Subcommand};
use serde_json::Value;
use smartstack_common::clock::Moment;
use smartstack_common::config::Listeners;
use smartstack_common::descriptors;
use smartstack_common::report::{Chain, exit};
use smartstack_common::shutdown::Signals;
use smartstack_common::telemetry::LogFormat;
use smartstack_common::terminal::{self, Found, Order, Question, blocking, complain, print};

use crate::config::{self, Config, Environment, LoadOptions, Loaded, Report};
use crate::program::offline;
use crate::program::run;

/// Keeps the local haproxy in step with the services registered in ZooKeeper.
#[derive(Debug, Parser)]
#[command(name = "synapse", version = smartstack_common::BUILD, infer_long_args = true)]
struct Cli {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Args)]
struct Options {
    /// The configuration, YAML or JSON [env: SYNAPSE_CONFIG]
    #[arg(short, long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// Check the configuration and exit
    #[arg(short = 'k', long = "check-config", alias = "check_config")]
    check_config: bool,
    /// How log lines look
    #[arg(long, value_enum, default_value_t, global = true)]
    log_format: LogFormat,
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
    let from_environment = || {
        environment
            .variable("SYNAPSE_CONFIG")
            .filter(|path| !path.is_empty())
            .map(PathBuf::from)
    };
    let path = cli.options.config.clone().or_else(from_environment);
    let source = path.map(|path| LoadOptions { path, environment });
    let command = match cli.command.unwrap_or(Command::Run) {
        Command::Run if cli.options.check_config => Command::Check,
        command => command,
    };
    match (command, source) {
        (Command::Schema, _) => print(&format!("{:#}", config::schema())),
        (Command::Completions { shell }, _) => {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "synapse", &mut text);
            print(&String::from_utf8_lossy(&text))
        }
        (Command::Status(question), source) => blocking(status(question, source)),
        (Command::Release(given), source) => blocking(release(given, source)),
        (Command::Run | Command::Check | Command::Render, None) => {
            complain("no configuration\nhint: `synapse -c FILE`, or set SYNAPSE_CONFIG");
            exit::USAGE
        }
        (Command::Check, Some(source)) => blocking(check(source)),
        (Command::Render, Some(source)) => blocking(render(source)),
        (Command::Run, Some(source)) => {
            let run = || blocking(run(source, cli.options.stop_haproxy));
            terminal::logging(cli.options.log_format, run)
        }
    }
}

async fn run(source: LoadOptions, stop_haproxy: bool) -> u8 {
    // First of all: an early HUP must not kill the process.
    let signals = match Signals::install() {
        Ok(signals) => signals,
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
    tracing::info!(version = smartstack_common::BUILD, config = %source.path.display(), "synapse starts");
    descriptors::raise();
    descriptors::must_suffice(0, "synapse");
    tell(&warnings);
    let reload = || -> Result<Config, String> {
        let Loaded { config, warnings } =
            config::load(&source).map_err(|report| report.to_string())?;
        tell(&warnings);
        Ok(config)
    };
    match run::run(config, reload, signals, stop_haproxy).await {
        Ok(()) => exit::OK,
        Err(error) => {
            complain(&format!("error: {}", Chain(&error)));
            match error {
                run::StartError::Template(_) => exit::CONFIG,
                run::StartError::Ended(_) => exit::INTERNAL,
                run::StartError::Listen(_)
                | run::StartError::Lock(_)
                | run::StartError::Folder { .. } => exit::START,
            }
        }
    }
}

fn tell(warnings: &Report) {
    for finding in &warnings.findings {
        tracing::warn!("{finding}");
    }
}

async fn check(source: LoadOptions) -> u8 {
    let config = match load(&source) {
        Ok(config) => config,
        Err(code) => return code,
    };
    let problems = offline::check(&config).await;
    for warning in &problems.warnings {
        complain(&format!("{}: warning: {warning}", source.path.display()));
    }
    for error in &problems.errors {
        complain(&format!("{}: error: {error}", source.path.display()));
    }
    if !problems.errors.is_empty() {
        return exit::CONFIG;
    }
    print(&format!(
        "{}: good, services: {}",
        source.path.display(),
        config.services.len()
    ))
}

async fn render(source: LoadOptions) -> u8 {
    let config = match load(&source) {
        Ok(config) => config,
        Err(code) => return code,
    };
    match offline::render(&config).await {
        Ok((assembly, left_out)) => {
            for words in left_out {
                complain(&format!("{}: warning: {words}", source.path.display()));
            }
            print(&assembly.text)
        }
        Err(error) => {
            complain(&format!(
                "{}: error: {}",
                source.path.display(),
                Chain(&error)
            ));
            exit::CONFIG
        }
    }
}

/// Loads, and complains of what is wrong or odd.
fn load(source: &LoadOptions) -> Result<Config, u8> {
    match config::load(source) {
        Ok(Loaded { config, warnings }) => {
            if !warnings.findings.is_empty() {
                complain(&warnings.to_string());
            }
            Ok(config)
        }
        Err(report) => {
            complain(&report.to_string());
            Err(exit::CONFIG)
        }
    }
}

async fn status(question: Question, source: Option<LoadOptions>) -> u8 {
    terminal::show_status("synapse", question, || found(source), summary).await
}

/// Tells the running synapse to let go.
async fn release(order: Order, source: Option<LoadOptions>) -> u8 {
    terminal::order("synapse", order, || found(source), "release").await
}

/// Where synapse listens.
fn found(source: Option<LoadOptions>) -> Found {
    match source {
        Some(source) => config::listeners(&source),
        None => (
            Listeners::of("synapse", config::ADMIN, &Environment::current()),
            None,
        ),
    }
}

/// `/status` for a terminal.
fn summary(status: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let ready = match status["not_ready"].as_str() {
        _ if status["ready"] == true => "ready".to_owned(),
        Some(why) => format!("not ready: {why}"),
        None => "not ready".to_owned(),
    };
    let haproxy = &status["haproxy"];
    let mut lines = vec![
        format!(
            "synapse {} pid {} {ready}",
            text(&status["version"]),
            status["pid"]
        ),
        format!(
            "haproxy {} worker {} generation {} divergence {} reloads {} ({} failed)",
            text(&haproxy["state"]),
            haproxy["pid"],
            text(&haproxy["generation"]),
            haproxy["divergence"],
            haproxy["reloads"],
            haproxy["reload_failures"]
        ),
    ];
    if let (Some(since), Some(at)) = (
        haproxy["silent_since"].as_f64(),
        haproxy["states_at"].as_f64(),
    ) {
        let ago = |at: f64| (Moment::now().seconds() - at).max(0.0);
        lines.push(format!(
            "no answer from haproxy for {:.0} s, all states are as of {:.0} s ago",
            ago(since),
            ago(at)
        ));
    }
    for (backend, why) in haproxy["fallbacks"].as_object().into_iter().flatten() {
        lines.push(format!("reload needed in {backend}: {}", text(why)));
    }
    for link in list(&status["zookeeper"]) {
        lines.push(format!(
            "zookeeper {} {}",
            text(&link["hosts"]),
            text(&link["state"])
        ));
    }
    for (name, service) in status["services"].as_object().into_iter().flatten() {
        let fresh = if service["fresh"] == true {
            ""
        } else {
            ", not in agreement with the registry now"
        };
        lines.push(format!("{name} {}{fresh}", text(&service["origin"])));
        for server in list(&service["servers"]) {
            let unwanted = if server["wanted"] == true {
                ""
            } else {
                " (not wanted)"
            };
            let weight = match server["other_weight"].as_u64() {
                Some(weight) => format!(" weight {weight}, not set by synapse"),
                None => String::new(),
            };
            lines.push(format!(
                "  {} {}{weight}{unwanted}",
                text(&server["name"]),
                text(&server["haproxy"])
            ));
        }
        for key in ["hold", "quarantined", "problem"] {
            lines.extend(
                service[key]
                    .as_str()
                    .map(|reason| format!("  {key}: {reason}")),
            );
        }
        for rejected in list(&service["rejected"]) {
            lines.push(format!(
                "  rejected {}: {}",
                text(&rejected["znode"]),
                text(&rejected["reason"])
            ));
        }
        for (reason, entries) in by_reason(&list(&service["left_out"])) {
            lines.push(format!("  {entries}: {reason}"));
        }
    }
    lines.extend(
        list(&status["problems"])
            .iter()
            .map(|problem| format!("problem: {}", text(problem))),
    );
    lines.join("\n")
}

/// What is left out of entries, and of which: the first, and how many others.
fn by_reason(left_out: &[Value]) -> BTreeMap<&str, String> {
    let mut entries: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for entry in left_out {
        let text = |key: &str| entry[key].as_str().unwrap_or("-");
        entries
            .entry(text("reason"))
            .or_default()
            .push(text("znode"));
    }
    let named = entries.into_iter().map(|(reason, entries)| {
        let others = match entries.len() - 1 {
            0 => String::new(),
            others => format!(" and {others} more"),
        };
        (reason, format!("{}{others}", entries[0]))
    });
    named.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings() {
        Cli::command().debug_assert();
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
            let options = Cli::try_parse_from(line.split(' ')).unwrap().options;
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
            assert!(Cli::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }

    #[test]
    fn summary_reads_the_schema() {
        let status = serde_json::json!({
            "version": "1", "pid": 7, "ready": true, "zookeeper": [{"hosts": "z:1", "state": "live"}],
            "haproxy": {"state": "serving", "pid": 9, "generation": "g", "divergence": 0, "reloads": 1, "reload_failures": 0},
            "services": {"web": {"origin": "live", "fresh": true, "servers": [{"name": "a:1", "haproxy": "up", "wanted": true}],
                "rejected": [{"znode": "x", "reason": "no `host`"}], "hold": null,
                "left_out": [{"znode": "a_1", "reason": "option `cookie` left out"}, {"znode": "a_2", "reason": "option `cookie` left out"}]}},
            "problems": [],
        });
        assert_eq!(
            summary(&status),
            "synapse 1 pid 7 ready\nhaproxy serving worker 9 generation g divergence 0 reloads 1 (0 failed)\n\
             zookeeper z:1 live\nweb live\n  a:1 up\n  rejected x: no `host`\n  a_1 and 1 more: option `cookie` left out"
        );
    }
}
