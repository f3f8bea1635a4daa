//! The table of values in the chart's README, made of the comments in values.yaml.

use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::Made;

/// What begins a value's description.
const MARK: &str = "# -- ";
/// What stands around the table.
const BEGIN: &str = "<!-- values, made by cargo xtask chart --update -->\n";
const END: &str = "<!-- end of values -->\n";

/// A described value: its path and its description.
type Row = (Vec<String>, String);

/// Compares the README's table with values.yaml, or writes it.
pub(super) fn check(chart: &Path, made: Made) -> Result<Vec<String>> {
    let values = std::fs::read_to_string(chart.join("values.yaml"))?;
    let path = chart.join("README.md");
    let readme = std::fs::read_to_string(&path).context("read the chart's README.md")?;
    let (Some(begin), Some(end)) = (readme.find(BEGIN), readme.find(END)) else {
        bail!("{} has no place for the table of values", path.display());
    };
    let before = &readme[..begin + BEGIN.len()];
    let wanted = format!("{before}\n{}\n{}", table(&values)?, &readme[end..]);
    if made == Made::Written {
        std::fs::write(&path, wanted)?;
        return Ok(vec![]);
    }
    let stale = "README.md of the chart is behind values.yaml: `cargo xtask chart --update`";
    Ok((readme != wanted)
        .then(|| stale.to_owned())
        .into_iter()
        .collect())
}

fn table(text: &str) -> Result<String> {
    let values: Value = serde_yaml_ng::from_str(text)?;
    let rows = rows(text);
    undescribed(&values, &rows)?;
    let mut table = "| value | default | |\n|---|---|---|\n".to_owned();
    for (path, description) in rows {
        let value = path.iter().fold(&values, |value, key| &value[key.as_str()]);
        let cell = |text: &str| text.replace('|', "\\|");
        table.push_str(&format!(
            "| `{}` | `{}` | {} |\n",
            path.join("."),
            cell(&value.to_string()),
            cell(&description)
        ));
    }
    Ok(table)
}

/// Every described value, in the order of the file.
fn rows(text: &str) -> Vec<Row> {
    let mut rows = vec![];
    let mut path: Vec<(usize, String)> = vec![];
    let mut description: Option<String> = None;
    for line in text.lines() {
        let trimmed = line.trim_start();
        let indent = line.len() - trimmed.len();
        if let Some(begun) = trimmed.strip_prefix(MARK) {
            description = Some(begun.to_owned());
        } else if let Some(more) = trimmed.strip_prefix("# ") {
            if let Some(description) = &mut description {
                description.push(' ');
                description.push_str(more);
            }
        } else if let Some((key, _)) = trimmed.split_once(':') {
            path.retain(|(outer, _)| *outer < indent);
            path.push((indent, key.to_owned()));
            if let Some(description) = description.take() {
                let keys = path.iter().map(|(_, key)| key.clone());
                rows.push((keys.collect(), description));
            }
        }
    }
    rows
}

/// Refuses a value that neither has a description nor is within one that has.
fn undescribed(values: &Value, rows: &[Row]) -> Result<()> {
    let mut open = vec![(vec![], values)];
    while let Some((path, value)) = open.pop() {
        if rows.iter().any(|(described, _)| *described == path) {
            continue;
        }
        match value.as_object().filter(|map| !map.is_empty()) {
            None => bail!("{} has no description in values.yaml", path.join(".")),
            Some(map) => open.extend(map.iter().map(|(key, value)| {
                let mut path: Vec<String> = path.clone();
                path.push(key.clone());
                (path, value)
            })),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALUES: &str = "# Of all.\n\nouter:\n  # -- How many,\n  # at least.\n  replicas: 2\n        # -- A map.\nmap:\n  a: b\n";

    #[test]
    fn a_row_has_the_path_the_default_and_the_whole_description() {
        let table = table(VALUES).unwrap();
        assert!(
            table.contains("| `outer.replicas` | `2` | How many, at least. |\n"),
            "{table}"
        );
        assert!(table.contains("| `map` | `{\"a\":\"b\"}` | A map. |\n"));
    }

    #[test]
    fn a_value_without_description_is_refused_by_name() {
        let text = format!("{VALUES}more:\n  left: out\n");
        let error = table(&text).unwrap_err().to_string();
        assert!(error.contains("more.left"), "{error}");
    }
}
