//! Lines of the Prometheus text format, as far as engines' metrics are read.
//!
//! Called by `load` and `cache`. Pure; it keeps nothing, and passes over what it does not know.

/// Name, labels and value of a line; `None` for comments, and for values that are no number.
pub(super) fn sample(line: &str) -> Option<(&str, &str, f64)> {
    if line.starts_with('#') {
        return None;
    }
    // A label may hold anything but is always followed by a brace.
    let (series, rest) = match line.rsplit_once('}') {
        Some((series, rest)) => (series, rest),
        None => line.split_once(' ')?,
    };
    let (name, labels) = series.split_once('{').unwrap_or((series, ""));
    let value: f64 = rest.split_whitespace().next()?.parse().ok()?;
    value.is_finite().then_some((name, labels, value))
}

/// The value of a label, as it is written.
pub(super) fn label<'a>(mut labels: &'a str, name: &str) -> Option<&'a str> {
    loop {
        let (own, rest) = labels.split_once("=\"")?;
        let mut escaped = false;
        let end = rest.find(|letter| {
            let ends = letter == '"' && !escaped;
            escaped = letter == '\\' && !escaped;
            ends
        });
        let (value, rest) = rest.split_at_checked(end?)?;
        if own.trim_start_matches([',', ' ']) == name {
            return Some(value);
        }
        labels = rest.strip_prefix('"')?;
    }
}

/// Whether a sample of `vllm:engine_sleep_state` says that the engine sleeps.
pub(super) fn sleeps(labels: &str, value: f64) -> bool {
    value > 0.0 && label(labels, "sleep_state").is_some_and(|state| state != "awake")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_found_whatever_stands_before_them() {
        let labels = r#"a="1",b="x,c=\"9\",} \\",c="2", d="""#;
        assert_eq!(["a", "c", "d"].map(|name| label(labels, name)), [Some("1"), Some("2"), Some("")]);
        assert_eq!(label(labels, "b"), Some(r#"x,c=\"9\",} \\"#));
        for broken in ["", "e", "c=2", "c=\"2", "xc=\"2\""] {
            assert_eq!(label(broken, "c"), None, "{broken}");
        }
    }
}
