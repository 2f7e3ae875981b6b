//! Whether a backend's balance algorithm takes servers at runtime (configuration manual `balance`, `hash-type`).
//!
//! Pure. Read line by line, a section after the defaults it inherits from; the last line wins.

/// What decides it.
#[derive(Debug, Clone, Default)]
pub(super) struct Balance {
    /// First argument of `balance`, without parameters.
    algorithm: Option<String>,
    /// `hash-type consistent`.
    consistent: bool,
}

impl Balance {
    /// A line: its first word and its second.
    pub(super) fn read(&mut self, keyword: &str, argument: Option<&str>) {
        match (keyword, argument) {
            ("balance", Some(algorithm)) => {
                let name = algorithm.split('(').next().unwrap_or(algorithm);
                self.algorithm = Some(name.to_owned());
            }
            ("hash-type", Some(method)) => self.consistent = method == "consistent",
            _ => {}
        }
    }

    /// Why it takes none; `None` = it takes servers.
    pub(super) fn is_static(&self) -> Option<String> {
        match self.algorithm.as_deref() {
            None | Some("roundrobin" | "leastconn" | "first" | "random") => None,
            Some("source" | "uri" | "url_param" | "hdr" | "hash") if self.consistent => None,
            Some(name @ ("source" | "uri" | "url_param" | "hdr" | "hash")) => Some(format!(
                "`balance {name}` takes servers at runtime only with `hash-type consistent`"
            )),
            Some(name) => Some(format!("`balance {name}` takes no servers at runtime")),
        }
    }

    /// Why weights cannot be set at runtime; `None` = they can.
    pub(super) fn fixes_weights(&self) -> Option<String> {
        let name = self.algorithm.as_deref().unwrap_or_default();
        self.is_static()
            .map(|_| format!("`balance {name}` takes no other weights at runtime"))
    }
}
