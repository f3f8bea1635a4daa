//! `Table`: what `kubectl get` prints.

mod age;
mod cell;
mod path;

use jiff::Timestamp;
use serde_json::{Value, json};

pub use age::human_age;
pub(crate) use path::Path;

use crate::kind::{Column, ColumnType, Source};

/// The columns of a view, with their paths parsed.
pub(crate) struct Columns {
    definitions: Value,
    cells: Vec<Cell>,
}

struct Cell {
    kind: ColumnType,
    source: Getter,
}

enum Getter {
    Name,
    Path(Path),
    Compute(fn(&Value, Timestamp) -> Value),
}

impl Columns {
    /// Adds `Name` in front unless it is declared, and `Age` if nothing is.
    ///
    /// # Errors
    /// Names the column whose path isn't understood.
    pub(crate) fn new(declared: &[Column]) -> Result<Self, String> {
        let age = [Column::age()];
        let declared = if declared.is_empty() { &age } else { declared };
        let mut definitions = Vec::new();
        let mut cells = Vec::new();
        if declared.iter().all(|column| column.name != "Name") {
            definitions.push(json!({
                "name": "Name",
                "type": "string",
                "format": "name",
                "description": "Name must be unique within a namespace.",
                "priority": 0,
            }));
            cells.push(Cell {
                kind: ColumnType::String,
                source: Getter::Name,
            });
        }
        for column in declared {
            definitions.push(json!({
                "name": column.name,
                "type": column.kind.as_str(),
                "format": column.format,
                "description": column.description,
                "priority": column.priority,
            }));
            cells.push(Cell {
                kind: column.kind,
                source: getter(column)?,
            });
        }
        Ok(Self {
            definitions: Value::Array(definitions),
            cells,
        })
    }

    /// `columnDefinitions`.
    pub(crate) fn definitions(&self) -> &Value {
        &self.definitions
    }

    /// One row. `object` is in storage form, `shown` is what `includeObject` asked for.
    pub(crate) fn row(&self, object: &Value, shown: Value, now: Timestamp) -> Value {
        let cells: Vec<Value> = self.cells.iter().map(|cell| cell.of(object, now)).collect();
        let mut row = json!({ "cells": cells });
        if !shown.is_null() {
            row["object"] = shown;
        }
        row
    }
}

impl Cell {
    fn of(&self, object: &Value, now: Timestamp) -> Value {
        match &self.source {
            Getter::Name => object["metadata"]["name"].clone(),
            Getter::Path(path) => cell::print(self.kind, path.first(object), now),
            Getter::Compute(compute) => compute(object, now),
        }
    }
}

fn getter(column: &Column) -> Result<Getter, String> {
    match &column.source {
        Source::Compute(compute) => Ok(Getter::Compute(*compute)),
        Source::Path(text) => Path::parse(text)
            .map(Getter::Path)
            .map_err(|why| format!("column {}: {why}", column.name)),
    }
}

/// The object as `PartialObjectMetadata`.
pub(crate) fn partial(object: &Value, version: &str) -> Value {
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": format!("meta.k8s.io/{version}"),
        "metadata": object["metadata"],
    })
}

/// A whole table.
pub(crate) fn table(version: &str, metadata: &Value, definitions: &Value, rows: &[Value]) -> Value {
    json!({
        "kind": "Table",
        "apiVersion": format!("meta.k8s.io/{version}"),
        "metadata": metadata,
        "columnDefinitions": definitions,
        "rows": rows,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_a_cell_for_each_column() {
        let columns = Columns::new(&[
            Column::path("Phase", ColumnType::String, ".status.phase", ""),
            Column::path(
                "Ready",
                ColumnType::String,
                ".status.conditions[?(@.type=='Ready')].status",
                "",
            ),
            Column::age(),
        ]);
        let object = json!({
            "metadata": {"name": "a", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
        });
        let now = "2026-01-01T00:16:01Z".parse().expect("time");
        let row = columns.expect("columns").row(&object, Value::Null, now);
        assert_eq!(row, json!({"cells": ["a", "Running", "True", "16m"]}));
    }

    #[test]
    fn a_kind_without_columns_shows_its_age() {
        let columns = Columns::new(&[]).expect("columns");
        assert_eq!(columns.definitions()[0]["format"], "name");
        assert_eq!(columns.definitions()[1]["name"], "Age");
    }
}
