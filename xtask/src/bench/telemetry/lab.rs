//! What traces cost where real machines move: most of the time is QEMU's there.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use godwit_testkit::api::Api;
use godwit_testkit::lab::{Lab, LabOptions};
use godwit_testkit::postgres::cpu_seconds_of;

use super::super::machines::{self, Guest, Wanted};
use super::super::{EndsLab, LAST, WORKERS, godwit};
use super::{Arm, Run, Stand};
use crate::tools;

/// Moves of a run that only warm everything up.
const WARM_UP: usize = 3;
/// How long spans may be on their way: they are gathered for a second.
const ON_THE_WAY: Duration = Duration::from_secs(2);
const VMI: &str = "told";

impl Stand<'_> {
    /// Starts a lab and a machine, and moves that again and again.
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    pub(super) async fn move_often(&self, arm: Arm, moves: usize) -> Result<Run> {
        let mut options = LabOptions {
            prefix: "gwb".to_owned(),
            index: 2,
            workers: WORKERS,
            coordinators: 1,
            dir: PathBuf::from("/var/lib/gw-bench"),
            ..LabOptions::standard(self.bin_dir.clone(), tools::cache_dir())
        };
        let here = Lab::new(options.clone()).network().management();
        options.otlp_endpoint = self.port(arm).map(|port| format!("http://{here}:{port}"));
        let lab = Lab::new(options);
        tokio::task::block_in_place(|| lab.down().and_then(|()| lab.up(&|_| ())))?;
        let _ends = EndsLab(lab.clone());
        let api = Api::of(&lab)?;
        let mut connection = api.connect().await?;
        let wanted = Wanted {
            name: VMI.to_owned(),
            last: LAST,
            memory: "256Mi",
            guest: Guest {
                tick: 1000,
                heartbeat: None,
            },
        };
        machines::run(&lab, (&api, &mut connection), &wanted).await?;
        for number in 0..WARM_UP {
            let name = format!("warm-up-{number}");
            godwit::ask(&api, &mut connection, (VMI, &name)).await?;
        }
        tokio::time::sleep(ON_THE_WAY).await;
        let (before, seen) = (cpu_seconds(&lab)?, self.collector.count());
        let mut took = Duration::ZERO;
        for number in 0..moves {
            let name = format!("move-{number}");
            let seen = godwit::ask(&api, &mut connection, (VMI, &name)).await?;
            took += seen.end - seen.begin;
        }
        let cpu = cpu_seconds(&lab)? - before;
        tokio::time::sleep(ON_THE_WAY).await;
        let moved = moves.max(1) as f64;
        Ok(Run {
            arm,
            migrations: moves,
            failed: 0,
            a_second: moved / took.as_secs_f64(),
            cpu_ms_each: cpu * 1e3 / moved,
            spans_each: (self.collector.count() - seen) as f64 / moved,
        })
    }
}

/// Of all services of the lab, agents too.
fn cpu_seconds(lab: &Lab) -> Result<f64> {
    let services = lab.services().into_iter().map(|service| {
        let pid = service.process().map(|process| process.pid);
        let used = pid.and_then(|pid| cpu_seconds_of(pid, false));
        used.with_context(|| format!("{} ended", service.name))
    });
    services.sum()
}
