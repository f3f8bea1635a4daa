//! A configuration as TOML with one whole key a line, as `--set` and `--print-config` know it.

use serde::Serialize;
use serde_json::Value;

/// What stands for a secret.
const HIDDEN: &str = "(hidden)";

/// The configuration as TOML, with secrets hidden. A key without a value is a comment.
pub(crate) fn printable<T: Serialize>(config: &T) -> String {
    let mut lines = String::new();
    // A configuration is read from text, so it can be written as text.
    let value = serde_json::to_value(config).unwrap_or_default();
    write_keys(&mut lines, "", &value);
    lines
}

fn write_keys(lines: &mut String, key: &str, value: &Value) {
    match value {
        Value::Object(map) if key.is_empty() || !map.is_empty() => {
            for (name, value) in map {
                let name = bare_or_quoted(name);
                let key = if key.is_empty() {
                    name
                } else {
                    format!("{key}.{name}")
                };
                write_keys(lines, &key, value);
            }
        }
        Value::Null => lines.push_str(&format!("# {key} is not set\n")),
        Value::String(text) => {
            let text = quoted(&without_secrets(key, text));
            lines.push_str(&format!("{key} = {text}\n"));
        }
        Value::Object(_) | Value::Array(_) | Value::Bool(_) | Value::Number(_) => {
            lines.push_str(&format!("{key} = {}\n", inline(key, value)));
        }
    }
}

fn inline(key: &str, value: &Value) -> String {
    match value {
        Value::String(text) => quoted(&without_secrets(key, text)),
        Value::Array(values) => {
            let values: Vec<String> = values.iter().map(|value| inline(key, value)).collect();
            format!("[{}]", values.join(", "))
        }
        Value::Object(map) => {
            let entries: Vec<String> = map
                .iter()
                .filter(|(_, value)| !value.is_null())
                .map(|(name, value)| format!("{} = {}", bare_or_quoted(name), inline(name, value)))
                .collect();
            format!("{{{}}}", entries.join(", "))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => value.to_string(),
    }
}

/// A TOML basic string: JSON's escapes are a part of TOML's.
pub(super) fn quoted(text: &str) -> String {
    Value::from(text).to_string().replace('\x7f', "\\u007f")
}

fn bare_or_quoted(key: &str) -> String {
    let bare = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if !key.is_empty() && key.bytes().all(bare) {
        key.to_owned()
    } else {
        quoted(key)
    }
}

/// The value of `key` without what nobody may read over a shoulder: secrets and URLs' passwords.
fn without_secrets(key: &str, text: &str) -> String {
    let name = key.rsplit('.').next().unwrap_or(key);
    let secret = ["password", "secret", "token"]
        .iter()
        .any(|word| name == *word || name.ends_with(&format!("_{word}")));
    if secret && !text.is_empty() {
        return HIDDEN.to_owned();
    }
    let Some((scheme, rest)) = text.split_once("://") else {
        return text.to_owned();
    };
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let authority = match authority.rsplit_once('@') {
        Some((user, host)) => match user.split_once(':') {
            Some((user, _)) => format!("{user}:{HIDDEN}@{host}"),
            None => format!("{user}@{host}"),
        },
        None => authority.to_owned(),
    };
    format!("{scheme}://{authority}{}", without_parameter(path))
}

/// `path?query` without the value of a `password` in the query.
fn without_parameter(path: &str) -> String {
    let Some((path, query)) = path.split_once('?') else {
        return path.to_owned();
    };
    let parameters: Vec<String> = query
        .split('&')
        .map(|parameter| match parameter.split_once('=') {
            Some((name, _)) if name.contains("password") => format!("{name}={HIDDEN}"),
            Some(_) | None => parameter.to_owned(),
        })
        .collect();
    format!("{path}?{}", parameters.join("&"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn secrets_are_hidden_and_the_rest_is_shown() {
        for (key, text, shown) in [
            (
                "url",
                "postgres://u:p@h:5432/d",
                "postgres://u:(hidden)@h:5432/d",
            ),
            ("url", "postgres://u:p/@x@h/d", "postgres://u:p/@x@h/d"),
            (
                "url",
                "postgres:///d?host=/run&password=p",
                "postgres:///d?host=/run&password=(hidden)",
            ),
            ("url", "https://[::1]:7101", "https://[::1]:7101"),
            ("a.admin_token", "t", "(hidden)"),
            ("token_file", "/etc/tokens", "/etc/tokens"),
        ] {
            assert_eq!(without_secrets(key, text), shown);
        }
    }

    #[test]
    fn every_key_is_whole_and_a_key_without_value_is_told() {
        let config = json!({
            "common": {"log": "json", "otlp_endpoint": null},
            "labels": {},
            "pools": [{"path": "/a", "shared": true}],
            "networks": {"a.b": "br0"},
        });
        let expected = "common.log = \"json\"\n\
            # common.otlp_endpoint is not set\n\
            labels = {}\n\
            networks.\"a.b\" = \"br0\"\n\
            pools = [{path = \"/a\", shared = true}]\n";
        assert_eq!(printable(&config), expected);
    }
}
