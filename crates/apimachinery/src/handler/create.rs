//! Creation.

use std::sync::Arc;

use axum::response::Response;
use http::{HeaderMap, StatusCode};
use rand::seq::IndexedRandom;
use serde_json::{Value, json};

use super::call::Call;
use super::write::{Ownership, Wish};
use crate::apply::track_update;
use crate::object::{self, Stored};
use crate::status::{Cause, Status};
use crate::store::StoreError;

/// Without vowels and look-alikes, so that no words come out.
const SUFFIX_LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
const SUFFIX_LENGTH: usize = 5;
/// Longest generated name; short enough to be a label value.
const GENERATED_MAX: usize = 63;
/// How often a generated name is tried again when it is taken.
const GENERATE_TRIES: usize = 8;
/// Longest name.
const NAME_MAX: usize = 253;

/// Answers a POST.
pub(super) async fn serve(
    call: &mut Call,
    headers: &HeaderMap,
    bytes: &[u8],
) -> Result<Response, Status> {
    let wish = call.read_object(headers, bytes)?;
    let stored = create(call, wish).await?;
    call.answer_object(StatusCode::CREATED, stored.object())
}

/// Makes a new object; also where an apply finds none.
pub(super) async fn create(call: &mut Call, mut wish: Wish) -> Result<Arc<Stored>, Status> {
    call.check_namespace(&wish.object)?;
    if !object::meta_str(&wish.object, "resourceVersion").is_empty() {
        return Err(Status::bad_request(
            "resourceVersion should not be set on objects to be created",
        ));
    }
    call.settle(&mut wish)?;
    let mut new = call.absorb(wish.object);
    if call.resource.kind.has_status {
        new.as_object_mut().map(|map| map.remove("status"));
    }
    let base = prepare(call, &mut new)?;
    let admitted = [&call.server.admission, &call.resource.kind.admission];
    for admission in admitted.map(Arc::clone) {
        let said = admission.on_create(&call.context, &mut new).await?;
        call.warnings.extend(said);
    }
    if wish.ownership == Ownership::Track && call.resource.view.absorb.is_none() {
        let managed = object::metadata_mut(&mut new);
        managed.remove("managedFields");
        track_update(&call.resource.schema, &Value::Null, &mut new, call.editor());
    }
    call.check_size(&new)?;
    keep(call, new, base.as_deref()).await
}

/// Fills in what the system says about a new object. Answers the base of a generated name.
fn prepare(call: &mut Call, new: &mut Value) -> Result<Option<String>, Status> {
    let namespace = call.stored_namespace().map(str::to_owned);
    let created = object::time(call.context.now);
    let metadata = object::metadata_mut(new);
    for key in [
        "selfLink",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
    ] {
        metadata.remove(key);
    }
    metadata.insert("uid".to_owned(), json!(uuid::Uuid::new_v4().to_string()));
    metadata.insert("creationTimestamp".to_owned(), json!(created));
    metadata.insert("generation".to_owned(), json!(1));
    match namespace {
        Some(namespace) => metadata.insert("namespace".to_owned(), json!(namespace)),
        None => metadata.remove("namespace"),
    };
    let base = match (object::name(new), object::meta_str(new, "generateName")) {
        ("", "") => {
            let why = "name or generateName is required";
            return Err(call.invalid("", vec![Cause::required("metadata.name", why)]));
        }
        ("", base) => Some(base.to_owned()),
        _ => None,
    };
    if let Some(base) = &base {
        new["metadata"]["name"] = json!(generated(base));
    }
    let name = object::name(new);
    if let Some(why) = bad_name(name, call.resource.kind.loose_names) {
        let cause = Cause::invalid("metadata.name", &json!(name), why);
        return Err(call.invalid(name, vec![cause]));
    }
    name.clone_into(&mut call.context.name);
    Ok(base)
}

async fn keep(call: &mut Call, mut new: Value, base: Option<&str>) -> Result<Arc<Stored>, Status> {
    for _ in 1..GENERATE_TRIES {
        match (try_once(call, &new).await, base) {
            (Err(StoreError::AlreadyExists), Some(base)) => {
                let name = generated(base);
                new["metadata"]["name"] = json!(name);
                call.context.name = name;
            }
            (outcome, _) => {
                return outcome.map_err(|error| call.store_error(error, object::name(&new)));
            }
        }
    }
    let outcome = try_once(call, &new).await;
    outcome.map_err(|error| call.store_error(error, object::name(&new)))
}

async fn try_once(call: &Call, new: &Value) -> Result<Arc<Stored>, StoreError> {
    call.server
        .store
        .create(&call.context, &call.resource.kind.resource, new.clone())
        .await
}

/// `base` with five letters behind it, as `metadata.generateName` makes names.
pub fn generated(base: &str) -> String {
    let end = base
        .char_indices()
        .nth(GENERATED_MAX - SUFFIX_LENGTH)
        .map_or(base.len(), |(at, _)| at);
    let mut rng = rand::rng();
    let letter = |_| {
        SUFFIX_LETTERS
            .choose(&mut rng)
            .copied()
            .map_or('x', char::from)
    };
    let suffix: String = (0..SUFFIX_LENGTH).map(letter).collect();
    format!("{}{suffix}", &base[..end])
}

/// What is wrong with a name, if anything.
fn bad_name(name: &str, loose: bool) -> Option<&'static str> {
    if name.len() > NAME_MAX {
        return Some("must be no more than 253 characters");
    }
    if loose {
        let bad = matches!(name, "." | "..") || name.contains(['/', '%', '\0']);
        return bad.then_some("may not be '.' or '..', or contain '/' or '%'");
    }
    let part_is_good = |part: &str| {
        let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
        !part.is_empty()
            && part.bytes().all(inner)
            && !part.starts_with('-')
            && !part.ends_with('-')
    };
    let good = name.split('.').all(part_is_good);
    (!good).then_some(
        "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' \
         or '.', and must start and end with an alphanumeric character (e.g. 'example.com', \
         regex used for validation is \
         '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_names_fit_into_labels() {
        let name = generated("web-");
        assert!(name.starts_with("web-") && name.len() == 9, "{name}");
        assert_eq!(generated(&"a".repeat(100)).len(), 63);
    }

    #[test]
    fn names_are_dns_names_unless_they_may_be_loose() {
        for good in ["a", "a.b-c", "1"] {
            assert!(bad_name(good, false).is_none(), "{good}");
        }
        for bad in ["A", "a_b", "-a", "a.", "a..b", "a:b"] {
            assert!(bad_name(bad, false).is_some(), "{bad}");
        }
        assert!(bad_name("system:admin", true).is_none());
        assert!(bad_name("a/b", true).is_some());
    }
}
