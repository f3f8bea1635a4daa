//! What can befall a server: it dies, comes back, hangs, or comes back as it was before.

use super::{Postgres, READY_MAX, READY_PAUSE, run};
use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Instant;

/// A server whose processes all stand still. They go on when this is dropped.
#[derive(Debug)]
pub struct Frozen {
    processes: Vec<Pid>,
}

impl Drop for Frozen {
    fn drop(&mut self) {
        for process in &self.processes {
            // It may have been killed meanwhile.
            let _ = kill(*process, Signal::SIGCONT);
        }
    }
}

impl Postgres {
    /// Kills the server's first process alone (SIGKILL), and waits until its children have ended
    /// for that: what they had begun they may finish.
    ///
    /// # Errors
    /// When it does not run, or something of it outlives it by 30 s.
    pub fn crash(&self) -> Result<()> {
        let processes = processes(&self.server.data())?;
        kill(processes[0], Signal::SIGKILL).context("kill postgres")?;
        // The others find out by themselves; until then a new server refuses to start.
        wait(|| processes.iter().all(|process| !is_alive(*process)))
            .context("something of the killed server is left")
    }

    /// Starts a server that was killed, on its data, and waits until it answers.
    ///
    /// # Errors
    /// When it isn't one that ends with this process, or does not answer within 30 s.
    pub fn revive(&self) -> Result<()> {
        let watchdog = self
            .watchdog
            .as_ref()
            .and_then(|child| child.stdin.as_ref());
        let mut watchdog = watchdog.context("a detached server can't be revived")?;
        watchdog.write_all(b"\n").context("ask for a new server")?;
        self.server.wait_ready(&self.socket_dir)
    }

    /// Stops all processes of the server where they are: whoever asks gets no answer.
    ///
    /// # Errors
    /// When it does not run.
    pub fn freeze(&self) -> Result<Frozen> {
        let mut stopped = vec![];
        // Twice: a child may have been forked before its parent was stopped.
        for _ in 0..2 {
            stopped = processes(&self.server.data())?;
            for process in &stopped {
                // A child that ended meanwhile needs no signal.
                let _ = kill(*process, Signal::SIGSTOP);
            }
        }
        Ok(Frozen { processes: stopped })
    }

    /// Copies the data of the running server, as a replica that is cut off at this moment has them.
    ///
    /// # Errors
    /// When the copy can't be made.
    pub fn copy(&self) -> Result<()> {
        let mut copy = self.server.command(&self.server.bin.join("pg_basebackup"));
        copy.args(["--checkpoint=fast", "--wal-method=stream", "--no-sync"])
            .arg("--username=postgres")
            .arg("--host")
            .arg(&self.socket_dir)
            .arg("--pgdata")
            .arg(self.copied());
        run(copy, "copy the data (pg_basebackup)").map(drop)
    }

    /// Kills the server, and starts one on the data of [`Postgres::copy`] in its place.
    ///
    /// # Errors
    /// As for [`Postgres::crash`] and [`Postgres::revive`], and when there is no copy.
    pub fn fail_over(&self) -> Result<()> {
        self.crash()?;
        let data = self.server.data();
        fs::rename(&data, self.server.dir.join("lost")).context("put the data away")?;
        fs::rename(self.copied(), &data).context("put the copy in their place")?;
        self.revive()
    }

    fn copied(&self) -> PathBuf {
        self.server.dir.join("copy")
    }
}

/// The server whose data are in `data`, and then its children.
pub(super) fn processes(data: &Path) -> Result<Vec<Pid>> {
    let file = fs::read_to_string(data.join("postmaster.pid"));
    let file = file.context("postgres does not run")?;
    let server: i32 = file.lines().next().unwrap_or_default().trim().parse()?;
    let children = format!("/proc/{server}/task/{server}/children");
    let children = fs::read_to_string(children).context("postgres does not run")?;
    let children: Result<Vec<i32>, _> = children.split_whitespace().map(str::parse).collect();
    let all = std::iter::once(server).chain(children?);
    Ok(all.map(Pid::from_raw).collect())
}

/// A zombie is as good as gone: nobody may have asked after it yet.
fn is_alive(process: Pid) -> bool {
    let status = fs::read_to_string(Path::new("/proc").join(process.to_string()).join("stat"));
    status.is_ok_and(|stat| !stat.contains(") Z "))
}

fn wait(done: impl Fn() -> bool) -> Result<()> {
    let deadline = Instant::now() + READY_MAX;
    while !done() {
        ensure!(Instant::now() < deadline, "not within 30 s");
        sleep(READY_PAUSE);
    }
    Ok(())
}
