//! The end of a process, told by the kernel (pidfd_open(2), Linux 5.3): nobody has to look for it. The pid is believed;
//! should it be another process's by now, its end is told in vain.

use std::os::fd::OwnedFd;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Knows when a process ends.
#[derive(Debug)]
pub struct End(AsyncFd<OwnedFd>);

impl End {
    /// Of this process; `None` = there is none, or this kernel cannot tell.
    #[must_use]
    pub fn of(pid: u32) -> Option<Self> {
        let pid = Pid::from_raw(i32::try_from(pid).ok()?)?;
        let fd = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        #[expect(
            deprecated,
            reason = "the other one is unsafe for the sake of types that may lose their descriptor; an OwnedFd does not"
        )]
        AsyncFd::with_interest(fd, Interest::READABLE)
            .ok()
            .map(Self)
    }

    /// Kills it, and no other process that may have its pid by now.
    pub fn kill(&self) {
        // Err = it has ended.
        let _gone = pidfd_send_signal(self.0.get_ref(), Signal::KILL).is_err();
    }

    /// Returns when it has ended, reaped or not. Cancel-safe.
    pub async fn reached(&self) {
        // Err = the runtime is being shut down.
        drop(self.0.readable().await);
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::pin::pin;
    use std::task::Poll;

    use super::*;

    #[tokio::test]
    async fn it_is_told_when_the_process_ends_and_not_before() {
        let mut child = tokio::process::Command::new("sleep")
            .arg("1000")
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let end = End::of(child.id().unwrap()).unwrap();
        let mut reached = pin!(end.reached());
        poll_fn(|cx| {
            assert!(reached.as_mut().poll(cx).is_pending());
            Poll::Ready(())
        })
        .await;
        child.start_kill().unwrap();
        reached.await;
        let status = child.wait().await.unwrap();
        assert!(!status.success());
    }

    #[tokio::test]
    async fn there_is_none_without_a_process() {
        assert!(End::of(0).is_none());
        assert!(End::of(u32::MAX).is_none());
    }
}
