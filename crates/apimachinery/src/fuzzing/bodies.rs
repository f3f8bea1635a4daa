//! Bodies: what is read once is read the same again, and checking is done at once.

use serde_json::Value;

use super::sample;
use crate::body::{self, Decoded, Media};
use crate::server::Limits;
use crate::status::{Cause, Status};

/// As deep as the server reads unless it's told otherwise.
fn decode(media: Media, input: &[u8]) -> Result<Decoded, Status> {
    body::decode(media, input, Limits::default().depth)
}

/// JSON, as strict decoding reads it.
pub(super) fn json(input: &[u8]) {
    let plain: Result<Value, _> = serde_json::from_slice(input);
    let read = decode(Media::Json, input);
    let Ok(decoded) = read else {
        return;
    };
    if !input.is_empty() {
        let plain = plain.expect("what we read is JSON");
        assert_eq!(plain, decoded.value, "another JSON reader reads the same");
    }
    again(&decoded.value, Media::Json, &decoded.value.to_string());
    settled(decoded.value);
}

/// YAML. What JSON can say must survive being written as YAML too: clients may ask for it.
pub(super) fn yaml(input: &[u8]) {
    for media in [Media::Yaml, Media::Json] {
        let Ok(decoded) = decode(media, input) else {
            continue;
        };
        let text = serde_yaml_ng::to_string(&decoded.value).expect("any value can be written");
        again(&decoded.value, Media::Yaml, &text);
        if media == Media::Yaml {
            settled(decoded.value);
        }
    }
}

/// Protobuf in the envelope of Kubernetes, whether the input has one or is what is in it.
pub(super) fn protobuf(input: &[u8]) {
    let kinds = [
        "DeleteOptions",
        "Namespace",
        "ConfigMap",
        "Secret",
        "Eviction",
    ];
    let mut inputs = vec![input.to_vec()];
    if let [at, raw @ ..] = input {
        inputs.push(enveloped(kinds[usize::from(*at) % kinds.len()], raw));
        inputs.push(enveloped("SelfSubjectAccessReview", raw));
        inputs.push(enveloped("SelfSubjectRulesReview", raw));
    }
    for input in inputs {
        let Ok(decoded) = decode(Media::Protobuf, &input) else {
            continue;
        };
        if !input.is_empty() {
            assert!(decoded.value["kind"].is_string(), "it says its kind");
        }
        again(&decoded.value, Media::Json, &decoded.value.to_string());
    }
}

fn enveloped(kind: &str, raw: &[u8]) -> Vec<u8> {
    let mut type_meta = vec![0x0a, 2, b'v', b'1'];
    field(&mut type_meta, 0x12, kind.as_bytes());
    let mut out = b"k8s\0".to_vec();
    field(&mut out, 0x0a, &type_meta);
    field(&mut out, 0x12, raw);
    out
}

/// One field of bytes.
fn field(out: &mut Vec<u8>, tag: u8, bytes: &[u8]) {
    out.push(tag);
    prost::encoding::encode_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

/// Written out and read again, it is the same and has no duplicates.
fn again(value: &Value, media: Media, text: &str) {
    let read = decode(media, text.as_bytes());
    let read = read.unwrap_or_else(|status| panic!("{status}: {text:?}"));
    assert!(same(&read.value, value), "{text:?}");
    assert!(read.duplicates.is_empty(), "{:?}", read.duplicates);
}

/// Equal, but for the last bit of a fraction: serde_json gets it wrong for the sake of speed.
fn same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(one), Value::Number(other)) if one != other => {
            let (Some(one), Some(other)) = (one.as_f64(), other.as_f64()) else {
                return false;
            };
            (one - other).abs() <= one.abs() * 2.0 * f64::EPSILON
        }
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| same(one, other))
        }
        (Value::Object(one), Value::Object(other)) => {
            let found =
                |key: &String, value| other.get(key).is_some_and(|other| same(value, other));
            one.len() == other.len() && one.iter().all(|(key, value)| found(key, value))
        }
        (one, other) => one == other,
    }
}

/// Pruned and defaulted once, nothing is left to prune, and the same things are wrong.
fn settled(mut object: Value) {
    if !object.is_object() {
        return;
    }
    let first = sample::schema().settle(&mut object);
    let once = object.clone();
    let second = sample::schema().settle(&mut object);
    assert_eq!(once, object);
    assert!(second.unknown.is_empty(), "{:?}", second.unknown);
    // Texts show values as they were then, not yet pruned or pruned.
    let told = |causes: &[Cause]| -> Vec<(&'static str, String)> {
        let causes = causes.iter();
        causes
            .map(|cause| (cause.reason, cause.field.clone()))
            .collect()
    };
    assert_eq!(told(&first.causes), told(&second.causes));
}
