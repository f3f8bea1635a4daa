//! `cargo xtask dashboards`: Grafana's dashboards out of one table of panels.
//!
//! The JSON files are checked in; a test says when they are not what the table makes.

mod boards;

use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::tools;
use boards::BOARDS;

/// Grafana's grid is so wide.
const WIDTH: u32 = 24;

/// One dashboard.
struct Board {
    /// File name without its end, and part of the uid.
    name: &'static str,
    title: &'static str,
    description: &'static str,
    /// Variables that are filled from labels of a metric: name, label, metric.
    variables: &'static [(&'static str, &'static str, &'static str)],
    rows: &'static [(&'static str, &'static [Panel])],
}

/// One panel: what it is for, and its queries with their legends.
struct Panel {
    title: &'static str,
    description: &'static str,
    kind: Kind,
    unit: &'static str,
    queries: &'static [(&'static str, &'static str)],
}

/// How a panel looks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// One number; six in a row.
    Stat,
    /// Lines over time; three in a row.
    Lines,
    /// Areas on top of each other; three in a row.
    Stacked,
    /// Lines with points of single traces on them.
    Traced,
    /// Traces that a TraceQL query finds; the whole width.
    Traces,
}

impl Kind {
    const fn size(self) -> (u32, u32) {
        match self {
            Self::Stat => (4, 4),
            Self::Lines | Self::Stacked | Self::Traced => (8, 8),
            Self::Traces => (WIDTH, 8),
        }
    }
}

/// Writes every dashboard.
///
/// # Errors
/// When a file can't be written.
pub(crate) fn run() -> Result<()> {
    for board in &BOARDS {
        let path = path(board);
        std::fs::write(&path, text(board)?).with_context(|| format!("write {}", path.display()))?;
        println!("{}", path.display());
    }
    Ok(())
}

fn path(board: &Board) -> PathBuf {
    let folder = tools::root().join("observability/dashboards");
    folder.join(format!("{}.json", board.name))
}

fn text(board: &Board) -> Result<String> {
    let mut text = serde_json::to_string_pretty(&dashboard(board))?;
    text.push('\n');
    Ok(text)
}

fn dashboard(board: &Board) -> Value {
    let mut place = Place::default();
    let mut panels = vec![];
    for (title, row) in board.rows {
        panels.push(place.row(title));
        panels.extend(row.iter().map(|panel| place.panel(panel)));
    }
    json!({
        "uid": format!("godwit-{}", board.name),
        "title": format!("Godwit: {}", board.title),
        "description": board.description,
        "tags": ["godwit"],
        "editable": false,
        "graphTooltip": 1,
        "schemaVersion": 39,
        "version": 1,
        "refresh": "10s",
        "time": { "from": "now-1h", "to": "now" },
        "timezone": "",
        "templating": { "list": variables(board) },
        "annotations": { "list": [] },
        "links": [{
            "title": "Godwit", "type": "dashboards", "tags": ["godwit"], "asDropdown": true,
            "keepTime": true, "includeVars": false,
        }],
        "panels": panels,
    })
}

fn variables(board: &Board) -> Vec<Value> {
    let source = |name: &str, kind: &str, label: &str| {
        json!({
            "name": name, "type": "datasource", "query": kind, "label": label, "current": {},
            "hide": 0,
        })
    };
    let mut all = vec![source("datasource", "prometheus", "Metrics")];
    let traced = |panel: &Panel| panel.kind == Kind::Traces;
    if board.rows.iter().any(|(_, row)| row.iter().any(traced)) {
        all.push(source("traces", "tempo", "Traces"));
    }
    all.extend(board.variables.iter().map(|(name, label, metric)| {
        json!({
            "name": name,
            "type": "query",
            "label": label,
            "datasource": { "type": "prometheus", "uid": "${datasource}" },
            "query": { "query": format!("label_values({metric}, {name})"), "refId": name },
            "refresh": 2,
            "includeAll": true,
            "allValue": ".+",
            "multi": true,
            "current": { "text": "All", "value": "$__all" },
        })
    }));
    all
}

/// Where the next panel goes.
#[derive(Default)]
struct Place {
    id: u32,
    x: u32,
    y: u32,
    /// Height of the line of panels that is being filled.
    height: u32,
}

impl Place {
    fn row(&mut self, title: &str) -> Value {
        let grid = self.take(WIDTH, 1);
        json!({
            "id": self.id, "type": "row", "title": title, "gridPos": grid, "collapsed": false,
            "panels": [],
        })
    }

    fn take(&mut self, width: u32, height: u32) -> Value {
        if self.x + width > WIDTH || (self.x > 0 && height != self.height) {
            self.y += self.height;
            self.x = 0;
        }
        self.id += 1;
        self.height = height;
        let grid = json!({ "x": self.x, "y": self.y, "w": width, "h": height });
        self.x += width;
        grid
    }

    fn panel(&mut self, panel: &Panel) -> Value {
        let (width, height) = panel.kind.size();
        let grid = self.take(width, height);
        let mut value = json!({
            "id": self.id,
            "title": panel.title,
            "description": panel.description,
            "gridPos": grid,
            "datasource": { "type": "prometheus", "uid": "${datasource}" },
            "fieldConfig": { "defaults": { "unit": panel.unit }, "overrides": [] },
            "targets": panel.queries.iter().zip('A'..).map(|(query, id)| target(panel, *query, id))
                .collect::<Vec<_>>(),
        });
        match panel.kind {
            Kind::Stat => {
                value["type"] = json!("stat");
                value["options"] = json!({
                    "reduceOptions": { "calcs": ["lastNotNull"] }, "colorMode": "none",
                });
            }
            Kind::Lines | Kind::Traced => value["type"] = json!("timeseries"),
            Kind::Stacked => {
                value["type"] = json!("timeseries");
                value["fieldConfig"]["defaults"]["custom"] = json!({
                    "fillOpacity": 30, "stacking": { "mode": "normal" },
                });
            }
            Kind::Traces => {
                value["type"] = json!("table");
                value["datasource"] = json!({ "type": "tempo", "uid": "${traces}" });
            }
        }
        value
    }
}

fn target(panel: &Panel, (query, legend): (&str, &str), id: char) -> Value {
    let id = id.to_string();
    if panel.kind == Kind::Traces {
        return json!({ "refId": id, "queryType": "traceql", "query": query, "limit": 20 });
    }
    let mut target = json!({ "refId": id, "expr": query, "legendFormat": legend });
    if panel.kind == Kind::Stat {
        target["instant"] = json!(true);
    }
    if panel.kind == Kind::Traced {
        target["exemplar"] = json!(true);
    }
    target
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dashboards_are_what_the_table_makes() {
        for board in &BOARDS {
            let path = path(board);
            let found = std::fs::read_to_string(&path).unwrap_or_default();
            assert!(
                found == text(board).unwrap(),
                "{}: `cargo xtask dashboards` writes it anew",
                path.display()
            );
        }
    }
}
