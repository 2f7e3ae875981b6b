//! Loading a host file: text to values to typed readers, every problem of every file collected, with its place.
//!
//! Owns: reading files and conf dirs, `<%= ENV['X'] %>`, sections, places, findings, the typed [`Cursor`], the table of
//! keys. Never: what a key means (the programs' own `config` does) and never a log line. Called by
//! `nerve::config::load` and `synapse::config::load`.
//!
//! ```text
//! text::expand   <%= ENV['X'] %> replaced, other ERB refused
//! tree::parse    serde_yaml reads the values; merges applied; first document only
//! places         key path -> line:column from YAML events, for messages and duplicate keys
//! source         main file, section, conf dir files: one list of documents
//! cursor         a value and where it stands
//! readers        text, numbers, durations, lists of lines …: they note what is wrong and go on
//! scalars        what a scalar without quotes means to Ruby
//! keys           the programs' tables of keys: classes of key, README tables, JSON Schema
//! shared         readers of what both programs have: paths, ensembles, session, listeners
//! golden         (feature) the harness of the programs' configuration tests
//! report         findings and how they are printed
//! ```

mod cursor;
mod environment;
#[cfg(feature = "testing")]
pub mod golden;
mod keys;
mod limits;
mod places;
mod readers;
mod report;
mod scalars;
mod shared;
mod source;
mod text;
mod tree;

pub use cursor::{Cursor, Map, may_be_secret};
pub use environment::Environment;
pub use keys::{
    Class, Key, Kind, Preset, Presettable, count, defaulted, honoured, joined, known_only, later,
    preset, preset_of, schema, tables,
};
pub use limits::{Use, beside, fits, must_fit};
pub use report::{Finding, Loaded, Report, Severity};
pub(crate) use shared::parse_bind;
pub use shared::{Admin, Listeners, Session, Socket, ensemble, listeners, path};
pub use shared::{session, unread, zk_path};
pub use source::{Program, Source, Winner};
pub use text::false_blank;

#[cfg(test)]
mod tests;
