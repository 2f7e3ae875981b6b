//! Rise and fall: turns the results of one check into its health. Pure; called by the service machine only.
//!
//! The rule is Ruby's (`lib/nerve/service_watcher/base.rb`, `check?`): a ring of the last `max(rise, fall)` results,
//! filled with the first one; the last `fall` all failed → down, the last `rise` all passed → up, else unchanged.
//! A run length says the same without the ring: the first result decides, later ones when their run is long enough.

/// Whether something is fit to serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Health {
    /// Fit.
    Up,
    /// Not fit.
    Down,
}

/// The memory of one check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hysteresis {
    rise: u32,
    fall: u32,
    health: Option<Health>,
    /// Whether `health` was reached by `rise` or `fall` results; otherwise the first one alone decided.
    proven: bool,
    last: bool,
    /// How many results in a row were `last`.
    run: u32,
}

impl Hysteresis {
    /// Without any result. Both numbers count as at least 1.
    #[must_use]
    pub(crate) fn new(rise: u32, fall: u32) -> Self {
        Self {
            rise: rise.max(1),
            fall: fall.max(1),
            health: None,
            proven: false,
            last: false,
            run: 0,
        }
    }

    /// Takes the next result and tells the health after it.
    pub(crate) fn record(&mut self, passed: bool) -> Health {
        self.run = if passed == self.last {
            self.run.saturating_add(1)
        } else {
            1
        };
        self.last = passed;
        let (needed, health) = if passed {
            (self.rise, Health::Up)
        } else {
            (self.fall, Health::Down)
        };
        if self.run >= needed {
            self.health = Some(health);
            self.proven = true;
        }
        *self.health.get_or_insert(health)
    }

    /// The health so far, `None` before the first result.
    #[must_use]
    pub(crate) fn health(&self) -> Option<Health> {
        self.health
    }

    /// Whether the last result was a failure.
    #[must_use]
    pub(crate) fn is_failing(&self) -> bool {
        self.health.is_some() && !self.last
    }

    /// Down by the first result only: had the check begun up, it would be up still. A registration that is already
    /// there (of a former process) is kept in this state.
    #[must_use]
    pub(crate) fn is_unproven_down(&self) -> bool {
        self.health == Some(Health::Down) && !self.proven
    }
}

#[cfg(test)]
mod tests;
