//! From source text to modules: what each names, and how large its parts are. Nothing is judged here.
//!
//! It reads what `rustc` accepts and `rustfmt` has formatted, word by word, and understands of the language what the rules need:
//! modules, imports, paths, methods, functions, structs, and what is compiled for tests alone.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use super::text::{Kind, Word, words};

/// One file.
#[derive(Debug, Default)]
pub(super) struct Module {
    /// Without `crate::`; empty for the root.
    pub(super) name: String,
    /// Below the source folder.
    pub(super) path: String,
    /// What it names of its own crate, without `crate::`, each with its line.
    pub(super) own: Vec<(Vec<String>, usize)>,
    /// What it names of other crates, and methods with a dot before them.
    pub(super) foreign: Vec<(String, usize)>,
    /// Its functions and structs, each with its line.
    pub(super) sizes: Vec<(String, usize, Size)>,
    /// What it declares: modules, and whether each is a part of this file.
    children: BTreeMap<String, bool>,
    /// Names that lead elsewhere in the crate.
    doors: BTreeMap<String, Vec<String>>,
}

/// How large something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Size {
    Fields(usize),
    Lines(usize),
}

/// A line of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place<'a>(&'a str, usize);

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "src/{}:{}", self.0, self.1)
    }
}

impl Module {
    pub(super) fn place(&self, line: usize) -> Place<'_> {
        Place(&self.path, line)
    }
}

/// The modules of the crate that begins in `lib.rs`, by name. `text` gives a file's text.
pub(super) fn modules(text: &dyn Fn(&str) -> Option<String>) -> BTreeMap<String, Module> {
    let mut modules = BTreeMap::new();
    let mut open = vec![(String::new(), "lib.rs".to_owned())];
    while let Some((name, path)) = open.pop() {
        let source = text(&path).unwrap_or_else(|| panic!("cannot read src/{path}"));
        let module = read(name, path, &source);
        for child in module.children.iter().filter(|(_, inline)| !**inline) {
            let folder = match module.path.as_str() {
                "lib.rs" => String::new(),
                path => format!(
                    "{}/",
                    path.trim_end_matches("/mod.rs").trim_end_matches(".rs")
                ),
            };
            let files = [
                format!("{folder}{}.rs", child.0),
                format!("{folder}{}/mod.rs", child.0),
            ];
            let file = files.iter().find(|file| text(file).is_some());
            let file = file.unwrap_or_else(|| panic!("there is no src/{}", files[0]));
            open.push((join(&module.name, child.0), file.clone()));
        }
        modules.insert(module.name.clone(), module);
    }
    modules
}

/// The name of the file that a path of the crate leads to.
pub(super) fn file_of<'m>(modules: &'m BTreeMap<String, Module>, path: &[String]) -> &'m str {
    let mut path = path.to_vec();
    // A door may lead to a door.
    for _ in 0..16 {
        let mut at = &modules[""];
        let mut rest = path.iter();
        let through = loop {
            let Some(part) = rest.next() else { break None };
            match at.children.get(part) {
                Some(false) => at = &modules[&join(&at.name, part)],
                Some(true) => {}
                None => {
                    break at
                        .doors
                        .get(part)
                        .map(|door| [door, rest.as_slice()].concat());
                }
            }
        };
        match through {
            Some(further) => path = further,
            None => return &at.name,
        }
    }
    panic!("`{}` leads in a circle", path.join("::"))
}

fn join(module: &str, child: &str) -> String {
    match module {
        "" => child.to_owned(),
        module => format!("{module}::{child}"),
    }
}

fn parts(name: &str) -> Vec<String> {
    let parts = name.split("::").filter(|part| !part.is_empty());
    parts.map(str::to_owned).collect()
}

fn read(name: String, path: String, source: &str) -> Module {
    let words = words(source);
    let mut reader = Reader {
        words: &words,
        at: parts(&name),
        owner: None,
        imports: BTreeMap::new(),
        paths: Vec::new(),
        module: Module {
            name,
            path,
            ..Module::default()
        },
    };
    reader.walk(0..words.len());
    reader.finish()
}

