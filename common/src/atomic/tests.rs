//! Real mounts, links and users: these tests run as root. Everything is in a folder of their own.

use std::os::unix::fs::symlink;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::unistd::{Gid, Uid, setfsgid, setfsuid};

use super::*;

const KEPT: Mode = Mode::Kept(0o640);

/// Somebody who may do nothing of his own accord.
const NOBODY: u32 = 65534;
/// How often a file is replaced while it is looked at.
const LAST: usize = 200;
/// A group nobody is in.
const STRANGERS: u32 = 4242;

/// A mounted file or folder; unmounted when dropped.
struct Mount(PathBuf);

impl Mount {
    fn new(arguments: &[&str], at: &Path) -> Self {
        let status = Command::new("mount")
            .args(arguments)
            .arg(at)
            .status()
            .expect("hint: install `mount`");
        assert!(status.success(), "hint: run the tests as root");
        Self(at.to_owned())
    }

    fn bind(from: &Path, at: &Path) -> Self {
        Self::new(&["--bind", from.to_str().unwrap()], at)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _unmounted = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Does it with the rights of [`NOBODY`] on files, in a thread of its own.
fn as_nobody<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            setfsgid(Gid::from_raw(NOBODY));
            setfsuid(Uid::from_raw(NOBODY));
            work()
        });
        thread.join().unwrap()
    })
}

fn file(path: &Path, content: &str, mode: u32, owner: u32, group: u32) {
    std::fs::File::create(path)
        .and_then(|mut file| file.write_all(content.as_bytes()))
        .unwrap();
    std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    std::os::unix::fs::chown(path, Some(owner), Some(group)).unwrap();
}

/// A folder that anybody may enter.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    folder
}

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

fn inode(path: &Path) -> u64 {
    path.metadata().unwrap().ino()
}

/// Mode, owner, group.
fn rights(path: &Path) -> (u32, u32, u32) {
    let metadata = path.metadata().unwrap();
    (metadata.mode() & 0o777, metadata.uid(), metadata.gid())
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn replaces_by_renaming_and_leaves_nothing_beside() {
    let folder = folder();
    let path = folder.path().join("x");
    replace(&path, ["o", "ne"], Mode::Private(0o600), Durability::Synced).unwrap();
    let first = inode(&path);
    let _open = File::open(&path).unwrap();
    replace(&path, ["two"], KEPT, Durability::Rename).unwrap();
    sync(&path).unwrap();
    assert!(sync(&folder.path().join("missing")).is_err());
    assert_eq!(text(&path), "two");
    assert_ne!(inode(&path), first);
    assert_eq!(names(folder.path()), ["x"]);
}

#[test]
fn mode_owner_and_group_of_the_former_file_stay() {
    let folder = folder();
    let path = folder.path().join("x");
    replace(&path, ["new"], KEPT, Durability::Rename).unwrap();
    assert_eq!(rights(&path).0, 0o640, "there was none");
    for (mode, owner, group) in [(0o644, 0, STRANGERS), (0o664, NOBODY, 0), (0o600, 7, 8)] {
        file(&path, "old", mode, owner, group);
        replace(&path, ["new"], KEPT, Durability::Rename).unwrap();
        assert_eq!(
            (text(&path).as_str(), rights(&path)),
            ("new", (mode, owner, group))
        );
        replace(&path, ["newer"], Mode::Private(0o600), Durability::Rename).unwrap();
        assert_eq!(rights(&path), (0o600, owner, group), "private is private");
    }
    assert_eq!(names(folder.path()), ["x"]);
}

#[test]
fn a_link_is_followed_also_to_another_file_system_and_to_nothing() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    for name in ["far", "near"] {
        std::fs::create_dir(at(name)).unwrap();
    }
    let _tmpfs = Mount::new(&["-t", "tmpfs", "-o", "size=1m", "none"], &at("far"));
    file(&at("far/file"), "old", 0o644, 0, STRANGERS);
    symlink(at("far/file"), at("near/second")).unwrap();
    symlink("near/second", at("first")).unwrap();
    symlink("far/not there yet", at("dangling")).unwrap();
    for (link, target) in [("first", "far/file"), ("dangling", "far/not there yet")] {
        for content in ["one", "two"] {
            replace(&at(link), [content], KEPT, Durability::Synced).unwrap();
            sync(&at(link)).unwrap();
            assert!(at(link).symlink_metadata().unwrap().is_symlink(), "{link}");
            assert_eq!(text(&at(target)), content);
        }
    }
    assert_eq!(rights(&at("far/file")), (0o644, 0, STRANGERS));
    // What a killed process left lies beside the target.
    file(&at("far/.file.tmp-Ab1"), "", 0o600, 0, 0);
    sweep(&at("first"));
    assert_eq!(names(&at("far")), ["file", "not there yet"]);

    symlink("circle", at("circle")).unwrap();
    let error = replace(&at("circle"), ["x"], KEPT, Durability::Rename).unwrap_err();
    assert!(error.to_string().contains("circle"), "{error}");
}

