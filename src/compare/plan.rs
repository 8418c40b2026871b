//! What is sent where: the flags, and the configuration of the gateway where they say nothing. Sends nothing itself.

use super::CompareError;
use crate::arguments::{ApiKey, Compare};
use crate::config::{Cluster, Config, Policy, Route, Secret};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngCore, SeedableRng};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

/// Short words that are one token in most vocabularies.
const WORDS: [&str; 32] = [
    "time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school",
    "state", "family", "student", "group", "country", "problem", "hand", "part", "place", "case", "week",
    "company", "system", "program", "question", "work", "number", "night", "point", "home",
];

/// What is sent where.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The gateway, without a trailing `/`.
    pub url: String,
    /// Its admin listener, likewise; `None` = it has none.
    pub admin: Option<String>,
    /// What the admin listener asks for.
    pub admin_token: Option<Secret>,
    /// What the backends ask for.
    pub api_key: Option<ApiKey>,
    /// The model; `None` = the first that the gateway lists.
    pub model: Option<String>,
    /// Whether prompts are sent as conversations.
    pub chat: bool,
    /// Requests of each phase.
    pub requests: usize,
    /// How often a repeated prompt is asked for, once it is known.
    pub repeats: usize,
    /// About how many tokens a prompt has.
    pub prompt_tokens: usize,
    /// Tokens of an answer.
    pub max_tokens: usize,
    /// Requests at a time.
    pub concurrency: usize,
    /// The longest that a request may take.
    pub timeout: Duration,
    /// Makes prompts that no other run has sent.
    pub seed: u64,
    /// Which models belong to which cluster, and whether it routes by caches.
    pub filters: Vec<(Route, bool)>,
}

impl Plan {
    /// The plan of a command line, for the gateway of a configuration.
    ///
    /// # Errors
    /// When no listener can be asked without a flag that names it.
    pub fn new(compare: &Compare, config: &Config, seed: u64) -> Result<Self, CompareError> {
        let plain = || config.listeners.iter().find(|listener| listener.tls.is_none());
        let url = match &compare.url {
            Some(url) => url.clone(),
            None => format!("http://{}", reachable(plain().ok_or(CompareError::OnlyTls)?.address)),
        };
        let admin =
            compare.admin.or(config.admin.address).map(|address| format!("http://{}", reachable(address)));
        let is_on = |route: &Route| {
            config.clusters.iter().any(|cluster| cluster.name == route.cluster && routes_by_caches(cluster))
        };
        Ok(Self {
            url: url.trim_end_matches('/').to_owned(),
            admin,
            admin_token: config.admin.token.clone(),
            api_key: compare.api_key.clone(),
            model: compare.model.clone(),
            chat: compare.chat,
            requests: compare.requests,
            repeats: compare.repeats,
            prompt_tokens: compare.prompt_tokens,
            max_tokens: compare.max_tokens,
            concurrency: compare.concurrency,
            timeout: Duration::from_secs(compare.timeout),
            seed,
            filters: config.routes.iter().map(|route| (route.clone(), is_on(route))).collect(),
        })
    }

    /// The path that requests go to.
    #[must_use]
    pub fn path(&self) -> &'static str {
        if self.chat { "/v1/chat/completions" } else { "/v1/completions" }
    }

    /// Whether the gateway routes by caches for a model.
    #[must_use]
    pub fn has_filter(&self, model: &str) -> bool {
        self.filters
            .iter()
            .find(|(route, _)| route.takes(self.path(), Some(model)))
            .is_some_and(|(_, on)| *on)
    }

    /// How many prompts are repeated.
    #[must_use]
    pub fn repeated(&self) -> usize {
        self.requests.div_ceil(self.repeats.max(1))
    }

    /// So many prompts of a kind. They share no token at their start, with each other or with those of another seed.
    #[must_use]
    pub fn prompts(&self, kind: &str, count: usize) -> Vec<String> {
        (0..count).map(|index| self.prompt(kind, index)).collect()
    }

    fn prompt(&self, kind: &str, index: usize) -> String {
        let salt = kind.bytes().fold(index as u64, |salt, byte| salt.rotate_left(8) ^ u64::from(byte));
        let mut random = StdRng::seed_from_u64(self.seed ^ salt);
        let mut prompt = format!("{:016x} {kind} {index}:", random.next_u64());
        // What comes first are about twelve tokens.
        for _ in 12..self.prompt_tokens {
            prompt.push(' ');
            prompt.push_str(WORDS.choose(&mut random).copied().unwrap_or_default());
        }
        prompt
    }
}

