//! The answers that the gateway gives itself: one place for every status, OpenAI-shaped, without addresses.
//!
//! Made by the phases of a request, sent by [`send`]; counted by the caller under [`Reject::reason`].

use bytes::Bytes;
use http::StatusCode;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER};
use pingora::Result;
use pingora::http::ResponseHeader;
use pingora_proxy::Session;
use serde::Serialize;

/// Seconds that a client is asked to wait before it tries again.
const RETRY_AFTER_SECONDS: u32 = 1;

/// Why a request is not served, as the client is told.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Reject {
    /// The status of the answer.
    pub status: StatusCode,
    /// A stable name for metrics, logs and the `code` of the answer.
    pub reason: &'static str,
    message: String,
    retry_after: bool,
}

#[derive(Serialize)]
struct Answer<'a> {
    error: Detail<'a>,
}

/// The error object of the OpenAI API.
#[derive(Serialize)]
struct Detail<'a> {
    message: &'a str,
    r#type: &'static str,
    param: Option<&'static str>,
    code: &'static str,
}

impl Reject {
    fn new(status: StatusCode, reason: &'static str, message: impl Into<String>) -> Self {
        Self { status, reason, message: message.into(), retry_after: false }
    }

    fn with_retry_after(mut self) -> Self {
        self.retry_after = true;
        self
    }

    /// The body is larger than `bytes_max`.
    #[must_use]
    pub fn body_too_large(bytes_max: usize) -> Self {
        let message = format!("The request body is larger than the {bytes_max} bytes that are allowed.");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message)
    }

    /// The body did not arrive in time.
    #[must_use]
    pub fn body_timeout() -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", "The request body did not arrive in time.")
    }

    /// The process holds as many body bytes as it may.
    #[must_use]
    pub fn buffers_full() -> Self {
        let message = "The gateway holds as many request bodies as it may; try again shortly.";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "buffers_full", message).with_retry_after()
    }

    /// The header has more fields or bytes than allowed.
    #[must_use]
    pub fn header_too_large() -> Self {
        let message = "The request header is larger than allowed.";
        Self::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "header_too_large", message)
    }

    /// The request's target is longer than a whole header may be.
    #[must_use]
    pub fn target_too_long() -> Self {
        Self::new(StatusCode::URI_TOO_LONG, "target_too_long", "The request target is longer than allowed.")
    }

    /// The header did not arrive in time.
    #[must_use]
    pub fn header_timeout() -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, "header_timeout", "The request header did not arrive in time.")
    }

    /// The request's method is not served.
    #[must_use]
    pub fn method_not_allowed() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "This method is not served here.")
    }

    /// The request's framing or target is not acceptable.
    #[must_use]
    pub fn bad_request(message: &'static str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_request", message)
    }

    /// No route matches the path.
    #[must_use]
    pub fn no_route() -> Self {
        Self::new(StatusCode::NOT_FOUND, "no_route", "No route of the gateway matches this path.")
    }

    /// The route leads to a cluster that there is not, for which the configuration has an answer.
    #[must_use]
    pub fn cluster_not_found(status: Option<u16>) -> Self {
        let status =
            status.and_then(|status| StatusCode::from_u16(status).ok()).unwrap_or(StatusCode::NOT_FOUND);
        Self::new(status, "cluster_not_found", "The route of this path leads to no cluster of the gateway.")
    }

    /// Routes match the path, none the model.
    #[must_use]
    pub fn no_model() -> Self {
        let message = "No route of the gateway serves the requested model on this path.";
        Self::new(StatusCode::NOT_FOUND, "model_not_found", message)
    }

    /// No backend of the cluster can take the request now.
    #[must_use]
    pub fn no_backend() -> Self {
        let message = "No backend is available for this request; try again shortly.";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "no_backend", message).with_retry_after()
    }

    /// The backends that were tried could not be reached or broke off before they answered.
    #[must_use]
    pub fn backend_failed() -> Self {
        Self::new(StatusCode::BAD_GATEWAY, "backend_failed", "The backend failed before it answered.")
    }

    /// The backend did not answer in time.
    #[must_use]
    pub fn backend_timeout() -> Self {
        Self::new(StatusCode::GATEWAY_TIMEOUT, "backend_timeout", "The backend did not answer in time.")
    }

    /// A mistake of the gateway's own.
    #[must_use]
    pub fn internal() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "The gateway could not handle the request.")
    }

    fn kind(&self) -> &'static str {
        match self.status {
            StatusCode::NOT_FOUND => "not_found_error",
            status if status.is_client_error() => "invalid_request_error",
            _ => "server_error",
        }
    }

    /// The JSON body of the answer.
    #[must_use]
    pub fn body(&self) -> Bytes {
        let error = Detail { message: &self.message, r#type: self.kind(), param: None, code: self.reason };
        serde_json::to_vec(&Answer { error }).unwrap_or_default().into()
    }
}

/// Sends the answer, unless a final header has gone out already. The connection is not kept alive by it.
///
/// # Errors
/// When the client cannot be written to.
pub async fn send(session: &mut Session, reject: &Reject, request_id: &str) -> Result<()> {
    let body = reject.body();
    let mut header = ResponseHeader::build(reject.status, Some(5))?;
    header.insert_header(CONTENT_TYPE, "application/json")?;
    header.insert_header(CONTENT_LENGTH, body.len())?;
    header.insert_header(super::REQUEST_ID, request_id)?;
    if reject.retry_after {
        header.insert_header(RETRY_AFTER, RETRY_AFTER_SECONDS)?;
    }
    session.as_downstream_mut().write_error_response(header, body).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_has_the_shape_of_the_openai_api() {
        let body = Reject::body_too_large(16).body();
        let value: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(value["error"]["type"], "invalid_request_error");
        assert_eq!(value["error"]["code"], "body_too_large");
        assert!(value["error"]["param"].is_null());
        assert!(value["error"]["message"].as_str().unwrap().contains("16 bytes"));
    }
}
