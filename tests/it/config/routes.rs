//! Which route takes a request.

use kvway::config::ModelPattern;

use super::{MINIMAL, parse};

#[test]
fn a_model_pattern_matches_names_globs_and_with_a_star_also_none() {
    let matches = |pattern: &str, model| ModelPattern::new(pattern).unwrap().matches(model);
    assert!(matches("*", None) && matches("*", Some("org/model")) && matches("*", Some("")));
    assert!(matches("org/model", Some("org/model")) && !matches("org/model", Some("org/model-2")));
    assert!(matches("*-instruct", Some("org/model-instruct")) && matches("org/*", Some("org/a/b")));
    assert!(!matches("**", None) && !matches("org/*", None) && !matches("org/*", Some("Org/a")));
    assert!(matches("{a,b}/?[0-9]", Some("b/x7")));
    assert!(ModelPattern::new("").is_none() && ModelPattern::new("[a").is_none());
}

#[test]
fn a_route_takes_whole_segments_of_a_path() {
    let routes =
        parse(&format!("{MINIMAL}routes: [{{path: /v1, model: a*, cluster: llama}}, {{cluster: llama}}]"))
            .routes;
    let first = |path, model| routes.iter().position(|route| route.takes(path, model));
    assert_eq!(first("/v1", Some("a")), Some(0));
    assert_eq!(first("/v1/models", Some("ab")), Some(0));
    assert_eq!(first("/v10", Some("a")), Some(1));
    assert_eq!(first("/v1/models", None), Some(1));
    assert_eq!(first("/", Some("b")), Some(1));
    assert_eq!(first("*", None), Some(1));
}

#[test]
fn a_route_may_follow_one_that_takes_only_some_of_its_requests() {
    let routes = "
  - {model: 'a?', cluster: llama}
  - {model: 'a*', cluster: llama}
  - {path: /v1, model: '*b', cluster: llama}
  - {cluster: llama}";
    assert_eq!(parse(&format!("{MINIMAL}routes: {routes}")).routes.len(), 4);
}

#[test]
fn without_routes_everything_goes_to_the_only_cluster() {
    let routes = parse(MINIMAL).routes;
    assert_eq!(routes.len(), 1);
    assert!(routes[0].takes("/anything", None) && routes[0].cluster == "llama");
}
