//! `synapse check` and `synapse render`: what would stand in haproxy.cfg, without a network and without a change.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use smartstack_common::config::may_be_secret;
use smartstack_common::process::machine_id;
use smartstack_common::report::Chain;

use crate::assembly::{Assembly, EffectiveCache, Piece, assemble};
use crate::config::{Config, Reload};
use crate::guard::Clock;
use crate::haproxy::{Checker, Verdict};
use crate::intake::{Intake, Unknown};
use crate::render::{RenderError, Renderer};
use crate::services::{State, World};
use crate::snapshot::{self, Snapshot};
use crate::source::SourceKey;

/// What `check` finds beyond the loader.
#[derive(Debug, Default)]
pub struct Problems {
    /// The configuration would not work.
    pub errors: Vec<String>,
    /// It would, but.
    pub warnings: Vec<String>,
}

/// The file for the current snapshot, or for the default servers when there is none.
///
/// # Errors
/// The first template that fails.
pub fn render(config: &Config) -> Result<Assembly, RenderError> {
    let renderer = Renderer::new(config)?;
    let pieces = pieces(config, &renderer)
        .into_iter()
        .collect::<Result<Vec<Piece>, _>>()?;
    assemble(
        &renderer,
        &pieces.iter().collect::<Vec<_>>(),
        &mut EffectiveCache::default(),
    )
}

fn pieces(config: &Config, renderer: &Renderer) -> Vec<Result<Piece, RenderError>> {
    let snapshot = snapshot::peek(&config.snapshot_path, &machine_id()).unwrap_or_default();
    let clock = Clock::new();
    let world = World {
        resolved: &|host: &str| resolve(&snapshot, host),
        operator_maint: &BTreeMap::new(),
        refused_options: &BTreeMap::new(),
        live: &|_| None,
        looks: 0,
        host: &crate::reconciler::host_name(),
    };
    let rendered = config
        .services
        .iter()
        .filter(|service| service.haproxy.is_some());
    rendered
        .map(|service| {
            let mut state = State::new(
                Arc::new(service.clone()),
                crate::reconciler::held(&snapshot, service),
                Intake::new(service, &snapshot, &clock),
            );
            let view = |key: &SourceKey| snapshot.view(key);
            let now = (clock.now(), SystemTime::now());
            let taken = state.intake.take(&view, config.max_stale, &Unknown, now);
            let ids = state
                .backend()
                .and_then(|backend| snapshot.ids.get(backend));
            let mut known = ids.cloned().unwrap_or_default();
            state.assess(config, &world, taken, &mut known);
            Piece::render(renderer, &state.service, &state.servers)
        })
        .collect()
}

fn resolve(snapshot: &Snapshot, host: &str) -> Option<IpAddr> {
    snapshot.resolved.get(host)?.first().copied()
}

/// Renders everything and asks haproxy. Every service whose template fails is named.
pub async fn check(config: &Config) -> Problems {
    let mut problems = Problems::default();
    let renderer = match Renderer::new(config) {
        Ok(renderer) => renderer,
        Err(error) => {
            problems.errors.push(Chain(&error).to_string());
            return problems;
        }
    };
    problems.warnings.extend(renderer.check_variables());
    let missing = renderer.missing_hitless();
    problems.warnings.extend(missing.iter().map(|line| {
        format!(
            "`{line}` is missing, and `haproxy.hitless_defaults` is false: reloads lose requests"
        )
    }));
    let mut good = Vec::new();
    for piece in pieces(config, &renderer) {
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
    let verdict = Checker::Binary(haproxy.binary.clone())
        .check(file.path(), haproxy.reload_timeout)
        .await;
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
            let path = file.path().display().to_string();
            let alerts = complaints.alerts.iter().map(|alert| {
                let words = alert.words.replace(&path, "haproxy.cfg");
                let at = alert.line.and_then(|line| line.checked_sub(1));
                let line = at
                    .and_then(|at| assembly.text.lines().nth(at))
                    .map(str::trim);
                match line.filter(|line| !line.is_empty() && !may_be_secret(line)) {
                    Some(line) => format!("{words} (the line: `{line}`)"),
                    None => words,
                }
            });
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