#[test]
fn a_bind_mounted_file_and_one_with_hard_links_are_written_in_place() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    file(&at("source"), "old old old", 0o644, 0, STRANGERS);
    file(&at("mounted"), "", 0o600, 0, 0);
    let mount = Mount::bind(&at("source"), &at("mounted"));
    file(&at("one"), "old old old", 0o640, NOBODY, STRANGERS);
    std::fs::hard_link(at("one"), at("two")).unwrap();
    for (path, other) in [("mounted", "source"), ("one", "two")] {
        let before = (inode(&at(path)), rights(&at(path)));
        // Longer, shorter, empty, as it is, from empty.
        for content in ["new new new new", "short", "", "", "again"] {
            replace(&at(path), [content], KEPT, Durability::Rename).unwrap();
            assert_eq!(
                (text(&at(path)), text(&at(other))),
                (content.into(), content.into())
            );
        }
        assert_eq!((inode(&at(path)), rights(&at(path))), before, "{path}");
    }
    assert_eq!(names(folder.path()), ["mounted", "one", "source", "two"]);
    drop(mount);
}

#[test]
fn a_file_of_ours_in_the_folder_of_another_is_written_in_place() {
    let folder = folder();
    let path = folder.path().join("x");
    // Ours; our group may write it; everybody may.
    for (mode, owner, group) in [
        (0o640, NOBODY, STRANGERS),
        (0o664, 0, NOBODY),
        (0o666, 0, 0),
    ] {
        file(&path, "old", mode, owner, group);
        as_nobody(|| replace(&path, ["new"], KEPT, Durability::Rename)).unwrap();
        assert_eq!(
            (text(&path).as_str(), rights(&path)),
            ("new", (mode, owner, group))
        );
    }
    file(&path, "old", 0o644, 0, 0);
    let error = as_nobody(|| replace(&path, ["new"], KEPT, Durability::Rename)).unwrap_err();
    assert!(matches!(error, ReplaceError::Neither { .. }), "{error}");
    let missing = folder.path().join("missing");
    let error = as_nobody(|| replace(&missing, ["new"], KEPT, Durability::Rename)).unwrap_err();
    assert!(error.to_string().contains("missing"), "{error}");
    assert_eq!(text(&path), "old");
    assert_eq!(names(folder.path()), ["x"]);
}

#[test]
fn an_owner_that_cannot_be_given_is_kept_where_the_file_can_be_written() {
    let folder = folder();
    std::os::unix::fs::chown(folder.path(), Some(NOBODY), Some(NOBODY)).unwrap();
    let path = folder.path().join("x");
    file(&path, "old", 0o664, 0, NOBODY);
    let before = inode(&path);
    as_nobody(|| replace(&path, ["new"], KEPT, Durability::Rename)).unwrap();
    assert_eq!((text(&path).as_str(), inode(&path)), ("new", before));
    // It can only be renamed over.
    file(&path, "old", 0o644, 0, 0);
    as_nobody(|| replace(&path, ["newer"], KEPT, Durability::Rename)).unwrap();
    assert_eq!(
        (text(&path).as_str(), rights(&path)),
        ("newer", (0o644, NOBODY, NOBODY))
    );
    assert_eq!(names(folder.path()), ["x"]);
}

#[test]
fn a_full_disk_leaves_the_old_content_by_either_way() {
    let folder = folder();
    let disk = folder.path().join("disk");
    std::fs::create_dir(&disk).unwrap();
    let _tmpfs = Mount::new(&["-t", "tmpfs", "-o", "size=64k", "none"], &disk);
    let (alone, linked) = (disk.join("alone"), disk.join("linked"));
    file(&alone, "old", 0o644, 0, 0);
    file(&linked, "old", 0o644, 0, 0);
    std::fs::hard_link(&linked, disk.join("other name")).unwrap();
    let big = "x".repeat(100_000);
    for path in [&alone, &linked] {
        replace(path, [&big], KEPT, Durability::Rename).unwrap_err();
        assert_eq!(text(path), "old");
    }
    assert_eq!(names(&disk), ["alone", "linked", "other name"]);
}

