//! Versions of haproxy, and what synapse uses that not all of them have: the one table.
//!
//! Tested with 2.2, 2.6, 3.0 and 3.2 (`tests/versions`); a version that cannot be told is taken for one that has everything.

use std::fmt;

/// `2.6` of `2.6.12-1+deb12u4`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    major: u32,
    minor: u32,
}

/// Something that came with a version.
#[derive(Debug, PartialEq, Eq)]
pub struct Since {
    version: Version,
    /// What it is.
    what: &'static str,
    /// What happens without.
    otherwise: &'static str,
}

const fn version(major: u32, minor: u32) -> Version {
    Version { major, minor }
}

/// `add server` and `del server` (2.4 has them as an experiment, which is not used).
pub const ADDS: Since = Since {
    version: version(2, 6),
    what: "adding and deleting servers at runtime",
    otherwise: "a server that is added takes a reload, and one that is removed stays in maint until the next",
};

/// `add server ... cookie` (its changelog).
pub const COOKIES: Since = Since {
    version: version(3, 0),
    what: "adding servers with `cookie` at runtime",
    otherwise: "where servers have cookies, one that is added takes a reload",
};

/// Different names of frontends and backends: 3.2 warns of equal ones, 3.3 refuses them (3.2's own words).
pub const SEPARATE_NAMES: Since = Since {
    version: version(3, 2),
    what: "different names of frontends and backends",
    otherwise: "both have the service's name",
};

/// `option idle-close-on-response`: unknown to 2.2.9 (measured), and to the first releases of 2.4 and 2.5.
pub const IDLE_CLOSE: Since = Since {
    version: version(2, 6),
    what: "`option idle-close-on-response`",
    otherwise: "the line is not added",
};

/// What is said of a version that is too old for something; cookies are too rare to be told each time.
const TOLD: [&Since; 2] = [&ADDS, &IDLE_CLOSE];

/// The oldest that is tested.
const OLDEST: Version = version(2, 2);

impl Version {
    /// The first two numbers.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.trim_start().split(|c: char| !c.is_ascii_digit());
        let mut number = || numbers.next()?.parse().ok();
        Some(version(number()?, number()?))
    }

    /// Of `haproxy -v`: `HA-Proxy version 2.2.9-2 ...` or `HAProxy version 3.2.26-1 ...`.
    pub(crate) fn of_program(output: &str) -> Option<Self> {
        let (_, text) = output.lines().next()?.split_once("roxy version ")?;
        Self::parse(text)
    }

    /// Whether it has that.
    #[must_use]
    pub fn has(self, what: &Since) -> bool {
        self >= what.version
    }

    /// What it is too old for, and what happens then, a sentence each.
    #[must_use]
    pub fn lacks(self) -> Vec<String> {
        let lacking = TOLD.iter().filter(|since| !self.has(since));
        let told = lacking.map(|since| {
            let Since {
                version,
                what,
                otherwise,
            } = since;
            format!("haproxy {self} is too old for {what} (since {version}): {otherwise}")
        });
        let untested = (self < OLDEST).then(|| {
            format!("haproxy {self} is older than {OLDEST}, with which synapse is tested")
        });
        told.chain(untested).collect()
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_programs_say_them() {
        for (text, expected) in [
            (
                "HA-Proxy version 2.2.9-2+deb11u6 2023/12/23 - https://haproxy.org/\nStatus: x",
                "2.2",
            ),
            (
                "HAProxy version 3.2.26-1 2026/10/14 - https://haproxy.org/",
                "3.2",
            ),
            ("HAProxy version 3.4-dev13-abcdef 2026/10/14", "3.4"),
        ] {
            assert_eq!(Version::of_program(text).unwrap().to_string(), expected);
        }
        for text in [
            "",
            "haproxy: not found",
            "HAProxy version unknown",
            "OpenBSD 7.9",
        ] {
            assert_eq!(Version::of_program(text), None, "{text}");
        }
        assert_eq!(Version::parse("2.6.12-1+deb12u4"), Some(version(2, 6)));
        assert!(version(2, 10) > version(2, 9) && version(3, 0) > version(2, 10));
    }

    #[test]
    fn what_a_version_lacks_is_said_with_what_happens_then() {
        assert!(version(2, 6).lacks().is_empty());
        assert_eq!(
            version(2, 2).lacks(),
            [
                "haproxy 2.2 is too old for adding and deleting servers at runtime (since 2.6): a server that is added takes a reload, and one that is removed stays in maint until the next",
                "haproxy 2.2 is too old for `option idle-close-on-response` (since 2.6): the line is not added",
            ]
        );
        assert_eq!(version(1, 8).lacks().len(), 3);
    }
}
