//! One test binary; a file name says which boundary is crossed.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod api_drain;
mod api_env;
mod api_history;
mod api_lab;
mod api_outage;
mod api_play;
mod api_rules;
mod api_virtctl;
mod audit_live;
mod fault_chaos;
mod fault_env;
mod fault_fence;
mod fault_guest;
mod fault_matrix;
mod fault_suite;
mod fault_takeover;
mod lab_bad_input;
mod lab_continuity;
mod lab_down;
mod lab_drain;
mod lab_env;
mod lab_restart;
mod lab_suite;
mod lab_trace;
mod lab_virtctl;
mod lab_walkthrough;
mod ledger_audit;
mod ledger_cluster;
mod ledger_failures;
mod ledger_fences;
mod ledger_jobs;
mod ledger_objects;
mod ledger_outage;
mod ledger_reservations;
mod ledger_revision;
mod ledger_setup;
