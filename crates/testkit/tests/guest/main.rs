//! Real guests on real QEMUs, moved by `godwit-qemu`'s own steps.

mod boot_sector;
mod linux;
mod machine;
mod probe;
