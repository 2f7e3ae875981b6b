//! One service: discovery, default servers, its sections. Called by `read`.

use std::collections::BTreeMap;

use smartstack_common::config::{Cursor, Map, ensemble, preset_of, zk_path};

use super::guard::guard;
use super::keys::KEYS;
use super::read::this_host;
use super::text::{is_name, line, service_lines, word};
use super::{
    Admit, BackendOrder, Decode, DefaultServer, Discovery, FrontendPort, LabelFilter, Multi,
    Resolver, Service, ServiceHaproxy, Watcher,
};
use crate::config::lines;

const PORT: std::ops::RangeInclusive<i128> = 1..=65535;
pub(super) const ADMIT: [(&str, Admit); 2] = [("ready", Admit::Ready), ("checked", Admit::Checked)];

/// What a service takes over from the top level.
pub(super) struct Inherited<'a> {
    pub(super) bind_address: &'a str,
    /// What `localhost` stands for in a `bind` line.
    pub(super) localhost: &'a str,
    /// There is a shared frontend.
    pub(super) shared: bool,
    pub(super) admit: Admit,
    pub(super) guard: super::guard::Settings,
}

/// A service as read.
pub(super) struct Read<'a> {
    pub(super) service: Service,
    /// The service's own `use_nerve_weights`, when true.
    pub(super) use_nerve_weights: Option<Cursor<'a>>,
}

/// `bind_address` is the default one, `shared` whether there is a shared frontend.
pub(super) fn service<'a>(
    map: &Map<'a>,
    name: &str,
    inherited: &Inherited<'_>,
) -> Option<Read<'a>> {
    if !is_name(name) {
        map.cursor.error(
            "a service's name must be of `A-Z a-z 0-9 . _ : -` and not begin with `-`: it names haproxy's sections",
        );
    }
    let discovery = map.key("discovery").required();
    let discovery = if discovery.has_value() {
        discovery.object(|map| (read_discovery(map), label_filters(map)))
    } else {
        None
    };
    let multi = map.key("discovery_multi");
    let discovery = if multi.has_value() {
        multi
            .object(|map| read_multi(map, discovery))
            .map(|multi| (multi, Vec::new()))
    } else {
        discovery
    };
    let section = map.key("haproxy");
    let haproxy = section.object(|map| read_haproxy(map, name, inherited))?;
    let disabled = haproxy.as_ref().is_some_and(|read| read.disabled);
    let servers: Vec<DefaultServer> = map
        .key("default_servers")
        .list()
        .iter()
        .filter_map(|server| server.object(|map| default_server(map, disabled)).flatten())
        .collect();
    let own_override = map.key("backend_port_override").integer(PORT);
    let flag = |name| map.key(name).or_preset(Cursor::boolean);
    let (discovery, label_filters) = discovery?;
    let haproxy = haproxy?;
    let (rendered, unrendered) = match disabled {
        true => (None, Some(Box::new(haproxy.section))),
        false => (Some(haproxy.section), None),
    };
    let service = Service {
        name: name.to_owned(),
        discovery: discovery?,
        label_filters,
        default_servers: servers,
        keep_default_servers: flag("keep_default_servers"),
        use_previous_backends: flag("use_previous_backends"),
        backend_port_override: own_override.or(haproxy.port_override),
        leader_election: flag("leader_election"),
        haproxy: rendered,
        disabled: unrendered,
        guard: guard(&map.key("guard"), inherited.guard),
    };
    if matches!(service.discovery, Discovery::Base)
        && service.default_servers.is_empty()
        && !disabled
    {
        map.cursor.warn(
            "discovery method `base` without `default_servers`: the service never has a server",
        );
    }
    Some(Read {
        service,
        use_nerve_weights: haproxy.use_nerve_weights,
    })
}

