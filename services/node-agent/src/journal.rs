//! What a host must not forget: one record a machine, one append-only log a half of a job.
//!
//! Everything here blocks on the disk and is called off the executor, or where a wait is meant. It
//! decides nothing. Layout, under the agent's state directory:
//!
//! ```text
//! machines/<uid>/machine.json                the machine, replaced atomically
//! machines/<uid>/fence.json                  the epoch below which it is not started here
//! machines/<uid>/jobs/<job>.source.jsonl     one snapshot a line; the last whole line is true
//! machines/<uid>/jobs/<job>.target.jsonl
//! ```
//!
//! A log is filled with zeros when it is created, so that an append during a blackout overwrites
//! blocks that exist: `fdatasync` then writes data alone and waits for no file-system journal.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use godwit_model::{Epoch, JobId, MachineId};

/// Zeros a log is created with: more than the lines of a whole job.
const LOG_RESERVE: u64 = 64 * 1024;

/// Longest log that is read back; a longer one is damaged, not ours.
const LOG_MAX: u64 = 16 * 1024 * 1024;

/// Names in a machine's directory.
const RECORD: &str = "machine.json";
const FENCE: &str = "fence.json";
const JOBS: &str = "jobs";

/// Which half of a job a log belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Side {
    /// The host that the machine leaves.
    Source,
    /// The host that it moves to.
    Target,
}

impl Side {
    const fn suffix(self) -> &'static str {
        match self {
            Self::Source => ".source.jsonl",
            Self::Target => ".target.jsonl",
        }
    }
}

/// The directory with everything durable of this host.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    root: PathBuf,
}

impl Store {
    /// Opens the store under `state_dir`, making it when it is missing.
    ///
    /// # Errors
    /// When the directory can't be made.
    pub(crate) fn open(state_dir: &Path) -> io::Result<Self> {
        let root = state_dir.join("machines");
        fs::create_dir_all(&root)?;
        Ok(Self { root })
    }

