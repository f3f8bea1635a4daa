//! `godwit audit`: checks the invariants on a live system, and changes nothing.
//!
//! Independent of the services: it reads the ledger under a role that can't write, and asks each
//! agent what is really on its host. Reading takes a moment, in which things move on; so a finding
//! counts only when a second look, a tenth of a second later, shows it too. One that has vanished
//! by then was the shadow of a step between two readings, and is not told: a fault shorter than
//! that is for a witness to see, not for an audit.

mod finding;
mod judge;
mod read;
mod report;
mod world;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Args;
use godwit_ledger::{Ledger, LedgerConfig};
use godwit_rpc::Credentials;
use godwit_runtime::Identity;
use tokio::time::{Instant, sleep};

use self::read::{Look, look};
use crate::output::Output;

pub use self::finding::{Check, Finding};
pub use self::report::{Outcome, Report};

/// Time between two looks.
const PAUSE: Duration = Duration::from_millis(100);

/// What to audit.
#[derive(Debug, Args)]
pub struct Audit {
    /// Postgres, under a user that may read everything, such as a member of godwit_auditor.
    #[arg(
        long,
        value_name = "URL",
        env = "GODWIT_DATABASE_URL",
        hide_env_values = true
    )]
    pub database: String,
    /// Certificate of an administrator, for the agents (PEM); none when they run without TLS.
    #[arg(long, value_name = "FILE", env = "GODWIT_CERT", requires_all = ["key", "ca"])]
    pub cert: Option<PathBuf>,
    /// Its key (PEM).
    #[arg(long, value_name = "FILE", env = "GODWIT_KEY", requires_all = ["cert", "ca"])]
    pub key: Option<PathBuf>,
    /// The authority of the agents (PEM).
    #[arg(long, value_name = "FILE", env = "GODWIT_CA", requires_all = ["cert", "key"])]
    pub ca: Option<PathBuf>,
    /// Go on looking for so long, until nothing is broken: right after an action.
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    pub settle: u32,
    /// Form of the output.
    #[arg(long, short, default_value = "text")]
    pub output: Output,
}

/// Looks until nothing is broken, or the time is over.
///
/// # Errors
/// When the ledger can't be read, or the certificates can't be used.
pub async fn audit(wanted: &Audit) -> anyhow::Result<Report> {
    let began = Instant::now();
    let credentials = identity(wanted).map(|own| Credentials::read(&own));
    let credentials = credentials.transpose()?;
    ensure!(!wanted.database.is_empty(), "the URL of Postgres is empty");
    let ledger = Ledger::connect(LedgerConfig {
        url: wanted.database.clone(),
        connections_max: 1,
    });
    let ledger = ledger.await.context("connect to Postgres")?;
    let settled = began + Duration::from_secs(wanted.settle.into());
    let mut looks = 1;
    let mut last = look(&ledger, credentials.as_ref()).await?;
    let mut lasting = BTreeSet::new();
    while !last.findings.is_empty() {
        sleep(PAUSE).await; // debounce
        let next = look(&ledger, credentials.as_ref()).await?;
        looks += 1;
        lasting = seen_twice(&last, &next);
        last = next;
        if lasting.is_empty() || Instant::now() >= settled {
            break;
        }
    }
    Ok(Report {
        findings: lasting.into_iter().collect(),
        looks,
        took: began.elapsed(),
        last,
    })
}

fn identity(wanted: &Audit) -> Option<Identity> {
    Some(Identity {
        cert: wanted.cert.clone()?,
        key: wanted.key.clone()?,
        ca: wanted.ca.clone()?,
    })
}

/// The findings of `next` that `last` had, too: of the same check and the same subject.
fn seen_twice(last: &Look, next: &Look) -> BTreeSet<Finding> {
    let key = |finding: &Finding| (finding.check, finding.subject.clone());
    let before: BTreeSet<(Check, String)> = last.findings.iter().map(key).collect();
    let again = next.findings.iter();
    let again = again.filter(|finding| before.contains(&key(finding)));
    again.cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looked(findings: &[(Check, &str, &str)]) -> Look {
        let finding = |(check, subject, seen): &(Check, &str, &str)| Finding {
            check: *check,
            subject: (*subject).to_owned(),
            seen: (*seen).to_owned(),
        };
        Look {
            findings: findings.iter().map(finding).collect(),
            hosts: 2,
            machines: 1,
            migrations: 3,
            qemus: 1,
        }
    }

    fn report(last: &Look) -> Report {
        Report {
            findings: last.findings.iter().cloned().collect(),
            looks: 2,
            took: PAUSE,
            last: looked(&[]),
        }
    }

    #[test]
    fn only_what_two_looks_show_of_the_same_subject_counts() {
        let first = looked(&[
            (Check::Leftovers, "tap a", "no QEMU uses it"),
            (Check::InPlace, "vm1", "no QEMU on worker1"),
            (Check::Asked, "worker2", "no answer"),
        ]);
        let second = looked(&[
            (Check::Leftovers, "tap b", "no QEMU uses it"),
            (Check::InPlace, "vm1", "no QEMU on worker2"),
            (Check::OneRuns, "worker2", "no answer"),
        ]);
        let lasting = seen_twice(&first, &second);
        let wanted = looked(&[(Check::InPlace, "vm1", "no QEMU on worker2")]);
        assert_eq!(lasting, wanted.findings);
    }

    #[test]
    fn broken_wins_over_not_asked_and_both_over_clean() {
        let asked = (Check::Asked, "host worker2", "no answer");
        let broken = (Check::OneRuns, "vm1", "runs on worker1 and on worker2");
        for (findings, outcome, code) in [
            (&[][..], Outcome::Clean, 0),
            (&[asked], Outcome::Unknown, 2),
            (&[asked, broken], Outcome::Broken, 1),
        ] {
            let report = report(&looked(findings));
            assert_eq!(
                (report.outcome(), report.outcome().exit_code()),
                (outcome, code)
            );
            assert_eq!(report.json()["outcome"], outcome.as_str());
            assert_eq!(
                report.json()["findings"].as_array().unwrap().len(),
                findings.len()
            );
            for (check, subject, seen) in findings {
                let text = report.text();
                assert!(text.contains(check.sentence()), "{text}");
                assert!(text.contains(&format!("  {subject}: {seen}\n")), "{text}");
            }
        }
    }
}
