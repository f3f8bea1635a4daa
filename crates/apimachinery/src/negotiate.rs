//! What form the client wants its answer in.

use http::HeaderMap;

use crate::status::Status;

/// The form of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Format {
    pub(crate) yaml: bool,
    pub(crate) shape: Shape,
}

/// What objects are turned into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// As they are.
    Whole,
    /// A `Table` of `meta.k8s.io` in this version.
    Table(&'static str),
    /// `PartialObjectMetadata` of `meta.k8s.io` in this version.
    Partial(&'static str),
}

/// Whether `/api` and `/apis` answer in the form of one document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Discovery {
    Plain,
    /// `apidiscovery.k8s.io` in this version.
    Aggregated(&'static str),
}

struct Range<'a> {
    media: String,
    parameters: Vec<(String, &'a str)>,
}

impl Range<'_> {
    fn parameter(&self, key: &str) -> &str {
        let mut found = self.parameters.iter().filter(|(name, _)| name == key);
        found.next().map_or("", |(_, value)| value)
    }

    /// `q` in thousandths.
    fn permille(&self) -> u16 {
        let (whole, rest) = match self.parameter("q") {
            "" => return 1000,
            q => q.split_once('.').unwrap_or((q, "")),
        };
        let thousandths = format!("{rest:0<3}")
            .get(..3)
            .and_then(|text| text.parse().ok());
        if whole == "0" {
            thousandths.unwrap_or(0)
        } else {
            1000
        }
    }
}

/// The form of an object or a list. The first range that can be served wins, as in kube-apiserver.
pub(crate) fn format(headers: &HeaderMap) -> Result<Format, Status> {
    let whole = Format {
        yaml: false,
        shape: Shape::Whole,
    };
    let ranges = ranges(headers);
    if ranges.is_empty() {
        return Ok(whole);
    }
    let mut protobuf = None;
    for range in &ranges {
        let shape = shape(range);
        match (range.media.as_str(), shape) {
            ("application/json" | "*/*" | "application/*" | "text/json", Some(shape)) => {
                return Ok(Format { yaml: false, shape });
            }
            ("application/yaml" | "text/yaml", Some(shape)) => {
                return Ok(Format { yaml: true, shape });
            }
            // Clients that prefer protobuf read JSON as well, so they get it if nothing else fits.
            ("application/vnd.kubernetes.protobuf", Some(shape)) => {
                protobuf.get_or_insert(Format { yaml: false, shape });
            }
            _ => {}
        }
    }
    protobuf.ok_or_else(|| {
        Status::not_acceptable(
            "only the following media types are accepted: application/json, application/yaml",
        )
    })
}

/// The form of discovery.
pub(crate) fn discovery(headers: &HeaderMap) -> Discovery {
    for range in ranges(headers) {
        if range.media != "application/json" && range.media != "*/*" {
            continue;
        }
        if range.parameter("as") != "APIGroupDiscoveryList" {
            return Discovery::Plain;
        }
        match (range.parameter("g"), range.parameter("v")) {
            ("apidiscovery.k8s.io", "v2") => return Discovery::Aggregated("v2"),
            ("apidiscovery.k8s.io", "v2beta1") => return Discovery::Aggregated("v2beta1"),
            _ => {}
        }
    }
    Discovery::Plain
}

/// Whether the client takes this media type, and asks for it before JSON.
pub(crate) fn prefers(headers: &HeaderMap, wanted: &str) -> bool {
    for range in ranges(headers) {
        if range.media == wanted {
            return true;
        }
        if matches!(range.media.as_str(), "application/json" | "*/*") {
            return false;
        }
    }
    false
}

fn shape(range: &Range<'_>) -> Option<Shape> {
    let version = match range.parameter("v") {
        "v1" => "v1",
        "v1beta1" => "v1beta1",
        _ => "",
    };
    let known = range.parameter("g") == "meta.k8s.io" && !version.is_empty();
    match range.parameter("as") {
        "" => Some(Shape::Whole),
        "Table" if known => Some(Shape::Table(version)),
        "PartialObjectMetadata" | "PartialObjectMetadataList" if known => {
            Some(Shape::Partial(version))
        }
        _ => None,
    }
}

fn ranges(headers: &HeaderMap) -> Vec<Range<'_>> {
    let values = headers.get_all(http::header::ACCEPT).iter();
    let texts = values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|text| text.split(','));
    let mut ranges: Vec<Range<'_>> = texts
        .map(range)
        .filter(|range| !range.media.is_empty())
        .collect();
    // Stable, so that among equals the client's order stays.
    ranges.sort_by_key(|range| std::cmp::Reverse(range.permille()));
    ranges
}

fn range(text: &str) -> Range<'_> {
    let mut parts = text.split(';');
    let media = parts.next().unwrap_or_default().trim().to_ascii_lowercase();
    let pair = |part: &str| {
        part.split_once('=')
            .map(|(key, _)| key.trim().to_ascii_lowercase())
    };
    let parameters = parts.filter_map(|part| {
        let key = pair(part)?;
        let value = part.split_once('=')?.1.trim().trim_matches('"');
        Some((key, value))
    });
    Range {
        media,
        parameters: parameters.collect(),
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn accept(text: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(http::header::ACCEPT, HeaderValue::from_static(text))])
    }

    #[test]
    fn kubectl_get_asks_for_a_table() {
        let headers = accept(
            "application/json;as=Table;v=v1;g=meta.k8s.io,\
             application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json",
        );
        assert_eq!(format(&headers).expect("format").shape, Shape::Table("v1"));
    }

    #[test]
    fn a_protobuf_client_gets_json() {
        let headers = accept("application/vnd.kubernetes.protobuf,application/json");
        assert_eq!(format(&headers).expect("format").shape, Shape::Whole);
        assert!(format(&accept("application/vnd.kubernetes.protobuf")).is_ok());
        assert!(format(&accept("text/html")).is_err());
        assert!(format(&HeaderMap::new()).is_ok());
    }

    #[test]
    fn discovery_is_aggregated_only_where_it_was_asked_for_first() {
        let new = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,\
                   application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,\
                   application/json";
        assert_eq!(discovery(&accept(new)), Discovery::Aggregated("v2"));
        assert_eq!(
            discovery(&accept("application/json, */*")),
            Discovery::Plain
        );
    }
}
