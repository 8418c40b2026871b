//! One choice with all that it went by, as it is told: whoever reads it can take the choice again.
//!
//! Made by the spine with each try where decisions are kept (`admin.decisions_max`), and by [`super::explain`]; written as
//! JSON by `app`. As large as the candidates are many. It decides nothing, and of a prompt it holds numbers only.

use super::cluster::{Choice, Cluster};
use super::demand::Demand;
use super::hint::{Hint, Why};
use super::peer::{self, Candidate};
use crate::config::{Balancing, Policy};
use crate::state::trust::Source;
use serde::{Serialize, Serializer};
use std::sync::Arc;
use std::time::SystemTime;

/// What was chosen for one try, and why.
pub struct Decision {
    /// When.
    pub time: SystemTime,
    /// The request's id; `None` = nothing was sent. A copy: what a header holds may be a part of all headers' bytes.
    pub request_id: Option<Box<str>>,
    /// The number of the try, from 1.
    pub number: usize,
    /// Where the request was routed to.
    pub cluster: Arc<Cluster>,
    /// The model that it asked for.
    pub model: Option<Arc<str>>,
    /// Tokens of the prompt, counted or estimated; where no prompt was read, those that its body is worth.
    pub prompt_tokens: usize,
    /// Tokens of one block; 0 = the prompt was not cut into blocks.
    pub block_tokens: usize,
    /// Blocks of the prompt that have a key.
    pub blocks: usize,
    /// Where LMCache has it.
    pub hint: Hint,
    /// The candidates, and which of them was taken.
    pub choice: Choice,
}

impl Decision {
    /// A `choice` at `cluster` for the first try; nothing is known of the request but its `model` and its `demand`.
    #[must_use]
    pub fn new(
        cluster: Arc<Cluster>,
        model: Option<Arc<str>>,
        demand: &Demand,
        hint: Hint,
        choice: Choice,
        time: SystemTime,
    ) -> Self {
        Self {
            time,
            request_id: None,
            number: 1,
            cluster,
            model,
            prompt_tokens: demand.tokens,
            block_tokens: demand.block_tokens,
            blocks: demand.keys.len(),
            hint,
            choice,
        }
    }

    /// What became of the hint.
    fn hint_name(&self) -> &'static str {
        match &self.choice.peer {
            Some(peer) => peer.hint_name(),
            None => self.hint.why.unwrap_or(Why::Unavailable).name(),
        }
    }
}

/// What is told of a candidate. The names are those of the arguments of `peer::choose`.
#[derive(Serialize)]
struct ToldCandidate<'a> {
    backend: &'a str,
    requests: usize,
    pending_tokens: usize,
    uncached_tokens: usize,
    shadow: usize,
    lmcache: Option<usize>,
    source: Option<&'static str>,
    cost: Option<f64>,
    weight: usize,
}

#[derive(Serialize)]
struct ToldMatch<'a> {
    backend: &'a str,
    tokens: usize,
}

#[derive(Serialize)]
struct Told<'a> {
    time: String,
    request_id: Option<&'a str>,
    r#try: usize,
    cluster: &'a str,
    model: Option<&'a str>,
    chosen: Option<&'a str>,
    reason: Option<&'static str>,
    hint: &'static str,
    policy: Policy,
    balancing: Balancing,
    preferred_in_flight_max: f64,
    prompt_tokens: usize,
    block_tokens: usize,
    blocks: usize,
    matches: Vec<ToldMatch<'a>>,
    candidates: Vec<ToldCandidate<'a>>,
    pick: Option<&'a str>,
    /// As hexadecimal digits: JavaScript and others round a number of 64 bits.
    random: String,
}

impl Serialize for Decision {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (cluster, choice) = (&self.cluster, &self.choice);
        let id = |index: usize| cluster.fleet.backends().get(index).map_or("", |backend| backend.id.as_str());
        let candidate = |candidate: &Candidate| ToldCandidate {
            backend: id(candidate.index),
            requests: candidate.requests,
            pending_tokens: candidate.pending_tokens,
            uncached_tokens: candidate.uncached_tokens,
            shadow: candidate.said.shadow,
            lmcache: candidate.said.lmcache,
            source: candidate.source.map(Source::name),
            cost: peer::cost(cluster.rules.policy, candidate),
            weight: candidate.weight,
        };
        let matches = self.hint.matches.iter();
        let told = Told {
            time: humantime::format_rfc3339_millis(self.time).to_string(),
            request_id: self.request_id.as_deref(),
            r#try: self.number,
            cluster: cluster.name(),
            model: self.model.as_deref(),
            chosen: choice.peer.map(|peer| id(peer.index)),
            reason: choice.peer.map(|peer| peer.reason.name()),
            hint: self.hint_name(),
            policy: cluster.rules.policy,
            balancing: cluster.rules.balancing,
            preferred_in_flight_max: cluster.rules.preferred_in_flight_max,
            prompt_tokens: self.prompt_tokens,
            block_tokens: self.block_tokens,
            blocks: self.blocks,
            matches: matches
                .map(|found| ToldMatch { backend: id(found.index), tokens: found.tokens })
                .collect(),
            candidates: choice.candidates.iter().map(candidate).collect(),
            pick: choice.pick.map(id),
            random: format!("{:016x}", choice.random),
        };
        told.serialize(serializer)
    }
}
