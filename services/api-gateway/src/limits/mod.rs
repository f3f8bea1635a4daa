//! What keeps one client from taking what others need: sizes, rates, counts, memory and time.
//!
//! Requests pass [`check_head`] before anyone asks who sends them, [`admit`] when that is known, and
//! [`guard_body`] when they are about to be read. Connections pass `Gate::enter` in `tls.rs`.

mod answers;
mod config;
mod connection;
mod counts;
mod pool;
mod request_body;
mod users;

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, HttpBody as _};
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use godwit_apimachinery::{LongRunning, Status, UserInfo};
use godwit_runtime::metrics::Metrics;
use http::{Method, StatusCode, header};

pub use config::Limits;
pub(crate) use config::millis;
pub(crate) use connection::{Guarded, Line};

use answers::{Following, Room, Watchdog};
use connection::Place;
use counts::{Counted, Counts, Limit};
use pool::{Class, Pool, Share};
use request_body::{Charge, RequestBody};
use users::{Began, Thing, Users};

/// Memory is counted in units of this many bytes.
const UNIT: usize = 1024;
/// Requests about leases that find a place when tenants have taken all: who loses its lease stops
/// working, which makes a flood worse.
const LEASE_REQUESTS: usize = 32;
/// kube-apiserver's text.
const TOO_MANY: &str = "Too many requests, please try again later.";
/// Paths of probes. Their answers cost nothing, and a flood must not make us look dead.
const HEALTH: [&str; 3] = ["/healthz", "/livez", "/readyz"];

/// The limits and what is used of them.
pub(crate) struct Gate {
    limits: Limits,
    counts: Counts,
    users: Arc<Users>,
    requests: Pool,
    leases: Pool,
    watches: Pool,
    bodies: Pool,
    answers: Pool,
    connections: Pool,
    watchdog: Arc<Watchdog>,
}

/// Who made a request, and over which connection.
struct Asker {
    user: UserInfo,
    class: Class,
    line: Option<Arc<Line>>,
    reads: bool,
}

/// What a running request has taken.
struct Slot {
    _share: Share,
    _began: Option<Began>,
}

impl Gate {
    /// Registers the metrics, and starts the task that cuts slow readers off.
    pub(crate) fn start(limits: &Limits, metrics: &Metrics) -> Arc<Self> {
        let counts = Counts::new(metrics);
        Arc::new(Self {
            users: Users::new(limits),
            requests: Pool::new(limits.requests, limits.requests_reserved),
            leases: Pool::new(LEASE_REQUESTS, 0),
            watches: Pool::new(limits.watches, limits.watches_reserved),
            bodies: Pool::new(
                limits.bodies_bytes / UNIT,
                limits.bodies_reserved_bytes / UNIT,
            ),
            answers: Pool::new(
                limits.answers_bytes / UNIT,
                limits.answers_reserved_bytes / UNIT,
            ),
            connections: Pool::new(limits.connections, limits.connections_reserved),
            watchdog: Watchdog::start(millis(limits.answer_stall_ms), counts.clone()),
            limits: limits.clone(),
            counts,
        })
    }

    /// A place for a connection whose client isn't known. `None`: close it.
    pub(crate) fn enter(&self) -> Option<Place> {
        let shared = self.connections.take(Class::Tenant, 1);
        let reserved = shared.is_none();
        let share = shared.or_else(|| self.connections.take_reserved(1));
        if share.is_none() {
            self.counts.refused(Limit::connections);
        }
        let count = Counted::new(&self.counts.connections, 1);
        share.map(|share| Place::new(share, reserved, count))
    }

    /// Whether a connection may stay, now that its client's certificate is known.
    pub(crate) fn may_stay(&self, place: &Place, user: Option<&UserInfo>) -> bool {
        let operator = user.is_some_and(|user| self.limits.is_operator(&user.groups));
        let stays = operator || !place.is_reserved();
        if !stays {
            self.counts.refused(Limit::connections);
        }
        stays
    }

    /// Longest time for a TLS handshake.
    pub(crate) fn handshake_time(&self) -> Duration {
        millis(self.limits.handshake_ms)
    }

