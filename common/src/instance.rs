//! The znode payload: JSON that Airbnb's nerve writes and its synapse reads, and ours alike.
//!
//! Written (`lib/nerve/reporter/base.rb`, measured bytes): no white space, keys in the order of [`Payload`]'s fields,
//! optional keys only when configured; then one key of our own, `announces`, which Ruby's synapse ignores. Read tolerantly:
//! unknown keys are ignored, a port may be a number or digits.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What nerve publishes for one service of this host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Payload {
    /// Advertised address, as configured.
    pub host: String,
    /// Advertised port with the type it was configured with (`3000` or `"3000"`).
    pub port: Value,
    /// `instance_id`.
    pub name: String,
    /// Only if configured; 0 is written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<u64>,
    /// Copied verbatim, only if configured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub haproxy_server_options: Option<Value>,
    /// Copied verbatim, only if configured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<Value>,
    /// Whoever registers this withdraws it with a word ([`withdrawn`]), so that a node that is gone without one is a loss.
    /// Always true here, and always last.
    #[serde(default)]
    pub announces: bool,
}

impl Payload {
    /// The bytes of the znode.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a struct of strings and JSON values always serialises")
    }
}

/// The payload of a node that is about to be withdrawn on purpose: its own, with `"available": false` (go-nerve's key) and
/// `"reason"`. Written in the same transaction as the deletion, it tells consumers that the removal is no loss. A payload
/// that is no JSON object counts as an empty one.
#[must_use]
pub fn withdrawn(payload: &[u8], reason: &str) -> Vec<u8> {
    let mut map: serde_json::Map<String, Value> =
        serde_json::from_slice(payload).unwrap_or_default();
    map.insert("available".to_owned(), Value::Bool(false));
    map.insert("reason".to_owned(), Value::String(reason.to_owned()));
    Value::Object(map).to_string().into_bytes()
}

/// What synapse needs of a payload. Names and options are *not* validated here: that is the renderer's gate.
#[derive(Debug, Clone, PartialEq)]
pub struct Instance {
    /// Address or name, non-empty, as published.
    pub host: String,
    /// 1..65535.
    pub port: u16,
    /// Non-empty name, if any.
    pub name: Option<String>,
    /// 0..=256 when it is an integer in that range; see `weight_problem` otherwise.
    pub weight: Option<u16>,
    /// Why a present weight was not taken: the weight only is dropped, not the instance.
    pub weight_problem: Option<String>,
    /// Text of `haproxy_server_options`, if it is non-empty text.
    pub haproxy_server_options: Option<String>,
    /// The labels map, empty when absent or null.
    pub labels: BTreeMap<String, Value>,
    /// go-nerve's key: `false` means withdrawn.
    pub available: bool,
    /// Its registrar says a word before it withdraws it: see [`Payload::announces`]. Ruby's nerve cannot.
    pub announces: bool,
}

