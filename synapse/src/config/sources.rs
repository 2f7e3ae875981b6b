//! The sources of a service, as configured.

use super::{Decode, Discovery, LabelFilter, Service};
use crate::model::source::SourceKey;

/// One source of a service, as configured.
#[derive(Debug, Clone, PartialEq)]
pub struct Watched {
    /// Its name among several; empty for the only one.
    pub name: String,
    /// Which.
    pub key: SourceKey,
    /// How its payloads are read.
    pub decode: Decode,
    /// What its own servers must have, where there are several sources.
    pub label_filters: Vec<LabelFilter>,
}

/// The sources of a service, in order.
#[must_use]
pub fn watched(service: &Service) -> Vec<Watched> {
    match &service.discovery {
        Discovery::Base => Vec::new(),
        Discovery::Zookeeper {
            ensemble,
            path,
            decode,
        } => vec![Watched {
            name: String::new(),
            key: SourceKey {
                ensemble: ensemble.clone(),
                path: path.clone(),
            },
            decode: decode.clone(),
            label_filters: Vec::new(),
        }],
        Discovery::Multi(multi) => multi
            .watchers
            .iter()
            .map(|w| Watched {
                name: w.name.clone(),
                key: SourceKey {
                    ensemble: w.ensemble.clone(),
                    path: w.path.clone(),
                },
                decode: w.decode.clone(),
                label_filters: w.label_filters.clone(),
            })
            .collect(),
    }
}

/// The sources of a service as one text, `None` without any.
#[must_use]
pub fn source_text(service: &Service) -> Option<String> {
    let keys: Vec<String> = watched(service).iter().map(|w| w.key.to_string()).collect();
    (!keys.is_empty()).then(|| keys.join(" "))
}

/// How the funnel reads what the intake passes: several sources are brought into one form.
#[must_use]
pub fn decode(discovery: &Discovery) -> &Decode {
    match discovery {
        Discovery::Zookeeper { decode, .. } => decode,
        Discovery::Base | Discovery::Multi(_) => &Decode::Nerve,
    }
}
