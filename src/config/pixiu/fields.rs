//! A mapping of a Pixiu file that remembers what it was asked for, so that the rest can be told as ignored.
//!
//! Keys are found in any of the spellings that Go's decoders accept (`maxIdleConns`, `max_idle_conns`, `ID`). Values are
//! read leniently, as there: quoted numbers are numbers, durations may be nanoseconds, nothing is like absent.

use std::time::Duration;

use super::Notes;
use crate::config::error::Fault;
use crate::config::spot::Spot;
use crate::config::tree::{Data, Scalar};

const NANOSECONDS: [(&str, f64); 8] =
    [("ns", 1.0), ("us", 1e3), ("µs", 1e3), ("μs", 1e3), ("ms", 1e6), ("s", 1e9), ("m", 6e10), ("h", 3.6e12)];

/// A mapping, and which of its keys were asked for.
pub(super) struct Fields<'a> {
    spot: Spot<'a>,
    entries: Vec<Entry<'a>>,
}

struct Entry<'a> {
    key: String,
    spot: Spot<'a>,
    taken: bool,
}

/// Where a value stands, and what it is.
pub(super) type Found<'a, T> = Option<(Spot<'a>, T)>;

impl<'a> Fields<'a> {
    pub(super) fn of(spot: &Spot<'a>) -> Result<Self, Fault> {
        let entries = match spot.data() {
            Some(Data::Map(entries)) => entries.as_slice(),
            Some(Data::Scalar(scalar)) if !scalar.is_null() => return Err(refused(spot, "a mapping")),
            Some(Data::List(_)) => return Err(refused(spot, "a mapping")),
            _ => &[],
        };
        for (n, (key, _)) in entries.iter().enumerate() {
            if let Some((first, _)) = entries.iter().take(n).find(|(first, _)| first.text == key.text) {
                let message = format!("given twice, first on line {}", first.line);
                return Err(Fault::new(message).at(key.line).under_key(&key.text).under_path(spot.path()));
            }
        }
        let entry = |key: &str| Entry { key: plain(key), spot: spot.key(key), taken: false };
        Ok(Self { spot: spot.clone(), entries: entries.iter().map(|(key, _)| entry(&key.text)).collect() })
    }

    /// Where the mapping stands.
    pub(super) fn spot(&self) -> &Spot<'a> {
        &self.spot
    }

    /// The place of a key, unless it is absent or null.
    pub(super) fn take(&mut self, key: &str) -> Option<Spot<'a>> {
        let key = plain(key);
        let entry = self.entries.iter_mut().find(|entry| entry.key == key)?;
        entry.taken = true;
        let null = matches!(entry.spot.data(), Some(Data::Scalar(scalar)) if scalar.is_null());
        (!null).then(|| entry.spot.clone())
    }

    /// Takes a key that is known and does nothing here.
    pub(super) fn without_effect(&mut self, key: &str, why: &str, notes: &mut Notes) {
        if let Some(spot) = self.take(key) {
            notes.add(&spot, why);
        }
    }

    /// Tells the keys that nobody asked for.
    pub(super) fn finish(self, notes: &mut Notes) {
        for entry in self.entries.iter().filter(|entry| !entry.taken) {
            notes.add(&entry.spot, "ignored");
        }
    }

    /// A text, or a number as it is written.
    pub(super) fn text(&mut self, key: &str) -> Result<Found<'a, &'a Scalar>, Fault> {
        match self.take(key) {
            Some(spot) => match spot.data() {
                Some(Data::Scalar(scalar)) => Ok(Some((spot, scalar))),
                _ => Err(refused(&spot, "a text")),
            },
            None => Ok(None),
        }
    }

    /// The first of a list of texts.
    pub(super) fn text_of_first(&mut self, key: &str) -> Result<Found<'a, &'a Scalar>, Fault> {
        match items(self.take(key))?.first() {
            Some(spot) => match spot.data() {
                Some(Data::Scalar(scalar)) => Ok(Some((spot.clone(), scalar))),
                _ => Err(refused(spot, "a text")),
            },
            None => Ok(None),
        }
    }

    pub(super) fn flag(&mut self, key: &str) -> Result<Option<bool>, Fault> {
        let flag = self.value(key, "true or false", |text| text.to_ascii_lowercase().parse().ok())?;
        Ok(flag.map(|(_, flag)| flag))
    }

    pub(super) fn count(&mut self, key: &str) -> Result<Found<'a, i64>, Fault> {
        self.value(key, "a whole number", |text| text.parse().ok())
    }

    /// A share of a whole: one outside is refused, as Pixiu does.
    pub(super) fn ratio(&mut self, key: &str) -> Result<Found<'a, f64>, Fault> {
        let within = |ratio: &f64| (0.0..=1.0).contains(ratio);
        self.value(key, "0.0 to 1.0", |text| text.parse().ok().filter(within))
    }

    /// A duration above zero; one that is not is as good as none.
    pub(super) fn duration(&mut self, key: &str) -> Result<Found<'a, Duration>, Fault> {
        let found = self.value(key, "a duration such as 500ms, 2s or 5m", nanoseconds)?;
        Ok(found.filter(|(_, ns)| *ns > 0.0).map(|(spot, ns)| (spot, milliseconds(ns))))
    }

    fn value<T>(
        &mut self,
        key: &str,
        allowed: &str,
        read: impl Fn(&str) -> Option<T>,
    ) -> Result<Found<'a, T>, Fault> {
        match self.text(key)? {
            Some((_, scalar)) if scalar.text.trim().is_empty() => Ok(None),
            Some((spot, scalar)) => match read(scalar.text.trim()) {
                Some(value) => Ok(Some((spot, value))),
                None => Err(refused(&spot, allowed)),
            },
            None => Ok(None),
        }
    }
}

/// The items of a list; a mapping in its place is its only item.
pub(super) fn items(spot: Option<Spot<'_>>) -> Result<Vec<Spot<'_>>, Fault> {
    let Some(spot) = spot else { return Ok(Vec::new()) };
    match spot.data() {
        Some(Data::List(items)) => Ok((0..items.len()).map(|n| spot.index(n)).collect()),
        Some(Data::Map(_)) => Ok(vec![spot]),
        _ => Err(refused(&spot, "a list")),
    }
}

pub(super) fn refused(spot: &Spot<'_>, allowed: &str) -> Fault {
    spot.fault(format!("{} is not allowed ({allowed})", spot.shown()))
}

/// A key without what its spellings differ in.
fn plain(key: &str) -> String {
    key.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
}

/// As Go reads a duration: `1h30m`, `1.5s`, `-2s`, or a number of nanoseconds.
fn nanoseconds(text: &str) -> Option<f64> {
    if text.parse::<i64>().is_ok() {
        return text.parse().ok();
    }
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1.0, rest),
        None => (1.0, text.strip_prefix('+').unwrap_or(text)),
    };
    let mut total = None;
    while !rest.is_empty() {
        let (number, after) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit() && c != '.')?);
        let (unit, after) = after.split_at(after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len()));
        let (_, scale) = NANOSECONDS.iter().find(|(name, _)| *name == unit)?;
        total = Some(total.unwrap_or(0.0) + number.parse::<f64>().ok()? * scale);
        rest = after;
    }
    total.map(|total: f64| sign * total).filter(|total| total.is_finite())
}

/// In whole milliseconds, and at least one.
fn milliseconds(ns: f64) -> Duration {
    let ms = Duration::try_from_secs_f64(ns / 1e9).map_or(u128::MAX, |duration| duration.as_millis());
    Duration::from_millis(u64::try_from(ms.max(1)).unwrap_or(u64::MAX))
}
