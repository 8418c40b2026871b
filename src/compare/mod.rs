//! `kvway compare`: unique prompts against repeated ones through a running gateway, and what the caches are worth.
//!
//! Called by `main` with a gateway's configuration, and by `demo`. `plan.rs` says what is sent where, `traffic.rs` sends
//! it in a closed loop, `scrape.rs` reads the gateway's counters before and after, `report.rs` shows what came of it.
//! Bounded by its number of requests and by the timeout of each. The counters tell of all requests, so it tells most of a
//! gateway that nobody else uses. It changes nothing but what the engines cache.

mod plan;
mod report;
mod scrape;
mod traffic;

pub use plan::Plan;
pub use report::{Cached, Phase, Report, Seen, Times};

use scrape::Counters;
use std::time::Duration;
use tokio::time::sleep;
use traffic::{Sender, Tally};

/// How often the repeated prompts are sent until the gateway knows them.
const WARM_UPS_MAX: usize = 10;
/// What it is given between two of these: it asks the tokenizer and LMCache in the background.
const WARM_UP_PAUSE: Duration = Duration::from_millis(300);
/// A request is counted after its answer has ended, so the counters are read again until all are in.
const RECOUNT_PAUSE: Duration = Duration::from_millis(20);
const RECOUNTS_MAX: usize = 50;

/// Why there is nothing to compare.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// No address that can be asked without further knowledge.
    #[error("every listener of the configuration has TLS: name the gateway with --url https://NAME:PORT")]
    OnlyTls,
    /// The client cannot be made.
    #[error("no client: {0}")]
    Client(String),
    /// The gateway did not answer.
    #[error("the gateway cannot be reached at {url}: {reason}")]
    Unreachable {
        /// Where it was looked for.
        url: String,
        /// What went wrong.
        reason: String,
    },
    /// It answered, and named no model.
    #[error("the gateway at {url} lists no model: name one with --model")]
    NoModel {
        /// Where it was asked.
        url: String,
    },
    /// It answered no request of a phase.
    #[error("all {requests} requests to {url} failed: {reason}")]
    AllFailed {
        /// Where they were sent.
        url: String,
        /// How many.
        requests: usize,
        /// The first failure.
        reason: String,
    },
}

/// Sends what `plan` says and tells what came of it.
///
/// # Errors
/// When the gateway cannot be reached, names no model, or answers no request.
pub async fn run(plan: &Plan) -> Result<Report, CompareError> {
    let sender = Sender::new(plan).await?;
    let filter = plan.has_filter(sender.model());
    let mut warnings = Vec::new();
    let start = match sender.read_counters().await {
        Ok(counters) => Some(counters),
        Err(reason) => {
            warnings.push(format!("no metrics were seen: {reason}"));
            None
        }
    };
    let tally = sender.send_all(&plan.prompts("unique", plan.requests)).await?;
    let counted = counted(&sender, start.as_ref(), &tally).await;
    let unique = Phase::new(&tally, seen(start.as_ref(), counted.as_ref()));

    let prompts = plan.prompts("repeated", plan.repeated());
    let start = warm_up(&sender, &prompts, filter, counted, &mut warnings).await?;
    let again: Vec<String> = prompts.iter().cycle().take(plan.requests).cloned().collect();
    let tally = sender.send_all(&again).await?;
    let counted = self::counted(&sender, start.as_ref(), &tally).await;
    let repeated = Phase::new(&tally, seen(start.as_ref(), counted.as_ref()));

    if !filter {
        let off = "LMCache is not asked about this model's prompts (`kvcache.enabled`, `token_cache.enabled` and `policy` of \
                   its cluster): repeated ones go where the policy alone sends them";
        warnings.insert(0, off.to_owned());
    }
    let model = sender.model().to_owned();
    let report =
        Report { url: plan.url.clone(), model, filter, prompts: prompts.len(), unique, repeated, warnings };
    Ok(report.with_own_warnings())
}

/// Sends each prompt until the gateway routes all of them by a hint, or gives up; the counters as they are then. Without
/// a filter, or without counters to see it by, once is all.
async fn warm_up(
    sender: &Sender<'_>,
    prompts: &[String],
    filter: bool,
    start: Option<Counters>,
    warnings: &mut Vec<String>,
) -> Result<Option<Counters>, CompareError> {
    let (mut before, mut followed) = (start, 0);
    for _ in 0..WARM_UPS_MAX {
        let tally = sender.send_all(prompts).await?;
        let after = counted(sender, before.as_ref(), &tally).await;
        let Some(seen) = seen(before.as_ref(), after.as_ref()).filter(|_| filter) else {
            return Ok(after);
        };
        (before, followed) = (after, seen.hints_followed);
        if followed >= prompts.len() as u64 {
            return Ok(before);
        }
        sleep(WARM_UP_PAUSE).await;
    }
    let count = prompts.len();
    warnings.push(format!(
        "after {WARM_UPS_MAX} rounds {followed} of {count} repeated prompts are routed by a hint: `kvway doctor` tells why, \
         unless they are shorter than `lookup_tokens_min`"
    ));
    Ok(before)
}

/// The counters once all requests of `tally` are in them; as they are when that takes too long.
async fn counted(sender: &Sender<'_>, start: Option<&Counters>, tally: &Tally) -> Option<Counters> {
    let start = start?;
    let mut counters = sender.read_counters().await.ok()?;
    for _ in 0..RECOUNTS_MAX {
        let tries: u64 = counters.since(start).backends.values().sum();
        if tries >= tally.sent as u64 {
            break;
        }
        sleep(RECOUNT_PAUSE).await;
        counters = sender.read_counters().await.ok()?;
    }
    Some(counters)
}

fn seen(start: Option<&Counters>, end: Option<&Counters>) -> Option<Seen> {
    Some(end?.since(start?))
}
