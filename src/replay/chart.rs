//! The report as a picture: for each trace the time to the first token against the load, and hit rates. Pure.
//!
//! Asked for by `main`. The drawing is that of the library `charts-rs`, which is given a description in JSON.

use super::report::{Report, Row};
use serde_json::{Value, json};

/// The size of one diagram, in pixels.
const WIDTH: usize = 620;
const HEIGHT: usize = 440;
/// The room above all diagrams.
const TOP: usize = 10;

/// The colours of the policies, in their order; both diagrams use the same.
const COLOURS: [&str; 9] =
    ["#4e79a7", "#f28e2b", "#76b7b2", "#e15759", "#59a14f", "#edc948", "#b07aa1", "#ff9da7", "#9c755f"];
/// The colour of the last, the ceiling.
const CEILING: &str = "#303030";

/// The description was not understood by the library.
#[derive(Debug, thiserror::Error)]
#[error("the chart cannot be drawn: {0}")]
pub struct ChartError(String);

/// The picture, as SVG. Traces without results are left out.
///
/// # Errors
/// When the library refuses to draw it.
pub fn draw(report: &Report) -> Result<String, ChartError> {
    let mut diagrams = Vec::new();
    for trace in &report.traces {
        let rows: Vec<&Row> = report.results.iter().filter(|row| row.trace == trace.trace).collect();
        if !rows.is_empty() {
            let y = TOP + HEIGHT * (diagrams.len() / 2);
            diagrams.push(placed(first_token(&trace.trace, &rows), 0, y));
            diagrams.push(placed(hit_rate(&trace.trace, &rows), WIDTH, y));
        }
    }
    let description = json!({"background_color": "#ffffff", "child_charts": diagrams}).to_string();
    let drawn = charts_rs::MultiChart::from_json(&description).and_then(|chart| chart.svg());
    drawn.map_err(|error| ChartError(error.to_string()))
}

fn placed(mut diagram: Value, x: usize, y: usize) -> Value {
    if let Value::Object(fields) = &mut diagram {
        let place = json!({"x": x, "y": y, "width": WIDTH, "height": HEIGHT, "margin": 15, "title_align": "left", "title_font_size": 15});
        fields.extend(place.as_object().cloned().unwrap_or_default());
    }
    diagram
}

/// A line for each policy: the mean time to the first token at each load. One load alone has bars.
fn first_token(trace: &str, rows: &[&Row]) -> Value {
    let (policies, loads) = (policies(rows), loads(rows));
    let title = format!("{trace}: mean time to the first token");
    if let [load] = loads.as_slice() {
        // The library shows one decimal.
        let ms = |row: &Row| (1000.0 * row.ttft_mean_s).round();
        return bars(&format!("{title}, load {load}"), "{c} ms", rows, *load, ms);
    }
    let line = |policy: &&str| {
        let at = |load: &f64| find(rows, policy, *load).map(|row| thousandths(row.ttft_mean_s));
        json!({"name": policy, "data": loads.iter().map(at).collect::<Vec<_>>()})
    };
    json!({
        "type": "line",
        "title_text": title,
        "legend_position": "bottom",
        "legend_font_size": 12,
        "x_axis_data": loads.iter().map(|load| format!("load {load}")).collect::<Vec<_>>(),
        "y_axis_configs": [{"axis_scale": "log", "axis_formatter": "{c} s"}],
        "series_colors": colours(policies.len()),
        "series_symbol": {"type": "circle", "size": 3},
        "series_list": policies.iter().map(line).collect::<Vec<_>>(),
    })
}

/// How much of the prompts was in a cache, at the load in the middle.
fn hit_rate(trace: &str, rows: &[&Row]) -> Value {
    let loads = loads(rows);
    let load = loads.get(loads.len() / 2).copied().unwrap_or_default();
    let title = format!("{trace}: prompt tokens found in a cache, load {load}");
    bars(&title, "{c} %", rows, load, |row| 100.0 * row.hit_ratio)
}

/// A bar for each policy.
fn bars(title: &str, format: &str, rows: &[&Row], load: f64, value: impl Fn(&Row) -> f64) -> Value {
    let mut policies = policies(rows);
    let mut colours = colours(policies.len());
    // The library draws the first bar lowest.
    policies.reverse();
    colours.reverse();
    let data: Vec<_> =
        policies.iter().map(|policy| find(rows, policy, load).map(|row| thousandths(value(row)))).collect();
    json!({
        "type": "horizontal_bar",
        "title_text": title,
        "legend_show": false,
        "x_axis_data": policies,
        "series_label_formatter": format,
        "series_list": [{"name": "", "data": data, "label_show": true, "colors": colours}],
    })
}

/// A colour for each of so many policies.
fn colours(policies: usize) -> Vec<&'static str> {
    let others = COLOURS.iter().cycle().copied().take(policies.saturating_sub(1));
    others.chain([CEILING]).collect()
}

fn policies<'a>(rows: &[&'a Row]) -> Vec<&'a str> {
    rows.iter().fold(Vec::new(), |mut known, row| {
        if !known.contains(&row.policy) {
            known.push(row.policy);
        }
        known
    })
}

fn loads(rows: &[&Row]) -> Vec<f64> {
    let mut loads: Vec<f64> = rows.iter().map(|row| row.load).collect();
    loads.sort_unstable_by(f64::total_cmp);
    loads.dedup();
    loads
}

fn find<'a>(rows: &[&'a Row], policy: &str, load: f64) -> Option<&'a Row> {
    rows.iter().find(|row| row.policy == policy && row.load.total_cmp(&load).is_eq()).copied()
}

/// As exact as a diagram can show it.
fn thousandths(value: f64) -> f64 {
    (1000.0 * value).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::report;
    use super::*;

    #[test]
    fn every_policy_and_load_is_in_the_picture() {
        let drawn = draw(&report()).unwrap();
        assert!(drawn.starts_with("<svg") && drawn.trim_end().ends_with("</svg>"), "{drawn}");
        for word in [
            "least_requests",
            "exact_match",
            "pooled",
            "load 0.5",
            "load 0.8",
            "load 0.95",
            "12.5 %",
            "chat: mean time",
        ] {
            assert!(drawn.contains(word), "{word}: {drawn}");
        }
        assert_eq!(drawn, draw(&report()).unwrap(), "the same report, the same picture");
    }

    #[test]
    fn one_load_alone_has_bars() {
        let mut report = report();
        report.results.retain(|row| row.load > 0.9);
        let drawn = draw(&report).unwrap();
        assert!(drawn.contains("first token, load 0.95") && drawn.contains("38380 ms"), "{drawn}");
    }

    #[test]
    fn names_of_traces_cannot_become_markup() {
        let mut report = report();
        report.traces[0].trace = "<script>\"&".to_owned();
        report.results.iter_mut().for_each(|row| row.trace.clone_from(&report.traces[0].trace));
        let drawn = draw(&report).unwrap();
        assert!(drawn.contains("&lt;script&gt;") && !drawn.contains("<script>"), "{drawn}");
    }

    #[test]
    fn a_report_without_results_is_an_empty_picture() {
        let report = Report { results: Vec::new(), ..report() };
        assert!(draw(&report).unwrap().starts_with("<svg"));
    }
}
