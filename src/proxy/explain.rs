//! What would be chosen now for a request, and why, without sending it.
//!
//! Called by `app` for the admin listener, with a request as a client would send it. It goes the way of a real one (body,
//! prompt, route, hint, candidates, choice) under the same bounds, and stops there: no job for the background, no access
//! counted, nothing in the books, the shadow or the last decisions. What it cannot leave alone is the turn of a policy that
//! goes by turns.

use super::body::{self, Failure};
use super::cluster::Choice;
use super::decision::Decision;
use super::hint::{Hint, Why};
use super::peer::Reason;
use super::reject::Reject;
use super::{Gateway, request};
use bytes::Bytes;
use http::StatusCode;
use pingora::protocols::http::ServerSession;
use serde::Serialize;
use std::sync::Arc;
use std::time::SystemTime;
use tokio::time::Instant;

/// The path that is meant where the query names none.
const PATH: &str = "/v1/chat/completions";

#[derive(Serialize)]
struct Explanation<'a> {
    #[serde(flatten)]
    decision: &'a Decision,
    why: &'static str,
    absent: Vec<Absent<'a>>,
}

/// A backend that is no candidate.
#[derive(Serialize)]
struct Absent<'a> {
    backend: &'a str,
    absence: &'static str,
}

impl Gateway {
    /// Status and JSON of the answer to `session`, whose body is that of the request to be explained; its path is in the query
    /// as `path`. Statuses are those of a real request, and 400 for a body that is not a JSON object.
    pub async fn explain(&self, session: &mut ServerSession) -> (StatusCode, Bytes) {
        match self.explanation(session).await {
            Ok(told) => (StatusCode::OK, told),
            Err(reject) => {
                // A client that is still sending would not see the answer.
                body::drain(session, self.limits.drain_bytes_max, self.timeouts.drain).await;
                (reject.status, reject.body())
            }
        }
    }

    async fn explanation(&self, session: &mut ServerSession) -> Result<Bytes, Reject> {
        let started = Instant::now();
        let path = path(session.req_header().uri.query().unwrap_or_default());
        if !self.routes.knows_path(&path) {
            return Err(Reject::no_route());
        }
        let body = body::read(session, &self.limits, &self.timeouts, &self.budget).await;
        let body = body.map_err(|failure| match failure {
            Failure::Reject(reject) => reject,
            Failure::Broken(error) => request::reject_for(&error),
        })?;
        let header = session.req_header();
        let prompt = super::understand(&body.bytes, &path, self.reading_of(header)).await;
        if !prompt.in_object && !body.bytes.is_empty() {
            return Err(Reject::bad_request("The request body is not a JSON object."));
        }
        let cluster = self.cluster_for(&path, prompt.model.as_deref())?;
        let hint = match &cluster.hints {
            Some(hints) => hints.look(&prompt, started + self.timeouts.total, Instant::now()).await,
            None => Hint::none(Why::Off),
        };
        let demand = cluster.demand(&prompt, &hint, body.bytes.len());
        let candidates = cluster.candidates(&[], false, &demand, &hint, Instant::now());
        let hash_key = cluster.hash_key(header, request::client(session).as_ref(), &demand);
        let choice = cluster.choose(candidates, &hint, &hash_key, rand::random());
        let unread = cluster.rules.policy.weighs_caches() && demand.tokens == 0;
        let why = why(&choice, unread);
        let time = SystemTime::now();
        let decision = Decision::new(Arc::clone(&cluster), prompt.model, &demand, hint, choice, time);
        let absent = cluster.absent().map(|(backend, absence)| Absent { backend, absence }).collect();
        let told = serde_json::to_string_pretty(&Explanation { decision: &decision, why, absent });
        told.map(|told| Bytes::from(told + "\n")).map_err(|_| Reject::internal())
    }
}

/// The path in a query, decoded; the last one counts.
fn path(query: &str) -> String {
    let paths = form_urlencoded::parse(query.as_bytes()).filter(|(key, _)| key == "path");
    paths.last().map_or_else(|| PATH.to_owned(), |(_, path)| path.into_owned())
}

/// The reason in words; `unread`: the policy weighs caches, and there is no prompt.
fn why(choice: &Choice, unread: bool) -> &'static str {
    match choice.peer.map(|peer| peer.reason) {
        None => "no backend of the cluster takes requests now",
        Some(_) if unread => {
            "no prompt was found in the body, so that load alone decides: it has the fewest requests in flight for its weight"
        }
        Some(Reason::Pmc) => {
            "it has the least cost: prompt tokens that wait there, and those that this prompt adds, with the delay they are to each request there"
        }
        Some(Reason::Lmetric) => {
            "it has the least cost: prompt tokens that would wait there times requests that would be in flight there"
        }
        Some(Reason::LeastRequests) => "it has the fewest requests in flight for its weight",
        Some(Reason::PowerOfTwo) => "of two by chance it has fewer requests in flight for its weight",
        Some(Reason::ConsistentHash) => {
            "the hash of the session, the client or the prompt's prefix points to it"
        }
        Some(Reason::RoundRobin) => "it is the next in turn",
        Some(Reason::Random) => "by chance",
        Some(Reason::Lmcache) => "LMCache has the most of the prompt there",
        Some(Reason::Remaining) => {
            "the balancer offered none that can be taken, and it is the first that can"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_is_that_of_the_query() {
        for (query, expected) in [
            ("", PATH),
            ("x=/v1/completions", PATH),
            ("path=/v1/completions", "/v1/completions"),
            ("a=b&path=%2Fv1%2fcompletions&c", "/v1/completions"),
            ("path=/a&path=/b", "/b"),
            ("path=", ""),
        ] {
            assert_eq!(path(query), expected, "{query}");
        }
    }
}