    /// Machines with anything on disk: a record, a log, or both.
    ///
    /// # Errors
    /// When the directory can't be read.
    pub(crate) fn machines(&self) -> io::Result<Vec<MachineId>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.root)? {
            let name = entry?.file_name();
            // A name that is no id was not written here and is left alone.
            if let Some(id) = name.to_str().and_then(|name| MachineId::parse(name).ok()) {
                found.push(id);
            }
        }
        Ok(found)
    }

    /// Halves of jobs of `machine` that have a log.
    ///
    /// # Errors
    /// When the directory can't be read.
    pub(crate) fn jobs(&self, machine: &MachineId) -> io::Result<Vec<(JobId, Side)>> {
        let files = names(&self.jobs_dir(machine))?;
        Ok(files.iter().filter_map(|name| log_of(name)).collect())
    }

    /// The record of `machine`; `None` when this host keeps none.
    ///
    /// # Errors
    /// When it can't be read or understood: a machine must not be started twice over a bad record.
    pub(crate) fn record<T: DeserializeOwned>(&self, machine: &MachineId) -> io::Result<Option<T>> {
        match fs::read(self.record_path(machine)) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Replaces the record of `machine`: after a crash either the old or the new one is there.
    ///
    /// # Errors
    /// When the disk refuses; the old record is in force then.
    pub(crate) fn record_put<T: Serialize>(
        &self,
        machine: &MachineId,
        record: &T,
    ) -> io::Result<()> {
        self.replace(machine, &self.record_path(machine), record)
    }

    fn replace<T: Serialize>(&self, machine: &MachineId, path: &Path, value: &T) -> io::Result<()> {
        let dir = self.root.join(machine.as_str());
        let fresh = !dir.exists();
        fs::create_dir_all(&dir)?;
        let draft = draft_of(path);
        let mut file = File::create(&draft)?;
        file.write_all(&serde_json::to_vec_pretty(value)?)?;
        file.sync_all()?;
        fs::rename(&draft, path)?;
        sync_dir(&dir)?;
        if fresh { sync_dir(&self.root) } else { Ok(()) }
    }

    /// Removes the record of `machine`. Its jobs' logs stay: tombstones outlive machines.
    ///
    /// # Errors
    /// When the disk refuses.
    pub(crate) fn record_remove(&self, machine: &MachineId) -> io::Result<()> {
        match fs::remove_file(self.record_path(machine)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        }
        sync_dir(&self.root.join(machine.as_str()))
    }

    /// The lowest epoch under which `machine` may be started here; `None` when any may.
    ///
    /// # Errors
    /// When it can't be read or understood.
    pub(crate) fn fence(&self, machine: &MachineId) -> io::Result<Option<Epoch>> {
        match fs::read(self.fence_path(machine)) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Refuses starts of `machine` under epochs older than `epoch`, from now on.
    ///
    /// # Errors
    /// When the disk refuses.
    pub(crate) fn fence_put(&self, machine: &MachineId, epoch: Epoch) -> io::Result<()> {
        self.replace(machine, &self.fence_path(machine), &epoch)
    }

    /// The log of one half; `None` when there never was one.
    ///
    /// # Errors
    /// When it is there and can't be opened.
    pub(crate) fn log(
        &self,
        machine: &MachineId,
        job: &JobId,
        side: Side,
    ) -> io::Result<Option<Log>> {
        let path = self.log_path(machine, job, side);
        if path.exists() {
            Log::open(&path).map(Some)
        } else {
            Ok(None)
        }
    }

    /// The log of one half, made when it is missing.
    ///
    /// # Errors
    /// When the disk refuses.
    pub(crate) fn log_make(&self, machine: &MachineId, job: &JobId, side: Side) -> io::Result<Log> {
        let path = self.log_path(machine, job, side);
        if path.exists() {
            return Log::open(&path);
        }
        fs::create_dir_all(self.jobs_dir(machine))?;
        let log = Log::create(&path)?;
        for dir in [
            &self.jobs_dir(machine),
            &self.root.join(machine.as_str()),
            &self.root,
        ] {
            sync_dir(dir)?;
        }
        Ok(log)
    }

    /// What is in here and belongs to no machine and no job, as paths under the store.
    ///
    /// # Errors
    /// When a directory can't be read.
    pub(crate) fn strays(&self) -> io::Result<Vec<String>> {
        let mut found = Vec::new();
        for name in names(&self.root)? {
            if MachineId::parse(name.as_str()).is_err() {
                found.push(name);
                continue;
            }
            let jobs = format!("{name}/{JOBS}");
            for file in names(&self.root.join(&name))? {
                if ![RECORD, FENCE, JOBS].contains(&file.as_str()) {
                    found.push(format!("{name}/{file}"));
                }
            }
            for file in names(&self.root.join(&jobs))? {
                if log_of(&file).is_none() {
                    found.push(format!("{jobs}/{file}"));
                }
            }
        }
        Ok(found)
    }

    /// Removes logs and fences not written for `age`, drafts, and directories with nothing left in
    /// them. Nobody may be writing.
    ///
    /// A tombstone has to outlive every message of its job, and those end within minutes.
    ///
    /// # Errors
    /// When the disk refuses.
    pub(crate) fn prune(&self, machine: &MachineId, age: Duration) -> io::Result<()> {
        let logs = self.jobs(machine)?.into_iter();
        let logs = logs.map(|(job, side)| self.log_path(machine, &job, side));
        for path in logs.chain([self.fence_path(machine)]) {
            match fs::metadata(&path).and_then(|found| found.modified()) {
                Ok(at) if at.elapsed().is_ok_and(|since| since > age) => fs::remove_file(&path)?,
                _ => {}
            }
        }
        // What a crash left unfinished; mostly there is none.
        for path in [self.record_path(machine), self.fence_path(machine)] {
            let _ = fs::remove_file(draft_of(&path));
        }
        // Not empty is the common answer, and no error.
        let _ = fs::remove_dir(self.jobs_dir(machine));
        let _ = fs::remove_dir(self.root.join(machine.as_str()));
        Ok(())
    }

    fn record_path(&self, machine: &MachineId) -> PathBuf {
        self.root.join(machine.as_str()).join(RECORD)
    }

    fn fence_path(&self, machine: &MachineId) -> PathBuf {
        self.root.join(machine.as_str()).join(FENCE)
    }

    fn jobs_dir(&self, machine: &MachineId) -> PathBuf {
        self.root.join(machine.as_str()).join(JOBS)
    }

    fn log_path(&self, machine: &MachineId, job: &JobId, side: Side) -> PathBuf {
        self.jobs_dir(machine)
            .join(format!("{job}{}", side.suffix()))
    }
}

/// An open log. Cheap to clone; one task writes.
#[derive(Debug)]
pub(crate) struct Log {
    file: Arc<File>,
    end: u64,
}

impl Log {
    fn create(path: &Path) -> io::Result<Self> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)?;
        file.write_all(&vec![0; usize::try_from(LOG_RESERVE).unwrap_or(0)])?;
        file.sync_all()?;
        Ok(Self {
            file: Arc::new(file),
            end: 0,
        })
    }

    fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let mut log = Self {
            file: Arc::new(file),
            end: 0,
        };
        log.end = valid_end(&log.bytes()?) as u64;
        Ok(log)
    }

    /// The last whole line; `None` for a log that was never written to.
    ///
    /// # Errors
    /// When the log can't be read, or its last line is none of ours.
    pub(crate) fn last<T: DeserializeOwned>(&self) -> io::Result<Option<T>> {
        let bytes = self.bytes()?;
        let valid = &bytes[..usize::try_from(self.end).unwrap_or(0).min(bytes.len())];
        match valid
            .split(|byte| *byte == b'\n')
            .rfind(|line| !line.is_empty())
        {
            Some(line) => Ok(Some(serde_json::from_slice(line)?)),
            None => Ok(None),
        }
    }

    /// Appends `line` and returns when it is on disk, with the time that took.
    ///
    /// # Errors
    /// When the disk refuses: the caller must not act on what it meant to write.
    pub(crate) async fn append<T: Serialize + Sync>(&mut self, line: &T) -> io::Result<Duration> {
        let mut bytes = serde_json::to_vec(line)?;
        bytes.push(b'\n');
        let (file, at, length) = (Arc::clone(&self.file), self.end, bytes.len() as u64);
        let took = tokio::task::spawn_blocking(move || -> io::Result<Duration> {
            let began = Instant::now();
            file.write_all_at(&bytes, at)?;
            file.sync_data()?;
            Ok(began.elapsed())
        })
        .await
        .map_err(io::Error::other)??;
        // Moved on only after success: a failed line is overwritten by the next.
        self.end += length;
        Ok(took)
    }

    fn bytes(&self) -> io::Result<Vec<u8>> {
        let length = self.file.metadata()?.len();
        if length > LOG_MAX {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "log longer than 16 MiB",
            ));
        }
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
        self.file.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    }
}

