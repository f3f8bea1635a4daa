//! The godwit command, also installed as kubectl-godwit.

fn main() {}
