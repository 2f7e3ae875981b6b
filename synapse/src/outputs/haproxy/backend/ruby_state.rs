//! The state file of Airbnb's synapse (`state_file_path`): read once at start, so that servers keep the ids they have.
//! Never written. Anything unexpected in it is skipped: it only saves a renumbering.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::config::Service;

/// Ids by backend and server name. Shape of the file (`lib/synapse/config_generator/haproxy.rb`, `HaproxyState`): service
/// name, server name, `haproxy_server_id`.
#[must_use]
pub fn ids(text: &[u8], services: &[Service]) -> BTreeMap<String, BTreeMap<String, u32>> {
    let Ok(Value::Object(state)) = serde_json::from_slice(text) else {
        return BTreeMap::new();
    };
    let of_service = |service: &Service| {
        let backend = service.haproxy.as_ref()?.backend_name.clone();
        let id = |server: &Value| u32::try_from(server.get("haproxy_server_id")?.as_u64()?).ok();
        let servers = state.get(&service.name)?.as_object()?.iter();
        Some((
            backend,
            servers
                .filter_map(|(name, server)| Some((name.clone(), id(server)?)))
                .collect(),
        ))
    };
    services.iter().filter_map(of_service).collect()
}
