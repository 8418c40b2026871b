//! Charts as SVG, drawn by the library `charts-rs`: lines over a number, and bars. Pure; used by `html`.
//!
//! Every chart is drawn twice, for wide pages and for narrow ones, so that its letters stay readable. Colours are those
//! of light pages; the style sheet knows them by their value and has others for dark pages.
use charts_rs::{BarChart, Color, LineChart};
use serde_json::{Value, json};

/// The colours of results, as the style sheet has them.
pub(super) const COLOURS: [&str; 8] =
    ["#1F5FBF", "#C2570C", "#0F766E", "#7C3AED", "#BE185D", "#4D7C0F", "#92400E", "#475569"];
const INK: &str = "#4B5563";
const GRID: &str = "#E3E6EA";
const AXIS: &str = "#9AA3AF";

/// What stands around the number at a tick of an axis of percentiles until it is replaced.
const TICK: [&str; 2] = ["nines:", ";"];
/// What such a number is replaced by, and how far that is moved to stand in the middle of the room for the number.
const PERCENTILES: [(&str, i8); 7] = [
    ("0 %", 0),
    ("90 %", 8),
    ("99 %", 8),
    ("99.9 %", 3),
    ("99.99 %", 0),
    ("99.999 %", -3),
    ("99.9999 %", -6),
];

/// The description was not understood by the library.
#[derive(Debug, thiserror::Error)]
#[error("a chart cannot be drawn: {0}")]
pub(crate) struct ChartError(String);

/// One chart, for pages of either width.
#[derive(Debug)]
pub(crate) struct Drawn {
    pub(crate) wide: String,
    pub(crate) narrow: String,
}

/// What the x axis is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Across {
    /// From 0 to 100, with more room for what is closer to 100: a tenth of the rest takes as much as all before it.
    Percentile,
    /// Since the beginning.
    Seconds,
}

/// What the y axis is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Measure {
    /// Times in microseconds, drawn in the unit that fits.
    Time,
    /// Anything else, by its name.
    Of(&'static str),
}

/// One line.
pub(super) struct Line {
    pub(super) name: String,
    /// Which result it belongs to: lines of one have one colour.
    pub(super) of: usize,
    pub(super) dashed: bool,
    /// Places on the x axis and values; a line ends where there is no value, and begins again after it.
    pub(super) points: Vec<(f64, Option<f64>)>,
}

/// A chart of lines.
pub(super) struct Plot {
    pub(super) across: Across,
    pub(super) measure: Measure,
    pub(super) lines: Vec<Line>,
}

/// A chart of bars: a group for each name, in it a bar for each result.
pub(super) struct Bars {
    pub(super) title: &'static str,
    pub(super) names: Vec<String>,
    pub(super) results: Vec<(String, Vec<Option<f64>>)>,
}

struct Size {
    width: u32,
    height: u32,
}

const WIDE: Size = Size { width: 600, height: 300 };
const NARROW: Size = Size { width: 350, height: 280 };

/// The colour of the result of this number.
pub(super) fn colour(of: usize) -> &'static str {
    COLOURS.get(of % COLOURS.len()).copied().unwrap_or(INK)
}

/// How far along an axis of percentiles: 1 is 90 %, 2 is 99 %.
pub(super) fn nines(percentile: f64) -> f64 {
    -(1.0 - percentile / 100.0).log10()
}

impl Plot {
    pub(super) fn draw(&self) -> Result<Drawn, ChartError> {
        let draw = |size: &Size| {
            let mut chart = LineChart::from_json(&self.description(size).to_string()).map_err(refused)?;
            chart.background_color = Color::transparent();
            Ok(percentiles(&chart.svg().map_err(refused)?))
        };
        Ok(Drawn { wide: draw(&WIDE)?, narrow: draw(&NARROW)? })
    }

    fn description(&self, size: &Size) -> Value {
        let (title, formatter) = match self.across {
            Across::Percentile => ("percentile", TICK.join("{c}")),
            Across::Seconds => ("seconds", "{c}".to_owned()),
        };
        let values = self.lines.iter().flat_map(|line| &line.points).filter_map(|(_, value)| *value);
        let most = values.fold(0.0, f64::max);
        let (unit, divisor) = self.measure.unit(most);
        let series = self.lines.iter().map(|line| {
            let points = line.points.iter().map(|(x, y)| (*x, y.map(|y| y / divisor)));
            let (x, y): (Vec<f64>, Vec<Option<f64>>) = points.unzip();
            let mut series = json!({"name": line.name, "data": y, "x_values": x});
            if let Some(fields) = series.as_object_mut().filter(|_| line.dashed) {
                fields.insert("stroke_dash_array".to_owned(), "5 4".into());
            }
            series
        });
        let mut description = described(size, unit, most / divisor);
        let own = json!({
            "x_axis_type": "value",
            "x_axis_title": title,
            "x_axis_formatter": formatter,
            "x_axis_min": 0,
            "series_colors": self.lines.iter().map(|line| colour(line.of)).collect::<Vec<_>>(),
            // A line of one point would not be seen.
            "series_symbol": if self.lines.iter().all(|line| line.points.len() < 2) { json!({"type": "circle", "size": 3}) } else { Value::Null },
            "series_list": series.collect::<Vec<_>>(),
        });
        extend(&mut description, own);
        description
    }
}

impl Bars {
    pub(super) fn draw(&self) -> Result<Drawn, ChartError> {
        let draw = |size: &Size| {
            let mut chart = BarChart::from_json(&self.description(size).to_string()).map_err(refused)?;
            chart.background_color = Color::transparent();
            chart.svg().map_err(refused)
        };
        Ok(Drawn { wide: draw(&WIDE)?, narrow: draw(&NARROW)? })
    }

