//! Node inventory, placement, reservations, and where a machine starts.

fn main() {}
