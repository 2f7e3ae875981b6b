//! The rules of a program's house, as a test: which room may know which, no circles, pure modules, no giants.
//!
//! A *module* here is a file: what it declares inline is a part of it, what is compiled for tests alone is not looked at. An
//! import that leads through a door (`pub use self::plan::Plan`) leads to the file behind it. Paths in code and in macros
//! count like imports.
//!
//! ```text
//! text   a file -> its words
//! read   words -> modules, what each names, how large its functions and structs are
//! here   the rules over that
//! ```

mod read;
#[cfg(test)]
mod tests;
mod text;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::path::Path;

use self::read::{Module, Place, Size, modules};

/// Fields that a struct may have.
pub const FIELDS: usize = 15;
/// Lines that a function may have, from its name to its last brace.
pub const LINES: usize = 80;

/// What a pure module does not name: files, sockets, processes, threads, other tasks.
pub const IMPURE: &[&str] = &[
    "nix",
    "rustix",
    "std::env",
    "std::fs",
    "std::io::Std",
    "std::net::Tcp",
    "std::net::Udp",
    "std::os::unix::net",
    "std::process",
    "std::thread",
    "std::time::Instant",
    "std::time::SystemTime",
    "tokio",
    "zookeeper_client",
];
/// What it may name of these: a moment is a value, as long as somebody else has read the clock.
const VALUES: &[&str] = &["tokio::time::Instant"];
/// Reading a clock, as a function of any type and as a method.
const CLOCKS: (&str, &str) = ("now", "elapsed");

/// A house and its rules. Modules are named without `crate::`.
#[derive(Debug)]
pub struct House<'a> {
    /// The orders of its rooms, each of one floor.
    pub floors: &'a [Floor<'a>],
    /// Pairs of rooms of which neither may know the other.
    pub apart: &'a [(&'a str, &'a str)],
    /// Whether a file may know one above its folder although that one knows it (`super::Words` in one that is called from
    /// there).
    pub families: bool,
    /// Modules (with all below them) that decide only: see [`IMPURE`].
    pub pure: &'a [&'a str],
    /// What breaks a rule all the same, as the fault names it in its brackets, and why. One that breaks none is a fault.
    pub exceptions: &'a [(&'a str, &'a str)],
}

/// The rooms of one folder.
#[derive(Debug)]
pub struct Floor<'a> {
    /// The folder's module; empty for the whole crate.
    pub within: &'a str,
    /// Its files and folders from top to bottom: an import only goes down. Each file has to be of one of them.
    pub rooms: &'a [&'a str],
}

/// A broken rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// What an exception would name.
    pub key: String,
    /// What is wrong, with its place.
    pub what: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [{}]", self.what, self.key)
    }
}

/// One module names something of another.
struct Edge<'a> {
    from: &'a str,
    to: &'a str,
    place: Place<'a>,
}

impl House<'_> {
    /// Every broken rule of the crate whose `lib.rs` is in the folder `source`, exceptions applied.
    ///
    /// # Panics
    /// When a file cannot be read or understood.
    #[must_use]
    pub fn faults(&self, source: &Path) -> Vec<Fault> {
        self.faults_of(&|file| std::fs::read_to_string(source.join(file)).ok())
    }

    fn faults_of(&self, text: &dyn Fn(&str) -> Option<String>) -> Vec<Fault> {
        let modules = modules(text);
        let edges = edges(&modules);
        let mut faults = Vec::new();
        for floor in self.floors {
            faults.extend(floor.faults(&modules, &edges));
        }
        faults.extend(self.meetings(&edges));
        faults.extend(self.circles(&edges));
        faults.extend(self.impurities(&modules));
        faults.extend(modules.values().flat_map(giants));
        self.excused(faults)
    }

    fn excused(&self, mut faults: Vec<Fault>) -> Vec<Fault> {
        let broken: BTreeSet<String> = faults.iter().map(|fault| fault.key.clone()).collect();
        faults.retain(|fault| !self.exceptions.iter().any(|(key, _)| *key == fault.key));
        for (key, why) in self.exceptions {
            if why.is_empty() || !broken.contains(*key) {
                let what =
                    format!("the exception `{key}` ({why}) breaks no rule, or has no reason");
                faults.push(fault(key, what));
            }
        }
        let mut seen = BTreeSet::new();
        faults.retain(|fault| seen.insert(fault.key.clone()));
        faults
    }

    fn meetings(&self, edges: &[Edge<'_>]) -> Vec<Fault> {
        let meets = |edge: &&Edge<'_>| {
            let of = |a, b| is_in(edge.from, a) && is_in(edge.to, b);
            self.apart.iter().any(|(a, b)| of(a, b) || of(b, a))
        };
        let told = |edge: &Edge<'_>| {
            let Edge { from, to, place } = edge;
            let what = format!("{place}: `{from}` knows `{to}`: these rooms do not meet");
            fault(&format!("{from} -> {to}"), what)
        };
        edges.iter().filter(meets).map(told).collect()
    }

    /// The shortest circle of each module that is in one.
    fn circles(&self, edges: &[Edge<'_>]) -> Vec<Fault> {
        let counts = |edge: &&Edge<'_>| !(self.families && is_in(edge.from, edge.to));
        let mut known: BTreeMap<&str, Vec<&Edge<'_>>> = BTreeMap::new();
        for edge in edges.iter().filter(counts) {
            known.entry(edge.from).or_default().push(edge);
        }
        let mut faults = Vec::new();
        for start in known.keys() {
            let Some(mut circle) = circle(start, &known) else {
                continue;
            };
            let first = (0..circle.len()).min_by_key(|at| circle[*at].from);
            circle.rotate_left(first.unwrap_or(0));
            let names: Vec<&str> = circle.iter().map(|edge| edge.from).collect();
            let hops: Vec<String> = circle
                .iter()
                .map(|edge| format!("\n  {}: `{}` knows `{}`", edge.place, edge.from, edge.to))
                .collect();
            let key = format!("circle {}", names.join(", "));
            faults.push(fault(&key, format!("a circle:{}\n ", hops.concat())));
        }
        faults
    }

    fn impurities(&self, modules: &BTreeMap<String, Module>) -> Vec<Fault> {
        let mut faults = Vec::new();
        for pure in self.pure {
            let mut here = modules.values().filter(|m| is_in(&m.name, pure)).peekable();
            if here.peek().is_none() {
                faults.push(fault(
                    pure,
                    format!("there is no module `{pure}` to be pure"),
                ));
            }
            for module in here {
                let impure = module.foreign.iter().filter(|(path, _)| is_impure(path));
                faults.extend(impure.map(|(path, line)| {
                    let place = module.place(*line);
                    let what = format!(
                        "{place}: `{}` is to be pure, and names `{path}`",
                        module.name
                    );
                    fault(&format!("{} names {path}", module.name), what)
                }));
            }
        }
        faults
    }
}

