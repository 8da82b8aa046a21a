//! Requests to calls: every request of every listener passes here, and every failure, the router's own too, is answered as a [`Problem`].
//!
//! In order: size of the headers, the address's rate, who it is, the route's role and the token's scope, the query, the body, a place among
//! the requests in flight, and for changes the audit log, one at a time per volume or VM. Reads have places of their own: changes that hang
//! keep nobody from looking why. Calls block, so they are made on threads for that. A change goes on when its caller hangs up, so that what
//! was done is also noted; one that has not begun when its caller is told that it takes too long is dropped.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::rejection::RawPathParamsRejection;
use axum::extract::{RawPathParams, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, MethodRouter};
use tokio::runtime::Handle;
use tokio::sync::{Mutex, OwnedMutexGuard, OwnedSemaphorePermit, Semaphore};

use crate::answer_body::AnswerBody;
use crate::appliance::Appliance;
use crate::audit::AuditLine;
use crate::body_room::{BodyRoom, Room};
use crate::call::{Answer, Call, parse_query};
use crate::call_counts::{CallCounts, RouteIndex};
use crate::caller::Caller;
use crate::idempotency::{Answers, Keyed};
use crate::instant::rfc3339;
use crate::metrics_pages::MetricsPages;
use crate::name::Name;
use crate::problem::{Problem, ProblemKind};
use crate::rate::{Rate, Rates, UNKNOWN_COST};
use crate::route::{Body as Takes, Reach, Route, Verb};
use crate::start::{Start, too_long};
use crate::table::{CREATE_TOKEN, ROUTES};
use crate::tag::list_has;
use crate::turns::Turns;
use crate::{MAX_HEADER_BYTES, paths};

/// How long a call may take, usually.
const CALL_PATIENCE: Duration = Duration::from_secs(60);

/// How much longer the audit log may take to note a change that came to nothing in time.
const NOTE_PATIENCE: Duration = Duration::from_secs(5);

/// How long a request beyond what an address may send waits for hearing that.
const REFUSAL_PAUSE: Duration = Duration::from_millis(500);

/// How often the metrics are answered where nobody has to say who it is.
const SCRAPES: Rate = Rate { per_second: 5.0, burst: 20.0 };

/// Between two looks at a job that somebody waits for.
const LOOK_PAUSE: Duration = Duration::from_millis(200);
/// The first such pause; the next ones double. Most jobs that somebody waits for end soon.
const FIRST_LOOK: Duration = Duration::from_millis(4);

/// Callers that wait for jobs at a time; they hold nothing but their connection.
const MAX_WAITING: usize = 64;

/// Locks that changes of one thing share, by the hash of its path.
const LOCKS: usize = 64;

/// Where a request comes from; the listener adds it.
#[derive(Debug, Clone)]
pub struct Peer {
    /// For the audit log: an address, or `local`.
    pub from: String,
    /// The address that its rate is counted by; none on the local socket.
    pub address: Option<IpAddr>,
    /// Who it is without a token: the local socket's user, or a certificate.
    pub caller: Option<Caller>,
}

/// What a listener's clients may do together and each.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Changes that are worked on at a time.
    pub changes: usize,
    /// Other requests that are, and answers of them that are being read.
    pub reads: usize,
    /// How long a call may take before its caller is told to look again later. One that has begun goes on.
    pub patience: Duration,
    /// Requests of an address; only where peers have one.
    pub rate: Rate,
}

impl Default for Limits {
    fn default() -> Self {
        Self { changes: 48, reads: 48, patience: CALL_PATIENCE, rate: Rate { per_second: 50.0, burst: 200.0 } }
    }
}

/// The interface over an appliance; each listener has a router of it.
pub struct Interface {
    appliance: Arc<dyn Appliance>,
    /// Where calls are made; with the requests when absent.
    calls: Option<Handle>,
    answers: Answers,
    locks: Vec<Arc<Mutex<()>>>,
    waiting: Arc<Semaphore>,
    counts: Arc<CallCounts>,
    pages: Arc<MetricsPages>,
    scrapes: Turns,
}

