//! The machine that the fault suite moves: its guest tells over the network that it runs, so that
//! two running copies, a step back in time and a second boot are seen from outside.

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use godwit_testkit::guest::heartbeat::{Heard, Listener, Report};
use godwit_testkit::guest::record::{self, POWER_OFF, QUERY_PORT};
use serde_json::{Value, json};

use crate::fault_env::{Faults, INSTANCES, MACHINES};
use crate::lab_env::example;
use crate::lab_suite::say;

/// A running machine with somebody who listens to it.
pub(crate) struct Guest {
    pub(crate) name: String,
    listener: Listener,
    manifest: Value,
    /// Last byte of its address.
    last: u8,
}

impl Guest {
    /// Starts a machine, and waits for its first words. `last` is the last byte of its address.
    pub(crate) fn start(env: &Faults, name: &str, last: u8) -> Result<Self> {
        Self::start_as(env, name, (last, "godwit.tick=10"))
    }

    /// As [`Self::start`], with kernel arguments for the guest's program.
    pub(crate) fn start_as(env: &Faults, name: &str, (last, told): (u8, &str)) -> Result<Self> {
        let guest = Self::create(env, name, (last, told))?;
        guest.beats(env)?;
        Ok(guest)
    }

    /// Starts machines, with addresses from `first` on, and waits until all have spoken.
    pub(crate) fn many(env: &Faults, name: &str, (first, count): (u8, u8)) -> Result<Vec<Self>> {
        let create = |number| {
            let place = (first + number, "godwit.tick=10");
            Self::create(env, &format!("{name}-{number}"), place)
        };
        let guests: Vec<Self> = (0..count).map(create).collect::<Result<_>>()?;
        for guest in &guests {
            guest.beats(env)?;
        }
        Ok(guests)
    }

    fn create(env: &Faults, name: &str, (last, told): (u8, &str)) -> Result<Self> {
        let network = env.lab().network();
        let socket = UdpSocket::bind((network.guest_gateway(), 0))?;
        let to = socket.local_addr()?;
        let text = std::fs::read_to_string(example("vm-rhel8-server-nfs.yaml"))?;
        let text = text.replace("rhel8-server-nfs", name).replace(
            "/var/lib/godwit/shared",
            &env.lab().disks().to_string_lossy(),
        );
        let mut manifest: Value = serde_yaml_ng::from_str(&text)?;
        let domain = &mut manifest["spec"]["template"]["spec"]["domain"];
        domain["memory"]["guest"] = json!("96Mi");
        let address = network.guest(last);
        domain["firmware"]["kernelBoot"]["kernelArgs"] = json!(format!(
            "console=ttyS0 quiet panic=-1 godwit.ip={address}/24 godwit.heartbeat={to} \
             {told}"
        ));
        let guest = Self {
            name: name.to_owned(),
            listener: Listener::start(socket)?,
            manifest,
            last,
        };
        env.create(MACHINES, &guest.manifest)?;
        Ok(guest)
    }

    /// The boots that were heard.
    pub(crate) fn boots(&self) -> BTreeSet<[u8; 16]> {
        let report = self.listener.report();
        report
            .heard
            .iter()
            .map(|heard| heard.record.boot_id)
            .collect()
    }

    /// Waits until the instance is Running and its guest says something new.
    pub(crate) fn beats(&self, env: &Faults) -> Result<()> {
        env.until("the instance to run", || env.running_on(&self.name))?;
        let now = Instant::now();
        env.until("the guest's heartbeat", || {
            let last = self.listener.report().last();
            Ok(last.is_some_and(|heard| heard.at > now).then_some(()))
        })
    }

    /// Nothing was ever said twice: no two copies ran, and none went back in time.
    pub(crate) fn judge(&self) -> Result<()> {
        let repeats = self.listener.report().repeats();
        ensure!(
            repeats.is_empty(),
            "the guest said again: {:?}",
            repeats.first()
        );
        Ok(())
    }

    /// The longest silence between two moments.
    pub(crate) fn longest_gap(&self, from: Instant, to: Instant) -> Duration {
        let report = self.listener.report();
        let within = |pair: &&[Heard]| pair[1].at > from && pair[0].at < to;
        let gaps = report.heard.windows(2).filter(within);
        let gaps = gaps.map(|pair| pair[1].at.duration_since(pair[0].at));
        gaps.max().unwrap_or_default()
    }

    /// What was heard of it so far.
    pub(crate) fn report(&self) -> Report {
        self.listener.report()
    }

    /// Heartbeats that were sent and never heard.
    pub(crate) fn missing(&self) -> u64 {
        self.listener.report().missing()
    }

    /// Makes the guest power itself off.
    pub(crate) fn power_off(&self, env: &Faults) -> Result<()> {
        let socket = UdpSocket::bind((env.lab().network().guest_gateway(), 0))?;
        let guest = env.lab().network().guest(self.last);
        socket.send_to(POWER_OFF, (guest, QUERY_PORT))?;
        Ok(())
    }

    /// Waits until the guest says something new, or its machine has crashed and waits for its next
    /// start, longer and longer. Answers whether it runs.
    pub(crate) fn runs(&self, env: &Faults) -> Result<bool> {
        let now = Instant::now();
        env.until("the guest's heartbeat, or its crash", || {
            let last = self.listener.report().last();
            if last.is_some_and(|heard| heard.at > now) {
                return Ok(Some(true));
            }
            let found = env.get(&format!("{MACHINES}/{}", self.name))?;
            let status = found.unwrap_or_default()["status"]["printableStatus"].clone();
            Ok((status == "CrashLoopBackOff").then_some(false))
        })
    }

    /// Makes the machine anew, after a case that left it in a bad state.
    pub(crate) fn recover(&self, env: &Faults) -> Result<()> {
        for worker in ["worker1", "worker2", "worker3"] {
            env.firewall(worker, &[], &[])?;
        }
        self.remove_only(env)?;
        env.create(MACHINES, &self.manifest)?;
        self.beats(env)
    }

    /// Ends the machine, the only one; nothing of it may be left but its disk, with each record of
    /// each boot exactly once.
    pub(crate) fn remove(&self, env: &Faults) -> Result<()> {
        self.remove_only(env)?;
        env.audit(0)?;
        let disk = env.lab().disks().join(format!("{}.img", self.name));
        let boots = record::verify(&std::fs::read(disk)?)?;
        let records: u64 = boots
            .iter()
            .map(|boot| boot.last.sequence + 1 - boot.first.sequence)
            .sum();
        say(&format!(
            "disk: {records} records of {} boots, each once",
            boots.len()
        ));
        ensure!(records > 0, "the guest wrote nothing");
        Ok(())
    }

    /// Ends the machine.
    pub(crate) fn remove_only(&self, env: &Faults) -> Result<()> {
        env.delete(&format!("{MACHINES}/{}", self.name))?;
        self.gone(env)
    }

    /// Waits until the instance is gone.
    pub(crate) fn gone(&self, env: &Faults) -> Result<()> {
        env.until("the machine to be gone", || {
            let left = env.get(&format!("{INSTANCES}/{}", self.name))?;
            Ok(left.is_none().then_some(()))
        })
    }
}
