//! The jobs of a run: from its settings an iterator that the player draws from, one job after the other. Pure, but that a trace
//! is read.
use std::rc::Rc;
use std::time::Duration;

use anyhow::Result;
use rand::{SeedableRng, rngs::StdRng};

use super::arguments::Workload;
use super::settings::{Pace, Settings};
use crate::plan::{Job, Session};
use crate::traffic::agents::Agents;
use crate::traffic::multi_turn::Conversations;
use crate::traffic::shared_system_prompt::Prompts;
use crate::traffic::steady::Steady;
use crate::traffic::trace::{self, Playing};
use crate::traffic::{BytesPerToken, arrivals};
use crate::wire::Endpoint;
use crate::workload::{self, Form, Stamp};

/// Where jobs come from, and when they are due.
pub(super) enum Source {
    Open(Box<dyn Iterator<Item = (Duration, Job)>>),
    Closed(Box<dyn Iterator<Item = Job>>),
}

/// The jobs, and what is known of them beforehand.
pub(super) struct Jobs {
    pub(super) source: Source,
    pub(super) requests: Option<usize>,
    /// How long jobs are sent.
    pub(super) length: Option<Duration>,
    /// What is to be said about them.
    pub(super) notes: Vec<String>,
}

/// Bodies that all others are made from.
const TEMPLATES: usize = 100;
/// About what an answer takes for each of its tokens; where sessions that are under way are cut goes by it.
const SECONDS_PER_ANSWER_TOKEN: f64 = 0.02;

impl Jobs {
    pub(super) fn of(settings: &Settings) -> Result<Self> {
        let mut jobs = Self {
            source: Source::Closed(Box::new(std::iter::empty())),
            requests: settings.requests,
            length: settings.counted.map(|counted| settings.warm_up + counted),
            notes: Vec::new(),
        };
        let limit = settings.requests.unwrap_or(usize::MAX);
        jobs.source = match settings.pace {
            Pace::Closed { .. } => Source::Closed(Box::new(at_once(settings)?.take(limit))),
            Pace::Rate(rate) => {
                let due = timed(settings, rate, jobs.length.unwrap_or(Duration::MAX))?;
                Source::Open(limited(due, limit))
            }
            Pace::Trace => {
                let playing = Playing {
                    speed: settings.sizes.speed,
                    limit,
                    bytes: BytesPerToken(settings.sizes.bytes_per_token),
                    seed: settings.seed,
                };
                let (played, sessions) = trace::load(&settings.sizes.trace, playing)?;
                let end = jobs.length.unwrap_or(Duration::MAX);
                jobs.notes = played.notes;
                jobs.requests = jobs.length.is_none().then_some(played.requests);
                jobs.length = Some(played.length.min(end));
                let due = sessions.map(|session| (session.start, Job::Session(session)));
                Source::Open(Box::new(due.take_while(move |(at, _)| *at < end)))
            }
        };
        Ok(jobs)
    }
}

/// Where chance comes from: what is sent, when, and what was before.
fn chance(settings: &Settings) -> [StdRng; 3] {
    let mut random = StdRng::seed_from_u64(settings.seed);
    [(); 3].map(|()| StdRng::from_rng(&mut random))
}

/// Jobs without an end, of workloads whose jobs are single requests.
fn at_once(settings: &Settings) -> Result<Box<dyn Iterator<Item = Job>>> {
    let sizes = &settings.sizes;
    if settings.workload == Workload::Unique {
        let unique = workload::Workload {
            model: settings.wire.model.clone(),
            body_bytes: sizes.body_bytes,
            distinct: sizes.distinct.unwrap_or(TEMPLATES),
            max_tokens: u32::try_from(sizes.answer_tokens.least)?,
            stream: settings.wire.stream,
            seed: settings.seed,
        };
        let form = Form {
            completion: settings.wire.endpoint == Endpoint::Completions,
            include_usage: true,
            stamped: sizes.distinct.is_none(),
        };
        let requests = unique.bodies(form)?.into_iter().map(|body| settings.wire.bare(&body));
        if form.stamped {
            let stamps: Vec<Stamp> = requests.filter_map(Stamp::of).collect();
            // Other seeds make other prompts.
            let first = settings.seed.rotate_left(32);
            let numbered = (0_usize..).map_while(move |number| {
                let request = stamps.get(number % stamps.len().max(1))?;
                Some(Job::Request(request.numbered(first ^ number as u64).into()))
            });
            return Ok(Box::new(numbered));
        }
        let requests: Vec<Rc<[u8]>> = requests.map(Into::into).collect();
        return Ok(Box::new(requests.into_iter().cycle().map(Job::Request)));
    }
    let [what, ..] = chance(settings);
    let prompts = Prompts {
        count: sizes.system_prompts,
        system_tokens: sizes.system_tokens,
        question_tokens: sizes.question_tokens,
        answer_tokens: sizes.answer_tokens,
        bytes: BytesPerToken(sizes.bytes_per_token),
    };
    Ok(Box::new(prompts.sessions(what).map(Job::Session)))
}

