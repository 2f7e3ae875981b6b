//! haproxy.cfg in places where it cannot be replaced by renaming, and one file under several names. Real mounts and users:
//! runs as root.

mod units;

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use smartstack_common::testing::{Dir, Process, Program, eventually, free_port};

use crate::rig::{Rig, SOON, accepted, fixed, server, settings};
use crate::{synapse, told};

/// A user without any rights of his own.
const NOBODY: u32 = 65534;

/// A bind mount of a file; taken away when dropped.
pub(crate) struct Mount(PathBuf);

impl Mount {
    fn new(from: &Path, at: &Path) -> Self {
        let _file = std::fs::File::create(at).unwrap();
        let mounted = Command::new("mount")
            .arg("--bind")
            .args([from, at])
            .status();
        let mounted = mounted.expect("hint: install `mount`");
        assert!(mounted.success(), "hint: run the tests as root");
        Self(at.to_owned())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _gone = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Inode, mode, owner, group.
fn identity(path: &Path) -> (u64, u32, u32, u32) {
    let found = path.metadata().unwrap();
    (found.ino(), found.mode() & 0o7777, found.uid(), found.gid())
}

/// A second synapse with its own snapshot on this haproxy.cfg ends at once and names the first.
fn second(dir: &Dir, config: &Value, file: &Path, first: u32) {
    let mut config = config.clone();
    config["haproxy"]["config_file_path"] = json!(file);
    config["snapshot_path"] = json!(dir.join("second/snapshot.json"));
    config["admin"] = json!(false);
    let _file = dir.write("second.json", config.to_string());
    let (code, _, stderr) = told(dir, &synapse(dir, &["-c", "second.json"]));
    assert_eq!(code, 1, "{}: {stderr}", file.display());
    assert!(
        stderr.contains(&format!("(pid {first})")),
        "{}: {stderr}",
        file.display()
    );
}

#[tokio::test]
async fn a_bind_mounted_file_is_written_in_place_and_is_one_file_under_all_its_names() {
    let dir = Dir::new();
    let at = |name: &str| dir.join(name);
    let mut config = settings(&dir);
    config["services"]["one"] = fixed(free_port(), &[1, 2]);
    for folder in ["source", "haproxy"] {
        std::fs::create_dir(at(folder)).unwrap();
    }
    let source = dir.write("source/real.cfg", "");
    chown(&source, None, Some(4242)).unwrap();
    let mount = Mount::new(&source, &at("haproxy/haproxy.cfg"));
    symlink(at("haproxy/haproxy.cfg"), at("link.cfg")).unwrap();
    std::fs::hard_link(&source, at("source/second name.cfg")).unwrap();
    let before = identity(&source);

    let mut rig = Rig::start(dir, &config).await;
    rig.serves("one", &[server(1), server(2)]).await;
    let dir = Dir::new();
    let pid = rig.synapse.process().pid();
    let source = rig.dir.join("source/real.cfg");
    for name in [
        "haproxy/haproxy.cfg",
        "link.cfg",
        "source/real.cfg",
        "source/second name.cfg",
    ] {
        second(&dir, &config, &rig.dir.join(name), pid);
    }
    // Servers and structure, by commands and by reloads.
    config["services"]["one"]["default_servers"]
        .as_array_mut()
        .unwrap()
        .pop();
    rig.configure(&config);
    rig.serves("one", &[server(1)]).await;
    config["services"]["two"] = fixed(free_port(), &[3]);
    rig.configure(&config);
    rig.serves("two", &[server(3)]).await;
    rig.assert_sound("written in place");
    // What a crash in the middle would leave.
    let mut torn = rig.text().into_bytes();
    torn[0] = smartstack_common::atomic::MARK;
    assert!(accepted(&dir.write("torn.cfg", torn)).is_err());
    rig.restart_synapse().await;
    rig.kill_haproxy().await;
    rig.serves("two", &[server(3)]).await;
    assert_eq!(identity(&source), before);
    assert_eq!(std::fs::read_to_string(&source).unwrap(), rig.text());
    let log = rig.whole_log();
    assert_eq!(
        log.matches("written in place").count(),
        2,
        "once by each start: {log}"
    );
    rig.synapse.signal(Signal::SIGTERM);
    rig.synapse.wait(SOON).await;
    rig.haproxy.kill();
    drop(mount);
}

/// Airbnb's own cookbook: the folder is root's, the file is the user's.
#[tokio::test]
async fn a_file_of_ours_in_roots_folder_is_written_in_place() {
    let dir = Dir::new();
    let at = |name: &str| dir.join(name);
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    // The build folder may be closed to others.
    let program = at("synapse");
    std::fs::copy(Program::path("synapse"), &program).unwrap();
    let file = dir.write("etc/haproxy.cfg", "");
    chown(&file, Some(NOBODY), Some(4242)).unwrap();
    std::fs::create_dir(at("state")).unwrap();
    chown(at("state"), Some(NOBODY), None).unwrap();
    let mut config = settings(&dir);
    config["admin"] = json!(false);
    config["haproxy"]["supervise"] = json!(false);
    config["haproxy"]["do_socket"] = json!(false);
    config["haproxy"]["reload_command"] = json!("true");
    config["haproxy"]["config_file_path"] = json!(file);
    config["services"]["one"] = fixed(free_port(), &[1]);
    let write = |config: &Value| drop(dir.write("synapse.json", config.to_string()));
    write(&config);
    let before = identity(&file);
    let mut command = Command::new(&program);
    command.args(["-c", "synapse.json"]).current_dir(dir.path());
    command.uid(NOBODY).gid(NOBODY);
    let mut first = Process::spawn("synapse", &mut command, &at("synapse.log"), "is it built?");
    for (service, port) in [("one", 1), ("two", 2)] {
        if config["services"][service].is_null() {
            config["services"][service] = fixed(free_port(), &[port]);
            write(&config);
            first.signal(Signal::SIGHUP);
        }
        eventually(&format!("`{service}` is in the file"), SOON, async || {
            if let Some(status) = first.ended() {
                panic!("ended with {status}\n{}", first.log_tail());
            }
            let text = std::fs::read_to_string(&file).unwrap();
            match text.contains(&format!("backend {service}\n")) && text.ends_with('\n') {
                true => Ok(()),
                false => Err(format!("{text}\n{}", first.log_tail())),
            }
        })
        .await;
    }
    assert_eq!(identity(&file), before);
    second(&dir, &config, &file, first.pid());
    first.signal(Signal::SIGTERM);
    assert_eq!(first.wait(SOON).await.code(), Some(0));
    let names: Vec<_> = std::fs::read_dir(at("etc")).unwrap().collect();
    // The second one ran as root, and may write beside the file.
    assert!(names.len() <= 2, "{names:?}");
    let log = std::fs::read_to_string(at("synapse.log")).unwrap();
    assert_eq!(log.matches("written in place").count(), 1, "{log}");
}

/// A `reload_command` with `sudo` in it: what it leaves running is another user's.
#[tokio::test]
async fn a_command_that_cannot_be_killed_is_not_called_killed_nor_started_twice() {
    let dir = Dir::new();
    let at = |name: &str| dir.join(name);
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let program = at("synapse");
    std::fs::copy(Program::path("synapse"), &program).unwrap();
    // As `sudo` does: from here on it is root's altogether.
    let become_root = at("become-root");
    std::fs::copy("/usr/bin/setpriv", &become_root).expect("hint: install util-linux");
    std::fs::set_permissions(&become_root, std::fs::Permissions::from_mode(0o4755)).unwrap();
    for folder in ["state", "etc"] {
        std::fs::create_dir(at(folder)).unwrap();
        chown(at(folder), Some(NOBODY), None).unwrap();
    }
    let started = at("state/started");
    let mut config = settings(&dir);
    config["admin"] = json!(false);
    config["haproxy"]["supervise"] = json!(false);
    config["haproxy"]["do_socket"] = json!(false);
    config["haproxy"]["config_file_path"] = json!(at("etc/haproxy.cfg"));
    config["haproxy"]["reload_timeout"] = json!("3s");
    config["haproxy"]["reload_command"] = json!(format!(
        "echo $$ >> {}; exec {} --reuid=0 --regid=0 --clear-groups sleep 600",
        started.display(),
        become_root.display()
    ));
    config["services"]["one"] = fixed(free_port(), &[1]);
    let _file = dir.write("synapse.json", config.to_string());
    let mut command = Command::new(&program);
    command.args(["-c", "synapse.json"]).current_dir(dir.path());
    command.env("RUST_LOG", "info").uid(NOBODY).gid(NOBODY);
    let mut synapse = Process::spawn("synapse", &mut command, &at("synapse.log"), "is it built?");
    let log = || std::fs::read_to_string(at("synapse.log")).unwrap();
    let pids = || -> Vec<i32> {
        let text = std::fs::read_to_string(&started).unwrap_or_default();
        text.lines().map(|line| line.parse().unwrap()).collect()
    };
    eventually("a second one is refused", SOON, async || {
        match log().contains("is not started: the last one still runs") {
            true => Ok(()),
            false => Err(log()),
        }
    })
    .await;
    let first = pids();
    assert_eq!(first.len(), 1, "{}", log());
    let told = format!("could not be killed (pid {})", first[0]);
    assert!(
        log().contains(&told)
            && !log().contains("sleep 600` was still running after 3s and was killed"),
        "{}",
        log()
    );
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(first[0]), Signal::SIGKILL).unwrap();
    eventually(
        "the next one is started once it has ended",
        SOON,
        async || match pids().len() {
            0 | 1 => Err(log()),
            _ => Ok(()),
        },
    )
    .await;
    synapse.kill();
    for pid in pids() {
        // Ended already is as good.
        let _gone = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL);
    }
}

