//! How far a run is: a bar on a terminal, a line now and then elsewhere. Both on stderr; the result alone is on stdout.
use std::io::{IsTerminal, Write, stderr};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::{self, Instant};

use super::books::Counts;

const BAR_PERIOD: Duration = Duration::from_millis(250);
const LINE_PERIOD: Duration = Duration::from_secs(10);
/// So many failures before the first good answer, and nobody needs to see the rest.
const HOPELESS: u64 = 100;

const STYLE: &str = "{wide_bar} {percent:>3} % {msg}";
const STYLE_WITHOUT_END: &str = "{spinner} {elapsed} {msg}";

/// Shows how far a run is.
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    opened: Instant,
    length: Option<Duration>,
    requests: Option<u64>,
}

impl Progress {
    /// Of a run that takes so long, or has so many requests.
    pub(super) fn new(opened: Instant, length: Option<Duration>, requests: Option<u64>) -> Self {
        let bar = stderr().is_terminal().then(|| {
            let (steps, style) = match (requests, length) {
                (Some(requests), _) => (requests, STYLE),
                (None, Some(length)) => (millis(length), STYLE),
                (None, None) => (0, STYLE_WITHOUT_END),
            };
            // A style that cannot be read would only look different.
            let style = ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new(steps).with_style(style)
        });
        Self { bar, opened, length, requests }
    }

    /// Shows it until it is dropped, or returns when every request has failed for a while.
    pub(super) async fn watch(&self, counts: impl Fn() -> Counts) {
        let period = if self.bar.is_some() { BAR_PERIOD } else { LINE_PERIOD };
        let mut next_line = self.opened + period;
        loop {
            time::sleep(BAR_PERIOD).await;
            let counts = counts();
            if counts.answered == 0 && counts.failed >= HOPELESS {
                return;
            }
            if Instant::now() < next_line {
                continue;
            }
            next_line += period;
            self.show(&counts);
        }
    }

    fn show(&self, counts: &Counts) {
        let Counts { sent, answered, failed, shed } = counts;
        let elapsed = self.opened.elapsed();
        let said = format!("{sent} sent, {answered} answered, {shed} shed, {failed} failed");
        let Some(bar) = &self.bar else {
            let of = match (self.requests, self.length) {
                (Some(requests), _) => format!(" of {requests} requests"),
                (None, Some(length)) if elapsed > length => ", the last answers are awaited".to_owned(),
                (None, Some(length)) => format!(" of {} s", length.as_secs()),
                (None, None) => String::new(),
            };
            // With no place left to write to, the result tells all the same.
            let _written = writeln!(stderr(), "{} s{of}: {said}", elapsed.as_secs());
            return;
        };
        bar.set_position(if self.requests.is_some() { answered + failed + shed } else { millis(elapsed) });
        bar.set_message(said);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
