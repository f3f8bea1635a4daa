//! A file that is read again when it changes; a bad one leaves what was last good in force.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// How often a file is looked at. What is new must be read the same twice before it counts, since
/// whoever writes may be in the middle of it.
const EVERY: Duration = Duration::from_secs(1);
/// Most bytes of a file.
const BYTES_MAX: u64 = 1 << 20;

/// What a file says, at any time the newest that could be used.
pub(crate) struct Reloaded<T>(watch::Receiver<Arc<T>>);

/// From the text of a file to what it says; the error is for the log.
pub(crate) type Parse<T> = fn(&str) -> anyhow::Result<T>;

impl<T: Send + Sync + 'static> Reloaded<T> {
    /// Reads `path` and follows it until `shutdown`.
    ///
    /// # Errors
    /// When the file can't be read or used at first.
    pub(crate) fn start(
        path: &Path,
        parse: Parse<T>,
        shutdown: CancellationToken,
    ) -> anyhow::Result<Self> {
        let text = read(path)?;
        let (sender, receiver) = watch::channel(Arc::new(parse(&text)?));
        let follower = Follower {
            path: path.to_owned(),
            parse,
            sender,
        };
        tokio::spawn(async move {
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = follower.follow(Some(text)) => {}
            }
        });
        Ok(Self(receiver))
    }

    /// What the file says.
    pub(crate) fn get(&self) -> Arc<T> {
        Arc::clone(&self.0.borrow())
    }
}

struct Follower<T> {
    path: PathBuf,
    parse: Parse<T>,
    sender: watch::Sender<Arc<T>>,
}

impl<T> Follower<T> {
    /// `used` is the text that was judged last, `None` when there was no reading it.
    async fn follow(self, mut used: Option<String>) {
        let mut before = used.clone();
        loop {
            tokio::time::sleep(EVERY).await;
            let path = self.path.clone();
            let read = tokio::task::spawn_blocking(move || read(&path)).await;
            let (text, why) = match read.map_err(io::Error::other).flatten() {
                Ok(text) => (Some(text), None),
                Err(error) => (None, Some(error)),
            };
            let settled = text == before;
            before.clone_from(&text);
            if !settled || text == used {
                continue;
            }
            match &text {
                Some(text) => self.take(text),
                None => warn!(
                    path = %self.path.display(),
                    error = why.map(tracing::field::display),
                    "file can't be read, what it said stays in force",
                ),
            }
            used = text;
        }
    }

    fn take(&self, text: &str) {
        let path = self.path.display();
        match (self.parse)(text) {
            Ok(new) => {
                self.sender.send_replace(Arc::new(new));
                info!(%path, "read a changed file");
            }
            Err(error) => warn!(
                %path,
                error = format!("{error:#}"),
                "changed file can't be used, what it said before stays in force",
            ),
        }
    }
}

fn read(path: &Path) -> io::Result<String> {
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
}