fn read_discovery(map: &Map<'_>) -> Option<Discovery> {
    let key = map.key("method").required();
    let Some(method) = key.text().map(|method| method.to_lowercase()) else {
        map.ignore_rest();
        return None;
    };
    match method.as_str() {
        "base" => return Some(Discovery::Base),
        "zookeeper" => {}
        "zookeeper_poll" => key.warn("read as `zookeeper`: the path is watched, not polled"),
        "zookeeper_dns" | "zookeeper_dns_poll" => {
            key.warn("read as `zookeeper`: hosts that are names are resolved in any case");
        }
        "multi" => return read_multi(map, None),
        _ => {
            map.ignore_rest();
            let known = ["dns", "docker", "ec2tag", "marathon"].contains(&method.as_str());
            let message = if known {
                "this discovery method is not built"
            } else {
                "unknown discovery method"
            };
            key.error_hint(message, "supported: `zookeeper`, `base`, `multi`");
            return None;
        }
    }
    let ensemble = ensemble(&map.key("hosts").required());
    let path = zk_path(&map.key("path").required());
    let decode = map.key("decode").object(|decode| {
        let endpoint_name = decode.key("endpoint_name");
        let methods = [("nerve", false), ("serverset", true)];
        let usual = || preset_of(KEYS, "services.*.discovery.decode.method", &methods);
        match decode.key("method").one_of(&methods).unwrap_or_else(usual) {
            true => Decode::Serverset {
                endpoint_name: endpoint_name.text(),
            },
            false => {
                if endpoint_name.has_value() {
                    endpoint_name.warn("has no effect without `method: serverset`");
                }
                Decode::Nerve
            }
        }
    });
    Some(Discovery::Zookeeper {
        ensemble: ensemble?,
        path: path?,
        decode: decode?,
    })
}

/// Several sources. `primary` is the service's own `discovery` where `discovery_multi` wraps it.
fn read_multi(
    map: &Map<'_>,
    primary: Option<(Option<Discovery>, Vec<LabelFilter>)>,
) -> Option<Discovery> {
    let cursor = map.key("watchers");
    let mut watchers = Vec::new();
    let mut whole = true;
    let wraps = primary.is_some();
    let mut take = |cursor: &Cursor<'_>, name: String, read| match read {
        (
            Some(Discovery::Zookeeper {
                ensemble,
                path,
                decode,
            }),
            label_filters,
        ) => {
            watchers.push(Watcher {
                name,
                ensemble,
                path,
                decode,
                label_filters,
            });
        }
        (found, _) => {
            if found.is_some() {
                cursor.error_hint("cannot be one of several sources", "supported: `zookeeper`");
            }
            whole = false;
        }
    };
    if let Some(primary) = primary {
        take(&cursor, "primary".to_owned(), primary);
    }
    for (name, entry) in cursor.entries() {
        if wraps && name == "primary" {
            entry.warn("not used: `discovery` is the watcher `primary`");
            continue;
        }
        match entry.object(|map| (read_discovery(map), label_filters(map))) {
            Some(read) if entry.has_value() => take(&entry, name, read),
            _ => entry.error("must be a map with a `method`, as `discovery`"),
        }
    }
    if !cursor.has_value() || (watchers.is_empty() && whole) {
        cursor.error("required: at least one source");
        whole = false;
    }
    let mut seen = BTreeMap::new();
    for watcher in &watchers {
        let place = (
            watcher.ensemble.to_string(),
            watcher.path.as_str().to_owned(),
        );
        if let Some(other) = seen.insert(place, watcher.name.clone()) {
            cursor.error(format!(
                "`{}` and `{other}` are the same source",
                watcher.name
            ));
            whole = false;
        }
    }
    let resolver = map.key("resolver").required();
    let resolver = resolver
        .object(|map| read_resolver(map, &mut watchers))
        .flatten();
    Some(Discovery::Multi(Multi {
        resolver: resolver?,
        watchers,
    }))
    .filter(|_| whole)
}

fn read_resolver(map: &Map<'_>, watchers: &mut [Watcher]) -> Option<Resolver> {
    let order = map.key("sequential_order");
    let method = map.key("method").required();
    let resolvers = [
        ("union", Resolver::Union),
        ("sequential", Resolver::Sequential),
    ];
    let resolver = method.one_of(&resolvers)?;
    if resolver == Resolver::Union {
        if order.has_value() {
            order.warn("has no effect without `method: sequential`");
        }
        return Some(resolver);
    }
    let names: Vec<String> = order
        .clone()
        .required()
        .list()
        .into_iter()
        .map(Cursor::required)
        .filter_map(|name| name.text())
        .collect();
    let mut sorted = names.clone();
    sorted.sort();
    let mut known: Vec<&str> = watchers.iter().map(|w| w.name.as_str()).collect();
    known.sort_unstable();
    if sorted != known {
        if order.has_value() {
            order.error(format!("must name each watcher once: {}", known.join(", ")));
        }
        return None;
    }
    watchers.sort_by_key(|w| names.iter().position(|name| *name == w.name));
    Some(resolver)
}

