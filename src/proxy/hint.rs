//! What is believed of the engines' caches for one request, and why nothing is where nothing is.
//!
//! Made by the spine when a body has been read, used by [`super::peer`] on every try. A hint is never a reason to fail.

/// A backend at which a part of the prompt is believed to be cached.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Match {
    /// Its place in the fleet.
    pub index: usize,
    /// Tokens of the prompt, from its start, at least 1.
    pub tokens: usize,
}

/// Where the prompt of a request is believed to be cached.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Hint {
    /// One entry per backend that is believed to hold some of it.
    pub matches: Vec<Match>,
    /// Why there are none.
    pub why: Option<Why>,
}

/// Why a hint was not given, or not followed.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Why {
    /// The cluster has no `kvcache`.
    Off,
    /// The body has no prompt that is understood.
    NoPrompt,
    /// The body has several prompts.
    SeveralPrompts,
    /// The prompt has not been tokenized yet.
    TokensUnknown,
    /// The prompt has fewer tokens than `lookup_tokens_min`.
    TooShort,
    /// LMCache has nothing of it.
    NoMatch,
    /// LMCache has it at instances that no backend is named after.
    UnknownInstance,
    /// The answer did not come in time.
    Timeout,
    /// LMCache could not be asked, or its answer not be read.
    Failed,
    /// LMCache is not asked for a while, after failures.
    BreakerOpen,
    /// The backends that have it cannot take a try: unhealthy, tried already, or without an address.
    Unavailable,
    /// The backends that have it have too many requests in flight.
    Overloaded,
    /// The policy does not go by hints.
    Policy,
}

impl Why {
    /// All, in the order of their names' first use.
    pub const ALL: [Self; 13] = [
        Self::Off,
        Self::NoPrompt,
        Self::SeveralPrompts,
        Self::TokensUnknown,
        Self::TooShort,
        Self::NoMatch,
        Self::UnknownInstance,
        Self::Timeout,
        Self::Failed,
        Self::BreakerOpen,
        Self::Unavailable,
        Self::Overloaded,
        Self::Policy,
    ];

    /// Its name in logs and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::NoPrompt => "no_prompt",
            Self::SeveralPrompts => "several_prompts",
            Self::TokensUnknown => "tokens_unknown",
            Self::TooShort => "too_short",
            Self::NoMatch => "no_match",
            Self::UnknownInstance => "unknown_instance",
            Self::Timeout => "timeout",
            Self::Failed => "failed",
            Self::BreakerOpen => "breaker_open",
            Self::Unavailable => "unavailable",
            Self::Overloaded => "overloaded",
            Self::Policy => "policy",
        }
    }
}

impl Hint {
    /// No hint.
    #[must_use]
    pub fn none(why: Why) -> Self {
        Self { matches: Vec::new(), why: Some(why) }
    }

    /// A hint at these backends; none of them means that nothing matched.
    #[must_use]
    pub fn of(matches: Vec<Match>) -> Self {
        let why = matches.is_empty().then_some(Why::NoMatch);
        Self { matches, why }
    }
}
