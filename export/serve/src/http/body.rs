//! Reads a body: JSON, an object, in time, not too long, not too deep.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::{StatusCode, header};
use serde_json::Value;

use super::error::ApiError;
use super::fields::{BodyFields, depth};
use super::strict_json::StrictValue;
use crate::options::{BODY_TIME, DEEPEST_JSON, LARGEST_BODY};

/// The object that a body holds.
pub(crate) struct JsonBody(pub(crate) BodyFields);

impl<S: Send + Sync> FromRequest<S> for JsonBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        check_type(&request)?;
        // For the whole body, not for each piece: a byte every few seconds would else hold a
        // connection for ever.
        let bytes = tokio::time::timeout(BODY_TIME, Bytes::from_request(request, state)).await;
        let bytes =
            bytes.map_err(|_| too_slow(BODY_TIME))?.map_err(|refused| unread(refused.status()))?;
        Ok(Self(parse(&bytes)?))
    }
}

/// A form of some page may come without being asked for; JSON may not.
fn check_type(request: &Request) -> Result<(), ApiError> {
    // A header that stands twice, or is not text, says nothing that can be trusted.
    let header = |name| {
        let all: Vec<_> = request.headers().get_all(name).iter().map(|it| it.to_str()).collect();
        match all[..] {
            [] => None,
            [Ok(one)] => Some(one),
            // Neither JSON nor `identity`, so the request is refused.
            _ => Some("?"),
        }
    };
    let refused = |message: &str| {
        ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message)
    };
    if !is_utf8_json(header(header::CONTENT_TYPE).unwrap_or_default()) {
        return Err(refused("expected Content-Type: application/json, in UTF-8"));
    }
    match header(header::CONTENT_ENCODING) {
        Some(coding) if !coding.eq_ignore_ascii_case("identity") => {
            Err(refused("a compressed body is not supported; expected no Content-Encoding"))
        }
        _ => Ok(()),
    }
}

fn is_utf8_json(kind: &str) -> bool {
    let mut parts = kind.split(';').map(|part| part.trim().to_ascii_lowercase());
    let is_json = parts.next().is_some_and(|kind| kind == "application/json");
    is_json
        && parts.all(|part| match part.strip_prefix("charset=") {
            Some(charset) => ["utf-8", "utf8"].contains(&charset.trim_matches('"')),
            None => true,
        })
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
    let StrictValue(value) = serde_json::from_slice(bytes)
        .map_err(|error| bad(format!("the body is not JSON: {error}")))?;
    // The parser itself refuses at 128; templates and grammars walk these values recursively.
    if depth(&value) > DEEPEST_JSON {
        return Err(bad(format!("the body nests values more than {DEEPEST_JSON} deep")));
    }
    match value {
        Value::Object(map) => Ok(BodyFields::new(map)),
        _ => Err(bad("expected a JSON object as body".to_owned())),
    }
}
