//! Development only: private Postgres, namespace hosts, hosts that pretend, tiny guests, certificates.

pub mod api;
pub mod certs;
pub mod collector;
pub mod fleet;
pub mod guest;
pub mod kubectl;
pub mod lab;
pub mod postgres;
pub mod postgres_proxy;
