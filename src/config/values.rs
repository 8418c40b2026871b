//! How quantities are written in the file: numbers, shares, sizes, durations, each within its bounds.
//!
//! Used through `deserialize_with` and `serialize_with` by the sections, so that a refused value carries its line. Each
//! reader says what is allowed in words that complete "… is not allowed (…)".

use std::fmt;
use std::time::Duration;

use serde::de::{Deserializer, Error, Unexpected, Visitor};
use serde::ser::Serializer;

pub(super) const KIB: usize = 1 << 10;
pub(super) const MIB: usize = 1 << 20;
pub(super) const GIB: usize = 1 << 30;
pub(super) const SECOND_MS: u64 = 1000;
pub(super) const MINUTE_MS: u64 = 60 * SECOND_MS;
pub(super) const HOUR_MS: u64 = 60 * MINUTE_MS;
pub(super) const DAY_MS: u64 = 24 * HOUR_MS;

const SIZES: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
const DURATIONS: [(&str, u64); 4] =
    [("ms", 1), ("h", 3600 * SECOND_MS), ("m", 60 * SECOND_MS), ("s", SECOND_MS)];

/// A scalar that is read from what was written: a number as such, anything else as text.
pub(super) struct Scalar<F> {
    pub(super) allowed: String,
    pub(super) read: F,
}

/// What the file says.
pub(super) enum Written<'a> {
    Integer(u64),
    Decimal(f64),
    Text(&'a str),
}

impl<T, F: Fn(Written<'_>) -> Option<T>> Visitor<'_> for Scalar<F> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.allowed)
    }

    fn visit_u64<E: Error>(self, n: u64) -> Result<T, E> {
        (self.read)(Written::Integer(n)).ok_or_else(|| E::invalid_value(Unexpected::Unsigned(n), &self))
    }

    fn visit_f64<E: Error>(self, n: f64) -> Result<T, E> {
        (self.read)(Written::Decimal(n)).ok_or_else(|| E::invalid_value(Unexpected::Float(n), &self))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        (self.read)(Written::Text(text)).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
    }
}

/// A whole number within bounds.
pub(super) fn integer<'de, const MIN: usize, const MAX: usize, D: Deserializer<'de>>(
    d: D,
) -> Result<usize, D::Error> {
    let read = |written: Written<'_>| match written {
        Written::Integer(n) => usize::try_from(n).ok().filter(|n| (MIN..=MAX).contains(n)),
        _ => None,
    };
    d.deserialize_any(Scalar { allowed: format!("{MIN} to {MAX}"), read })
}

/// A share of a whole.
pub(super) fn ratio<'de, D: Deserializer<'de>>(d: D) -> Result<f64, D::Error> {
    let read = |written: Written<'_>| match written {
        Written::Integer(0) => Some(0.0),
        Written::Integer(1) => Some(1.0),
        Written::Decimal(n) => Some(n).filter(|n| (0.0..=1.0).contains(n)),
        _ => None,
    };
    d.deserialize_any(Scalar { allowed: "0.0 to 1.0".to_owned(), read })
}

/// How many times as much.
pub(super) fn factor<'de, D: Deserializer<'de>>(d: D) -> Result<f64, D::Error> {
    const MAX: f64 = 1000.0;
    let read = |written: Written<'_>| match written {
        Written::Integer(n) => u32::try_from(n).ok().map(f64::from).filter(|n| *n <= MAX),
        Written::Decimal(n) => Some(n).filter(|n| (0.0..=MAX).contains(n)),
        Written::Text(_) => None,
    };
    d.deserialize_any(Scalar { allowed: "0.0 to 1000.0".to_owned(), read })
}

/// A number of bytes within bounds: `16MiB`, `64KiB`, `1GiB` or a plain number.
pub(super) fn size<'de, const MIN: usize, const MAX: usize, D: Deserializer<'de>>(
    d: D,
) -> Result<usize, D::Error> {
    let read = |written: Written<'_>| {
        let bytes = match written {
            Written::Integer(n) => Some(n),
            Written::Text(text) => SIZES
                .iter()
                .find_map(|(unit, bytes)| digits(text.strip_suffix(unit)?.trim_end())?.checked_mul(*bytes)),
            Written::Decimal(_) => None,
        };
        usize::try_from(bytes?).ok().filter(|n| (MIN..=MAX).contains(n))
    };
    let (min, max) = (size_text(MIN), size_text(MAX));
    d.deserialize_any(Scalar { allowed: format!("{min} to {max}; the units are KiB, MiB and GiB"), read })
}

/// A duration within bounds, in milliseconds: `50ms`, `2s`, `10m`, `1h30m`.
pub(super) fn duration<'de, const MIN: u64, const MAX: u64, D: Deserializer<'de>>(
    d: D,
) -> Result<Duration, D::Error> {
    let read = |written: Written<'_>| match written {
        Written::Text(text) => {
            duration_ms(text).filter(|ms| (MIN..=MAX).contains(ms)).map(Duration::from_millis)
        }
        _ => None,
    };
    let (min, max) = (ms_text(MIN), ms_text(MAX));
    d.deserialize_any(Scalar { allowed: format!("{min} to {max}; the units are ms, s, m and h"), read })
}

/// Writes a number of bytes with the largest unit that divides it, or as a plain number.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference to the field")]
pub(super) fn write_size<S: Serializer>(bytes: &usize, s: S) -> Result<S::Ok, S::Error> {
    let text = size_text(*bytes);
    match digits(&text) {
        Some(bytes) => s.serialize_u64(bytes),
        None => s.serialize_str(&text),
    }
}

/// Writes a duration as it is read.
pub(super) fn write_duration<S: Serializer>(duration: &Duration, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(&duration_text(*duration))
}

/// A size as it is read.
pub(super) fn size_text(bytes: usize) -> String {
    let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
    match SIZES.iter().find(|(_, unit)| bytes >= *unit && bytes.is_multiple_of(*unit)) {
        Some((name, unit)) => format!("{}{name}", bytes / unit),
        None => bytes.to_string(),
    }
}

/// A duration as it is read.
pub(super) fn duration_text(duration: Duration) -> String {
    ms_text(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

fn ms_text(ms: u64) -> String {
    let (hours, minutes) = (ms / 3_600_000, ms / 60_000 % 60);
    let (seconds, ms) = (ms / 1000 % 60, ms % 1000);
    let parts = [(hours, "h"), (minutes, "m"), (seconds, "s"), (ms, "ms")];
    let mut text = String::new();
    for (n, unit) in parts.iter().filter(|(n, _)| *n > 0) {
        text.push_str(&n.to_string());
        text.push_str(unit);
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

/// `1h30m` → milliseconds: one or more numbers, each with a unit smaller than the one before.
fn duration_ms(text: &str) -> Option<u64> {
    let (mut rest, mut total, mut above) = (text, 0_u64, u64::MAX);
    while !rest.is_empty() || above == u64::MAX {
        let end = rest.find(|c: char| !c.is_ascii_digit())?;
        let (number, after) = rest.split_at_checked(end)?;
        let (unit, ms) = DURATIONS.iter().find(|(unit, _)| after.starts_with(unit))?;
        if *ms >= above {
            return None;
        }
        total = total.checked_add(digits(number)?.checked_mul(*ms)?)?;
        (rest, above) = (after.strip_prefix(unit)?, *ms);
    }
    Some(total)
}

/// A number of ASCII digits only, which `parse` alone does not ask for.
pub(super) fn digits(text: &str) -> Option<u64> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
}
