//! [`eventually`]: the only way in which a test waits.

use std::fmt::Display;
use std::panic::Location;
use std::time::Duration;

use tokio::time::Instant;

/// Runs `attempt` again and again until it gives `Ok`, and returns that.
///
/// The pauses grow from 2 to 50 ms. `attempt` itself is cut off at the deadline.
///
/// # Panics
/// When `deadline` passes first, with `what`, the last `Err` and the place of the call.
#[track_caller]
pub fn eventually<T, E: Display>(
    what: &str,
    deadline: Duration,
    mut attempt: impl AsyncFnMut() -> Result<T, E>,
) -> impl Future<Output = T> {
    let place = Location::caller();
    async move {
        let end = Instant::now() + deadline;
        let mut pause = Duration::from_millis(2);
        let mut last = "the first attempt did not end".to_owned();
        loop {
            match tokio::time::timeout_at(end, attempt()).await {
                Ok(Ok(value)) => return value,
                Ok(Err(reason)) => last = reason.to_string(),
                Err(_) => {}
            }
            if Instant::now() >= end {
                panic!("{place}: not within {deadline:?}: {what}; last: {last}");
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }
}
