//! From the files to [`Config`]: the top level and its cross checks. Notes problems, never stops at the first.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use smartstack_common::config::{
    Cursor, Environment, Loaded, Map, Program, Report, Source, Use, Winner, beside, fits,
    listeners, must_fit, path, preset, preset_of, session, unread,
};

use super::guard::guard;
use super::keys::KEYS;
use super::service::{ADMIT, Inherited, service};
use super::sockets::Sockets;
use super::text::{config_line, section_lines, word};
use super::{Config, Haproxy, LoadOptions, Part, Place, Reload, Service, TemplateText, Templates};
use crate::config::keyword;
use crate::config::lines;

/// One answer may take 2 s, and haproxy may be busy for as long again.
const LEAST_HUNG: Duration = Duration::from_secs(5);
const MILLISECOND: Duration = Duration::from_millis(1);

/// Section, keys and places of the program.
pub const PROGRAM: Program = Program {
    name: "synapse",
    keys: KEYS,
    winner: Winner::Yaml,
};

/// Reads and checks everything.
///
/// # Errors
/// All that is wrong, when anything is.
pub(super) fn load(options: &LoadOptions) -> Result<Loaded<Config>, Report> {
    let source = Source::open(&options.path, PROGRAM, &options.environment);
    let config = source
        .root()
        .and_then(|root| root.object(|top| read(top, &source)).flatten());
    source.finish(config)
}

fn read<'a>(top: &Map<'a>, source: &'a Source) -> Option<Config> {
    let environment = source.environment();
    let haproxy = top.key("haproxy").required();
    let haproxy = if haproxy.has_value() {
        haproxy
            .object(|map| read_haproxy(map, environment))
            .flatten()
    } else {
        None
    };
    let own = haproxy.as_ref();
    let inherited = Inherited {
        bind_address: own.map_or_else(
            || preset(KEYS, "haproxy.bind_address"),
            |haproxy| haproxy.bind_address.as_str(),
        ),
        localhost: environment.localhost(),
        shared: own.is_none_or(|haproxy| haproxy.shared_frontend.is_some()),
        guard: guard(&top.key("guard"), crate::config::guard::Settings::default()),
        admit: own.map_or_else(
            || preset_of(KEYS, "haproxy.admit", &ADMIT),
            |haproxy| haproxy.admit,
        ),
    };
    let mut services = Vec::new();
    let mut names = Names::default();
    let mut sockets = Sockets::default();
    if let Some(haproxy) = &haproxy {
        sockets.host(top, haproxy);
    }
    let mut weights = None;
    for (name, cursor) in source.services(top) {
        if !cursor.has_value() {
            cursor.error("required, but null");
            continue;
        }
        let errors = source.errors();
        let read = cursor
            .object(|map| service(map, &name, &inherited))
            .flatten();
        let Some(read) = read else {
            unread(source, &cursor, errors);
            continue;
        };
        if let Some(key) = read.use_nerve_weights {
            weights = Some(key);
        }
        names.add(&cursor, &read.service);
        if read.service.haproxy.is_some() {
            sockets.service(&cursor, &read.service);
        }
        services.push(read.service);
    }
    let session = top.key("zookeeper").object(session)?;
    let listeners = listeners(top, PROGRAM, environment);
    let snapshot_key = top.key("snapshot_path");
    let snapshot_path = path(&snapshot_key, environment)
        .unwrap_or_else(|| environment.state_file("synapse", "snapshot.json"));
    must_fit(
        &snapshot_key,
        &snapshot_path,
        "the snapshot",
        Use::ReplacedFile,
    );
    let standby = snapshot_path.with_file_name("standby.sock");
    let what = "the socket that keeps haproxy going where nothing listens";
    if let Err(problem) = fits(&standby, what, Use::HaproxySocket) {
        snapshot_key.warn_hint(problem, "choose a shorter path, if that may happen");
    }
    must_fit(
        &snapshot_key,
        &beside(&snapshot_path, ".lock"),
        "its lock",
        Use::File,
    );
    let audit_interval = top.key("audit_interval");
    let audit_interval =
        audit_interval.or_preset(|key| key.duration_at_least(Duration::from_secs(1)));
    let coalesce = top.key("coalesce").object(|map| {
        let time = |name| map.key(name).or_preset(Cursor::duration);
        let min = time("min");
        (min, time("max").max(min))
    })?;
    let startup_wait = top.key("startup_wait").or_preset(Cursor::duration);
    let max_stale = max_stale(&top.key("max_stale"));
    let listeners = listeners?;
    sockets.own(top, &listeners);
    sockets.judge();
    let mut haproxy = haproxy?;
    let switch = top.key("haproxy").object(|map| {
        map.ignore_rest();
        map.key("use_nerve_weights").has_value()
    })?;
    if let Some(key) = weights.filter(|_| !switch) {
        key.warn_hint(
            "turns weights on for every service",
            "the one switch is `haproxy.use_nerve_weights` of the top level",
        );
        haproxy.use_nerve_weights = true;
    }
    let config = Config {
        services,
        haproxy,
        session_timeout: session.timeout,
        jitter: session.jitter,
        listeners,
        snapshot_path,
        audit_interval,
        startup_wait,
        max_stale,
        coalesce,
    };
    Some(config)
}

