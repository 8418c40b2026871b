//! The models that each cluster serves, as its backends last said.
//!
//! Written by `background::models`; read by `proxy` to answer `/v1/models`. Bounded by what the writer takes from a
//! backend. It never asks a backend itself.

use arc_swap::ArcSwap;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::sync::Arc;

/// One entry of a model list, exactly as the engine wrote it.
#[derive(Clone, Debug)]
pub struct Model {
    /// The model's name.
    pub id: String,
    /// The whole entry.
    pub entry: Box<RawValue>,
}

/// The answer of an engine to `GET /v1/models`.
#[derive(Deserialize)]
struct Listing {
    data: Vec<Box<RawValue>>,
}

#[derive(Deserialize)]
struct Id {
    id: String,
}

/// Reads an engine's list; `None` when it is not one.
#[must_use]
pub fn parse(answer: &[u8]) -> Option<Vec<Model>> {
    let listing: Listing = serde_json::from_slice(answer).ok()?;
    let model = |entry: Box<RawValue>| {
        let Id { id } = serde_json::from_str(entry.get()).ok()?;
        Some(Model { id, entry })
    };
    listing.data.into_iter().map(model).collect()
}

/// The models of all clusters, merged: the first cluster that serves a name describes it.
#[derive(Debug)]
pub struct ModelList {
    clusters: Vec<ArcSwap<Vec<Model>>>,
    merged: ArcSwap<Vec<Model>>,
}

impl ModelList {
    /// A list for `clusters` clusters of which nothing is known yet.
    #[must_use]
    pub fn new(clusters: usize) -> Arc<Self> {
        let empty = || ArcSwap::from_pointee(Vec::new());
        Arc::new(Self { clusters: std::iter::repeat_with(empty).take(clusters).collect(), merged: empty() })
    }

    /// Replaces what is known of the cluster at `index`. Called from one task only.
    pub fn set(&self, index: usize, models: Vec<Model>) {
        let Some(cluster) = self.clusters.get(index) else {
            return;
        };
        cluster.store(Arc::new(models));
        let mut merged: Vec<Model> = Vec::new();
        for cluster in &self.clusters {
            for model in cluster.load().iter() {
                if !merged.iter().any(|known| known.id == model.id) {
                    merged.push(model.clone());
                }
            }
        }
        self.merged.store(Arc::new(merged));
    }

    /// The merged list as an answer to `GET /v1/models`; `None` while nothing is known.
    #[must_use]
    pub fn listing(&self) -> Option<Bytes> {
        let merged = self.merged.load();
        if merged.is_empty() {
            return None;
        }
        let entries: Vec<&str> = merged.iter().map(|model| model.entry.get()).collect();
        Some(Bytes::from(format!(r#"{{"object":"list","data":[{}]}}"#, entries.join(","))))
    }

    /// The entry of one model as an answer to `GET /v1/models/{id}`.
    #[must_use]
    pub fn entry(&self, id: &str) -> Option<Bytes> {
        let merged = self.merged.load();
        let model = merged.iter().find(|model| model.id == id)?;
        Some(Bytes::copy_from_slice(model.entry.get().as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TINY: &str =
        r#"{"object":"list","data":[{"id":"tiny","max_model_len":2048},{"id":"shared","from":1}]}"#;
    const LARGE: &str = r#"{"object":"list","data":[{"id":"shared","from":2},{"id":"org/large"}]}"#;

    #[test]
    fn clusters_are_merged_in_order_and_the_first_describes_a_shared_name() {
        let list = ModelList::new(2);
        assert!(list.listing().is_none());
        list.set(1, parse(LARGE.as_bytes()).unwrap());
        list.set(0, parse(TINY.as_bytes()).unwrap());
        let expected = r#"{"object":"list","data":[{"id":"tiny","max_model_len":2048},{"id":"shared","from":1},{"id":"org/large"}]}"#;
        assert_eq!(list.listing().unwrap(), expected);
        assert_eq!(list.entry("org/large").unwrap(), r#"{"id":"org/large"}"#);
        assert!(list.entry("none").is_none());
    }

    #[test]
    fn what_is_not_a_model_list_is_not_taken() {
        for answer in ["", "[]", "{}", r#"{"data":[{"name":"x"}]}"#, r#"{"error":"Unauthorized"}"#] {
            assert!(parse(answer.as_bytes()).is_none(), "{answer}");
        }
    }
}
