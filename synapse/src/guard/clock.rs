//! The clock of holds: since boot, running while the machine sleeps, never set by anybody; and which boot it counts from.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// Reads the clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clock {
    boot: String,
}

impl Clock {
    /// Of this boot.
    #[must_use]
    pub fn new() -> Self {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Self {
            boot: boot.trim().to_owned(),
        }
    }

    /// The boot's id.
    #[must_use]
    pub fn boot(&self) -> &str {
        &self.boot
    }

    /// Time since boot.
    #[must_use]
    pub fn now() -> Duration {
        clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from)
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}
