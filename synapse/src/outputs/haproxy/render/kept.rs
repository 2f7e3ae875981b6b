//! A frame as it stands in a haproxy.cfg that an earlier process left: what haproxy was last seen to accept, whatever the
//! configuration says by now.

use crate::outputs::haproxy::cfg::generation::{Generation, parse_description};
use crate::outputs::haproxy::cfg::{Model, Ours, Section};

/// The text of everything that belongs to no service, open where the generation stands.
pub(super) struct Kept {
    before: String,
    /// The user's own text in `description`.
    description: String,
    after: String,
    /// The configured lines of the shared frontend that stand in the file; `None` = it has none.
    pub(super) shared: Option<Vec<String>>,
}

impl Kept {
    /// Of a file with our generation. `shared` are the configured lines of the shared frontend; `ours` tells the sections of
    /// services.
    pub(super) fn of_file(
        text: &str,
        shared: Option<&[String]>,
        ours: impl Fn(&Section) -> bool,
    ) -> Option<Self> {
        let model = Model::parse(text, Ours::All);
        let is_shared =
            |section: &Section| section.keyword == "frontend" && section.name == super::SHARED_NAME;
        let marked = |line: &&str| {
            let text = line.trim().strip_prefix("description ");
            text.and_then(parse_description)
                .and_then(Generation::parse)
                .is_some()
        };
        let lines: Vec<&str> = text.lines().collect();
        let mut kept: Vec<&str> = Vec::new();
        let mut sections = model.sections.iter().peekable();
        let first = sections.peek().map_or(lines.len(), |s| s.number.max(1) - 1);
        kept.extend(lines.get(..first)?);
        let mut stands = None;
        while let Some(section) = sections.next() {
            let end = sections.peek().map_or(lines.len(), |next| next.number - 1);
            if is_shared(section) {
                let has = |line: &&String| section.lines.iter().any(|l| l.text == line.trim());
                stands = shared.map(|lines| lines.iter().filter(has).cloned().collect());
            } else if !ours(section) {
                kept.extend(lines.get(section.number.max(1) - 1..end)?);
            }
        }
        let mark = kept.iter().position(marked)?;
        let joined = |lines: &[&str]| lines.iter().fold(String::new(), |all, l| all + l + "\n");
        let words = kept.get(mark)?.trim().strip_prefix("description ")?;
        let own = words.rsplit_once(' ').map_or("", |(own, _)| own);
        Some(Self {
            before: joined(kept.get(..mark)?),
            description: own.trim().to_owned(),
            after: joined(kept.get(mark + 1..)?).trim_end().to_owned() + "\n",
            shared: stands,
        })
    }

    /// With this generation; `""` = without any.
    pub(super) fn text(&self, generation: &str) -> String {
        let mark = (!generation.is_empty()).then(|| format!("synapse={generation}"));
        let own = Some(self.description.as_str()).filter(|own| !own.is_empty());
        let words: Vec<&str> = own.into_iter().chain(mark.as_deref()).collect();
        let line = match words[..] {
            [] => String::new(),
            _ => format!("\tdescription {}\n", words.join(" ")),
        };
        format!("{}{line}{}", self.before, self.after)
    }
}
