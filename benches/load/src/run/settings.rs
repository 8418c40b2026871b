//! What the command line of `run` means, or in one sentence why it makes no sense. Pure but for the key in the environment.
use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytesize::ByteSize;
use clap::ValueEnum;
use http::{HeaderName, HeaderValue};

use super::arguments::{Access, Run, Workload};
use crate::target::Target;
use crate::traffic::span::{Pause, Span};
use crate::wire::{Endpoint, Wire};
use crate::workload::BENCH_KEY;

/// When requests are sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Pace {
    /// So many connections, each with one request at a time.
    Closed { connections: usize },
    /// So many sessions begin per second.
    Rate(f64),
    /// As a trace has it.
    Trace,
}

/// What a run is.
pub(super) struct Settings {
    pub(super) target: Target,
    pub(super) wire: Wire,
    pub(super) workload: Workload,
    pub(super) pace: Pace,
    pub(super) warm_up: Duration,
    /// How long is counted; without an end a trace, or so many requests.
    pub(super) counted: Option<Duration>,
    pub(super) requests: Option<usize>,
    pub(super) seed: u64,
    pub(super) timeout: Duration,
    pub(super) in_flight: usize,
    pub(super) sizes: Sizes,
    /// All of it as it is kept, by the names of the command line, without what is secret.
    pub(super) configuration: BTreeMap<String, String>,
}

/// The sizes of a workload; those of others are their defaults.
#[derive(Clone, Debug)]
pub(super) struct Sizes {
    pub(super) body_bytes: usize,
    /// As many bodies in turn; without it none is sent twice.
    pub(super) distinct: Option<usize>,
    pub(super) system_prompts: usize,
    pub(super) system_tokens: Span<usize>,
    pub(super) question_tokens: Span<usize>,
    pub(super) first_question_tokens: Span<usize>,
    pub(super) result_tokens: Span<usize>,
    pub(super) answer_tokens: Span<usize>,
    pub(super) turns: Span<usize>,
    pub(super) think_time: Pause,
    pub(super) bytes_per_token: usize,
    pub(super) trace: PathBuf,
    pub(super) speed: f64,
}

const COUNTED: Duration = Duration::from_secs(5);
const CONNECTIONS: usize = 16;

impl Settings {
    pub(super) fn of(run: &Run) -> Result<Self> {
        let workload = workload(run)?;
        let pace = pace(run, workload)?;
        let (target, endpoint) = Target::parse(&run.target, run.endpoint)?;
        ensure!(
            workload != Workload::Agents || endpoint == Endpoint::Chat,
            "--workload agents needs --endpoint chat: tools are a part of chats"
        );
        let counted = match (run.requests, pace) {
            (Some(_), _) | (None, Pace::Trace) => run.duration,
            (None, _) => Some(run.duration.unwrap_or(COUNTED)),
        };
        let mut settings = Self {
            wire: wire(run, &target, endpoint)?,
            target,
            workload,
            pace,
            warm_up: run.warm_up,
            counted,
            requests: run.requests,
            seed: run.seed,
            timeout: run.timeout,
            in_flight: run.in_flight.get(),
            sizes: sizes(run, workload)?,
            configuration: BTreeMap::new(),
        };
        settings.configuration = settings.told(run);
        Ok(settings)
    }