    /// The stream, closed when its client takes nothing of what we send.
    pub(crate) fn guard<I>(&self, stream: I, place: Place) -> Guarded<I> {
        let stall_time = millis(self.limits.answer_stall_ms);
        Guarded::new(stream, place, stall_time, self.counts.clone())
    }

    /// A handshake failed, or took too long.
    pub(crate) fn handshake_failed(&self, late: bool) {
        self.counts.handshake_failed();
        if late {
            self.counts.refused(Limit::handshake_ms);
        }
    }

    fn class(&self, user: &UserInfo) -> Class {
        match self.limits.is_operator(&user.groups) {
            true => Class::Operator,
            false => Class::Tenant,
        }
    }

    /// Takes what a request needs to run.
    fn begin(&self, asker: &Asker, path: &str) -> Result<Slot, Status> {
        let (name, class) = (asker.user.name.as_str(), asker.class);
        let mut began = None;
        if class == Class::Tenant {
            if let Err(wait) = self.users.pace(name) {
                return Err(self.too_many(class, Limit::user_rate, wait));
            }
            let most = self.limits.requests_per_user;
            began = self.users.begin(name, Thing::Request, most);
            if began.is_none() {
                return Err(self.too_many(class, Limit::requests_per_user, Duration::ZERO));
            }
        }
        let mut share = self.requests.take(class, 1);
        if share.is_none() && is_lease(path) {
            share = self.leases.take(class, 1);
        }
        match share {
            Some(share) => Ok(Slot {
                _share: share,
                _began: began,
            }),
            None => Err(self.too_many(class, Limit::requests, Duration::ZERO)),
        }
    }

    /// 429, and when to come back: in whole seconds, at least one.
    fn too_many(&self, class: Class, limit: Limit, wait: Duration) -> Status {
        self.counts.rejected(class, limit);
        let seconds = u32::try_from(wait.as_millis().div_ceil(1000)).unwrap_or(u32::MAX);
        Status::too_many_requests(TOO_MANY).retry_after(seconds.max(1))
    }

    /// Keeps count of an answer until its client has read it, or is cut off.
    fn hold(&self, response: Response, asker: &Asker, slot: Slot) -> Response {
        let following = match response.extensions().get::<LongRunning>() {
            Some(_) => {
                drop(slot);
                self.begin_watch(asker)
            }
            None => self.begin_answer(asker, response.body().size_hint().exact(), slot),
        };
        match following {
            Ok(following) => response.map(|body| Body::new(self.watchdog.follow(body, following))),
            Err(refusal) => refusal.into_response(),
        }
    }

    /// Takes room for an answer; one whose size nobody knows takes it piece by piece.
    fn begin_answer(
        &self,
        asker: &Asker,
        size: Option<u64>,
        slot: Slot,
    ) -> Result<Following, Status> {
        let class = asker.class;
        let bytes = usize::try_from(size.unwrap_or(0)).unwrap_or(usize::MAX);
        let share = self.answers.take(class, bytes.div_ceil(UNIT));
        // A change that was made is told in any case.
        if share.is_none() && asker.reads {
            return Err(self.too_many(class, Limit::answers_bytes, Duration::ZERO));
        }
        let count = Counted::new(&self.counts.answer_bytes, bytes);
        Ok(Following {
            held: Box::new((slot, share, count)),
            line: asker.line.clone(),
            deadline: Some(millis(self.limits.answer_ms)),
            room: size.is_none().then(|| self.room(class)),
        })
    }

    fn room(&self, class: Class) -> Room {
        Room {
            pool: self.answers.clone(),
            class,
            counts: self.counts.clone(),
        }
    }

    fn begin_watch(&self, asker: &Asker) -> Result<Following, Status> {
        let (class, most) = (asker.class, self.limits.watches_per_user);
        let mut began = None;
        if class == Class::Tenant {
            began = self.users.begin(&asker.user.name, Thing::Watch, most);
            if began.is_none() {
                return Err(self.too_many(class, Limit::watches_per_user, Duration::ZERO));
            }
        }
        let Some(share) = self.watches.take(class, 1) else {
            return Err(self.too_many(class, Limit::watches, Duration::ZERO));
        };
        let count = Counted::new(&self.counts.watches, 1);
        Ok(Following {
            held: Box::new((share, began, count)),
            line: asker.line.clone(),
            deadline: None,
            room: Some(self.room(class)),
        })
    }

