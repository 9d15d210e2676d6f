//! The endpoints. Each file reads one kind of request and writes its answer; `guard` decides who
//! may ask, `state` leads to the inference thread.

mod about;
mod answer;
mod answer_parts;
mod body;
mod chat;
mod completions;
mod conversation;
mod error;
mod fields;
mod guard;
mod logprobs;
mod message_blocks;
mod messages;
mod messages_in;
mod openapi;
mod response_events;
mod response_format;
mod response_input;
mod responses;
mod sampling;
mod state;
mod strict_json;
mod tokens;
mod tool_form;
mod tools;

use std::any::Any;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{DefaultBodyLimit, MatchedPath, Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use axum::{Json, Router};
use serde_json::Value;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{AllowOrigin, CorsLayer};

use crate::options::{LARGEST_BODY, ServeOptions};
use error::ApiError;
pub(crate) use error::protocol_error;
use guard::RequestGuard;
pub(crate) use state::{AppState, now};

/// Method, path and handler of every endpoint.
fn endpoints() -> Vec<(&'static str, &'static str, MethodRouter<Arc<AppState>>)> {
    vec![
        ("GET", "/", get(about::page)),
        ("GET", "/health", get(about::health)),
        ("GET", "/metrics", get(about::metrics)),
        ("GET", "/v1/models", get(about::models)),
        ("GET", "/v1/models/{*id}", get(about::model)),
        ("POST", "/v1/chat/completions", post(chat::chat_completions)),
        ("POST", "/v1/completions", post(completions::completions)),
        ("POST", "/v1/responses", post(responses::responses)),
        ("POST", "/v1/messages", post(messages::messages)),
        ("POST", "/v1/messages/count_tokens", post(messages::count_tokens)),
        ("GET", "/openapi.json", get(openapi_document)),
        ("POST", "/tokenize", post(tokens::tokenize)),
        ("POST", "/detokenize", post(tokens::detokenize)),
        ("POST", "/apply-template", post(tokens::apply_template)),
        ("GET", "/tokenizer_info", get(tokens::tokenizer_info)),
    ]
}

/// Every endpoint as `METHOD /path`.
pub fn list_endpoints() -> Vec<String> {
    endpoints().iter().map(|(method, path, _)| format!("{method} {path}")).collect()
}

/// `GET /openapi.json`.
async fn openapi_document() -> Json<Value> {
    Json(openapi::document(&list_endpoints()))
}

/// All endpoints behind their guards.
pub(crate) fn router(state: &Arc<AppState>, options: &ServeOptions) -> Router {
    let guard = RequestGuard::new(&options.keys, &options.cors_origins, options.host);
    let mut router = Router::new();
    for (_, path, handler) in endpoints() {
        router = router.route(path, handler);
    }
    router
        .fallback(not_found)
        .method_not_allowed_fallback(wrong_method)
        // The last layer is the outermost: every request is counted, then guarded, then answered by
        // the rules of CORS, and a panic of a handler is still answered inside of all three.
        .layer(DefaultBodyLimit::max(LARGEST_BODY))
        .layer(CatchPanicLayer::custom(after_panic))
        .layer(cors(&options.cors_origins))
        .layer(from_fn_with_state(Arc::new(guard), guard::guard))
        .layer(from_fn_with_state(Arc::clone(state), count))
        .with_state(Arc::clone(state))
}

fn cors(origins: &[String]) -> CorsLayer {
    // Checked when the flags were read; one that is no header would match nothing anyway.
    let origins = origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok());
    CorsLayer::new()
        .allow_origin(AllowOrigin::list(origins))
        .allow_methods([Method::GET, Method::POST])
        .allow_headers([
            header::AUTHORIZATION,
            header::CONTENT_TYPE,
            header::HeaderName::from_static("x-api-key"),
        ])
}

async fn not_found() -> ApiError {
    let message = "there is no such path here; GET /v1/models is one";
    ApiError::new(StatusCode::NOT_FOUND, "not_found", message)
}

async fn wrong_method() -> ApiError {
    let message = "this path does not take that method";
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
}

fn after_panic(_: Box<dyn Any + Send>) -> Response {
    ApiError::internal().into_response()
}

/// Counts a request by its route.
async fn count(State(state): State<Arc<AppState>>, request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().cloned();
    let start = Instant::now();
    let response = next.run(request).await;
    let route = route.as_ref().map_or("other", MatchedPath::as_str);
    state.metrics.request(route, response.status().as_u16(), start.elapsed());
    response
}