/// A path as it is written.
struct Written {
    /// The module that it is written in.
    at: Vec<String>,
    path: Vec<String>,
    line: usize,
    /// The name that it gets here, of an import.
    name: Option<String>,
    /// Whether it is named here: an import that others see as well is only a door.
    counts: bool,
}

/// Where a path leads.
enum Target {
    Own(Vec<String>),
    Foreign(Vec<String>),
}

struct Reader<'w> {
    words: &'w [Word],
    /// The module that is looked at, with inline ones.
    at: Vec<String>,
    /// Whose functions are looked at.
    owner: Option<String>,
    /// What names are here, as they were imported.
    imports: BTreeMap<String, Vec<String>>,
    paths: Vec<Written>,
    module: Module,
}

impl Reader<'_> {
    fn is(&self, at: usize, sign: &str) -> bool {
        self.words.get(at).is_some_and(|word| word.is(sign))
    }

    fn name(&self, at: usize) -> Option<&str> {
        self.words.get(at)?.name()
    }

    /// The number of the word after the group that opens here with `bracket`.
    fn group(&self, at: usize, bracket: char) -> Option<usize> {
        match self.words.get(at)?.kind {
            Kind::Open(own, end) if own == bracket => Some(end),
            _ => None,
        }
    }

    /// The first word from `at` on, inside of no group, that is a `;` or opens a block.
    fn head(&self, mut at: usize) -> usize {
        while at < self.words.len() && !self.is(at, ";") {
            match self.words[at].kind {
                Kind::Open('{', _) => return at,
                Kind::Open(_, end) => at = end,
                Kind::Close => return at,
                _ => at += 1,
            }
        }
        at
    }

    fn walk(&mut self, range: Range<usize>) {
        let mut at = range.start;
        while at < range.end {
            at = self.step(at).max(at + 1);
        }
    }

    /// Takes what begins here; returns where to go on.
    fn step(&mut self, at: usize) -> usize {
        if self.is(at, "#") {
            let list = at + 1 + usize::from(self.is(at + 1, "!"));
            return match self.group(list, '[') {
                Some(end) if self.is_of_tests(list + 1..end - 1) => self.after_item(end),
                Some(end) => end,
                None => at + 1,
            };
        }
        let Some(word) = self.name(at) else {
            return at + 1;
        };
        let next = self.name(at + 1).map(str::to_owned);
        match (word, next) {
            ("use", _) if !self.is(at + 1, "<") => self.import(at),
            ("mod", Some(child)) => self.child(at, child),
            ("fn", Some(name)) => self.function(at, &name),
            ("struct", Some(name)) => self.fields(at, &name),
            ("trait", Some(name)) => self.owned(at, Some(name)),
            ("impl", _) if self.begins_item(at) => {
                let owner = self.owner_of(at + 1);
                self.owned(at, owner)
            }
            _ => self.path(at),
        }
    }

    /// Whether an attribute is of what is compiled for tests alone.
    fn is_of_tests(&self, list: Range<usize>) -> bool {
        let conditional = self.is(list.start, "cfg")
            && (self.is(list.start + 2, "test")
                || self.is(list.start + 2, "all") && self.is(list.start + 4, "test"));
        conditional || self.is(list.end - 1, "test")
    }

    /// Behind the item, statement or field that begins here.
    fn after_item(&self, mut at: usize) -> usize {
        let blocks = [
            "fn",
            "impl",
            "mod",
            "struct",
            "enum",
            "trait",
            "macro_rules",
        ];
        let mut has_block = false;
        while at < self.words.len() {
            match &self.words[at].kind {
                Kind::Open('{', end) if has_block => return *end,
                Kind::Open(_, end) => at = *end,
                Kind::Close => return at,
                Kind::Sign(";") => return at + 1,
                Kind::Sign(",") if !has_block => return at + 1,
                Kind::Name(name) => {
                    has_block |= blocks.contains(&name.as_str());
                    at += 1;
                }
                _ => at += 1,
            }
        }
        at
    }

    /// Whether an `impl` is not one of a type.
    fn begins_item(&self, at: usize) -> bool {
        let Some(before) = at.checked_sub(1).map(|before| &self.words[before]) else {
            return true;
        };
        matches!(before.kind, Kind::Close | Kind::Open('{', _))
            || before.is(";")
            || before.is("unsafe")
    }

    fn child(&mut self, at: usize, child: String) -> usize {
        let body = self.group(at + 2, '{');
        if self.at.len() == parts(&self.module.name).len() {
            self.module.children.insert(child.clone(), body.is_some());
        }
        let Some(end) = body else { return at + 2 };
        self.at.push(child);
        self.walk(at + 3..end - 1);
        self.at.pop();
        end
    }

    fn function(&mut self, at: usize, name: &str) -> usize {
        let body = self.head(at + 2);
        let mut from = at + 2;
        while from < body {
            from = self.path(from).max(from + 1);
        }
        let Some(end) = self.group(body, '{') else {
            return body;
        };
        let line = self.words[at + 1].line;
        let lines = self.words[end - 1].line + 1 - line;
        self.size(name, line, Size::Lines(lines));
        self.walk(body + 1..end - 1);
        end
    }

    fn fields(&mut self, at: usize, name: &str) -> usize {
        let mut body = self.after_generics(at + 2);
        while self.group(body, '(').is_none() && self.head(body) > body {
            body += 1;
        }
        let end = self.group(body, '{').or_else(|| self.group(body, '('));
        let Some(end) = end else { return body };
        let (mut count, mut depth, mut filled) = (0, 0, false);
        let mut from = body + 1;
        while from < end - 1 {
            let word = &self.words[from];
            depth += i32::from(word.is("<")) - i32::from(word.is(">"));
            if word.is(",") && depth == 0 {
                filled = false;
            } else if !filled {
                filled = true;
                count += 1;
            }
            from = match word.kind {
                Kind::Open(_, end) => end,
                _ => from + 1,
            };
        }
        self.size(name, self.words[at + 1].line, Size::Fields(count));
        self.walk(body..end);
        end
    }

    /// A block whose functions are of `owner`.
    fn owned(&mut self, at: usize, owner: Option<String>) -> usize {
        let body = self.head(at + 1);
        let mut from = at + 1;
        while from < body {
            from = self.path(from).max(from + 1);
        }
        let Some(end) = self.group(body, '{') else {
            return body;
        };
        let before = std::mem::replace(&mut self.owner, owner);
        self.walk(body + 1..end - 1);
        self.owner = before;
        end
    }

    /// The type of an `impl` whose head begins here.
    fn owner_of(&self, at: usize) -> Option<String> {
        let end = self.head(at);
        let begin = self.after_generics(at);
        let of_trait = (begin..end).find(|at| self.is(*at, "for") && !self.is(at + 1, "<"));
        let mut owner = None;
        for at in of_trait.map_or(begin, |at| at + 1)..end {
            match &self.words[at].kind {
                Kind::Name(name) if !["dyn", "mut"].contains(&name.as_str()) => {
                    owner = Some(name.clone());
                    if !self.is(at + 1, "::") {
                        break;
                    }
                }
                _ => {}
            }
        }
        owner
    }

    fn after_generics(&self, at: usize) -> usize {
        if !self.is(at, "<") {
            return at;
        }
        let mut depth = 0;
        for (further, word) in self.words[at..].iter().enumerate() {
            depth += i32::from(word.is("<")) - i32::from(word.is(">"));
            if depth == 0 {
                return at + further + 1;
            }
        }
        self.words.len()
    }

    fn size(&mut self, name: &str, line: usize, size: Size) {
        let owner = self
            .owner
            .as_ref()
            .filter(|_| matches!(size, Size::Lines(_)));
        let item = owner.map_or(name.to_owned(), |owner| format!("{owner}::{name}"));
        self.module.sizes.push((item, line, size));
    }

    /// A path, a method or a word; returns the number of the word behind it.
    fn path(&mut self, at: usize) -> usize {
        let Some(first) = self.name(at) else {
            return at + 1;
        };
        let mut path = vec![first.to_owned()];
        let before = |sign| at > 0 && self.is(at - 1, sign);
        let method = before(".");
        let ours = !before("::") && !before("$") && !method;
        let mut end = at + 1;
        while self.is(end, "::") {
            let Some(next) = self.name(end + 1) else {
                break;
            };
            path.push(next.to_owned());
            end += 2;
        }
        let line = self.words[at].line;
        if method {
            self.module.foreign.push((format!(".{}", path[0]), line));
        } else if ours && path.len() > 1 && path[0] != "Self" {
            self.write(path, line, None, true);
        }
        end
    }

    fn write(&mut self, path: Vec<String>, line: usize, name: Option<String>, counts: bool) {
        self.paths.push(Written {
            at: self.at.clone(),
            path,
            line,
            name,
            counts,
        });
    }

    fn import(&mut self, at: usize) -> usize {
        let before = |back: usize| at.checked_sub(back).and_then(|at| self.words.get(at));
        let seen = before(1).is_some_and(|word| word.is("pub"))
            || before(1).is_some_and(|word| word.kind == Kind::Close)
                && before(4).is_some_and(|word| word.is("pub"));
        let end = (at..self.words.len()).find(|at| self.is(*at, ";"));
        let end = end.unwrap_or(self.words.len());
        self.tree(at + 1, end, &[], seen);
        end
    }

    /// The names of an import from here to `end`, below `base`.
    fn tree(&mut self, mut at: usize, end: usize, base: &[String], seen: bool) {
        let mut path = base.to_vec();
        let mut name = None;
        let line = self.words[at.min(self.words.len() - 1)].line;
        while at < end {
            let word = &self.words[at];
            match &word.kind {
                Kind::Name(as_) if as_ == "as" => {
                    name = self.name(at + 1).map(str::to_owned);
                    at += 2;
                }
                Kind::Name(part) => {
                    // `{self}` is what the braces belong to.
                    if part != "self" || path.is_empty() {
                        path.push(part.clone());
                    }
                    at += 1;
                }
                Kind::Open('{', after) => {
                    let (mut from, last) = (at + 1, after - 1);
                    while from < last {
                        let to = self.comma(from, last);
                        self.tree(from, to, &path, seen);
                        from = to + 1;
                    }
                    return;
                }
                Kind::Sign("*") => {
                    self.write(path, line, None, true);
                    return;
                }
                _ => at += 1,
            }
        }
        let name = name.or_else(|| path.last().cloned());
        self.write(path, line, name, !seen);
    }

    /// The comma that ends what begins here, inside of no braces.
    fn comma(&self, mut at: usize, end: usize) -> usize {
        while at < end && !self.is(at, ",") {
            at = match self.words[at].kind {
                Kind::Open(_, after) => after,
                _ => at + 1,
            };
        }
        at
    }

    fn finish(mut self) -> Module {
        let paths = std::mem::take(&mut self.paths);
        for written in &paths {
            if let Some(name) = &written.name {
                self.imports.insert(name.clone(), written.path.clone());
            }
        }
        for written in paths {
            match self.target(&written.at, &written.path, 0) {
                Target::Own(path) => {
                    if written.counts {
                        self.module.own.push((path.clone(), written.line));
                    }
                    if let Some(name) = written.name {
                        self.module.doors.insert(name, path);
                    }
                }
                Target::Foreign(path) => self.module.foreign.push((path.join("::"), written.line)),
            }
        }
        self.module
    }

    fn target(&self, at: &[String], path: &[String], depth: usize) -> Target {
        let first = path.first().map_or("", String::as_str);
        let (base, rest) = match first {
            "crate" => (&[][..], &path[1..]),
            "self" => (at, &path[1..]),
            "super" => {
                let up = path.iter().take_while(|part| *part == "super").count();
                (&at[..at.len().saturating_sub(up)], &path[up..])
            }
            first if self.module.children.contains_key(first) => {
                let own = parts(&self.module.name);
                return Target::Own([&own, path].concat());
            }
            first => {
                return match self.imports.get(first) {
                    // `use serde_json;` names itself.
                    Some(import) if import[0] != first && depth < 8 => {
                        self.target(at, &[import, &path[1..]].concat(), depth + 1)
                    }
                    Some(import) => Target::Foreign([import, &path[1..]].concat()),
                    None => Target::Foreign(path.to_vec()),
                };
            }
        };
        Target::Own([base, rest].concat())
    }
}
