//! The frame of both programs: what their command lines have in common, from the arguments to the exit code. Which commands
//! there are, and what a program does while it runs, is its own.

mod ask;
mod output;
mod run;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{Args, CommandFactory, FromArgMatches};
use clap_complete::Shell;

pub use self::ask::{Order, Question, Services};
pub use self::output::{blocking, complain, print};
pub use self::run::{Fatal, Listening, Reload, Results, listen};
use crate::config::{Environment, Loaded, Program, Report, schema};
use crate::exit;
use crate::telemetry::LogFormat;

/// The options of both programs. An empty environment variable counts as unset.
#[derive(Debug, Args)]
pub struct Options {
    /// The configuration, YAML or JSON
    #[arg(short, long, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
    /// Check the configuration and exit
    #[arg(short = 'k', long = "check-config", alias = "check_config")]
    pub check_config: bool,
    /// Format of the log
    #[arg(long, value_enum, default_value_t, global = true)]
    pub log_format: LogFormat,
}

/// What `completions` is told.
#[derive(Debug, Args)]
pub struct Completions {
    /// The shell that they are for
    shell: Shell,
}

/// What a command ends with: its exit code, early where it failed.
pub type Exit = Result<u8, u8>;

/// A program and the options that it was started with.
#[derive(Debug)]
pub struct Frame {
    program: Program,
    options: Options,
    /// Environment variables and working directory.
    pub environment: Environment,
}

/// The command line `C` as it is for `program`.
#[must_use]
pub fn command<C: CommandFactory>(program: Program) -> clap::Command {
    let by_variable = |arg: clap::Arg, variable: &str| {
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        arg.help(format!("{help} [env: {}]", of(program, variable)))
    };
    C::command()
        .name(program.name)
        .version(crate::BUILD)
        .infer_long_args(true)
        .mut_arg("config", |arg| by_variable(arg, "CONFIG"))
        .mut_arg("check_config", |arg| by_variable(arg, "CHECK_CONFIG=true"))
}

/// The arguments, or the exit code when they ask for help or are wrong: what there is to say has been printed.
///
/// # Errors
/// That code.
pub fn parse<C: CommandFactory + FromArgMatches>(
    program: Program,
    arguments: impl IntoIterator<Item = OsString>,
) -> Result<C, u8> {
    let matches = command::<C>(program).try_get_matches_from(arguments);
    matches
        .and_then(|matches| C::from_arg_matches(&matches))
        .map_err(|error| {
            // Nobody to tell when even this cannot be printed.
            let _printed = error.print().is_ok();
            match error.use_stderr() {
                true => exit::USAGE,
                false => exit::OK,
            }
        })
}

/// Complains of a configuration; the exit code.
fn refused(report: Report) -> u8 {
    complain(&report.to_string());
    exit::CONFIG
}

/// An environment variable of `program`.
fn of(program: Program, variable: &str) -> String {
    format!("{}_{variable}", program.name.to_uppercase())
}

impl Frame {
    /// By the options and the environment of this process.
    #[must_use]
    pub fn new(program: Program, options: Options) -> Self {
        let mut frame = Self {
            program,
            options,
            environment: Environment::current(),
        };
        let file = frame.variable("CONFIG").map(PathBuf::from);
        let checks = matches!(frame.variable("CHECK_CONFIG"), Some("true" | "1"));
        frame.options.config = frame.options.config.take().or(file);
        frame.options.check_config |= checks;
        frame
    }

    /// The value of an environment variable of this program, named without its prefix, unless it is empty.
    #[must_use]
    pub fn variable(&self, name: &str) -> Option<&str> {
        let value = self.environment.variable(&of(self.program, name));
        value.filter(|value| !value.is_empty())
    }

    /// Whether the configuration is only to be checked: `-k`, or `<PROGRAM>_CHECK_CONFIG` is `true` or `1` (in Ruby its mere
    /// presence, as `false` too, keeps nerve from starting).
    #[must_use]
    pub fn only_checks(&self) -> bool {
        self.options.check_config
    }

    /// `schema`.
    #[must_use]
    pub fn schema(&self) -> u8 {
        print(&format!(
            "{:#}",
            schema(self.program.name, self.program.keys)
        ))
    }

    /// `completions` of the command line `C`.
    #[must_use]
    pub fn completions<C: CommandFactory>(&self, asked: &Completions) -> u8 {
        let mut command = command::<C>(self.program);
        let mut text = Vec::new();
        clap_complete::generate(asked.shell, &mut command, self.program.name, &mut text);
        print(&String::from_utf8_lossy(&text))
    }

    /// The file of the configuration; complains when none is named.
    fn file(&self) -> Result<&Path, u8> {
        self.options.config.as_deref().ok_or_else(|| {
            complain(&format!(
                "no configuration\nhint: `{} -c FILE`, or set {}",
                self.program.name,
                of(self.program, "CONFIG")
            ));
            exit::USAGE
        })
    }

    /// Loads the configuration for a command that then ends, and complains of what is wrong or odd.
    ///
    /// # Errors
    /// The exit code.
    pub fn load<C>(&self, load: impl FnOnce(&Path) -> Result<Loaded<C>, Report>) -> Result<C, u8> {
        let loaded = load(self.file()?).map_err(refused)?;
        if !loaded.warnings.findings.is_empty() {
            complain(&loaded.warnings.to_string());
        }
        Ok(loaded.config)
    }

    /// The last word of `check`.
    #[must_use]
    pub fn is_good(&self, services: usize) -> u8 {
        let s = if services == 1 { "" } else { "s" };
        self.say(print, &format!("configuration OK ({services} service{s})"))
    }

    /// Complains of something in the configuration; `word` is its weight.
    pub fn complain(&self, word: &str, text: &str) {
        self.say(complain, &format!("{word}: {text}"));
    }

    fn say<T>(&self, say: impl FnOnce(&str) -> T, text: &str) -> T {
        let file = self.options.config.as_deref().unwrap_or(Path::new(""));
        say(&format!("{}: {text}", file.display()))
    }
}
