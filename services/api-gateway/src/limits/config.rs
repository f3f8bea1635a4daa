//! Every limit of the API that can be configured. `docs/api-limits.md` has the same as a table.

use std::time::Duration;

use godwit_apimachinery::Limits as Machinery;
use serde::{Deserialize, Serialize};

/// The most watches that the watch cache takes.
const WATCHES_MAX: usize = 10_000;
/// serde_json reads nothing deeper.
const DEPTH_MAX: usize = 127;
/// Smallest buffer that HTTP/1.1 is read with.
const HEADER_BYTES_MIN: usize = 4096;
const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// What a client may ask for, and how much of it at once.
///
/// "Operators" are the members of `operator_groups`; everyone else is a tenant. What is reserved is
/// for operators alone, so that a flood of tenants never keeps one out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Bytes of a request's body, inflated.
    pub body_bytes: usize,
    /// Bytes of one object.
    pub object_bytes: usize,
    /// Bytes of a request's headers, names and values.
    pub header_bytes: usize,
    /// Headers of a request.
    pub headers: usize,
    /// Bytes of a request's path and query.
    pub url_bytes: usize,
    /// Bytes of a label or field selector.
    pub selector_bytes: usize,
    /// Objects of one page of a list.
    pub page_objects: usize,
    /// Operations of a JSON patch.
    pub patch_operations: usize,
    /// Nesting of a body, at most 127.
    pub depth: usize,
    /// Managers by update in an object's `managedFields`; the oldest become one.
    pub field_managers: usize,
    /// Bytes of all bodies that are held at once.
    pub bodies_bytes: usize,
    /// Of those, bytes for operators.
    pub bodies_reserved_bytes: usize,
    /// Bytes of all answers that are held at once until their clients have read them.
    pub answers_bytes: usize,
    /// Of those, bytes for operators.
    pub answers_reserved_bytes: usize,
    /// Requests at once, watches not counted.
    pub requests: usize,
    /// Of those, for operators.
    pub requests_reserved: usize,
    /// Requests at once of one tenant.
    pub requests_per_user: usize,
    /// Requests a second of one tenant, in the long run.
    pub user_rate: u32,
    /// Requests that a tenant who was quiet may make at once.
    pub user_burst: u32,
    /// Watches at once, at most 10000.
    pub watches: usize,
    /// Of those, for operators.
    pub watches_reserved: usize,
    /// Watches at once of one tenant.
    pub watches_per_user: usize,
    /// Connections at once.
    pub connections: usize,
    /// Of those, for operators who show a certificate.
    pub connections_reserved: usize,
    /// Requests and watches at once of one HTTP/2 connection.
    pub streams_per_connection: u32,
    /// Milliseconds for a TLS handshake.
    pub handshake_ms: u64,
    /// Milliseconds until the headers of a connection's first request are there.
    pub first_request_ms: u64,
    /// Milliseconds until the headers of the next request are there (HTTP/1.1).
    pub idle_ms: u64,
    /// Milliseconds between two pieces of a body.
    pub body_stall_ms: u64,
    /// Milliseconds for a whole body.
    pub body_ms: u64,
    /// Milliseconds in which a client takes nothing of an answer or watch that waits for it.
    pub answer_stall_ms: u64,
    /// Milliseconds for reading a whole answer, watches excepted.
    pub answer_ms: u64,
    /// Groups whose members are operators.
    pub operator_groups: Vec<String>,
}

impl Default for Limits {
    fn default() -> Self {
        let machinery = Machinery::default();
        Self {
            body_bytes: machinery.body_bytes,
            object_bytes: machinery.object_bytes,
            header_bytes: 64 * KIB,
            headers: 100,
            url_bytes: 16 * KIB,
            selector_bytes: machinery.selector_bytes,
            page_objects: machinery.page_objects,
            patch_operations: machinery.patch_operations,
            depth: machinery.depth,
            field_managers: machinery.field_managers,
            bodies_bytes: 48 * MIB,
            bodies_reserved_bytes: 12 * MIB,
            answers_bytes: 512 * MIB,
            answers_reserved_bytes: 128 * MIB,
            // kube-apiserver's 400 reading and 200 writing.
            requests: 600,
            requests_reserved: 100,
            requests_per_user: 200,
            user_rate: 100,
            user_burst: 400,
            watches: WATCHES_MAX,
            watches_reserved: 500,
            watches_per_user: 1000,
            connections: 12_000,
            connections_reserved: 200,
            streams_per_connection: 250,
            handshake_ms: 10_000,
            first_request_ms: 15_000,
            // As long as kube-apiserver keeps a connection that nobody uses.
            idle_ms: 90_000,
            body_stall_ms: 10_000,
            body_ms: 60_000,
            answer_stall_ms: 30_000,
            answer_ms: 300_000,
            operator_groups: ["system:masters", "system:nodes", "godwit:admins"]
                .map(str::to_owned)
                .to_vec(),
        }
    }
}

