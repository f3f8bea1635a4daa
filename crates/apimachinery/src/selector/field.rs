//! Field selectors: `metadata.name=a,status.phase!=Failed`.

use serde_json::Value;

use crate::status::Status;

/// What some fields of an object must be. Empty matches everything.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct FieldSelector {
    terms: Vec<Term>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Term {
    path: String,
    value: String,
    negated: bool,
    /// What a missing field counts as.
    missing: String,
}

/// Fields every kind can be selected by.
const ALWAYS: [&str; 2] = ["metadata.name", "metadata.namespace"];

/// Most terms in one selector.
const TERMS_MAX: usize = 32;

impl FieldSelector {
    /// Parses the text form. Commas and equal signs in values come escaped with a backslash.
    ///
    /// # Errors
    /// 400 if a term has no operator.
    pub fn parse(text: &str) -> Result<Self, Status> {
        let mut terms = Vec::new();
        for part in split(text) {
            let found = part
                .split_once("!=")
                .map(|(path, value)| (path, value, true));
            let found = found.or_else(|| part.split_once("==").map(|(p, v)| (p, v, false)));
            let found = found.or_else(|| part.split_once('=').map(|(p, v)| (p, v, false)));
            let Some((path, value, negated)) = found else {
                let why = format!("invalid selector: '{text}'; can't understand '{part}'");
                return Err(Status::bad_request(why));
            };
            let (path, value, missing) = (path.to_owned(), unescape(value), String::new());
            terms.push(Term {
                path,
                value,
                negated,
                missing,
            });
        }
        if terms.len() > TERMS_MAX {
            return Err(Status::bad_request("fieldSelector has too many terms"));
        }
        Ok(Self { terms })
    }

    /// Whether everything matches.
    pub fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }

    /// The value that `path` must have, if the selector says so.
    pub fn required(&self, path: &str) -> Option<&str> {
        let mut equal = self
            .terms
            .iter()
            .filter(|term| !term.negated && term.path == path);
        equal.next().map(|term| term.value.as_str())
    }

    /// Refuses fields that can't be selected by, and learns what missing ones count as.
    pub(crate) fn resolve(mut self, selectable: &[&str]) -> Result<Self, Status> {
        for term in &mut self.terms {
            if ALWAYS.contains(&term.path.as_str()) {
                continue;
            }
            let declared = selectable
                .iter()
                .map(|field| field.split_once('=').unwrap_or((field, "")));
            let Some((_, missing)) = declared.into_iter().find(|(path, _)| *path == term.path)
            else {
                let why = format!("field label not supported: {}", term.path);
                return Err(Status::bad_request(why));
            };
            missing.clone_into(&mut term.missing);
        }
        Ok(self)
    }

    /// Whether `object` matches. Numbers and booleans are spelled out.
    pub fn matches(&self, object: &Value) -> bool {
        self.terms.iter().all(|term| {
            let found = text_at(object, &term.path).unwrap_or_else(|| term.missing.clone());
            (found == term.value) != term.negated
        })
    }
}

fn text_at(object: &Value, path: &str) -> Option<String> {
    let mut at = object;
    for key in path.split('.') {
        at = at.get(key)?;
    }
    match at {
        Value::String(text) => Some(text.clone()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
        scalar @ (Value::Bool(_) | Value::Number(_)) => Some(scalar.to_string()),
    }
}

/// Splits at commas that no backslash escapes.
fn split(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut start = 0;
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        if c == ',' && !escaped {
            parts.push(&text[start..at]);
            start = at + 1;
        }
        escaped = c == '\\' && !escaped;
    }
    parts.push(&text[start..]);
    parts.retain(|part| !part.is_empty());
    parts
}

fn unescape(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => out.extend(chars.next()),
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn terms_compare_text_with_missing_as_empty() {
        let object = json!({"metadata": {"name": "a"}, "status": {"phase": "Running"}});
        let matches = |text: &str| {
            FieldSelector::parse(text)
                .expect("selector")
                .matches(&object)
        };
        assert!(matches("metadata.name=a,status.phase!=Failed"));
        assert!(matches("spec.nodeName="));
        assert!(!matches("status.phase!=Running"));
    }

    #[test]
    fn an_undeclared_field_is_refused() {
        let selector = FieldSelector::parse("spec.vmiName=a").expect("selector");
        assert!(selector.clone().resolve(&["spec.vmiName"]).is_ok());
        let refused = selector.resolve(&[]).expect_err("refused");
        assert_eq!(refused.message(), "field label not supported: spec.vmiName");
    }

    #[test]
    fn a_missing_field_counts_as_what_was_declared() {
        let selector = FieldSelector::parse("spec.unschedulable=false").expect("selector");
        let selector = selector
            .resolve(&["spec.unschedulable=false"])
            .expect("declared");
        assert!(selector.matches(&json!({"spec": {}})));
        assert!(!selector.matches(&json!({"spec": {"unschedulable": true}})));
    }
}
