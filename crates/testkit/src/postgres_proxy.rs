//! Stands between a client and a Postgres, and loses what is said. It understands as much of the
//! protocol as it takes to see a COMMIT.

use anyhow::{Context, Result};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Name of the socket in its folder.
const SOCKET: &str = ".s.PGSQL.5432";
/// Bytes read at a time.
const READ_MAX: usize = 16 << 10;
/// Longest wait for the server's answer to a COMMIT.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// A message of this type is a plain query.
const QUERY: u8 = b'Q';
/// What comes before the first message of a client that would like TLS.
const TLS_WANTED: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// What the proxy does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// Every connection is cut, and new ones at once.
    Cut,
    /// Nothing is passed on in either direction.
    Stall,
    /// A COMMIT is carried out, its answer is lost, and the connection is cut.
    LoseCommitAnswer,
    /// A COMMIT is carried out, and its answer never comes.
    HoldCommitAnswer,
    /// A COMMIT is carried out, its answer is lost, and from then on it is [`Fault::Cut`].
    CutAfterCommit,
    /// A COMMIT never arrives, and the connection is cut.
    LoseCommit,
}

/// A running proxy. It ends when dropped.
#[derive(Debug)]
pub struct PostgresProxy {
    dir: TempDir,
    fault: Arc<watch::Sender<Fault>>,
    commits_hit: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl PostgresProxy {
    /// Stands before the server behind `url`, whose host must be a folder with a socket. Call it
    /// inside a tokio runtime.
    ///
    /// # Errors
    /// When `url` names no folder, or no socket can be made.
    pub fn start(url: &str) -> Result<Self> {
        let (_, folder) = url.split_once("host=").context("the URL names no folder")?;
        let server = Path::new(folder).join(SOCKET);
        let dir = tempfile::Builder::new().prefix("gwproxy-").tempdir()?;
        let listener = UnixListener::bind(dir.path().join(SOCKET))?;
        let fault = Arc::new(watch::Sender::new(Fault::None));
        let commits_hit = Arc::new(AtomicUsize::new(0));
        let (faults, hits) = (Arc::clone(&fault), Arc::clone(&commits_hit));
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = UnixStream::connect(&server).await else {
                    continue;
                };
                let link = Link {
                    fault: faults.subscribe(),
                    faults: Arc::clone(&faults),
                    commits_hit: Arc::clone(&hits),
                };
                tokio::spawn(link.serve(client, server));
            }
        });
        Ok(Self {
            dir,
            fault,
            commits_hit,
            task,
        })
    }

    /// `url` by way of this proxy.
    pub fn url(&self, url: &str) -> String {
        let (rest, _) = url.split_once("host=").unwrap_or((url, ""));
        format!("{rest}host={}", self.dir.path().display())
    }

    /// From now on, also for connections that are open.
    pub fn set(&self, fault: Fault) {
        self.fault.send_replace(fault);
    }

    /// How many COMMITs were lost, or their answers.
    pub fn commits_hit(&self) -> usize {
        self.commits_hit.load(Ordering::SeqCst)
    }
}

impl Drop for PostgresProxy {
    fn drop(&mut self) {
        self.task.abort();
        // Ends what is open, too.
        self.fault.send_replace(Fault::Cut);
    }
}

/// One connection.
struct Link {
    fault: watch::Receiver<Fault>,
    faults: Arc<watch::Sender<Fault>>,
    commits_hit: Arc<AtomicUsize>,
}

impl Link {
    async fn serve(self, client: UnixStream, server: UnixStream) {
        let mut fault = self.fault.clone();
        let passing = self.pass(client.into_split(), server.into_split());
        tokio::select! {
            () = passing => {}
            // Both ends are dropped, and so cut.
            _ = fault.wait_for(|fault| *fault == Fault::Cut) => {}
        }
    }