impl Floor<'_> {
    fn faults(&self, modules: &BTreeMap<String, Module>, edges: &[Edge<'_>]) -> Vec<Fault> {
        let mut faults = Vec::new();
        for module in modules.values() {
            if let Some(room) = self.room(&module.name)
                && self.rank(room).is_none()
            {
                let what = format!("{}: `{room}` is no room of the list", module.path);
                faults.push(fault(&module.name, what));
            }
        }
        for room in self.rooms {
            let is_there = |module: &Module| self.room(&module.name) == Some(room);
            if !modules.values().any(is_there) {
                faults.push(fault(room, format!("there is no room `{room}`")));
            }
        }
        for Edge { from, to, place } in edges {
            let (Some(own), Some(other)) = (self.room(from), self.room(to)) else {
                continue;
            };
            if let (Some(here), Some(there)) = (self.rank(own), self.rank(other))
                && there < here
            {
                let what = format!("{place}: `{from}` knows `{to}`: `{other}` is above `{own}`");
                faults.push(fault(&format!("{from} -> {to}"), what));
            }
        }
        faults
    }

    /// The room that a module is of, when it is of this folder.
    fn room<'m>(&self, module: &'m str) -> Option<&'m str> {
        let below = match self.within {
            "" => module,
            within => module.strip_prefix(within)?.strip_prefix("::")?,
        };
        let room = below.split("::").next().unwrap_or(below);
        (!room.is_empty()).then_some(room)
    }

    fn rank(&self, room: &str) -> Option<usize> {
        self.rooms.iter().position(|other| *other == room)
    }
}

fn fault(key: &str, what: String) -> Fault {
    let key = key.to_owned();
    Fault { key, what }
}

/// Whether a module is `folder` or below it.
fn is_in(module: &str, folder: &str) -> bool {
    let rest = module.strip_prefix(folder);
    folder.is_empty() || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// Whether a path of another crate begins with a word of the list; the last part of a word may be a beginning.
fn is_impure(path: &str) -> bool {
    let begins = |word: &&&str| {
        let rest = path.strip_prefix(**word);
        let ends_within = word
            .rsplit("::")
            .next()
            .is_some_and(|last| last.starts_with(char::is_uppercase));
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with("::") || ends_within)
    };
    let last = path.rsplit("::").next().unwrap_or(path);
    let reads_clock = path.contains("::") && last == CLOCKS.0 || path == format!(".{}", CLOCKS.1);
    reads_clock
        || (IMPURE.iter().any(|word| begins(&word)) && !VALUES.iter().any(|word| begins(&word)))
}

/// Who knows whom, once each, with the first place.
fn edges(modules: &BTreeMap<String, Module>) -> Vec<Edge<'_>> {
    let mut seen = BTreeSet::new();
    let mut edges = Vec::new();
    for module in modules.values() {
        for (path, line) in &module.own {
            let to = read::file_of(modules, path);
            if to != module.name && seen.insert((&module.name, to)) {
                edges.push(Edge {
                    from: &module.name,
                    to,
                    place: module.place(*line),
                });
            }
        }
    }
    edges
}

/// The shortest way from a module back to itself.
fn circle<'e>(start: &str, known: &BTreeMap<&str, Vec<&'e Edge<'e>>>) -> Option<Vec<&'e Edge<'e>>> {
    let mut came: BTreeMap<&str, &Edge<'_>> = BTreeMap::new();
    let mut queue = VecDeque::from([start]);
    while let Some(at) = queue.pop_front() {
        for edge in known.get(at).into_iter().flatten() {
            if edge.to == start {
                let mut way = vec![*edge];
                while let Some(before) = came.get(way[way.len() - 1].from) {
                    way.push(before);
                }
                way.reverse();
                return Some(way);
            }
            if !came.contains_key(edge.to) {
                came.insert(edge.to, edge);
                queue.push_back(edge.to);
            }
        }
    }
    None
}

fn giants(module: &Module) -> Vec<Fault> {
    let mut faults = Vec::new();
    for (item, line, size) in &module.sizes {
        let (count, most, of) = match size {
            Size::Fields(count) => (*count, FIELDS, "fields"),
            Size::Lines(count) => (*count, LINES, "lines"),
        };
        if count > most {
            let name = format!("{}::{item}", module.name);
            let what = format!(
                "{}: `{name}` has {count} {of}, more than {most}",
                module.place(*line)
            );
            faults.push(fault(&name, what));
        }
    }
    faults
}
