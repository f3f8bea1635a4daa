//! Development only: private Postgres, namespace hosts, hosts that pretend, tiny guests, certificates.

pub mod api;
pub mod certs;
pub mod collector;
pub mod fleet;
pub mod guest;
pub mod kubectl;
pub mod lab;
pub mod postgres;
pub mod postgres_proxy;

/// Says that this machine can't do what a test needs.
///
/// # Panics
/// Where `CI` is set: there all must be tried.
#[expect(clippy::print_stderr, reason = "a test that can't run says so")]
pub fn untried(why: &str) {
    assert!(std::env::var_os("CI").is_none(), "not tried: {why}");
    eprintln!("not tried: {why}");
}
