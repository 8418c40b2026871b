//! The closed loop: so many requests at a time, streamed, each timed to its first token and to its end.
//!
//! Called by `compare`. An answer is read to its end and only its usage is kept; more than a MiB of it is a failure.

use super::scrape::Counters;
use super::{CompareError, Plan};
use futures::StreamExt;
use reqwest::{Client, RequestBuilder, Response};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::Instant;

const ANSWER_BYTES_MAX: usize = 1024 * 1024;

/// What became of a request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answer {
    pub(super) total: Duration,
    pub(super) first_token: Duration,
    pub(super) prompt_tokens: Option<u64>,
    /// Where the engine reports them.
    pub(super) cached_tokens: Option<u64>,
}

/// What became of many.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) sent: usize,
    pub(super) answers: Vec<Answer>,
    pub(super) first_failure: Option<String>,
}

/// Sends the requests of a plan.
pub(super) struct Sender<'a> {
    plan: &'a Plan,
    client: Client,
    model: String,
}

/// An error without an address, which the caller names where it helps, and its cause, which says more than it does.
fn told(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut cause: &dyn std::error::Error = &error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    if error.is_timeout() { "no answer in time".to_owned() } else { cause.to_string() }
}

impl<'a> Sender<'a> {
    /// A sender for the plan's model, which the gateway is asked for where the plan names none.
    pub(super) async fn new(plan: &'a Plan) -> Result<Self, CompareError> {
        let client = Client::builder().no_proxy().timeout(plan.timeout).build();
        let client = client.map_err(|error| CompareError::Client(told(error)))?;
        let mut sender = Self { plan, client, model: String::new() };
        sender.model = match &plan.model {
            Some(model) => model.clone(),
            None => sender.first_model().await?,
        };
        Ok(sender)
    }

    pub(super) fn model(&self) -> &str {
        &self.model
    }

    async fn first_model(&self) -> Result<String, CompareError> {
        let url = &self.plan.url;
        let answer = self.authorized(self.client.get(format!("{url}/v1/models"))).send().await;
        let unreachable = |error| CompareError::Unreachable { url: url.clone(), reason: told(error) };
        let text = answer.map_err(unreachable)?.text().await.map_err(unreachable)?;
        let models: Value = serde_json::from_str(&text).unwrap_or_default();
        let first = models["data"][0]["id"].as_str();
        first.map(str::to_owned).ok_or_else(|| CompareError::NoModel { url: url.clone() })
    }

    fn authorized(&self, request: RequestBuilder) -> RequestBuilder {
        match &self.plan.api_key {
            Some(key) => request.bearer_auth(key.expose()),
            None => request,
        }
    }

    /// The gateway's counters, or why they cannot be seen.
    pub(super) async fn read_counters(&self) -> Result<Counters, String> {
        let Some(admin) = &self.plan.admin else {
            return Err("the configuration has no admin listener; --admin names one".to_owned());
        };
        let mut request = self.client.get(format!("{admin}/metrics"));
        if let Some(token) = &self.plan.admin_token {
            request = request.bearer_auth(token.expose());
        }
        let refused = |reason| format!("{admin}/metrics: {reason}");
        let answer = request.send().await.map_err(|error| refused(told(error)))?;
        if !answer.status().is_success() {
            return Err(refused(format!("status {}", answer.status().as_u16())));
        }
        let text = answer.text().await.map_err(|error| refused(told(error)))?;
        Ok(Counters::parse(&text))
    }

    /// Sends all, so many at a time.
    pub(super) async fn send_all(&self, prompts: &[String]) -> Result<Tally, CompareError> {
        let mut tally = Tally { sent: prompts.len(), ..Tally::default() };
        let sending = futures::stream::iter(prompts).map(|prompt| self.send(prompt));
        let mut answers = sending.buffer_unordered(self.plan.concurrency);
        while let Some(answer) = answers.next().await {
            match answer {
                Ok(answer) => tally.answers.push(answer),
                Err(failure) => _ = tally.first_failure.get_or_insert(failure),
            }
        }
        match &tally.first_failure {
            Some(reason) if tally.answers.is_empty() => Err(CompareError::AllFailed {
                url: format!("{}{}", self.plan.url, self.plan.path()),
                requests: tally.sent,
                reason: reason.clone(),
            }),
            _ => Ok(tally),
        }
    }

    async fn send(&self, prompt: &str) -> Result<Answer, String> {
        let mut body = json!({
            "model": self.model,
            "max_tokens": self.plan.max_tokens,
            "stream": true,
            "stream_options": {"include_usage": true},
        });
        if self.plan.chat {
            body["messages"] = json!([{"role": "user", "content": prompt}]);
        } else {
            body["prompt"] = prompt.into();
        }
        let url = format!("{}{}", self.plan.url, self.plan.path());
        let request = self.authorized(self.client.post(url).json(&body));
        let start = Instant::now();
        let answer = request.send().await.map_err(told)?;
        match answer.status().as_u16() {
            200 => read(answer, start).await,
            status => Err(format!("status {status}")),
        }
    }
}

/// Reads a stream to its end.
async fn read(mut answer: Response, start: Instant) -> Result<Answer, String> {
    let (mut text, mut first_token) = (Vec::new(), None);
    while let Some(chunk) = answer.chunk().await.map_err(told)? {
        first_token.get_or_insert_with(|| start.elapsed());
        text.extend_from_slice(&chunk);
        if text.len() > ANSWER_BYTES_MAX {
            return Err(format!("an answer is longer than {ANSWER_BYTES_MAX} bytes"));
        }
    }
    let total = start.elapsed();
    let text = String::from_utf8_lossy(&text);
    if !text.trim_end().ends_with("data: [DONE]") {
        return Err("a stream ended too early".to_owned());
    }
    let events = text.lines().rev().filter_map(|line| line.strip_prefix("data: "));
    let usage = events
        .filter_map(|event| Some(serde_json::from_str::<Value>(event).ok()?.get("usage")?.clone()))
        .find(Value::is_object)
        .unwrap_or_default();
    Ok(Answer {
        total,
        first_token: first_token.unwrap_or(total),
        prompt_tokens: usage["prompt_tokens"].as_u64(),
        cached_tokens: usage["prompt_tokens_details"]["cached_tokens"].as_u64(),
    })
}
