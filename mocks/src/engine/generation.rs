//! How an answer is generated: what it says is decided by the request, how long it takes by the mode.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt, unfold};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::time::{self, Instant, Interval, MissedTickBehavior};

use super::answers::{Usage, bad_request};
use super::ask::{Ask, Body};
use super::metrics::Totals;
use super::reply::{Dialect, Reply, Words, mix};
use super::service::{Core, now_seconds};
use super::simulation::{Run, Simulation};
use super::{tokenize, tokenizer};
use crate::server::{Answer, Request, quoted};

/// Tokens of the prompts that the recorded answers belong to.
const RECORDED_PROMPT: [u32; 4] = [0, 261, 329, 347];
const RECORDED_CHAT_TOKENS: usize = 5;

impl Core {
    /// Answers a request that generates text.
    pub(super) async fn generate(&self, request: &Request, dialect: Dialect) -> Answer {
        self.awake().await;
        let made = match &self.simulation {
            None => self.canned(request, dialect),
            Some(simulation) => self.simulated(request, dialect, simulation),
        };
        match made {
            Ok((reply, pace, stream)) => self.give(reply, pace, stream).await,
            Err(refusal) => refusal,
        }
    }

    fn canned(&self, request: &Request, dialect: Dialect) -> Result<(Reply, Pace, bool), Answer> {
        let ask = Ask::scan(&request.body);
        let prompt = match dialect {
            Dialect::Completions => RECORDED_PROMPT.len(),
            _ => RECORDED_CHAT_TOKENS,
        };
        let usage = Usage { prompt, completion: self.check(&ask)?, cached: None };
        let prompt_token_ids = ask.return_token_ids.then(|| RECORDED_PROMPT.to_vec());
        let reply = self.reply(request, dialect, &ask, usage, prompt_token_ids, Words::Recorded);
        Ok((reply, Pace::canned(self.options.sse.gap), ask.stream))
    }

    fn simulated(
        &self,
        request: &Request,
        dialect: Dialect,
        simulation: &Arc<Simulation>,
    ) -> Result<(Reply, Pace, bool), Answer> {
        let body = Value::Object(tokenize::object(request)?);
        let body: Body =
            serde_json::from_value(body).map_err(|error| bad_request(&error.to_string(), &Value::Null))?;
        let ask = Ask::of(&body);
        let prompt = prompt_tokens(&body)
            .ok_or_else(|| bad_request("Either prompt, messages or input must be given.", &Value::Null))?;
        let usage = Usage { prompt: prompt.len(), completion: self.check(&ask)?, cached: None };
        let seed = prompt.iter().fold(self.options.seed, |seed, token| mix(seed ^ u64::from(*token)));
        let prompt_token_ids = ask.return_token_ids.then(|| prompt.clone());
        let reply = self.reply(request, dialect, &ask, usage, prompt_token_ids, Words::Seeded(seed));
        let salt = body.cache_salt.unwrap_or_default();
        Ok((
            reply,
            Pace::Simulated { simulation: Arc::clone(simulation), prompt, salt, run: None },
            ask.stream,
        ))
    }

    fn reply(
        &self,
        request: &Request,
        dialect: Dialect,
        ask: &Ask,
        usage: Usage,
        prompt_token_ids: Option<Vec<u32>>,
        words: Words,
    ) -> Reply {
        let escaped = |id| Some(quoted(id).strip_prefix('"')?.strip_suffix('"')?.to_owned());
        let own = request.head.header("x-request-id").and_then(escaped);
        let id = own.unwrap_or_else(|| self.fresh_id());
        Reply {
            dialect,
            id: format!("{}{id}", dialect.id_prefix()),
            created: now_seconds(),
            model: quoted(&self.options.model),
            usage,
            include_usage: ask.include_usage,
            prompt_token_ids,
            words,
            padding_bytes: self.options.sse.event_padding_bytes,
            served_by: self.options.served_by_in_body.then(|| self.options.id.clone()),
        }
    }

    async fn give(&self, reply: Reply, pace: Pace, stream: bool) -> Answer {
        let tally = Tally { totals: Arc::clone(&self.totals), usage: reply.usage, finished: false };
        let mut writing = Writing {
            reply,
            pace,
            tally,
            report_cached: self.options.cached_tokens,
            ready: VecDeque::new(),
            next: 0,
        };
        if stream {
            return Answer::events(writing.events());
        }
        writing.begin().await;
        let count = writing.reply.usage.completion;
        if let Pace::Simulated { run: Some(run), .. } = &mut writing.pace {
            run.tokens(count - 1).await;
        }
        writing.tally.finished = true;
        Answer::json(200, writing.reply.whole())
    }
}

