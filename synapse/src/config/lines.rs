//! Which section of haproxy.cfg a line of a service's `listen` list belongs to: Ruby synapse's lists (from haproxy 1.5),
//! kept because existing configurations were written against them; and words that haproxy 2.6 refuses.
//!
//! Pure. Called by `config::read`. Lines given as `frontend` or `backend` are not held to the lists.

/// Accepted in both sections (by prefix, as in Ruby).
const BOTH: &[&str] = &[
    "acl",
    "bind-process",
    "block",
    "compression",
    "description",
    "disabled",
    "email-alert from",
    "email-alert level",
    "email-alert mailers",
    "email-alert myhostname",
    "email-alert to",
    "enabled",
    "errorfile",
    "errorloc",
    "errorloc302",
    "errorloc303",
    "force-persist",
    "grace",
    "http-request",
    "http-response",
    "id",
    "ignore-persist",
    "log",
    "log-tag",
    "mode",
    "no log",
    "redirect",
    "reqadd",
    "reqallow",
    "reqdel",
    "reqdeny",
    "reqiallow",
    "reqidel",
    "reqideny",
    "reqipass",
    "reqirep",
    "reqisetbe",
    "reqitarpit",
    "reqpass",
    "reqrep",
    "reqsetbe",
    "reqtarpit",
    "rspadd",
    "rspdel",
    "rspdeny",
    "rspidel",
    "rspideny",
    "rspirep",
    "rsprep",
    "stats admin",
    "stats auth",
    "stats enable",
    "stats hide-version",
    "stats http-request",
    "stats realm",
    "stats refresh",
    "stats scope",
    "stats show-desc",
    "stats show-legends",
    "stats show-node",
    "stats uri",
    "tcp-request content",
    "tcp-request inspect-delay",
    "timeout http-keep-alive",
    "timeout http-request",
    "timeout tarpit",
];

/// `option` and `no option` words of both sections.
const BOTH_OPTIONS: &[&str] = &[
    "forceclose",
    "forwardfor",
    "http-buffer-request",
    "http-keep-alive",
    "http-no-delay",
    "http-pretend-keepalive",
    "http-server-close",
    "http-tunnel",
    "httpclose",
    "httplog",
    "http_proxy",
    "independent-streams",
    "nolinger",
    "originalto",
    "splice-auto",
    "splice-request",
    "splice-response",
    "tcpka",
    "tcplog",
];

const FRONTEND: &[&str] = &[
    "backlog",
    "bind",
    "capture cookie",
    "capture request header",
    "capture response header",
    "clitimeout",
    "declare capture",
    "default_backend",
    "log-format",
    "log-format-sd",
    "maxconn",
    "monitor fail",
    "monitor-net",
    "monitor-uri",
    "rate-limit sessions",
    "tcp-request connection",
    "timeout client",
    "timeout client-fin",
    "timeout clitimeout",
    "unique-id-format",
    "unique-id-header",
    "use_backend",
];

const FRONTEND_OPTIONS: &[&str] = &[
    "accept-invalid-http-request",
    "clitcpka",
    "contstats",
    "dontlog-normal",
    "dontlognull",
    "http-ignore-probes",
    "http-use-proxy-header",
    "log-separate-errors",
    "logasap",
    "socket-stats",
    "tcp-smart-accept",
];

const BACKEND: &[&str] = &[
    "appsession",
    "balance",
    "contimeout",
    "cookie",
    "default-server",
    "dispatch",
    "fullconn",
    "hash-type",
    "http-check disable-on-404",
    "http-check expect",
    "http-check send-state",
    "http-send-name-header",
    "http-reuse",
    "load-server-state-from-file",
    "max-keep-alive-queue",
    "external-check command",
    "external-check path",
    "persist rdp-cookie",
    "redisp",
    "redispatch",
    "retries",
    "server",
    "server-state-file-name",
    "source",
    "srvtimeout",
    "stick match",
    "stick on",
    "stick store-request",
    "stick store-response",
    "stick-table",
    "tcp-check connect",
    "tcp-check expect",
    "tcp-check send",
    "tcp-check send-binary",
    "tcp-response content",
    "tcp-response inspect-delay",
    "timeout check",
    "timeout connect",
    "timeout contimeout",
    "timeout queue",
    "timeout server",
    "timeout server-fin",
    "timeout srvtimeout",
    "timeout tunnel",
    "transparent",
    "use-server",
];

const BACKEND_OPTIONS: &[&str] = &[
    "abortonclose",
    "accept-invalid-http-response",
    "allbackups",
    "allredisp",
    "checkcache",
    "httpchk",
    "lb-agent-chk",
    "ldap-check",
    "external-check",
    "log-health-checks",
    "mysql-check",
    "pgsql-check",
    "persist",
    "prefer-last-server",
    "redispatch",
    "redis-check",
    "smtpchk",
    "srvtcpka",
    "ssl-hello-chk",
    "tcp-check",
    "tcp-smart-connect",
    "transparent",
];

