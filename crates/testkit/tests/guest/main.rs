//! Real guests on real QEMUs, moved by `godwit-qemu`'s own steps.

// Helpers of tests may panic as the tests themselves do.
#![allow(clippy::unwrap_used)]

mod boot_sector;
mod linux;
mod machine;
mod probe;
