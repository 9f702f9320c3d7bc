//! What went wrong, as the caller reads it: problem details (RFC 9457).

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Problem {
    kind: Kind,
    /// For people: what is wrong, and what to do.
    detail: String,
    /// Where in the body, such as `backends[0].weight`.
    field: Option<String>,
}

/// One word each, for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    NotJson,
    Unauthorized,
    OutOfScope,
    NotFound,
    NoSuchRegistration,
    MethodNotAllowed,
    Timeout,
    HostTaken,
    TooLarge,
    InvalidField,
    ForbiddenUpstream,
    Unavailable,
    Full,
}

/// RFC 9457 section 3; `code` and `field` are ours.
#[derive(Serialize)]
struct Body<'a> {
    r#type: &'static str,
    title: &'a str,
    status: u16,
    detail: &'a str,
    code: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<&'a str>,
}

impl Kind {
    const fn status(self) -> StatusCode {
        match self {
            Self::NotJson => StatusCode::BAD_REQUEST,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::OutOfScope => StatusCode::FORBIDDEN,
            Self::NotFound | Self::NoSuchRegistration => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::Timeout => StatusCode::REQUEST_TIMEOUT,
            Self::HostTaken => StatusCode::CONFLICT,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::InvalidField | Self::ForbiddenUpstream => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::Full => StatusCode::INSUFFICIENT_STORAGE,
        }
    }

    pub(super) const fn code(self) -> &'static str {
        match self {
            Self::NotJson => "not_json",
            Self::Unauthorized => "unauthorized",
            Self::OutOfScope => "out_of_scope",
            Self::NotFound => "not_found",
            Self::NoSuchRegistration => "no_such_registration",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::Timeout => "timeout",
            Self::HostTaken => "host_taken",
            Self::TooLarge => "too_large",
            Self::InvalidField => "invalid_field",
            Self::ForbiddenUpstream => "forbidden_upstream",
            Self::Unavailable => "unavailable",
            Self::Full => "full",
        }
    }
}

impl Problem {
    pub(super) fn new(kind: Kind, detail: impl Into<String>) -> Self {
        Self { kind, detail: detail.into(), field: None }
    }

    pub(super) fn at(kind: Kind, field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { kind, detail: detail.into(), field: Some(field.into()) }
    }

    pub(super) fn stopping() -> Self {
        Self::new(Kind::Unavailable, "the daemon is stopping or takes a new configuration; try again")
    }

    pub(super) fn status(&self) -> StatusCode {
        self.kind.status()
    }

    pub(super) fn code(&self) -> &'static str {
        self.kind.code()
    }

    pub(super) fn field(&self) -> Option<&str> {
        self.field.as_deref()
    }

    pub(super) fn detail(&self) -> &str {
        &self.detail
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = self.status();
        let body = Body {
            // RFC 9457 section 4.2.1: the title is then the status' own phrase.
            r#type: "about:blank",
            title: status.canonical_reason().unwrap_or("Error"),
            status: status.as_u16(),
            detail: &self.detail,
            code: self.code(),
            field: self.field(),
        };
        let mut response = (status, Json(body)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if self.kind == Kind::Unauthorized {
            // RFC 6750 section 3.
            headers
                .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(r#"Bearer realm="ingress registration""#));
        }
        response
    }
}