/// Whether LMCache is asked where a prompt that is known is cached, and followed.
fn routes_by_caches(cluster: &Cluster) -> bool {
    let kvcache = &cluster.kvcache;
    let follows = cluster.policy.weighs_caches() || cluster.policy == Policy::LmcacheOnly;
    follows && kvcache.enabled && kvcache.token_cache.enabled
}

/// Where to connect to, to reach what listens at an address.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    address
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arguments::{Arguments, Command};
    use clap::Parser;

    fn plan(flags: &[&str], text: &str) -> Result<Plan, CompareError> {
        let words = ["kvway", "compare"].iter().chain(flags);
        let Some(Command::Compare(compare)) = Arguments::parse_from(words).command else {
            panic!("{flags:?}")
        };
        let backends = "    backends: [{id: a, address: \"127.0.0.1:1\"}]";
        let text = format!(
            "{text}\nclusters:\n  - name: on\n    policy: lmcache_only\n    kvcache: {{enabled: true, token_cache: {{enabled: true}}, vllm_endpoint: \"http://a\", lmcache_endpoint: \"http://b\"}}\n{backends}\n  - name: off\n{backends}\nroutes: [{{model: \"big*\", cluster: on}}, {{cluster: off}}]\n"
        );
        Plan::new(&compare, &Config::parse(&text, "test.yaml", &|_| None).unwrap(), 1)
    }

    #[test]
    fn the_configuration_says_where_the_gateway_is_and_flags_say_it_better() {
        let text = "listeners: [{address: \"0.0.0.0:8123\"}]\nadmin: {address: \"[::]:9123\", token: secret}";
        let from_file = plan(&[], text).unwrap();
        assert_eq!(from_file.url, "http://127.0.0.1:8123");
        assert_eq!(from_file.admin.as_deref(), Some("http://[::1]:9123"));
        assert!(!format!("{from_file:?}").contains("secret"));
        let flags = ["--url", "https://llm.example/", "--admin", "10.0.0.1:9"];
        let from_flags = plan(&flags, text).unwrap();
        assert_eq!(from_flags.url, "https://llm.example");
        assert_eq!(from_flags.admin.as_deref(), Some("http://10.0.0.1:9"));
    }

    #[test]
    fn the_route_of_the_model_says_whether_the_filter_is_on() {
        let plan = plan(&[], "").unwrap();
        assert!(plan.has_filter("big-one") && !plan.has_filter("small"));
    }

    #[test]
    fn prompts_differ_from_their_start_and_are_the_same_for_a_seed() {
        let plan = plan(&["--prompt-tokens", "100"], "").unwrap();
        let mut all = plan.prompts("unique", 50);
        all.extend(plan.prompts("repeated", 50));
        all.extend(Plan { seed: 2, ..plan.clone() }.prompts("unique", 50));
        assert_eq!(plan.prompts("unique", 50), all[..50]);
        assert!(all.iter().all(|prompt| prompt.split_whitespace().count() == 91), "{}", all[0]);
        let mut starts: Vec<&str> = all.iter().map(|prompt| prompt.split_at(16).0).collect();
        starts.sort_unstable();
        starts.dedup();
        assert_eq!(starts.len(), 150);
    }
}
