//! Who may ask: `Host` against names that lead here by a trick, `Origin` against pages of others,
//! keys.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::error::ApiError;

/// Checks on a request before anything else.
#[derive(Debug)]
pub(crate) struct RequestGuard {
    /// Hashes of the keys, so that comparing takes the same time whatever is wrong.
    keys: Vec<blake3::Hash>,
    origins: Vec<String>,
    /// Listening on this machine alone: only its own names lead here rightly.
    loopback: bool,
}

impl RequestGuard {
    pub(crate) fn new(keys: &[String], origins: &[String], host: IpAddr) -> Self {
        Self {
            keys: keys.iter().map(|key| blake3::hash(key.as_bytes())).collect(),
            origins: origins.iter().map(|origin| origin.to_ascii_lowercase()).collect(),
            loopback: host.is_loopback(),
        }
    }

    fn check(&self, request: &Request) -> Result<(), ApiError> {
        let host = host(request)?;
        // DNS rebinding: a page of another site has its own name resolve to 127.0.0.1, and its
        // browser then counts this server as that site. Only the name in `Host` still tells.
        if self.loopback && !host.as_deref().is_none_or(is_own_name) {
            let message = "the Host header names another machine; expected localhost";
            return Err(ApiError::new(StatusCode::FORBIDDEN, "host_not_allowed", message));
        }
        self.check_origin(request.headers(), host.as_deref())?;
        if is_public(request) || self.keys.is_empty() || self.has_key(request.headers()) {
            return Ok(());
        }
        let message = "a valid key is needed: Authorization: Bearer KEY, or X-Api-Key: KEY";
        Err(ApiError::new(StatusCode::UNAUTHORIZED, "invalid_api_key", message))
    }

    fn check_origin(&self, headers: &HeaderMap, host: Option<&str>) -> Result<(), ApiError> {
        let allowed = |origin: &HeaderValue| {
            let origin = origin.to_str().unwrap_or_default().to_ascii_lowercase();
            let own = origin.split_once("://").map(|(_, host)| host);
            // The page of this server sends the name that it was opened under.
            (own.is_some() && own == host) || self.origins.contains(&origin)
        };
        if headers.get_all(header::ORIGIN).iter().all(allowed) {
            return Ok(());
        }
        let message = "pages of this origin may not ask; --cors-origin allows one";
        Err(ApiError::new(StatusCode::FORBIDDEN, "origin_not_allowed", message))
    }

    fn has_key(&self, headers: &HeaderMap) -> bool {
        let bearer = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let bearer = bearer.and_then(|value| {
            let (scheme, key) = value.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then_some(key.trim())
        });
        let plain = headers.get("x-api-key").and_then(|value| value.to_str().ok());
        let mut given =
            [bearer, plain].into_iter().flatten().map(|key| blake3::hash(key.as_bytes()));
        // Hashes are compared, so that the time tells nothing of a key.
        given.any(|hash| self.keys.contains(&hash))
    }
}

/// The page and the health check tell nothing, and preflights are answered by the list of origins.
fn is_public(request: &Request) -> bool {
    request.method() == Method::OPTIONS || ["/", "/health"].contains(&request.uri().path())
}

/// The name that the request was sent to, in lower case.
fn host(request: &Request) -> Result<Option<String>, ApiError> {
    if let Some(authority) = request.uri().authority() {
        return Ok(Some(authority.as_str().to_ascii_lowercase()));
    }
    let mut all = request.headers().get_all(header::HOST).iter();
    let bad = || {
        let message = "expected one Host header that is a name and a port";
        ApiError::new(StatusCode::BAD_REQUEST, "invalid_host", message)
    };
    match (all.next(), all.next()) {
        (None, _) if request.version() == axum::http::Version::HTTP_11 => Err(bad()),
        (None, _) => Ok(None),
        (Some(host), None) => Ok(Some(host.to_str().map_err(|_| bad())?.to_ascii_lowercase())),
        (Some(_), Some(_)) => Err(bad()),
    }
}

