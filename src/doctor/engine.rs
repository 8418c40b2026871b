//! One backend examined, from its address to its cache; each step only when the one before is well.
//!
//! Called by `doctor`. Bounded by the timeout of each answer and 4 MiB of it. It sends one prompt twice.

use super::finding::Finding;
use crate::clients::call::{CallError, Reason};
use crate::clients::{endpoint, vllm};
use crate::config::{Backend, Cluster};
use reqwest::{Certificate, Client, ClientBuilder, RequestBuilder};
use serde_json::{Value, json};
use std::time::Duration;

const ANSWER_BYTES_MAX: usize = 4 * 1024 * 1024;

/// A backend, and how it is called.
pub(super) struct Engine<'a> {
    cluster: &'a Cluster,
    backend: &'a Backend,
    base: String,
    client: Client,
}

/// A prompt that an engine has computed.
pub(super) struct Probe<'a> {
    pub(super) backend: &'a Backend,
    pub(super) prompt: String,
    /// How many tokens the engine took it for.
    pub(super) tokens: u64,
}

/// Tokens of a prompt, as an engine counts them.
struct Usage {
    prompt_tokens: u64,
    cached_tokens: Option<u64>,
}

impl<'a> Engine<'a> {
    pub(super) async fn new(
        cluster: &'a Cluster,
        backend: &'a Backend,
        timeout: Duration,
    ) -> Result<Self, Finding> {
        let wrong = |fact: String| {
            Finding::broken(&cluster.name, &backend.id, fact, "correct its `tls` or its address")
        };
        let (builder, base) = address(backend).await.map_err(wrong)?;
        let client = builder.timeout(timeout).connect_timeout(timeout).no_proxy().build();
        let client = client.map_err(|error| wrong(error.without_url().to_string()))?;
        Ok(Self { cluster, backend, base, client })
    }

    /// The models that it lists, if it does.
    pub(super) async fn models(&self) -> Result<Vec<String>, CallError> {
        let key = self.backend.api_key.as_ref();
        let answer = vllm::models(&self.client, &self.base, key, ANSWER_BYTES_MAX).await?;
        let list: Value = serde_json::from_slice(&answer).unwrap_or_default();
        let ids = list["data"].as_array().into_iter().flatten().filter_map(|model| model["id"].as_str());
        Ok(ids.map(str::to_owned).collect())
    }

    /// All that can be said, and the prompt once it has computed it.
    pub(super) async fn examine(
        &self,
        model: Option<&str>,
        prompt: String,
    ) -> (Vec<Finding>, Option<Probe<'a>>) {
        let mut findings = Vec::new();
        match self.examine_into(&mut findings, model, &prompt).await {
            Ok(tokens) => (findings, Some(Probe { backend: self.backend, prompt, tokens })),
            Err(broken) => {
                findings.push(broken);
                (findings, None)
            }
        }
    }

    async fn examine_into(
        &self,
        findings: &mut Vec<Finding>,
        model: Option<&str>,
        prompt: &str,
    ) -> Result<u64, Finding> {
        findings.push(self.check_health().await?);
        findings.extend(self.check_sleep().await?);
        let model = self.check_model(model).await?;
        findings.push(self.well(format!("serves {model}")));
        self.complete(model, prompt).await?;
        let hits = self.prefix_hits().await;
        let usage = self.complete(model, prompt).await?;
        findings.extend(self.judge(&usage, hits, self.prefix_hits().await));
        Ok(usage.prompt_tokens)
    }

    async fn check_health(&self) -> Result<Finding, Finding> {
        let path = &self.cluster.health.path;
        match self.call("health", self.client.get(format!("{}{path}", self.base))).await {
            Ok(_) => Ok(self.well(format!("GET {path} answers at {}", self.backend.address))),
            Err(error) => {
                let remedy = match error.reason {
                    Reason::Status(_) => "the engine is not well or still starting: see its log",
                    _ => "start the engine, or correct its address",
                };
                let address = &self.backend.address;
                Err(self.broken(format!("GET {path} fails at {address}, {}", error.reason), remedy))
            }
        }
    }

    /// `None` where the engine's load does not matter and cannot be read.
    async fn check_sleep(&self) -> Result<Option<Finding>, Finding> {
        match vllm::load(&self.client, &self.base, self.backend.api_key.as_ref()).await {
            Ok(load) if load.asleep => {
                Err(self.broken("sleeps, and lets requests hang", "wake it with POST /wake_up"))
            }
            Ok(_) => Ok(Some(self.well("is awake and tells its load"))),
            Err(_) if !self.cluster.kvcache.enabled => Ok(None),
            Err(error) => Ok(Some(self.broken(
                format!("GET /metrics tells no load, {}", error.reason),
                "without it decisions about pinning, compressing and evicting go by this host's load: \
                 is it a vLLM engine, without --disable-log-stats?",
            ))),
        }
    }