/// A duration, or `never`.
fn max_stale(cursor: &Cursor<'_>) -> Option<Duration> {
    match cursor.value_text().as_deref() {
        Some("never") => None,
        _ => cursor.duration_at_least(Duration::from_secs(1)),
    }
}

/// What must be unique among the services.
#[derive(Default)]
struct Names {
    backends: HashMap<String, String>,
}

impl Names {
    fn add(&mut self, cursor: &Cursor<'_>, service: &Service) {
        let Some(haproxy) = &service.haproxy else {
            return;
        };
        if let Some(other) = self
            .backends
            .insert(haproxy.backend_name.clone(), service.name.clone())
        {
            let message = format!(
                "its backend `{}` has the name of that of `{other}`",
                haproxy.backend_name
            );
            cursor.error_hint(
                message,
                "haproxy refuses two backends of one name: set `haproxy.backend_name`",
            );
        }
    }
}

fn read_haproxy(map: &Map<'_>, environment: &Environment) -> Option<Haproxy> {
    let mut places = BTreeMap::new();
    let mut lines_of = |cursor: &Cursor<'_>, part: fn(usize) -> Part| {
        let lines = section_lines(cursor).into_iter().enumerate();
        lines
            .map(|(index, (at, line))| {
                places.insert(part(index), place_of(&at));
                line
            })
            .collect::<Vec<String>>()
    };
    let global = lines_of(&map.key("global").required(), Part::Global);
    let defaults = lines_of(&map.key("defaults").required(), Part::Defaults);
    let shared_frontend = map.key("shared_frontend");
    let shared_frontend = shared_frontend
        .has_value()
        .then(|| lines_of(&shared_frontend, Part::Shared));
    let extra_sections = extra_sections(&map.key("extra_sections"), &mut places);
    let switch = |name| map.key(name).or_preset(Cursor::boolean);
    let (do_writes, do_reloads, do_socket) = (
        switch("do_writes"),
        switch("do_reloads"),
        switch("do_socket"),
    );
    if !do_writes && !do_reloads && !do_socket {
        map.key("do_writes").warn_hint(
            "with `do_reloads` and `do_socket` false as well synapse changes nothing: haproxy stays as it is",
            "set at least one of them to true",
        );
    }
    let do_checks = switch("do_checks");
    let check_command = map.key("check_command").text().filter(|_| do_checks);
    partner(map, "check_command", do_checks.then_some("do_checks"));
    let reload = reload(map, do_reloads, environment);
    if map.key("replace_hung_after").has_value() && reload != Reload::Supervise {
        map.key("replace_hung_after")
            .warn("has no effect without `supervise`: this haproxy is not ours to kill");
    }
    let file_needed = match (do_writes, reload == Reload::Supervise) {
        (true, _) => Some("do_writes"),
        (_, true) => Some("supervise"),
        _ => None,
    };
    partner(map, "config_file_path", file_needed);
    let config_file_path = path(&map.key("config_file_path"), environment).unwrap_or_default();
    let candidate = path(&map.key("candidate_config_file_path"), environment);
    let sockets = map.key("socket_file_path").list_or_one();
    partner(map, "socket_file_path", do_socket.then_some("do_socket"));
    if do_socket && sockets.is_empty() && map.key("socket_file_path").has_value() {
        map.key("socket_file_path")
            .error("must name at least one stats socket");
    }
    let (sockets, socket_paths): (Vec<_>, Vec<_>) = sockets
        .into_iter()
        .map(Cursor::required)
        .filter_map(|socket| path(&socket, environment).map(|path| (socket, path)))
        .unzip();
    let hitless_defaults = switch("hitless_defaults");
    let haproxy = Haproxy {
        extra_sections,
        places,
        do_writes,
        do_reloads,
        do_socket,
        check_command,
        candidate_config_file_path: candidate.unwrap_or_else(|| beside(&config_file_path, ".tmp")),
        config_file_path,
        reload,
        reload_timeout: map
            .key("reload_timeout")
            .or_preset(|key| key.duration_at_least(MILLISECOND)),
        replace_hung_after: map.key("replace_hung_after").duration_at_least(LEAST_HUNG),
        socket_file_path: socket_paths,
        restart_interval: map.key("restart_interval").or_preset(Cursor::duration),
        restart_jitter: map
            .key("restart_jitter")
            .or_preset(|key| key.number(0.0..=f64::MAX)),
        state_file_path: path(&map.key("state_file_path"), environment),
        admit: map.key("admit").one_of_or_preset(&ADMIT),
        server_order_seed: map.key("server_order_seed").text(),
        max_server_id: map
            .key("max_server_id")
            .or_preset(|key| key.integer(1..=i128::from(i32::MAX))),
        bind_address: {
            let key = map.key("bind_address");
            let given = word(&key).unwrap_or_else(|| key.preset::<&str>().to_owned());
            this_host(&given, environment.localhost())
        },
        shared_frontend,
        use_nerve_weights: switch("use_nerve_weights"),
        binary: {
            let key = map.key("binary");
            key.text()
                .unwrap_or_else(|| key.preset::<&str>().to_owned())
        },
        hitless_defaults,
        allowed_server_options: allowed_options(&map.key("allowed_server_options")),
        separate_names: map.key("separate_names").boolean(),
        templates: templates(map, environment),
        global,
        defaults,
    };
    hand_over(map, &haproxy, &sockets);
    lengths(map, &haproxy, &sockets);
    Some(haproxy)
}

