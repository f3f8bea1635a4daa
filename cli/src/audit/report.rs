//! What an audit tells.

use std::fmt::Write;
use std::time::Duration;

use serde_json::{Value, json};

use super::finding::{Check, Finding};
use super::read::Look;

/// Invariants that no look from outside can check, and what does.
const NOT_CHECKED: [(&str, &str); 4] = [
    (
        "a machine's memory and disks are whole after a move",
        "needs a witness inside the guest",
    ),
    (
        "two copies that run together for less than a tenth of a second",
        "need a witness inside the guest",
    ),
    (
        "watches show every change once and in order",
        "needs a client that watches",
    ),
    (
        "cordons that are older than the change log, and turns that began before a cordon",
        "nobody remembers their order",
    ),
];

/// Outcome of an audit.
#[derive(Debug)]
pub struct Report {
    /// What two looks in a row showed.
    pub(super) findings: Vec<Finding>,
    /// How often everything was looked at.
    pub(super) looks: u32,
    /// How long it took.
    pub(super) took: Duration,
    /// The last look.
    pub(super) last: Look,
}

/// The outcome in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Everything was checked and holds.
    Clean,
    /// Something is broken.
    Broken,
    /// What could be checked holds, and something could not.
    Unknown,
}

impl Outcome {
    /// Name for programs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Clean => "clean",
            Self::Broken => "broken",
            Self::Unknown => "unknown",
        }
    }

    /// What the command ends with.
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Clean => 0,
            Self::Broken => 1,
            Self::Unknown => 2,
        }
    }
}

impl Report {
    /// The outcome in one word.
    pub fn outcome(&self) -> Outcome {
        let asked = |finding: &Finding| finding.check == Check::Asked;
        match self.findings.as_slice() {
            [] => Outcome::Clean,
            findings if findings.iter().all(asked) => Outcome::Unknown,
            _ => Outcome::Broken,
        }
    }

    /// What two looks in a row showed to be broken, or could not ask.
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// For people: each broken check with all that is seen, and a line that sums up.
    pub fn text(&self) -> String {
        // Writing to a string can't fail.
        let mut text = String::new();
        for check in Check::ALL {
            let found = self.findings.iter().filter(|one| one.check == check);
            for (at, finding) in found.enumerate() {
                if at == 0 {
                    let _ = writeln!(text, "{}: {}", check.id(), check.sentence());
                }
                let _ = writeln!(text, "  {}: {}", finding.subject, finding.seen);
            }
        }
        let seen = format!(
            "{} hosts, {} machines, {} QEMUs, {} migrations, {} checks, {:.1} s",
            self.last.hosts,
            self.last.machines,
            self.last.qemus,
            self.last.migrations,
            Check::ALL.len(),
            self.took.as_secs_f64()
        );
        let verdict = match self.outcome() {
            Outcome::Clean => "nothing is broken".to_owned(),
            Outcome::Broken => match self.findings.len() {
                1 => "1 finding".to_owned(),
                many => format!("{many} findings"),
            },
            Outcome::Unknown => "nothing that could be checked is broken".to_owned(),
        };
        let _ = write!(text, "{verdict}: {seen}");
        text
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let checks = Check::ALL.map(|check| json!({"id": check.id(), "holds": check.sentence()}));
        let not_checked = NOT_CHECKED.map(|(what, why)| json!({"what": what, "why": why}));
        json!({
            "outcome": self.outcome().as_str(),
            "findings": self.findings,
            "audited": {
                "hosts": self.last.hosts,
                "machines": self.last.machines,
                "qemus": self.last.qemus,
                "migrations": self.last.migrations,
            },
            "looks": self.looks,
            "seconds": self.took.as_secs_f64(),
            "checks": checks,
            "notChecked": not_checked,
        })
    }
}
