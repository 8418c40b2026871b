//! Which path answers what, and how an answer is generated. Called by the server for every request.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{BoxStream, StreamExt, unfold};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::watch;

use super::answers::{self, Usage, detail, quoted};
use super::ask::Ask;
use super::metrics::{self, Gauges, Totals};
use super::reply::{Dialect, Reply, Words, mix};
use super::{EngineOptions, Load, SleepState, tokenize};
use crate::server::{Answer, Request, Service, Shared};

/// Tokens of the prompts that the recorded answers belong to.
const RECORDED_PROMPT: [u32; 4] = [0, 261, 329, 347];
const RECORDED_CHAT_TOKENS: usize = 5;

/// Paths that generate, whose requests count as running in canned mode.
const GENERATING: [&str; 4] = [
    "/v1/completions",
    "/v1/chat/completions",
    "/v1/responses",
    "/v1/messages",
];

/// The engine behind the server.
pub(super) struct Core {
    pub(super) options: EngineOptions,
    shared: Arc<Shared>,
    healthy: AtomicBool,
    sleep: watch::Sender<SleepState>,
    pretended: Mutex<Option<Load>>,
    totals: Arc<Mutex<Totals>>,
    requests: AtomicU64,
}

fn now_seconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

impl Core {
    pub(super) fn new(options: EngineOptions, shared: Arc<Shared>) -> Self {
        Self {
            options,
            shared,
            healthy: AtomicBool::new(true),
            sleep: watch::Sender::new(SleepState::Awake),
            pretended: Mutex::default(),
            totals: Arc::default(),
            requests: AtomicU64::new(0),
        }
    }

    pub(super) fn set_health(&self, healthy: bool) {
        self.healthy.store(healthy, Ordering::Relaxed);
    }

    pub(super) fn set_sleep(&self, state: SleepState) {
        self.sleep.send_replace(state);
    }

    pub(super) fn pretend_load(&self, load: Option<Load>) {
        *self.pretended.lock() = load;
    }

    /// Sixteen hex digits, different each time.
    fn fresh_id(&self) -> String {
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        format!("{:016x}", mix(self.options.seed.wrapping_add(mix(number))))
    }

