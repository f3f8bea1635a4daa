//! A request's body as it is read: not too large, not too slow, not more than there is room for.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use godwit_apimachinery::Status;
use http::StatusCode;
use http_body::{Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep};

use super::config::{Limits, millis};
use super::counts::{Counted, Counts, Limit};
use super::pool::{Class, Pool, Share};
use super::{TOO_MANY, UNIT};

/// Room is taken in steps: a client may send a body byte by byte.
const STEP: usize = 64 * UNIT;

/// What a body has taken of the room for bodies; until there is an answer.
pub(super) struct Charge {
    pool: Pool,
    counts: Counts,
    class: Class,
    taken: Mutex<Vec<(Share, Counted)>>,
    refused: AtomicBool,
}

impl Charge {
    pub(super) fn new(pool: &Pool, counts: &Counts, class: Class) -> Arc<Self> {
        Arc::new(Self {
            pool: pool.clone(),
            counts: counts.clone(),
            class,
            taken: Mutex::default(),
            refused: AtomicBool::new(false),
        })
    }

    /// Whether the body was refused.
    pub(super) fn refused(&self) -> bool {
        self.refused.load(Ordering::Relaxed)
    }

    /// Takes room for `bytes` in all.
    fn grow(&self, bytes: usize) -> bool {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        while taken.len() * STEP < bytes {
            let Some(share) = self.pool.take(self.class, STEP / UNIT) else {
                return false;
            };
            taken.push((share, Counted::new(&self.counts.body_bytes, STEP)));
        }
        true
    }

    fn refuse(&self, limit: Limit, status: Status) -> Status {
        self.refused.store(true, Ordering::Relaxed);
        self.counts.refused(limit);
        status
    }
}

/// 413 in kube-apiserver's words.
pub(super) fn too_large(limit: usize) -> Status {
    Status::too_large(format!("limit is {limit}"))
}

/// The body.
pub(super) struct RequestBody {
    inner: Body,
    charge: Arc<Charge>,
    limit: usize,
    received: usize,
    /// Why it will be refused. Until then the rest is thrown away: a client that is still sending
    /// would not hear the answer.
    refusal: Option<Status>,
    deadline: Pin<Box<Sleep>>,
    stall: Pin<Box<Sleep>>,
    stall_time: Duration,
}

impl RequestBody {
    pub(super) fn new(inner: Body, charge: Arc<Charge>, limits: &Limits) -> Self {
        let stall_time = millis(limits.body_stall_ms);
        let mut body = Self {
            limit: limits.body_bytes,
            received: 0,
            refusal: None,
            deadline: Box::pin(sleep(millis(limits.body_ms))),
            stall: Box::pin(sleep(stall_time)),
            stall_time,
            inner,
            charge,
        };
        let lower = usize::try_from(body.inner.size_hint().lower()).unwrap_or(usize::MAX);
        body.check(lower, false);
        body
    }

    /// Notes why a body of so many bytes is refused.
    fn check(&mut self, bytes: usize, charge: bool) {
        if self.refusal.is_some() {
            return;
        }
        if bytes > self.limit {
            let status = too_large(self.limit);
            self.refusal = Some(self.charge.refuse(Limit::body_bytes, status));
        } else if charge && !self.charge.grow(bytes) {
            let status = Status::too_many_requests(TOO_MANY).retry_after(1);
            self.refusal = Some(self.charge.refuse(Limit::bodies_bytes, status));
        }
    }

    /// Why it is refused at once for being slow.
    fn late(&mut self, context: &mut Context<'_>) -> Option<Status> {
        let (limit, why) = if self.deadline.as_mut().poll(context).is_ready() {
            (Limit::body_ms, "the request's body took too long")
        } else if self.stall.as_mut().poll(context).is_ready() {
            let why = "nothing more came of the request's body";
            (Limit::body_stall_ms, why)
        } else {
            return None;
        };
        let slow = Status::new(StatusCode::REQUEST_TIMEOUT, "Timeout", why);
        let known = self.refusal.take();
        Some(known.unwrap_or_else(|| self.charge.refuse(limit, slow)))
    }
}

type Piece = Option<Result<Frame<Bytes>, axum::BoxError>>;

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = axum::BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Piece> {
        let this = &mut *self;
        loop {
            let frame = match Pin::new(&mut this.inner).poll_frame(context) {
                Poll::Ready(Some(Ok(frame))) => frame,
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error.into()))),
                Poll::Ready(None) => {
                    return Poll::Ready(this.refusal.take().map(|status| Err(status.into())));
                }
                Poll::Pending => {
                    let late = this.late(context);
                    return late.map_or(Poll::Pending, |why| Poll::Ready(Some(Err(why.into()))));
                }
            };
            this.stall.as_mut().reset(Instant::now() + this.stall_time);
            this.received += frame.data_ref().map_or(0, Bytes::len);
            this.check(this.received, true);
            if this.refusal.is_none() {
                return Poll::Ready(Some(Ok(frame)));
            }
            if this.received > 2 * this.limit {
                return Poll::Ready(this.refusal.take().map(|status| Err(status.into())));
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.refusal.is_none() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}
