//! The table of nerve's keys: classes of key, README and JSON Schema are made from it. Read by `read`.

use std::time::Duration;

use smartstack_common::config::{Key, Kind, Preset, count, defaulted, honoured, joined, later};

use crate::check;

const NODE_TYPES: &[&str] = &[
    "ephemeral_sequential",
    "ephemeral",
    "persistent_sequential",
    "persistent",
];
const U32: i64 = u32::MAX as i64;

/// Every key nerve knows, in the order of the README.
pub(super) const KEYS: &[Key] = &ALL;

const TABLES: [&[Key]; 3] = [OWN, &check::KEYS, LATER];
const ALL: [Key; count(&TABLES)] = joined(&TABLES);

/// Those that are acted on, the checks' apart.
const OWN: &[Key] = &[
    honoured(
        "instance_id",
        Kind::Text,
        "`-i` or `NERVE_INSTANCE_ID`, which win",
        "name of this instance in the payload and in the node's name",
    ),
    honoured(
        "services",
        Kind::Map,
        "none",
        "the services of this host by name",
    ),
    honoured("services.*", Kind::Map, "", "one service; keys below"),
    honoured(
        "service_conf_dir",
        Kind::Path,
        "none",
        "directory of further services, one file each: `*.yaml`, `*.json` (JSON wins), relative to the working directory; a file replaces the whole service of its name",
    ),
    honoured(
        "heartbeat_path",
        Kind::Path,
        "none",
        "file touched at least every 10 s while nerve makes progress",
    ),
    honoured(
        "state_path",
        Kind::Path,
        "`$STATE_DIRECTORY/state.json`, else `/var/lib/nerve/state.json`",
        "former session ids of this installation, and which services were drained or disabled; mode 0600",
    ),
    honoured(
        "zookeeper",
        Kind::Map,
        "",
        "how sessions are kept; keys below",
    ),
    defaulted(
        "zookeeper.session_timeout",
        Kind::Duration,
        Preset::Duration(Duration::from_secs(10)),
        "session time-out asked for; the servers may grant another one (`zookeeper[].session_timeout` in `/status`), which counts",
    ),
    defaulted(
        "zookeeper.jitter",
        Kind::Duration,
        Preset::Duration(Duration::from_millis(500)),
        "spread of what is done after a reconnection to the same session; after an outage longer than the session time-out it grows to a quarter of the outage, at most 10 s; `0` turns both off",
    ),
    defaulted(
        "zookeeper.write_rate",
        Kind::Integer(1, U32),
        Preset::Integer(50),
        "registrations per second and ensemble; withdrawals, and swaps of a predecessor's nodes, are free",
    ),
    defaulted(
        "zookeeper.write_rate_mode",
        Kind::OneOf(&["on", "shadow", "off"]),
        Preset::Text("on"),
        "`shadow` only counts what the rate would delay (`nerve_zk_registrations_delayed_total`)",
    ),
    honoured(
        "admin",
        Kind::Either(&[Kind::Boolean, Kind::Map]),
        "",
        "the read-only HTTP listener and the control socket; `false` turns both off",
    ),
    defaulted(
        "admin.bind",
        Kind::Text,
        Preset::Text("127.0.0.1:8401"),
        "`host:port` or `unix:/path`; when given, failing to listen there is fatal",
    ),
    honoured(
        "admin.socket",
        Kind::Either(&[Kind::Path, Kind::Boolean]),
        "`$RUNTIME_DIRECTORY/nerve.sock`, else `/run/nerve/nerve.sock`",
        "path of the control socket (mode 0660), or `false`; when given, failing to listen there is fatal",
    ),
    honoured("shutdown", Kind::Map, "", "how nerve stops; keys below"),
    defaulted(
        "shutdown.linger",
        Kind::Duration,
        Preset::Duration(Duration::from_secs(0)),
        "time between the withdrawal and the exit",
    ),
    defaulted(
        "shutdown.deadline",
        Kind::Duration,
        Preset::Duration(Duration::from_secs(10)),
        "at most this long for a clean stop; longer than `linger`",
    ),
    honoured(
        "services.*.host",
        Kind::Text,
        "required",
        "advertised address, default host of the checks",
    ),
    honoured(
        "services.*.port",
        Kind::Text,
        "required",
        "advertised port, published as it is written (number or text)",
    ),
    defaulted(
        "services.*.reporter_type",
        Kind::OneOf(&["zookeeper"]),
        Preset::Text("zookeeper"),
        "the registry",
    ),
    honoured(
        "services.*.zk_hosts",
        Kind::Texts,
        "required without `reporters`",
        "the ensemble: `host:port` entries, one may end in `/chroot`",
    ),
    honoured(
        "services.*.zk_path",
        Kind::Text,
        "required without `reporters`",
        "absolute znode path below which the node is kept",
    ),
    honoured(
        "services.*.reporters",
        Kind::List,
        "none",
        "further places, in other ensembles or paths, where the service is registered at the same time, each independent of the others; keys below",
    ),
    honoured(
        "services.*.reporters[].zk_hosts",
        Kind::Texts,
        "required",
        "as `zk_hosts` of the service",
    ),
    honoured(
        "services.*.reporters[].zk_path",
        Kind::Text,
        "required",
        "as `zk_path` of the service",
    ),
    defaulted(
        "services.*.node_type",
        Kind::OneOf(NODE_TYPES),
        Preset::Text("ephemeral_sequential"),
        "how the node is named; the persistent kinds are registered as the ephemeral ones, with a warning",
    ),
    defaulted(
        "services.*.use_path_encoding",
        Kind::Boolean,
        Preset::Boolean(false),
        "the payload is also in the node's name (`base64_…`)",
    ),
    defaulted(
        "services.*.check_interval",
        Kind::Duration,
        Preset::Duration(Duration::from_millis(500)),
        "pause between two rounds of checks",
    ),
    defaulted(
        "services.*.check_grace",
        Kind::Duration,
        Preset::Duration(Duration::from_secs(600)),
        "how long the service is left as it is while a check cannot run because of this host (no free descriptor, port or memory, a resolver without an answer); from then on it counts as failing",
    ),
    defaulted(
        "services.*.check_mocked",
        Kind::Boolean,
        Preset::Boolean(false),
        "no check is run, the service is up",
    ),
    honoured(
        "services.*.weight",
        Kind::Integer(0, i64::MAX),
        "not published",
        "weight for haproxy, published",
    ),
    honoured(
        "services.*.haproxy_server_options",
        Kind::Any,
        "not published",
        "options of the haproxy server line, published verbatim",
    ),
    honoured(
        "services.*.labels",
        Kind::Map,
        "not published",
        "labels for synapse's filters, published verbatim",
    ),
    honoured(
        "services.*.checks",
        Kind::List,
        "none: always up",
        "health checks, all must pass; keys below",
    ),
];