/// What one listener's requests share.
struct Door {
    interface: Arc<Interface>,
    changes: Arc<Semaphore>,
    reads: Arc<Semaphore>,
    body_room: Arc<BodyRoom>,
    patience: Duration,
    rates: Rates,
}

/// What a change needs and has while it is made; it goes when that ends, not when its caller hangs up.
struct Held {
    _slot: OwnedSemaphorePermit,
    _body: Room,
    _alone: Option<OwnedMutexGuard<()>>,
}

/// What stands in a path where its pattern has braces.
type Parameters = Result<RawPathParams, RawPathParamsRejection>;

/// The number that the answer, the audit log and the daemon's log name a request by.
#[derive(Debug, Clone)]
struct RequestId(String);

/// All routes over `appliance`, for one listener with the usual limits.
pub fn router(appliance: Arc<dyn Appliance>) -> Router {
    Interface::new(appliance, None).router(Limits::default())
}

impl Interface {
    /// With what an earlier process kept. Calls are made on blocking threads of `calls`, else of the runtime that serves the requests.
    /// A thread that a call starts inherits the priority of its caller: `calls` keeps it apart from that of the connections' threads.
    pub fn new(appliance: Arc<dyn Appliance>, calls: Option<Handle>) -> Arc<Self> {
        let answers = Answers::new(Arc::clone(&appliance));
        let locks = (0..LOCKS).map(|_| Arc::default()).collect();
        Arc::new(Self {
            appliance,
            calls,
            answers,
            locks,
            waiting: Arc::new(Semaphore::new(MAX_WAITING)),
            counts: Arc::new(CallCounts::new()),
            pages: Arc::new(MetricsPages::new()),
            scrapes: Turns::new(SCRAPES),
        })
    }

    /// Only `/metrics`: all that an address without authentication may ask for.
    pub fn metrics_router(self: &Arc<Self>) -> Router {
        let text = async |State(interface): State<Arc<Self>>| {
            // Whoever asks is one of this machine, and nobody knows which: to refuse one that floods would be to refuse all.
            interface.scrapes.take().await;
            let page = move || interface.pages.page(|| interface.appliance.metrics());
            match tokio::time::timeout(CALL_PATIENCE, tokio::task::spawn_blocking(page)).await {
                Ok(Ok(Ok(page))) => response(Answer::other(crate::call::METRICS, page), None),
                Ok(Ok(Err(problem))) => problem.into_response(),
                Ok(Err(_)) => unexpected().into_response(),
                Err(_) => too_long().into_response(),
            }
        };
        Router::new()
            .route(paths::METRICS, axum::routing::get(text))
            .fallback(no_route)
            .method_not_allowed_fallback(no_method)
            .with_state(Arc::clone(self))
    }

    /// What its requests came to.
    #[must_use]
    pub fn counts(&self) -> Arc<CallCounts> {
        Arc::clone(&self.counts)
    }

    /// Runs a blocking call on a thread for that; `None` when it takes longer, and goes on. A panic in it is the caller's 500 and nobody
    /// else's trouble.
    async fn blocking<T: Send + 'static>(
        &self,
        until: Instant,
        call: impl FnOnce() -> Result<T, Problem> + Send + 'static,
    ) -> Option<Result<T, Problem>> {
        let Some(calls) = &self.calls else { return looking(until, call).await };
        // By way of a task, so that the thread is started by one of theirs.
        let working = calls.spawn(async { tokio::task::spawn_blocking(call).await });
        let made = tokio::time::timeout_at(until.into(), working).await.ok()?;
        Some(made.and_then(|made| made).unwrap_or_else(|_| Err(unexpected())))
    }

    /// All routes of the table, for one listener.
    pub fn router(self: &Arc<Self>, limits: Limits) -> Router {
        let door = Arc::new(Door {
            interface: Arc::clone(self),
            changes: Arc::new(Semaphore::new(limits.changes)),
            reads: Arc::new(Semaphore::new(limits.reads)),
            body_room: BodyRoom::new(),
            patience: limits.patience,
            rates: Rates::new(limits.rate),
        });
        let mut router = Router::new();
        for (index, route) in ROUTES.iter().enumerate() {
            let handler = async move |State(door): State<Arc<Door>>, parameters: Parameters, request: Request| {
                let mut response = match parameters {
                    Ok(parameters) => door.serve(route, &parameters, request).await,
                    Err(_) => Problem::new(ProblemKind::InvalidRequest, "the path is not percent-encoded UTF-8").into_response(),
                };
                response.extensions_mut().insert(RouteIndex(index));
                response
            };
            router = router.route(route.path, MethodRouter::new().on(filter(route.method), handler));
        }
        router
            .fallback(no_route)
            .method_not_allowed_fallback(no_method)
            .layer(middleware::from_fn_with_state(Arc::clone(&door), enter))
            .with_state(door)
    }

    /// The lock of what a change is about: a volume with all that stands under it, a VM, a list.
    fn lock(&self, route: &Route, parameters: &[(String, String)]) -> Option<Arc<Mutex<()>>> {
        let mut hasher = DefaultHasher::new();
        // `/api/v1/volumes/{name}/…`
        route.path.split('/').nth(3).hash(&mut hasher);
        parameters.first().map(|(_, value)| value).hash(&mut hasher);
        self.locks.get(hasher.finish() as usize % LOCKS).cloned()
    }
}

