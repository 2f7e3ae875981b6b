//! Names of the znodes nerve writes, and which existing ones claim to be ours. Pure.
//!
//! As Ruby writes them (`lib/nerve/reporter/zookeeper.rb`): `<instance_id>_` or, path encoded,
//! `base64_<length>_<payload>_`, followed by ten digits for sequential nodes and by nothing for the others. Names are
//! recognised by their exact form, never by a prefix alone: `web_` must not claim `web_2_0000000001`.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE;
use serde_json::Value;
use smartstack_common::instance::Payload;
use smartstack_common::sequence;

use crate::config::{NodeType, Place, Service};

/// Beyond this much base64 Ruby falls back to the plain name, and so do we. The payload is ours: with `announces` it is 17
/// bytes longer, so that 49,136 to 49,152 bytes of Ruby's payload give a plain name here, which every reader takes as well.
const MAX_ENCODED: usize = 65536;

/// What one service wants to stand at one place in ZooKeeper.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Registration {
    /// The ensemble's connect string, without chroot: one session serves all paths of it.
    pub(crate) hosts: String,
    /// Parent znode as the servers know it, with chroot.
    pub(crate) path: String,
    /// Whose name the node carries.
    pub(crate) instance_id: String,
    /// How the node's name begins, with the underscore at its end.
    pub(crate) prefix: String,
    /// Sequential or fixed name.
    pub(crate) node_type: NodeType,
    /// The node's bytes.
    pub(crate) payload: Vec<u8>,
}

impl Registration {
    /// What `service` of the host `instance_id` registers at each of its places.
    #[must_use]
    pub(crate) fn all(service: &Service, instance_id: &str) -> Vec<Self> {
        let payload = Payload {
            host: service.host.clone(),
            port: service.port.clone(),
            name: instance_id.to_owned(),
            weight: service.weight,
            haproxy_server_options: service.haproxy_server_options.clone(),
            labels: service.labels.clone(),
            announces: true,
        }
        .to_bytes();
        let prefix = prefix(
            instance_id,
            service.use_path_encoding.then_some(payload.as_slice()),
        );
        let at = |place: &Place| Self {
            hosts: place.ensemble.hosts().to_owned(),
            path: place.ensemble.absolute(&place.path),
            instance_id: instance_id.to_owned(),
            prefix: prefix.clone(),
            node_type: service.node_type,
            payload: payload.clone(),
        };
        service.places.iter().map(at).collect()
    }

    /// Whether a node of that name and those bytes is what this registration would create.
    #[must_use]
    pub(crate) fn is_met_by(&self, name: &str, data: &[u8]) -> bool {
        let form = match name.strip_prefix(self.prefix.as_str()) {
            Some("") => NodeType::Ephemeral,
            Some(rest) if sequence::parse(rest).is_some() => NodeType::EphemeralSequential,
            _ => return false,
        };
        form == self.node_type && data == self.payload
    }

    /// Whether the bytes advertise the same host and port.
    #[must_use]
    pub(crate) fn has_endpoint_of(&self, data: &[u8]) -> bool {
        endpoint(data).is_some_and(|theirs| endpoint(&self.payload) == Some(theirs))
    }
}

fn prefix(instance_id: &str, encoded_payload: Option<&[u8]>) -> String {
    match encoded_payload.map(|payload| URL_SAFE.encode(payload)) {
        Some(text) if text.len() <= MAX_ENCODED => format!("base64_{}_{text}_", text.len()),
        _ => format!("{instance_id}_"),
    }
}

/// Whether the name has the exact form of a node of `instance_id`, sequential or not, encoded or not.
#[must_use]
pub(crate) fn claims(name: &str, instance_id: &str) -> bool {
    let base = match name.rsplit_once('_') {
        Some((base, "")) => base,
        Some((base, number)) if sequence::parse(number).is_some() => base,
        _ => return false,
    };
    base == instance_id || encoded_name(base).is_some_and(|name| name == instance_id)
}

/// The `name` in the payload of `base64_<length>_<payload>`.
fn encoded_name(base: &str) -> Option<String> {
    let (length, text) = base.strip_prefix("base64_")?.split_once('_')?;
    if length.parse() != Ok(text.len()) {
        return None;
    }
    let value: Value = serde_json::from_slice(&URL_SAFE.decode(text).ok()?).ok()?;
    Some(value.get("name")?.as_str()?.to_owned())
}

fn endpoint(data: &[u8]) -> Option<(Value, String)> {
    let value: Value = serde_json::from_slice(data).ok()?;
    // A port may change its type between number and text without becoming another endpoint.
    let port = match value.get("port")? {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    Some((value.get("host")?.clone(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENCODED: &str =
        "base64_64_eyJob3N0IjoiMTAuMC4wLjEyIiwicG9ydCI6MzAwMCwibmFtZSI6ImktYWJjIn0=_";

    /// The example measured on Ruby nerve.
    #[test]
    fn encodes_as_ruby() {
        assert_eq!(
            prefix(
                "i-abc",
                Some(br#"{"host":"10.0.0.12","port":3000,"name":"i-abc"}"#)
            ),
            ENCODED
        );
        assert_eq!(prefix("i-abc", Some(&[b'x'; MAX_ENCODED])), "i-abc_");
        assert_eq!(prefix("i-abc", None), "i-abc_");
        let most = MAX_ENCODED / 4 * 3;
        assert!(prefix("i-abc", Some(&vec![b'x'; most])).starts_with("base64_65536_"));
        assert_eq!(prefix("i-abc", Some(&vec![b'x'; most + 1])), "i-abc_");
    }

    #[test]
    fn only_the_exact_form_claims() {
        for name in [
            "i-abc_",
            "i-abc_0000000007",
            "i-abc_-2147483648",
            "i-abc_-000000001",
            ENCODED,
            &format!("{ENCODED}0000000000"),
        ] {
            assert!(claims(name, "i-abc"), "{name}");
        }
        for name in [
            "i-abc",
            "i-abc_7",
            "i-abc_00000000007",
            "i-abc_000000000x",
            "i-abc_-0000000001",
            "i-abc_2147483648",
            "i-abc_2_0000000001",
            "i-abc__",
            "xi-abc_0000000001",
            "_0000000001",
            "",
            "i-abd_0000000001",
            &ENCODED.replace("_64_", "_63_"),
            "base64_4_AAAA_0000000001",
            "base64_x_AAAA_0000000001",
        ] {
            assert!(!claims(name, "i-abc"), "{name}");
        }
        assert!(claims("a_1_0000000001", "a_1"), "an underscore in the id");
    }

    #[test]
    fn endpoints_are_compared_by_value() {
        let registration = |payload: &str| Registration {
            hosts: "z:1".to_owned(),
            path: "/s".to_owned(),
            instance_id: "i".to_owned(),
            prefix: "i_".to_owned(),
            node_type: NodeType::EphemeralSequential,
            payload: payload.as_bytes().to_vec(),
        };
        let ours = registration(r#"{"host":"a","port":1,"name":"i"}"#);
        assert!(ours.has_endpoint_of(br#"{"port":"1","host":"a","weight":3}"#));
        assert!(!ours.has_endpoint_of(br#"{"port":2,"host":"a"}"#));
        assert!(!ours.has_endpoint_of(b"garbage"));
        assert!(ours.is_met_by("i_0000000001", &ours.payload));
        assert!(!ours.is_met_by("i_", &ours.payload));
        assert!(!ours.is_met_by("i_0000000001", b"{}"));
    }
}