/// Every path that is made from a configured one is judged by `check`, with its key and line.
#[test]
fn paths_that_would_be_too_long_are_told_by_check() {
    let dir = Dir::new();
    let long = |name: &str, length: usize| {
        let start = dir.join(name).display().to_string();
        format!("{start}{}", "x".repeat(length - start.len()))
    };
    let name = |length: usize| dir.join(&"n".repeat(length)).display().to_string();
    let mut good = settings(&dir);
    good["services"]["one"] = fixed(free_port(), &[1]);
    type Edit<'a> = &'a dyn Fn(&mut Value, usize);
    // What is changed, the longest that passes, and what is said of one byte more.
    let cases: [(Edit<'_>, usize, [&str; 2]); 8] = [
        (
            &|c, n| c["haproxy"]["config_file_path"] = json!(long("c", n)),
            97 - ".master.sock".len(),
            [
                "haproxy.config_file_path",
                "haproxy's master socket would be",
            ],
        ),
        (
            &|c, n| {
                c["haproxy"]["supervise"] = json!(false);
                c["haproxy"]["reload_command"] = json!("true");
                c["haproxy"]["config_file_path"] = json!(name(n));
            },
            255 - 12 - ".tmp".len(),
            ["haproxy.config_file_path", "what haproxy checks would be"],
        ),
        (
            &|c, n| c["haproxy"]["candidate_config_file_path"] = json!(name(n)),
            255 - 12,
            [
                "haproxy.candidate_config_file_path",
                "what haproxy checks would be",
            ],
        ),
        (
            &|c, n| {
                c["haproxy"]["global"] = json!([]);
                c["haproxy"]["socket_file_path"] = json!(long("s", n));
            },
            97,
            ["haproxy.socket_file_path", "the stats socket would be"],
        ),
        (
            &|c, n| {
                c["haproxy"]["supervise"] = json!(false);
                c["haproxy"]["master_socket"] = json!(long("m", n));
            },
            107,
            ["haproxy.master_socket", "107"],
        ),
        (
            &|c, n| c["snapshot_path"] = json!(name(n)),
            255 - 12,
            ["snapshot_path", "the snapshot would be"],
        ),
        (
            &|c, n| c["admin"]["socket"] = json!(long("a", n)),
            107,
            ["admin.socket", "the control socket would be"],
        ),
        (
            &|c, n| c["admin"]["bind"] = json!(format!("unix:{}", long("a", n))),
            107,
            ["admin.bind", "the admin socket would be"],
        ),
    ];
    for (edit, most, words) in cases {
        for (length, good_or_not) in [(most, 0), (most + 1, 78)] {
            let mut config = good.clone();
            edit(&mut config, length);
            let (code, _, stderr) = crate::check(&dir, &config);
            assert_eq!(code, good_or_not, "{words:?} {length}: {stderr}");
            if code != 0 {
                assert!(
                    words.iter().all(|word| stderr.contains(word)),
                    "{words:?}: {stderr}"
                );
                assert!(stderr.contains("synapse.json:1:"), "its line: {stderr}");
            }
        }
    }
}
