//! The v2 document in the protobuf form that kubectl reads.
//!
//! Messages and field numbers are those of gnostic's OpenAPIv2.proto; only what our own documents
//! hold is here. Free-form values travel as YAML text, of which JSON is a part.

use prost::Message;
use serde_json::Value;

/// Encodes a document made by [`super::v2`].
pub(crate) fn encode(document: &Value) -> Vec<u8> {
    let info = Info {
        title: text(&document["info"], "title"),
        version: text(&document["info"], "version"),
    };
    let path = entries(&document["paths"])
        .map(|(name, item)| NamedPathItem {
            name,
            value: Some(path_item(item)),
        })
        .collect();
    Document {
        swagger: text(document, "swagger"),
        info: Some(info),
        paths: Some(Paths { path }),
        definitions: Some(Schemas {
            all: named_schemas(&document["definitions"]),
        }),
    }
    .encode_to_vec()
}

#[derive(Clone, PartialEq, Message)]
struct Document {
    #[prost(string, tag = "1")]
    swagger: String,
    #[prost(message, optional, tag = "2")]
    info: Option<Info>,
    #[prost(message, optional, tag = "8")]
    paths: Option<Paths>,
    #[prost(message, optional, tag = "9")]
    definitions: Option<Schemas>,
}

#[derive(Clone, PartialEq, Message)]
struct Info {
    #[prost(string, tag = "1")]
    title: String,
    #[prost(string, tag = "2")]
    version: String,
}

#[derive(Clone, PartialEq, Message)]
struct Paths {
    #[prost(message, repeated, tag = "2")]
    path: Vec<NamedPathItem>,
}

#[derive(Clone, PartialEq, Message)]
struct NamedPathItem {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    value: Option<PathItem>,
}

#[derive(Clone, PartialEq, Message)]
struct PathItem {
    #[prost(message, optional, tag = "2")]
    get: Option<Operation>,
    #[prost(message, optional, tag = "3")]
    put: Option<Operation>,
    #[prost(message, optional, tag = "4")]
    post: Option<Operation>,
    #[prost(message, optional, tag = "5")]
    delete: Option<Operation>,
    #[prost(message, optional, tag = "8")]
    patch: Option<Operation>,
    #[prost(message, repeated, tag = "9")]
    parameters: Vec<ParametersItem>,
}

#[derive(Clone, PartialEq, Message)]
struct Operation {
    #[prost(string, repeated, tag = "1")]
    tags: Vec<String>,
    #[prost(string, tag = "3")]
    description: String,
    #[prost(string, tag = "5")]
    operation_id: String,
    #[prost(string, repeated, tag = "6")]
    produces: Vec<String>,
    #[prost(string, repeated, tag = "7")]
    consumes: Vec<String>,
    #[prost(message, repeated, tag = "8")]
    parameters: Vec<ParametersItem>,
    #[prost(message, optional, tag = "9")]
    responses: Option<Responses>,
    #[prost(message, repeated, tag = "13")]
    vendor_extension: Vec<NamedAny>,
}

#[derive(Clone, PartialEq, Message)]
struct ParametersItem {
    #[prost(message, optional, tag = "1")]
    parameter: Option<Parameter>,
}

#[derive(Clone, PartialEq, Message)]
struct Parameter {
    #[prost(message, optional, tag = "1")]
    body: Option<BodyParameter>,
    #[prost(message, optional, tag = "2")]
    non_body: Option<NonBodyParameter>,
}

#[derive(Clone, PartialEq, Message)]
struct BodyParameter {
    #[prost(string, tag = "2")]
    name: String,
    #[prost(string, tag = "3")]
    place: String,
    #[prost(bool, tag = "4")]
    required: bool,
    #[prost(message, optional, tag = "5")]
    schema: Option<Schema>,
}

#[derive(Clone, PartialEq, Message)]
struct NonBodyParameter {
    #[prost(message, optional, tag = "3")]
    query: Option<QueryParameter>,
    #[prost(message, optional, tag = "4")]
    path: Option<PathParameter>,
}

