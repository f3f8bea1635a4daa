//! What must hold for any input from outside, however odd.
//!
//! Each property takes raw bytes, makes its input of them, and panics when it doesn't hold.
//! `fuzz/` runs them with inputs that libFuzzer makes up, and a test here runs them over the
//! checked-in corpus and random changes of it.

mod bodies;
mod patches;
mod requests;
mod sample;

#[cfg(test)]
mod tests;

/// A property: panics for input that breaks it.
pub type Property = fn(&[u8]);

/// All properties by name; each has a target in `fuzz/fuzz_targets` and a folder in `fuzz/corpus`.
pub const PROPERTIES: [(&str, Property); 13] = [
    ("accept", requests::accept),
    ("continue_token", requests::continue_token),
    ("json_body", bodies::json),
    ("json_diff", patches::json_diff),
    ("json_patch", patches::json_patch),
    ("merge_patch", patches::merge_patch),
    ("path", requests::path),
    ("protobuf_body", bodies::protobuf),
    ("query", requests::query),
    ("selectors", requests::selectors),
    ("server_side_apply", patches::server_side_apply),
    ("strategic_patch", patches::strategic_patch),
    ("yaml_body", bodies::yaml),
];

/// Runs one property.
///
/// # Panics
/// When the property doesn't hold, or there is none of this name.
pub fn run(name: &str, input: &[u8]) {
    let found = PROPERTIES.iter().find(|(known, _)| *known == name);
    let (_, property) = found.unwrap_or_else(|| panic!("no property is named {name}"));
    property(input);
}
