//! The gateway's counters as its `/metrics` shows them: who got the requests, and what its lookups brought. Pure.

use super::Seen;
use std::collections::BTreeMap;

/// Counters at one moment, by the labels that matter.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Counters {
    /// Tries, by `cluster/backend`.
    backends: BTreeMap<String, u64>,
    /// Lookups that a request waited for, by outcome.
    lookups: BTreeMap<String, u64>,
    /// Requests by what came of their hint.
    hints: BTreeMap<String, u64>,
}

impl Counters {
    /// Reads the Prometheus text format; what is not counted here is skipped.
    pub(super) fn parse(text: &str) -> Self {
        let mut counters = Self::default();
        for (name, labels, value) in text.lines().filter_map(sample) {
            let label = |name: &str| labels.get(name).cloned().unwrap_or_default();
            let (map, key) = match name {
                "kvway_upstream_requests_total" => {
                    (&mut counters.backends, format!("{}/{}", label("cluster"), label("backend")))
                }
                "kvway_kvcache_lookups_total" if label("by") == "request" => {
                    (&mut counters.lookups, label("outcome"))
                }
                "kvway_kvcache_hints_total" => (&mut counters.hints, label("outcome")),
                _ => continue,
            };
            *map.entry(key).or_default() += value;
        }
        counters
    }

    /// What has happened since an earlier moment.
    pub(super) fn since(&self, earlier: &Self) -> Seen {
        let grown = |now: &BTreeMap<String, u64>, then: &BTreeMap<String, u64>| -> BTreeMap<String, u64> {
            let growth = |(key, count): (&String, &u64)| {
                (key.clone(), count.saturating_sub(then.get(key).copied().unwrap_or_default()))
            };
            now.iter().map(growth).collect()
        };
        let mut hints = grown(&self.hints, &earlier.hints);
        let hints_followed = hints.remove("followed").unwrap_or_default();
        hints.retain(|_, count| *count > 0);
        let lookups = grown(&self.lookups, &earlier.lookups);
        Seen {
            backends: grown(&self.backends, &earlier.backends),
            lookups: lookups.values().sum(),
            lookups_matched: lookups.get("match").copied().unwrap_or_default(),
            hints_followed,
            hints_missed: hints,
        }
    }
}

/// A line as name, labels and value; `None` for comments and for what is no count.
fn sample(line: &str) -> Option<(&str, BTreeMap<&str, String>, u64)> {
    let (series, value) = line.rsplit_once(' ')?;
    let (name, labels) = series.split_once('{').unwrap_or((series, ""));
    let value: f64 = value.parse().ok().filter(|value| (0.0..9e15).contains(value))?;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "within the bounds checked above"
    )]
    let value = value as u64;
    Some((name, labels_of(labels.strip_suffix('}').unwrap_or(labels)), value))
}

/// The labels of a series: `name="value"` parted by commas, with `\"`, `\\` and `\n` in values.
fn labels_of(mut rest: &str) -> BTreeMap<&str, String> {
    let mut labels = BTreeMap::new();
    while let Some((name, after)) = rest.split_once("=\"") {
        let (mut value, mut escaped, mut end) = (String::new(), false, after.len());
        for (index, character) in after.char_indices() {
            match (escaped, character) {
                (false, '"') => {
                    end = index + 1;
                    break;
                }
                (false, '\\') => escaped = true,
                (true, 'n') => {
                    value.push('\n');
                    escaped = false;
                }
                (_, character) => {
                    value.push(character);
                    escaped = false;
                }
            }
        }
        labels.insert(name.trim_start_matches(','), value);
        rest = after.get(end..).unwrap_or_default();
    }
    labels
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = r#"# HELP kvway_upstream_requests_total Tries.
kvway_upstream_requests_total{address="h:1",backend="vllm-0",cluster="demo",outcome="200"} 3
kvway_upstream_requests_total{address="h:1",backend="vllm-0",cluster="demo",outcome="503"} 1
kvway_upstream_requests_total{address="h:2",backend="vllm-1",cluster="demo",outcome="200"} 5
kvway_kvcache_lookups_total{by="request",cluster="demo",outcome="match"} 4
kvway_kvcache_lookups_total{by="background",cluster="demo",outcome="match"} 2
kvway_kvcache_lookups_total{by="request",cluster="demo",outcome="timeout"} 1
kvway_kvcache_hints_total{cluster="demo",outcome="followed"} 4
kvway_kvcache_hints_total{cluster="demo",outcome="no_match"} 9
kvway_requests_in_flight 1
nonsense
"#;

    #[test]
    fn counters_are_summed_over_the_labels_that_do_not_matter() {
        let seen = Counters::parse(PAGE).since(&Counters::default());
        assert_eq!(
            seen.backends.iter().map(|(name, count)| (name.as_str(), *count)).collect::<Vec<_>>(),
            [("demo/vllm-0", 4), ("demo/vllm-1", 5)]
        );
        assert_eq!((seen.lookups, seen.lookups_matched, seen.hints_followed), (5, 4, 4));
        assert_eq!(seen.hints_missed.into_iter().collect::<Vec<_>>(), [("no_match".to_owned(), 9)]);
    }

    #[test]
    fn only_what_came_since_is_seen() {
        let start = Counters::parse(PAGE);
        let end = Counters::parse(&PAGE.replace("\"match\"} 4", "\"match\"} 10").replace("} 5", "} 6"));
        let seen = end.since(&start);
        assert_eq!((seen.lookups, seen.lookups_matched, seen.hints_followed), (6, 6, 0));
        assert!(seen.hints_missed.is_empty());
        assert_eq!(seen.backends.values().sum::<u64>(), 1);
    }

    #[test]
    fn a_label_may_hold_any_character() {
        let labels = labels_of(r#"a="x,y=\"}\\",b="\n""#);
        assert_eq!(
            labels.into_iter().collect::<Vec<_>>(),
            [("a", "x,y=\"}\\".to_owned()), ("b", "\n".to_owned())]
        );
    }
}