#[derive(Clone, PartialEq, Message)]
struct QueryParameter {
    #[prost(string, tag = "2")]
    place: String,
    #[prost(string, tag = "3")]
    description: String,
    #[prost(string, tag = "4")]
    name: String,
    #[prost(string, tag = "6")]
    kind: String,
    #[prost(bool, tag = "20")]
    unique_items: bool,
}

#[derive(Clone, PartialEq, Message)]
struct PathParameter {
    #[prost(bool, tag = "1")]
    required: bool,
    #[prost(string, tag = "2")]
    place: String,
    #[prost(string, tag = "3")]
    description: String,
    #[prost(string, tag = "4")]
    name: String,
    #[prost(string, tag = "5")]
    kind: String,
    #[prost(bool, tag = "19")]
    unique_items: bool,
}

#[derive(Clone, PartialEq, Message)]
struct Responses {
    #[prost(message, repeated, tag = "1")]
    codes: Vec<NamedResponse>,
}

#[derive(Clone, PartialEq, Message)]
struct NamedResponse {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    value: Option<ResponseValue>,
}

#[derive(Clone, PartialEq, Message)]
struct ResponseValue {
    #[prost(message, optional, tag = "1")]
    response: Option<Response>,
}

#[derive(Clone, PartialEq, Message)]
struct Response {
    #[prost(string, tag = "1")]
    description: String,
    #[prost(message, optional, tag = "2")]
    schema: Option<SchemaItem>,
}

#[derive(Clone, PartialEq, Message)]
struct SchemaItem {
    #[prost(message, optional, tag = "1")]
    schema: Option<Schema>,
}

#[derive(Clone, PartialEq, Message)]
struct Schemas {
    #[prost(message, repeated, tag = "1")]
    all: Vec<NamedSchema>,
}

#[derive(Clone, PartialEq, Message)]
struct NamedSchema {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    value: Option<Schema>,
}

#[derive(Clone, PartialEq, Message)]
struct Schema {
    #[prost(string, tag = "1")]
    reference: String,
    #[prost(string, tag = "2")]
    format: String,
    #[prost(string, tag = "4")]
    description: String,
    #[prost(message, optional, tag = "5")]
    default: Option<Any>,
    #[prost(string, repeated, tag = "19")]
    required: Vec<String>,
    #[prost(message, repeated, tag = "20")]
    one_of_values: Vec<Any>,
    #[prost(message, optional, boxed, tag = "21")]
    additional_properties: Option<Box<Additional>>,
    #[prost(message, optional, tag = "22")]
    kind: Option<TypeItem>,
    #[prost(message, optional, tag = "23")]
    items: Option<ItemsItem>,
    #[prost(message, optional, tag = "25")]
    properties: Option<Schemas>,
    #[prost(message, repeated, tag = "31")]
    vendor_extension: Vec<NamedAny>,
}

#[derive(Clone, PartialEq, Message)]
struct Additional {
    #[prost(message, optional, boxed, tag = "1")]
    schema: Option<Box<Schema>>,
    // A member of a oneof: `false` has to be written as well.
    #[prost(bool, optional, tag = "2")]
    boolean: Option<bool>,
}

