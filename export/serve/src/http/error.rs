//! Errors as OpenAI's clients read them: `{"error": {"message", "type", "param", "code"}}`.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

/// Why a request has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) message: String,
    /// The field of the body at fault.
    pub(crate) param: Option<String>,
    pub(crate) code: &'static str,
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), param: None, code }
    }

    /// A field of the body with a value that cannot be used.
    pub(crate) fn field(name: &str, message: impl Into<String>) -> Self {
        let message = format!("{name}: {}", message.into());
        let error = Self::new(StatusCode::BAD_REQUEST, "invalid_value", message);
        Self { param: Some(name.to_owned()), ..error }
    }

    /// A fault of this program.
    pub(crate) fn internal() -> Self {
        let message = "the server failed at this request; others are not affected";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", message)
    }

    /// The `type` that OpenAI's clients expect with a status.
    fn kind(&self) -> &'static str {
        match self.status.as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            404 => "not_found_error",
            429 => "rate_limit_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        }
    }

    /// The body.
    pub(crate) fn json(&self) -> Value {
        json!({"error": {
            "message": self.message, "type": self.kind(), "param": self.param, "code": self.code,
        }})
    }
}

/// The body of an error in what comes before a request can be handled; `None` for other statuses.
pub(crate) fn protocol_error(status: u16) -> Option<String> {
    let (code, message) = match status {
        400 => ("invalid_request", "the request is not HTTP/1.1, or breaks its rules"),
        414 => ("uri_too_long", "the path is too long"),
        431 => ("headers_too_large", "there are too many headers, or too long ones"),
        _ => return None,
    };
    let status = StatusCode::from_u16(status).ok()?;
    Some(ApiError::new(status, code, message).json().to_string())
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.json())).into_response();
        let headers = response.headers_mut();
        match self.status {
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
            StatusCode::UNAUTHORIZED => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            _ => {}
        }
        response
    }
}