    async fn route(&self, request: &Request) -> Answer {
        let (method, path) = (request.head.method(), request.head.path());
        let Some(allowed) = allowed(path, self.options.tokenize) else {
            return detail(404, "Not Found");
        };
        if !allowed.contains(&method) {
            return detail(405, "Method Not Allowed").with("allow", allowed.join(", "));
        }
        let tokens = |answer: fn(&Request, &EngineOptions) -> Answer| answer(request, &self.options);
        match path {
            "/v1/completions" => self.generate(request, Dialect::Completions).await,
            "/v1/chat/completions" => self.generate(request, Dialect::Chat).await,
            "/v1/responses" => self.generate(request, Dialect::Responses).await,
            "/v1/messages" => self.generate(request, Dialect::Messages).await,
            "/v1/embeddings" => self.embed(request),
            "/rerank" | "/v1/rerank" | "/v2/rerank" => self.rerank(request),
            "/tokenize" => tokens(tokenize::tokenize),
            "/detokenize" => tokens(tokenize::detokenize),
            "/v1/models" => answers::models(&self.options, now_seconds(), &self.fresh_id()),
            "/health" | "/ping" => Answer::empty(if self.healthy.load(Ordering::Relaxed) {
                200
            } else {
                503
            }),
            "/version" => Answer::json(200, r#"{"version":"0.32.0"}"#),
            "/load" => Answer::json(200, format!(r#"{{"server_load":{}}}"#, self.in_flight())),
            "/kv_event_sources" => Answer::json(200, "{}"),
            "/metrics" => {
                let page = metrics::render(&self.options.model, &self.gauges());
                Answer::text(200, "text/plain; version=1.0.0; charset=utf-8", page)
            }
            "/stats" => Answer::json(
                200,
                serde_json::to_string(&self.shared.books.stats()).unwrap_or_default(),
            ),
            "/reset" => {
                self.shared.books.forget();
                *self.totals.lock() = Totals::default();
                Answer::json(200, "{}")
            }
            _ => answers::scale_out_disabled(),
        }
    }

    /// Whether the request may use `/v1`.
    fn authorized(&self, request: &Request) -> bool {
        let Some(key) = &self.options.api_key else {
            return true;
        };
        let given = request
            .head
            .header("authorization")
            .and_then(|value| value.strip_prefix("Bearer "));
        given == Some(key) || !request.head.path().starts_with("/v1")
    }

    /// Requests that are being generated.
    fn in_flight(&self) -> u64 {
        let stats = self.shared.books.stats();
        GENERATING.iter().map(|path| stats.in_flight(path)).sum()
    }

    fn gauges(&self) -> Gauges {
        let totals = *self.totals.lock();
        let mut gauges = Gauges {
            sleep: *self.sleep.borrow(),
            running: u32::try_from(self.in_flight()).unwrap_or(u32::MAX).into(),
            block_size: 16,
            num_gpu_blocks: 31_250,
            totals,
            ..Gauges::default()
        };
        if let Some(load) = *self.pretended.lock() {
            gauges.running = load.running.into();
            gauges.waiting = load.waiting.into();
            gauges.kv_cache_usage = load.kv_cache_usage;
        }
        gauges
    }

    async fn generate(&self, request: &Request, dialect: Dialect) -> Answer {
        if *self.sleep.borrow() != SleepState::Awake {
            // The sender is in `self`, so it cannot be gone.
            drop(
                self.sleep
                    .subscribe()
                    .wait_for(|state| *state == SleepState::Awake)
                    .await,
            );
        }
        self.canned(request, dialect).unwrap_or_else(|refusal| refusal)
    }

    fn canned(&self, request: &Request, dialect: Dialect) -> Result<Answer, Answer> {
        let ask = Ask::scan(&request.body);
        let count = self.check(&ask)?;
        let prompt = match dialect {
            Dialect::Completions => RECORDED_PROMPT.len(),
            _ => RECORDED_CHAT_TOKENS,
        };
        let usage = Usage {
            prompt,
            completion: count,
            cached: self.options.cached_tokens.then_some(0),
        };
        let reply = self.reply(request, dialect, &ask, usage, Words::Recorded);
        let mut tally = Tally::new(&self.totals, usage);
        if ask.stream {
            return Ok(Answer::events(events(reply, self.options.sse.gap, tally)));
        }
        tally.finish();
        Ok(Answer::json(200, reply.whole()))
    }

    fn embed(&self, request: &Request) -> Answer {
        let ask = Ask::scan(&request.body);
        if let Err(refusal) = self.options.check_model(ask.model.as_deref()) {
            return refusal;
        }
        let (id, created, model) = (self.fresh_id(), now_seconds(), quoted(&self.options.model));
        let tokens = rough_tokens(&request.body);
        Answer::json(
            200,
            format!(
                r#"{{"id":"embd-{id}","object":"list","created":{created},"model":{model},"data":[{{"index":0,"object":"embedding","embedding":[0.5,-0.5,0.5,-0.5]}}],"usage":{{"prompt_tokens":{tokens},"total_tokens":{tokens},"completion_tokens":0,"prompt_tokens_details":null}}}}"#
            ),
        )
    }

    fn rerank(&self, request: &Request) -> Answer {
        let body = match tokenize::object(request) {
            Ok(body) => body,
            Err(refusal) => return refusal,
        };
        let results: Vec<_> = body.get("documents").and_then(Value::as_array).into_iter().flatten().enumerate().map(|(index, document)| {
            format!(r#"{{"index":{index},"document":{{"text":{document},"multi_modal":null}},"relevance_score":{:?}}}"#, 1.0 / f64::from(2 + u32::try_from(index).unwrap_or(u32::MAX - 2)))
        }).collect();
        let (id, model, tokens) = (
            self.fresh_id(),
            quoted(&self.options.model),
            rough_tokens(&request.body),
        );
        Answer::json(
            200,
            format!(
                r#"{{"id":"rerank-{id}","model":{model},"usage":{{"prompt_tokens":{tokens},"total_tokens":{tokens}}},"results":[{}]}}"#,
                results.join(",")
            ),
        )
    }

    /// How many tokens the answer has, or why there is none.
    fn check(&self, ask: &Ask) -> Result<usize, Answer> {
        self.options.check_model(ask.model.as_deref())?;
        match ask.max_tokens {
            Some(tokens) if tokens > self.options.max_model_len => {
                Err(answers::too_many_tokens(tokens, &self.options))
            }
            Some(tokens) => Ok(usize::try_from(tokens).unwrap_or(usize::MAX).max(1)),
            None => Ok(self.options.sse.events.max(1)),
        }
    }

    fn reply(&self, request: &Request, dialect: Dialect, ask: &Ask, usage: Usage, words: Words) -> Reply {
        let own = request
            .head
            .header("x-request-id")
            .map(|id| quoted(id).trim_matches('"').to_owned());
        let id = own.unwrap_or_else(|| self.fresh_id());
        Reply {
            dialect,
            id: format!("{}{id}", dialect.id_prefix()),
            created: now_seconds(),
            model: quoted(&self.options.model),
            usage,
            include_usage: ask.include_usage,
            prompt_token_ids: ask.return_token_ids.then(|| RECORDED_PROMPT.to_vec()),
            words,
            padding_bytes: self.options.sse.event_padding_bytes,
            served_by: self.options.served_by_in_body.then(|| self.options.id.clone()),
        }
    }
}

/// The methods of a path; `None` where there is nothing.
fn allowed(path: &str, tokenize: bool) -> Option<&'static [&'static str]> {
    Some(match path {
        "/tokenize" | "/detokenize" if !tokenize => return None,
        "/v1/completions"
        | "/v1/chat/completions"
        | "/v1/responses"
        | "/v1/messages"
        | "/v1/embeddings"
        | "/rerank"
        | "/v1/rerank"
        | "/v2/rerank"
        | "/tokenize"
        | "/detokenize"
        | "/reset"
        | "/v1/completions/render"
        | "/v1/chat/completions/render"
        | "/inference/v1/generate" => &["POST"],
        "/v1/models" | "/health" | "/version" | "/load" | "/metrics" | "/stats" | "/kv_event_sources" => {
            &["GET"]
        }
        "/ping" => &["GET", "POST"],
        _ => return None,
    })
}

impl Service for Core {
    fn answer<'a>(&'a self, request: &'a Request) -> BoxFuture<'a, Answer> {
        Box::pin(async move {
            let answer = if self.authorized(request) {
                self.route(request).await.with("vary", "Origin")
            } else {
                Answer::json(401, r#"{"error":"Unauthorized"}"#)
            };
            if self.options.served_by {
                answer.with("x-served-by", self.options.id.clone())
            } else {
                answer
            }
        })
    }

    fn is_work(&self, method: &str, path: &str) -> bool {
        method == "POST" && !matches!(path, "/tokenize" | "/detokenize" | "/reset")
    }
}

/// Tokens of a text that nobody tokenizes for long: only its length counts.
fn rough_tokens(text: &[u8]) -> usize {
    text.len() / 4
}

/// Counts an answer as finished or, when it is dropped before, as aborted.
struct Tally {
    totals: Arc<Mutex<Totals>>,
    usage: Usage,
    finished: bool,
}

impl Tally {
    fn new(totals: &Arc<Mutex<Totals>>, usage: Usage) -> Self {
        Self {
            totals: Arc::clone(totals),
            usage,
            finished: false,
        }
    }

    fn finish(&mut self) {
        self.finished = true;
    }
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

/// The events of an answer, each made when the connection has room for it.
fn events(reply: Reply, gap: Duration, tally: Tally) -> BoxStream<'static, Bytes> {
    struct Writing {
        reply: Reply,
        gap: Duration,
        tally: Tally,
        ready: VecDeque<String>,
        next: usize,
    }
    let start = Writing {
        reply,
        gap,
        tally,
        ready: VecDeque::new(),
        next: 0,
    };
    unfold(start, async |mut writing| {
        if writing.ready.is_empty() {
            let count = writing.reply.usage.completion;
            if writing.next == 0 {
                writing.ready = writing.reply.prologue().into();
            } else if writing.next < count && !writing.gap.is_zero() {
                tokio::time::sleep(writing.gap).await;
            }
            if writing.next < count {
                writing.ready.push_back(writing.reply.token(writing.next));
            } else if writing.next == count {
                writing.tally.finish();
                writing.ready = writing.reply.epilogue().into();
            }
            writing.next += 1;
        }
        let event = writing.ready.pop_front()?;
        Some((Bytes::from(event), writing))
    })
    .boxed()
}