/// Words that begin a line haproxy 2.6 refuses (each tried against 2.6.12), and what to write now.
const DEAD: &[(&str, &str)] = &[
    (
        "option forceclose",
        "`option httpclose`, or nothing: `option http-server-close` is what 2.x does without it",
    ),
    (
        "option http-tunnel",
        "nothing: keep-alive does what it was used for",
    ),
    ("option http_proxy", "`http-request set-dst`"),
    ("option allredisp", "`option redispatch`"),
    ("appsession", "`cookie` or `stick-table` with `stick on`"),
    ("block", "`http-request deny`"),
    ("clitimeout", "`timeout client`"),
    ("contimeout", "`timeout connect`"),
    ("srvtimeout", "`timeout server`"),
    ("timeout clitimeout", "`timeout client`"),
    ("timeout contimeout", "`timeout connect`"),
    ("timeout srvtimeout", "`timeout server`"),
    ("grace", "`hard-stop-after` in `global`"),
    (
        "monitor-net",
        "`http-request return status 200 if { src NET }`",
    ),
    ("redisp", "`option redispatch`"),
    ("redispatch", "`option redispatch`"),
    ("reqadd", "`http-request add-header`"),
    ("reqallow", "`http-request allow`"),
    ("reqdel", "`http-request del-header`"),
    ("reqdeny", "`http-request deny`"),
    ("reqiallow", "`http-request allow`"),
    ("reqidel", "`http-request del-header`"),
    ("reqideny", "`http-request deny`"),
    ("reqipass", "`http-request allow`"),
    ("reqirep", "`http-request replace-header`"),
    ("reqisetbe", "`use_backend`"),
    ("reqitarpit", "`http-request tarpit`"),
    ("reqpass", "`http-request allow`"),
    ("reqrep", "`http-request replace-header`"),
    ("reqsetbe", "`use_backend`"),
    ("reqtarpit", "`http-request tarpit`"),
    ("rspadd", "`http-response add-header`"),
    ("rspdel", "`http-response del-header`"),
    ("rspdeny", "`http-response deny`"),
    ("rspidel", "`http-response del-header`"),
    ("rspideny", "`http-response deny`"),
    ("rspirep", "`http-response replace-header`"),
    ("rsprep", "`http-response replace-header`"),
];

/// Words that begin a section: as a line of a service they would end its own.
const SECTIONS: &[&str] = &[
    "global",
    "defaults",
    "frontend",
    "backend",
    "listen",
    "userlist",
    "peers",
    "resolvers",
    "mailers",
    "program",
    "ring",
    "http-errors",
    "fcgi-app",
    "log-forward",
    "cache",
];

/// Where a `listen` line goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Places {
    /// Into the frontend.
    pub frontend: bool,
    /// Into the backend.
    pub backend: bool,
}

/// The sections whose list accepts the line: stripped, blanks squeezed, lower-cased, it begins with an entry.
#[must_use]
pub fn places(line: &str) -> Places {
    let line = normal(line);
    let option = line
        .strip_prefix("no ")
        .unwrap_or(&line)
        .strip_prefix("option ");
    let listed = |words: &[&str], options: &[&str]| match option {
        Some(option) => options.iter().any(|word| option.starts_with(word)),
        None => words.iter().any(|word| line.starts_with(word)),
    };
    let both = listed(BOTH, BOTH_OPTIONS);
    Places {
        frontend: both || listed(FRONTEND, FRONTEND_OPTIONS),
        backend: both || listed(BACKEND, BACKEND_OPTIONS),
    }
}

/// What to write instead of a line haproxy 2.6 refuses.
#[must_use]
pub fn replacement(line: &str) -> Option<&'static str> {
    let line = normal(line);
    let line = line.strip_prefix("no ").unwrap_or(&line);
    let begins = |word: &str| {
        line.strip_prefix(word)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
    };
    DEAD.iter()
        .find(|(word, _)| begins(word))
        .map(|(_, now)| *now)
}

/// The same line under the name it has by now, where nothing but the name has changed.
#[must_use]
pub fn renamed(line: &str) -> Option<String> {
    const RENAMED: [(&[&str], &str); 4] = [
        (&["contimeout"], "timeout connect"),
        (&["clitimeout"], "timeout client"),
        (&["srvtimeout"], "timeout server"),
        (&["option", "forceclose"], "option httpclose"),
    ];
    let words: Vec<&str> = line.split_whitespace().collect();
    RENAMED.iter().find_map(|(former, now)| {
        let rest = words.strip_prefix(*former)?;
        Some(
            std::iter::once(now)
                .chain(rest)
                .copied()
                .collect::<Vec<_>>()
                .join(" "),
        )
    })
}

