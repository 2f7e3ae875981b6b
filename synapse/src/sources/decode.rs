//! From a child znode (name and data) to an [`Instance`], or the reason why there is none.
//!
//! Pure. Knows the three encodings in use (nerve's JSON, Finagle's serversets, payloads in the znode's name) and
//! nothing of haproxy: whether an instance may be rendered is decided by [`crate::wanted::gate`]. Called by
//! [`crate::wanted::funnel`]. Facts: `lib/synapse/service_watcher/zookeeper/zookeeper.rb` of Airbnb's synapse 0.18.9.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_PAD_INDIFFERENT;
use serde_json::{Value, json};
use smartstack_common::instance::Instance;
use smartstack_common::sequence;

use crate::config::Decode;

/// Reads a child znode. A payload in the name wins over the data, as in Ruby; one that cannot be decoded there falls
/// back to the data. Withdrawn instances are returned with `available: false`.
///
/// # Errors
/// The reason in words, with at most a short, escaped piece of the data.
pub fn child(znode: &str, data: &[u8], decode: &Decode) -> Result<Instance, String> {
    let in_name = match path_encoded(znode) {
        None => None,
        Some(Ok(value)) => return Instance::from_value(&value),
        Some(Err(problem)) => Some(problem),
    };
    let read = match decode {
        Decode::Nerve => Instance::parse(data),
        Decode::Serverset { endpoint_name } => serverset(data, endpoint_name.as_deref()),
    };
    match in_name {
        None => read,
        Some(problem) => {
            read.map_err(|reason| format!("payload in the name: {problem}; data: {reason}"))
        }
    }
}

/// The id of a znode, in the order of creation: ZooKeeper's number after the last `_` of its name (the whole name without
/// one), or any other digits, as other tools write them. `None` when it is neither.
#[must_use]
pub fn sequence(znode: &str) -> Option<u64> {
    let digits = znode.rsplit_once('_').map_or(znode, |(_, tail)| tail);
    if let Some(number) = sequence::parse(digits) {
        return Some(number.into());
    }
    digits
        .bytes()
        .all(|b| b.is_ascii_digit())
        .then(|| digits.parse().ok())
        .flatten()
}

/// `base64_<length>_<url-safe base64 of the JSON payload>_<sequence>`, nerve's `use_path_encoding`.
/// `None`: the name is not of that form at all.
fn path_encoded(znode: &str) -> Option<Result<Value, String>> {
    let rest = znode.strip_prefix("base64_")?;
    Some(decode_name(rest))
}

fn decode_name(rest: &str) -> Result<Value, String> {
    let (length, text) = rest.split_once('_').ok_or("no length")?;
    let length: usize = length.parse().map_err(|_| "no length")?;
    let encoded = text.get(..length).ok_or("shorter than its length says")?;
    // nerve pads, others do not: both are read.
    let bytes = URL_SAFE_PAD_INDIFFERENT
        .decode(encoded)
        .map_err(|e| format!("not base64: {e}"))?;
    serde_json::from_slice(&bytes).map_err(|e| format!("not JSON: {e}"))
}

