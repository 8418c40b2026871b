//! Which path answers what. Called by the server for every request.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use futures::future::BoxFuture;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::watch;

use super::answers;
use super::ask::Ask;
use super::metrics::{self, Gauges, Totals};
use super::reply::{Dialect, mix};
use super::simulation::Simulation;
use super::{EngineOptions, Load, Mode, SleepState, tokenize};
use crate::server::{Answer, Request, Service, Shared, detail, quoted};

/// Paths that generate, whose requests count as running in canned mode.
const GENERATING: [&str; 4] = ["/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages"];

/// The engine behind the server.
pub(super) struct Core {
    pub(super) options: EngineOptions,
    shared: Arc<Shared>,
    healthy: AtomicBool,
    sleep: watch::Sender<SleepState>,
    pretended: Mutex<Option<Load>>,
    pub(super) totals: Arc<Mutex<Totals>>,
    pub(super) simulation: Option<Arc<Simulation>>,
    requests: AtomicU64,
}

pub(super) fn now_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

impl Core {
    pub(super) fn new(options: EngineOptions, shared: Arc<Shared>) -> Self {
        let simulation = match &options.mode {
            Mode::Canned => None,
            Mode::Simulated(simulated) => Some(Arc::new(Simulation::new(&options.id, simulated.clone()))),
        };
        Self {
            simulation,
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
    pub(super) fn fresh_id(&self) -> String {
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
            "/health" | "/ping" => {
                Answer::empty(if self.healthy.load(Ordering::Relaxed) { 200 } else { 503 })
            }
            "/version" => Answer::json(200, r#"{"version":"0.32.0"}"#),
            "/load" => Answer::json(200, format!(r#"{{"server_load":{}}}"#, self.in_flight())),
            "/kv_event_sources" => Answer::json(200, "{}"),
            "/metrics" => {
                let page = metrics::render(&self.options.model, &self.gauges());
                Answer::text(200, "text/plain; version=1.0.0; charset=utf-8", page)
            }
            "/stats" => self.stats(),
            "/reset" => {
                self.shared.books.forget();
                *self.totals.lock() = Totals::default();
                if let Some(simulation) = &self.simulation {
                    simulation.forget();
                }
                Answer::json(200, "{}")
            }
            _ => answers::scale_out_disabled(),
        }
    }

    fn stats(&self) -> Answer {
        let stats = self.shared.books.stats();
        let calls = [
            ("tokenize_calls", "/tokenize"),
            ("chat_calls", "/v1/chat/completions"),
            ("completion_calls", "/v1/completions"),
        ];
        let id = ("engine_id".to_owned(), Value::from(self.options.id.as_str()));
        let calls = calls.map(|(name, path)| (name.to_owned(), stats.path(path).received.into()));
        stats.page(calls.into_iter().chain([id]).collect())
    }

    /// Whether the request may use `/v1`.
    fn authorized(&self, request: &Request) -> bool {
        let Some(key) = &self.options.api_key else {
            return true;
        };
        let given = request.head.header("authorization").and_then(|value| value.strip_prefix("Bearer "));
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
            prefix_caching: true,
            num_gpu_blocks: 31_250,
            totals,
            ..Gauges::default()
        };
        if let Some(simulation) = &self.simulation {
            let counts = simulation.counts();
            gauges.running = counts.running.into();
            gauges.waiting = counts.waiting.into();
            gauges.kv_cache_usage = simulation.usage();
            gauges.prefix_caching = simulation.prefix_caching();
            gauges.block_size = simulation.block_size();
            gauges.num_gpu_blocks = simulation.blocks();
            gauges.totals.prefix_queries = counts.queries;
            gauges.totals.prefix_hits = counts.hits;
        }
        if let Some(load) = *self.pretended.lock() {
            gauges.running = load.running.into();
            gauges.waiting = load.waiting.into();
            gauges.kv_cache_usage = load.kv_cache_usage;
        }
        gauges
    }

    /// Waits until the engine is awake.
    pub(super) async fn awake(&self) {
        if *self.sleep.borrow() != SleepState::Awake {
            // The sender is in `self`, so it cannot be gone.
            drop(self.sleep.subscribe().wait_for(|state| *state == SleepState::Awake).await);
        }
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
        let (id, model, tokens) = (self.fresh_id(), quoted(&self.options.model), rough_tokens(&request.body));
        Answer::json(
            200,
            format!(
                r#"{{"id":"rerank-{id}","model":{model},"usage":{{"prompt_tokens":{tokens},"total_tokens":{tokens}}},"results":[{}]}}"#,
                results.join(",")
            ),
        )
    }

    /// How many tokens the answer has, or why there is none.
    pub(super) fn check(&self, ask: &Ask) -> Result<usize, Answer> {
        self.options.check_model(ask.model.as_deref())?;
        match ask.max_tokens {
            Some(tokens) if tokens > self.options.max_model_len => {
                Err(answers::too_many_tokens(tokens, &self.options))
            }
            Some(tokens) => Ok(usize::try_from(tokens).unwrap_or(usize::MAX).max(1)),
            None => Ok(self.options.sse.events.max(1)),
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
            if self.options.served_by { answer.with("x-served-by", self.options.id.clone()) } else { answer }
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