    fn head_refusal(&self, request: &Request) -> Option<Status> {
        let limits = &self.limits;
        let url = request.uri().path_and_query();
        let url = url.map_or(0, |url| url.as_str().len());
        if url > limits.url_bytes {
            self.counts.refused(Limit::url_bytes);
            let why = format!("the URL has {url} bytes, the limit is {}", limits.url_bytes);
            return Some(Status::new(StatusCode::URI_TOO_LONG, "URITooLong", why));
        }
        let count = request.headers().len();
        let bytes = request.headers().iter();
        let bytes: usize = bytes
            .map(|(name, value)| name.as_str().len() + value.len())
            .sum();
        let (limit, why) = if count > limits.headers {
            let why = format!("{count} headers, the limit is {}", limits.headers);
            (Limit::headers, why)
        } else if bytes > limits.header_bytes {
            let why = format!(
                "the headers have {bytes} bytes, the limit is {}",
                limits.header_bytes
            );
            (Limit::header_bytes, why)
        } else {
            return None;
        };
        self.counts.refused(limit);
        let code = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
        Some(Status::new(code, "RequestHeaderFieldsTooLarge", why))
    }
}

/// Refuses what is too large before it is looked at.
pub(crate) async fn check_head(
    State(gate): State<Arc<Gate>>,
    request: Request,
    next: Next,
) -> Response {
    match gate.head_refusal(&request) {
        Some(refusal) => refusal.into_response(),
        None => next.run(request).await,
    }
}

/// Runs a request if its user, and all together, don't ask for too much.
pub(crate) async fn admit(
    State(gate): State<Arc<Gate>>,
    mut request: Request,
    next: Next,
) -> Response {
    let path = request.uri().path();
    if HEALTH.iter().any(|door| below(path, door)) {
        return next.run(request).await;
    }
    let user = request.extensions().get::<UserInfo>().cloned();
    let user = user.unwrap_or_default();
    let asker = Asker {
        class: gate.class(&user),
        user,
        line: request.extensions().get::<Arc<Line>>().cloned(),
        reads: matches!(*request.method(), Method::GET | Method::HEAD),
    };
    let slot = match gate.begin(&asker, path) {
        Ok(slot) => slot,
        Err(refusal) => return refusal.into_response(),
    };
    request.extensions_mut().insert(asker.class);
    let response = next.run(request).await;
    gate.hold(response, &asker, slot)
}

/// Counts the bytes and the time of a body while it is read, and its bytes until there is an answer.
pub(crate) async fn guard_body(
    State(gate): State<Arc<Gate>>,
    request: Request,
    next: Next,
) -> Response {
    let class = request.extensions().get::<Class>().copied();
    let charge = Charge::new(&gate.bodies, &gate.counts, class.unwrap_or(Class::Tenant));
    let waits = request.headers().contains_key(header::EXPECT);
    let size = request.body().size_hint().lower();
    if waits && size > gate.limits.body_bytes as u64 {
        // Its client hasn't begun to send it.
        gate.counts.refused(Limit::body_bytes);
        return request_body::too_large(gate.limits.body_bytes).into_response();
    }
    let request = match request.body().is_end_stream() {
        true => request,
        false => {
            request.map(|body| Body::new(RequestBody::new(body, Arc::clone(&charge), &gate.limits)))
        }
    };
    let response = next.run(request).await;
    if response.status() == StatusCode::PAYLOAD_TOO_LARGE && !charge.refused() {
        gate.counts.refused(Limit::too_large);
    }
    response
}

/// Whether it is `door`, or a path below it.
fn below(path: &str, door: &str) -> bool {
    let rest = path.strip_prefix(door);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn is_lease(path: &str) -> bool {
    below(path, "/apis/coordination.k8s.io/v1")
}