#[test]
fn what_is_no_file_stays() {
    let folder = folder();
    let path = folder.path().join("x");
    std::fs::create_dir(&path).unwrap();
    let pipe = folder.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    for path in [&path, &pipe, Path::new("/dev/null")] {
        assert!(read(path).is_err(), "nor is it read");
        let error = replace(path, ["new"], KEPT, Durability::Rename).unwrap_err();
        assert!(matches!(error, ReplaceError::Irregular { .. }), "{error}");
    }
    let error = replace(
        &folder.path().join("no/such"),
        [""],
        KEPT,
        Durability::Rename,
    )
    .unwrap_err();
    assert!(error.to_string().contains("no/such"), "{error}");
}

/// What a program that is killed there would leave: another thread looks at the file all the time.
#[test]
fn at_every_moment_of_writing_in_place_the_file_is_old_new_or_marked() {
    let folder = folder();
    let path = folder.path().join("x");
    let (old, new) = ("a".repeat(300_000), "b".repeat(500_000));
    file(&path, &old, 0o644, 0, 0);
    std::fs::hard_link(&path, folder.path().join("y")).unwrap();
    let turn = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut seen = [0; 3];
            loop {
                let before = turn.load(Ordering::SeqCst);
                let file = File::open(&path).unwrap();
                let (mut first, mut again) = ([0], [0]);
                file.read_exact_at(&mut first, 0).unwrap();
                let length = file.metadata().unwrap().len();
                file.read_exact_at(&mut again, 0).unwrap();
                if before == LAST {
                    return seen;
                }
                if first != again || before != turn.load(Ordering::SeqCst) {
                    continue;
                }
                match (first[0], length) {
                    (MARK, _) => seen[0] += 1,
                    (b'a', 300_000) => seen[1] += 1,
                    (b'b', 500_000) => seen[2] += 1,
                    other => panic!("{other:?}"),
                }
            }
        });
        for content in [&new, &old].iter().cycle().take(LAST) {
            replace(&path, [content], KEPT, Durability::Rename).unwrap();
            turn.fetch_add(1, Ordering::SeqCst);
        }
        let seen = watcher.join().unwrap();
        assert!(seen.iter().all(|count| *count > 0), "{seen:?}");
    });
}

#[test]
fn a_file_that_was_cut_off_in_place_reads_as_missing() {
    let folder = folder();
    let path = folder.path().join("x");
    assert_eq!(read(&path).unwrap(), None);
    file(&path, "!lobal\n\tmaxconn 1", 0o644, 0, 0);
    assert_eq!(read(&path).unwrap(), None);
    file(&path, "global\n", 0o600, 0, 0);
    assert_eq!(read(&path).unwrap().unwrap(), b"global\n");
    assert!(
        as_nobody(|| read(&path)).is_err(),
        "not readable is not missing"
    );
}

#[test]
fn who_may_write_a_file_may_touch_it() {
    let folder = folder();
    let path = folder.path().join("x");
    file(&path, "content", 0o666, 0, 0);
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(1000);
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_modified(old)
        .unwrap();
    as_nobody(|| touch(&path)).unwrap();
    let age = path.metadata().unwrap().modified().unwrap().elapsed();
    assert!(age.unwrap().as_secs() < 500);
    assert_eq!(text(&path), "content");
    assert!(as_nobody(|| touch(&folder.path().join("new"))).is_err());
}

#[test]
fn only_what_an_earlier_replacement_left_is_swept_away() {
    let folder = folder();
    let path = folder.path().join("x");
    let others = ["x", "y", ".x", ".xx.tmp-1", ".y.tmp-1", "x.tmp-1"];
    for name in others.iter().chain(&[".x.tmp-", ".x.tmp-Ab1"]) {
        file(&folder.path().join(name), "", 0o600, 0, 0);
    }
    sweep(&path);
    for name in others {
        assert!(folder.path().join(name).exists(), "{name}");
    }
    assert_eq!(names(folder.path()).len(), others.len());
    sweep(&folder.path().join("no/such"));
}
