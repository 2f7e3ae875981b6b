//! Whether the stats socket can be believed: what it last said of itself, and since when it says nothing.
//!
//! Pure.

use std::time::Duration;

use smartstack_common::clock::Moment;

use tokio::time::Instant;

/// What is known of the stats socket.
#[derive(Debug, Default)]
pub(super) struct Socket {
    silence: Option<Silence>,
}

/// It gives no answer, or cannot be used.
#[derive(Debug)]
struct Silence {
    problem: String,
    /// Since when haproxy was asked in vain, time and again; `None` = it could not be asked the last time.
    asked: Option<Instant>,
    /// Since when there is no answer, as people are told; nothing is decided by it.
    at: Moment,
}

impl Socket {
    pub(super) fn problem(&self) -> Option<&String> {
        self.silence.as_ref().map(|silence| &silence.problem)
    }

    /// Since when it has not answered, to be told.
    pub(super) fn silent_since(&self) -> Option<Moment> {
        self.silence.as_ref().map(|silence| silence.at)
    }

    /// For how long haproxy has not answered although it was asked.
    pub(super) fn silent_for(&self, now: Instant) -> Option<Duration> {
        let since = self.silence.as_ref()?.asked?;
        Some(now.saturating_duration_since(since))
    }

    /// It has answered, or nobody is there who could. Returns whether it had not.
    pub(super) fn answered(&mut self) -> bool {
        self.silence.take().is_some()
    }

    /// It has not answered, or `could_ask` is false: it was not asked. Returns whether that is news.
    pub(super) fn failed(
        &mut self,
        problem: &str,
        could_ask: bool,
        (now, at): (Instant, Moment),
    ) -> bool {
        let news = self.problem().is_none_or(|known| known != problem);
        let (asked, at) = match &self.silence {
            Some(silence) => (silence.asked, silence.at),
            None => (None, at),
        };
        self.silence = Some(Silence {
            problem: problem.to_owned(),
            asked: could_ask.then(|| asked.unwrap_or(now)),
            at,
        });
        news
    }
}

#[cfg(test)]
mod tests {

    use super::*;

    #[test]
    fn it_is_silent_since_its_last_answer_whatever_it_then_lacks() {
        let mut socket = Socket::default();
        let start = Instant::now();
        let second = Duration::from_secs;
        let at = |seconds| (start + second(seconds), Moment::at(second(seconds)));
        assert!(
            socket.failed("no answer", true, at(1)) && !socket.failed("no answer", true, at(2))
        );
        assert!(socket.failed("closed", true, at(3)));
        assert_eq!(socket.silent_since(), Some(at(1).1));
        assert_eq!(socket.silent_for(at(5).0), Some(second(4)));
        assert!(socket.answered() && !socket.answered());
        assert_eq!(socket.silent_for(at(5).0), None);
        // The clock that people read is set back meanwhile.
        assert!(socket.failed("closed", true, (at(6).0, Moment::at(Duration::ZERO))));
        assert!(!socket.failed("closed", true, (at(7).0, at(100).1)));
        assert_eq!(socket.silent_since(), Some(Moment::at(Duration::ZERO)));
        assert_eq!(socket.silent_for(at(9).0), Some(second(3)));
    }

    /// Whoever is killed for its silence has been asked all the time.
    #[test]
    fn who_could_not_be_asked_is_not_silent() {
        let mut socket = Socket::default();
        let start = Instant::now();
        let second = Duration::from_secs;
        let at = |seconds| (start + second(seconds), Moment::at(second(seconds)));
        assert!(socket.failed("no descriptor", false, at(0)));
        assert_eq!(socket.silent_for(at(100).0), None);
        assert_eq!(socket.silent_since(), Some(at(0).1));
        assert!(socket.failed("no answer", true, at(100)));
        assert_eq!(socket.silent_for(at(104).0), Some(second(4)));
        assert!(socket.failed("no descriptor", false, at(105)));
        assert!(socket.failed("no answer", true, at(106)));
        assert_eq!(socket.silent_for(at(107).0), Some(second(1)));
        assert_eq!(socket.silent_since(), Some(at(0).1));
    }
}
