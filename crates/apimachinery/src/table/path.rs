//! The part of JSONPath that columns use.

use serde_json::Value;

/// A parsed path.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Path {
    steps: Vec<Step>,
}

#[derive(Debug, Clone, PartialEq)]
enum Step {
    Field(String),
    /// Negative counts from the end.
    Index(i64),
    All,
    /// Items where the text at the path equals (or, negated, doesn't equal) the value.
    Where {
        path: Path,
        value: Option<String>,
        negated: bool,
    },
}

impl Path {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let trimmed = text.trim();
        let inner = trimmed
            .strip_prefix('{')
            .and_then(|rest| rest.strip_suffix('}'));
        let mut rest = inner.unwrap_or(trimmed).trim_start_matches('$');
        let mut steps = Vec::new();
        while !rest.is_empty() {
            let (step, after) =
                step(rest).ok_or_else(|| format!("bad path {text:?} at {rest:?}"))?;
            steps.push(step);
            rest = after;
        }
        Ok(Self { steps })
    }

    /// The first value the path leads to.
    pub(crate) fn first<'a>(&self, root: &'a Value) -> Option<&'a Value> {
        self.all(root).into_iter().next()
    }

    fn all<'a>(&self, root: &'a Value) -> Vec<&'a Value> {
        let mut found = vec![root];
        for step in &self.steps {
            found = found.into_iter().flat_map(|value| step.of(value)).collect();
        }
        found
    }
}

impl Step {
    fn of<'a>(&self, value: &'a Value) -> Vec<&'a Value> {
        match self {
            Self::Field(key) => value.get(key).into_iter().collect(),
            Self::Index(at) => {
                let list = value.as_array().map(Vec::as_slice).unwrap_or_default();
                let at = match usize::try_from(*at) {
                    Ok(at) => Some(at),
                    Err(_) => usize::try_from(at.unsigned_abs())
                        .ok()
                        .and_then(|back| list.len().checked_sub(back)),
                };
                at.and_then(|at| list.get(at)).into_iter().collect()
            }
            Self::All => match value {
                Value::Array(list) => list.iter().collect(),
                Value::Object(map) => map.values().collect(),
                Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Vec::new(),
            },
            Self::Where {
                path,
                value: wanted,
                negated,
            } => {
                let items = value.as_array().into_iter().flatten();
                items
                    .filter(|item| holds(path.first(item), wanted.as_deref(), *negated))
                    .collect()
            }
        }
    }
}

fn holds(found: Option<&Value>, wanted: Option<&str>, negated: bool) -> bool {
    let equal = match (found, wanted) {
        (None, _) => return false,
        (Some(_), None) => true,
        (Some(Value::String(text)), Some(wanted)) => text == wanted,
        (Some(other), Some(wanted)) => format!("{other}") == wanted,
    };
    equal != negated
}

/// One step and what follows it.
fn step(text: &str) -> Option<(Step, &str)> {
    if let Some(rest) = text.strip_prefix('.') {
        if rest.starts_with('[') {
            return step(rest);
        }
        if let Some(rest) = rest.strip_prefix('*') {
            return Some((Step::All, rest));
        }
        return field(rest);
    }
    let rest = text.strip_prefix('[')?;
    if let Some(rest) = rest.strip_prefix("?(") {
        let end = rest.find(")]")?;
        return Some((condition(&rest[..end])?, &rest[end + 2..]));
    }
    let end = rest.find(']')?;
    let (inside, after) = (&rest[..end], &rest[end + 1..]);
    if inside == "*" {
        return Some((Step::All, after));
    }
    if let Some(key) = unquote(inside) {
        return Some((Step::Field(key), after));
    }
    Some((Step::Index(inside.parse().ok()?), after))
}

/// A field up to the next dot or bracket; dots of a name come escaped: `.labels.a\.b/c`.
fn field(text: &str) -> Option<(Step, &str)> {
    let mut name = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => name.push(chars.next()?.1),
            '.' | '[' => return (!name.is_empty()).then(|| (Step::Field(name), &text[at..])),
            other => name.push(other),
        }
    }
    (!name.is_empty()).then_some((Step::Field(name), ""))
}

/// `@.type=='Ready'`, `@.type!="x"`, `@.type`.
fn condition(text: &str) -> Option<Step> {
    let split = |operator: &str| text.split_once(operator).map(|(l, r)| (l.trim(), r.trim()));
    let (left, right, negated) = if let Some((left, right)) = split("==") {
        (left, Some(right), false)
    } else if let Some((left, right)) = split("!=") {
        (left, Some(right), true)
    } else {
        (text.trim(), None, false)
    };
    let path = Path::parse(left.strip_prefix('@')?).ok()?;
    let value = right.map(|right| unquote(right).unwrap_or_else(|| right.to_owned()));
    Some(Step::Where {
        path,
        value,
        negated,
    })
}

fn unquote(text: &str) -> Option<String> {
    let quoted = |quote: char| {
        text.strip_prefix(quote)?
            .strip_suffix(quote)
            .map(str::to_owned)
    };
    quoted('\'').or_else(|| quoted('"'))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn paths_of_known_custom_kinds_lead_to_their_values() {
        let object = json!({
            "metadata": {"labels": {"a.b/c": "x"}},
            "status": {"list": [{"ip": "1"}, {"ip": "2"}], "conditions": [
                {"type": "A", "status": "False"}, {"type": "Ready", "status": "True"}]},
        });
        let first = |path: &str| Path::parse(path).expect(path).first(&object).cloned();
        for (path, expected) in [
            (".status.list[0].ip", "1"),
            (".status.list[-1].ip", "2"),
            (".status.list[*].ip", "1"),
            ("{.status.conditions[?(@.type==\"Ready\")].status}", "True"),
            (".status.conditions[?(@.type=='Ready')].status", "True"),
            (".status.conditions[?(@.type!='A')].status", "True"),
            (".metadata.labels['a.b/c']", "x"),
            (".metadata.labels.a\\.b/c", "x"),
        ] {
            assert_eq!(first(path), Some(json!(expected)), "{path}");
        }
        assert_eq!(first(".status.none.deeper"), None);
        assert_eq!(first(".status.list[9]"), None);
    }

    #[test]
    fn a_path_that_is_not_understood_is_an_error() {
        for bad in ["status", ".a[", ".a[?(x)]", "..a"] {
            assert!(Path::parse(bad).is_err(), "{bad}");
        }
    }
}