/// Title and lines of the sections that belong to no service.
fn extra_sections(
    cursor: &Cursor<'_>,
    places: &mut BTreeMap<Part, Place>,
) -> Vec<(String, Vec<String>)> {
    let mut sections = Vec::new();
    for (title, at) in cursor.entries() {
        if !config_line(&at, &title) {
            continue;
        }
        places.insert(Part::Section(sections.len()), place_of(&at));
        let mut lines: Vec<String> = section_lines(&at)
            .into_iter()
            .map(|(_, line)| line)
            .collect();
        let title = match lines::title_and_bind(&title) {
            None => title.trim().to_owned(),
            Some((without, bind)) => {
                at.warn_hint(
                    format!(
                        "haproxy 1.8 and later refuse an address in a section's title: written as `{without}` with the \
                         line `{bind}`"
                    ),
                    "write it as a `bind` line",
                );
                lines.insert(0, bind);
                without
            }
        };
        sections.push((title, lines));
    }
    sections
}

fn place_of(cursor: &Cursor<'_>) -> Place {
    Place {
        at: cursor.place(),
        key_path: cursor.key_path(),
    }
}

/// Every path that is made from a configured one must be possible.
fn lengths(map: &Map<'_>, haproxy: &Haproxy, sockets: &[Cursor<'_>]) {
    let (key, file) = (map.key("config_file_path"), &haproxy.config_file_path);
    let supervise = haproxy.reload == Reload::Supervise;
    if haproxy.do_writes {
        must_fit(&key, file, "haproxy.cfg", Use::ReplacedFile);
        must_fit(&key, &beside(file, ".lock"), "its lock", Use::File);
        let candidate = map.key("candidate_config_file_path");
        let at = if candidate.has_value() {
            &candidate
        } else {
            &key
        };
        let path = &haproxy.candidate_config_file_path;
        must_fit(at, path, "what haproxy checks", Use::ReplacedFile);
    }
    if supervise {
        let socket = beside(file, ".master.sock");
        must_fit(&key, &socket, "haproxy's master socket", Use::HaproxySocket);
        for suffix in [".pid", ".log"] {
            must_fit(&key, &beside(file, suffix), "a file beside it", Use::File);
        }
    }
    if let Reload::MasterSocket(path) = &haproxy.reload {
        must_fit(&map.key("master_socket"), path, "it", Use::Socket);
    }
    if haproxy.do_socket {
        for (at, path) in sockets.iter().zip(&haproxy.socket_file_path) {
            // What `global` opens is judged by haproxy.
            let opened = haproxy
                .global
                .iter()
                .any(|line| line.contains("stats socket"));
            let used_as = if supervise && !opened {
                Use::HaproxySocket
            } else {
                Use::Socket
            };
            must_fit(at, path, "the stats socket", used_as);
        }
    }
}