/// The tokens of whatever the body carries as its prompt.
fn prompt_tokens(body: &Body) -> Option<Vec<u32>> {
    if let Some(messages) = &body.messages {
        return Some(tokenizer::chat(messages, true));
    }
    match body.prompt.as_ref().or(body.input.as_ref())? {
        Value::String(text) => Some(tokenizer::prompt(text, true)),
        Value::Array(items) if items.iter().any(Value::is_object) => Some(tokenizer::chat(items, true)),
        Value::Array(items) => Some(items.iter().flat_map(item_tokens).collect()),
        _ => None,
    }
}

/// An item of a prompt that is a list: a token, a text, or tokens.
fn item_tokens(item: &Value) -> Vec<u32> {
    match item {
        Value::String(text) => tokenizer::prompt(text, true),
        Value::Array(items) => items.iter().flat_map(item_tokens).collect(),
        other => other.as_u64().and_then(|id| u32::try_from(id).ok()).into_iter().collect(),
    }
}

/// The time an answer takes.
enum Pace {
    /// Nothing but a gap between the tokens of a stream, if any.
    Canned(Option<Interval>),
    /// What the simulation makes of the prompt.
    Simulated { simulation: Arc<Simulation>, prompt: Vec<u32>, salt: String, run: Option<Run> },
}

impl Pace {
    /// Gaps from now on: tokens come on time in the mean, though a timer rings up to a millisecond late.
    fn canned(gap: Duration) -> Self {
        Self::Canned((!gap.is_zero()).then(|| {
            let mut gaps = time::interval_at(Instant::now() + gap, gap);
            gaps.set_missed_tick_behavior(MissedTickBehavior::Delay);
            gaps
        }))
    }
}

/// Counts an answer as finished or, when it is dropped before, as aborted.
struct Tally {
    totals: Arc<Mutex<Totals>>,
    usage: Usage,
    finished: bool,
}

impl Drop for Tally {
    fn drop(&mut self) {
        let mut totals = self.totals.lock();
        totals.prompt_tokens += self.usage.prompt as u64;
        if self.finished {
            totals.finished += 1;
            totals.generation_tokens += self.usage.completion as u64;
        } else {
            totals.aborted += 1;
        }
    }
}

/// An answer under way.
struct Writing {
    reply: Reply,
    pace: Pace,
    tally: Tally,
    report_cached: bool,
    ready: VecDeque<String>,
    /// The token that comes next.
    next: usize,
}

impl Writing {
    /// Waits for the first token.
    async fn begin(&mut self) {
        let mut cached = 0;
        if let Pace::Simulated { simulation, prompt, salt, run } = &mut self.pace {
            let begun = simulation.run(prompt, salt, self.reply.usage.completion).await;
            cached = begun.cached;
            *run = Some(begun);
        }
        self.reply.usage.cached = self.report_cached.then_some(cached);
    }

    /// Waits for the next token.
    async fn proceed(&mut self) {
        match &mut self.pace {
            Pace::Canned(Some(gaps)) => drop(gaps.tick().await),
            Pace::Simulated { run: Some(run), .. } => run.tokens(1).await,
            Pace::Canned(None) | Pace::Simulated { run: None, .. } => {}
        }
    }

    /// The next event; each is made when the connection has room for it.
    async fn event(&mut self) -> Option<String> {
        let count = self.reply.usage.completion;
        if self.ready.is_empty() {
            if self.next == 0 {
                self.begin().await;
                self.ready = self.reply.prologue().into();
            } else if self.next < count {
                self.proceed().await;
            }
            if self.next < count {
                self.ready.push_back(self.reply.token(self.next));
            } else if self.next == count {
                self.tally.finished = true;
                self.ready = self.reply.epilogue().into();
            }
            self.next += 1;
        }
        self.ready.pop_front()
    }

    fn events(self) -> BoxStream<'static, Bytes> {
        unfold(self, async |mut writing| Some((Bytes::from(writing.event().await?), writing))).boxed()
    }
}
