//! Answers on their way to clients that may read slowly, or not at all.
//!
//! An answer is handed on in small pieces, so that what waits for a client is here and can be taken
//! away. A watch that has nothing to tell waits for us, not for its client, and is left alone.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes, HttpBody};
use http_body::{Frame, SizeHint};

use super::UNIT;
use super::connection::Line;
use super::counts::{Counted, Counts, Limit};
use super::pool::{Class, Pool, Share};

/// Largest piece that is handed on.
const PIECE: usize = 64 << 10;
/// Shortest and longest time between two looks at all answers.
const LOOK: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// Cuts off clients that don't read.
pub(super) struct Watchdog {
    answers: Mutex<Answers>,
    stall_time: Duration,
    counts: Counts,
}

#[derive(Default)]
struct Answers {
    next: u64,
    open: HashMap<u64, Weak<Mutex<State>>>,
}

/// What goes with an answer.
pub(super) struct Following {
    /// Dropped with the answer.
    pub(super) held: Box<dyn Send>,
    pub(super) line: Option<Arc<Line>>,
    /// Time for the whole answer; `None` for a watch.
    pub(super) deadline: Option<Duration>,
    /// Where large pieces take room while they wait; `None` where the whole answer has.
    pub(super) room: Option<Room>,
}

/// Room for the large pieces of an answer.
pub(super) struct Room {
    pub(super) pool: Pool,
    pub(super) class: Class,
    pub(super) counts: Counts,
}

impl Room {
    fn take(&self, bytes: usize) -> Option<(Share, Counted)> {
        let share = self.pool.take(self.class, bytes.div_ceil(UNIT))?;
        Some((share, Counted::new(&self.counts.answer_bytes, bytes)))
    }
}

struct State {
    /// `None` when it is over.
    body: Option<Body>,
    /// What the body gave and was not handed on.
    rest: Bytes,
    room: Option<Room>,
    /// What `rest` has taken of the room.
    taken: Option<(Share, Counted)>,
    held: Option<Box<dyn Send>>,
    line: Option<Arc<Line>>,
    /// Since when it is the client's turn.
    waits_since: Option<Instant>,
    deadline: Option<Instant>,
    cut: bool,
}

impl Watchdog {
    /// Starts the task; it ends when nobody else has the watchdog.
    pub(super) fn start(stall_time: Duration, counts: Counts) -> Arc<Self> {
        let watchdog = Arc::new(Self {
            answers: Mutex::default(),
            stall_time,
            counts,
        });
        let weak = Arc::downgrade(&watchdog);
        let pause = (stall_time / 4).clamp(LOOK.0, LOOK.1);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(pause).await;
                let Some(watchdog) = weak.upgrade() else {
                    return;
                };
                watchdog.look(Instant::now());
            }
        });
        watchdog
    }

    /// The body, watched.
    pub(super) fn follow(self: &Arc<Self>, body: Body, following: Following) -> Answer {
        let now = Instant::now();
        let state = Arc::new(Mutex::new(State {
            body: Some(body),
            rest: Bytes::new(),
            room: following.room,
            taken: None,
            held: Some(following.held),
            line: following.line,
            waits_since: Some(now),
            deadline: following.deadline.map(|time| now + time),
            cut: false,
        }));
        let mut answers = lock(&self.answers);
        let id = answers.next;
        answers.next += 1;
        answers.open.insert(id, Arc::downgrade(&state));
        Answer {
            state,
            watchdog: Arc::clone(self),
            id,
        }
    }

    fn look(&self, now: Instant) {
        let open: Vec<Arc<Mutex<State>>> = {
            let answers = lock(&self.answers);
            answers.open.values().filter_map(Weak::upgrade).collect()
        };
        for state in open {
            let mut state = lock(&state);
            let Some(limit) = state.overdue(now, self.stall_time) else {
                continue;
            };
            self.counts.refused(limit);
            state.cut = true;
            state.end();
            if let Some(line) = &state.line {
                line.cut();
            }
        }
    }
}

impl State {
    fn overdue(&self, now: Instant, stall_time: Duration) -> Option<Limit> {
        self.body.as_ref()?;
        let stalled = self
            .waits_since
            .is_some_and(|since| now >= since + stall_time);
        let late = self.deadline.is_some_and(|deadline| now >= deadline);
        match (stalled, late) {
            (true, _) => Some(Limit::answer_stall_ms),
            (false, true) => Some(Limit::answer_ms),
            (false, false) => None,
        }
    }

    fn end(&mut self) {
        self.body = None;
        self.held = None;
        self.rest = Bytes::new();
        self.taken = None;
    }

    /// Keeps data to hand it on piece by piece, unless there is no room.
    fn keep(&mut self, data: Bytes) -> bool {
        if let Some(room) = &self.room {
            self.taken = room.take(data.len());
            if self.taken.is_none() {
                return false;
            }
        }
        self.rest = data;
        true
    }

    /// A copy, so that what the connection holds on to is no more than the piece.
    fn piece(&mut self) -> Frame<Bytes> {
        self.waits_since = Some(Instant::now());
        let piece = self.rest.split_to(self.rest.len().min(PIECE));
        if self.rest.is_empty() {
            self.taken = None;
        }
        Frame::data(Bytes::copy_from_slice(&piece))
    }
}

/// An answer's body, watched.
pub(super) struct Answer {
    state: Arc<Mutex<State>>,
    watchdog: Arc<Watchdog>,
    id: u64,
}

impl Drop for Answer {
    fn drop(&mut self) {
        lock(&self.watchdog.answers).open.remove(&self.id);
    }
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::BoxError>>> {
        let mut state = lock(&self.state);
        if state.cut {
            let why = "the client was too slow";
            return Poll::Ready(Some(Err(
                io::Error::new(io::ErrorKind::TimedOut, why).into()
            )));
        }
        if !state.rest.is_empty() {
            return Poll::Ready(Some(Ok(state.piece())));
        }
        let Some(body) = state.body.as_mut() else {
            return Poll::Ready(None);
        };
        match Pin::new(body).poll_frame(context) {
            Poll::Pending => {
                state.waits_since = None;
                Poll::Pending
            }
            Poll::Ready(Some(Ok(frame))) => {
                state.waits_since = Some(Instant::now());
                let frame = match frame.into_data() {
                    Ok(data) if data.len() > PIECE => {
                        if !state.keep(data) {
                            self.watchdog.counts.refused(Limit::answers_bytes);
                            state.end();
                            // Nothing of a watch's event was sent, so its client can go on from
                            // before. A list must not look as if it were whole.
                            let is_watch = state.deadline.is_none();
                            return Poll::Ready((!is_watch).then(|| Err(no_room())));
                        }
                        state.piece()
                    }
                    Ok(data) => Frame::data(data),
                    Err(trailers) => trailers,
                };
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(ended) => {
                state.end();
                Poll::Ready(ended.map(|error| error.map_err(Into::into)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        let state = lock(&self.state);
        let ended = state.body.as_ref().is_none_or(Body::is_end_stream);
        ended && state.rest.is_empty() && !state.cut
    }

    fn size_hint(&self) -> SizeHint {
        let state = lock(&self.state);
        let hint = state.body.as_ref().map(HttpBody::size_hint);
        let rest = state.rest.len() as u64;
        match hint.map(|hint| hint.exact()) {
            Some(Some(size)) => SizeHint::with_exact(size + rest),
            Some(None) => SizeHint::default(),
            None => SizeHint::with_exact(rest),
        }
    }
}

fn no_room() -> axum::BoxError {
    io::Error::new(io::ErrorKind::OutOfMemory, "no room for the answer").into()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
