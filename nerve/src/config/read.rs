//! From the files to [`Config`]: every key read, every default and cross check. Notes problems, never stops at the first.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use smartstack_common::config::{Cursor, Map, Program, Report, Source, Use, Winner, must_fit};
use smartstack_common::config::{Loaded, ensemble, listeners, path, session, unread, zk_path};

use super::keys::KEYS;
use super::types::{Config, LoadOptions, NodeType, Place, RateMode, Service};
use crate::check::{Check, Inherited, host, port_number};

const MILLISECOND: Duration = Duration::from_millis(1);
const COUNT: std::ops::RangeInclusive<i128> = 1..=u32::MAX as i128;

/// Section, keys and places of the program.
pub const PROGRAM: Program = Program {
    name: "nerve",
    keys: KEYS,
    winner: Winner::Json,
};

/// Reads and checks everything.
///
/// # Errors
/// All that is wrong, when anything is.
pub(super) fn load(options: &LoadOptions) -> Result<Loaded<Config>, Report> {
    let source = Source::open(&options.path, PROGRAM, &options.environment);
    let config = source
        .root()
        .and_then(|root| root.object(|top| read(top, &source, options)).flatten());
    source.finish(config)
}

fn read<'a>(top: &Map<'a>, source: &'a Source, options: &LoadOptions) -> Option<Config> {
    let environment = &options.environment;
    let instance_id = instance_id(top, options);
    let services = services(top, source);
    let heartbeat_path = path(&top.key("heartbeat_path"), environment);
    let (session, write_rate, write_rate_mode) = top.key("zookeeper").object(|map| {
        let modes = [
            ("on", RateMode::On),
            ("shadow", RateMode::Shadow),
            ("off", RateMode::Off),
        ];
        (
            session(map),
            map.key("write_rate").or_preset(|key| key.integer(COUNT)),
            map.key("write_rate_mode").one_of_or_preset(&modes),
        )
    })?;
    let listeners = listeners(top, PROGRAM, environment);
    let state_key = top.key("state_path");
    let state_path = path(&state_key, environment)
        .unwrap_or_else(|| environment.state_file("nerve", "state.json"));
    must_fit(&state_key, &state_path, "the state file", Use::ReplacedFile);
    let lock = state_path.with_extension("lock");
    must_fit(&state_key, &lock, "its lock", Use::File);
    let copy = state_path.with_extension("copy");
    must_fit(&state_key, &copy, "its copy", Use::ReplacedFile);
    let (linger, stop_deadline) = top.key("shutdown").object(shutdown)?;
    let listeners = listeners?;
    Some(Config {
        instance_id: instance_id?,
        services,
        heartbeat_path,
        session_timeout: session.timeout,
        jitter: session.jitter,
        write_rate,
        write_rate_mode,
        listeners,
        state_path,
        linger,
        stop_deadline,
    })
}

fn instance_id(top: &Map<'_>, options: &LoadOptions) -> Option<String> {
    let key = top.key("instance_id");
    let (id, at) = match &options.instance_id {
        Some(id) => (id.clone(), &top.cursor),
        None => (key.clone().required().published_text()?, &key),
    };
    if id.is_empty() || id.contains(|c: char| c == '/' || c.is_control()) {
        let shown = id.escape_debug();
        at.error(format!(
            "the instance id `{shown}` cannot name a node: empty, or with `/` or control characters"
        ));
        return None;
    }
    Some(id)
}

/// A time that something takes.
fn time(key: &Cursor<'_>) -> Option<Duration> {
    key.duration_at_least(MILLISECOND)
}

fn shutdown(map: &Map<'_>) -> (Duration, Duration) {
    let linger = map.key("linger").or_preset(Cursor::duration);
    let deadline = map.key("deadline").or_preset(time);
    if linger >= deadline {
        map.key("linger").error_hint(
            "`linger` must be shorter than `deadline`",
            "raise `shutdown.deadline`",
        );
    }
    (linger, deadline)
}

/// The services that can be read; those that cannot have left an error.
fn services<'a>(top: &Map<'a>, source: &'a Source) -> BTreeMap<String, Service> {
    let mut services = BTreeMap::new();
    let mut places: HashMap<(String, String, String), String> = HashMap::new();
    let mut fixed: HashMap<FixedName, (String, String)> = HashMap::new();
    for (name, cursor) in source.services(top) {
        if !cursor.has_value() {
            cursor.error("required, but null");
            continue;
        }
        let errors = source.errors();
        let Some(service) = cursor.object(|map| service(map, &name)).flatten() else {
            unread(source, &cursor, errors);
            continue;
        };
        for (node, path) in fixed_names(&service) {
            if let Some((other, there)) = fixed.insert(node, (name.clone(), cursor.place())) {
                cursor.error_hint(
                    format!(
                        "makes the node of one fixed name below `{path}`, as `{other}` at {there} does: only one of the two could \
                         be registered"
                    ),
                    "leave `node_type` out (each then has a number of its own), or give one another `zk_path`",
                );
            }
        }
        let endpoint = format!("{} {}", service.host, service.port);
        let taken: Vec<String> = service
            .places
            .iter()
            .filter_map(|place| {
                let hosts = place.ensemble.hosts().to_owned();
                let path = place.ensemble.absolute(&place.path);
                places.insert((hosts, path, endpoint.clone()), name.clone())
            })
            .collect();
        if let Some(other) = taken.first() {
            cursor.warn_hint(
                format!("registers the same host and port below the same `zk_path` as `{other}`"),
                "synapse keeps one server of the two: give each its own port or path",
            );
        }
        services.insert(name, service);
    }
    services
}

/// Ensemble, path, and what the name depends on beside the instance id: the payload, where it is in the name.
type FixedName = (String, String, Option<String>);

