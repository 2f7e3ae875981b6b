//! Text that goes into haproxy.cfg: checked here, once. Used by `read` and `service`.

use smartstack_common::config::{Cursor, false_blank};

use crate::config::lines;

/// Whether the text may be (part of) a line: no control characters but tabs.
pub(super) fn config_line(cursor: &Cursor<'_>, text: &str) -> bool {
    let clean = !text.contains(|c: char| c.is_control() && c != '\t');
    if !clean {
        cursor.error("control characters cannot stand in haproxy.cfg");
    }
    if let Some(blank) = false_blank(text) {
        cursor.warn_hint(
            format!("{blank} is no blank to haproxy: it is part of the word beside it"),
            "write an ordinary blank",
        );
    }
    clean
}

/// Lines with their places; those haproxy cannot have are errors, those it refuses by now warnings.
fn checked_lines<'a>(cursor: &Cursor<'a>) -> impl Iterator<Item = (Cursor<'a>, String)> {
    cursor
        .lines()
        .into_iter()
        .filter(|(at, line)| config_line(at, line))
        .inspect(|(at, line)| warn_of_refusal(at, line))
}

fn warn_of_refusal(at: &Cursor<'_>, line: &str) {
    if let Some(now) = lines::replacement(line) {
        at.warn_hint(
            "haproxy 2.6 and later refuse this line",
            &format!("write {now}"),
        );
    }
}

/// Lines of a section that belongs to no service, with their places. A line of an older haproxy that has the same meaning
/// under another name gets that name.
pub(super) fn section_lines<'a>(cursor: &Cursor<'a>) -> Vec<(Cursor<'a>, String)> {
    cursor
        .lines()
        .into_iter()
        .filter(|(at, line)| config_line(at, line))
        .map(|(at, line)| {
            if let Some(now) = lines::renamed(&line) {
                at.warn(format!(
                    "haproxy 2.6 and later refuse this line: written as `{now}`"
                ));
                return (at, now);
            }
            warn_of_refusal(&at, &line);
            (at, line)
        })
        .collect()
}

/// Lines of a service's section: none may begin another section.
pub(super) fn service_lines<'a>(cursor: &Cursor<'a>) -> Vec<(Cursor<'a>, String)> {
    checked_lines(cursor)
        .filter(|(at, line)| {
            let stays = !lines::begins_section(line);
            if !stays {
                at.warn_hint(
                    "left out: it would begin another section",
                    "sections of their own go to `haproxy.extra_sections`",
                );
            }
            stays
        })
        .collect()
}

/// One word: no blanks, no control characters.
pub(super) fn word(cursor: &Cursor<'_>) -> Option<String> {
    cursor.parsed(|text| {
        if text.is_empty()
            || text.contains(|c: char| c.is_whitespace() || c.is_control() || c == '#')
        {
            return Err("must be one word".to_owned());
        }
        Ok(text.to_owned())
    })
}

/// Part of a line.
pub(super) fn line(cursor: &Cursor<'_>) -> Option<String> {
    cursor.text().filter(|text| config_line(cursor, text))
}

/// Whether a service or backend may have that name in haproxy.
pub(super) fn is_name(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with('-')
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | ':' | '-'))
}