/// A serverset member: `serviceEndpoint`, or one of `additionalEndpoints`. Its name is the shard. A member whose
/// status is given and not `ALIVE` is withdrawn (Ruby uses dead members).
fn serverset(data: &[u8], endpoint_name: Option<&str>) -> Result<Instance, String> {
    if data.is_empty() {
        return Err("empty data".to_owned());
    }
    let member: Value = serde_json::from_slice(data).map_err(|e| format!("not JSON: {e}"))?;
    let endpoint = match endpoint_name {
        None => member
            .get("serviceEndpoint")
            .ok_or("no `serviceEndpoint`")?,
        Some(name) => member
            .get("additionalEndpoints")
            .and_then(|endpoints| endpoints.get(name))
            .ok_or_else(|| format!("no `{name}` in `additionalEndpoints`"))?,
    };
    let field = |name: &str| endpoint.get(name).cloned();
    let mut value = json!({ "name": member.get("shard") });
    for name in ["host", "port"] {
        if let Some(found) = field(name) {
            value[name] = found;
        }
    }
    let mut instance = Instance::from_value(&value)?;
    instance.available = match member.get("status") {
        None | Some(Value::Null) => true,
        Some(status) => status == "ALIVE",
    };
    Ok(instance)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn nerve(znode: &str, data: &str) -> Result<Instance, String> {
        child(znode, data.as_bytes(), &Decode::Nerve)
    }

    fn encoded(payload: &str) -> String {
        let text = base64::engine::general_purpose::URL_SAFE.encode(payload);
        format!("base64_{}_{text}_0000000007", text.len())
    }

    #[test]
    fn sequence_is_the_digits_after_the_last_underscore() {
        for (znode, id) in [
            ("i-1_0000000007", Some(7)),
            ("0000000007", Some(7)),
            ("a_b_12", Some(12)),
            ("a", None),
            ("a_", None),
            ("a_07b", None),
            ("a_-1", None),
            ("a_2147483647", Some(2_147_483_647)),
            ("a_-2147483648", Some(2_147_483_648)),
            ("a_-000000001", Some(4_294_967_295)),
            ("a_99999999999999999999999", None),
        ] {
            assert_eq!(sequence(znode), id, "{znode}");
        }
    }

    #[test]
    fn payload_in_the_name_is_read_and_checked_like_any_other() {
        let good = encoded(r#"{"host":"10.0.0.1","port":80,"name":"ü?>"}"#);
        assert_eq!(nerve(&good, "").unwrap().host, "10.0.0.1");
        assert!(!nerve(&good, "").unwrap().announces);
        let marked = encoded(r#"{"host":"10.0.0.1","port":80,"announces":true}"#);
        assert!(nerve(&marked, "").unwrap().announces);
        assert_eq!(
            nerve(&good, r#"{"host":"10.0.0.2","port":80}"#)
                .unwrap()
                .host,
            "10.0.0.1",
            "the name wins"
        );
        let unpadded = good.replace('=', "");
        assert_ne!(
            nerve(&unpadded, ""),
            nerve(&good, ""),
            "its length is then wrong"
        );
        let error = nerve(
            &encoded(r#"{"host":null,"port":80}"#),
            r#"{"host":"10.0.0.2","port":80}"#,
        )
        .unwrap_err();
        assert!(error.starts_with("`host` is `null`"), "{error}");
    }

    #[test]
    fn undecodable_name_falls_back_to_the_data() {
        for znode in [
            "base64_",
            "base64_x_1",
            "base64_99_YQ_1",
            "base64_4_!!!!_1",
            "base64_4_e30x_1",
            "base64_2_é_1",
        ] {
            assert_eq!(
                nerve(znode, r#"{"host":"h","port":1}"#).unwrap().host,
                "h",
                "{znode}"
            );
            let error = nerve(znode, "").unwrap_err();
            assert!(
                error.contains("payload in the name") && error.contains("empty data"),
                "{error}"
            );
        }
    }

    #[test]
    fn serversets() {
        let data = r#"{"serviceEndpoint":{"host":"10.0.0.1","port":80},"shard":3,"status":"ALIVE",
            "additionalEndpoints":{"admin":{"host":"10.0.0.1","port":81}}}"#;
        let read = |data: &str, endpoint: Option<&str>| {
            child(
                "member_1",
                data.as_bytes(),
                &Decode::Serverset {
                    endpoint_name: endpoint.map(str::to_owned),
                },
            )
        };
        let member = read(data, None).unwrap();
        assert_eq!(
            (member.port, member.name.as_deref(), member.available),
            (80, Some("3"), true)
        );
        assert_eq!(read(data, Some("admin")).unwrap().port, 81);
        assert!(read(data, Some("nope")).unwrap_err().contains("no `nope`"));
        assert!(
            !read(&data.replace("ALIVE", "DEAD"), None)
                .unwrap()
                .available
        );
        assert!(
            read(r#"{"serviceEndpoint":{"host":"h","port":1}}"#, None)
                .unwrap()
                .available
        );
        for bad in [
            "",
            "null",
            "[]",
            "3",
            "{}",
            r#"{"serviceEndpoint":7}"#,
            r#"{"serviceEndpoint":{"host":"h"}}"#,
        ] {
            assert!(read(bad, None).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_name_and_data_are_read_or_refused(znode in "(base64_)?[0-9]{0,3}_?.{0,40}", data: Vec<u8>) {
            for decode in [Decode::Nerve, Decode::Serverset { endpoint_name: None }] {
                if let Err(reason) = child(&znode, &data, &decode) {
                    prop_assert!(!reason.is_empty());
                }
            }
        }
    }
}
