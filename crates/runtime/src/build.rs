//! Which build this is.

/// Version of the workspace.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Commit that it was built from; `unknown` for a development build or outside a checkout.
pub const COMMIT: &str = env!("BUILD_COMMIT");

/// Version and commit.
pub const FULL: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("BUILD_COMMIT"), ")");
