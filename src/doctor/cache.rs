//! What a cluster with `kvcache` needs besides its engines: a tokenizer that agrees with them, and an LMCache that has
//! their prompts under their names.
//!
//! Called by `doctor`. Bounded by the configured timeouts, and by the patience for LMCache to learn of a prompt: engines
//! tell it in the background.

use super::engine::Probe;
use super::finding::Finding;
use crate::clients::breaker::Breaker;
use crate::clients::call::Reason;
use crate::clients::endpoint;
use crate::clients::lmcache::{Lmcache, Placement};
use crate::clients::vllm::{self, Tokenizer, Tokens, prompt_form};
use crate::config::{Backend, CircuitBreaker, Cluster, LmcacheApi};
use futures::future::join_all;
use prometheus::{IntCounterVec, Opts};
use reqwest::Client;
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Tokens in a chunk of LMCache, unless it is told otherwise.
const CHUNK_TOKENS: usize = 256;
/// What a probe should have: two chunks, and some more.
const PROBE_TOKENS: usize = 2 * CHUNK_TOKENS + CHUNK_TOKENS / 2;
const SAMPLE_WORDS: usize = 100;
/// From one look for a prompt to the next.
const LOOK_PERIOD: Duration = Duration::from_millis(200);
const STATS_BYTES_MAX: usize = 1024 * 1024;

/// The tokenizer and LMCache of a cluster.
pub(super) struct Cache<'a> {
    cluster: &'a Cluster,
    model: &'a str,
    tokenizer: Tokenizer,
    lmcache: Lmcache,
    client: Client,
    timeout: Duration,
}

impl<'a> Cache<'a> {
    pub(super) fn new(cluster: &'a Cluster, model: &'a str, timeout: Duration) -> Result<Self, Finding> {
        let kvcache = &cluster.kvcache;
        let made = || {
            let is_tokenizer = |backend: &&Backend| {
                kvcache.tokenizer().is_some_and(|url| url.ends_with(&format!("://{}", backend.address)))
            };
            let key = cluster.backends.iter().find(is_tokenizer).and_then(|backend| backend.api_key.as_ref());
            Ok::<_, Box<dyn std::error::Error>>(Self {
                cluster,
                model,
                tokenizer: Tokenizer::new(kvcache, key, breaker(&cluster.name)?)?,
                lmcache: Lmcache::new(kvcache, breaker(&cluster.name)?)?,
                client: vllm::client(timeout)?,
                timeout,
            })
        };
        made().map_err(|error| {
            Finding::broken(&cluster.name, "kvcache", error.to_string(), "TLS cannot be set up on this host")
        })
    }

    /// How many words are enough for a probe.
    pub(super) async fn words_of_probe(&self) -> Result<(usize, Finding), Finding> {
        let tokens = self.tokenize(&super::prompt(0, SAMPLE_WORDS)).await?.len().max(1);
        let url = self.cluster.kvcache.tokenizer().unwrap_or_default();
        let well =
            Finding::well(&self.cluster.name, "tokenizer", format!("{url} tells the tokens of a prompt"));
        Ok(((PROBE_TOKENS * SAMPLE_WORDS).div_ceil(tokens).clamp(2, PROBE_TOKENS), well))
    }

    async fn tokenize(&self, prompt: &str) -> Result<Tokens, Finding> {
        let body = prompt_form(self.model, prompt);
        self.tokenizer.tokenize(body, None, Instant::now() + self.timeout).await.map_err(|error| {
            let remedy = match error.reason {
                Reason::Status(401 | 403) => {
                    "it asks for a key: set the `api_key` of the backend at that address"
                }
                Reason::Status(404) => {
                    "`vllm_endpoint` must be a vLLM engine that has /tokenize and serves the model"
                }
                Reason::Status(_) | Reason::Undecodable(_) => {
                    "`vllm_endpoint` must be a vLLM engine of this model"
                }
                _ => "start the engine at `vllm_endpoint`, or correct it",
            };
            let url = self.cluster.kvcache.tokenizer().unwrap_or_default();
            self.broken("tokenizer", format!("{url} does not tokenize, {}", error.reason), remedy)
        })
    }

