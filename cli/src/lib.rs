//! The godwit command: what it does, apart from reading its arguments.

pub mod api;
pub mod audit;
pub mod history;
pub mod kubeconfig;
pub mod migrate;
pub mod output;
pub mod pki;
pub mod plan;
pub mod project;
pub mod version;
