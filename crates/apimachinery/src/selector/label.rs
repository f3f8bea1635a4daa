//! Label selectors: `a=b,c!=d,e in (f,g),h notin (i),j,!k`.

use std::fmt;

use serde_json::Value;

use crate::object::Stored;
use crate::status::Status;
use crate::trail::shortened;

/// What the labels of an object must be. Empty matches everything.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct LabelSelector {
    requirements: Vec<Requirement>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Requirement {
    key: String,
    operator: Operator,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Operator {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    Missing,
    Greater(i64),
    Less(i64),
}

/// Most requirements in one selector.
const REQUIREMENTS_MAX: usize = 100;

impl fmt::Display for LabelSelector {
    /// The text form; what [`Self::parse`] made is parsed to the same again.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, Requirement { key, operator }) in self.requirements.iter().enumerate() {
            let comma = if at > 0 { "," } else { "" };
            match operator {
                Operator::In(set) => write!(f, "{comma}{key} in ({})", set.join(",")),
                Operator::NotIn(set) => write!(f, "{comma}{key} notin ({})", set.join(",")),
                Operator::Exists => write!(f, "{comma}{key}"),
                Operator::Missing => write!(f, "{comma}!{key}"),
                Operator::Greater(bound) => write!(f, "{comma}{key}>{bound}"),
                Operator::Less(bound) => write!(f, "{comma}{key}<{bound}"),
            }?;
        }
        Ok(())
    }
}

impl LabelSelector {
    /// Parses the text form.
    ///
    /// # Errors
    /// 400 with the place that makes no sense.
    pub fn parse(text: &str) -> Result<Self, Status> {
        let mut requirements = Vec::new();
        for part in split(text) {
            requirements.push(requirement(part.trim()).ok_or_else(|| unparsable(text, part))?);
        }
        if requirements.len() > REQUIREMENTS_MAX {
            return Err(Status::bad_request(
                "labelSelector has too many requirements",
            ));
        }
        Ok(Self { requirements })
    }

    /// The form in a spec: `{matchLabels, matchExpressions}`.
    ///
    /// # Errors
    /// 400 if an expression has an unknown operator.
    pub fn from_json(selector: &Value) -> Result<Self, Status> {
        let mut requirements = Vec::new();
        for (key, value) in selector["matchLabels"].as_object().into_iter().flatten() {
            let values = vec![value.as_str().unwrap_or_default().to_owned()];
            requirements.push(Requirement {
                key: key.clone(),
                operator: Operator::In(values),
            });
        }
        for expression in selector["matchExpressions"]
            .as_array()
            .into_iter()
            .flatten()
        {
            let key = expression["key"].as_str().unwrap_or_default().to_owned();
            let list = expression["values"].as_array().into_iter().flatten();
            let values = list.filter_map(Value::as_str).map(str::to_owned).collect();
            let operator = match expression["operator"].as_str().unwrap_or_default() {
                "In" => Operator::In(values),
                "NotIn" => Operator::NotIn(values),
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::Missing,
                other => {
                    let why = format!("\"{other}\" is not a valid label selector operator");
                    return Err(Status::bad_request(why));
                }
            };
            requirements.push(Requirement { key, operator });
        }
        Ok(Self { requirements })
    }

    /// Whether everything matches.
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }

    /// Whether the labels of `object` match.
    pub fn matches(&self, object: &Stored) -> bool {
        self.fits(|key| object.label(key))
    }

    /// Whether labels that are asked for by their keys match.
    pub fn fits<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        let mut requirements = self.requirements.iter();
        requirements.all(|requirement| requirement.operator.matches(label(&requirement.key)))
    }
}

impl Operator {
    fn matches(&self, value: Option<&str>) -> bool {
        let parsed = || value.and_then(|text| text.parse::<i64>().ok());
        match self {
            Self::In(set) => value.is_some_and(|v| set.iter().any(|s| s == v)),
            Self::NotIn(set) => value.is_none_or(|v| set.iter().all(|s| s != v)),
            Self::Exists => value.is_some(),
            Self::Missing => value.is_none(),
            Self::Greater(bound) => parsed().is_some_and(|v| v > *bound),
            Self::Less(bound) => parsed().is_some_and(|v| v < *bound),
        }
    }
}

