//! What a server has used so far.

use super::{Postgres, outage};
use anyhow::{Context, Result};
use std::fs;

/// What a server, and one of its databases, have used since they were started.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct DatabaseUse {
    /// CPU seconds of all processes, those that ended included.
    pub cpu_seconds: f64,
    /// Transactions that were committed, those that only read included.
    pub commits: u64,
    /// Bytes of write-ahead log.
    pub wal_bytes: u64,
}

impl Postgres {
    /// What the server and `database` have used.
    ///
    /// # Errors
    /// When the server does not answer.
    pub fn usage(&self, database: &str) -> Result<DatabaseUse> {
        let statement = "SELECT xact_commit, pg_current_wal_lsn() - '0/0'::pg_lsn \
            FROM pg_stat_database WHERE datname = current_database()";
        let answer = self.psql(database, statement)?;
        let (commits, wal) = answer.split_once('|').context("two numbers")?;
        let mut cpu_seconds = 0.0;
        for process in outage::processes(&self.server.data())? {
            cpu_seconds += cpu_seconds_of(process.as_raw(), true).unwrap_or_default();
        }
        Ok(DatabaseUse {
            cpu_seconds,
            commits: commits.parse()?,
            wal_bytes: wal.parse()?,
        })
    }

    /// Sets `name` for the running server, where that needs no new start.
    ///
    /// # Errors
    /// When the server refuses.
    pub fn set(&self, name: &str, value: &str) -> Result<()> {
        self.psql(
            super::SUPERUSER,
            &format!("ALTER SYSTEM SET {name} = '{value}'"),
        )?;
        self.psql(super::SUPERUSER, "SELECT pg_reload_conf()")
            .map(drop)
    }
}

/// CPU seconds of a process, with those of its children that ended if wanted; `None` when it ended.
pub fn cpu_seconds_of(pid: i32, with_children: bool) -> Option<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at)?.parse::<f64>().ok();
    let mut sum = ticks(11)? + ticks(12)?;
    if with_children {
        sum += ticks(13)? + ticks(14)?;
    }
    let second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok()??;
    #[expect(clippy::cast_precision_loss, reason = "it is a hundred")]
    Some(sum / second as f64)
}