#[derive(Clone, PartialEq, Message)]
struct TypeItem {
    #[prost(string, repeated, tag = "1")]
    value: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct ItemsItem {
    #[prost(message, repeated, tag = "1")]
    schema: Vec<Schema>,
}

#[derive(Clone, PartialEq, Message)]
struct NamedAny {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    value: Option<Any>,
}

#[derive(Clone, PartialEq, Message)]
struct Any {
    #[prost(string, tag = "2")]
    yaml: String,
}

fn path_item(item: &Value) -> PathItem {
    let operation = |method: &str| item.get(method).map(operation);
    PathItem {
        get: operation("get"),
        put: operation("put"),
        post: operation("post"),
        delete: operation("delete"),
        patch: operation("patch"),
        parameters: parameters(&item["parameters"]),
    }
}

fn operation(value: &Value) -> Operation {
    let response = |value: &Value| Response {
        description: text(value, "description"),
        schema: value.get("schema").map(|s| SchemaItem {
            schema: Some(schema(s)),
        }),
    };
    let codes = entries(&value["responses"]).map(|(name, value)| NamedResponse {
        name,
        value: Some(ResponseValue {
            response: Some(response(value)),
        }),
    });
    Operation {
        tags: texts(&value["tags"]),
        description: text(value, "description"),
        operation_id: text(value, "operationId"),
        produces: texts(&value["produces"]),
        consumes: texts(&value["consumes"]),
        parameters: parameters(&value["parameters"]),
        responses: Some(Responses {
            codes: codes.collect(),
        }),
        vendor_extension: extensions(value),
    }
}

fn parameters(list: &Value) -> Vec<ParametersItem> {
    let list = list.as_array().into_iter().flatten();
    list.map(|value| ParametersItem {
        parameter: Some(parameter(value)),
    })
    .collect()
}

fn parameter(value: &Value) -> Parameter {
    let (name, place) = (text(value, "name"), text(value, "in"));
    let (description, kind) = (text(value, "description"), text(value, "type"));
    let required = value["required"] == true;
    let unique_items = value["uniqueItems"] == true;
    let non_body = |query, path| Parameter {
        body: None,
        non_body: Some(NonBodyParameter { query, path }),
    };
    match place.as_str() {
        "body" => Parameter {
            body: Some(BodyParameter {
                name,
                place,
                required,
                schema: value.get("schema").map(schema),
            }),
            non_body: None,
        },
        "path" => {
            let path = PathParameter {
                required,
                place,
                description,
                name,
                kind,
                unique_items,
            };
            non_body(None, Some(path))
        }
        _ => non_body(
            Some(QueryParameter {
                place,
                description,
                name,
                kind,
                unique_items,
            }),
            None,
        ),
    }
}

fn schema(value: &Value) -> Schema {
    let additional = value.get("additionalProperties").map(|value| {
        let schema = value.is_object().then(|| Box::new(schema(value)));
        Box::new(Additional {
            schema,
            boolean: value.as_bool(),
        })
    });
    let one_of = value["enum"].as_array().into_iter().flatten();
    Schema {
        reference: text(value, "$ref"),
        format: text(value, "format"),
        description: text(value, "description"),
        default: value.get("default").map(any),
        required: texts(&value["required"]),
        one_of_values: one_of.map(any).collect(),
        additional_properties: additional,
        kind: value["type"].as_str().map(|kind| TypeItem {
            value: vec![kind.to_owned()],
        }),
        items: value.get("items").map(|items| ItemsItem {
            schema: vec![schema(items)],
        }),
        properties: value.get("properties").map(|all| Schemas {
            all: named_schemas(all),
        }),
        vendor_extension: extensions(value),
    }
}

fn named_schemas(map: &Value) -> Vec<NamedSchema> {
    entries(map)
        .map(|(name, value)| NamedSchema {
            name,
            value: Some(schema(value)),
        })
        .collect()
}

fn extensions(value: &Value) -> Vec<NamedAny> {
    let extensions = entries(value).filter(|(name, _)| name.starts_with("x-"));
    extensions
        .map(|(name, value)| NamedAny {
            name,
            value: Some(any(value)),
        })
        .collect()
}

fn any(value: &Value) -> Any {
    Any {
        yaml: format!("{value}\n"),
    }
}

fn entries(map: &Value) -> impl Iterator<Item = (String, &Value)> {
    map.as_object()
        .into_iter()
        .flatten()
        .map(|(name, value)| (name.clone(), value))
}

fn text(value: &Value, key: &str) -> String {
    value[key].as_str().unwrap_or_default().to_owned()
}

fn texts(list: &Value) -> Vec<String> {
    let list = list.as_array().into_iter().flatten();
    list.filter_map(Value::as_str).map(str::to_owned).collect()
}
