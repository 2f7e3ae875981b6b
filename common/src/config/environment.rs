//! What a load depends on besides the files: variables, the working directory, what `localhost` is here.

use std::collections::BTreeMap;
use std::net::{Ipv6Addr, TcpListener, ToSocketAddrs as _};
use std::path::{Path, PathBuf};

/// What a load depends on besides the files.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    /// Environment variables.
    pub variables: BTreeMap<String, String>,
    /// The working directory: relative paths of configuration files start here.
    pub directory: PathBuf,
    /// `localhost` is an IPv6 address too on this host.
    pub localhost_v6: bool,
}

impl Environment {
    /// That of this process. Variables that are not UTF-8 are left out.
    #[must_use]
    pub fn current() -> Self {
        let variables = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        Self {
            variables,
            directory: std::env::current_dir().unwrap_or_default(),
            localhost_v6: localhost_v6(),
        }
    }

    /// The addresses to listen at for clients that connect to `localhost`, in any form. haproxy takes the name's first
    /// address only, which is `::1` where `/etc/hosts` has both: clients of `127.0.0.1` would find nobody.
    #[must_use]
    pub fn localhost(&self) -> &'static str {
        match self.localhost_v6 {
            true => "127.0.0.1,[::1]",
            false => "localhost",
        }
    }

    /// A variable.
    #[must_use]
    pub fn variable(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str)
    }

    /// A file name as the configuration writes it: `~` is the home directory, relative ones start in the working directory.
    #[must_use]
    pub fn path(&self, written: &str) -> PathBuf {
        let home = self.variable("HOME").unwrap_or("~");
        match written.strip_prefix('~') {
            Some(rest) if rest.is_empty() || rest.starts_with('/') => {
                PathBuf::from(format!("{home}{rest}"))
            }
            _ => self.directory.join(written),
        }
    }

    /// A file in `$STATE_DIRECTORY` (the first, when systemd names several) or in `/var/lib/<program>`.
    #[must_use]
    pub fn state_file(&self, program: &str, name: &str) -> PathBuf {
        self.directory_of("STATE_DIRECTORY", "/var/lib", program)
            .join(name)
    }

    /// A file in `$RUNTIME_DIRECTORY` (the first, when systemd names several) or in `/run/<program>`.
    #[must_use]
    pub fn runtime_file(&self, program: &str, name: &str) -> PathBuf {
        self.directory_of("RUNTIME_DIRECTORY", "/run", program)
            .join(name)
    }

    fn directory_of(&self, variable: &str, default: &str, program: &str) -> PathBuf {
        let directory = self
            .variable(variable)
            .and_then(|dirs| dirs.split(':').next())
            .filter(|d| !d.is_empty());
        directory.map_or_else(|| Path::new(default).join(program), PathBuf::from)
    }
}

/// Whether the name gives an IPv6 address that can be listened at.
fn localhost_v6() -> bool {
    let found = ("localhost", 0).to_socket_addrs();
    let named = found.is_ok_and(|mut found| found.any(|address| address.is_ipv6()));
    named && TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok()
}