fn label_filters(map: &Map<'_>) -> Vec<LabelFilter> {
    let filters = map.key("label_filters");
    let filters = if filters.is_map() {
        vec![filters]
    } else {
        filters.list()
    };
    let old = map.key("label_filter");
    filters
        .iter()
        .chain(old.has_value().then_some(&old))
        .filter_map(|cursor| cursor.object(label_filter).flatten())
        .collect()
}

fn label_filter(map: &Map<'_>) -> Option<LabelFilter> {
    let label = map.key("label").required().text();
    let equals = map
        .key("condition")
        .required()
        .one_of(&[("equals", true), ("not-equals", false)]);
    let value = map.key("value").json().unwrap_or(serde_json::Value::Null);
    Some(LabelFilter {
        label: label?,
        value,
        equals: equals?,
    })
}

/// `lenient`: haproxy is disabled, so a server haproxy cannot have is left out instead of refused.
fn default_server(map: &Map<'_>, lenient: bool) -> Option<DefaultServer> {
    let host = map.key("host").required();
    let unspecified = host
        .value_text()
        .filter(|text| matches!(text.as_str(), "0.0.0.0" | "::" | "[::]"));
    if unspecified.is_some() {
        host.warn_hint(
            "is no address of a server: read as this host",
            "write `127.0.0.1` or `::1`",
        );
    }
    let host = host.filled_text().and_then(|_| word(&host));
    let port = map.key("port").required();
    let name = map.key("name").text();
    let weight = map.key("weight").integer(0..=256);
    let options = line(&map.key("haproxy_server_options"));
    let id = map
        .key("haproxy_server_id")
        .integer(1..=i128::from(i32::MAX));
    let labels: BTreeMap<String, serde_json::Value> = map
        .key("labels")
        .entries()
        .into_iter()
        .filter_map(|(name, value)| Some((name, value.json()?)))
        .collect();
    let numeric = port
        .text()
        .is_some_and(|text| text.trim().bytes().all(|b| b.is_ascii_digit()));
    let port = if lenient && !numeric {
        None
    } else {
        port.integer(PORT)
    };
    Some(DefaultServer {
        name: name.filter(|name| !name.is_empty()),
        host: host?,
        port: port?,
        weight,
        haproxy_server_options: options,
        haproxy_server_id: id,
        labels,
    })
}

/// A service's `haproxy` as read.
struct ReadHaproxy<'a> {
    disabled: bool,
    section: ServiceHaproxy,
    port_override: Option<u16>,
    use_nerve_weights: Option<Cursor<'a>>,
}

