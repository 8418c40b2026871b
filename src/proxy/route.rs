//! Path and model → cluster: the first route that fits. Pure.
//!
//! Called once per request; routes are few and in configuration order, so they are walked.

use super::reject::Reject;
use crate::config::{ModelPattern, Route};

/// The routes, each with the index of its cluster.
pub struct Routes(Vec<Entry>);

struct Entry {
    path: String,
    model: ModelPattern,
    cluster: usize,
}

impl Routes {
    /// Routes whose cluster names have been checked by `config`; `index` finds a cluster by name.
    pub fn new(routes: &[Route], index: impl Fn(&str) -> Option<usize>) -> Self {
        let entry = |route: &Route| {
            let cluster = index(&route.cluster)?;
            Some(Entry { path: route.path.clone(), model: route.model.clone(), cluster })
        };
        Self(routes.iter().filter_map(entry).collect())
    }

    /// Whether any route matches the path, whatever the model.
    #[must_use]
    pub fn knows_path(&self, path: &str) -> bool {
        self.0.iter().any(|entry| matches_path(&entry.path, path))
    }

    /// The cluster of the first route that matches path and model.
    ///
    /// # Errors
    /// 404: no such path, or no such model on it.
    pub fn find(&self, path: &str, model: Option<&str>) -> Result<usize, Reject> {
        let mut known_path = false;
        for entry in self.0.iter().filter(|entry| matches_path(&entry.path, path)) {
            if entry.model.matches(model) {
                return Ok(entry.cluster);
            }
            known_path = true;
        }
        Err(if known_path { Reject::no_model() } else { Reject::no_route() })
    }
}

/// A prefix ends at a segment: `/v1` is a prefix of `/v1/models` and of `/v1`, not of `/v10`.
fn matches_path(prefix: &str, path: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || prefix.ends_with('/') || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_prefix_ends_at_a_segment() {
        assert!(matches_path("/", "/anything"));
        assert!(matches_path("/v1", "/v1") && matches_path("/v1", "/v1/models") && matches_path("/v1/", "/v1/models"));
        assert!(!matches_path("/v1", "/v10") && !matches_path("/v1/", "/v1"));
    }
}
