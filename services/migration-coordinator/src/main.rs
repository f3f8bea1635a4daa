//! Drives each migration from Pending to its end.

fn main() {}