/// End of the last line that is whole and JSON. What a crash tore lies behind it.
fn valid_end(bytes: &[u8]) -> usize {
    let mut end = 0;
    while let Some(length) = bytes[end..].iter().position(|byte| *byte == b'\n') {
        let line = &bytes[end..end + length];
        if serde_json::from_slice::<serde::de::IgnoredAny>(line).is_err() {
            break;
        }
        end += length + 1;
    }
    end
}

/// The half of a job whose log has this name; `None` for a name of something else.
fn log_of(name: &str) -> Option<(JobId, Side)> {
    [Side::Source, Side::Target].into_iter().find_map(|side| {
        let id = name.strip_suffix(side.suffix())?;
        Some((JobId::parse(id).ok()?, side))
    })
}

/// Where a file is written before it takes the place of the one at `path`.
fn draft_of(path: &Path) -> PathBuf {
    path.with_extension("json.new")
}

/// Names in a directory; none when there is no such directory.
fn names(dir: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let name = |entry: io::Result<fs::DirEntry>| -> io::Result<String> {
        Ok(entry?.file_name().to_string_lossy().into_owned())
    };
    entries.map(name).collect()
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> MachineId {
        MachineId::parse("11111111-94b4-4cda-9a69-cca8d4b4c587").expect("a uuid")
    }

    fn job() -> JobId {
        JobId::parse("22222222-94b4-4cda-9a69-cca8d4b4c587").expect("a uuid")
    }

    fn path(dir: &Path) -> PathBuf {
        dir.join(format!(
            "machines/{}/jobs/{}.source.jsonl",
            machine(),
            job()
        ))
    }

    async fn with_lines(dir: &Path, lines: &[u32]) -> Store {
        let store = Store::open(dir).expect("a store");
        let mut log = store
            .log_make(&machine(), &job(), Side::Source)
            .expect("a log");
        for line in lines {
            log.append(line).await.expect("written");
        }
        store
    }

    fn reopened(store: &Store) -> Log {
        store
            .log(&machine(), &job(), Side::Source)
            .expect("readable")
            .expect("there")
    }

    #[tokio::test]
    async fn the_last_line_wins() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = with_lines(dir.path(), &[1, 2, 3]).await;
        assert_eq!(reopened(&store).last::<u32>().expect("readable"), Some(3));
        assert_eq!(
            store.jobs(&machine()).expect("listed"),
            [(job(), Side::Source)]
        );
        assert_eq!(store.machines().expect("listed"), [machine()]);
    }

    #[tokio::test]
    async fn an_empty_log_says_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = with_lines(dir.path(), &[]).await;
        assert_eq!(reopened(&store).last::<u32>().expect("readable"), None);
    }

    #[tokio::test]
    async fn a_torn_tail_is_ignored_and_overwritten() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = with_lines(dir.path(), &[1, 2]).await;
        let file = OpenOptions::new()
            .write(true)
            .open(path(dir.path()))
            .expect("opens");
        for torn in ["{\"half", "{\"half\0\0\n", "\0\0\0}\n"] {
            file.write_all_at(torn.as_bytes(), 4).expect("torn");
            let log = reopened(&store);
            assert_eq!(
                log.last::<u32>().expect("readable"),
                Some(2),
                "after {torn:?}"
            );
        }
        let mut log = reopened(&store);
        log.append(&7).await.expect("written");
        assert_eq!(reopened(&store).last::<u32>().expect("readable"), Some(7));
    }

    #[tokio::test]
    async fn a_log_cut_in_the_middle_of_its_only_line_is_empty() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = with_lines(dir.path(), &[123_456]).await;
        let file = OpenOptions::new()
            .write(true)
            .open(path(dir.path()))
            .expect("opens");
        file.set_len(3).expect("cut");
        assert_eq!(reopened(&store).last::<u32>().expect("readable"), None);
    }

    #[tokio::test]
    async fn what_belongs_to_nothing_is_named_and_drafts_go_with_the_next_pruning() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = with_lines(dir.path(), &[1]).await;
        store.record_put(&machine(), &1).expect("written");
        assert_eq!(store.strays().expect("read"), Vec::<String>::new());
        let machine_dir = dir.path().join("machines").join(machine().as_str());
        fs::write(machine_dir.join("machine.json.new"), "{").expect("torn");
        fs::write(machine_dir.join("jobs/other"), "").expect("written");
        let mut found = store.strays().expect("read");
        found.sort();
        let wanted = ["jobs/other", "machine.json.new"].map(|name| format!("{}/{name}", machine()));
        assert_eq!(found, wanted);
        store
            .prune(&machine(), Duration::from_secs(60))
            .expect("pruned");
        assert_eq!(store.strays().expect("read"), wanted[..1]);
    }

    #[test]
    fn a_record_is_replaced_whole_and_removed() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(dir.path()).expect("a store");
        assert_eq!(store.record::<u32>(&machine()).expect("readable"), None);
        store.record_put(&machine(), &1).expect("written");
        store.record_put(&machine(), &2).expect("written");
        assert_eq!(store.record::<u32>(&machine()).expect("readable"), Some(2));
        store.record_remove(&machine()).expect("removed");
        assert_eq!(store.record::<u32>(&machine()).expect("readable"), None);
    }
}
