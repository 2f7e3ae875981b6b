//! Whether the stats socket can be believed: what it last said of itself, and since when it says nothing.
//!
//! Pure.

use std::time::SystemTime;

/// What is known of the stats socket.
#[derive(Debug, Default)]
pub(super) struct Socket {
    /// Why it gives no answer, or cannot be used, and since when.
    problem: Option<(String, SystemTime)>,
}

impl Socket {
    pub(super) fn problem(&self) -> Option<&String> {
        self.problem.as_ref().map(|(words, _)| words)
    }

    /// Since when it has not answered.
    pub(super) fn silent_since(&self) -> Option<SystemTime> {
        self.problem.as_ref().map(|(_, since)| *since)
    }

    /// It has answered, or nobody is there who could. Returns whether it had not.
    pub(super) fn answered(&mut self) -> bool {
        self.problem.take().is_some()
    }

    /// It has not answered. Returns whether that is news.
    pub(super) fn failed(&mut self, problem: &str, now: SystemTime) -> bool {
        let news = self.problem().is_none_or(|known| known != problem);
        let since = self.silent_since().unwrap_or(now);
        self.problem = Some((problem.to_owned(), since));
        news
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn it_is_silent_since_its_last_answer_whatever_it_then_lacks() {
        let mut socket = Socket::default();
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        assert!(socket.failed("no answer", at(1)) && !socket.failed("no answer", at(2)));
        assert!(socket.failed("closed", at(3)));
        assert_eq!(socket.silent_since(), Some(at(1)));
        assert!(socket.answered() && !socket.answered());
        assert!(socket.failed("closed", at(4)));
        assert_eq!(socket.silent_since(), Some(at(4)));
    }
}
