//! The units of `examples/`: what a restart, a refused reload and a program that hangs need of them.

use std::process::Command;

use smartstack_common::testing::{Dir, Program};

/// `(section, key, value)` in the order of the file.
fn rows(text: &str) -> Vec<(String, String, String)> {
    let mut section = String::new();
    let mut rows = Vec::new();
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            section = name.to_owned();
        } else if let Some((key, value)) = line.split_once('=').filter(|_| !line.starts_with('#')) {
            rows.push((section.clone(), key.to_owned(), value.to_owned()));
        }
    }
    rows
}

#[test]
fn units_restart_for_ever_check_before_a_reload_and_watch_for_progress() {
    let units = [
        ("nerve", include_str!("../../../examples/nerve.service")),
        ("synapse", include_str!("../../../examples/synapse.service")),
    ];
    let dir = Dir::new();
    for (name, text) in units {
        let rows = rows(text);
        let of = |section: &str, key: &str| -> Vec<&str> {
            let found = rows.iter().filter(|(s, k, _)| s == section && k == key);
            found.map(|(_, _, value)| value.as_str()).collect()
        };
        let service = |key: &str| of("Service", key);
        assert_eq!(of("Unit", "StartLimitIntervalSec"), ["0"], "{name}");
        assert_eq!(service("Type"), ["notify"], "{name}");
        assert_eq!(service("Restart"), ["always"], "{name}");
        assert_eq!(service("RestartPreventExitStatus"), ["64 78"], "{name}");
        assert_eq!(service("WatchdogSec"), ["60"], "{name}");
        let start = service("ExecStart")[0];
        let check = format!("{start} check");
        assert_eq!(
            service("ExecReload"),
            [&check, "/bin/kill -HUP $MAINPID"],
            "{name}"
        );
        if name == "synapse" {
            // haproxy's sockets and pid are in the runtime folder, and haproxy goes on.
            assert_eq!(service("RuntimeDirectoryPreserve"), ["yes"]);
            assert_eq!(service("KillMode"), ["process"]);
        }
        // Where systemd is installed, it has a word, too.
        let here = Program::path(name).display().to_string();
        let unit = dir.write(
            &format!("{name}.service"),
            text.replace(&format!("/usr/bin/{name}"), &here),
        );
        if let Ok(said) = Command::new("systemd-analyze")
            .arg("verify")
            .arg(&unit)
            .output()
        {
            let words = String::from_utf8_lossy(&said.stderr);
            assert!(said.status.success() && words.is_empty(), "{name}: {words}");
        }
    }
}
