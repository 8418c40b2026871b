//! The end of a request: what its answer taught, metrics, access log.
//!
//! Called by the spine once per request, when everything else is over.

use super::Gateway;
use super::connection::Address;
use super::hint::Why;
use super::request::RequestCtx;
use super::response::Usage;
use crate::access_log::{Entry, Milliseconds};
use http::Version;
use pingora::{Error, ErrorSource};
use pingora_proxy::Session;
use std::time::SystemTime;

/// What a client that left before its answer is logged with; no such status is ever sent.
const CLIENT_GONE: u16 = 499;

impl RequestCtx {
    /// Metrics and access log, at the end of the request.
    pub fn close_books(&mut self, session: &Session, error: Option<&Error>, gateway: &Gateway) {
        let (status, outcome) = self.outcome(error);
        if let Some(abort) = self.abort.take().filter(|_| outcome == "client_gone") {
            abort.cancel();
        }
        let total = self.started.elapsed();
        let label = status_label(status);
        match &self.cluster {
            Some(cluster) => cluster.metrics.answered(label),
            None => gateway.metrics.requests.with_label_values(&["", label]).inc(),
        }
        let first_token = self.observer.first_token.map(|at| at.duration_since(self.started));
        if let (Some(metrics), Some(first_token)) = (self.backend_metrics(), first_token) {
            metrics.first_token_seconds.observe(first_token.as_secs_f64());
        }
        let usage = self.observer.usage();
        self.learn(usage.as_ref());
        if let Some(cluster) = &self.cluster {
            if let Some((hints, peer)) = cluster.hints.as_ref().zip(self.peer) {
                hints.metrics.hint(peer.hint_name());
            }
            cluster.metrics.request_seconds.observe(total.as_secs_f64());
            if let Some(usage) = &usage {
                cluster.metrics.prompt_tokens.inc_by(usage.prompt_tokens.unwrap_or_default());
                cluster.metrics.completion_tokens.inc_by(usage.completion_tokens.unwrap_or_default());
                cluster.metrics.cached_tokens.inc_by(usage.cached_tokens().unwrap_or_default());
            }
        }
        if !gateway.access_log.is_on() {
            return;
        }
        let request = session.req_header();
        let prefix = Some(&self.demand).filter(|demand| demand.block_tokens > 0);
        let blocks = gateway.pseudonyms.as_ref().zip(prefix).map(|(names, prefix)| names.of(&prefix.keys));
        let backends = self.cluster.as_ref().map(|cluster| cluster.fleet.backends());
        gateway.access_log.write(&Entry {
            time: SystemTime::now(),
            request_id: self.id_text(),
            client: self.client.as_ref().map(Address::text),
            protocol: protocol(request.version),
            method: request.method.as_str(),
            path: request.uri.path(),
            status,
            outcome,
            cluster: self.cluster.as_ref().map(|cluster| cluster.name()),
            model: self.prompt.model.as_deref(),
            backend: backends.zip(self.peer).and_then(|(all, peer)| Some(all.get(peer.index)?.id.as_str())),
            reason: self.peer.map(|peer| peer.reason.name()),
            hint: self.peer.map(|peer| peer.hint_name()).filter(|_| self.hint.why != Some(Why::Off)),
            matched_tokens: self.matched_tokens(),
            tries: self.tries,
            retried: &self.retried,
            body_bytes: self.body_bytes,
            answer_bytes: session.as_downstream().body_bytes_sent() + self.chunk_bytes,
            body_ms: Milliseconds(self.body_time),
            first_token_ms: first_token.map(Milliseconds),
            total_ms: Milliseconds(total),
            prompt_tokens: usage.and_then(|usage| usage.prompt_tokens),
            cached_tokens: usage.and_then(|usage| usage.cached_tokens()),
            completion_tokens: usage.and_then(|usage| usage.completion_tokens),
            prefix_tokens: prefix.map(|prefix| prefix.tokens),
            block_tokens: prefix.map(|prefix| prefix.block_tokens),
            block_keys: blocks.as_deref(),
        });
    }

    /// Status and outcome as they are counted and logged.
    fn outcome(&self, error: Option<&Error>) -> (u16, &'static str) {
        let gone = error.is_some_and(|error| *error.esource() == ErrorSource::Downstream);
        if let Some(reject) = &self.rejected {
            return (reject.status.as_u16(), reject.reason);
        }
        match self.observer.status {
            Some(status) if error.is_none() => (status, "complete"),
            Some(status) if gone => (status, "client_gone"),
            Some(status) if self.missed.is_some() => (status, "deadline"),
            Some(status) => (status, "backend_broke_off"),
            None => (CLIENT_GONE, "client_gone"),
        }
    }

    /// What was generated takes room, and what the engine reported tells how far what was believed is true.
    fn learn(&self, usage: Option<&Usage>) {
        let Some((cluster, candidate)) = self.cluster.as_ref().zip(self.candidate) else { return };
        let count = |tokens: u64| usize::try_from(tokens).unwrap_or(usize::MAX);
        let weighs_caches = cluster.rules.policy.weighs_caches();
        if weighs_caches && self.observer.first_token.is_some() {
            cluster.blocks.spend(candidate.index, count(self.observer.generated_tokens()));
        }
        let Some(usage) = usage else { return };
        // Token ids say nothing of how many bytes of a text make a token.
        let prefix = self.prompt.prefix.as_ref().filter(|prefix| prefix.tokens.is_none());
        if let Some((prefix, tokens)) = prefix.zip(usage.prompt_tokens) {
            let model = self.prompt.model.as_deref().unwrap_or_default();
            cluster.ratios.learn(model, prefix.bytes, count(tokens));
        }
        let Some(actual) = usage.cached_tokens() else { return };
        if weighs_caches || candidate.said.lmcache.is_some() {
            cluster.routing.reported_cached_tokens.inc_by(actual);
        }
        for (source, predicted) in candidate.said.by_source() {
            cluster.trust.learn(candidate.index, source, predicted, count(actual));
            cluster.routing.predicted_cached_tokens[source as usize].inc_by(predicted as u64);
        }
    }
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_2 => "HTTP/2",
        Version::HTTP_11 => "HTTP/1.1",
        _ => "HTTP/1.0",
    }
}

/// Statuses as labels: the usual ones by number, so that a backend cannot invent series.
pub(super) fn status_label(status: u16) -> &'static str {
    const KNOWN: [(u16, &str); 26] = [
        (200, "200"),
        (201, "201"),
        (202, "202"),
        (204, "204"),
        (206, "206"),
        (301, "301"),
        (302, "302"),
        (304, "304"),
        (307, "307"),
        (400, "400"),
        (401, "401"),
        (403, "403"),
        (404, "404"),
        (405, "405"),
        (408, "408"),
        (409, "409"),
        (413, "413"),
        (422, "422"),
        (429, "429"),
        (431, "431"),
        (499, "499"),
        (500, "500"),
        (501, "501"),
        (502, "502"),
        (503, "503"),
        (504, "504"),
    ];
    KNOWN.iter().find(|(code, _)| *code == status).map_or_else(
        || match status / 100 {
            2 => "2xx",
            3 => "3xx",
            4 => "4xx",
            5 => "5xx",
            _ => "other",
        },
        |(_, label)| label,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_of_statuses_are_bounded() {
        assert_eq!((status_label(503), status_label(418), status_label(999)), ("503", "4xx", "other"));
    }
}
