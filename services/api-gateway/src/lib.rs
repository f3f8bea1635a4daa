//! The Kubernetes API of Godwit: REST and watch, authentication, admission.
//!
//! Writes what users ask for, and nothing else: status is written by the services that know it.
//! Reads come from memory (`watch_cache.rs`), writes go through the ledger (`store.rs`), and what
//! is served is declared in `kinds/`.

mod actions;
mod age;
mod auth;
mod authorize;
mod config;
mod convert;
mod facts;
mod feed;
mod gateway;
mod histories;
mod honour;
mod kinds;
mod launchers;
mod observe;
mod peers;
mod prune;
mod review;
mod store;
mod tls;
mod watch_cache;

pub use config::{Config, PeerAddresses};
pub use gateway::{Gateway, run};