/// Whether a `Host` is a name of this machine that no other can take: `localhost:8080`,
/// `127.0.0.1`, `[::1]:8080`.
fn is_own_name(host: &str) -> bool {
    let bracketed = host.strip_prefix('[').and_then(|rest| rest.split_once(']'));
    let (name, port) =
        bracketed.unwrap_or_else(|| host.split_at(host.rfind(':').unwrap_or(host.len())));
    let is_port = |port: &str| {
        // Rust's parser takes a plus sign, a port has none.
        port.strip_prefix(':').is_some_and(|it| !it.starts_with('+') && it.parse::<u16>().is_ok())
    };
    if !(port.is_empty() || is_port(port)) {
        return false;
    }
    if bracketed.is_some() {
        return name.parse::<Ipv6Addr>().is_ok_and(|address| address.is_loopback());
    }
    // `localhost.` is the same name, written in full.
    let name = name.strip_suffix('.').unwrap_or(name);
    let is_address = || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    name == "localhost" || name.ends_with(".localhost") || is_address()
}

/// The middleware.
pub(crate) async fn guard(
    State(guard): State<Arc<RequestGuard>>,
    request: Request,
    next: Next,
) -> Response {
    match guard.check(&request) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;

    fn asked(guard: &RequestGuard, path: &str, headers: &[(&str, &str)]) -> u16 {
        let mut request = Request::builder().uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::empty()).unwrap();
        guard.check(&request).map_or_else(|error| error.status.as_u16(), |()| 200)
    }

    #[test]
    fn only_names_of_this_machine_lead_to_a_server_for_it_alone() {
        let guard = RequestGuard::new(&[], &[], [127, 0, 0, 1].into());
        for host in ["localhost:8080", "127.0.0.1", "[::1]:80", "LocalHost", "a.localhost:1"] {
            assert_eq!(asked(&guard, "/v1/models", &[("host", host)]), 200, "{host}");
        }
        for host in [
            "evil.example",
            "127.0.0.1.evil.example",
            "localhost.evil:80",
            "[::2]",
            "",
            "[::1]x",
            "localhost:x",
        ] {
            assert_eq!(asked(&guard, "/v1/models", &[("host", host)]), 403, "{host}");
        }
        assert_eq!(asked(&guard, "/v1/models", &[]), 400);
        assert_eq!(asked(&guard, "/v1/models", &[("host", "localhost"), ("host", "x")]), 400);
        let open = RequestGuard::new(&[], &[], [0, 0, 0, 0].into());
        assert_eq!(asked(&open, "/v1/models", &[("host", "box.lan")]), 200);
    }

    #[test]
    fn pages_of_others_may_not_ask_unless_they_are_listed() {
        let guard =
            RequestGuard::new(&[], &["https://a.example".to_owned()], [127, 0, 0, 1].into());
        let from = |origin| asked(&guard, "/", &[("host", "localhost:1"), ("origin", origin)]);
        assert_eq!(from("http://localhost:1"), 200);
        assert_eq!(from("https://A.example"), 200);
        for origin in
            ["http://localhost:2", "null", "http://evil.example", "", "https://a.example:1"]
        {
            assert_eq!(from(origin), 403, "{origin}");
        }
    }

    #[test]
    fn a_key_opens_all_and_without_one_only_the_page_and_the_health_are_open() {
        let guard = RequestGuard::new(&["one".into(), "two".into()], &[], [127, 0, 0, 1].into());
        let with = |path, name, value| asked(&guard, path, &[("host", "localhost"), (name, value)]);
        for (name, value) in
            [("authorization", "Bearer one"), ("authorization", "bearer two"), ("x-api-key", "two")]
        {
            assert_eq!(with("/v1/models", name, value), 200);
        }
        for (name, value) in [
            ("authorization", "Bearer three"),
            ("authorization", "one"),
            ("authorization", "Basic one"),
            ("x-api-key", ""),
            ("accept", "x"),
        ] {
            assert_eq!(with("/v1/models", name, value), 401, "{value}");
            assert_eq!(with("/metrics", name, value), 401);
            assert_eq!(with("/health", name, value), 200);
            assert_eq!(with("/", name, value), 200);
        }
    }
}
