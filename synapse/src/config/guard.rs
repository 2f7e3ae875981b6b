//! The settings of the guard, and the keys of `guard`, of the whole and of a service.

use std::time::Duration;

use smartstack_common::config::{Cursor, preset, preset_of};

use super::keys::KEYS;

const MODES: [(&str, Mode); 3] = [
    ("on", Mode::On),
    ("shadow", Mode::Shadow),
    ("off", Mode::Off),
];
const UNANNOUNCED: [(&str, Unannounced); 2] = [
    ("believe", Unannounced::Believe),
    ("hold", Unannounced::Hold),
];

/// How the guard behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// It holds.
    On,
    /// It counts and says what it would have held.
    Shadow,
    /// It does nothing.
    Off,
}

impl Mode {
    /// As in the configuration.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::On => "on",
            Self::Shadow => "shadow",
            Self::Off => "off",
        }
    }
}

/// What it means when an instance vanishes whose registrar does not announce what it withdraws.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unannounced {
    /// It was withdrawn, as Ruby's synapse takes it.
    Believe,
    /// A loss like any other.
    Hold,
}

/// The configuration's `guard`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// Whether it holds.
    pub mode: Mode,
    /// Share of the largest set that may be lost, 0..=1.
    pub max_loss: f64,
    /// So many may always be lost.
    pub min_loss: usize,
    /// Losses within this time count together.
    pub window: Duration,
    /// The longest hold.
    pub hold: Duration,
    /// Losses of instances whose registrar announces nothing.
    pub unannounced: Unannounced,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            mode: preset_of(KEYS, "guard.mode", &MODES),
            max_loss: preset(KEYS, "guard.max_loss"),
            min_loss: preset(KEYS, "guard.min_loss"),
            window: preset(KEYS, "guard.window"),
            hold: preset(KEYS, "guard.hold"),
            unannounced: preset_of(KEYS, "guard.unannounced", &UNANNOUNCED),
        }
    }
}

/// The guard: a map, or its mode alone. What is not given is as in `base`.
pub(super) fn guard(cursor: &Cursor<'_>, base: Settings) -> Settings {
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
            word if word.has_value() => word.one_of(&UNANNOUNCED).unwrap_or(base.unannounced),
            _ => base.unannounced,
        },
    });
    read.unwrap_or(base)
}

fn guard_mode(cursor: &Cursor<'_>) -> Option<Mode> {
    match cursor.is_boolean() {
        Some(true) => Some(Mode::On),
        Some(false) => Some(Mode::Off),
        None => cursor.one_of(&MODES),
    }
}
