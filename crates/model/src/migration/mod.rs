//! One migration: the coordinator's half, both hosts' halves, and the rules they share.

pub mod convergence;
pub mod decide;
pub mod fact;
pub mod grant;
pub mod job;
pub mod queue;
pub mod source;
pub mod target;
pub mod view;
pub mod wish;
