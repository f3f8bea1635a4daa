//! Files that are read again when they change; bad ones leave what was last good in force.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// How often files are looked at. What is new must be read the same twice before it counts, since
/// whoever writes may be in the middle of it.
const EVERY: Duration = Duration::from_secs(1);
/// Most bytes of a file.
const BYTES_MAX: u64 = 1 << 20;

/// What files say, at any time the newest that could be used. Cheap to clone.
#[derive(Debug)]
pub struct Reloaded<T>(watch::Receiver<Arc<T>>);

impl<T> Clone for Reloaded<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// From the texts of files, in the order of their paths, to what they say; the error is for the log.
pub(crate) type Parse<T> = Box<dyn FnMut(&[String]) -> anyhow::Result<T> + Send>;

/// Files that are used together, and what is made of them.
pub(crate) struct Files<T> {
    pub(crate) paths: Vec<PathBuf>,
    pub(crate) parse: Parse<T>,
    /// Told after each look that found something new: whether it can be used.
    pub(crate) judged: Box<dyn Fn(bool) + Send>,
}

impl<T: Send + Sync + 'static> Reloaded<T> {
    /// Reads `path` and follows it until `shutdown`; `parse` makes of its text what it says.
    ///
    /// # Errors
    /// When the file can't be read or used at first.
    pub fn start(
        path: &Path,
        mut parse: impl FnMut(&str) -> anyhow::Result<T> + Send + 'static,
        shutdown: CancellationToken,
    ) -> anyhow::Result<Self> {
        let files = Files {
            paths: vec![path.to_owned()],
            parse: Box::new(move |texts| parse(texts.first().map_or("", String::as_str))),
            judged: Box::new(|_| ()),
        };
        Self::of(files, shutdown)
    }

    /// Reads all of `files` and follows them until `shutdown`.
    ///
    /// # Errors
    /// When one can't be read, or they can't be used, at first.
    pub(crate) fn of(mut files: Files<T>, shutdown: CancellationToken) -> anyhow::Result<Self> {
        let texts = read(&files.paths)?;
        let (sender, receiver) = watch::channel(Arc::new((files.parse)(&texts)?));
        (files.judged)(true);
        let used = Some(digest(&texts));
        let follower = Follower { files, sender };
        tokio::spawn(async move {
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = follower.follow(used) => {}
            }
        });
        Ok(Self(receiver))
    }

    /// Never changes.
    pub fn fixed(value: T) -> Self {
        Self(watch::channel(Arc::new(value)).1)
    }

    /// What the files say.
    pub fn get(&self) -> Arc<T> {
        Arc::clone(&self.0.borrow())
    }
}

struct Follower<T> {
    files: Files<T>,
    sender: watch::Sender<Arc<T>>,
}

impl<T> Follower<T> {
    /// `used` is what was judged last, `None` when there was no reading it.
    async fn follow(mut self, mut used: Option<[u8; 32]>) {
        let mut before = used;
        loop {
            tokio::time::sleep(EVERY).await;
            let paths = self.files.paths.clone();
            let read = tokio::task::spawn_blocking(move || read(&paths)).await;
            let read = read.map_err(io::Error::other).flatten();
            let found = read.as_ref().ok().map(|texts| digest(texts));
            let settled = found == before;
            before = found;
            if !settled || found == used {
                continue;
            }
            used = found;
            match read {
                Ok(texts) => self.take(&texts),
                Err(error) => {
                    (self.files.judged)(false);
                    warn!(%error, "file can't be read, what it said stays in force");
                }
            }
        }
    }

    fn take(&mut self, texts: &[String]) {
        let parsed = (self.files.parse)(texts);
        let path = self.files.paths.first().map(|path| path.display());
        let path = path.map(tracing::field::display);
        (self.files.judged)(parsed.is_ok());
        match parsed {
            Ok(new) => {
                self.sender.send_replace(Arc::new(new));
                info!(path, "read a changed file");
            }
            Err(error) => warn!(
                path,
                error = format!("{error:#}"),
                "changed file can't be used, what it said before stays in force",
            ),
        }
    }
}

