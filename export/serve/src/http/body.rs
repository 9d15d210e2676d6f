//! Reads a body: JSON, an object, in time, not too long, not too deep.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::{StatusCode, header};
use serde_json::Value;

use super::error::ApiError;
use super::fields::{BodyFields, depth};
use crate::options::{BODY_TIME, DEEPEST_JSON, LARGEST_BODY};

/// The object that a body holds.
pub(crate) struct JsonBody(pub(crate) BodyFields);

impl<S: Send + Sync> FromRequest<S> for JsonBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        check_type(&request)?;
        let bytes = tokio::time::timeout(BODY_TIME, Bytes::from_request(request, state)).await;
        let bytes =
            bytes.map_err(|_| too_slow(BODY_TIME))?.map_err(|refused| unread(refused.status()))?;
        Ok(Self(parse(&bytes)?))
    }
}

/// A form of some page may come without being asked for; JSON may not.
fn check_type(request: &Request) -> Result<(), ApiError> {
    let given = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let kind = given.unwrap_or_default().split(';').next().unwrap_or_default().trim();
    if kind.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    let message = "expected Content-Type: application/json";
    Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message))
}

fn too_slow(time: Duration) -> ApiError {
    let message = format!("the body did not come within {} s", time.as_secs());
    ApiError::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", message)
}

fn unread(status: StatusCode) -> ApiError {
    if status == StatusCode::PAYLOAD_TOO_LARGE {
        let message = format!("the body is too long; expected at most {LARGEST_BODY} bytes");
        return ApiError::new(status, "body_too_large", message);
    }
    ApiError::new(StatusCode::BAD_REQUEST, "invalid_body", "the body cannot be read")
}

fn parse(bytes: &[u8]) -> Result<BodyFields, ApiError> {
    let bad = |message: String| ApiError::new(StatusCode::BAD_REQUEST, "invalid_json", message);
    let value: Value = serde_json::from_slice(bytes)
        .map_err(|error| bad(format!("the body is not JSON: {error}")))?;
    if depth(&value) > DEEPEST_JSON {
        return Err(bad(format!("the body nests values more than {DEEPEST_JSON} deep")));
    }
    match value {
        Value::Object(map) => Ok(BodyFields::new(map)),
        _ => Err(bad("expected a JSON object as body".to_owned())),
    }
}