impl Instance {
    /// Reads nerve's payload.
    ///
    /// # Errors
    /// The reason in words: not JSON, not an object, `host` or `port` missing or not usable. The reason quotes at most a
    /// short, escaped piece of the data.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        if bytes.is_empty() {
            return Err("empty data".to_owned());
        }
        let value: Value = serde_json::from_slice(bytes).map_err(|e| format!("not JSON: {e}"))?;
        Self::from_value(&value)
    }

    /// Reads nerve's payload from parsed JSON.
    ///
    /// # Errors
    /// As [`Instance::parse`].
    pub fn from_value(value: &Value) -> Result<Self, String> {
        let Value::Object(map) = value else {
            return Err(format!(
                "a JSON {} where an object with `host` and `port` is needed",
                kind(value)
            ));
        };
        let host = match map.get("host") {
            Some(Value::String(host)) if !host.is_empty() => host.clone(),
            None => return Err("no `host`".to_owned()),
            Some(other) => return Err(format!("`host` is {}, not a non-empty text", short(other))),
        };
        let port = parse_port(map.get("port"))?;
        let name = match map.get("name") {
            None | Some(Value::Null) => None,
            Some(Value::String(name)) if name.is_empty() => None,
            Some(Value::String(name)) => Some(name.clone()),
            Some(Value::Number(number)) => Some(number.to_string()),
            Some(other) => return Err(format!("`name` is {}, not text", short(other))),
        };
        let (weight, weight_problem) = match map.get("weight") {
            None | Some(Value::Null) => (None, None),
            Some(value) => match value
                .as_u64()
                .and_then(|w| u16::try_from(w).ok())
                .filter(|w| *w <= 256)
            {
                Some(weight) => (Some(weight), None),
                None => (
                    None,
                    Some(format!(
                        "`weight` is {}, not an integer of 0..256",
                        short(value)
                    )),
                ),
            },
        };
        let haproxy_server_options = match map.get("haproxy_server_options") {
            None | Some(Value::Null) => None,
            Some(Value::String(text)) if text.trim().is_empty() => None,
            Some(Value::String(text)) => Some(text.clone()),
            // It may say how to connect: a server without it could be another one.
            Some(other) => {
                let found = short(other);
                return Err(format!("`haproxy_server_options` is {found}, not text"));
            }
        };
        let labels = match map.get("labels") {
            Some(Value::Object(labels)) => {
                labels.iter().map(|(k, v)| (k.clone(), v.clone())).collect()
            }
            _ => BTreeMap::new(),
        };
        let available = map.get("available") != Some(&Value::Bool(false));
        let announces = map.get("announces") == Some(&Value::Bool(true));
        Ok(Self {
            host,
            port,
            name,
            weight,
            weight_problem,
            haproxy_server_options,
            labels,
            available,
            announces,
        })
    }
}

