//! Path and model → cluster: the first route that fits. Pure.
//!
//! Called once per request; routes are few and in configuration order, so they are walked.

use super::reject::Reject;
use crate::config::Route;

/// The routes, each with the index of its cluster, if there is such a cluster.
pub struct Routes(Vec<(Route, Option<usize>)>);

impl Routes {
    /// Routes whose cluster names have been checked by `config`; `index` finds a cluster by name.
    pub fn new(routes: &[Route], index: impl Fn(&str) -> Option<usize>) -> Self {
        Self(routes.iter().map(|route| (route.clone(), index(&route.cluster))).collect())
    }

    /// Whether any route covers the path, whatever the model.
    #[must_use]
    pub fn knows_path(&self, path: &str) -> bool {
        self.0.iter().any(|(route, _)| route.covers(path))
    }

    /// The cluster of the first route that takes path and model.
    ///
    /// # Errors
    /// 404: no such path, or no such model on it; what the route says where its cluster is missing.
    pub fn find(&self, path: &str, model: Option<&str>) -> Result<usize, Reject> {
        match self.0.iter().find(|(route, _)| route.takes(path, model)) {
            Some((_, Some(cluster))) => Ok(*cluster),
            Some((route, None)) => Err(Reject::cluster_not_found(route.cluster_not_found_status)),
            None if self.knows_path(path) => Err(Reject::no_model()),
            None => Err(Reject::no_route()),
        }
    }
}
