//! A range from which sizes, counts and times are drawn, as the command line has it: `100` or `20..320`. Pure.
use std::{fmt, str::FromStr, time::Duration};

use rand::{Rng, rngs::StdRng};

use crate::measurement::real;

/// From the least to the most, both of them included.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Span<T> {
    pub(crate) least: T,
    pub(crate) most: T,
}

/// A span of times.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Pause(pub(crate) Span<Duration>);

impl<T> Span<T> {
    pub(crate) const fn new(least: T, most: T) -> Self {
        Self { least, most }
    }

    fn parse(text: &str, one: impl Fn(&str) -> Result<T, String>) -> Result<Self, String>
    where
        T: Copy + PartialOrd,
    {
        let (least, most) = text.split_once("..").unwrap_or((text, text));
        let span = Self { least: one(least)?, most: one(most)? };
        if span.least > span.most {
            return Err("it ends before it begins".to_owned());
        }
        Ok(span)
    }
}

impl FromStr for Span<usize> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wanted = "a number from 1 to 100000000, or two like 20..320, is wanted";
        let one = |one: &str| one.parse().ok().filter(|number| (1..=100_000_000).contains(number));
        Self::parse(text, |text| one(text).ok_or_else(|| wanted.to_owned()))
    }
}

impl FromStr for Pause {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wanted = "a time like 2s, or two like 500ms..2s, is wanted";
        let one = |one: &str| humantime::parse_duration(one).map_err(|_| wanted.to_owned());
        Span::parse(text, one).map(Self)
    }
}

impl fmt::Display for Span<usize> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}..{}", self.least, self.most)
    }
}

impl fmt::Display for Pause {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [least, most] = [self.0.least, self.0.most].map(humantime::format_duration);
        write!(formatter, "{least}..{most}")
    }
}

impl Span<usize> {
    /// All of them are as likely.
    pub(crate) fn draw(self, random: &mut StdRng) -> usize {
        random.random_range(self.least..=self.most)
    }

    /// For lengths of texts: most are short, and most tokens are in long ones, as people have it. The range is cut into
    /// octaves, and all octaves are as likely.
    pub(crate) fn draw_length(self, random: &mut StdRng) -> usize {
        let mut octaves = 0;
        while self.least << octaves < self.most {
            octaves += 1;
        }
        let least = self.least << random.random_range(0..octaves.max(1));
        random.random_range(least..(2 * least).min(self.most).max(least + 1))
    }

    pub(crate) fn draw_tokens(self, random: &mut StdRng) -> u32 {
        u32::try_from(self.draw(random)).unwrap_or(u32::MAX)
    }

    pub(crate) fn mean(self) -> f64 {
        f64::midpoint(real(self.least as u64), real(self.most as u64))
    }
}

impl Pause {
    pub(crate) const fn millis(least: u64, most: u64) -> Self {
        Self(Span::new(Duration::from_millis(least), Duration::from_millis(most)))
    }

    pub(crate) fn draw(self, random: &mut StdRng) -> Duration {
        random.random_range(self.0.least..=self.0.most)
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn one_number_is_a_span_of_one() {
        assert_eq!("7".parse(), Ok(Span::new(7_usize, 7)));
        assert_eq!("7..9".parse(), Ok(Span::new(7_usize, 9)));
        assert_eq!("2s".parse(), Ok(Pause::millis(2000, 2000)));
        assert_eq!("500ms..2s".parse(), Ok(Pause::millis(500, 2000)));
        for text in ["", "0", "9..7", "1..", "x", "-1", "100000001"] {
            assert!(text.parse::<Span<usize>>().is_err(), "{text}");
        }
        assert!("2s..1s".parse::<Pause>().is_err() && "2".parse::<Pause>().is_err());
    }

    #[test]
    fn what_is_drawn_is_in_the_span_and_most_lengths_are_short() {
        let mut random = StdRng::seed_from_u64(1);
        for (least, most) in [(1, 1), (5, 5), (20, 320), (100, 300), (128, 4096)] {
            let span = Span::new(least, most);
            let lengths: Vec<usize> = (0..1000).map(|_| span.draw_length(&mut random)).collect();
            assert!(lengths.iter().all(|length| (least..=most).contains(length)), "{span}");
            assert!((least..=most).contains(&span.draw(&mut random)));
        }
        let span = Span::new(128, 4096);
        let short = (0..1000).filter(|_| span.draw_length(&mut random) < 512).count();
        assert!((350..450).contains(&short), "two of five octaves: {short}");
        let pause = Pause::millis(5, 9);
        assert!((5..=9).contains(&pause.draw(&mut random).as_millis()));
    }
}
