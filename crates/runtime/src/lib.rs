//! What every binary shares: config, telemetry, health, TLS, shutdown, build information.

pub mod admin;
pub mod build;
pub mod config;
mod identity;
pub mod metrics;
mod run;
pub mod telemetry;

pub use identity::{Identity, Pem};
pub use run::{Context, ServiceConfig, run};
