//! The Kubernetes API of Godwit: REST and watch, authentication, admission.

fn main() {}
