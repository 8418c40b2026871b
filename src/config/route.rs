//! Routes: which cluster answers which request.

use globset::{GlobBuilder, GlobMatcher};
use serde::de::{Deserialize, Deserializer};
use serde::ser::{Serialize, Serializer};

use super::names;

/// Sends requests for a path and a model to a cluster. Routes are asked in the order of the file; the first that takes
/// a request decides.
#[derive(Clone, Debug, PartialEq, serde::Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// A prefix of whole segments: `/v1` takes `/v1` and `/v1/models`, not `/v10`.
    #[serde(default = "root", deserialize_with = "names::url_path")]
    pub path: String,
    /// The model that the request names.
    #[serde(default)]
    pub model: ModelPattern,
    /// The name of the cluster.
    #[serde(deserialize_with = "names::label")]
    pub cluster: String,
    /// What is answered where no cluster has that name; `None` = such a route is refused.
    #[serde(default, deserialize_with = "names::optional::<_, names::ErrorStatus, _>")]
    pub cluster_not_found_status: Option<u16>,
}

impl Route {
    /// Every request to `cluster`.
    pub(super) fn all(cluster: &str) -> Self {
        Self {
            path: root(),
            model: ModelPattern::default(),
            cluster: cluster.to_owned(),
            cluster_not_found_status: None,
        }
    }

    /// Whether the path (without query) is this route's or below it, whatever the model.
    #[must_use]
    pub fn covers(&self, path: &str) -> bool {
        covers(&self.path, path)
    }

    /// Whether a request for this path (without query) and this model belongs to the route.
    #[must_use]
    pub fn takes(&self, path: &str, model: Option<&str>) -> bool {
        self.covers(path) && self.model.matches(model)
    }

    /// Whether every request for `other` would belong to this route as well.
    pub(super) fn hides(&self, other: &Route) -> bool {
        let (all, same) = (self.model.is_any(), self.model == other.model);
        let one = other.model.is_literal() && self.model.matches(Some(other.model.as_str()));
        covers(&self.path, &other.path) && (all || same || one)
    }
}

/// Whether `prefix` is `path` or one of its parents. `/` covers everything, `*` of an OPTIONS request as well.
fn covers(prefix: &str, path: &str) -> bool {
    let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
    path.strip_prefix(prefix)
        .is_some_and(|rest| prefix.is_empty() || rest.is_empty() || rest.starts_with('/'))
}

/// The name of a model or a glob (`*`, `?`, `[ab]`, `{a,b}`) in which `*` matches any characters, `/` as well. `*`
/// alone matches every request, also one that names no model.
#[derive(Clone, Debug)]
pub struct ModelPattern {
    text: String,
    /// `None` for `*`.
    matcher: Option<GlobMatcher>,
}

impl ModelPattern {
    /// Compiles a pattern; `None` if it is not a glob.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        match text {
            "" => None,
            "*" => Some(Self::default()),
            _ => {
                let glob =
                    GlobBuilder::new(text).literal_separator(false).backslash_escape(true).build().ok()?;
                Some(Self { text: text.to_owned(), matcher: Some(glob.compile_matcher()) })
            }
        }
    }

    /// Whether a request that names `model` matches.
    #[must_use]
    pub fn matches(&self, model: Option<&str>) -> bool {
        match &self.matcher {
            None => true,
            Some(matcher) => model.is_some_and(|model| matcher.is_match(model)),
        }
    }

    /// Whether every request matches, also one that names no model.
    #[must_use]
    pub fn is_any(&self) -> bool {
        self.matcher.is_none()
    }

    /// The pattern as written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    fn is_literal(&self) -> bool {
        !self.text.contains(['*', '?', '[', ']', '{', '}', '\\'])
    }
}

impl Default for ModelPattern {
    fn default() -> Self {
        Self { text: "*".to_owned(), matcher: None }
    }
}

impl PartialEq for ModelPattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for ModelPattern {}

impl Serialize for ModelPattern {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for ModelPattern {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        names::text(d, "the name of a model or a glob such as org/*", ModelPattern::new)
    }
}

fn root() -> String {
    "/".to_owned()
}
