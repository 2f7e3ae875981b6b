//! A disk that takes as long as one likes: whoever opens a file on it waits until it is let go (fanotify's permission
//! events; as root, and a kernel that has them).

use std::os::fd::BorrowedFd;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::fanotify::{
    EventFFlags, Fanotify, FanotifyEvent, FanotifyResponse, InitFlags, MarkFlags, MaskFlags,
    Response,
};
use smartstack_common::testing::eventually;

use crate::rig::SOON;

/// From now on every open on the file system of a folder waits. All go on when this is dropped.
pub(crate) struct Slow(Fanotify);

impl Slow {
    pub(crate) fn disk(folder: &Path) -> Self {
        let init = InitFlags::FAN_CLASS_CONTENT | InitFlags::FAN_NONBLOCK;
        let fanotify = Fanotify::init(init, EventFFlags::O_RDONLY);
        let fanotify = fanotify.expect("fanotify, as root");
        let mark = MarkFlags::FAN_MARK_ADD | MarkFlags::FAN_MARK_MOUNT;
        fanotify
            .mark(
                mark,
                MaskFlags::FAN_OPEN_PERM,
                nix::fcntl::AT_FDCWD,
                Some(folder),
            )
            .expect("a kernel with CONFIG_FANOTIFY_ACCESS_PERMISSIONS");
        Self(fanotify)
    }

    /// Waits until somebody opens a file there. He goes on when the result is given to [`Slow::let_go`].
    pub(crate) async fn somebody_waits(&self) -> FanotifyEvent {
        let events = eventually("somebody opens a file there", SOON, async || {
            match self.0.read_events() {
                Ok(events) if events.is_empty() => Err(Errno::EAGAIN),
                other => other,
            }
        });
        let mut events = events.await;
        assert_eq!(events.len(), 1, "one writer");
        events.remove(0)
    }

    pub(crate) fn let_go(&self, event: &FanotifyEvent) {
        let fd: BorrowedFd<'_> = event.fd().unwrap();
        let response = FanotifyResponse::new(fd, Response::FAN_ALLOW);
        self.0.write_response(response).unwrap();
    }
}