/// A key that another one makes necessary.
fn partner(map: &Map<'_>, name: &'static str, needed_by: Option<&str>) {
    if let Some(switch) = needed_by.filter(|_| !map.key(name).has_value()) {
        let default = if switch.starts_with("do_") && switch != "do_checks" {
            " (its default)"
        } else {
            ""
        };
        map.key(name).error_hint(
            format!("required when `{switch}` is true{default}"),
            &format!("set it, or `{switch}: false`"),
        );
    }
}

/// A bind address, `localhost` as what it stands for.
pub(super) fn this_host(text: &str, localhost: &str) -> String {
    match text.eq_ignore_ascii_case("localhost") {
        true => localhost.to_owned(),
        false => text.to_owned(),
    }
}

/// The one way to reload: supervise, else the master socket, else the command.
fn reload(map: &Map<'_>, do_reloads: bool, environment: &Environment) -> Reload {
    let supervise = map
        .key("supervise")
        .or_preset(Cursor::boolean)
        .then_some(("supervise", Reload::Supervise));
    let master_socket = path(&map.key("master_socket"), environment)
        .map(|path| ("master_socket", Reload::MasterSocket(path)));
    let command = map
        .key("reload_command")
        .text()
        .filter(|text| !text.trim().is_empty());
    let command = command.map(|text| ("reload_command", Reload::Command(text)));
    let mut ways = [supervise, master_socket, command].into_iter().flatten();
    let chosen = ways.next();
    if !do_reloads {
        if let Some(("supervise", _)) = chosen {
            map.key("supervise").warn("not used: `do_reloads` is false");
        }
        return Reload::Never;
    }
    let Some((chosen, reload)) = chosen else {
        let given = |key| {
            let key = map.key(key);
            key.has_value() && key.value_text().is_none_or(|text| !text.trim().is_empty())
        };
        // One that cannot be read has an error of its own.
        if !given("master_socket") && !given("reload_command") {
            map.key("reload_command").error_hint(
                "required when `do_reloads` is true (its default): no way to reload haproxy is given",
                "set `supervise: true`, `master_socket` or `reload_command`, or `do_reloads: false`",
            );
        }
        return Reload::Never;
    };
    for (other, _) in ways {
        map.key(other)
            .warn(format!("not used: `{chosen}` is set and comes first"));
    }
    reload
}

fn allowed_options(cursor: &Cursor<'_>) -> Vec<String> {
    let entries = cursor.list_or_one().into_iter().map(Cursor::required);
    let words = entries.filter_map(|entry| {
        let keyword = entry.parsed(|text| {
            let keyword = !text.is_empty()
                && text
                    .chars()
                    .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
            if keyword {
                Ok(text.to_owned())
            } else {
                Err("must be one keyword of a server line, like `ssl`".to_owned())
            }
        })?;
        if keyword::arity(&keyword).is_none() {
            entry.warn_hint(
                "no option of a server line that is known here: a znode that has it loses all its options",
                "keywords are those of haproxy's manual, section 5.2",
            );
        }
        Some(keyword)
    });
    words.collect()
}

