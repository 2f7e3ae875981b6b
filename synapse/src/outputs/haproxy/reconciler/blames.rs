//! What haproxy's words of a refusal are about, as far as it may change without the refused service: files that they
//! name, and servers that are missing. When it changes, the service is tried again at once.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::SystemTime;

/// Names and files in a reason.
#[derive(Debug, Clone, Default)]
pub(super) struct Blames {
    missing: BTreeSet<String>,
    files: Vec<(PathBuf, Option<SystemTime>)>,
}

impl Blames {
    /// Reads haproxy's words; `is_there` tells servers that are in the file.
    pub(super) fn of(words: &str, is_there: impl Fn(&str) -> bool) -> Self {
        let apart = |c: char| c.is_whitespace() || "'\"[](),;`/".contains(c);
        let names = words
            .split(apart)
            .map(|word| word.trim_end_matches([':', '.']));
        let missing = names.filter(|word| word.contains(':') && !is_there(word));
        let apart = |c: char| c.is_whitespace() || "'\"[](),;`".contains(c);
        let paths = words.split(apart).filter(|word| word.starts_with('/'));
        let paths = paths.map(|path| PathBuf::from(path.trim_end_matches([':', '.'])));
        Self {
            missing: missing.map(str::to_owned).collect(),
            files: paths.map(|path| (path.clone(), changed(&path))).collect(),
        }
    }

    /// Whether this server is named and was not there.
    pub(super) fn waits_for(&self, server: &str) -> bool {
        self.missing.contains(server)
    }

    /// Whether a file is another one by now.
    pub(super) fn have_changed(&self) -> bool {
        self.files.iter().any(|(path, at)| changed(path) != *at)
    }
}

/// When the file was written; `None` = it is not there, or may not be looked at.
fn changed(path: &PathBuf) -> Option<SystemTime> {
    std::fs::metadata(path).ok()?.modified().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_missing_servers_are_found_in_haproxys_words() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("web.pem");
        let words = format!(
            "parsing [/tmp/x.cfg:3] : 'bind :1' : unable to stat SSL certificate from file '{}' : no such file. And \
             unable to find server 'i2_10.0.0.2:80' in proxy 'web', nor web/i3_10.0.0.3:80 or i1_10.0.0.1:80.",
            file.display()
        );
        let blames = Blames::of(&words, |name| name == "i1_10.0.0.1:80");
        for (name, waits) in [
            ("i2_10.0.0.2:80", true),
            ("i3_10.0.0.3:80", true),
            ("i1_10.0.0.1:80", false),
        ] {
            assert_eq!(blames.waits_for(name), waits, "{name}: {blames:?}");
        }
        assert!(!blames.have_changed());
        std::fs::create_dir(&file).unwrap();
        assert!(blames.have_changed());
        assert!(!Blames::of(&words, |_| false).have_changed());
    }
}