/// Jobs at their times, until `length`.
fn timed(
    settings: &Settings,
    rate: f64,
    length: Duration,
) -> Result<Box<dyn Iterator<Item = (Duration, Job)>>> {
    let (sizes, bytes) = (&settings.sizes, BytesPerToken(settings.sizes.bytes_per_token));
    let [what, when, before] = chance(settings);
    let answer = sizes.answer_tokens.mean() * SECONDS_PER_ANSWER_TOKEN;
    let longest =
        f64::from(u32::try_from(sizes.turns.most)?) * (sizes.think_time.0.most.as_secs_f64() + answer);
    let steady =
        Steady { sessions_per_second: rate, lookback: longest, answer, length: length.as_secs_f64(), bytes };
    let due = |session: Session| (session.start, Job::Session(session));
    Ok(match settings.workload {
        Workload::MultiTurn => {
            let conversations = Conversations {
                system_tokens: sizes.system_tokens,
                turns: sizes.turns,
                first_question_tokens: sizes.first_question_tokens,
                question_tokens: sizes.question_tokens,
                answer_tokens: sizes.answer_tokens,
                think: sizes.think_time,
                bytes,
            };
            Box::new(steady.cut(conversations.sessions(what), when, before).map(due))
        }
        Workload::Agents => {
            let agents = Agents {
                types: sizes.system_prompts,
                system_tokens: sizes.system_tokens,
                task_tokens: sizes.question_tokens,
                steps: sizes.turns,
                result_tokens: sizes.result_tokens,
                answer_tokens: sizes.answer_tokens,
                pause: sizes.think_time,
                bytes,
            };
            Box::new(steady.cut(agents.sessions(what), when, before).map(due))
        }
        _ => Box::new(arrivals(rate, when).take_while(move |at| *at < length).zip(at_once(settings)?)),
    })
}

/// The first jobs, of so many requests together.
fn limited(
    jobs: Box<dyn Iterator<Item = (Duration, Job)>>,
    limit: usize,
) -> Box<dyn Iterator<Item = (Duration, Job)>> {
    Box::new(jobs.scan(limit, |left, (at, mut job)| {
        if *left == 0 {
            return None;
        }
        *left -= match &mut job {
            Job::Request(_) => 1,
            Job::Session(session) => {
                session.turns.truncate(*left);
                session.turns.len()
            }
        };
        Some((at, job))
    }))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::arguments::{Arguments, Command};

    fn open(flags: &str) -> Vec<(Duration, Job)> {
        let line =
            ["kvway-bench", "run", "--target", "http://a:1"].into_iter().chain(flags.split_whitespace());
        let Command::Run(run) = Arguments::parse_from(line).command else { panic!("another command") };
        match Jobs::of(&Settings::of(&run).unwrap()).unwrap().source {
            Source::Open(jobs) => jobs.collect(),
            Source::Closed(_) => panic!("a closed loop"),
        }
    }

    fn turns(jobs: &[(Duration, Job)]) -> Vec<usize> {
        let turns = |(_, job): &(Duration, Job)| match job {
            Job::Request(_) => 1,
            Job::Session(session) => session.turns.len(),
        };
        jobs.iter().map(turns).collect()
    }

    #[test]
    fn so_many_requests_are_sent_whatever_the_sessions() {
        for flags in [
            "--rate 10 --requests 25",
            "--rate 10 --requests 25 --workload shared-system-prompt",
            "--rate 10 --requests 25 --workload multi-turn",
            "--rate 10 --requests 25 --workload agents",
        ] {
            let jobs = open(flags);
            assert_eq!(turns(&jobs).iter().sum::<usize>(), 25, "{flags}");
            assert!(jobs.is_sorted_by_key(|(at, _)| *at), "{flags}");
        }
    }

    #[test]
    fn a_duration_ends_arrivals_and_a_warm_up_comes_before_it() {
        let jobs = open("--rate 50 --warm-up 1s --duration 2s");
        assert!((100..200).contains(&jobs.len()), "{}", jobs.len());
        assert!(jobs.iter().all(|(at, _)| at.as_secs_f64() < 3.0));
        let jobs = open("--rate 2 --duration 30s --workload multi-turn");
        assert!(turns(&jobs).iter().sum::<usize>() > 150, "conversations are under way from the start");
    }
}
