//! Pages of `/docs`: from OpenAPI v3 documents to HTML.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use maud::{DOCTYPE, Markup, html};
use serde_json::{Map, Value};

pub(super) const STYLE: &str = include_str!("style.css");

const TITLE: &str = "Godwit API";
const SCHEMAS: &str = "#/components/schemas/";

/// All groups and versions with their kinds.
pub(super) fn index(documents: &[(&str, Value)]) -> Markup {
    let body = html! {
        p {
            "Everything here is also at " code { "/openapi/v3" } ", and in "
            code { "kubectl explain KIND" } "."
        }
        table {
            tr { th { "Group and version" } th { "Kinds" } }
            @for (path, document) in documents {
                tr {
                    td { a href={ "/docs/" (path) } { (path) } }
                    td {
                        @for kind in kinds(document).keys() {
                            a href={ "/docs/" (path) "#kind-" (kind) } { (kind) } " "
                        }
                    }
                }
            }
        }
    };
    page(TITLE, &body)
}

/// Kinds with their operations, then all types with their fields.
pub(super) fn group_version(path: &str, document: &Value) -> Markup {
    let schemas = object(&document["components"]["schemas"]);
    let kinds = kinds(document);
    let body = html! {
        p { a href="/docs" { "All groups" } }
        @for (kind, operations) in &kinds {
            section {
                h2 id={ "kind-" (kind) } { (kind) }
                @if let Some(name) = schema_of(schemas, kind) {
                    p { "Fields: " (link(name)) }
                }
                (operations_table(operations))
            }
        }
        h2 { "Types" }
        @for (name, schema) in schemas {
            (type_section(name, schema))
        }
    };
    page(path, &body)
}

fn page(title: &str, body: &Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (title) }
                link rel="stylesheet" href="/docs/style.css";
            }
            body { h1 { (title) } (body) }
        }
    }
}

/// One thing that can be done.
struct Operation<'a> {
    method: String,
    path: &'a str,
    what: &'a Value,
}

/// Operations by the kind that they are about.
fn kinds(document: &Value) -> BTreeMap<&str, Vec<Operation<'_>>> {
    let mut kinds: BTreeMap<&str, Vec<Operation<'_>>> = BTreeMap::new();
    for (path, item) in object(&document["paths"]) {
        for (method, what) in object(item) {
            let Some(kind) = what["x-kubernetes-group-version-kind"]["kind"].as_str() else {
                continue;
            };
            kinds.entry(kind).or_default().push(Operation {
                method: method.to_uppercase(),
                path,
                what,
            });
        }
    }
    kinds
}

fn operations_table(operations: &[Operation<'_>]) -> Markup {
    html! {
        table {
            tr { th { "Request" } th { "What it does" } th { "Parameters" } }
            @for Operation { method, path, what } in operations {
                tr {
                    td { code { (method) " " (path) } }
                    td { (text(&what["description"])) }
                    td {
                        @for parameter in list(&what["parameters"]) {
                            span title=(text(&parameter["description"])) {
                                code { (text(&parameter["name"])) }
                            }
                            " "
                        }
                    }
                }
            }
        }
    }
}

/// The schema whose name ends in the kind's.
fn schema_of<'a>(schemas: &'a Map<String, Value>, kind: &str) -> Option<&'a str> {
    let ends = |name: &&String| name.rsplit('.').next() == Some(kind);
    schemas.keys().find(ends).map(String::as_str)
}

fn type_section(name: &str, schema: &Value) -> Markup {
    let required: BTreeSet<&str> = list(&schema["required"])
        .iter()
        .filter_map(Value::as_str)
        .collect();
    let fields = object(&schema["properties"]);
    html! {
        section {
            h3 id={ "type-" (name) } { (short(name)) }
            p { small { (name) } }
            p { (text(&schema["description"])) }
            @if !fields.is_empty() {
                table {
                    tr { th { "Field" } th { "Type" } th { "Meaning" } }
                    @for (field, schema) in fields {
                        tr {
                            td {
                                code { (field) }
                                @if required.contains(field.as_str()) { " " em { "required" } }
                            }
                            td { (type_of(schema)) }
                            td { (text(&schema["description"])) (values(schema)) }
                        }
                    }
                }
            }
        }
    }
}

/// A type in a few words; objects without a name show their fields.
fn type_of(schema: &Value) -> Markup {
    let reference = schema["$ref"]
        .as_str()
        .or_else(|| schema["allOf"][0]["$ref"].as_str());
    if let Some(name) = reference.and_then(|reference| reference.strip_prefix(SCHEMAS)) {
        return link(name);
    }
    if schema["x-kubernetes-int-or-string"] == true {
        return html! { "integer or string" };
    }
    let inner = object(&schema["properties"]);
    match schema["type"].as_str() {
        Some("array") => html! { "list of " (type_of(&schema["items"])) },
        Some("object") if schema["additionalProperties"].is_object() => {
            html! { "map of " (type_of(&schema["additionalProperties"])) }
        }
        Some("object") if !inner.is_empty() => html! {
            details {
                summary { "object" }
                dl {
                    @for (field, schema) in inner {
                        dt { code { (field) } ": " (type_of(schema)) }
                        dd { (text(&schema["description"])) (values(schema)) }
                    }
                }
            }
        },
        Some(name) => html! { (name) },
        None => html! { "any" },
    }
}

fn values(schema: &Value) -> Markup {
    let allowed = list(&schema["enum"]);
    html! {
        @if !allowed.is_empty() {
            " One of:"
            @for value in allowed { " " code { (value.to_string()) } }
        }
    }
}

fn link(name: &str) -> Markup {
    html! { a href={ "#type-" (name) } { (short(name)) } }
}

/// The last part of a schema's name.
fn short(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn object(value: &Value) -> &Map<String, Value> {
    static NONE: LazyLock<Map<String, Value>> = LazyLock::new(Map::new);
    value.as_object().unwrap_or(&NONE)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn document() -> Value {
        let kind = json!({"group": "x.io", "version": "v1", "kind": "Toy"});
        json!({
            "paths": {"/apis/x.io/v1/toys": {"get": {
                "description": "list <b>Toys</b>",
                "x-kubernetes-group-version-kind": kind,
                "parameters": [{"name": "limit", "description": "\"><script>"}],
            }}},
            "components": {"schemas": {"io.x.v1.Toy": {
                "description": "A toy.", "required": ["size"],
                "properties": {
                    "size": {"type": "integer", "description": "In mm."},
                    "parts": {"type": "array", "items": {"$ref": "#/components/schemas/io.x.v1.Toy"}},
                    "shape": {"type": "object", "properties": {"round": {"type": "boolean"}}},
                },
            }}},
        })
    }

    #[test]
    fn a_page_shows_kinds_operations_and_fields() {
        let index = index(&[("apis/x.io/v1", document())]).0;
        assert!(
            index.contains("href=\"/docs/apis/x.io/v1#kind-Toy\""),
            "{index}"
        );
        let page = group_version("apis/x.io/v1", &document()).0;
        for part in [
            "GET /apis/x.io/v1/toys",
            "href=\"#type-io.x.v1.Toy\"",
            "list of <a",
            "<em>required</em>",
            "<code>round</code>: boolean",
        ] {
            assert!(page.contains(part), "{part} is not in {page}");
        }
    }

    #[test]
    fn texts_of_schemas_are_shown_and_not_run() {
        let page = group_version("apis/x.io/v1", &document()).0;
        assert!(
            page.contains("list &lt;b&gt;Toys") && !page.contains("<script"),
            "{page}"
        );
    }
}