/// Stands for the texts, so that keys needn't be kept to compare them.
fn digest(texts: &[String]) -> [u8; 32] {
    let each = texts.iter().map(|text| Sha256::digest(text.as_bytes()));
    each.fold(Sha256::new(), |all, one| all.chain_update(one))
        .finalize()
        .into()
}

fn read(paths: &[PathBuf]) -> io::Result<Vec<String>> {
    paths.iter().map(|path| read_one(path)).collect()
}

fn read_one(path: &Path) -> io::Result<String> {
    let named =
        |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    let size = std::fs::metadata(path).map_err(named)?.len();
    if size > BYTES_MAX {
        let text = format!("it is larger than {BYTES_MAX} bytes");
        return Err(named(io::Error::other(text)));
    }
    std::fs::read_to_string(path).map_err(named)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(text: &str) -> anyhow::Result<u32> {
        Ok(text.trim().parse()?)
    }

    #[tokio::test]
    async fn a_good_change_counts_and_a_bad_one_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("number");
        std::fs::write(&path, "1").unwrap();
        let shutdown = CancellationToken::new();
        let file = Reloaded::start(&path, number, shutdown.clone()).unwrap();
        let mut seen = file.0.clone();
        assert_eq!(*file.get(), 1);
        for bad in [Some("nonsense"), None] {
            match bad {
                Some(text) => std::fs::write(&path, text).unwrap(),
                None => std::fs::remove_file(&path).unwrap(),
            }
            let changed = tokio::time::timeout(EVERY * 4, seen.changed()).await;
            assert!(changed.is_err(), "{bad:?} was taken");
            assert_eq!(*file.get(), 1);
        }
        std::fs::write(&path, "2").unwrap();
        let changed = tokio::time::timeout(EVERY * 20, seen.changed()).await;
        changed.unwrap().unwrap();
        assert_eq!(*file.get(), 2);
        shutdown.cancel();
    }

    #[tokio::test]
    async fn a_bad_file_is_an_error_at_first() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("number");
        let shutdown = CancellationToken::new();
        assert!(Reloaded::start(&path, number, shutdown.clone()).is_err());
        std::fs::write(&path, "nonsense").unwrap();
        assert!(Reloaded::start(&path, number, shutdown).is_err());
    }

    #[tokio::test]
    async fn a_folder_that_is_swapped_by_a_link_is_read_whole() {
        // As Kubernetes writes Secrets: files are links through one link, which is replaced.
        let dir = tempfile::tempdir().unwrap();
        let write = |folder: &str, text: &str| {
            let folder = dir.path().join(folder);
            std::fs::create_dir(&folder).unwrap();
            for name in ["a", "b"] {
                std::fs::write(folder.join(name), text).unwrap();
            }
        };
        write("first", "1");
        std::os::unix::fs::symlink("first", dir.path().join("data")).unwrap();
        let files = Files {
            paths: vec![dir.path().join("data/a"), dir.path().join("data/b")],
            parse: Box::new(|texts| Ok(texts.concat())),
            judged: Box::new(|_| ()),
        };
        let shutdown = CancellationToken::new();
        let both = Reloaded::of(files, shutdown.clone()).unwrap();
        assert_eq!(*both.get(), "11");
        let mut seen = both.0.clone();
        write("second", "2");
        std::os::unix::fs::symlink("second", dir.path().join("next")).unwrap();
        std::fs::rename(dir.path().join("next"), dir.path().join("data")).unwrap();
        let changed = tokio::time::timeout(EVERY * 20, seen.changed()).await;
        changed.unwrap().unwrap();
        assert_eq!(*both.get(), "22");
        shutdown.cancel();
    }
}
