//! Paths, queries and headers of requests.

use std::sync::Arc;

use arbitrary::{Arbitrary, Unstructured};
use http::header::ACCEPT;
use http::{HeaderMap, HeaderValue, Uri};

use super::sample;
use crate::negotiate;
use crate::object::Stored;
use crate::path::{self, Target};
use crate::query::Query;
use crate::selector::{FieldSelector, LabelSelector};
use crate::snapshot::Token;

/// Most bytes of an input that becomes a request line; no server reads longer ones.
const LINE_MAX: usize = 8192;

/// A label selector, and a field selector behind a line feed: spelled out, they are the same.
pub(super) fn selectors(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    let (labels, fields) = text.split_once('\n').unwrap_or((text, text));
    let object = sample_object(input);
    if let Ok(selector) = LabelSelector::parse(labels) {
        let spelled = selector.to_string();
        let again = LabelSelector::parse(&spelled).unwrap_or_else(|why| panic!("{why}"));
        assert_eq!(selector, again, "{spelled:?}");
        selector.matches(&object);
    }
    if let Ok(selector) = FieldSelector::parse(fields) {
        let spelled = selector.to_string();
        let again = FieldSelector::parse(&spelled).unwrap_or_else(|why| panic!("{why}"));
        assert_eq!(selector, again, "{spelled:?}");
        selector.matches(&object);
    }
}

fn sample_object(input: &[u8]) -> Arc<Stored> {
    let object = sample::object(&mut Unstructured::new(input)).unwrap_or_default();
    Stored::new(object, 1)
}

/// A token comes back as it went; a changed one is refused.
pub(super) fn continue_token(input: &[u8]) {
    if let Ok(text) = std::str::from_utf8(input)
        && let Ok(token) = Token::decode(text)
    {
        assert_eq!(token.encode(), text, "there is one spelling of a token");
    }
    let mut from = Unstructured::new(input);
    let Ok((revision, namespace, name)) = <(Option<u64>, String, String)>::arbitrary(&mut from)
    else {
        return;
    };
    let token = Token {
        revision,
        namespace,
        name,
    };
    let text = token.encode();
    assert_eq!(Token::decode(&text).expect("our own token"), token);
    let Ok((at, byte)) = <(usize, u8)>::arbitrary(&mut from) else {
        return;
    };
    let mut changed = text.clone().into_bytes();
    let at = at % changed.len();
    changed[at] = byte;
    if let Ok(changed) = String::from_utf8(changed)
        && changed != text
    {
        let refused = Token::decode(&changed).expect_err("a changed token is refused");
        assert_eq!(refused.code(), 400);
    }
}

/// A query string. What is understood keeps its pairs, and an unknown one changes nothing.
pub(super) fn query(input: &[u8]) {
    let Some(uri) = uri("/api/v1/nodes?", input) else {
        return;
    };
    let Ok(query) = Query::parse(&uri, LINE_MAX) else {
        return;
    };
    let selected = |key: &str| {
        let mut named = query.pairs.iter().filter(|(known, _)| known == key);
        named.next_back().map(|(_, value)| value.as_str())
    };
    let labels = LabelSelector::parse(selected("labelSelector").unwrap_or_default());
    assert_eq!(query.labels, labels.expect("it was parsed"));
    let fields = FieldSelector::parse(selected("fieldSelector").unwrap_or_default());
    assert_eq!(query.fields, fields.expect("it was parsed"));
    assert!(query.limit != Some(0) && query.timeout_seconds != Some(0));
    let longer: Uri = format!("{uri}&unknown=1").parse().expect("still a URI");
    let again = Query::parse(&longer, LINE_MAX).expect("unknown parameters are no reason");
    assert_eq!(
        (query.watch, query.revision, query.limit),
        (again.watch, again.revision, again.limit)
    );
}

/// A path. Segments that were encoded come back, and never become more segments.
pub(super) fn path(input: &[u8]) {
    if let Some(uri) = uri("/", input) {
        let _ = path::parse(uri.path());
    }
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    if text.is_empty() || text.contains('\0') {
        return;
    }
    let encoded: String = text.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let place = format!("/apis/x.io/v1/namespaces/default/things/{encoded}/status");
    let Target::Resource(found) = path::parse(&place) else {
        panic!("{place} is a resource");
    };
    assert_eq!(found.name.as_deref(), Some(text));
    assert_eq!(
        (found.resource.as_str(), found.subresource.as_str()),
        ("things", "status")
    );
    assert_eq!(found.namespace.as_deref(), Some("default"));
}

fn uri(prefix: &str, input: &[u8]) -> Option<Uri> {
    let text = std::str::from_utf8(input).ok()?;
    (text.len() <= LINE_MAX).then(|| format!("{prefix}{text}").parse().ok())?
}

/// An `Accept` header. What is served as a document of its own was asked for.
pub(super) fn accept(input: &[u8]) {
    let Ok(value) = HeaderValue::from_bytes(input) else {
        return;
    };
    let headers = HeaderMap::from_iter([(ACCEPT, value)]);
    let _ = negotiate::discovery(&headers);
    let text = String::from_utf8_lossy(input).to_lowercase();
    assert!(!negotiate::prefers(&headers, "x/y") || text.contains("x/y"));
    if let Ok(format) = negotiate::format(&headers) {
        assert!(!format.yaml || text.contains("yaml"));
    }
}