/// The nodes of a fixed name that a service makes, each with its path.
fn fixed_names(service: &Service) -> Vec<(FixedName, String)> {
    if service.node_type != NodeType::Ephemeral {
        return Vec::new();
    }
    let payload = service.use_path_encoding.then(|| {
        let Service {
            host,
            port,
            weight,
            haproxy_server_options,
            labels,
            ..
        } = service;
        format!("{host:?} {port:?} {weight:?} {haproxy_server_options:?} {labels:?}")
    });
    let name = |place: &Place| {
        let path = place.ensemble.absolute(&place.path);
        let hosts = place.ensemble.hosts().to_owned();
        ((hosts, path.clone(), payload.clone()), path)
    };
    service.places.iter().map(name).collect()
}

fn service(map: &Map<'_>, name: &str) -> Option<Service> {
    let host = host(&map.key("host").required());
    let port = port(&map.key("port").required());
    reporter_type(&map.key("reporter_type"));
    let check_interval = map.key("check_interval").or_preset(time);
    let inherited = Inherited {
        service: name,
        host: host.as_deref(),
        port: port.as_ref(),
        port_needed: Cell::new(false),
    };
    let checks: Vec<Option<Check>> = map
        .key("checks")
        .list()
        .iter()
        .map(|cursor| cursor.object(|map| Check::read(map, &inherited)).flatten())
        .collect();
    if port
        .as_ref()
        .is_some_and(|port| port_number(port).is_none())
    {
        match inherited.port_needed.get() {
            true => map.key("port").error("must be a port: 1..65535"),
            false => map
                .key("port")
                .warn("is not a port of 1..65535: published, but synapse will not use it"),
        }
    }
    let weight = map.key("weight");
    if weight.is_present() && !weight.has_value() {
        weight.error("must be a whole number of at least 0, not null");
    }
    let labels = map.key("labels").json();
    if labels
        .as_ref()
        .is_some_and(|labels| !labels.is_object() && !labels.is_null())
    {
        map.key("labels")
            .warn("is not a map: synapse cannot filter by it");
    }
    let places = places(map);
    Some(Service {
        name: name.to_owned(),
        check_interval,
        check_grace: map.key("check_grace").or_preset(Cursor::duration),
        check_mocked: map.key("check_mocked").or_preset(Cursor::boolean),
        weight: weight.integer(0..=i128::from(u64::MAX)),
        haproxy_server_options: map.key("haproxy_server_options").json(),
        labels,
        node_type: node_type(&map.key("node_type")),
        use_path_encoding: map.key("use_path_encoding").or_preset(Cursor::boolean),
        host: host?,
        port: port?,
        checks: checks.into_iter().collect::<Option<_>>()?,
        places: places?,
    })
}

/// Where the service is registered: at its own `zk_hosts` and `zk_path`, unless only `reporters` are given, and at those.
fn places(map: &Map<'_>) -> Option<Vec<Place>> {
    let further = map.key("reporters").list();
    let own = ["zk_hosts", "zk_path"].map(|key| map.key(key).has_value());
    let own = (further.is_empty() || own.contains(&true)).then(|| place(map));
    let further: Vec<Option<Place>> = further
        .iter()
        .map(|cursor| cursor.object(place).flatten())
        .collect();
    let places: Vec<Place> = own.into_iter().chain(further).collect::<Option<_>>()?;
    for (index, one) in places.iter().enumerate() {
        let is_same = |other: &Place| {
            let (hosts, others) = (one.ensemble.hosts(), other.ensemble.hosts());
            let shared = hosts.split(',').any(|h| others.split(',').any(|o| o == h));
            shared && one.ensemble.absolute(&one.path) == other.ensemble.absolute(&other.path)
        };
        if places[..index].iter().any(is_same) {
            map.key("reporters")
                .error("names one path of one ensemble twice: it would be registered there twice");
            return None;
        }
    }
    Some(places)
}

fn place(map: &Map<'_>) -> Option<Place> {
    let ensemble = ensemble(&map.key("zk_hosts").required());
    let path = zk_path(&map.key("zk_path").required());
    Some(Place {
        ensemble: ensemble?,
        path: path?,
    })
}

/// The advertised port keeps its type.
fn port(cursor: &Cursor<'_>) -> Option<serde_json::Value> {
    if cursor
        .value_text()
        .is_some_and(|text| text.contains(['$', '{']))
    {
        cursor.filled_text()?;
    }
    let port = cursor.json().filter(|port| !port.is_null())?;
    if !port.is_number() && !port.is_string() {
        cursor.error("must be a port: 1..65535");
        return None;
    }
    Some(port)
}

fn reporter_type(cursor: &Cursor<'_>) {
    let Some(text) = cursor.text() else { return };
    match text.to_lowercase().as_str() {
        "zookeeper" => {}
        "etcd" => cursor.error_hint("the registry `etcd` is not built", "supported: `zookeeper`"),
        _ => cursor.error_hint("unknown registry", "supported: `zookeeper`"),
    }
}

fn node_type(cursor: &Cursor<'_>) -> NodeType {
    let kinds = [
        (
            "ephemeral_sequential",
            (NodeType::EphemeralSequential, true),
        ),
        ("ephemeral", (NodeType::Ephemeral, true)),
        (
            "persistent_sequential",
            (NodeType::EphemeralSequential, false),
        ),
        ("persistent", (NodeType::Ephemeral, false)),
    ];
    let (kind, honoured) = cursor.one_of_or_preset(&kinds);
    if !honoured {
        cursor.warn("persistent nodes are not built yet: registered as the ephemeral kind, it goes with the session");
    }
    kind
}