/// As [`Interface::blocking`], on a thread of the runtime that serves the request, with its priority: looking starts nothing that serves
/// guests, and a flood of it stands back behind them.
async fn looking<T: Send + 'static>(
    until: Instant,
    call: impl FnOnce() -> Result<T, Problem> + Send + 'static,
) -> Option<Result<T, Problem>> {
    let made = tokio::time::timeout_at(until.into(), tokio::task::spawn_blocking(call)).await.ok()?;
    Some(made.unwrap_or_else(|_| Err(unexpected())))
}

/// The path that `parameters` stand for, however it was spelled; with the pattern's words in place of those that `shown` refuses.
fn path_of(route: &Route, parameters: &[(String, String)], shown: impl Fn(&str) -> bool) -> String {
    let part = |part: &'static str| {
        let name = part.strip_prefix('{').and_then(|part| part.strip_suffix('}'));
        let value = name.and_then(|name| parameters.iter().find(|(key, _)| key == name));
        value.map_or(part, |(_, value)| if shown(value) { value.as_str() } else { part }).to_owned()
    };
    route.path.split('/').map(part).collect::<Vec<_>>().join("/")
}

fn filter(verb: Verb) -> MethodFilter {
    match verb {
        Verb::Get => MethodFilter::GET,
        Verb::Post => MethodFilter::POST,
        Verb::Put => MethodFilter::PUT,
        Verb::Patch => MethodFilter::PATCH,
        Verb::Delete => MethodFilter::DELETE,
    }
}

async fn no_route() -> Problem {
    Problem::new(ProblemKind::NotFound, "there is nothing at this path").advise("the interface is under /api/v1")
}

async fn no_method() -> Problem {
    Problem::new(ProblemKind::MethodNotAllowed, "this path does not take this method")
}

/// Who sends too much hears of it late: a flood is as slow as that.
async fn refused(problem: Problem) -> Response {
    if problem.kind == ProblemKind::TooManyRequests {
        tokio::time::sleep(REFUSAL_PAUSE).await;
    }
    problem.into_response()
}

