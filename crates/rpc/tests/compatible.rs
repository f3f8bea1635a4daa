//! The contracts on the wire only grow: versions N and N-1 run together during an upgrade.
//!
//! `proto/fields.txt` holds every field, value and method that was ever released. Run with
//! `GOLDEN=write` to add new ones to it; taking one away needs an edit by hand and a reason.

#![expect(clippy::unwrap_used, reason = "a panic is a failed test")]
#![expect(clippy::wildcard_enum_match_arm, reason = "all scalars read the same")]

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;

use godwit_rpc::server::DESCRIPTORS;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet};

#[test]
fn nothing_that_was_released_is_changed_or_taken_away() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../proto/fields.txt");
    let released = std::fs::read_to_string(&path).unwrap_or_default();
    let released: BTreeSet<&str> = released.lines().collect();
    let lines = contract();
    let present: BTreeSet<&str> = lines.lines().collect();
    let gone: Vec<_> = released.difference(&present).collect();
    assert!(gone.is_empty(), "changed or taken away: {gone:#?}");
    if std::env::var("GOLDEN").as_deref() == Ok("write") {
        let lines: Vec<&str> = present.into_iter().collect();
        std::fs::write(path, lines.join("\n") + "\n").unwrap();
        return;
    }
    let new: Vec<_> = present.difference(&released).collect();
    assert!(
        new.is_empty(),
        "not in proto/fields.txt, see the head of this test: {new:#?}"
    );
}

#[test]
fn zero_of_every_enum_is_unspecified() {
    for line in contract().lines().filter(|line| line.ends_with(" = 0")) {
        assert!(line.contains("_UNSPECIFIED"), "{line}");
    }
}

/// A line for each field, value and method.
fn contract() -> String {
    let set: FileDescriptorSet = prost::Message::decode(DESCRIPTORS).unwrap();
    let mut lines = String::new();
    for file in &set.file {
        let package = file.package();
        file.message_type
            .iter()
            .for_each(|message| write_message(&mut lines, package, message));
        file.enum_type
            .iter()
            .for_each(|values| write_enum(&mut lines, package, values));
        for service in &file.service {
            for method in &service.method {
                let stream = |on: bool| if on { "stream " } else { "" };
                writeln!(
                    lines,
                    "rpc {package}.{}.{}({}{}) returns ({}{})",
                    service.name(),
                    method.name(),
                    stream(method.client_streaming()),
                    method.input_type(),
                    stream(method.server_streaming()),
                    method.output_type(),
                )
                .unwrap();
            }
        }
    }
    lines
}

fn write_message(lines: &mut String, scope: &str, message: &DescriptorProto) {
    let name = format!("{scope}.{}", message.name());
    for field in &message.field {
        let kind = kind(field);
        writeln!(
            lines,
            "{name}.{}: {kind} = {}",
            field.name(),
            field.number()
        )
        .unwrap();
    }
    for nested in &message.nested_type {
        write_message(lines, &name, nested);
    }
    for values in &message.enum_type {
        write_enum(lines, &name, values);
    }
}

fn write_enum(lines: &mut String, scope: &str, values: &EnumDescriptorProto) {
    for value in &values.value {
        let enumeration = values.name();
        writeln!(
            lines,
            "{scope}.{enumeration}.{} = {}",
            value.name(),
            value.number()
        )
        .unwrap();
    }
}

fn kind(field: &FieldDescriptorProto) -> String {
    let label = match field.label() {
        Label::Repeated => "repeated ",
        Label::Optional | Label::Required => "",
    };
    let kind = match field.r#type() {
        Type::Message | Type::Enum => field.type_name().to_owned(),
        scalar => scalar
            .as_str_name()
            .trim_start_matches("TYPE_")
            .to_lowercase(),
    };
    format!("{label}{kind}")
}
