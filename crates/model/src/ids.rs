//! Names and numbers that must not be mixed up.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Why a string is not a valid identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {value:?} is not valid: {why}")]
pub struct InvalidId {
    what: &'static str,
    value: String,
    why: &'static str,
}

/// Longest name that Kubernetes allows for an object (RFC 1123 subdomain).
pub const NAME_LENGTH_MAX: usize = 253;

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Parses a UUID in its hyphenated lower-case form.
            ///
            /// # Errors
            /// When `value` is anything else.
            pub fn parse(value: impl Into<String>) -> Result<Self, InvalidId> {
                let value = value.into();
                if is_uuid(&value) {
                    return Ok(Self(value));
                }
                Err(InvalidId { what: $what, value, why: "not a lower-case UUID" })
            }

            /// The hyphenated form.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;

            fn try_from(value: String) -> Result<Self, InvalidId> {
                Self::parse(value)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

uuid_id!(
    /// A machine: the UID of its VirtualMachineInstance, which no move changes.
    MachineId,
    "machine id"
);
uuid_id!(
    /// One requested migration: the UID of its VirtualMachineInstanceMigration.
    JobId,
    "job id"
);

fn is_uuid(value: &str) -> bool {
    value.len() == 36
        && value.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte),
        })
}

/// Name of a node in the API.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeName(String);

impl NodeName {
    /// Parses an RFC 1123 subdomain: what Kubernetes accepts as a node's name.
    ///
    /// # Errors
    /// When `value` is empty, too long, or has other characters.
    pub fn parse(value: impl Into<String>) -> Result<Self, InvalidId> {
        let value = value.into();
        let why = if value.is_empty() {
            "empty"
        } else if value.len() > NAME_LENGTH_MAX {
            "longer than 253 characters"
        } else if !value.split('.').all(is_dns_label) {
            "not an RFC 1123 subdomain"
        } else {
            return Ok(Self(value));
        };
        Err(InvalidId {
            what: "node name",
            value,
            why,
        })
    }

    /// The name as users write it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn is_dns_label(label: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    !label.is_empty()
        && label.bytes().all(inner)
        && !label.starts_with('-')
        && !label.ends_with('-')
}

impl TryFrom<String> for NodeName {
    type Error = InvalidId;

    fn try_from(value: String) -> Result<Self, InvalidId> {
        Self::parse(value)
    }
}

impl From<NodeName> for String {
    fn from(name: NodeName) -> Self {
        name.0
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Fencing token: grows with each new owner of a job or a machine, and older ones are refused.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The epoch of the next owner.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Place in the cluster-wide, commit-ordered sequence of changes: Kubernetes' resourceVersion.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Revision(pub u64);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_name_is_a_dns_subdomain() {
        assert!(NodeName::parse("ocp4-worker1.cnv.example.com").is_ok());
        for bad in ["", "-a", "a_b", "A", "a..b", &"x".repeat(254)] {
            assert!(NodeName::parse(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn an_id_is_a_lower_case_uuid() {
        assert!(JobId::parse("43f5b34d-94b4-4cda-9a69-cca8d4b4c587").is_ok());
        assert!(JobId::parse("43F5B34D-94B4-4CDA-9A69-CCA8D4B4C587").is_err());
        assert!(MachineId::parse("../../etc/passwd").is_err());
    }
}