/// What holds for every request, also for those that lead nowhere.
async fn enter(State(door): State<Arc<Door>>, mut request: Request, next: Next) -> Response {
    let began = Instant::now();
    let id = RequestId(format!("{:016x}", rand::random::<u64>()));
    request.extensions_mut().insert(id.clone());
    let mut response = match door.admit(&request) {
        Ok(()) => next.run(request).await,
        Err(problem) => refused(problem).await,
    };
    let route = response.extensions().get::<RouteIndex>().copied();
    door.interface.counts.count(route, response.status().as_u16(), began.elapsed());
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::from_str(&id.0) {
        headers.insert("x-request-id", id);
    }
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

impl Door {
    fn admit(&self, request: &Request) -> Result<(), Problem> {
        let headers: usize = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
        if headers + request.uri().path().len() + request.uri().query().map_or(0, str::len) > MAX_HEADER_BYTES {
            let detail = format!("path and headers may have {MAX_HEADER_BYTES} bytes");
            return Err(Problem::new(ProblemKind::HeadersTooLarge, detail));
        }
        let address = request.extensions().get::<Peer>().and_then(|peer| peer.address);
        if address.is_some_and(|address| !self.rates.admits(address, 1.0, Instant::now())) {
            return Err(Problem::new(ProblemKind::TooManyRequests, "this address sends too many requests").advise("slow down"));
        }
        Ok(())
    }

    async fn serve(self: Arc<Self>, route: &'static Route, parameters: &RawPathParams, request: Request) -> Response {
        let (parts, body) = request.into_parts();
        let parameters = parameters.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let caller = match self.identify(&parts) {
            Ok(caller) => caller,
            Err(problem) => {
                if let Some(address) = parts.extensions.get::<Peer>().and_then(|peer| peer.address) {
                    self.rates.admits(address, UNKNOWN_COST, Instant::now());
                    tracing::info!(%address, path = route.path, "a caller without a valid token or certificate");
                }
                return problem.into_response();
            }
        };
        if route.method.is_read() {
            let answer = self.read(route, &parts, parameters, caller).await;
            return answer.map_or_else(IntoResponse::into_response, |(answer, slot)| conditional(&parts, answer, slot));
        }
        let (start, until) = (Arc::new(Start::default()), Instant::now() + self.patience);
        let begun = Arc::clone(&start);
        let change = tokio::spawn(async move { self.change(route, parts, parameters, body, caller, (&begun, until)).await });
        match tokio::time::timeout_at((until + NOTE_PATIENCE).into(), change).await {
            Ok(Ok(response)) => response,
            Ok(Err(_)) => unexpected().into_response(),
            Err(_) => start.overdue().into_response(),
        }
    }

    /// Who sends a request: the bearer of its token, else whoever the listener says.
    fn identify(&self, parts: &Parts) -> Result<Caller, Problem> {
        let unknown = |detail: &str| Problem::new(ProblemKind::Unauthorized, detail);
        let Some(authorization) = parts.headers.get(header::AUTHORIZATION) else {
            let known = parts.extensions.get::<Peer>().and_then(|peer| peer.caller.clone());
            return known.ok_or_else(|| unknown("say who you are: Authorization: Bearer <token>, or a client certificate"));
        };
        let secret = authorization.to_str().ok().and_then(|text| text.split_once(' '));
        let secret = secret.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")).map(|(_, secret)| secret.trim());
        let caller = secret.and_then(|secret| self.interface.appliance.identify(secret));
        caller.ok_or_else(|| unknown("this token is wrong, deleted or too old"))
    }

    async fn read(
        &self,
        route: &'static Route,
        parts: &Parts,
        parameters: Vec<(String, String)>,
        caller: Caller,
    ) -> Result<(Answer, OwnedSemaphorePermit), Problem> {
        allowed(route, &caller, &parameters)?;
        let query = parse_query(route, parts.uri.query().unwrap_or_default())?;
        let call = Arc::new(self.interface.call(caller, parameters, query, Bytes::new()));
        let until = Instant::now() + Duration::from_secs(call.number("wait").unwrap_or(0));
        let mut waits = None;
        let mut pause = FIRST_LOOK;
        loop {
            let slot = slot(&self.reads)?;
            let asked = Arc::clone(&call);
            let asking = looking(Instant::now() + self.patience, move || Ok(((route.handler)(&asked)?, slot)));
            let (answer, slot) = asking.await.unwrap_or_else(|| Err(too_long()))?;
            if !answer.unfinished || Instant::now() >= until {
                return Ok((answer, slot));
            }
            drop(slot);
            if waits.is_none() {
                waits = Some(Arc::clone(&self.interface.waiting).try_acquire_owned().map_err(|_| busy())?);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LOOK_PAUSE);
        }
    }

    /// Makes a change and notes it, whatever comes of it.
    async fn change(
        &self,
        route: &'static Route,
        parts: Parts,
        parameters: Vec<(String, String)>,
        body: Body,
        caller: Caller,
        (start, until): (&Arc<Start>, Instant),
    ) -> Response {
        let mut line = AuditLine {
            time: String::new(),
            who: caller.who.clone(),
            role: Some(caller.role),
            from: parts.extensions.get::<Peer>().map_or_else(|| "?".to_owned(), |peer| peer.from.clone()),
            method: route.method.method().to_string(),
            // What is no name may be anything, of any length.
            path: path_of(route, &parameters, |value| Name::new(value).is_ok()),
            status: 0,
            request_id: parts.extensions.get::<RequestId>().map(|id| id.0.clone()).unwrap_or_default(),
            bytes: None,
            count: None,
        };
        let made = self.make(route, &parts, parameters, body, caller, (start, until), &mut line.bytes).await;
        let response = match made {
            Ok((answer, repeated)) => {
                let mut response = response(answer, None);
                if repeated {
                    response.headers_mut().insert("idempotency-replayed", HeaderValue::from_static("true"));
                }
                response
            }
            Err(problem) => problem.into_response(),
        };
        line.status = response.status().as_u16();
        let appliance = Arc::clone(&self.interface.appliance);
        let noted = self.interface.blocking(Instant::now() + CALL_PATIENCE, move || {
            line.time = rfc3339(appliance.now());
            appliance.record(&line);
            Ok(())
        });
        if !matches!(noted.await, Some(Ok(()))) {
            tracing::error!("a change could not be noted in the audit log");
        }
        response
    }

    #[expect(clippy::too_many_arguments, reason = "a request in its parts, and what becomes of it")]
    async fn make(
        &self,
        route: &'static Route,
        parts: &Parts,
        parameters: Vec<(String, String)>,
        body: Body,
        caller: Caller,
        (start, until): (&Arc<Start>, Instant),
        bytes: &mut Option<u64>,
    ) -> Result<(Answer, bool), Problem> {
        allowed(route, &caller, &parameters)?;
        let query = parse_query(route, parts.uri.query().unwrap_or_default())?;
        let condition = if_match(route, &parts.headers)?;
        // As with rates: whoever uses the local socket has no share to keep to.
        let remote = parts.extensions.get::<Peer>().is_some_and(|peer| peer.address.is_some());
        let sharer = remote.then_some(caller.who.as_str());
        let (body, room) = self.body_room.arrive(sharer, &parts.headers, body).await?;
        if matches!(route.body, Takes::Nothing) && !body.is_empty() {
            return Err(Problem::new(ProblemKind::InvalidRequest, "this call takes no body"));
        }
        let keyed = keyed(route, parts, &parameters, &caller, &body)?;
        let is_data = matches!(route.body, Takes::Bytes);
        *bytes = is_data.then_some(body.len() as u64);
        // After the body: whoever sends one slowly holds no place.
        let slot = slot(&self.changes)?;
        // Bytes of one volume may arrive over several connections at once.
        let lock = if is_data { None } else { self.interface.lock(route, &parameters) };
        let alone = match lock {
            Some(lock) => match tokio::time::timeout_at(until.into(), lock.lock_owned()).await {
                Ok(alone) => Some(alone),
                Err(_) => return Err(start.overdue()),
            },
            None => None,
        };
        let held = Held { _slot: slot, _body: room, _alone: alone };
        let call = self.interface.call(caller, parameters, query, body);
        let (interface, begun) = (Arc::clone(&self.interface), Arc::clone(start));
        let perform = move || {
            let made = begun.begin().and_then(|()| interface.perform(route, &call, condition.as_deref(), keyed.as_ref()));
            drop(held);
            made
        };
        self.interface.blocking(until, perform).await.unwrap_or_else(|| Err(start.overdue()))
    }
}

fn slot(slots: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, Problem> {
    Arc::clone(slots).try_acquire_owned().map_err(|_| busy())
}

impl Interface {
    fn call(&self, caller: Caller, parameters: Vec<(String, String)>, query: Vec<(&'static str, String)>, body: Bytes) -> Call {
        let (appliance, pages) = (Arc::clone(&self.appliance), Arc::clone(&self.pages));
        Call { appliance, pages, caller, parameters, query, body }
    }

    /// The blocking part of a change.
    fn perform(
        &self,
        route: &'static Route,
        call: &Call,
        condition: Option<&str>,
        keyed: Option<&Keyed>,
    ) -> Result<(Answer, bool), Problem> {
        let act = || {
            if let (Some(condition), Some(sight)) = (condition, route.sight()) {
                let present = (sight.handler)(call)?.tag.unwrap_or_default();
                if list_has(condition, &present) != Some(true) {
                    return Err(Problem::new(ProblemKind::PreconditionFailed, format!("it is {present} now"))
                        .advise("look at it again, then decide"));
                }
            }
            (route.handler)(call)
        };
        match keyed {
            Some(keyed) => self.answers.once(keyed, route.name == CREATE_TOKEN, act),
            None => act().map(|answer| (answer, false)),
        }
    }
}

/// An answer, or 304 when the caller has it.
fn conditional(parts: &Parts, answer: Answer, slot: OwnedSemaphorePermit) -> Response {
    let asked = parts.headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok());
    match (&answer.tag, asked) {
        (Some(tag), Some(list)) if list_has(list, tag) == Some(true) => {
            response(Answer { status: 304, body: Bytes::new(), ..answer }, None)
        }
        _ => response(answer, Some(slot)),
    }
}

/// Whether `caller` may use `route` on what its path names.
fn allowed(route: &Route, caller: &Caller, parameters: &[(String, String)]) -> Result<(), Problem> {
    if !route.least.allows(caller.role) {
        let detail = format!("the role {} does not allow this", caller.role.as_str());
        return Err(Problem::new(ProblemKind::Forbidden, detail));
    }
    match route.reach {
        Reach::Whole if caller.scope.is_some() => {
            Err(Problem::new(ProblemKind::Forbidden, "this token reaches some volumes only, and this is about more"))
        }
        Reach::Volume => {
            let name = parameters.iter().find(|(key, _)| key == "name").map_or("", |(_, value)| value.as_str());
            caller.check_reach(name)
        }
        Reach::Whole | Reach::Free | Reach::Inside => Ok(()),
    }
}

/// The condition of a change; refused where it could not be kept.
fn if_match(route: &Route, headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let invalid = |detail: &str| Problem::new(ProblemKind::InvalidRequest, detail);
    if headers.contains_key(header::IF_NONE_MATCH) {
        return Err(invalid("a change takes no If-None-Match"));
    }
    let Some(value) = headers.get(header::IF_MATCH) else { return Ok(None) };
    if !route.takes_if_match() {
        return Err(invalid("this call takes no If-Match"));
    }
    let list = value.to_str().ok().filter(|list| list_has(list, "").is_some());
    list.map(|list| Some(list.to_owned())).ok_or_else(|| invalid("If-Match is a list of entity tags, or *"))
}

fn keyed(
    route: &Route,
    parts: &Parts,
    parameters: &[(String, String)],
    caller: &Caller,
    body: &Bytes,
) -> Result<Option<Keyed>, Problem> {
    let Some(key) = parts.headers.get("idempotency-key").filter(|_| route.method == Verb::Post) else { return Ok(None) };
    // What is no text is refused as a key of no characters is.
    let key = key.to_str().unwrap_or_default();
    let (path, query) = (path_of(route, parameters, |_| true), parts.uri.query().unwrap_or_default());
    Keyed::new(&caller.who, key, &[path.as_bytes(), query.as_bytes(), body]).map(Some)
}

fn unexpected() -> Problem {
    Problem::new(ProblemKind::Internal, "the call failed unexpectedly").advise("the daemon's log says where")
}

fn busy() -> Problem {
    Problem::new(ProblemKind::TooManyRequests, "as many requests as the interface works on at a time are under way")
        .advise("ask again in a second")
}

fn response(answer: Answer, slot: Option<OwnedSemaphorePermit>) -> Response {
    let empty = answer.body.is_empty();
    let mut response = Response::new(if empty { Body::empty() } else { Body::new(AnswerBody::new(answer.body, slot)) });
    *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    if !empty {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(answer.media_type));
    }
    if let Some(tag) = answer.tag.and_then(|tag| HeaderValue::from_str(&tag).ok()) {
        headers.insert(header::ETAG, tag);
    }
    response
}
