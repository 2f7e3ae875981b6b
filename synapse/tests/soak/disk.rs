//! A disk that can be full: a small tmpfs, mounted for the test and unmounted with it.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

/// A small file system of its own.
pub(crate) struct Disk(PathBuf);

impl Disk {
    pub(crate) fn mount(path: PathBuf) -> Self {
        std::fs::create_dir_all(&path).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=4m", "tmpfs"])
            .arg(&path)
            .output()
            .expect("`mount` can be started");
        assert!(
            mounted.status.success(),
            "cannot mount a small tmpfs for the disk that is full: {}\nhint: run this test as root",
            String::from_utf8_lossy(&mounted.stderr)
        );
        Self(path)
    }

    /// Fills it up; it is full until the file is removed.
    pub(crate) fn fill(&self) -> PathBuf {
        let path = self.0.join("filler");
        let mut file = File::create(&path).unwrap();
        for size in [64 << 10, 1] {
            while file.write_all(&vec![0; size]).is_ok() {}
        }
        assert!(
            File::create(self.0.join("more"))
                .and_then(|mut file| file.write_all(&[0; 8192]))
                .is_err(),
            "the disk is full"
        );
        path
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Processes may still have files in it: it goes with the last of them.
        let _unmounted = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