/// A port of 1..65535 from a JSON number or digits.
///
/// # Errors
/// The reason in words.
pub fn parse_port(value: Option<&Value>) -> Result<u16, String> {
    let number = match value {
        None => return Err("no `port`".to_owned()),
        Some(Value::Number(number)) => number.as_u64(),
        Some(Value::String(text)) if text.bytes().all(|b| b.is_ascii_digit()) => text.parse().ok(),
        Some(_) => None,
    };
    number
        .and_then(|n| u16::try_from(n).ok())
        .filter(|n| *n > 0)
        .ok_or_else(|| {
            format!(
                "`port` is {}, not 1..65535",
                short(value.unwrap_or(&Value::Null))
            )
        })
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "text",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// The value as JSON, cut at 40 characters: registry data must not flood a log.
fn short(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(40) {
        Some((at, _)) => format!("`{}…`", &text[..at]),
        None => format!("`{text}`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_withdrawn_payload_keeps_its_keys() {
        let text = |payload: &[u8]| String::from_utf8(withdrawn(payload, "drained")).unwrap();
        assert_eq!(
            text(br#"{"host":"a","port":1,"name":"i"}"#),
            r#"{"host":"a","port":1,"name":"i","available":false,"reason":"drained"}"#
        );
        assert_eq!(text(b"\xff"), r#"{"available":false,"reason":"drained"}"#);
        let marked = text(br#"{"host":"a","port":"1","available":true}"#);
        assert!(!Instance::parse(marked.as_bytes()).unwrap().available);
    }

    /// The bytes measured on Ruby nerve (key order, omission, types), and the one key of ours behind them.
    #[test]
    fn bytes_are_rubys_and_one_key_more() {
        let payload = Payload {
            host: "10.0.0.12".to_owned(),
            port: Value::from(3000),
            name: "i-0a1b2c3d".to_owned(),
            weight: Some(2),
            haproxy_server_options: Some(Value::from("backup")),
            labels: Some(serde_json::json!({"az": "us-east-1a"})),
            announces: true,
        };
        assert_eq!(
            String::from_utf8(payload.to_bytes()).unwrap(),
            r#"{"host":"10.0.0.12","port":3000,"name":"i-0a1b2c3d","weight":2,"haproxy_server_options":"backup","labels":{"az":"us-east-1a"},"announces":true}"#
        );
        let bare = Payload {
            weight: None,
            haproxy_server_options: None,
            labels: None,
            port: Value::from("3000"),
            ..payload
        };
        assert_eq!(
            String::from_utf8(bare.to_bytes()).unwrap(),
            r#"{"host":"10.0.0.12","port":"3000","name":"i-0a1b2c3d","announces":true}"#
        );
    }

    #[test]
    fn only_true_announces() {
        for (more, announces) in [
            (r#","announces":true"#, true),
            (
                r#","announces":true,"available":false,"reason":"drained""#,
                true,
            ),
            ("", false),
            (r#","announces":false"#, false),
            (r#","announces":null"#, false),
            (r#","announces":"true""#, false),
            (r#","announces":1"#, false),
        ] {
            let payload = format!(r#"{{"host":"a","port":1{more}}}"#);
            let instance = Instance::parse(payload.as_bytes()).unwrap();
            assert_eq!(instance.announces, announces, "{payload}");
        }
    }

    #[test]
    fn refusals_name_the_reason() {
        for (data, reason) in [
            ("", "empty data"),
            ("null", "a JSON null where"),
            ("[1]", "a JSON array where"),
            ("{\"port\":1}", "no `host`"),
            ("{\"host\":\"a\"}", "no `port`"),
            ("{\"host\":\"\",\"port\":1}", "`host` is `\"\"`"),
            ("{\"host\":null,\"port\":1}", "`host` is `null`"),
            ("{\"host\":\"a\",\"port\":0}", "`port` is `0`"),
            ("{\"host\":\"a\",\"port\":-1}", "`port` is `-1`"),
            ("{\"host\":\"a\",\"port\":99999}", "`port` is `99999`"),
            ("{\"host\":\"a\",\"port\":\"abc\"}", "`port` is `\"abc\"`"),
            ("10.0.0.1:80", "not JSON"),
            (
                r#"{"host":"a","port":1,"haproxy_server_options":["ssl"]}"#,
                "`haproxy_server_options` is `[\"ssl\"]`",
            ),
        ] {
            let error = Instance::parse(data.as_bytes()).unwrap_err();
            assert!(error.starts_with(reason), "{data}: {error}");
        }
        let bad_weight = Instance::parse(br#"{"host":"a","port":1,"weight":"300"}"#).unwrap();
        assert_eq!(bad_weight.weight, None);
        assert!(bad_weight.weight_problem.is_some());
    }

    proptest! {
        #[test]
        fn what_nerve_writes_synapse_reads(
            host in "[a-z0-9.:-]{1,40}", port in 1u16.., as_text: bool, name in ".{1,30}",
            weight in proptest::option::of(0u64..=256), options in proptest::option::of("[a-z ]{0,20}[a-z]"),
            labels in proptest::option::of(proptest::collection::btree_map(".{0,8}", ".{0,8}", 0..4)),
        ) {
            let payload = Payload {
                host: host.clone(),
                port: if as_text { Value::from(port.to_string()) } else { Value::from(port) },
                name: name.clone(),
                weight,
                haproxy_server_options: options.clone().map(Value::from),
                labels: labels.clone().map(|l| l.into_iter().map(|(k, v)| (k, Value::from(v))).collect::<serde_json::Map<_, _>>().into()),
                announces: true,
            };
            let again: Payload = serde_json::from_slice(&payload.to_bytes()).unwrap();
            prop_assert_eq!(&again, &payload);
            let read = Instance::parse(&payload.to_bytes()).unwrap();
            prop_assert_eq!(read.host, host);
            prop_assert_eq!(read.port, port);
            prop_assert_eq!(read.name, Some(name));
            prop_assert_eq!(read.weight.map(u64::from), weight);
            prop_assert_eq!(read.haproxy_server_options, options);
            prop_assert_eq!(read.labels.len(), labels.unwrap_or_default().len());
            prop_assert!(read.available && read.announces);
        }

        #[test]
        fn any_bytes_are_read_or_refused(data in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(instance) = Instance::parse(&data) {
                prop_assert!(!instance.host.is_empty() && instance.port > 0);
            }
        }
    }
}
