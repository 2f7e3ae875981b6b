//! `synapse check` and `synapse render`: what would stand in haproxy.cfg, without a registry and without a change. Of the
//! network only the resolver is asked, for default servers.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::net::{IpAddr, ToSocketAddrs as _};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use smartstack_common::config::may_be_secret;
use smartstack_common::process::machine_id;
use smartstack_common::report::Chain;
use tokio::time::Instant;

use crate::config::{Config, Reload};
use crate::model::server::Rejected;
use crate::model::source::SourceKey;
use crate::outputs::haproxy::backend::circles::Circles;
use crate::outputs::haproxy::backend::{self, Backend};
use crate::outputs::haproxy::file::{Assembly, EffectiveCache, Piece, assemble};
use crate::outputs::haproxy::host::{host_name, own_addresses};
use crate::outputs::haproxy::process::binary;
use crate::outputs::haproxy::process::{Checker, Complaint, Verdict};
use crate::outputs::haproxy::render::{RenderError, Renderer};
use crate::outputs::haproxy::version::Version;
use crate::snapshot::{self, Snapshot};
use crate::sources::names::{in_order, is_name};
use crate::wanted::guard::Clock;
use crate::wanted::intake::{Intake, Unknown};
use crate::wanted::service::{State, World, held};

/// So many of haproxy's warnings are shown.
const WARNINGS: usize = 20;
/// How long the names of default servers are looked up.
const LOOK_UP: Duration = Duration::from_secs(2);
/// Entries whose names are looked up, each by a thread.
const NAMES: usize = 256;

/// What `check` finds beyond the loader.
#[derive(Debug, Default)]
pub struct Problems {
    /// The configuration would not work.
    pub errors: Vec<String>,
    /// It would, but.
    pub warnings: Vec<String>,
}

/// The file for the current snapshot, or for the default servers when there is none; and what it lacks of the
/// configuration's servers, in words.
///
/// # Errors
/// The first template that fails.
pub async fn render(config: &Config) -> Result<(Assembly, Vec<String>), RenderError> {
    let version = binary::installed(&config.haproxy.binary).await;
    let renderer = Renderer::fitting(config, version)?;
    let mut left_out = Vec::new();
    let pieces = pieces(config, &renderer, &mut left_out)
        .into_iter()
        .collect::<Result<Vec<Piece>, _>>()?;
    let assembly = assemble(
        &renderer,
        &pieces.iter().collect::<Vec<_>>(),
        &mut EffectiveCache::default(),
    )?;
    Ok((assembly, left_out))
}

/// The services as they would be rendered. Default servers that cannot be used are added to `left_out`.
fn pieces(
    config: &Config,
    renderer: &Renderer,
    left_out: &mut Vec<String>,
) -> Vec<Result<Piece, RenderError>> {
    let snapshot = snapshot::peek(&config.snapshot_path, &machine_id()).unwrap_or_default();
    let clock = Clock::new();
    let found = look_up(config, &snapshot);
    let world = World {
        resolved: &|host: &str| resolve(&snapshot, host).or_else(|| found.get(host).copied()),
        awaited: &|_| false,
        circles: &RefCell::new(Circles::of_config(config, renderer, own_addresses())),
    };
    let table = backend::World {
        named: &[renderer.named()],
        operator_maint: &BTreeMap::new(),
        refused_options: &BTreeMap::new(),
        live: &|_| None,
        looks: 0,
        host: &host_name(),
    };
    let rendered = config
        .services
        .iter()
        .filter(|service| service.haproxy.is_some());
    rendered
        .map(|service| {
            let mut state = State::new(
                Arc::new(service.clone()),
                held(&snapshot, service),
                Intake::new(service, &snapshot, &clock, Clock::now()),
            );
            let view = |key: &SourceKey| snapshot.view(key);
            let taken = state
                .intake
                .take(&view, config.max_stale, &Unknown, Clock::now());
            let ids = service
                .backend()
                .and_then(|backend| snapshot.ids.get(backend));
            let mut known = ids.cloned().unwrap_or_default();
            state.assess(config, &world, taken);
            let mut backend = Backend::new(Arc::clone(&state.service));
            backend.take(state.servers(), config, &table, &mut known);
            let rejected = state.desired.iter().flat_map(|desired| &desired.rejected);
            let own = rejected.filter(|rejected| rejected.znode.starts_with("default_servers["));
            left_out.extend(own.map(|rejected| {
                let Rejected { znode, reason } = rejected;
                format!("services.{}.{znode} is left out: {reason}", service.name)
            }));
            Piece::render(renderer, &state.service, &backend.servers)
        })
        .collect()
}