fn read_haproxy<'a>(
    map: &Map<'a>,
    name: &str,
    inherited: &Inherited<'_>,
) -> Option<ReadHaproxy<'a>> {
    let disabled = map.key("disabled").or_preset(Cursor::boolean);
    let own_address = map.key("bind_address");
    let bind_address = if own_address.has_value() {
        word(&own_address).map(|text| this_host(&text, inherited.localhost))
    } else {
        Some(inherited.bind_address.to_owned())
    };
    let port = frontend_port(&map.key("port"), bind_address.as_deref());
    let bind_options = line(&map.key("bind_options"));
    let server_options = server_options(&map.key("server_options"));
    let old_override = map.key("server_port_override");
    if old_override.has_value() {
        old_override.warn_hint(
            "old form",
            "write `backend_port_override` beside `discovery`",
        );
    }
    let (frontend, backend) = sections(map);
    let lines = map.key("shared_frontend");
    if lines.has_value() && !inherited.shared {
        lines.warn_hint(
            "left out: there is no shared frontend",
            "the top level's `haproxy.shared_frontend` makes one",
        );
    }
    let shared_frontend: Vec<String> = service_lines(&lines)
        .into_iter()
        .map(|(_, line)| line)
        .collect();
    let backend_name = match map.key("backend_name") {
        key if key.has_value() => key.parsed(|text| match is_name(text) {
            true => Ok(text.to_owned()),
            false => Err("must be of `A-Z a-z 0-9 . _ : -` and not begin with `-`".to_owned()),
        }),
        _ => Some(name.to_owned()),
    };
    let orders = [
        ("asc", BackendOrder::Asc),
        ("desc", BackendOrder::Desc),
        ("no_shuffle", BackendOrder::NoShuffle),
        ("shuffle", BackendOrder::Shuffle),
    ];
    let backend_order = map.key("backend_order").one_of_or_preset(&orders);
    let cookie_hash = map
        .key("cookie_value_method")
        .one_of_or_preset(&[("name", false), ("hash", true)]);
    let own_admit = map.key("admit");
    let admit = own_admit.one_of(&ADMIT).unwrap_or(inherited.admit);
    if admit == Admit::Checked
        && !server_options
            .split_ascii_whitespace()
            .any(|word| word == "check")
    {
        own_admit.warn_hint(
            "`admit: checked` needs checks, and `server_options` has no `check`: servers are admitted at once, unless `default-server` or their own options have it",
            "add `check` to `server_options`",
        );
    }
    let weights = map.key("use_nerve_weights");
    Some(ReadHaproxy {
        disabled,
        port_override: old_override.integer(PORT),
        use_nerve_weights: (weights.boolean() == Some(true)).then_some(weights),
        section: ServiceHaproxy {
            port,
            bind_address: bind_address?,
            bind_options,
            server_options,
            frontend,
            backend,
            shared_frontend: if inherited.shared {
                shared_frontend
            } else {
                Vec::new()
            },
            backend_name: backend_name?,
            backend_order,
            cookie_hash,
            admit,
        },
    })
}

/// Absent: no frontend. Null: the address alone, which must then say everything.
fn frontend_port(port: &Cursor<'_>, bind_address: Option<&str>) -> Option<FrontendPort> {
    if port.has_value() {
        return port.integer(PORT).map(FrontendPort::Port);
    }
    if !port.is_present() {
        return None;
    }
    if bind_address.is_some_and(|address| !address.contains(['/', '@', ':'])) {
        port.error_hint(
            "null binds `bind_address` alone, and that is no socket",
            "give `bind_address` a path or `host:port`; without the key `port` there is no frontend",
        );
    }
    Some(FrontendPort::AddressOnly)
}

/// Text of the server lines. Ruby crashes on any other `%`; here it stays.
fn server_options(cursor: &Cursor<'_>) -> String {
    let Some(text) = line(cursor) else {
        return String::new();
    };
    for rest in text.replace("%%", "").split("%{").skip(1) {
        let name = rest.split('}').next().unwrap_or_default();
        if !matches!(name, "host" | "port" | "name") {
            cursor.warn_hint(
                format!("`%{{{name}}}` stays as it is"),
                "known: `%{host}`, `%{port}`, `%{name}`",
            );
        }
    }
    text
}

/// The lines of frontend and backend: their own, then those of `listen` that belong there.
fn sections(map: &Map<'_>) -> (Vec<String>, Vec<String>) {
    let own = |name| {
        service_lines(&map.key(name))
            .into_iter()
            .map(|(_, line)| line)
            .collect::<Vec<_>>()
    };
    let (mut frontend, mut backend) = (own("frontend"), own("backend"));
    for (cursor, line) in service_lines(&map.key("listen")) {
        let places = lines::places(&line);
        if !places.frontend && !places.backend {
            let option = format!("option {line}");
            let meant = lines::places(&option);
            let hint = match meant.frontend || meant.backend {
                true => format!("did you mean `{option}`?"),
                false => {
                    "put it under `frontend:` or `backend:`, whose lines are not sorted".to_owned()
                }
            };
            cursor.warn_hint(
                "left out: not known as a line of a frontend or a backend",
                &hint,
            );
        }
        if places.backend {
            backend.push(line.clone());
        }
        if places.frontend {
            frontend.push(line);
        }
    }
    (frontend, backend)
}
