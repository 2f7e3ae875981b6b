//! `haproxy_server_options`: what of it may stand on a server line.

use super::keywords::{ALLOWED, check_value};
use super::{excerpt, is_unsafe};
use crate::effective::keyword::arity;

/// More words than this are not options but an attack: haproxy silently cuts a line at 64.
const MAX_WORDS: usize = 32;

/// Options and the explicit id that was among them.
pub(super) type Options = (Option<String>, Option<u32>);

/// The registry's text by allow-list. An unlisted keyword goes with its arguments; when their number is not known the
/// whole text goes. Each loss is a note.
///
/// # Errors
/// Characters that must never be rendered: they refuse the znode.
pub(super) fn filter(
    text: &str,
    extra: &[String],
    notes: &mut Vec<String>,
) -> Result<Options, String> {
    if let Some(bad) = text.chars().find(|c| is_unsafe(*c)) {
        return Err(format!("`haproxy_server_options` holds {bad:?}"));
    }
    if !text.is_ascii() {
        notes.push("`haproxy_server_options` left out: not ASCII".to_owned());
        return Ok((None, None));
    }
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    if words.len() > MAX_WORDS {
        notes.push(format!(
            "`haproxy_server_options` left out: more than {MAX_WORDS} words"
        ));
        return Ok((None, None));
    }
    let mut kept: Vec<&str> = Vec::new();
    let mut id = None;
    let mut rest = words.as_slice();
    while let Some((keyword, tail)) = rest.split_first() {
        let Some(count) = arity(keyword) else {
            notes.push(format!(
                "`haproxy_server_options` left out: {} is not an allowed option",
                excerpt(keyword)
            ));
            return Ok((None, None));
        };
        let allowed = ALLOWED.contains(keyword) || extra.iter().any(|word| word == keyword);
        let Some((arguments, tail)) = tail.split_at_checked(count) else {
            notes.push(format!(
                "option `{keyword}` left out: its argument is missing"
            ));
            break;
        };
        rest = tail;
        let fault = arguments
            .iter()
            .find_map(|value| check_value(keyword, value).err().map(|e| (value, e)));
        match (*keyword, fault) {
            (_, Some((value, needs))) => {
                notes.push(format!(
                    "option `{keyword}` left out: {} is not {needs}",
                    excerpt(value)
                ));
            }
            ("id", None) => id = arguments[0].parse().ok(),
            (_, None) if allowed => {
                kept.push(keyword);
                kept.extend(arguments);
            }
            _ => notes.push(format!(
                "option `{keyword}` left out: not allowed (`allowed_server_options`)"
            )),
        }
    }
    Ok(((!kept.is_empty()).then(|| kept.join(" ")), id))
}

/// Text of the local configuration: as it is, apart from `id N`, which becomes the explicit id.
///
/// # Errors
/// Control characters.
pub(super) fn local(text: &str) -> Result<Options, String> {
    if let Some(bad) = text.chars().find(|c| c.is_control() && *c != '\t') {
        return Err(format!("`haproxy_server_options` holds {bad:?}"));
    }
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    let id_at = words
        .windows(2)
        .position(|pair| pair[0] == "id" && check_value("id", pair[1]).is_ok());
    let Some(at) = id_at else {
        let text = text.trim();
        return Ok(((!text.is_empty()).then(|| text.to_owned()), None));
    };
    let id = words[at + 1].parse().ok();
    let rest = [&words[..at], &words[at + 2..]].concat().join(" ");
    Ok(((!rest.is_empty()).then_some(rest), id))
}
