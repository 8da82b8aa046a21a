//! Paths to calls of an [`Appliance`]. Every failure, the router's own too, is answered as a [`Problem`].

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Path, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use lamina_contract::VolumeName;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::appliance::Appliance;
use crate::page::Page;
use crate::problem::{Problem, ProblemKind};
use crate::volume::{CreateVolume, VolumeFilter};
use crate::{MAX_BODY_BYTES, paths};

/// How long a body may take to arrive.
const BODY_PATIENCE: Duration = Duration::from_secs(10);

/// How long a call may take before its caller is told to look again later. The call itself goes on.
const CALL_PATIENCE: Duration = Duration::from_secs(60);

type Shared = Arc<dyn Appliance>;

/// All routes over `appliance`.
pub fn router(appliance: Shared) -> Router {
    Router::new()
        .route(paths::VERSION, get(version))
        .route(paths::STATUS, get(status))
        .route(paths::VOLUMES, get(volumes).post(create))
        .route(paths::VOLUME, get(volume).delete(delete))
        .route(paths::VOLUME_ATTACH, post(attach))
        .route(paths::VOLUME_DETACH, post(detach))
        .route(paths::TARGETS, get(targets))
        .route(paths::METRICS, get(metrics))
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .with_state(appliance)
}

/// Only `/metrics`: all that a network address may ask for.
pub fn metrics_router(appliance: Shared) -> Router {
    Router::new()
        .route(paths::METRICS, get(metrics))
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .with_state(appliance)
}

async fn version(State(appliance): State<Shared>) -> Response {
    json(StatusCode::OK, &appliance.version())
}

async fn status(State(appliance): State<Shared>) -> Result<Response, Problem> {
    call(appliance, |appliance| appliance.status()).await.map(|status| json(StatusCode::OK, &status))
}

async fn volumes(State(appliance): State<Shared>) -> Result<Response, Problem> {
    call(appliance, |appliance| appliance.volumes(&VolumeFilter::default(), &Page::all()))
        .await
        .map(|list| json(StatusCode::OK, &list))
}

async fn volume(State(appliance): State<Shared>, Path(name): Path<String>) -> Result<Response, Problem> {
    let name = parse_name(&name)?;
    call(appliance, move |appliance| appliance.volume(&name)).await.map(|volume| json(StatusCode::OK, &volume))
}

async fn create(State(appliance): State<Shared>, request: Request) -> Result<Response, Problem> {
    let request: CreateVolume = read(request.into_body()).await?;
    call(appliance, move |appliance| appliance.create_volume(&request)).await.map(|volume| json(StatusCode::CREATED, &volume))
}

async fn delete(State(appliance): State<Shared>, Path(name): Path<String>) -> Result<Response, Problem> {
    let name = parse_name(&name)?;
    call(appliance, move |appliance| appliance.delete_volume(&name, false)).await.map(|()| StatusCode::NO_CONTENT.into_response())
}

async fn attach(State(appliance): State<Shared>, Path(name): Path<String>) -> Result<Response, Problem> {
    let name = parse_name(&name)?;
    call(appliance, move |appliance| appliance.attach(&name)).await.map(|volume| json(StatusCode::OK, &volume))
}

async fn detach(State(appliance): State<Shared>, Path(name): Path<String>) -> Result<Response, Problem> {
    let name = parse_name(&name)?;
    call(appliance, move |appliance| appliance.detach(&name)).await.map(|volume| json(StatusCode::OK, &volume))
}

async fn targets(State(appliance): State<Shared>) -> Result<Response, Problem> {
    call(appliance, |appliance| appliance.targets()).await.map(|list| json(StatusCode::OK, &list))
}

async fn metrics(State(appliance): State<Shared>) -> Result<Response, Problem> {
    let text = call(appliance, |appliance| Ok(appliance.metrics())).await?;
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response())
}

async fn no_route() -> Problem {
    Problem::new(ProblemKind::NotFound, "there is nothing at this path").advise("the interface is under /api/v1")
}

async fn no_method() -> Problem {
    Problem::new(ProblemKind::MethodNotAllowed, "this path does not take this method")
}

/// Runs a blocking call on a thread for that. A panic in it is the caller's 500 and nobody else's trouble.
async fn call<T: Send + 'static>(
    appliance: Shared,
    ask: impl FnOnce(&dyn Appliance) -> Result<T, Problem> + Send + 'static,
) -> Result<T, Problem> {
    let answer = tokio::task::spawn_blocking(move || ask(&*appliance));
    match tokio::time::timeout(CALL_PATIENCE, answer).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(_)) => {
            Err(Problem::new(ProblemKind::Internal, "the call failed unexpectedly").advise("the daemon's log says where"))
        }
        Err(_) => Err(Problem::new(ProblemKind::Unavailable, "the call takes longer than a minute and goes on without you")
            .advise("look at the state before asking again")),
    }
}

async fn read<T: DeserializeOwned>(body: Body) -> Result<T, Problem> {
    let bytes = match tokio::time::timeout(BODY_PATIENCE, to_bytes(body, MAX_BODY_BYTES)).await {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(error)) if is_length_limit(&error) => {
            return Err(Problem::new(ProblemKind::TooLarge, format!("a body may have {MAX_BODY_BYTES} bytes")));
        }
        Ok(Err(_)) => return Err(Problem::new(ProblemKind::InvalidRequest, "the body broke off")),
        Err(_) => return Err(Problem::new(ProblemKind::Timeout, "the body did not arrive within 10 seconds")),
    };
    serde_json::from_slice(&bytes)
        .map_err(|error| Problem::new(ProblemKind::InvalidRequest, format!("the body is not the expected JSON: {error}")))
}

fn is_length_limit(error: &axum::Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = std::error::Error::source(error);
    while let Some(next) = cause {
        if next.is::<http_body_util::LengthLimitError>() {
            return true;
        }
        cause = next.source();
    }
    false
}

fn parse_name(name: &str) -> Result<VolumeName, Problem> {
    VolumeName::new(name).map_err(|error| Problem::new(ProblemKind::InvalidRequest, error.to_string()))
}

fn json<T: Serialize>(status: StatusCode, body: &T) -> Response {
    match serde_json::to_vec(body) {
        Ok(bytes) => (status, [(header::CONTENT_TYPE, "application/json")], bytes).into_response(),
        Err(_) => Problem::new(ProblemKind::Internal, "the answer could not be written").into_response(),
    }
}