/// The names of default servers that the snapshot does not know, as far as they resolve soon enough. The registry's names
/// are not looked up: there may be thousands.
fn look_up(config: &Config, snapshot: &Snapshot) -> BTreeMap<String, IpAddr> {
    let servers = config.services.iter().flat_map(|s| &s.default_servers);
    let names: BTreeSet<String> = servers
        .map(|server| server.host.clone())
        .filter(|host| is_name(host) && resolve(snapshot, host).is_none())
        .take(NAMES)
        .collect();
    let (sender, receiver) = mpsc::channel();
    for name in names {
        let sender = sender.clone();
        // One that hangs ends with the program.
        let _unwatched = std::thread::spawn(move || {
            let found = (name.as_str(), 0).to_socket_addrs();
            let found = found.map(|found| in_order(found.map(|address| address.ip())));
            let first = found.ok().and_then(|found| found.first().copied());
            sender.send((name, first)).is_ok()
        });
    }
    drop(sender);
    let end = Instant::now() + LOOK_UP;
    let next = || {
        receiver
            .recv_timeout(end.saturating_duration_since(Instant::now()))
            .ok()
    };
    let answers = std::iter::from_fn(next);
    answers
        .filter_map(|(name, address)| Some((name, address?)))
        .collect()
}

fn resolve(snapshot: &Snapshot, host: &str) -> Option<IpAddr> {
    snapshot.resolved.get(host)?.first().copied()
}

/// Renders everything and asks haproxy. Every service whose template fails is named.
pub async fn check(config: &Config) -> Problems {
    let mut problems = Problems::default();
    let version = binary::installed(&config.haproxy.binary).await;
    let old = version.into_iter().flat_map(Version::lacks);
    problems.warnings.extend(old);
    let renderer = match Renderer::fitting(config, version) {
        Ok(renderer) => renderer,
        Err(error) => {
            problems.errors.push(Chain(&error).to_string());
            return problems;
        }
    };
    problems.warnings.extend(renderer.check_variables());
    problems.warnings.extend(renderer.frontend_remarks(config));
    let missing = renderer.missing_hitless();
    problems.warnings.extend(missing.iter().map(|line| {
        format!(
            "`{line}` is missing, and `haproxy.hitless_defaults` is false: reloads lose requests"
        )
    }));
    let mut good = Vec::new();
    for piece in pieces(config, &renderer, &mut problems.warnings) {
        match piece {
            Ok(piece) => good.push(piece),
            Err(error) => problems.errors.push(Chain(&error).to_string()),
        }
    }
    match assemble(
        &renderer,
        &good.iter().collect::<Vec<_>>(),
        &mut EffectiveCache::default(),
    ) {
        Ok(assembly) => ask(config, &assembly, &mut problems).await,
        Err(error) => problems.errors.push(Chain(&error).to_string()),
    }
    problems
}

async fn ask(config: &Config, assembly: &Assembly, problems: &mut Problems) {
    let haproxy = &config.haproxy;
    let written = tempfile::Builder::new()
        .prefix("haproxy-")
        .suffix(".cfg")
        .tempfile()
        .and_then(|mut file| file.write_all(assembly.text.as_bytes()).map(|()| file));
    let file = match written {
        Ok(file) => file,
        Err(error) => {
            return problems
                .errors
                .push(format!("cannot write a temporary file to check: {error}"));
        }
    };
    let path = file.path().display().to_string();
    let with_line = |complaint: &Complaint| {
        let words = complaint.words.replace(&path, "haproxy.cfg");
        let at = complaint.line.and_then(|line| line.checked_sub(1));
        let line = at
            .and_then(|at| assembly.text.lines().nth(at))
            .map(str::trim);
        match line.filter(|line| !line.is_empty() && !may_be_secret(line)) {
            Some(line) => format!("{words} (the line: `{line}`)"),
            None => words,
        }
    };
    let checker = Checker::Binary(haproxy.binary.clone());
    let verdict = match checker.ask(file.path(), haproxy.reload_timeout).await {
        Ok((verdict, warnings)) => {
            let told = warnings.iter().take(WARNINGS).map(with_line);
            let told = told.map(|words| format!("haproxy warns of what is rendered: {words}"));
            problems.warnings.extend(told);
            let more = warnings.len().saturating_sub(WARNINGS);
            if more > 0 {
                let more = format!("haproxy has {more} more warnings");
                problems.warnings.push(more);
            }
            Ok(verdict)
        }
        Err(error) => Err(error),
    };
    let supervised = haproxy.reload == Reload::Supervise;
    match verdict.map(|v| if supervised { v } else { v.of_another_user() }) {
        Ok(Verdict::Valid) => {}
        Ok(Verdict::NoListener) => problems
            .errors
            .push("haproxy would not start: no frontend listens anywhere".to_owned()),
        Ok(Verdict::Unknown(complaints)) => problems.warnings.push(format!(
            "haproxy cannot be asked as this user, who may not read what it names: {}",
            complaints.summary()
        )),
        Ok(Verdict::Refused(complaints)) => {
            let alerts = complaints.alerts.iter().map(with_line);
            let before = problems.errors.len();
            problems
                .errors
                .extend(alerts.map(|words| format!("haproxy refuses what is rendered: {words}")));
            if problems.errors.len() == before {
                problems.errors.push(format!(
                    "haproxy refuses what is rendered: {}",
                    complaints.summary()
                ));
            }
        }
        Err(error) => problems.errors.push(Chain(&error).to_string()),
    }
}
