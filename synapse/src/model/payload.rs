//! A znode's payload in JSON: text where it is UTF-8 (nearly always), else base64. No byte is lost.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Data of a child, as the snapshot holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payload(
    /// The bytes.
    pub Arc<[u8]>,
);

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Form<T> {
    Text(T),
    Bytes { base64: String },
}

impl Serialize for Payload {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(&self.0) {
            Ok(text) => Form::Text(text),
            Err(_) => Form::Bytes {
                base64: STANDARD.encode(&self.0),
            },
        }
        .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Payload {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Form::<String>::deserialize(deserializer)? {
            Form::Text(text) => Ok(Self(text.into_bytes().into())),
            Form::Bytes { base64 } => STANDARD
                .decode(base64)
                .map(|bytes| Self(bytes.into()))
                .map_err(serde::de::Error::custom),
        }
    }
}
