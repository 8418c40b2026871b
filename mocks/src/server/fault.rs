//! Faults: what a mock does to a connection instead of, or in the middle of, an answer; and who meets which.

use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;

/// A way to fail. Those with `events` count whole server-sent events; an answer that is not streamed is cut at half
/// of its body instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Reads the request and answers `code` with an error body.
    Status {
        /// The status code.
        code: u16,
        /// The `retry-after` header in seconds.
        retry_after: Option<u32>,
    },
    /// Answers `code` before it reads the body, and closes once the client has.
    EarlyStatus {
        /// The status code.
        code: u16,
    },
    /// Reads the request and closes the connection.
    CloseBeforeResponse,
    /// Reads the request and resets the connection.
    ResetBeforeResponse,
    /// Ends the connection without a terminal chunk after so many events.
    CutStreamAfter(usize),
    /// Resets the connection after so many events.
    ResetStreamAfter(usize),
    /// Reads the request and stays silent until the client leaves.
    StallBeforeResponse,
    /// Falls silent after so many events until the client leaves.
    StallAfter(usize),
    /// Answers and keeps the connection, then closes it when the next request arrives on it.
    CloseIdle,
    /// Reads the request and writes bytes that are not HTTP.
    Garbage,
    /// Reads the request, writes these bytes and closes the connection.
    Raw(Bytes),
    /// Answers after this delay.
    Delay(Duration),
}

/// What [`Fault::Garbage`] writes.
pub(super) const GARBAGE: &[u8] = b"\x16\x03\x01\x02\x00 this is no HTTP at all \x00\xff\r\n\r\n";

/// Reads the value of `x-mock-fault`: the name in kebab case, where needed with `=` and a number, as in `status=503`,
/// `status=429;retry-after=7`, `cut-stream-after=3`, `delay=200` (milliseconds).
impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        let (value, rest) = value.split_once(';').unwrap_or((value, ""));
        let number = || value.parse::<u16>().map_err(|_| format!("{text:?}: {name} needs a number"));
        Ok(match name {
            "status" => Self::Status {
                code: number()?,
                retry_after: rest.strip_prefix("retry-after=").and_then(|seconds| seconds.parse().ok()),
            },
            "early-status" => Self::EarlyStatus { code: number()? },
            "close-before-response" => Self::CloseBeforeResponse,
            "reset-before-response" => Self::ResetBeforeResponse,
            "cut-stream-after" => Self::CutStreamAfter(number()?.into()),
            "reset-stream-after" => Self::ResetStreamAfter(number()?.into()),
            "stall-before-response" => Self::StallBeforeResponse,
            "stall-after" => Self::StallAfter(number()?.into()),
            "close-idle" => Self::CloseIdle,
            "garbage" => Self::Garbage,
            "delay" => Self::Delay(Duration::from_millis(number()?.into())),
            _ => return Err(format!("{text:?} is no fault")),
        })
    }
}

/// What happens in the middle of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cut {
    Close,
    Reset,
    Stall,
}

impl Fault {
    /// After how many events the body ends, and how.
    pub(super) fn cut(&self) -> Option<(usize, Cut)> {
        match *self {
            Self::CutStreamAfter(events) => Some((events, Cut::Close)),
            Self::ResetStreamAfter(events) => Some((events, Cut::Reset)),
            Self::StallAfter(events) => Some((events, Cut::Stall)),
            _ => None,
        }
    }
}

#[derive(Debug)]
struct Rule {
    path: Option<String>,
    left: Option<usize>,
    fault: Fault,
}

/// The rules in force; the first that fits is taken.
#[derive(Debug, Default)]
pub(super) struct Faults {
    rules: Mutex<Vec<Rule>>,
}

impl Faults {
    pub(super) fn add(&self, path: Option<&str>, left: Option<usize>, fault: Fault) {
        if left != Some(0) {
            self.rules.lock().push(Rule { path: path.map(str::to_owned), left, fault });
        }
    }

    pub(super) fn clear(&self) {
        self.rules.lock().clear();
    }

    /// The fault that a request on `path` meets; counts it against its rule.
    pub(super) fn take(&self, path: &str, work: bool) -> Option<Fault> {
        let mut rules = self.rules.lock();
        let index = rules.iter().position(|rule| rule.path.as_deref().map_or(work, |own| own == path))?;
        let rule = rules.get_mut(index)?;
        let fault = rule.fault.clone();
        if let Some(left) = &mut rule.left {
            *left -= 1;
            if *left == 0 {
                rules.remove(index);
            }
        }
        Some(fault)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counted_fault_ends_after_its_count() {
        let faults = Faults::default();
        faults.add(None, Some(2), Fault::Garbage);
        let taken: Vec<_> = (0..3).map(|_| faults.take("/v1/completions", true)).collect();
        assert_eq!(taken, [Some(Fault::Garbage), Some(Fault::Garbage), None]);
    }

    #[test]
    fn a_fault_without_a_path_spares_what_is_not_work() {
        let faults = Faults::default();
        faults.add(None, None, Fault::Garbage);
        assert_eq!(faults.take("/health", false), None);
        faults.add(Some("/health"), None, Fault::CloseIdle);
        assert_eq!(faults.take("/health", false), Some(Fault::CloseIdle));
    }

    #[test]
    fn every_fault_of_a_header_has_a_name() {
        for (text, fault) in [
            ("status=503", Fault::Status { code: 503, retry_after: None }),
            ("status=429;retry-after=7", Fault::Status { code: 429, retry_after: Some(7) }),
            ("early-status=413", Fault::EarlyStatus { code: 413 }),
            ("cut-stream-after=3", Fault::CutStreamAfter(3)),
            ("stall-after=0", Fault::StallAfter(0)),
            ("close-idle", Fault::CloseIdle),
            ("delay=200", Fault::Delay(Duration::from_millis(200))),
        ] {
            assert_eq!(text.parse(), Ok(fault), "{text}");
        }
        assert!("status".parse::<Fault>().is_err());
        assert!("no-such-fault".parse::<Fault>().is_err());
    }
}