    fn description(&self, size: &Size) -> Value {
        let results = self.results.iter().map(|(name, values)| json!({"name": name, "data": values}));
        let values = self.results.iter().flat_map(|(_, values)| values).copied().flatten();
        let mut description = described(size, self.title, values.fold(0.0, f64::max));
        let own = json!({
            "x_axis_data": self.names,
            "x_axis_label_overflow": "ellipsis",
            "tooltip_show": true,
            "series_colors": (0..self.results.len()).map(colour).collect::<Vec<_>>(),
            "series_list": results.collect::<Vec<_>>(),
        });
        extend(&mut description, own);
        description
    }
}

fn refused(error: impl std::error::Error) -> ChartError {
    ChartError(error.to_string())
}

impl Measure {
    /// The name of the unit in which so much is drawn, and how much one of it is.
    fn unit(self, most: f64) -> (&'static str, f64) {
        match self {
            Self::Of(name) => (name, 1.0),
            Self::Time if ticks(most).1 < 1e3 => ("µs", 1.0),
            Self::Time if ticks(most / 1e3).1 < 1e3 => ("ms", 1e3),
            Self::Time => ("s", 1e6),
        }
    }
}

/// In how many parts an axis is split that reaches from 0 to at least `most`, and where it ends; each part is 1, 2 or 5
/// of something.
fn ticks(most: f64) -> (u32, f64) {
    let most = most.max(0.5);
    let raw = most / 5.0;
    let ten = 10f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 5.0].into_iter().map(|step| step * ten).find(|step| *step >= raw * (1.0 - 1e-9));
    let step = step.unwrap_or(10.0 * ten);
    let split = (1..5).find(|split| f64::from(*split) * step >= most * (1.0 - 1e-9)).unwrap_or(5);
    (split, f64::from(split) * step)
}

/// What all charts have in common.
fn described(size: &Size, title: &str, most: f64) -> Value {
    let (split, max) = ticks(most);
    json!({
        "width": size.width,
        "height": size.height,
        "margin": {"left": 2, "top": 10, "right": 14, "bottom": 2},
        "compact": true,
        "legend_show": false,
        "grid_stroke_color": GRID,
        "series_stroke_width": 1.75,
        "series_label_font_color": INK,
        "series_label_font_size": 12,
        "x_axis_stroke_color": AXIS,
        "x_axis_font_color": INK,
        "x_axis_font_size": 12,
        "y_axis_configs": [{
            "axis_title": title, "axis_font_color": INK, "axis_font_size": 12, "axis_split_number": split, "axis_min": 0, "axis_max": max,
        }],
    })
}

fn extend(description: &mut Value, own: Value) {
    if let (Value::Object(description), Value::Object(own)) = (description, own) {
        description.extend(own);
    }
}

/// Puts percentiles where the library wrote how many nines they have; between whole numbers there is only a tick.
fn percentiles(svg: &str) -> String {
    let mut parts = svg.split(TICK[0]);
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (number, rest) = part.split_once(TICK[1]).unwrap_or(("", part));
        let label = number.parse().ok().and_then(|nines: usize| PERCENTILES.get(nines));
        if let Some((label, moved)) = label {
            text.extend(["<tspan dx=\"", &moved.to_string(), "\">", label, "</tspan>"]);
        }
        text.push_str(rest);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_of_nines_become_percentiles() {
        let ticks = "<t>nines:0;</t><t>nines:0.5;</t><t>nines:1;</t><t>nines:2;</t><t>nines:4;</t>";
        let shown = percentiles(ticks).replace("<tspan dx=\"8\">", "").replace("</tspan>", "");
        assert!(shown.contains("<t></t><t>90 %</t><t>99 %</t>") && shown.contains("99.99 %"), "{shown}");
        assert!((nines(99.9) - 3.0).abs() < 1e-9 && nines(0.0).abs() < 1e-9);
    }

    #[test]
    fn a_curve_has_an_axis_of_percentiles() {
        let points = (0..400).map(|at| (f64::from(at) / 100.0, Some(f64::from(at)))).collect();
        let line = Line { name: "<a>".to_owned(), of: 1, dashed: true, points };
        let plot = Plot { across: Across::Percentile, measure: Measure::Time, lines: vec![line] };
        let drawn = plot.draw().unwrap();
        for svg in [&drawn.wide, &drawn.narrow] {
            assert!(svg.starts_with("<svg") && svg.contains("99.9 %") && svg.contains("percentile"), "{svg}");
            assert!(!svg.contains("nines") && !svg.contains("<a>") && svg.contains(COLOURS[1]), "{svg}");
        }
    }

    #[test]
    fn an_axis_ends_at_a_round_number_above_all_values() {
        assert_eq!([ticks(0.0), ticks(93.0), ticks(100.0)], [(5, 0.5), (5, 100.0), (5, 100.0)]);
        assert_eq!([ticks(101.0), ticks(480.0), ticks(14.2)], [(3, 150.0), (5, 500.0), (3, 15.0)]);
        assert_eq!(
            [1.0, 2e3, 4e5, 95e4, 3e6].map(|us| Measure::Time.unit(us).0),
            ["µs", "ms", "ms", "s", "s"]
        );
    }

    #[test]
    fn a_chart_of_nothing_is_drawn() {
        let nothing = Plot { across: Across::Seconds, measure: Measure::Time, lines: Vec::new() };
        assert!(nothing.draw().unwrap().wide.starts_with("<svg"));
        let bars = Bars { title: "%", names: Vec::new(), results: Vec::new() };
        assert!(bars.draw().unwrap().wide.starts_with("<svg"));
    }
}
