//! Acting as somebody else, if authorization lets the caller: kube-apiserver's `Impersonate-*`.

use std::collections::BTreeMap;

use axum::response::{IntoResponse as _, Response};
use godwit_apimachinery::{AccessRequest, Authorizer, Decision, Status, UserInfo, refusal};
use http::{HeaderMap, HeaderName, StatusCode, header};

use super::{ANONYMOUS, AUTHENTICATED, UNAUTHENTICATED, service_account};

const USER: &str = "impersonate-user";
const GROUP: &str = "impersonate-group";
const UID: &str = "impersonate-uid";
const EXTRA: &str = "impersonate-extra-";
/// Begins the name of each such header.
const ANY: &str = "impersonate-";
/// Where uids and extras stand among the things that one may be allowed to take.
const AUTHENTICATION: &str = "authentication.k8s.io";

/// Whom a request wants to act as.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Wish {
    user: String,
    groups: Vec<String>,
    uid: String,
    extra: BTreeMap<String, Vec<String>>,
}

/// Reads the headers; `None` when there are none. The answer of a failure is ready to be sent.
pub(super) fn wish(headers: &HeaderMap, uri: &str) -> Result<Option<Wish>, Box<Response>> {
    let mut wish = Wish::default();
    for (name, value) in headers {
        let Some(rest) = name.as_str().strip_prefix(ANY) else {
            continue;
        };
        let value = std::str::from_utf8(value.as_bytes())
            .map_err(|_| refused(&format!("the value of {name} is no UTF-8")))?
            .to_owned();
        match (name.as_str(), name.as_str().strip_prefix(EXTRA)) {
            // The first counts, as with kube-apiserver.
            (USER, _) if wish.user.is_empty() => wish.user = value,
            (UID, _) if wish.uid.is_empty() => wish.uid = value,
            (USER | UID, _) => {}
            (GROUP, _) => wish.groups.push(value),
            (_, Some(key)) => wish.extra.entry(unescape(key)).or_default().push(value),
            // A server that ignored it could let the request do more than it was meant to.
            (_, None) => {
                return Err(refused(&format!(
                    "impersonation by {rest} is not supported"
                )));
            }
        }
    }
    if wish == Wish::default() {
        return Ok(None);
    }
    if wish.user.is_empty() {
        return Err(Box::new(nobody(&wish, uri)));
    }
    Ok(Some(wish))
}

/// Removes the headers, so that nothing behind can take them for its own.
pub(super) fn forget(headers: &mut HeaderMap) {
    let names: Vec<HeaderName> = headers
        .keys()
        .filter(|name| name.as_str().starts_with(ANY))
        .cloned()
        .collect();
    for name in names {
        headers.remove(name);
    }
}

impl Wish {
    /// The user to act as, if `caller` may take each part of them.
    pub(super) async fn granted(
        self,
        caller: &UserInfo,
        authorizer: &dyn Authorizer,
    ) -> Result<UserInfo, Status> {
        for access in self.accesses() {
            match authorizer.authorize(caller, &access).await {
                Decision::Allow => {}
                Decision::Deny(why) => return Err(refusal(caller, &access, &why)),
                Decision::Unknown(why) => return Err(Status::unavailable(why)),
            }
        }
        let mut groups = self.groups;
        if let Some((namespace, _)) = service_account::split(&self.user)
            && groups.is_empty()
        {
            groups.extend(service_account::groups(namespace));
        }
        let has = |name: &str| groups.iter().any(|group| group == name);
        let implied = match self.user.as_str() {
            ANONYMOUS => (!has(UNAUTHENTICATED)).then_some(UNAUTHENTICATED),
            _ => (!has(AUTHENTICATED) && !has(UNAUTHENTICATED)).then_some(AUTHENTICATED),
        };
        groups.extend(implied.map(str::to_owned));
        Ok(UserInfo {
            name: self.user,
            groups,
            uid: self.uid,
            extra: self.extra,
            // Who allowed it knows its own users alone.
            realm: caller.realm,
        })
    }

    /// What the caller must be allowed, in the order in which it is asked.
    fn accesses(&self) -> Vec<AccessRequest> {
        let core = |resource: &str, namespace: &str, name: &str| AccessRequest {
            verb: "impersonate".to_owned(),
            resource: resource.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            ..AccessRequest::default()
        };
        let authentication = |resource: &str, subresource: &str, name: &str| AccessRequest {
            group: AUTHENTICATION.to_owned(),
            version: "v1".to_owned(),
            subresource: subresource.to_owned(),
            ..core(resource, "", name)
        };
        let mut accesses = vec![match service_account::split(&self.user) {
            Some((namespace, name)) => core("serviceaccounts", namespace, name),
            None => core("users", "", &self.user),
        }];
        accesses.extend(self.groups.iter().map(|group| core("groups", "", group)));
        for (key, values) in &self.extra {
            let asked = values.iter();
            accesses.extend(asked.map(|value| authentication("userextras", key, value)));
        }
        if !self.uid.is_empty() {
            accesses.push(authentication("uids", "", &self.uid));
        }
        accesses
    }

    /// As Go prints the list of `ObjectReference`s that kube-apiserver makes of the headers.
    fn printed(&self) -> String {
        let mut references: Vec<String> = self
            .groups
            .iter()
            .map(|group| format!("{{Group  {group}    }}"))
            .collect();
        for (key, values) in &self.extra {
            let printed = values
                .iter()
                .map(|value| format!("{{UserExtra  {value}  {AUTHENTICATION}/v1  {key}}}"));
            references.extend(printed);
        }
        if !self.uid.is_empty() {
            references.push(format!("{{UID  {}  {AUTHENTICATION}/v1  }}", self.uid));
        }
        format!("[{}]", references.join(" "))
    }
}

