//! QEMU: QMP, command line, process, migration.
