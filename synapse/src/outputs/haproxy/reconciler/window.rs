//! When what has changed may be written and added: the first change at once, further ones together. Removals do not wait
//! for it.
//!
//! Pure. After a change has been taken a window is open, `min` long; what comes meanwhile goes when it closes, and each
//! window that was needed is followed by one twice as long, up to `max`. One that nobody needed ends the burst.

use std::time::Duration;

use tokio::time::Instant;

/// Leading edge, then growing windows.
#[derive(Debug, Clone)]
pub struct Window {
    min: Duration,
    max: Duration,
    width: Duration,
    closes: Option<Instant>,
    /// Since when a change is held.
    held: Option<Instant>,
}

impl Window {
    /// Windows of `min` to `max`.
    #[must_use]
    pub fn new(min: Duration, max: Duration) -> Self {
        Self {
            min,
            max: max.max(min),
            width: min,
            closes: None,
            held: None,
        }
    }

    /// When a change that is known at `now` may be taken; `now` itself when no window is open.
    #[must_use]
    pub fn due(&self, now: Instant) -> Instant {
        self.closes.map_or(now, |closes| closes.max(now))
    }

    /// A change that might be half of a larger one waits for one full window, however much comes meanwhile.
    pub fn hold(&mut self, now: Instant) {
        let since = *self.held.get_or_insert(now);
        self.closes = Some(self.due(now).max(since + self.min));
    }

    /// Everything that was known at `now` has been taken.
    pub fn taken(&mut self, now: Instant) {
        let burst = self.closes.is_some_and(|closes| now < closes + self.width);
        self.width = if burst {
            (self.width * 2).min(self.max)
        } else {
            self.min
        };
        self.closes = Some(now + self.width);
        self.held = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn alone_at_once_then_together_in_growing_windows_until_it_is_quiet() {
        let start = Instant::now();
        let at = |ms: u32| start + MS * ms;
        let mut window = Window::new(20 * MS, 250 * MS);
        assert_eq!(window.due(at(0)), at(0));
        window.taken(at(0));
        let mut closes = Vec::new();
        let mut now = at(5);
        for _ in 0..6 {
            now = window.due(now);
            closes.push(now.duration_since(start).as_millis());
            window.taken(now);
        }
        assert_eq!(closes, [20, 60, 140, 300, 550, 800]);
        // Nobody needed the last one.
        let quiet = now + 600 * MS;
        assert_eq!(window.due(quiet), quiet);
        window.taken(quiet);
        assert_eq!(window.due(quiet), quiet + 20 * MS);
    }

    #[test]
    fn changes_that_are_further_apart_than_the_window_never_wait() {
        let start = Instant::now();
        let mut window = Window::new(20 * MS, 250 * MS);
        for n in 0..50 {
            let now = start + 50 * MS * n;
            assert_eq!(window.due(now), now);
            window.taken(now);
        }
    }

    #[test]
    fn a_held_change_waits_one_window_and_no_more() {
        let start = Instant::now();
        let mut window = Window::new(20 * MS, 250 * MS);
        window.hold(start);
        window.hold(start);
        assert_eq!(window.due(start), start + 20 * MS);
        window.hold(start + 15 * MS);
        assert_eq!(window.due(start + 15 * MS), start + 20 * MS);
        assert_eq!(window.due(start + 30 * MS), start + 30 * MS);
        window.hold(start + 30 * MS);
        assert_eq!(window.due(start + 30 * MS), start + 30 * MS);
        window.taken(start + 30 * MS);
        window.hold(start + 60 * MS);
        assert_eq!(window.due(start + 60 * MS), start + 80 * MS);
    }
}