/// Splits at commas outside parentheses.
fn split(text: &str) -> Vec<&str> {
    if text.trim().is_empty() {
        return Vec::new();
    }
    let mut parts = Vec::new();
    let mut depth = 0_usize;
    let mut start = 0;
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn requirement(part: &str) -> Option<Requirement> {
    let make = |key: &str, operator| {
        let key = key.trim();
        is_key(key).then(|| Requirement {
            key: key.to_owned(),
            operator,
        })
    };
    let one = |value: &str| is_value(value.trim()).then(|| vec![value.trim().to_owned()]);
    if let Some(key) = part.strip_prefix('!') {
        return make(key, Operator::Missing);
    }
    if let Some((head, set)) = part.strip_suffix(')').and_then(|rest| rest.split_once('(')) {
        let values: Vec<String> = set
            .split(',')
            .map(|value| value.trim().to_owned())
            .collect();
        if !values.iter().all(|value| is_value(value)) {
            return None;
        }
        let (key, word) = head.trim().rsplit_once(char::is_whitespace)?;
        return match word {
            "in" => make(key, Operator::In(values)),
            "notin" => make(key, Operator::NotIn(values)),
            _ => None,
        };
    }
    if let Some((key, value)) = part.split_once("!=") {
        return make(key, Operator::NotIn(one(value)?));
    }
    if let Some((key, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
        return make(key, Operator::In(one(value)?));
    }
    if let Some((key, value)) = part.split_once('>') {
        return make(key, Operator::Greater(value.trim().parse().ok()?));
    }
    if let Some((key, value)) = part.split_once('<') {
        return make(key, Operator::Less(value.trim().parse().ok()?));
    }
    make(part, Operator::Exists)
}

/// `name` or `prefix/name`; the prefix is a DNS name.
fn is_key(key: &str) -> bool {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    !name.is_empty() && is_value(name) && prefix.is_none_or(is_dns_name)
}

/// Longest DNS name.
const DNS_NAME_MAX: usize = 253;

fn is_dns_name(text: &str) -> bool {
    let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    let label = |part: &str| {
        part.bytes().all(inner)
            && part.bytes().next().is_some_and(|c| c != b'-')
            && !part.ends_with('-')
    };
    text.len() <= DNS_NAME_MAX && text.split('.').all(label)
}

/// Whether a text can be the value of a label; the part of a key behind its prefix is spelled alike.
pub(crate) fn is_value(text: &str) -> bool {
    let inner = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.');
    let ends = |at: Option<&u8>| at.is_none_or(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    bytes.len() <= 63
        && bytes.iter().all(|c| inner(*c))
        && ends(bytes.first())
        && ends(bytes.last())
}

fn unparsable(text: &str, part: &str) -> Status {
    let text = shortened(text);
    Status::bad_request(format!(
        "unable to parse requirement: \"{}\" in label selector \"{text}\"",
        shortened(part.trim())
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn matches(selector: &str) -> bool {
        let object = json!({"metadata": {"labels": {"app": "web", "tier": "2", "x.io/y": ""}}});
        let selector = LabelSelector::parse(selector).expect("selector");
        selector.matches(&Stored::new(object, 1))
    }

    #[test]
    fn every_operator_matches_what_it_says() {
        for yes in [
            "",
            "app=web",
            "app==web",
            "app!=db",
            "app in (db, web)",
            "app notin (db)",
            "app",
            "!nope",
            "x.io/y=",
            "tier>1",
            "tier<3",
            "app=web,tier=2",
            "nope!=x",
            "nope notin (x)",
        ] {
            assert!(matches(yes), "{yes}");
        }
        for no in [
            "app=db",
            "app!=web",
            "app in (db)",
            "!app",
            "nope",
            "tier>2",
            "nope=x",
        ] {
            assert!(!matches(no), "{no}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in [
            "a=b=c d",
            "=x",
            "a in b",
            "a in (x",
            "a,,b",
            "a b",
            "-a",
            "a.",
            "a/",
            "/a",
            "A.b/c",
            "a=-b",
            "a in (b, c_)",
        ] {
            assert!(LabelSelector::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_selector_is_spelled_as_it_is_parsed() {
        let text = "a in (b),c notin (d,e),f,!g,h>1,x.io/i<-2,j in ()";
        let selector = LabelSelector::parse(text).expect("selector");
        assert_eq!(selector.to_string(), text);
    }

    #[test]
    fn the_form_in_a_spec_means_the_same() {
        let selector = json!({"matchLabels": {"app": "web"},
            "matchExpressions": [{"key": "tier", "operator": "In", "values": ["2"]}]});
        let selector = LabelSelector::from_json(&selector).expect("selector");
        let fits =
            |labels| selector.matches(&Stored::new(json!({"metadata": {"labels": labels}}), 1));
        assert!(fits(json!({"app": "web", "tier": "2"})));
        assert!(!fits(json!({"app": "web"})));
    }
}
