//! Cordon, drain, and node maintenance.

fn main() {}
