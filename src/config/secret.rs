//! A value that is used and never shown.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error};
use serde::ser::{Serialize, Serializer};

const SHOWN: &str = "***";
const CHARS_MAX: usize = 4096;

/// A token or key: visible ASCII, so that it can stand in a header. `Debug` and `Serialize` give `***`; there is no
/// `Display`. Comparing two takes as long as it takes: for the token of a client use a constant-time comparison.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The secret itself, for the one place that sends or compares it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(SHOWN)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(SHOWN)
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let allowed = format!("1 to {CHARS_MAX} visible ASCII characters, without spaces");
        let secret = super::names::text(d, &allowed, |text| Some(text.to_owned()))?;
        let fits = (1..=CHARS_MAX).contains(&secret.len()) && secret.bytes().all(|b| b.is_ascii_graphic());
        // A message of its own, because a refused value is shown otherwise.
        if fits {
            Ok(Self(secret))
        } else {
            Err(D::Error::custom(format!("the value is not allowed ({allowed})")))
        }
    }
}
