//! What every binary shares: config, telemetry, health, TLS, shutdown, build information.

pub mod admin;
pub mod backoff;
pub mod build;
pub mod config;
pub mod failpoint;
mod identity;
pub mod metrics;
mod reload;
mod run;
mod tasks;
pub mod telemetry;

pub use identity::{Identity, Pem, Reading};
pub use reload::Reloaded;
pub use run::{Context, ServiceConfig, run};
pub use tasks::spawn;
