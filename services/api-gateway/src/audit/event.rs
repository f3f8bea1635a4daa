//! One record in the form of `audit.k8s.io/v1` Event, at the level Metadata.
//!
//! Every text in it is cut to a length and holds no control characters: it comes from outside, and
//! is kept as lines and as `jsonb`.

use std::net::IpAddr;

use godwit_apimachinery::{AccessRequest, Decision, Realm, UserInfo};
use http::{HeaderMap, Uri};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::Notes;

/// Most characters of a name, a group, a user agent and the like.
const TEXT_MAX: usize = 256;
/// Most characters of a URI, and of a reason.
const LONG_TEXT_MAX: usize = 1024;
/// Most groups, values of one extra field, and addresses that are recorded.
const LIST_MAX: usize = 32;
/// Most extra fields of a user.
const FIELDS_MAX: usize = 4;
/// Query parameters whose values are recorded. Others may be anything, also somebody's token.
const PARAMETERS: [&str; 14] = [
    "allowWatchBookmarks",
    "dryRun",
    "fieldManager",
    "fieldSelector",
    "fieldValidation",
    "force",
    "gracePeriodSeconds",
    "labelSelector",
    "limit",
    "propagationPolicy",
    "resourceVersion",
    "resourceVersionMatch",
    "timeoutSeconds",
    "watch",
];

/// What a request asks for, and whence it came.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) id: String,
    pub(super) access: AccessRequest,
    pub(super) uri: Uri,
    /// Client first, as the proxies on the way say; who is connected to us last.
    pub(super) sources: Vec<String>,
    pub(super) user_agent: String,
    pub(super) received: Timestamp,
}

/// One record.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) asked: Asked,
    pub(super) notes: Notes,
    /// `None` when the client was gone before the answer.
    pub(super) code: Option<u16>,
    pub(super) completed: Timestamp,
}

impl Entry {
    /// The record as it is kept.
    pub(super) fn event(&self) -> Value {
        let (asked, access) = (&self.asked, &self.asked.access);
        let mut event = json!({
            "kind": "Event",
            "apiVersion": "audit.k8s.io/v1",
            "level": "Metadata",
            "auditID": asked.id,
            "stage": "ResponseComplete",
            "requestURI": uri(&asked.uri),
            "verb": access.verb,
            "user": user(self.notes.user.as_ref()),
            "sourceIPs": asked.sources,
            "userAgent": asked.user_agent,
            "requestReceivedTimestamp": time(asked.received),
            "stageTimestamp": time(self.completed),
            "annotations": self.annotations(),
        });
        if let Some(impersonated) = &self.notes.impersonated {
            event["impersonatedUser"] = user(Some(impersonated));
        }
        if !access.resource.is_empty() {
            event["objectRef"] = object(access);
        }
        if let Some(code) = self.code {
            event["responseStatus"] = json!({"metadata": {}, "code": code});
            if code >= 400 {
                event["responseStatus"]["status"] = json!("Failure");
            }
            if !self.notes.unauthenticated.is_empty() {
                event["responseStatus"]["message"] = json!(self.notes.unauthenticated);
            }
        }
        event
    }

    fn annotations(&self) -> Value {
        let mut annotations = json!({});
        let decided = match &self.notes.decision {
            Some(Decision::Allow) => Some(("allow", "")),
            Some(Decision::Deny(why) | Decision::Unknown(why)) => Some(("forbid", why.as_str())),
            None => None,
        };
        if let Some((decision, reason)) = decided {
            annotations["authorization.k8s.io/decision"] = json!(decision);
            annotations["authorization.k8s.io/reason"] = json!(cut(reason, LONG_TEXT_MAX));
        }
        let realm = self.notes.user.as_ref().map(|user| user.realm);
        if realm == Some(Realm::Cluster) {
            // One of ours may have the same name.
            annotations["godwit.io/user-of"] = json!("cluster");
        }
        let query = self.asked.uri.query().unwrap_or_default();
        if query.split('&').any(|pair| pair == "dryRun=All") {
            annotations["godwit.io/dry-run"] = json!("All");
        }
        if self.code.is_none() {
            annotations["godwit.io/unanswered"] = json!("the client was gone before the answer");
        }
        annotations
    }
}

fn user(user: Option<&UserInfo>) -> Value {
    let Some(user) = user else {
        return json!({});
    };
    let list = |texts: &[String]| -> Vec<String> {
        let texts = texts.iter().take(LIST_MAX);
        texts.map(|text| cut(text, TEXT_MAX)).collect()
    };
    let mut shown = json!({"username": cut(&user.name, TEXT_MAX), "groups": list(&user.groups)});
    if !user.uid.is_empty() {
        shown["uid"] = json!(cut(&user.uid, TEXT_MAX));
    }
    for (key, values) in user.extra.iter().take(FIELDS_MAX) {
        shown["extra"][cut(key, TEXT_MAX)] = json!(list(values));
    }
    shown
}