    async fn pass(
        mut self,
        (mut from_client, mut to_client): (OwnedReadHalf, OwnedWriteHalf),
        (mut from_server, mut to_server): (OwnedReadHalf, OwnedWriteHalf),
    ) {
        let mut said = Messages::default();
        let (mut asked, mut answered) = (vec![0; READ_MAX], vec![0; READ_MAX]);
        loop {
            tokio::select! {
                read = from_client.read(&mut asked) => {
                    let Ok(1..) = read else { return };
                    let bytes = &asked[..read.unwrap_or_default()];
                    self.stalled().await;
                    let fault = *self.fault.borrow();
                    if said.has_commit(bytes) && fault != Fault::None {
                        self.commits_hit.fetch_add(1, Ordering::SeqCst);
                        lose(fault, bytes, (&mut to_server, &mut from_server)).await;
                        if fault == Fault::CutAfterCommit {
                            self.faults.send_replace(Fault::Cut);
                        }
                        return;
                    }
                    if to_server.write_all(bytes).await.is_err() {
                        return;
                    }
                }
                read = from_server.read(&mut answered) => {
                    let Ok(1..) = read else { return };
                    self.stalled().await;
                    let bytes = &answered[..read.unwrap_or_default()];
                    if to_client.write_all(bytes).await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    async fn stalled(&mut self) {
        // The sender is gone with the proxy: then everything is cut.
        let _ = self.fault.wait_for(|fault| *fault != Fault::Stall).await;
    }
}

/// What becomes of a COMMIT. When this returns, the connection is cut.
async fn lose(
    fault: Fault,
    commit: &[u8],
    (to_server, from_server): (&mut OwnedWriteHalf, &mut OwnedReadHalf),
) {
    match fault {
        Fault::None | Fault::Cut | Fault::Stall | Fault::LoseCommit => return,
        Fault::LoseCommitAnswer | Fault::HoldCommitAnswer | Fault::CutAfterCommit => {}
    }
    let mut answer = [0; 64];
    if to_server.write_all(commit).await.is_ok() {
        let _ = tokio::time::timeout(ANSWER_MAX, from_server.read(&mut answer)).await;
    }
    if fault == Fault::HoldCommitAnswer {
        std::future::pending().await
    }
}

/// What a client says, cut into messages.
#[derive(Default)]
struct Messages {
    started: bool,
    rest: Vec<u8>,
}

impl Messages {
    /// Whether a message that ends in these bytes is a COMMIT.
    fn has_commit(&mut self, bytes: &[u8]) -> bool {
        self.rest.extend_from_slice(bytes);
        let mut found = false;
        // Until the session starts, messages have no type, only a length.
        while let Some(length) = self.length() {
            let message: Vec<u8> = self.rest.drain(..length).collect();
            let text = message.get(5..).unwrap_or_default();
            found |= self.started && message[0] == QUERY && text.starts_with(b"COMMIT");
            self.started |= message != TLS_WANTED;
        }
        found
    }

    /// Length of the first message, once all of it is here.
    fn length(&self) -> Option<usize> {
        let start = usize::from(self.started);
        let length = self.rest.get(start..start + 4)?;
        let length = u32::from_be_bytes(length.try_into().ok()?);
        let length = start + usize::try_from(length).ok()?;
        (self.rest.len() >= length).then_some(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(text: &str) -> Vec<u8> {
        let length = u32::try_from(text.len() + 5).unwrap();
        [&[QUERY], &length.to_be_bytes()[..], text.as_bytes(), &[0]].concat()
    }

    #[test]
    fn a_commit_is_seen_wherever_the_bytes_are_cut() {
        let start = [&8u32.to_be_bytes()[..], &[0, 3, 0, 0]].concat();
        let said = [
            TLS_WANTED.to_vec(),
            start,
            query("SELECT 'COMMIT'"),
            query("COMMIT"),
        ]
        .concat();
        for cut in 0..said.len() {
            let mut messages = Messages::default();
            assert!(!messages.has_commit(&said[..cut]), "{cut}");
            assert!(messages.has_commit(&said[cut..]), "{cut}");
        }
    }
}