/// A title that gives an address, as haproxy before 1.8 allowed (`listen stats :3212`): the title without it, and the
/// `bind` line in its place.
#[must_use]
pub fn title_and_bind(title: &str) -> Option<(String, String)> {
    let words: Vec<&str> = title.split_whitespace().collect();
    match words.as_slice() {
        [keyword @ ("listen" | "frontend"), name, address, rest @ ..] if *address != "from" => {
            let title: Vec<&str> = [keyword, name].into_iter().chain(rest).copied().collect();
            Some((title.join(" "), format!("bind {address}")))
        }
        _ => None,
    }
}

/// Whether the line would begin a section.
#[must_use]
pub fn begins_section(line: &str) -> bool {
    line.split_whitespace()
        .next()
        .is_some_and(|word| SECTIONS.contains(&word))
}

fn normal(line: &str) -> String {
    line.split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listen_lines_go_where_ruby_puts_them() {
        let cases = [
            ("mode http", true, true),
            ("  Mode   HTTP ", true, true),
            ("no option httplog", true, true),
            ("option httpchk GET /", false, true),
            ("option dontlognull", true, false),
            ("no option log-health-checks", false, true),
            ("timeout  client 31s", true, false),
            ("timeout server 31s", false, true),
            ("log-format %ci", true, true),
            ("server-template a 1 b:1", false, true),
            ("http-check send meth GET", false, false),
            ("filter trace", false, false),
            ("option idle-close-on-response", false, false),
            ("bogus directive", false, false),
            ("# note", false, false),
            ("", false, false),
        ];
        for (line, frontend, backend) in cases {
            assert_eq!(places(line), Places { frontend, backend }, "{line:?}");
        }
    }

    #[test]
    fn the_lists_hold_what_the_reference_counts() {
        // Ruby's lists spell each option twice, with and without `no`.
        assert_eq!(BOTH.len() + 2 * BOTH_OPTIONS.len(), 104);
        assert_eq!(FRONTEND.len() + 2 * FRONTEND_OPTIONS.len(), 44);
        assert_eq!(BACKEND.len() + 2 * BACKEND_OPTIONS.len(), 90);
    }

    #[test]
    fn lines_and_titles_of_older_haproxys_get_their_present_form() {
        let now = |line| renamed(line).unwrap_or_default();
        assert_eq!(now(" contimeout  5s"), "timeout connect 5s");
        assert_eq!(now("srvtimeout 1m"), "timeout server 1m");
        assert_eq!(now("option forceclose"), "option httpclose");
        assert_eq!(now("option forceclosed"), "");
        assert_eq!(now("timeout connect 5s"), "");
        let split = |title| title_and_bind(title).unwrap_or_default();
        let both = |title: &str, bind: &str| (title.to_owned(), bind.to_owned());
        assert_eq!(
            split("frontend  in *:80,:81 from x"),
            both("frontend in from x", "bind *:80,:81")
        );
        for as_it_is in [
            "listen stats",
            "listen a from b",
            "backend b :80",
            "peers p",
        ] {
            assert_eq!(title_and_bind(as_it_is), None, "{as_it_is}");
        }
    }

    #[test]
    fn dead_words_are_known_by_whole_words() {
        assert_eq!(
            replacement("option  forceclose").map(|text| &text[..18]),
            Some("`option httpclose`")
        );
        assert_eq!(replacement("redispatch"), Some("`option redispatch`"));
        assert_eq!(replacement("option redispatch"), None);
        assert_eq!(replacement("blocked"), None);
    }

    /// Against the haproxy of this machine: each of the words is refused there, with arguments that once were right.
    #[test]
    fn haproxy_refuses_the_dead_words() {
        use std::io::Write;
        let head = "defaults\n mode http\n timeout connect 1s\n timeout client 1s\n timeout server 1s\nlisten x\n bind 127.0.0.1:1\n";
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(head.as_bytes()).unwrap();
        for (word, _) in DEAD {
            let arguments = match *word {
                "monitor-net" => " 10.0.0.0/8",
                "block" => " if TRUE",
                word if word.starts_with("re") || word.starts_with("rsp") => " a b",
                word if word.starts_with("option") => "",
                _ => " 5s",
            };
            writeln!(file, " {word}{arguments}").unwrap();
        }
        let path = format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default());
        let output = std::process::Command::new("haproxy")
            .env("PATH", path)
            .arg("-c")
            .arg("-f")
            .arg(file.path())
            .output();
        let output =
            output.expect("haproxy is needed: `make deps`, or install the package `haproxy`");
        let said = String::from_utf8_lossy(&output.stderr);
        let first = head.lines().count() + 1;
        for (index, (word, _)) in DEAD.iter().enumerate() {
            let place = format!("{}:{}]", file.path().display(), first + index);
            assert!(
                said.lines()
                    .any(|line| line.contains("ALERT") && line.contains(&place)),
                "`{word}` passes:\n{said}"
            );
        }
    }
}
