//! The long runs of `api_watch_load.rs`, by `cargo xtask test watch`.
//!
//! `WATCH_SECONDS`, `WATCH_WRITERS` and `WATCH_WATCHERS` say how much; `WATCH_SEED` repeats a run.

use std::time::Duration;

use anyhow::Result;

use crate::api_watch_load::{Plan, run, seed};

fn plan(gateways: usize, faults: bool) -> Plan {
    let number = |name: &str, default: usize| {
        std::env::var(name).map_or(default, |text| text.parse().unwrap())
    };
    Plan {
        time: Duration::from_secs(number("WATCH_SECONDS", 60) as u64),
        writers: number("WATCH_WRITERS", 50),
        watchers: number("WATCH_WATCHERS", 200),
        gateways,
        faults,
        seed: seed(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watch_suite_load() -> Result<()> {
    run(plan(1, false)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watch_suite_two_gateways_side_by_side() -> Result<()> {
    run(plan(2, false)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watch_suite_one_gateway_and_faults() -> Result<()> {
    run(plan(1, true)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watch_suite_two_gateways_and_faults() -> Result<()> {
    run(plan(2, true)).await
}
