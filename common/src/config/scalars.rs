//! What a scalar without quotes means to Ruby (Psych 4: YAML 1.1 with Ruby's own rules), whose files these are.
//!
//! Pure. Used where a value is published or compared with one that is: labels, ports, ids. Typed readers take what was
//! meant.

use serde_json::Value;

/// What the text means; `None` = itself.
pub(super) fn meaning(text: &str) -> Option<Value> {
    match text.to_ascii_lowercase().as_str() {
        "" | "~" | "null" => return Some(Value::Null),
        "yes" | "on" | "true" => return Some(true.into()),
        "no" | "off" | "false" => return Some(false.into()),
        _ => {}
    }
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    if digits.contains(':') {
        return sexagesimal(negative, digits);
    }
    if digits.contains('.') {
        return float(negative, digits);
    }
    integer(negative, digits)
}

/// `0b`, `0` (octal), decimal with `_` or `,` between digits, `0x`. Not `0o12`, `08`, `1e3`.
fn integer(negative: bool, digits: &str) -> Option<Value> {
    let (rest, radix) = match (digits.strip_prefix("0b"), digits.strip_prefix("0x")) {
        (Some(rest), _) => (rest, 2),
        (_, Some(rest)) => (rest, 16),
        _ if digits.len() > 1 && digits.starts_with('0') => (&digits[1..], 8),
        _ => (digits, 10),
    };
    let between = |c: char| c == '_' || (c == ',' && radix == 10);
    let clean = rest.replace(between, "");
    let fits = match radix {
        // One sign between two digits.
        10 => rest.split(between).all(|part| !part.is_empty()),
        _ => !clean.is_empty(),
    };
    if !fits || !clean.chars().all(|c| c.is_digit(radix)) {
        return None;
    }
    let number = i128::from_str_radix(&clean, radix).ok()?;
    number_of(if negative { -number } else { number })
}

/// `1.5`, `.5`, `1.`, `1_000.5`, `1.5e+3`: the exponent needs its sign, and without a point it is no number.
fn float(negative: bool, digits: &str) -> Option<Value> {
    let sign = if negative { -1.0 } else { 1.0 };
    let (whole, rest) = digits.split_once('.')?;
    let (fraction, exponent) = match rest.find(['e', 'E']) {
        Some(at) => (&rest[..at], &rest[at + 1..]),
        None => (rest, "+0"),
    };
    let numeric = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    let exponent_fits =
        exponent.starts_with(['+', '-']) && exponent.len() > 1 && numeric(&exponent[1..]);
    let whole_fits = whole.is_empty()
        || (whole.starts_with(|c: char| c.is_ascii_digit())
            && numeric(&whole.replace(['_', ','], "")));
    if !exponent_fits
        || !whole_fits
        || !numeric(fraction)
        || (whole.is_empty() && fraction.is_empty())
    {
        return None;
    }
    let number: f64 = format!("0{}.{fraction}0e{exponent}", whole.replace(['_', ','], ""))
        .parse()
        .ok()?;
    serde_json::Number::from_f64(sign * number).map(Value::Number)
}

/// `12:30` is 45000, `12:30:45` 45045: hours, minutes and seconds, as Ruby counts them.
fn sexagesimal(negative: bool, digits: &str) -> Option<Value> {
    let mut parts = digits.split(':');
    let hours = parts
        .next()
        .filter(|h| h.starts_with(|c: char| c.is_ascii_digit()))?
        .replace('_', "");
    let mut number: i128 = hours.parse::<i128>().ok()?.checked_mul(3600)?;
    let parts: Vec<&str> = parts.collect();
    let fits = |part: &&str| matches!(part.as_bytes(), [b'0'..=b'9'] | [b'0'..=b'5', b'0'..=b'9']);
    if !(1..=2).contains(&parts.len()) || !parts.iter().all(fits) {
        return None;
    }
    for (part, unit) in parts.iter().zip([60, 1]) {
        number += part.parse::<i128>().ok()? * unit;
    }
    number_of(if negative { -number } else { number })
}

/// As JSON; what has more than 64 bits stays text.
fn number_of(number: i128) -> Option<Value> {
    let small = i64::try_from(number).map(Value::from);
    small
        .or_else(|_| u64::try_from(number).map(Value::from))
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Measured on Psych of Ruby 3.1, but for what has a note.
    #[test]
    fn as_ruby_reads_them() {
        for (text, value) in [
            ("Yes", json!(true)),
            ("oFF", json!(false)),
            ("~", json!(null)),
            ("NULL", json!(null)),
            ("012", json!(10)),
            ("0755", json!(493)),
            ("007", json!(7)),
            ("0", json!(0)),
            ("-0", json!(0)),
            ("0x1F", json!(31)),
            ("0b101", json!(5)),
            ("+12", json!(12)),
            ("1_000", json!(1000)),
            ("1,000", json!(1000)),
            ("18446744073709551615", json!(u64::MAX)),
            ("12:30", json!(45000)),
            ("12:30:45", json!(45045)),
            ("3213:1", json!(11_566_860)),
            ("-1:00", json!(-3600)),
            (".5", json!(0.5)),
            ("1.", json!(1.0)),
            ("1.10", json!(1.1)),
            ("-1.5e+3", json!(-1500.0)),
            ("1_0.5", json!(10.5)),
        ] {
            assert_eq!(meaning(text), Some(value), "{text}");
        }
        for text in [
            "y",
            "N",
            "0o12",
            "08",
            "09.x",
            "1e3",
            "1E2",
            "1234567e8",
            "-1.5e3",
            "1.5e3",
            "2.5E",
            "1_",
            "_1",
            "1__0",
            "0x",
            "0xfg",
            "0b2",
            "12:60",
            "12:30:45:1",
            ":80",
            "::1",
            "fe80::1",
            "1.2.3",
            "10.0.0.1",
            ".",
            "-.",
            "+",
            "-",
            "-x",
            "1-2",
            "2020-01-01",
            "é",
            "1é",
            "12:é0",
            "340282366920938463463374607431768211456",
            // More than 64 bits: Ruby's number does not fit into ours.
            "18446744073709551616",
        ] {
            assert_eq!(meaning(text), None, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_has_a_meaning_or_none(text in "[-+0-9a-fox_,.:eE]{0,12}|.{0,8}") {
            if let Some(Value::Number(number)) = meaning(&text) {
                assert!(number.as_f64().is_some_and(f64::is_finite), "{text}");
            }
        }
    }
}
