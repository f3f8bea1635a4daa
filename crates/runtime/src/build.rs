//! Which build this is.

/// Version of the workspace.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Commit that it was built from; `unknown` outside a checkout.
pub const COMMIT: &str = match option_env!("GODWIT_COMMIT") {
    Some(commit) => commit,
    None => "unknown",
};
