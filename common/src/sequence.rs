//! The number that ZooKeeper puts at the end of a sequential node's name.

/// Reads the end of a sequential node's name, what stands after the last `_`: a signed 32-bit counter in C's `%010d`, so ten
/// digits, or a minus sign and nine or ten (`-000000001`, `-2147483648`). `None` when it has not exactly that form.
///
/// The result is in the order of creation: after 2147483647 the counter goes on at -2147483648.
#[must_use]
pub fn parse(text: &str) -> Option<u32> {
    let number: i32 = text.parse().ok()?;
    (format!("{number:010}") == text).then_some(number.cast_unsigned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_forms_of_the_counter_and_no_others() {
        let in_order = [
            "0000000000",
            "0000000007",
            "2147483647",
            "-2147483648",
            "-2147483647",
            "-000000010",
            "-000000001",
        ];
        let numbers: Vec<u32> = in_order.iter().filter_map(|text| parse(text)).collect();
        assert_eq!(numbers.len(), in_order.len());
        assert!(numbers.is_sorted(), "{numbers:?}");
        for text in [
            "",
            "-",
            "7",
            "000000007",
            "00000000007",
            "-0000000001",
            "-00000001",
            "-000000000",
            "+000000001",
            "2147483648",
            "4294967295",
            "-2147483649",
            "000000000x",
            " 000000001",
            "\u{0661}\u{0661}\u{0661}\u{0661}\u{0661}",
        ] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn every_number_is_read_back(number: i32) {
            prop_assert_eq!(parse(&format!("{number:010}")), Some(number.cast_unsigned()));
        }
    }
}