/// Those that are not, the checks' apart.
const LATER: &[Key] = &[
    later(
        "max_repeated_report_failures",
        Kind::Any,
        "a registration that fails is retried until it succeeds, the session is kept",
    ),
    later(
        "statsd",
        Kind::Map,
        "numbers are at `/metrics` of the admin listener",
    ),
    later(
        "prometheus",
        Kind::Map,
        "numbers are at `/metrics` of the admin listener (`admin.bind`)",
    ),
    later(
        "zookeeper.auth",
        Kind::Any,
        "nodes are open to everybody, as in Ruby",
    ),
    later("zookeeper.tls", Kind::Any, "connections are plain TCP"),
    later(
        "services.*.rate_limiting",
        Kind::Map,
        "`zookeeper.write_rate` limits registrations; withdrawals are never held back",
    ),
    later(
        "services.*.load_test_concurrency",
        Kind::Any,
        "the service is registered once",
    ),
    later(
        "services.*.ttl_seconds",
        Kind::Any,
        "nodes are ephemeral and verified every 60 s",
    ),
    later(
        "services.*.max_repeated_report_failures",
        Kind::Any,
        "a registration that fails is retried until it succeeds",
    ),
    later(
        "services.*.name",
        Kind::Any,
        "the name is the service's key",
    ),
    later(
        "services.*.instance_id",
        Kind::Any,
        "the top level's `instance_id` is used",
    ),
    later(
        "services.*.zk_cluster_name",
        Kind::Any,
        "the ensemble is known by its `zk_hosts`",
    ),
    later(
        "services.*.etcd_host",
        Kind::Any,
        "only ZooKeeper is a registry",
    ),
    later(
        "services.*.etcd_port",
        Kind::Any,
        "only ZooKeeper is a registry",
    ),
    later(
        "services.*.etcd_path",
        Kind::Any,
        "only ZooKeeper is a registry",
    ),
];
