//! The clock since boot, which runs while the machine sleeps and which nobody sets, and what is shown of it. Everything that
//! is decided by time is decided by this one, or by [`std::time::Instant`] where the time is this process's own; the clock
//! on the wall is for people (kept by a test: it is read in this module, and in the few others that are named there).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};
use serde::{Serialize, Serializer};

/// Reads the clock since boot, and knows which boot it counts from: times of another one say nothing here.
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

/// A moment to be shown, kept by the clock since boot, in milliseconds: its age is right whatever becomes of the clock on the
/// wall, and that is read when it is shown. Serialises as seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(i64);

impl Moment {
    /// This moment.
    #[must_use]
    pub fn now() -> Self {
        Self::at(Clock::now())
    }

    /// So long after boot.
    #[must_use]
    pub fn at(since_boot: Duration) -> Self {
        Self(milliseconds(since_boot))
    }

    /// So long ago.
    #[must_use]
    pub fn ago(age: Duration) -> Self {
        Self(Self::now().0.saturating_sub(milliseconds(age)))
    }

    /// What somebody has written down by the clock on the wall, as that stands now: for what comes from another boot, or from
    /// elsewhere.
    #[must_use]
    pub fn of_wall(time: SystemTime) -> Self {
        let now = SystemTime::now();
        let Self(here) = Self::now();
        Self(match now.duration_since(time) {
            Ok(age) => here.saturating_sub(milliseconds(age)),
            Err(ahead) => here.saturating_add(milliseconds(ahead.duration())),
        })
    }

    /// How long ago it was; zero if it is still to come.
    #[must_use]
    pub fn age(self) -> Duration {
        let age = Self::now().0.saturating_sub(self.0);
        Duration::from_millis(age.try_into().unwrap_or(0))
    }

    /// By the clock on the wall, as that stands now.
    #[must_use]
    pub fn wall(self) -> SystemTime {
        let now = SystemTime::now();
        let age = Self::now().0.saturating_sub(self.0);
        let away = Duration::from_millis(age.unsigned_abs());
        let wall = match age {
            0.. => now.checked_sub(away),
            _ => now.checked_add(away),
        };
        wall.unwrap_or(UNIX_EPOCH)
    }

    /// The same in seconds since 1970, to the millisecond.
    #[must_use]
    pub fn seconds(self) -> f64 {
        let since = self.wall().duration_since(UNIX_EPOCH);
        (since.unwrap_or_default().as_secs_f64() * 1000.0).round() / 1000.0
    }
}

impl Serialize for Moment {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(self.seconds())
    }
}

fn milliseconds(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;

    /// Where the clock on the wall is read outside of tests, and what for. Nowhere anything is decided by it.
    const READ: &[(&str, &str)] = &[
        ("common/src/clock.rs", "showing"),
        ("common/src/zk/link.rs", "showing since when a session is"),
    ];

    #[test]
    fn a_moment_is_as_old_as_it_is_and_shown_by_the_wall() {
        let hour = Duration::from_secs(3600);
        let (now, wall) = (Moment::now(), SystemTime::now());
        let near = |a: Duration, b: Duration| a.abs_diff(b) < Duration::from_secs(5);
        for (moment, expected) in [
            (now, wall),
            (Moment::ago(hour), wall - hour),
            (Moment::of_wall(wall - hour), wall - hour),
            (Moment::of_wall(wall + hour), wall + hour),
            (Moment::at(Clock::now() + hour), wall + hour),
            (Moment::of_wall(UNIX_EPOCH), UNIX_EPOCH),
        ] {
            let shown = moment.wall().duration_since(UNIX_EPOCH).unwrap();
            let expected = expected.duration_since(UNIX_EPOCH).unwrap();
            assert!(near(shown, expected), "{moment:?}");
            assert!((moment.seconds() - expected.as_secs_f64()).abs() < 5.0);
        }
        assert!(near(Moment::ago(hour).age(), hour));
        assert_eq!(Moment::at(Clock::now() + hour).age(), Duration::ZERO);
        assert!(Moment::ago(hour) < now);
        let shown = serde_json::to_value(Moment::ago(hour)).unwrap();
        assert!((shown.as_f64().unwrap() + 3600.0 - now.seconds()).abs() < 5.0);
    }

    #[test]
    fn the_wall_clock_is_read_for_showing_only() {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let mut found = Vec::new();
        let mut folders: Vec<PathBuf> = ["common", "nerve", "synapse"]
            .map(|package| workspace.join(package).join("src"))
            .into();
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder).unwrap() {
                let path = entry.unwrap().path();
                let name = path.file_name().unwrap().to_str().unwrap().to_owned();
                if path.is_dir() {
                    if name != "testing" {
                        folders.push(path);
                    }
                } else if name.ends_with(".rs") && !["tests.rs", "simulation.rs"].contains(&&*name)
                {
                    let text = std::fs::read_to_string(&path).unwrap();
                    let program = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
                    let reads = ["SystemTime::now", "Utc::now", "CLOCK_REALTIME"];
                    if reads.iter().any(|read| program.contains(read)) {
                        let path = path.strip_prefix(workspace).unwrap();
                        found.push(path.to_str().unwrap().to_owned());
                    }
                }
            }
        }
        found.sort();
        let allowed: Vec<&str> = READ.iter().map(|(path, _)| *path).collect();
        assert_eq!(found, allowed);
    }
}