    /// What was asked for, with the defaults that matter.
    fn told(&self, run: &Run) -> BTreeMap<String, String> {
        let time = |time: Duration| humantime::format_duration(time).to_string();
        let endpoint = self.wire.endpoint.to_possible_value();
        let mut told = vec![
            ("target", self.target.to_string()),
            ("workload", name(self.workload)),
            ("endpoint", endpoint.map(|value| value.get_name().to_owned()).unwrap_or_default()),
            ("stream", run.stream.to_string()),
            ("model", run.model.clone()),
            ("seed", run.seed.to_string()),
            ("timeout", time(run.timeout)),
        ];
        match self.pace {
            Pace::Closed { connections } => told.push(("connections", connections.to_string())),
            Pace::Rate(rate) => told.push(("rate", rate.to_string())),
            Pace::Trace => {
                // The folder is the business of this machine.
                let file = self.sizes.trace.file_name().map(|name| name.to_string_lossy().into_owned());
                told.push(("trace", file.unwrap_or_default()));
                told.push(("speed", self.sizes.speed.to_string()));
            }
        }
        if !matches!(self.pace, Pace::Closed { .. }) {
            told.push(("in-flight", self.in_flight.to_string()));
        }
        told.extend(self.counted.map(|counted| ("duration", time(counted))));
        told.extend((!self.warm_up.is_zero()).then(|| ("warm-up", time(self.warm_up))));
        told.extend(self.requests.map(|requests| ("requests", requests.to_string())));
        told.extend(SIZES.iter().filter(|size| size.of.contains(&self.workload)).filter_map(|size| {
            let value = (size.shown)(&self.sizes)?;
            Some((size.flag, value))
        }));
        if self.workload != Workload::Unique {
            told.push(("bytes-per-token", self.sizes.bytes_per_token.to_string()));
        }
        told.into_iter().map(|(flag, value)| (flag.to_owned(), value)).collect()
    }
}

