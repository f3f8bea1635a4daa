//! Field selectors: `metadata.name=a,status.phase!=Failed`.

use std::fmt;

use serde_json::Value;

use crate::object::Stored;
use crate::status::Status;
use crate::trail::shortened;

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

impl fmt::Display for FieldSelector {
    /// The text form, which is parsed to the same again.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, term) in self.terms.iter().enumerate() {
            let comma = if at > 0 { "," } else { "" };
            let operator = if term.negated { "!=" } else { "=" };
            write!(f, "{comma}{}{operator}{}", term.path, escape(&term.value))?;
        }
        Ok(())
    }
}

impl FieldSelector {
    /// Parses the text form. Commas, equal signs and backslashes in values come escaped with a
    /// backslash.
    ///
    /// # Errors
    /// 400 if a term has no operator, or a value isn't escaped as it should be.
    pub fn parse(text: &str) -> Result<Self, Status> {
        let mut terms = Vec::new();
        for part in split(text) {
            let Some((path, negated, value)) = term(part) else {
                let (text, part) = (shortened(text), shortened(part));
                let why = format!("invalid selector: '{text}'; can't understand '{part}'");
                return Err(Status::bad_request(why));
            };
            let (path, value, missing) = (path.to_owned(), unescape(value)?, String::new());
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
    pub fn matches(&self, object: &Stored) -> bool {
        // By name and namespace first: for that nothing has to be read.
        let known = |term: &&Term| ALWAYS.contains(&term.path.as_str());
        let (mut known, mut others): (Vec<_>, Vec<_>) = self.terms.iter().partition(known);
        let name = object.name();
        let known = known.drain(..).all(|term| match term.path == ALWAYS[0] {
            true => term.fits(name.name),
            false => term.fits(name.namespace),
        });
        known
            && (others.is_empty()
                || object.with(|object| {
                    others.drain(..).all(|term| {
                        let found = text_at(object, &term.path);
                        term.fits(found.as_deref().unwrap_or(&term.missing))
                    })
                }))
    }
}

impl Term {
    fn fits(&self, found: &str) -> bool {
        (found == self.value) != self.negated
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

/// Path, whether it is negated, and value: the first operator counts.
fn term(part: &str) -> Option<(&str, bool, &str)> {
    let equal = part.find('=')?;
    let (path, value) = (&part[..equal], &part[equal + 1..]);
    match path.strip_suffix('!') {
        Some(path) => Some((path, true, value)),
        None => Some((path, false, value.strip_prefix('=').unwrap_or(value))),
    }
}

/// As in Kubernetes, a value says `\\`, `\,` and `\=`, and no other escapes.
fn unescape(value: &str) -> Result<String, Status> {
    let refuse = |why: String| {
        Err(Status::bad_request(format!(
            "invalid field selector: {why}"
        )))
    };
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(known @ ('\\' | ',' | '=')) => out.push(known),
                Some(other) => return refuse(format!("invalid escape sequence: \\{other}")),
                None => return refuse("invalid escape sequence: \\".to_owned()),
            },
            ',' | '=' => {
                return refuse(format!("unescaped character in value: {}", u32::from(c)));
            }
            other => out.push(other),
        }
    }
    Ok(out)
}

fn escape(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    for c in value.chars() {
        if matches!(c, '\\' | ',' | '=') {
            out.push('\\');
        }
        out.push(c);
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
                .matches(&Stored::new(object.clone(), 1))
        };
        assert!(matches("metadata.name=a,status.phase!=Failed"));
        assert!(matches("spec.nodeName="));
        assert!(!matches("status.phase!=Running"));
    }

    #[test]
    fn values_are_escaped_as_in_kubernetes() {
        let parsed = |text: &str| FieldSelector::parse(text).map(|selector| selector.terms);
        let terms = parsed(r"a!=x\,y\=z\\,b==").expect("selector");
        assert_eq!(
            (terms[0].path.as_str(), terms[0].value.as_str()),
            ("a", r"x,y=z\")
        );
        assert!(terms[0].negated && !terms[1].negated);
        assert_eq!(terms[1].value, "");
        for bad in [r"a=\x", r"a=x\", "a=b=c", "a=b!=c", "a"] {
            assert!(parsed(bad).is_err(), "{bad}");
        }
        let text = r"a!=x\,y\=z\\,b=";
        assert_eq!(
            FieldSelector::parse(text).expect("selector").to_string(),
            text
        );
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
        assert!(selector.matches(&Stored::new(json!({"spec": {}}), 1)));
        assert!(!selector.matches(&Stored::new(json!({"spec": {"unschedulable": true}}), 1)));
    }
}
