//! Query parameters of requests to resources, parsed once.

use axum::extract::Query as AxumQuery;
use http::Uri;

use crate::selector::{FieldSelector, LabelSelector};
use crate::status::{Cause, Status};

/// Everything a client may say behind the question mark.
#[derive(Debug, Default)]
pub(crate) struct Query {
    pub(crate) pairs: Vec<(String, String)>,
    pub(crate) labels: LabelSelector,
    pub(crate) fields: FieldSelector,
    /// `None` if absent or 0.
    pub(crate) limit: Option<usize>,
    pub(crate) continue_token: String,
    pub(crate) revision: Revision,
    pub(crate) revision_match: RevisionMatch,
    pub(crate) watch: bool,
    pub(crate) bookmarks: bool,
    pub(crate) send_initial: Option<bool>,
    pub(crate) timeout_seconds: Option<u64>,
    pub(crate) dry_run: bool,
    pub(crate) validation: Validation,
    pub(crate) field_manager: String,
    pub(crate) force: bool,
    pub(crate) include: Include,
    pub(crate) pretty: bool,
}

/// `resourceVersion`.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Revision {
    /// Absent or empty: the latest.
    #[default]
    Unset,
    /// `0`: any.
    Any,
    At(u64),
}

/// `resourceVersionMatch`.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RevisionMatch {
    #[default]
    Unset,
    NotOlderThan,
    Exact,
}

/// `fieldValidation`.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Validation {
    Ignore,
    #[default]
    Warn,
    Strict,
}

/// `includeObject` of tables.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Include {
    #[default]
    Metadata,
    Object,
    None,
}

/// Longest name of a field manager.
const FIELD_MANAGER_MAX: usize = 128;

impl Query {
    /// Reads the parameters; selectors may have `selector_bytes`.
    pub(crate) fn parse(uri: &Uri, selector_bytes: usize) -> Result<Self, Status> {
        let AxumQuery(pairs) = AxumQuery::<Vec<(String, String)>>::try_from_uri(uri)
            .map_err(|error| Status::bad_request(format!("query parameters: {error}")))?;
        let mut query = Self::default();
        for (key, value) in &pairs {
            let selects = matches!(key.as_str(), "labelSelector" | "fieldSelector");
            if selects && value.len() > selector_bytes {
                let why = format!("{key}: Too long: may not be more than {selector_bytes} bytes");
                return Err(Status::bad_request(why));
            }
            query.set(key, value)?;
        }
        query.pairs = pairs;
        query.check()?;
        Ok(query)
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), Status> {
        match key {
            "labelSelector" => self.labels = LabelSelector::parse(value)?,
            "fieldSelector" => self.fields = FieldSelector::parse(value)?,
            "limit" => self.limit = number(key, value)?.and_then(positive),
            "continue" => value.clone_into(&mut self.continue_token),
            "resourceVersion" => self.revision = revision(value)?,
            "resourceVersionMatch" => self.revision_match = revision_match(value)?,
            "watch" => self.watch = boolean(value),
            "allowWatchBookmarks" => self.bookmarks = boolean(value),
            "sendInitialEvents" => self.send_initial = Some(boolean(value)),
            "timeoutSeconds" => self.timeout_seconds = number(key, value)?.filter(|s| *s > 0),
            "dryRun" => self.dry_run = dry_run(value)?,
            "fieldValidation" => self.validation = validation(value)?,
            "fieldManager" => value.clone_into(&mut self.field_manager),
            "force" => self.force = boolean(value),
            "includeObject" => self.include = include(value)?,
            "pretty" => self.pretty = boolean(value),
            _ => {}
        }
        Ok(())
    }

