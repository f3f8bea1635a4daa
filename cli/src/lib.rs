//! The godwit command: what it does, apart from reading its arguments.

pub mod api;
pub mod audit;
pub mod certificates;
pub mod history;
pub mod issue;
pub mod kubeconfig;
pub mod migrate;
pub mod output;
pub mod plan;
pub mod project;
pub mod secrets;
pub mod version;
