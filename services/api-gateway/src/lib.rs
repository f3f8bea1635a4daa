//! The Kubernetes API of Godwit: REST and watch, authentication, admission.
//!
//! Writes what users ask for, and nothing else: status is written by the services that know it.
//! Reads come from memory (`watch_cache.rs`), writes go through the ledger (`store.rs`), and what
//! is served is declared in `kinds/`.

mod actions;
mod age;
mod aggregation;
mod audit;
mod auth;
mod authorize;
mod config;
mod convert;
mod doors;
mod facts;
mod feed;
mod gateway;
mod histories;
mod honour;
mod kinds;
mod launchers;
mod limits;
mod newest;
mod observe;
mod peers;
mod prune;
mod rbac;
mod retire;
mod review;
mod sizes;
mod store;
mod tls;
mod token_review;
mod watch_cache;
mod watches;

pub use config::{AggregationConfig, AuditConfig, Config, OidcConfig, PeerAddresses};
pub use gateway::{Gateway, run};
pub use limits::Limits;
