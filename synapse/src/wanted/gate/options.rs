//! `haproxy_server_options`: what of it may stand on a server line.

use super::keywords::{ALLOWED, check_value, is_decisive};
use super::{excerpt, is_unsafe};
use crate::config::keyword::arity;

/// More words than this are not options but an attack: haproxy silently cuts a line at 64.
const MAX_WORDS: usize = 32;

/// Options and the explicit id that was among them.
pub(super) type Options = (Option<String>, Option<u32>);

/// The registry's text by allow-list. What may not be used is left out together with its arguments, each loss a line in
/// `left_out`; a text that cannot be read to its end is left out as a whole.
///
/// # Errors
/// Why the server cannot be used: characters that must never be rendered, or what would be left out decides what haproxy
/// connects to or checks.
pub(super) fn filter(
    text: &str,
    extra: &[String],
    left_out: &mut Vec<String>,
) -> Result<Options, String> {
    if let Some(bad) = text.chars().find(|c| is_unsafe(*c)) {
        return Err(format!("`haproxy_server_options` holds {bad:?}"));
    }
    let words: Vec<&str> = text.split_whitespace().collect();
    if !text.is_ascii() {
        return without_all(&words, "not ASCII", left_out);
    }
    if words.len() > MAX_WORDS {
        let why = format!("more than {MAX_WORDS} words");
        return without_all(&words, &why, left_out);
    }
    let mut kept: Vec<&str> = Vec::new();
    let mut refused: Vec<&str> = Vec::new();
    let mut id = None;
    let mut rest = words.as_slice();
    while let Some((keyword, tail)) = rest.split_first() {
        let Some(count) = arity(keyword) else {
            let why = format!("{} is not an option known here", excerpt(keyword));
            return without_all(&words, &why, left_out);
        };
        let (arguments, tail) = tail.split_at_checked(count).unwrap_or((&[], &[]));
        rest = tail;
        let allowed =
            *keyword == "id" || ALLOWED.contains(keyword) || extra.iter().any(|e| e == keyword);
        match fault(keyword, count, arguments) {
            None if *keyword == "id" => id = arguments[0].parse().ok(),
            None if allowed => kept.extend([keyword].into_iter().chain(arguments)),
            _ if !allowed && is_decisive(keyword) => refused.push(keyword),
            Some(fault) if is_decisive(keyword) => {
                return Err(format!("option `{keyword}`: {fault}"));
            }
            Some(fault) => left_out.push(format!("option `{keyword}` left out: {fault}")),
            None => left_out.push(format!(
                "option `{keyword}` left out: not allowed (`haproxy.allowed_server_options`)"
            )),
        }
    }
    if refused.is_empty() {
        return Ok(((!kept.is_empty()).then(|| kept.join(" ")), id));
    }
    refused.sort_unstable();
    refused.dedup();
    Err(format!(
        "its options decide what haproxy connects to or checks, and may not come from the registry: `{}`; to allow them: \
         `haproxy.allowed_server_options: [{}]`",
        refused.join("`, `"),
        refused.join(", ")
    ))
}

/// What is wrong with the arguments of a keyword that takes `count`.
fn fault(keyword: &str, count: usize, arguments: &[&str]) -> Option<String> {
    if arguments.len() < count {
        return Some("its argument is missing".to_owned());
    }
    arguments.iter().find_map(|value| {
        let needed = check_value(keyword, value).err()?;
        Some(format!("{} is not {needed}", excerpt(value)))
    })
}

/// Nothing of a text that cannot be read to its end. It refuses the server when it holds a word that the server cannot do
/// without: where the number of arguments is not known, an argument may pass for such a word.
fn without_all(words: &[&str], why: &str, left_out: &mut Vec<String>) -> Result<Options, String> {
    let weightless = words.windows(2).any(|pair| pair == ["weight", "0"]);
    let is_needed = |word: &str| {
        is_decisive(word)
            || matches!(word, "backup" | "disabled")
            || (word == "weight" && weightless)
    };
    if let Some(word) = words.iter().find(|word| is_needed(word)) {
        return Err(format!(
            "`haproxy_server_options` cannot be used ({why}), and it holds `{word}`, which the server cannot do without"
        ));
    }
    left_out.push(format!("`haproxy_server_options` left out: {why}"));
    Ok((None, None))
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