/// The key of an extra field, which is escaped as in a path.
pub(crate) fn unescape(key: &str) -> String {
    let decoded = percent_encoding::percent_decode_str(key).decode_utf8();
    decoded.map_or_else(|_| key.to_owned(), |key| key.into_owned())
}

fn refused(why: &str) -> Box<Response> {
    Box::new(Status::bad_request(why).into_response())
}

/// kube-apiserver answers this as a plain text with 500.
fn nobody(wish: &Wish, uri: &str) -> Response {
    let text = format!(
        "Internal Server Error: {uri:?}: requested {} without impersonating a user\n",
        wish.printed()
    );
    let text = text
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;");
    let headers = [
        (header::CONTENT_TYPE, "text/plain; charset=utf-8"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (StatusCode::INTERNAL_SERVER_ERROR, headers, text).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use async_trait::async_trait;
    use std::sync::Mutex;

    /// Allows everything but one resource, and remembers what it was asked.
    #[derive(Default)]
    struct Asked {
        refuses: &'static str,
        seen: Mutex<Vec<String>>,
    }

    #[async_trait]
    impl Authorizer for Asked {
        async fn authorize(&self, user: &UserInfo, access: &AccessRequest) -> Decision {
            assert_eq!(
                (user.name.as_str(), access.verb.as_str()),
                ("boss", "impersonate")
            );
            self.seen.lock().unwrap().push(format!(
                "{}/{}/{}/{}/{}",
                access.group, access.resource, access.subresource, access.namespace, access.name
            ));
            match access.resource == self.refuses {
                true => Decision::Deny(String::new()),
                false => Decision::Allow,
            }
        }
    }

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    fn boss() -> UserInfo {
        UserInfo {
            name: "boss".to_owned(),
            ..UserInfo::default()
        }
    }

    async fn act_as(pairs: &[(&'static str, &'static str)]) -> UserInfo {
        let wish = wish(&headers(pairs), "/api").unwrap().unwrap();
        wish.granted(&boss(), &Asked::default()).await.unwrap()
    }

    #[tokio::test]
    async fn each_part_is_asked_for() {
        let headers = headers(&[
            (USER, "alice"),
            (GROUP, "dev"),
            (GROUP, "ops"),
            (UID, "7"),
            ("impersonate-extra-acme.com%2fscope", "a"),
            ("impersonate-extra-acme.com%2fscope", "b"),
        ]);
        let authorizer = Asked::default();
        let wish = wish(&headers, "/api").unwrap().unwrap();
        let user = wish.granted(&boss(), &authorizer).await.unwrap();
        assert_eq!(
            *authorizer.seen.lock().unwrap(),
            [
                "/users///alice",
                "/groups///dev",
                "/groups///ops",
                "authentication.k8s.io/userextras/acme.com/scope//a",
                "authentication.k8s.io/userextras/acme.com/scope//b",
                "authentication.k8s.io/uids///7",
            ]
        );
        assert_eq!(user.groups, ["dev", "ops", AUTHENTICATED]);
        assert_eq!(user.extra["acme.com/scope"], ["a", "b"]);
        assert_eq!(user.uid, "7");
    }

    #[tokio::test]
    async fn groups_follow_from_who_is_meant() {
        let robot = act_as(&[(USER, "system:serviceaccount:ci:robot")]).await;
        let own = [
            "system:serviceaccounts",
            "system:serviceaccounts:ci",
            AUTHENTICATED,
        ];
        assert_eq!(robot.groups, own);
        let robot = act_as(&[(USER, "system:serviceaccount:ci:robot"), (GROUP, "x")]).await;
        assert_eq!(robot.groups, ["x", AUTHENTICATED]);
        assert_eq!(act_as(&[(USER, ANONYMOUS)]).await.groups, [UNAUTHENTICATED]);
        let closed = act_as(&[(USER, "alice"), (GROUP, UNAUTHENTICATED)]).await;
        assert_eq!(closed.groups, [UNAUTHENTICATED]);
    }

    #[tokio::test]
    async fn a_part_that_may_not_be_taken_refuses_all() {
        let authorizer = Asked {
            refuses: "groups",
            ..Asked::default()
        };
        let headers = headers(&[(USER, "alice"), (GROUP, "system:masters")]);
        let wish = wish(&headers, "/api").unwrap().unwrap();
        let status = wish.granted(&boss(), &authorizer).await.unwrap_err();
        assert_eq!(
            status.message(),
            "groups \"system:masters\" is forbidden: User \"boss\" cannot impersonate resource \
             \"groups\" in API group \"\" at the cluster scope"
        );
    }

    #[test]
    fn nobody_can_not_be_in_a_group() {
        let answer = wish(&headers(&[(GROUP, "dev"), (UID, "7")]), "/api").unwrap_err();
        assert_eq!(answer.status(), 500);
        let wish = Wish {
            groups: vec!["dev".to_owned()],
            uid: "7".to_owned(),
            ..Wish::default()
        };
        assert_eq!(
            wish.printed(),
            "[{Group  dev    } {UID  7  authentication.k8s.io/v1  }]"
        );
    }

    #[test]
    fn a_header_that_is_not_known_is_refused_rather_than_ignored() {
        assert!(wish(&headers(&[]), "/api").unwrap().is_none());
        let answer = wish(&headers(&[("impersonate-moon", "full")]), "/api").unwrap_err();
        assert_eq!(answer.status(), 400);
    }

    #[test]
    fn headers_are_gone_afterwards() {
        let mut headers = headers(&[(USER, "alice"), ("impersonate-extra-a", "b"), ("x", "y")]);
        forget(&mut headers);
        assert_eq!(headers.len(), 1);
    }
}
