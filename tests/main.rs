//! One test binary; a file name says which boundary is crossed.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod api_env;
mod api_lab;
mod api_play;
mod api_rules;
mod lab_trace;
mod ledger_cluster;
mod ledger_failures;
mod ledger_jobs;
mod ledger_objects;
mod ledger_reservations;
mod ledger_revision;
mod ledger_setup;