fn name(workload: Workload) -> String {
    workload.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

fn workload(run: &Run) -> Result<Workload> {
    Ok(match (run.workload, &run.sizes.trace) {
        (Some(Workload::Trace), None) => bail!("--workload trace needs --trace FILE"),
        (None, Some(_)) => Workload::Trace,
        (None, None) => Workload::Unique,
        (Some(workload), _) => workload,
    })
}

fn pace(run: &Run, workload: Workload) -> Result<Pace> {
    let sessions = matches!(workload, Workload::MultiTurn | Workload::Agents);
    Ok(match (workload, run.rate) {
        // A rate beside a trace is refused before this.
        (Workload::Trace, _) => Pace::Trace,
        (_, Some(rate)) => {
            ensure!(rate > 0.0 && rate.is_finite(), "--rate has to be above 0");
            Pace::Rate(rate)
        }
        (_, None) if sessions => {
            bail!("--workload {} needs --rate: its sessions begin in an open loop", name(workload))
        }
        (_, None) => Pace::Closed { connections: run.connections.map_or(CONNECTIONS, NonZeroUsize::get) },
    })
}

/// A flag that some workloads have.
struct Size {
    flag: &'static str,
    of: &'static [Workload],
    given: fn(&super::arguments::Sizes) -> bool,
    shown: fn(&Sizes) -> Option<String>,
}

const SIZES: [Size; 12] = {
    use Workload::{Agents, MultiTurn, SharedSystemPrompt, Trace, Unique};
    const fn size(
        flag: &'static str,
        of: &'static [Workload],
        given: fn(&super::arguments::Sizes) -> bool,
        shown: fn(&Sizes) -> Option<String>,
    ) -> Size {
        Size { flag, of, given, shown }
    }
    [
        size("body-bytes", &[Unique], |of| of.body_bytes.is_some(), |of| Some(of.body_bytes.to_string())),
        size("distinct", &[Unique], |of| of.distinct.is_some(), |of| Some(of.distinct?.to_string())),
        size(
            "system-prompts",
            &[SharedSystemPrompt, Agents],
            |of| of.system_prompts.is_some(),
            |of| Some(of.system_prompts.to_string()),
        ),
        size(
            "system-tokens",
            &[SharedSystemPrompt, MultiTurn, Agents],
            |of| of.system_tokens.is_some(),
            |of| Some(of.system_tokens.to_string()),
        ),
        size(
            "question-tokens",
            &[SharedSystemPrompt, MultiTurn, Agents],
            |of| of.question_tokens.is_some(),
            |of| Some(of.question_tokens.to_string()),
        ),
        size(
            "first-question-tokens",
            &[MultiTurn],
            |of| of.first_question_tokens.is_some(),
            |of| Some(of.first_question_tokens.to_string()),
        ),
        size(
            "result-tokens",
            &[Agents],
            |of| of.result_tokens.is_some(),
            |of| Some(of.result_tokens.to_string()),
        ),
        size(
            "answer-tokens",
            &[Unique, SharedSystemPrompt, MultiTurn, Agents],
            |of| of.answer_tokens.is_some(),
            |of| Some(of.answer_tokens.to_string()),
        ),
        size("turns", &[MultiTurn, Agents], |of| of.turns.is_some(), |of| Some(of.turns.to_string())),
        size(
            "think-time",
            &[MultiTurn, Agents],
            |of| of.think_time.is_some(),
            |of| Some(of.think_time.to_string()),
        ),
        // These two are told with the pace.
        size("trace", &[Trace], |of| of.trace.is_some(), |_| None),
        size("speed", &[Trace], |of| of.speed.is_some(), |_| None),
    ]
};

fn sizes(run: &Run, workload: Workload) -> Result<Sizes> {
    let given = &run.sizes;
    for size in &SIZES {
        let fits = size.of.contains(&workload) || !(size.given)(given);
        ensure!(fits, "--{} has no meaning with --workload {}", size.flag, name(workload));
    }
    let (system_prompts, turns, think_time) = match workload {
        Workload::Agents => (4, Span::new(5, 20), Pause::millis(50, 1000)),
        _ => (12, Span::new(4, 8), Pause::millis(2000, 20_000)),
    };
    let system = match workload {
        Workload::MultiTurn => Span::new(512, 512),
        _ => Span::new(3000, 5000),
    };
    let answer = match workload {
        Workload::Unique => Span::new(64, 64),
        _ => Span::new(32, 256),
    };
    let speed = given.speed.unwrap_or(1.0);
    ensure!(speed > 0.0 && speed.is_finite(), "--speed has to be above 0");
    let sizes = Sizes {
        body_bytes: usize::try_from(given.body_bytes.unwrap_or(ByteSize::kib(16)).as_u64())?,
        distinct: given.distinct.map(NonZeroUsize::get),
        system_prompts: given.system_prompts.map_or(system_prompts, NonZeroUsize::get),
        system_tokens: given.system_tokens.unwrap_or(system),
        question_tokens: given.question_tokens.unwrap_or(Span::new(20, 320)),
        first_question_tokens: given.first_question_tokens.unwrap_or(Span::new(128, 4096)),
        result_tokens: given.result_tokens.unwrap_or(Span::new(50, 2000)),
        answer_tokens: given.answer_tokens.unwrap_or(answer),
        turns: given.turns.unwrap_or(turns),
        think_time: given.think_time.unwrap_or(think_time),
        bytes_per_token: given.bytes_per_token.get(),
        trace: given.trace.clone().unwrap_or_default(),
        speed,
    };
    let one_length = sizes.answer_tokens.least == sizes.answer_tokens.most;
    ensure!(
        workload != Workload::Unique || one_length,
        "--answer-tokens has to be one number with --workload unique: all its bodies have one size"
    );
    Ok(sizes)
}

fn wire(run: &Run, target: &Target, endpoint: Endpoint) -> Result<Wire> {
    let backend_header = HeaderName::from_bytes(run.access.backend_header.as_bytes());
    let backend_header = backend_header.ok().context("--backend-header is not the name of a header")?;
    Ok(Wire {
        authority: target.authority.clone(),
        path: target.path.clone(),
        head: head(&run.access)?,
        endpoint,
        model: run.model.clone(),
        stream: run.stream,
        backend_header: backend_header.as_str().into(),
    })
}

/// The lines of the head that the user wants. What is wrong is told without the value, which may be secret.
fn head(access: &Access) -> Result<String> {
    let (mut head, mut authorized) = (String::new(), false);
    for header in &access.header {
        let (name, value) = header.split_once(':').context("a --header is NAME: VALUE")?;
        let parsed = HeaderName::from_bytes(name.trim().as_bytes());
        let name = parsed.ok().context("a --header does not begin with the name of a header")?;
        let value = value.trim();
        let fine = HeaderValue::from_str(value).is_ok();
        ensure!(fine, "the value of --header {name} is not one of a header");
        let ours = ["host", "content-length", "transfer-encoding", "connection"].contains(&name.as_str());
        ensure!(!ours, "--header {name} is for this program to set");
        authorized |= name == http::header::AUTHORIZATION;
        head.extend([name.as_str(), ": ", value, "\r\n"]);
    }
    if let Some(variable) = &access.api_key_env {
        ensure!(!authorized, "--api-key-env and --header authorization are the same header");
        #[expect(
            clippy::disallowed_methods,
            reason = "a key does not belong on a command line, which others can see"
        )]
        let key = std::env::var(variable).ok().filter(|key| !key.is_empty());
        let key = key.with_context(|| format!("--api-key-env: {variable} is not set"))?;
        ensure!(
            HeaderValue::from_str(&key).is_ok(),
            "--api-key-env: {variable} is not the value of a header"
        );
        head.extend(["authorization: Bearer ", &key, "\r\n"]);
    } else if !authorized {
        head.push_str(BENCH_KEY);
    }
    Ok(head)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::arguments::{Arguments, Command};

    fn settings(flags: &str) -> Result<Settings, String> {
        let line =
            ["kvway-bench", "run", "--target", "http://a:1"].into_iter().chain(flags.split_whitespace());
        let arguments = Arguments::try_parse_from(line).map_err(|error| error.to_string())?;
        let Command::Run(run) = arguments.command else { return Err("another command".to_owned()) };
        Settings::of(&run).map_err(|error| error.to_string())
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_one_sentence() {
        for (flags, said) in [
            ("--workload multi-turn", "--workload multi-turn needs --rate"),
            ("--workload agents", "--workload agents needs --rate"),
            ("--workload agents --rate 1 --endpoint completions", "needs --endpoint chat"),
            ("--workload trace", "--workload trace needs --trace FILE"),
            ("--trace t --workload unique", "--trace has no meaning with --workload unique"),
            ("--trace t --rate 1", "cannot be used with"),
            ("--trace t --connections 1", "cannot be used with"),
            ("--rate 1 --connections 1", "cannot be used with"),
            ("--rate 0", "--rate has to be above 0"),
            ("--trace t --speed 0", "--speed has to be above 0"),
            ("--speed 2", "--speed has no meaning with --workload unique"),
            (
                "--workload multi-turn --rate 1 --body-bytes 1KiB",
                "--body-bytes has no meaning with --workload multi-turn",
            ),
            ("--turns 3", "--turns has no meaning with --workload unique"),
            ("--answer-tokens 5..6", "--answer-tokens has to be one number"),
            ("--requests 5 --duration 1s", "cannot be used with"),
            ("--header x", "a --header is NAME: VALUE"),
            ("--header host:x", "--header host is for this program to set"),
            ("--api-key-env KVWAY_BENCH_NO_SUCH_VARIABLE", "KVWAY_BENCH_NO_SUCH_VARIABLE is not set"),
        ] {
            let refused = settings(flags).err().unwrap_or_else(|| panic!("{flags} is accepted"));
            assert!(refused.contains(said), "{flags}: {refused}");
        }
    }

    #[test]
    fn the_defaults_are_told_and_secrets_are_not() {
        let settings = settings("--header authorization:s3cret --header x-more:1 --label secretive").unwrap();
        assert_eq!(settings.wire.head, "authorization: s3cret\r\nx-more: 1\r\n");
        let told = &settings.configuration;
        assert!(!format!("{told:?}").contains("cret"), "{told:?}");
        let expected =
            [("workload", "unique"), ("connections", "16"), ("duration", "5s"), ("body-bytes", "16384")];
        assert!(expected.iter().all(|(flag, value)| told[*flag] == *value), "{told:?}");
        assert!(!told.contains_key("turns") && !told.contains_key("rate"));
    }

    #[test]
    fn a_trace_has_no_end_of_its_own_and_is_told_without_its_folder() {
        let settings = settings("--trace some/where/t.jsonl --speed 2 --limit 7").unwrap();
        assert_eq!((settings.pace, settings.counted, settings.requests), (Pace::Trace, None, Some(7)));
        assert_eq!((&*settings.configuration["trace"], &*settings.configuration["speed"]), ("t.jsonl", "2"));
        assert!(settings.wire.head.starts_with("authorization: Bearer bench"));
    }

    #[test]
    fn agents_have_their_own_defaults_and_take_what_is_given() {
        let settings =
            settings("--workload agents --rate 2 --turns 3..4 --think-time 1ms..2ms --stream").unwrap();
        assert_eq!((settings.pace, settings.sizes.system_prompts), (Pace::Rate(2.0), 4));
        assert_eq!(settings.sizes.turns, Span::new(3, 4));
        assert_eq!(&*settings.configuration["think-time"], "1ms..2ms");
    }
}