    fn check(&self) -> Result<(), Status> {
        let refuse = |cause| Err(list_options_invalid(vec![cause]));
        let matching = self.revision_match != RevisionMatch::Unset;
        if self.send_initial.is_some() {
            if !self.watch {
                let why = "sendInitialEvents is forbidden for list";
                return refuse(Cause::forbidden("sendInitialEvents", why));
            }
            if self.revision_match != RevisionMatch::NotOlderThan {
                let why = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
                return refuse(Cause::forbidden("resourceVersionMatch", why));
            }
        } else if self.watch && matching {
            let why = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is \
                       provided";
            return refuse(Cause::forbidden("resourceVersionMatch", why));
        } else if matching && self.revision == Revision::Unset {
            let why = "resourceVersionMatch is forbidden unless resourceVersion is provided";
            return refuse(Cause::forbidden("resourceVersionMatch", why));
        }
        if self.revision_match == RevisionMatch::Exact && self.revision == Revision::Any {
            let why = "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"";
            return refuse(Cause::forbidden("resourceVersionMatch", why));
        }
        if !self.continue_token.is_empty() && matches!(self.revision, Revision::At(_)) {
            let why = "specifying resource version is not allowed when using continue";
            return Err(Status::bad_request(why));
        }
        if self.field_manager.chars().any(char::is_control) {
            return Err(Status::bad_request(
                "fieldManager: Invalid value: should only contain printable characters",
            ));
        }
        if self.field_manager.len() > FIELD_MANAGER_MAX {
            return Err(Status::bad_request(
                "fieldManager: Too long: may not be more than 128 bytes",
            ));
        }
        Ok(())
    }
}

fn list_options_invalid(causes: Vec<Cause>) -> Status {
    Status::invalid("meta.k8s.io", "ListOptions", "", causes)
}

fn boolean(value: &str) -> bool {
    // As in Go's conversion of query parameters: a bare `?watch` means yes.
    !matches!(value, "false" | "0" | "False" | "FALSE" | "f" | "F")
}

fn number(key: &str, value: &str) -> Result<Option<u64>, Status> {
    if value.is_empty() {
        return Ok(None);
    }
    let parsed = value.parse();
    parsed
        .map(Some)
        .map_err(|_| Status::bad_request(format!("{key}: not a whole number: {value}")))
}

fn positive(limit: u64) -> Option<usize> {
    usize::try_from(limit).ok().filter(|limit| *limit > 0)
}

fn revision(value: &str) -> Result<Revision, Status> {
    match value {
        "" => Ok(Revision::Unset),
        "0" => Ok(Revision::Any),
        text => text.parse().map(Revision::At).map_err(|_| {
            Status::bad_request(format!(
                "resourceVersion: Invalid value: \"{text}\": strconv.ParseUint: invalid syntax"
            ))
        }),
    }
}

fn revision_match(value: &str) -> Result<RevisionMatch, Status> {
    match value {
        "" => Ok(RevisionMatch::Unset),
        "NotOlderThan" => Ok(RevisionMatch::NotOlderThan),
        "Exact" => Ok(RevisionMatch::Exact),
        other => Err(list_options_invalid(vec![Cause::not_supported(
            "resourceVersionMatch",
            &other.into(),
            &["NotOlderThan", "Exact"],
        )])),
    }
}

fn dry_run(value: &str) -> Result<bool, Status> {
    match value {
        "" => Ok(false),
        "All" => Ok(true),
        other => Err(Status::bad_request(format!(
            "dryRun: Unsupported value: \"{other}\": supported values: \"All\""
        ))),
    }
}

fn validation(value: &str) -> Result<Validation, Status> {
    match value {
        "" | "Warn" => Ok(Validation::Warn),
        "Ignore" => Ok(Validation::Ignore),
        "Strict" => Ok(Validation::Strict),
        other => Err(Status::bad_request(format!(
            "fieldValidation: Unsupported value: \"{other}\": supported values: \"Ignore\", \
             \"Strict\", \"Warn\""
        ))),
    }
}

fn include(value: &str) -> Result<Include, Status> {
    match value {
        "" | "Metadata" => Ok(Include::Metadata),
        "Object" => Ok(Include::Object),
        "None" => Ok(Include::None),
        other => Err(Status::bad_request(format!(
            "unrecognized includeObject value: {other}"
        ))),
    }
}
