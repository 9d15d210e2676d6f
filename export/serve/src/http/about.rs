//! What the server says of itself: health, models, metrics, the page.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::error::ApiError;
use super::state::AppState;

/// `GET /health`.
pub(crate) async fn health() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], r#"{"status":"ok"}"#)
}

/// `GET /v1/models`.
pub(crate) async fn models(State(state): State<Arc<AppState>>) -> Json<Value> {
    Json(json!({"object": "list", "data": [model_json(&state)]}))
}

/// `GET /v1/models/{id}`.
pub(crate) async fn model(
    State(state): State<Arc<AppState>>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Value>, ApiError> {
    let bad = |_| ApiError::new(StatusCode::BAD_REQUEST, "invalid_path", "the path is not UTF-8");
    let Path(id) = id.map_err(bad)?;
    if id == state.model { Ok(Json(model_json(&state))) } else { Err(state.no_model(&id)) }
}

fn model_json(state: &AppState) -> Value {
    json!({
        "id": state.model, "object": "model", "created": state.created, "owned_by": "bitnet",
        "context_length": state.context, "vocab_size": state.vocab_size,
    })
}

/// `GET /metrics`.
pub(crate) async fn metrics(State(state): State<Arc<AppState>>) -> impl IntoResponse {
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (kind, state.metrics.text(&state.model))
}

/// The chat page.
pub(crate) const PAGE: &str = include_str!("../page/index.html");

/// `GET /`: the page, with a policy that asks nobody but this server and lets no text become markup
/// or script.
pub(crate) async fn page() -> Response {
    const POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; \
        connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; \
        frame-ancestors 'none'; require-trusted-types-for 'script'";
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, PAGE).into_response()
}

#[cfg(test)]
mod tests {
    use super::PAGE;

    #[test]
    fn the_page_requests_nothing_elsewhere_and_escapes_text() {
        for way in
            ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function("]
        {
            assert!(!PAGE.contains(way), "{way}");
        }
        for place in ["src=\"", "@import", "url(", "//cdn", "http://", "https://"] {
            assert!(!PAGE.contains(place), "{place}");
        }
        assert!(PAGE.len() < 40_000, "{} bytes", PAGE.len());
    }
}
