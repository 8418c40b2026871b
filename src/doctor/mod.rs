//! `kvway doctor`: asks the engines and LMCache of a configuration whether routing by caches can work, and names what
//! is broken.
//!
//! Called by `main`. `engine.rs` examines one backend: reachable, awake, serving the model, caching prefixes and saying
//! so. `cache.rs` examines what a cluster with `kvcache` needs besides: tokenizer, LMCache, and that both know the engines'
//! prompts by the engines' names. `finding.rs` is what comes out, a line each. What rests on something broken is not
//! examined, so that each cause is named once. Bounded by a deadline per answer and the patience for LMCache. It sends each
//! engine one prompt of its own twice, and changes nothing else; a gateway is not needed.

mod cache;
mod engine;
mod finding;

pub use finding::{Examination, Finding};

use crate::arguments::Doctor;
use crate::config::{Cluster, Config};
use cache::Cache;
use engine::Engine;
use futures::future::join_all;
use std::time::Duration;

/// Words of a probe where nobody says how many tokens they are: a few blocks of any engine.
const WORDS: usize = 200;

/// Examines every cluster of a configuration; `seed` makes prompts that no other run has sent.
pub async fn examine(flags: &Doctor, config: &Config, seed: u64) -> Examination {
    let clusters = config.clusters.iter().enumerate();
    let clusters =
        clusters.map(|(index, cluster)| examine_cluster(flags, cluster, seed.rotate_left(8) ^ index as u64));
    Examination { findings: join_all(clusters).await.concat() }
}

async fn examine_cluster(flags: &Doctor, cluster: &Cluster, seed: u64) -> Vec<Finding> {
    let timeout = Duration::from_secs(flags.timeout);
    let made = join_all(cluster.backends.iter().map(|backend| Engine::new(cluster, backend, timeout))).await;
    let mut findings: Vec<Finding> = Vec::new();
    let mut engines = Vec::new();
    for engine in made {
        match engine {
            Ok(engine) => engines.push(engine),
            Err(finding) => findings.push(finding),
        }
    }
    let model = model(flags, cluster, &engines).await;
    let cache =
        cluster.kvcache.enabled.then(|| Cache::new(cluster, model.as_deref().unwrap_or_default(), timeout));
    let cache = match cache.transpose() {
        Ok(cache) => cache,
        Err(finding) => {
            findings.push(finding);
            None
        }
    };
    let mut words = None;
    if let Some(cache) = &cache {
        match cache.words_of_probe().await {
            Ok((enough, finding)) => {
                words = Some(enough);
                findings.push(finding);
            }
            Err(finding) => findings.push(finding),
        }
    }
    let examined = engines.iter().enumerate().map(|(index, engine)| {
        let prompt = prompt(seed ^ (index as u64) << 32, words.unwrap_or(WORDS));
        engine.examine(model.as_deref(), prompt)
    });
    let mut probes = Vec::new();
    for (of_engine, probe) in join_all(examined).await {
        findings.extend(of_engine);
        probes.extend(probe);
    }
    if let Some(cache) = &cache {
        findings.extend(cache.examine(&probes, words.is_some(), Duration::from_secs(flags.patience)).await);
    }
    findings
}

/// The model to ask for: the flag's, the configuration's, or the first that an engine lists.
async fn model(flags: &Doctor, cluster: &Cluster, engines: &[Engine<'_>]) -> Option<String> {
    let configured = Some(&cluster.kvcache.default_model).filter(|model| !model.is_empty());
    if let Some(model) = flags.model.as_ref().or(configured) {
        return Some(model.clone());
    }
    let lists = join_all(engines.iter().map(Engine::models)).await;
    lists.into_iter().flatten().flatten().next()
}

/// A prompt of so many words, whose first is no other prompt's.
fn prompt(seed: u64, words: usize) -> String {
    let mut prompt = format!("{seed:016x}");
    for index in 1..words {
        prompt.push_str([" one", " two", " day", " sun", " sea"].get(index % 5).copied().unwrap_or_default());
    }
    prompt
}