    async fn check_model<'m>(&self, model: Option<&'m str>) -> Result<&'m str, Finding> {
        let models = self.models().await.map_err(|error| match error.reason {
            Reason::Status(401 | 403) => self.broken("asks for a key", "set this backend's `api_key`"),
            reason => self.broken(
                format!("GET /v1/models fails, {reason}"),
                "the backend must be an engine that speaks the OpenAI API",
            ),
        })?;
        match model {
            Some(model) if models.iter().any(|own| own == model) => Ok(model),
            Some(model) => Err(self.broken(
                format!("does not serve {model}"),
                "all backends of a cluster serve the same models: start it with this one, or move it to another cluster",
            )),
            None => Err(self.broken("lists no model", "start it with one, or name one with --model")),
        }
    }

    async fn complete(&self, model: &str, prompt: &str) -> Result<Usage, Finding> {
        let body = json!({"model": model, "prompt": prompt, "max_tokens": 1, "temperature": 0});
        let request = self.client.post(format!("{}/v1/completions", self.base)).json(&body);
        let answer = self.call("completion", request).await.map_err(|error| {
            self.broken(
                format!("answers no completion of a probe prompt, {}", error.reason),
                "see the engine's log",
            )
        })?;
        let usage = &serde_json::from_slice::<Value>(&answer).unwrap_or_default()["usage"];
        Ok(Usage {
            prompt_tokens: usage["prompt_tokens"].as_u64().unwrap_or_default(),
            cached_tokens: usage["prompt_tokens_details"]["cached_tokens"].as_u64(),
        })
    }

    /// What the second of two equal requests says of the engine's cache. Engines leave `cached_tokens` out where it is
    /// zero, so that its metrics have to tell a cache that is off from one that is not told of.
    fn judge(&self, usage: &Usage, before: Option<f64>, after: Option<f64>) -> Vec<Finding> {
        let all = usage.prompt_tokens;
        let not_reported = |fact| {
            let remedy = "start vLLM with --enable-prompt-tokens-details, else nobody sees what routing by caches saves";
            self.broken(fact, remedy)
        };
        let grown = before.zip(after).map(|(before, after)| after > before);
        match (usage.cached_tokens, grown) {
            (Some(cached @ 1..), _) => {
                vec![self.well(format!("had {cached} of {all} tokens of a repeated prompt in its cache"))]
            }
            (None, Some(true)) => vec![
                self.well("had a repeated prompt in its cache"),
                not_reported("does not report cached tokens in `usage`"),
            ],
            (None, None) => vec![not_reported(
                "reports no cached tokens of a repeated prompt, and no metrics that tell whether there are any",
            )],
            (Some(_), _) | (None, Some(false)) => vec![self.broken(
                "computes a repeated prompt anew",
                "its prefix cache is off or too small: start vLLM with --enable-prefix-caching",
            )],
        }
    }

    /// Tokens that its prefix cache has had, since it was started.
    async fn prefix_hits(&self) -> Option<f64> {
        let answer = self.call("metrics", self.client.get(format!("{}/metrics", self.base))).await.ok()?;
        let text = String::from_utf8_lossy(&answer);
        let hits = text.lines().filter(|line| line.starts_with("vllm:prefix_cache_hits_total"));
        let values = hits.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok());
        values.fold(None, |sum, value| Some(sum.unwrap_or_default() + value))
    }

    async fn call(&self, operation: &'static str, request: RequestBuilder) -> Result<Vec<u8>, CallError> {
        let request = match &self.backend.api_key {
            Some(key) => request.bearer_auth(key.expose()),
            None => request,
        };
        endpoint::answer(operation, request, ANSWER_BYTES_MAX).await
    }

    fn well(&self, fact: impl Into<String>) -> Finding {
        Finding::well(&self.cluster.name, &self.backend.id, fact)
    }

    fn broken(&self, fact: impl Into<String>, remedy: impl Into<String>) -> Finding {
        Finding::broken(&self.cluster.name, &self.backend.id, fact, remedy)
    }
}

/// A client with the backend's own TLS, and the URL at which it reaches it; or what is wrong.
async fn address(backend: &Backend) -> Result<(ClientBuilder, String), String> {
    let (mut builder, address) = (Client::builder(), &backend.address);
    let Some(tls) = &backend.tls else { return Ok((builder, format!("http://{address}"))) };
    builder = builder.tls_danger_accept_invalid_certs(!tls.verify);
    if let Some(file) = &tls.ca {
        let named = |error: &dyn std::fmt::Display| format!("{}: {error}", file.display());
        let pem = std::fs::read(file).map_err(|error| named(&error))?;
        let authorities = Certificate::from_pem_bundle(&pem).map_err(|error| named(&error))?;
        builder = builder.tls_certs_only(authorities);
    }
    let Some(name) = &tls.server_name else { return Ok((builder, format!("https://{address}"))) };
    let resolved = tokio::net::lookup_host(address).await.map_err(|error| format!("{address}: {error}"))?;
    let addresses: Vec<_> = resolved.collect();
    let port = addresses.first().map_or(443, std::net::SocketAddr::port);
    Ok((builder.resolve_to_addrs(name, &addresses), format!("https://{name}:{port}")))
}
