//! nerve's validated configuration. Ruby's key names and defaults at the file boundary, typed units inside.
//!
//! Owns the meaning of every key; [`load`] is called by the command line and by the reload on HUP. Touches nothing but the
//! files it reads. `keys` is the table of keys, `read` fills the types below.

mod keys;
mod read;
#[cfg(test)]
mod tests;
mod types;

pub use smartstack_common::config::{Environment, Listeners, Loaded, Report};

pub use self::read::PROGRAM;
pub use self::types::{Config, LoadOptions, NodeType, Place, RateMode, Service};

/// Reads the main file and the files it names.
///
/// # Errors
/// Every problem of every file, warnings included, when one of them is an error.
pub fn load(options: &LoadOptions) -> Result<Loaded<Config>, Report> {
    read::load(options)
}

/// JSON Schema of the file.
#[must_use]
pub fn schema() -> serde_json::Value {
    smartstack_common::config::schema("nerve", keys::KEYS)
}
