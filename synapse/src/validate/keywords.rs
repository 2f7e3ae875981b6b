//! Which of haproxy's server keywords the registry may use, and with which values. How many arguments a keyword takes is
//! told by [`crate::effective::keyword`].

/// Keywords accepted from the registry (`haproxy_server_options` of a znode) besides those the configuration adds.
pub const ALLOWED: [&str; 15] = [
    "weight",
    "backup",
    "maxconn",
    "minconn",
    "maxqueue",
    "check",
    "inter",
    "fastinter",
    "downinter",
    "rise",
    "fall",
    "slowstart",
    "disabled",
    "send-proxy",
    "send-proxy-v2",
];

/// Whether `value` is one haproxy accepts for `keyword`. Keywords without a rule of their own accept any word.
///
/// # Errors
/// What is allowed, in words.
pub fn check_value(keyword: &str, value: &str) -> Result<(), &'static str> {
    let number = || {
        value
            .bytes()
            .all(|b| b.is_ascii_digit())
            .then(|| value.parse::<u32>().ok())
            .flatten()
    };
    let between = |low: u32, high: u32| number().is_some_and(|n| (low..=high).contains(&n));
    // haproxy keeps most numbers in an `int`.
    const INT: u32 = i32::MAX as u32;
    let (fits, allowed) = match keyword {
        "weight" => (between(0, 256), "an integer of 0..256"),
        "maxconn" | "minconn" | "maxqueue" => (between(0, INT), "an integer of 0..2147483647"),
        "rise" | "fall" => (between(1, 1_000_000), "an integer of 1..1000000"),
        "id" => (between(1, INT), "an integer of 1..2147483647"),
        "inter" | "fastinter" | "downinter" => (
            milliseconds(value).is_some_and(|ms| ms > 0),
            "a time of 1ms..24d",
        ),
        "slowstart" => (milliseconds(value).is_some(), "a time of 0..24d"),
        _ => (true, ""),
    };
    if fits { Ok(()) } else { Err(allowed) }
}

/// haproxy's time format (manual, 2.5): digits and `us ms s m h d`, milliseconds without a unit, at most 2^31-1 ms.
fn milliseconds(text: &str) -> Option<u64> {
    let split = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: u64 = number.parse().ok()?;
    let ms = match unit {
        "us" => Some(number / 1000),
        "" | "ms" => Some(number),
        "s" => number.checked_mul(1000),
        "m" => number.checked_mul(60_000),
        "h" => number.checked_mul(3_600_000),
        "d" => number.checked_mul(86_400_000),
        _ => None,
    };
    ms.filter(|ms| *ms <= i32::MAX as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::effective::keyword::arity;

    #[test]
    fn the_arity_of_what_is_allowed_is_known() {
        assert!(ALLOWED.iter().all(|keyword| arity(keyword).is_some()));
    }

    #[test]
    fn values() {
        for (keyword, value) in [
            ("weight", "0"),
            ("weight", "256"),
            ("maxconn", "0"),
            ("inter", "2s"),
            ("inter", "100"),
            ("inter", "24d"),
            ("slowstart", "0"),
            ("rise", "3"),
            ("port", "anything"),
        ] {
            assert_eq!(check_value(keyword, value), Ok(()), "{keyword} {value}");
        }
        for (keyword, value) in [
            ("weight", "257"),
            ("weight", "-1"),
            ("weight", ""),
            ("weight", "1e2"),
            ("maxconn", "99999999999"),
            ("inter", "0"),
            ("inter", "25d"),
            ("inter", "2 s"),
            ("inter", "5s5"),
            ("inter", "100us"),
            ("fall", "0"),
            ("id", "3000000000"),
        ] {
            assert!(check_value(keyword, value).is_err(), "{keyword} {value}");
        }
    }
}
