//! The flags of `kvway replay`.

use clap::builder::PossibleValuesParser;
use clap::{ArgAction, Args};
use std::path::PathBuf;

/// The policies that can be replayed, by name, the ones to begin with first. `pooled` always runs as well.
pub const POLICIES: [&str; 10] = [
    "pmc",
    "lmetric",
    "cache_aware",
    "exact_match",
    "least_requests",
    "power_of_two",
    "round_robin",
    "consistent_hash",
    "random",
    "pooled",
];

/// How many of [`POLICIES`] are replayed when none is named: without those that are only worth it to see how bad they are.
const POLICIES_USUAL: usize = 7;

/// The largest load: nothing is learned beyond.
const LOAD_MAX: f64 = 64.0;

/// What to replay, on which fleet.
#[derive(Args, Clone, Debug)]
pub struct Replay {
    /// A trace in Mooncake's format, or an access log of kvway that was written as JSON with `log.block_keys`. May be
    /// given again.
    #[arg(
        long = "trace",
        value_name = "FILE",
        required = true,
        value_delimiter = ',',
        action = ArgAction::Append,
        env = "KVWAY_REPLAY_TRACE",
        help_heading = "Trace"
    )]
    pub traces: Vec<PathBuf>,
    /// Tokens of a block; otherwise 512, or the median of what the access log says.
    #[arg(
        long,
        value_name = "COUNT",
        value_parser = super::within::<1_000_000>,
        env = "KVWAY_REPLAY_BLOCK_TOKENS",
        help_heading = "Trace"
    )]
    pub block_tokens: Option<usize>,
    /// Leave times that are rounded as they are; otherwise each is spread within its step.
    #[arg(long, env = "KVWAY_REPLAY_NO_SPREAD", help_heading = "Trace")]
    pub no_spread: bool,
    /// How many engines there are.
    #[arg(
        long,
        value_name = "COUNT",
        default_value_t = 8,
        value_parser = super::within::<1024>,
        env = "KVWAY_REPLAY_BACKENDS",
        help_heading = "Fleet"
    )]
    pub backends: usize,
    /// Tokens whose KV fits into the memory of one engine's GPU.
    #[arg(
        long,
        value_name = "TOKENS",
        default_value_t = 500_000,
        value_parser = super::within::<1_000_000_000>,
        env = "KVWAY_REPLAY_CAPACITY",
        help_heading = "Fleet"
    )]
    pub capacity: usize,
    /// Tokens whose KV an engine holds in all, where it has a tier below the GPU's memory.
    #[arg(
        long,
        value_name = "TOKENS",
        value_parser = super::within::<1_000_000_000>,
        env = "KVWAY_REPLAY_OFFLOAD",
        help_heading = "Fleet"
    )]
    pub offload: Option<usize>,
    /// The rules that choose. `pooled`, one cache for all engines, is always replayed as well.
    #[arg(
        long,
        value_name = "NAME,..",
        value_delimiter = ',',
        default_values = POLICIES.iter().take(POLICIES_USUAL),
        value_parser = PossibleValuesParser::new(POLICIES),
        env = "KVWAY_REPLAY_POLICY",
        help_heading = "Load"
    )]
    pub policy: Vec<String>,
    /// How much is asked for: 1 is all that round robin can serve of this trace.
    #[arg(
        long,
        value_name = "SHARE,..",
        value_delimiter = ',',
        default_value = "0.8",
        value_parser = load,
        env = "KVWAY_REPLAY_LOAD",
        help_heading = "Load"
    )]
    pub load: Vec<f64>,
    /// Seconds that the time to the first token may take for nine requests of ten, for a rate to count as sustainable.
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 5.0,
        value_parser = seconds,
        env = "KVWAY_REPLAY_TTFT_P90_MAX",
        help_heading = "Load"
    )]
    pub ttft_p90_max: f64,
    /// Do not look for the sustainable rates, which takes about eight runs for each policy.
    #[arg(long, env = "KVWAY_REPLAY_NO_SUSTAINABLE", help_heading = "Load")]
    pub no_sustainable: bool,
    /// Of everything that goes by chance: the same seed gives the same result, to the byte.
    #[arg(
        long,
        value_name = "NUMBER",
        default_value_t = 1,
        env = "KVWAY_REPLAY_SEED",
        help_heading = "Load"
    )]
    pub seed: u64,
    /// Write the result to this file as well, as JSON.
    #[arg(long, value_name = "FILE", env = "KVWAY_REPLAY_JSON", help_heading = "Output")]
    pub json: Option<PathBuf>,
    /// Draw the result into this file, as SVG.
    #[arg(long, value_name = "FILE", env = "KVWAY_REPLAY_CHART", help_heading = "Output")]
    pub chart: Option<PathBuf>,
}

fn load(text: &str) -> Result<f64, String> {
    let load = text.parse().ok().filter(|load| *load > 0.0 && *load <= LOAD_MAX);
    load.ok_or_else(|| format!("a number above 0 is wanted, {LOAD_MAX} at most"))
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds = text.parse().ok().filter(|seconds: &f64| *seconds > 0.0 && seconds.is_finite());
    seconds.ok_or_else(|| "a number of seconds above 0 is wanted".to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::{Arguments, Command};
    use super::*;
    use clap::Parser;

    fn replay(flags: &[&str]) -> Result<Replay, String> {
        let words = ["kvway", "replay"].iter().chain(flags);
        match Arguments::try_parse_from(words) {
            Ok(Arguments { command: Some(Command::Replay(replay)), .. }) => Ok(replay),
            Ok(_) => panic!("{flags:?}"),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn a_trace_is_all_that_must_be_said() {
        let flags = replay(&["--trace", "a.jsonl"]).unwrap();
        assert_eq!((flags.backends, flags.capacity, flags.offload), (8, 500_000, None));
        assert_eq!((flags.load, flags.ttft_p90_max, flags.seed), (vec![0.8], 5.0, 1));
        assert_eq!(flags.policy, POLICIES[..POLICIES_USUAL]);
        assert!(replay(&[]).unwrap_err().contains("--trace <FILE>"));
    }

    #[test]
    fn lists_are_separated_by_commas_or_given_again() {
        let words = [
            "--trace",
            "a",
            "--trace",
            "b,c",
            "--policy",
            "pmc,random",
            "--policy",
            "pooled",
            "--load",
            "0.5,1",
        ];
        let flags = replay(&words).unwrap();
        assert_eq!(flags.traces, ["a", "b", "c"].map(PathBuf::from));
        assert_eq!(
            (flags.policy, flags.load),
            (["pmc", "random", "pooled"].map(str::to_owned).to_vec(), vec![0.5, 1.0])
        );
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_what_would() {
        for (words, said) in [
            (["--policy", "fastest"], "pmc, lmetric, cache_aware, exact_match"),
            (["--load", "0"], "a number above 0"),
            (["--load", "nan"], "a number above 0"),
            (["--load", "65"], "64 at most"),
            (["--ttft-p90-max", "inf"], "seconds above 0"),
            (["--backends", "0"], "from 1 to 1024"),
            (["--capacity", "0"], "from 1 to 1000000000"),
            (["--block-tokens", "x"], "from 1 to 1000000"),
        ] {
            let words = [&["--trace", "a"], &words[..]].concat();
            let refused = replay(&words).unwrap_err();
            assert!(refused.contains(said), "{words:?}: {refused}");
        }
    }
}