impl Limits {
    /// Whether the values go together.
    ///
    /// # Errors
    /// With a text that names the key.
    pub(crate) fn validate(&self) -> Result<(), String> {
        let reserves = [
            ("bodies", self.bodies_bytes, self.bodies_reserved_bytes),
            ("answers", self.answers_bytes, self.answers_reserved_bytes),
            ("requests", self.requests, self.requests_reserved),
            ("watches", self.watches, self.watches_reserved),
            ("connections", self.connections, self.connections_reserved),
        ];
        for (what, all, reserved) in reserves {
            if reserved >= all {
                return Err(format!(
                    "limits: what of {what} is reserved must be less than all ({reserved} of {all})"
                ));
            }
        }
        let least = [
            ("body_bytes", self.body_bytes, 1),
            ("object_bytes", self.object_bytes, 1),
            ("header_bytes", self.header_bytes, HEADER_BYTES_MIN),
            ("headers", self.headers, 16),
            ("url_bytes", self.url_bytes, 256),
            ("page_objects", self.page_objects, 1),
            ("depth", self.depth, 1),
            ("field_managers", self.field_managers, 2),
            ("user_rate", self.user_rate as usize, 1),
            ("user_burst", self.user_burst as usize, 1),
        ];
        for (key, value, least) in least {
            if value < least {
                return Err(format!(
                    "limits.{key} is {value}, and must be at least {least}"
                ));
            }
        }
        let most = [
            ("depth", self.depth, DEPTH_MAX),
            ("watches", self.watches, WATCHES_MAX),
            ("object_bytes", self.object_bytes, self.body_bytes),
        ];
        for (key, value, most) in most {
            if value > most {
                return Err(format!(
                    "limits.{key} is {value}, and must be at most {most}"
                ));
            }
        }
        Ok(())
    }

    /// Those that the machinery holds itself.
    pub(crate) fn machinery(&self) -> Machinery {
        Machinery {
            body_bytes: self.body_bytes,
            object_bytes: self.object_bytes,
            selector_bytes: self.selector_bytes,
            page_objects: self.page_objects,
            patch_operations: self.patch_operations,
            depth: self.depth,
            field_managers: self.field_managers,
            ..Machinery::default()
        }
    }

    /// Bytes that a request's line and headers are read into. A bit more than they may have, so
    /// that most of those that are too large get an answer that says so.
    pub(crate) fn head_buffer(&self) -> usize {
        2 * (self.header_bytes + self.url_bytes)
    }

    pub(crate) fn is_operator(&self, groups: &[String]) -> bool {
        groups
            .iter()
            .any(|group| self.operator_groups.contains(group))
    }
}

/// A time of the configuration.
pub(crate) fn millis(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_go_together_and_a_wrong_value_is_named() {
        assert_eq!(Limits::default().validate(), Ok(()));
        let wrong = [
            (
                Limits {
                    depth: 500,
                    ..Limits::default()
                },
                "limits.depth",
            ),
            (
                Limits {
                    watches: 20_000,
                    ..Limits::default()
                },
                "limits.watches",
            ),
            (
                Limits {
                    user_rate: 0,
                    ..Limits::default()
                },
                "limits.user_rate",
            ),
            (
                Limits {
                    requests_reserved: 600,
                    ..Limits::default()
                },
                "requests",
            ),
        ];
        for (limits, key) in wrong {
            let why = limits.validate().unwrap_err();
            assert!(why.contains(key), "{why}");
        }
    }
}
