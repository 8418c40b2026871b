//! How much and how long: limits, timeouts, retries.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::values::{self, DAY_MS, GIB, KIB, MIB};

/// What a client, and all clients together, may use.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// The largest request body; more is answered with 413.
    #[serde(deserialize_with = "values::size::<KIB, GIB, _>", serialize_with = "values::write_size")]
    pub body_bytes_max: usize,
    /// All request bodies held at once; more is answered with 503.
    #[serde(
        deserialize_with = "values::size::<KIB, { 1024 * GIB }, _>",
        serialize_with = "values::write_size"
    )]
    pub buffered_bytes_max: usize,
    /// The head of a request: request line and headers.
    #[serde(deserialize_with = "values::size::<KIB, MIB, _>", serialize_with = "values::write_size")]
    pub header_bytes_max: usize,
    /// The number of headers of a request.
    #[serde(deserialize_with = "values::integer::<1, 256, _>")]
    pub headers_max: usize,
    /// Client connections open at once.
    #[serde(deserialize_with = "values::integer::<1, 1_000_000, _>")]
    pub connections_max: usize,
    /// Connections open at once from one client address.
    #[serde(deserialize_with = "values::integer::<1, 1_000_000, _>")]
    pub connections_per_client_max: usize,
    /// How much of a rejected body is read, so that the client sees the answer.
    #[serde(deserialize_with = "values::size::<0, GIB, _>", serialize_with = "values::write_size")]
    pub drain_bytes_max: usize,
    /// The largest `/v1/models` answer taken from a backend.
    #[serde(
        deserialize_with = "values::size::<KIB, { 64 * MIB }, _>",
        serialize_with = "values::write_size"
    )]
    pub models_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes_max: 16 * MIB,
            buffered_bytes_max: GIB,
            header_bytes_max: 64 * KIB,
            headers_max: 128,
            connections_max: 20_000,
            connections_per_client_max: 2_000,
            drain_bytes_max: 64 * MIB,
            models_bytes_max: MIB,
        }
    }
}

/// How long each part of a request may take.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Timeouts {
    /// From the first byte of a request to the end of its headers.
    #[serde(
        deserialize_with = "values::duration::<1, DAY_MS, _>",
        serialize_with = "values::write_duration"
    )]
    pub header: Duration,
    /// From the end of the headers to the end of the body.
    #[serde(
        deserialize_with = "values::duration::<1, DAY_MS, _>",
        serialize_with = "values::write_duration"
    )]
    pub body: Duration,
    /// How long a client connection may wait for its next request.
    #[serde(
        deserialize_with = "values::duration::<1, DAY_MS, _>",
        serialize_with = "values::write_duration"
    )]
    pub idle: Duration,
    /// Connecting to a backend, TLS included.
    #[serde(
        deserialize_with = "values::duration::<1, DAY_MS, _>",
        serialize_with = "values::write_duration"
    )]
    pub connect: Duration,
    /// From the end of the request to the first byte of the response: queue and prefill.
    #[serde(
        deserialize_with = "values::duration::<1, DAY_MS, _>",
        serialize_with = "values::write_duration"
    )]
    pub first_byte: Duration,
    /// Between two reads of a response.
    #[serde(
        deserialize_with = "values::duration::<1, DAY_MS, _>",
        serialize_with = "values::write_duration"
    )]
    pub between_bytes: Duration,
    /// The whole request, all tries together.
    #[serde(
        deserialize_with = "values::duration::<1, DAY_MS, _>",
        serialize_with = "values::write_duration"
    )]
    pub total: Duration,
    /// How long an idle connection to a backend is kept.
    #[serde(
        deserialize_with = "values::duration::<1, DAY_MS, _>",
        serialize_with = "values::write_duration"
    )]
    pub upstream_idle: Duration,
    /// How long the body of a rejected request is read.
    #[serde(
        deserialize_with = "values::duration::<1, DAY_MS, _>",
        serialize_with = "values::write_duration"
    )]
    pub drain: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            header: Duration::from_secs(10),
            body: Duration::from_mins(1),
            idle: Duration::from_mins(1),
            connect: Duration::from_secs(2),
            first_byte: Duration::from_mins(10),
            between_bytes: Duration::from_mins(2),
            total: Duration::from_mins(30),
            upstream_idle: Duration::from_secs(3),
            drain: Duration::from_secs(2),
        }
    }
}

/// When a request is tried again on another backend.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Retries {
    /// Tries in total; 1 = no retries.
    #[serde(deserialize_with = "values::integer::<1, 10, _>")]
    pub tries_max: usize,
    /// Retries are at most this share of recent requests; those after failed connects do not count.
    #[serde(deserialize_with = "values::ratio")]
    pub budget_ratio: f64,
    /// What is retried; always before the first byte of a response.
    pub on: Vec<RetryOn>,
}

impl Default for Retries {
    fn default() -> Self {
        use RetryOn::{Connect, Stale, Status502, Status503, Status504};
        Self { tries_max: 3, budget_ratio: 0.2, on: vec![Connect, Stale, Status502, Status503, Status504] }
    }
}

/// A reason to try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RetryOn {
    /// No connection could be made.
    Connect,
    /// A kept connection turned out to be closed.
    Stale,
    /// A fresh connection was reset after the request was sent.
    Reset,
    /// The backend answered 502.
    #[serde(rename = "502")]
    Status502,
    /// The backend answered 503.
    #[serde(rename = "503")]
    Status503,
    /// The backend answered 504.
    #[serde(rename = "504")]
    Status504,
}
