//! A connection that is closed when its client takes nothing of what we send.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use super::counts::{Counted, Counts, Limit};
use super::pool::Share;

/// Answers of one connection that may be cut off. A client may forget to read one of many; but each
/// leaves a piece in the connection's buffers, and nothing but its end frees them.
const CUTS_MAX: usize = 4;

/// A connection's place among all.
pub(crate) struct Place {
    reserved: bool,
    _share: Share,
    _count: Counted,
}

impl Place {
    pub(super) fn new(share: Share, reserved: bool, count: Counted) -> Self {
        Self {
            reserved,
            _share: share,
            _count: count,
        }
    }

    /// Whether it is one that is kept for operators.
    pub(super) fn is_reserved(&self) -> bool {
        self.reserved
    }
}

/// What the answers of a connection know of it. Put into each of its requests.
#[derive(Debug, Default)]
pub(crate) struct Line {
    cuts: AtomicUsize,
    reader: AtomicWaker,
}

impl Line {
    /// One more of its answers was cut off.
    pub(super) fn cut(&self) {
        if self.cuts.fetch_add(1, Ordering::Relaxed) >= CUTS_MAX {
            self.reader.wake();
        }
    }

    /// Whether none was.
    fn is_whole(&self) -> bool {
        self.cuts.load(Ordering::Relaxed) == 0
    }

    fn is_over(&self) -> bool {
        self.cuts.load(Ordering::Relaxed) > CUTS_MAX
    }
}

/// The stream below TLS.
pub(crate) struct Guarded<I> {
    io: I,
    line: Arc<Line>,
    place: Place,
    counts: Counts,
    stall_time: Duration,
    stall: Option<Pin<Box<Sleep>>>,
}

impl<I> Guarded<I> {
    /// Guards `io`; a write may wait for `stall_time`.
    pub(super) fn new(io: I, place: Place, stall_time: Duration, counts: Counts) -> Self {
        Self {
            io,
            line: Arc::default(),
            place,
            counts,
            stall_time,
            stall: None,
        }
    }

    /// What its requests are told of it.
    pub(crate) fn line(&self) -> Arc<Line> {
        Arc::clone(&self.line)
    }

    /// Its place among all.
    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    fn wrote<T>(
        &mut self,
        context: &mut Context<'_>,
        wrote: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if wrote.is_ready() {
            self.stall = None;
            return wrote;
        }
        let time = self.stall_time;
        let stall = self.stall.get_or_insert_with(|| Box::pin(sleep(time)));
        match stall.as_mut().poll(context) {
            Poll::Ready(()) => {
                // Otherwise it is counted already.
                if self.line.is_whole() {
                    self.counts.refused(Limit::answer_stall_ms);
                    self.line.cut();
                }
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Guarded<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.line.reader.register(context.waker());
        if self.line.is_over() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.io).poll_read(context, into)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Guarded<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.io).poll_write(context, bytes);
        self.wrote(context, wrote)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.io).poll_write_vectored(context, bytes);
        self.wrote(context, wrote)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}
