//! The connection that a copy leaves by: made here, and handed to QEMU.
//!
//! QEMU 7.2 does the handshake of TLS in its main thread: over a link that is cut just then, or with
//! a peer that says nothing, it answers nobody, and its guest stands still for as long as the kernel
//! waits (measured). Of a connection that it was given we keep a handle, and shutting that down ends
//! the handshake. Should this process end meanwhile, the kernel does the same when nothing comes.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use rustix::net::sockopt;
use tokio::time::{sleep, timeout};
use tracing::warn;

use crate::qmp::{Qmp, QmpError};

/// QEMU's name for the connection.
const NAME: &str = "copy";
const URI: &str = "fd:copy";

/// Longest wait for the target's host to take the connection.
const CONNECT_MAX: Duration = Duration::from_secs(5);

/// Longest handshake; its guest may stand still for so long.
const HANDSHAKE_MAX: Duration = Duration::from_secs(3);

/// Silence during the handshake after which the kernel asks whether the peer is there, and the pause
/// between two questions; three without an answer end the connection.
const SILENCE_MAX: Duration = Duration::from_secs(1);
const QUESTIONS: u32 = 3;

/// A connection to the target's QEMU.
#[derive(Debug)]
pub(crate) struct Outgoing(TcpStream);

impl Outgoing {
    /// Connects to `tcp:HOST:PORT`.
    ///
    /// # Errors
    /// When that is no such address, or nobody takes the connection in time.
    pub(crate) async fn connect(uri: &str) -> io::Result<Self> {
        let address: Option<SocketAddr> = uri
            .strip_prefix("tcp:")
            .and_then(|address| address.parse().ok());
        let address = address.ok_or_else(|| io::Error::other("not tcp:ADDRESS:PORT"))?;
        let stream = tokio::net::TcpStream::connect(address);
        let stream = timeout(CONNECT_MAX, stream).await??.into_std()?;
        // QEMU writes to it from a thread of its own.
        stream.set_nonblocking(false)?;
        // The last pages and the devices are small, and a guest stands still for them.
        stream.set_nodelay(true)?;
        sockopt::set_tcp_keepidle(&stream, SILENCE_MAX)?;
        sockopt::set_tcp_keepintvl(&stream, SILENCE_MAX)?;
        sockopt::set_tcp_keepcnt(&stream, QUESTIONS)?;
        Ok(Self(stream))
    }

    /// Gives it to QEMU and begins the copy over it.
    ///
    /// # Errors
    /// As [`Qmp::execute`]; a handshake that did not end in time is refused by QEMU.
    pub(crate) async fn hand_over(self, qmp: &Qmp) -> Result<(), QmpError> {
        let Self(stream) = self;
        let file = stream.try_clone().map_err(QmpError::Connect)?;
        watch(&stream, true).map_err(QmpError::Connect)?;
        qmp.give_file(NAME, file.into()).await?;
        let begun = qmp.migrate(URI);
        tokio::pin!(begun);
        tokio::select! {
            begun = &mut begun => {
                // What a copy may bear is decided elsewhere. An error means that it broke meanwhile.
                let _ = watch(&stream, false);
                return begun;
            }
            () = sleep(HANDSHAKE_MAX) => {}
        }
        warn!("no handshake within {HANDSHAKE_MAX:?}: the connection is ended");
        // An error means that it has ended.
        let _ = stream.shutdown(Shutdown::Both);
        begun.await
    }
}

/// Whether the kernel ends the connection when its peer is silent.
fn watch(stream: &TcpStream, on: bool) -> io::Result<()> {
    let unanswered = if on {
        SILENCE_MAX * QUESTIONS
    } else {
        Duration::ZERO
    };
    let unanswered = u32::try_from(unanswered.as_millis()).unwrap_or_default();
    sockopt::set_tcp_user_timeout(stream, unanswered)?;
    Ok(sockopt::set_socket_keepalive(stream, on)?)
}
