//! The keys of `guard`, of the whole and of a service.

use std::time::Duration;

use smartstack_common::config::Cursor;

/// The guard: a map, or its mode alone. What is not given is as in `base`.
pub(super) fn guard(
    cursor: &Cursor<'_>,
    base: crate::wanted::guard::Settings,
) -> crate::wanted::guard::Settings {
    use crate::wanted::guard::{Settings, Unannounced};
    if !cursor.has_value() {
        return base;
    }
    if !cursor.is_map() {
        let mode = guard_mode(cursor).unwrap_or(base.mode);
        return Settings { mode, ..base };
    }
    let read = cursor.object(|map| Settings {
        mode: match map.key("mode") {
            mode if mode.has_value() => guard_mode(&mode).unwrap_or(base.mode),
            _ => base.mode,
        },
        max_loss: map
            .key("max_loss")
            .number(0.0..=1.0)
            .unwrap_or(base.max_loss),
        min_loss: map
            .key("min_loss")
            .integer(0..=i128::from(i32::MAX))
            .unwrap_or(base.min_loss),
        window: map
            .key("window")
            .duration_at_least(Duration::from_millis(1))
            .unwrap_or(base.window),
        hold: map
            .key("hold")
            .duration_at_least(Duration::from_secs(1))
            .unwrap_or(base.hold),
        unannounced: match map.key("unannounced") {
            word if word.has_value() => word
                .one_of(&[
                    ("believe", Unannounced::Believe),
                    ("hold", Unannounced::Hold),
                ])
                .unwrap_or(base.unannounced),
            _ => base.unannounced,
        },
    });
    read.unwrap_or(base)
}

fn guard_mode(cursor: &Cursor<'_>) -> Option<crate::wanted::guard::Mode> {
    use crate::wanted::guard::Mode;
    match cursor.is_boolean() {
        Some(true) => Some(Mode::On),
        Some(false) => Some(Mode::Off),
        None => cursor.one_of(&[
            ("on", Mode::On),
            ("shadow", Mode::Shadow),
            ("off", Mode::Off),
        ]),
    }
}
