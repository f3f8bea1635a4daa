//! One per host: runs QEMU; the only code that touches a host.

fn main() {}