fn object(access: &AccessRequest) -> Value {
    let mut object = json!({"apiVersion": cut(&access.version, TEXT_MAX)});
    for (key, text) in [
        ("resource", &access.resource),
        ("namespace", &access.namespace),
        ("name", &access.name),
        ("apiGroup", &access.group),
        ("subresource", &access.subresource),
    ] {
        if !text.is_empty() {
            object[key] = json!(cut(text, TEXT_MAX));
        }
    }
    object
}

/// The URI without the values of parameters that we don't know.
fn uri(uri: &Uri) -> String {
    let Some(query) = uri.query() else {
        return cut(uri.path(), LONG_TEXT_MAX);
    };
    let shown: Vec<&str> = query
        .split('&')
        .map(|pair| match pair.split_once('=') {
            Some((key, _)) if PARAMETERS.contains(&key) => pair,
            Some((key, _)) => key,
            None => pair,
        })
        .collect();
    cut(
        &format!("{}?{}", uri.path(), shown.join("&")),
        LONG_TEXT_MAX,
    )
}

/// Addresses on the way, as kube-apiserver lists them. All but the last are what proxies say.
pub(super) fn sources(headers: &HeaderMap, peer: Option<IpAddr>) -> Vec<String> {
    let told = ["x-forwarded-for", "x-real-ip"].map(|name| header(headers, name));
    let told = told.iter().flat_map(|list| list.split(','));
    let mut sources: Vec<IpAddr> = told
        .filter_map(|text| text.trim().parse().ok())
        .take(LIST_MAX)
        .collect();
    sources.extend(peer.map(|peer| peer.to_canonical()));
    sources.dedup();
    sources.iter().map(IpAddr::to_string).collect()
}

/// The text of a header; empty if there is none.
pub(super) fn header(headers: &HeaderMap, name: &str) -> String {
    let value = headers.get(name).and_then(|value| value.to_str().ok());
    cut(value.unwrap_or_default(), TEXT_MAX)
}

fn cut(text: &str, max: usize) -> String {
    let printable = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().take(max).map(printable).collect()
}

/// As Kubernetes writes times with microseconds.
fn time(at: Timestamp) -> String {
    format!("{at:.6}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Method;

    fn entry(method: &Method, uri: &'static str) -> Entry {
        let uri = Uri::from_static(uri);
        Entry {
            asked: Asked {
                id: "id1".to_owned(),
                access: AccessRequest::of(method, &uri),
                uri,
                sources: vec!["10.0.0.1".to_owned()],
                user_agent: "kubectl".to_owned(),
                received: Timestamp::UNIX_EPOCH,
            },
            notes: Notes::default(),
            code: Some(201),
            completed: Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn a_record_says_who_did_what_and_how_it_was_decided() {
        let uri = "/apis/kubevirt.io/v1/namespaces/a/virtualmachines?dryRun=All&token=secret";
        let mut entry = entry(&Method::POST, uri);
        entry.notes.user = Some(UserInfo {
            name: "ada\u{0}".to_owned(),
            groups: vec!["g".to_owned(); 100],
            ..UserInfo::default()
        });
        entry.notes.decision = Some(Decision::Deny("no".to_owned()));
        let event = entry.event();
        assert_eq!(event["user"]["username"], "ada ");
        assert_eq!(event["user"]["groups"].as_array().unwrap().len(), LIST_MAX);
        assert_eq!(event["verb"], "create");
        assert_eq!(event["objectRef"]["apiGroup"], "kubevirt.io");
        assert_eq!(
            event["annotations"]["authorization.k8s.io/decision"],
            "forbid"
        );
        assert_eq!(event["annotations"]["authorization.k8s.io/reason"], "no");
        assert_eq!(event["annotations"]["godwit.io/dry-run"], "All");
        assert_eq!(
            event["requestReceivedTimestamp"],
            "1970-01-01T00:00:00.000000Z"
        );
        assert!(!event.to_string().contains("secret"), "{event}");
    }

    #[test]
    fn an_answer_that_never_came_is_told() {
        let mut entry = entry(&Method::DELETE, "/api/v1/nodes/a");
        entry.code = None;
        let event = entry.event();
        assert!(event.get("responseStatus").is_none());
        assert!(event["annotations"]["godwit.io/unanswered"].is_string());
        assert!(
            event["annotations"]
                .get("authorization.k8s.io/decision")
                .is_none()
        );
    }

    #[test]
    fn the_longest_record_is_small() {
        let long = "\u{10ffff}".repeat(2000);
        let mut entry = entry(&Method::DELETE, "/api/v1/nodes/a");
        entry.notes.user = Some(UserInfo {
            name: long.clone(),
            groups: vec![long; 2000],
            ..UserInfo::default()
        });
        assert!(entry.event().to_string().len() < 64 << 10);
    }

    #[test]
    fn who_is_connected_comes_last() {
        let mut headers = HeaderMap::new();
        headers.insert("x-forwarded-for", "1.1.1.1, nonsense".parse().unwrap());
        let peer = Some("::ffff:10.0.0.1".parse().unwrap());
        assert_eq!(sources(&headers, peer), ["1.1.1.1", "10.0.0.1"]);
        assert_eq!(sources(&HeaderMap::new(), peer), ["10.0.0.1"]);
    }
}