fn templates(map: &Map<'_>, environment: &Environment) -> Templates {
    let read = |cursor: Cursor<'_>| {
        let path = path(&cursor, environment)?;
        match std::fs::read_to_string(&path) {
            Ok(text) => Some(TemplateText { path, text }),
            Err(error) => {
                cursor.error(format!("the template cannot be read: {error}"));
                None
            }
        }
    };
    let parts = map.key("templates").object(|parts| Templates {
        global: read(parts.key("global")),
        service: read(parts.key("service")),
        shared_frontend: read(parts.key("shared_frontend")),
        whole: None,
    });
    Templates {
        whole: read(map.key("template")),
        ..parts.unwrap_or_default()
    }
}

/// Whether a command ends haproxy and starts another one: a word of it says so, whichever the program is.
fn restarts(command: &str) -> bool {
    let separators =
        |c: char| c.is_whitespace() || matches!(c, ';' | '&' | '|' | '(' | ')' | '"' | '\'' | '`');
    let mut words = command.split(separators).filter(|word| !word.is_empty());
    let is_other = words.clone().any(|word| word.contains("reload"));
    words.any(|word| match word {
        "restart" | "try-restart" | "condrestart" | "force-restart" => true,
        // `stop; start`, unless it is one of several things that a reload may do.
        "stop" => !is_other,
        _ => false,
    })
}

/// What a reload without a lost connection, and changes over the stats socket, need in `global` and the command.
fn hand_over(map: &Map<'_>, haproxy: &Haproxy, sockets: &[Cursor<'_>]) {
    let open: Vec<Vec<&str>> = haproxy
        .global
        .iter()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|words| words.starts_with(&["stats", "socket"]) && words.len() > 2)
        .collect();
    // Template text may open sockets of its own.
    let own_global = haproxy.templates.global.is_none() && haproxy.templates.whole.is_none();
    if haproxy.do_socket && own_global {
        // A haproxy that synapse runs gets the line for the first one where `global` has none.
        let added = usize::from(haproxy.reload == Reload::Supervise && open.is_empty());
        for socket in sockets.iter().skip(added) {
            let Some(written) = socket.text() else {
                continue;
            };
            match open.iter().find(|words| words[2].trim_start_matches("unix@") == written) {
                None => socket.warn_hint(
                    "`haproxy.global` does not open this stats socket",
                    &format!("add the line `stats socket {written} mode 660 level admin expose-fd listeners`"),
                ),
                Some(words) if !words.windows(2).any(|pair| pair == ["level", "admin"]) => {
                    socket.warn_hint("this stats socket is below `level admin`", "servers cannot be changed over it");
                }
                Some(_) => {}
            }
        }
    }
    let Reload::Command(command) = &haproxy.reload else {
        return;
    };
    let has = |word: &str| {
        command
            .split_whitespace()
            .any(|part| part.trim_matches(['"', '\'']) == word)
    };
    let key = map.key("reload_command");
    if (has("-sf") || has("-st")) && !has("-x") {
        key.warn_hint(
            "has `-sf` without `-x`: connections are lost at each reload",
            "add `-x <stats socket>`",
        );
    }
    if restarts(command) {
        key.warn_hint(
            "restarts haproxy: connections are lost and ports are closed at each reload",
            "reload it, e.g. `systemctl reload haproxy` (or `kill -USR2` to the master of a haproxy run with `-W`), or use `supervise: true` or `master_socket`",
        );
    }
    let exposed = open.iter().any(|words| {
        words
            .windows(2)
            .any(|pair| pair == ["expose-fd", "listeners"])
    });
    if own_global && !exposed && !haproxy.hitless_defaults {
        let hint = "add it to the `stats socket` line, or leave `hitless_defaults` on";
        map.key("global").warn_hint(
            "no stats socket has `expose-fd listeners`: a reload cannot take the listeners over",
            hint,
        );
    }
}