    /// What can be said of LMCache and of the prompts that engines have computed; without tokens of those only that it
    /// answers.
    pub(super) async fn examine(
        &self,
        probes: &[Probe<'_>],
        tokenizes: bool,
        patience: Duration,
    ) -> Vec<Finding> {
        let mut findings = Vec::new();
        let mut known = Vec::new();
        if tokenizes {
            let tokens = join_all(probes.iter().map(|probe| self.tokenize(&probe.prompt))).await;
            for (probe, tokens) in probes.iter().zip(tokens) {
                match tokens {
                    Ok(tokens) => known.push((probe, tokens)),
                    Err(finding) => findings.push(finding),
                }
            }
        }
        let differs = |(probe, tokens): &(&Probe<'_>, Tokens)| probe.tokens != tokens.len() as u64;
        let others: Vec<_> =
            known.iter().filter(|it| differs(it)).map(|(probe, _)| probe.backend.id.as_str()).collect();
        if !others.is_empty() {
            findings.push(self.broken(
                "tokenizer",
                format!("counts other tokens than {}", others.join(", ")),
                "`vllm_endpoint` must serve the same model with the same tokenizer: nothing is found by other tokens",
            ));
        }
        known.retain(|it| !differs(it));
        match self.check_lmcache().await {
            Ok(well) => findings.push(well),
            Err(broken) => {
                findings.push(broken);
                return findings;
            }
        }
        findings.extend(self.check_placements(&known, patience).await);
        findings
    }

    async fn check_lmcache(&self) -> Result<Finding, Finding> {
        let url = self.cluster.kvcache.lmcache().unwrap_or_default();
        let tokens: Vec<u32> = (0..).take(CHUNK_TOKENS).collect();
        match self.look_up(&tokens).await {
            Ok(_) => Ok(Finding::well(&self.cluster.name, "lmcache", format!("{url} answers lookups"))),
            Err(reason) => {
                let remedy = match (reason, self.cluster.kvcache.lmcache_api) {
                    (Reason::Status(404 | 405), LmcacheApi::Controller) => {
                        "it is no LMCache controller: correct `lmcache_endpoint`, or set `lmcache_api: coordinator`"
                    }
                    (Reason::Status(404 | 405), LmcacheApi::Coordinator) => {
                        "it is no LMCache coordinator: correct `lmcache_endpoint`, or set `lmcache_api: controller`"
                    }
                    (Reason::Status(_) | Reason::Undecodable(_), _) => {
                        "is `lmcache_endpoint` an LMCache controller or coordinator? see its log"
                    }
                    _ => "start LMCache, or correct `lmcache_endpoint`",
                };
                Err(self.broken("lmcache", format!("{url} answers no lookup, {reason}"), remedy))
            }
        }
    }

    async fn look_up(&self, tokens: &[u32]) -> Result<Vec<Placement>, Reason> {
        let deadline = Instant::now() + self.timeout;
        self.lmcache.look_up(self.model, None, tokens, deadline).await.map_err(|error| error.reason)
    }

    /// Looks for a prompt until LMCache knows of it or patience is at its end.
    async fn wait_for(&self, tokens: &[u32], until: Instant) -> Vec<Placement> {
        loop {
            let found = self.look_up(tokens).await.unwrap_or_default();
            if !found.is_empty() || Instant::now() >= until {
                return found;
            }
            sleep(LOOK_PERIOD).await;
        }
    }

    /// Whether the prompt that each engine has computed is found, and under that engine's name.
    async fn check_placements(&self, known: &[(&Probe<'_>, Tokens)], patience: Duration) -> Vec<Finding> {
        let until = Instant::now() + patience;
        let found = join_all(known.iter().map(|(_, tokens)| self.wait_for(tokens, until))).await;
        if !known.is_empty() && found.iter().all(Vec::is_empty) {
            return vec![self.nothing_found(known.len()).await];
        }
        let placed = known.iter().zip(found);
        placed.map(|((probe, tokens), found)| self.judge(probe.backend, tokens.len(), &found)).collect()
    }

    /// Whether LMCache has an engine's prompt under its name.
    fn judge(&self, backend: &Backend, tokens: usize, found: &[Placement]) -> Finding {
        if let Some(own) = found.iter().find(|it| it.instance == name(backend)) {
            let fact = format!("is {} for LMCache, with {} of {tokens} tokens", own.instance, own.tokens);
            return Finding::well(&self.cluster.name, &backend.id, fact);
        }
        let Some(most) = found.iter().max_by_key(|it| it.tokens) else {
            return self.broken(
                &backend.id,
                "computes prompts that LMCache does not learn of",
                "start it with LMCache (--kv-transfer-config), the controller's address and the others' PYTHONHASHSEED",
            );
        };
        let instance = shown(&most.instance);
        match self.cluster.backends.iter().find(|other| name(other) == most.instance) {
            Some(other) => self.broken(
                &backend.id,
                format!("is {instance} for LMCache, which is the name of {}", other.id),
                "the engines' names in LMCache are exchanged, or the same: give each its own, and each backend its \
                 engine's as `lmcache_instance_id`",
            ),
            None => self.broken(
                &backend.id,
                format!("is {instance} for LMCache, and no backend has that name"),
                "set its `lmcache_instance_id` to that name",
            ),
        }
    }

    /// Why no prompt of any engine is found, as far as LMCache's own counts tell.
    async fn nothing_found(&self, probes: usize) -> Finding {
        let remedy = match self.counts().await {
            Some((0, _)) => {
                "no engine has registered with it: engines need LMCache (--kv-transfer-config) with `enable_controller` \
                 and its address"
            }
            Some((_, 0)) => {
                "engines have registered and stored nothing: is their LMCache chunk larger than the probe, or has it no \
                 room?"
            }
            _ => {
                "its chunks have other keys than the engines': PYTHONHASHSEED must be the same everywhere, vLLM importable \
                 where it runs, and the chunk size the same"
            }
        };
        let fact = format!("finds none of {probes} prompts that engines have just computed");
        self.broken("lmcache", fact, remedy)
    }

    /// The instances that LMCache knows, and the chunks.
    async fn counts(&self) -> Option<(u64, u64)> {
        let base = self.cluster.kvcache.lmcache()?;
        let get = async |path: &str| {
            let request = self.client.get(format!("{base}{path}"));
            let answer = endpoint::answer("stats", request, STATS_BYTES_MAX).await.ok()?;
            serde_json::from_slice::<Value>(&answer).ok()
        };
        match self.cluster.kvcache.lmcache_api {
            LmcacheApi::Controller => {
                let stats = get("/controller/key-stats").await?;
                Some((stats["total_instance_count"].as_u64()?, stats["total_key_count"].as_u64()?))
            }
            LmcacheApi::Coordinator => {
                let instances = get("/instances").await?["instances"].as_array()?.len() as u64;
                Some((instances, get("/directory/stats").await?["num_keys"].as_u64()?))
            }
        }
    }

    fn broken(&self, subject: &str, fact: impl Into<String>, remedy: impl Into<String>) -> Finding {
        Finding::broken(&self.cluster.name, subject, fact, remedy)
    }
}

/// The name by which LMCache should know a backend.
fn name(backend: &Backend) -> &str {
    backend.lmcache_instance_id.as_deref().unwrap_or(&backend.id)
}

/// A name of another system, without what could steer a terminal.
fn shown(name: &str) -> String {
    name.chars().map(|character| if character.is_control() { '?' } else { character }).collect()
}

/// A breaker that does not open: every call of an examination is to be made.
fn breaker(cluster: &str) -> prometheus::Result<Arc<Breaker>> {
    let settings = CircuitBreaker { failure_threshold: usize::MAX, ..CircuitBreaker::default() };
    let transitions = IntCounterVec::new(Opts::new("doctor", "not exported"), &["cluster", "called", "to"])?;
    Ok(Arc::new(Breaker::new("doctor", cluster, &settings, transitions)))
}
