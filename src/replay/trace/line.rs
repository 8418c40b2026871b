//! One line of a trace: the fields of a JSON object, each asked for by name and kind.
//!
//! Read by the formats. What it says of a line names fields and kinds and never quotes a value: an access log has more in it than
//! belongs on a terminal.

use serde_json::{Map, Value};

/// The fields of a line. A field that is `null` counts as one that is not there.
pub(super) struct Line(Map<String, Value>);

/// Milliseconds beyond this are a mistake: they are more than thirty thousand years.
const MS_MAX: f64 = 1e15;

impl Line {
    /// Reads the fields.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        match serde_json::from_slice(bytes) {
            Ok(Value::Object(fields)) => Ok(Self(fields)),
            Ok(_) => Err("not a JSON object".to_owned()),
            Err(error) => Err(format!("not JSON, from column {} on", error.column())),
        }
    }

    /// Whether the field is there.
    pub(super) fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    /// A count.
    pub(super) fn count(&self, name: &str) -> Result<Option<usize>, String> {
        let of = |value: &Value| value.as_u64().and_then(|count| usize::try_from(count).ok());
        self.typed(name, "a whole number that is not negative", of)
    }

    /// A time or a duration in milliseconds.
    pub(super) fn milliseconds(&self, name: &str) -> Result<Option<f64>, String> {
        let of = |value: &Value| value.as_f64().filter(|ms| (0.0..MS_MAX).contains(ms));
        self.typed(name, "a number of milliseconds that is not negative", of)
    }

    /// A time, RFC 3339 in UTC, in milliseconds since 1970.
    pub(super) fn time(&self, name: &str) -> Result<Option<f64>, String> {
        let of = |value: &Value| {
            let time = humantime::parse_rfc3339(value.as_str()?).ok()?;
            Some(1000.0 * time.duration_since(std::time::UNIX_EPOCH).ok()?.as_secs_f64())
        };
        self.typed(name, "a time like 2026-01-31T12:00:00.000Z", of)
    }

    /// A name: a text, or a number, which is taken as its text.
    pub(super) fn name(&self, name: &str) -> Result<Option<String>, String> {
        let of = |value: &Value| match value {
            Value::String(text) => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        };
        self.typed(name, "a text or a number", of)
    }

    /// A list of whole numbers.
    pub(super) fn numbers(&self, name: &str) -> Result<Option<Vec<u64>>, String> {
        let of = |value: &Value| value.as_array()?.iter().map(Value::as_u64).collect();
        self.typed(name, "a list of whole numbers that are not negative", of)
    }

    /// A list of numbers of 16 hexadecimal digits each.
    pub(super) fn hex_numbers(&self, name: &str) -> Result<Option<Vec<u64>>, String> {
        let of = |value: &Value| {
            let one = |value: &Value| {
                let digits = value.as_str().filter(|text| text.len() == 16 && !text.starts_with('+'))?;
                u64::from_str_radix(digits, 16).ok()
            };
            value.as_array()?.iter().map(one).collect()
        };
        self.typed(name, "a list of texts of 16 hexadecimal digits", of)
    }

    fn typed<T>(
        &self,
        name: &str,
        kind: &str,
        of: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<T>, String> {
        let Some(value) = self.get(name) else { return Ok(None) };
        of(value).map(Some).ok_or_else(|| format!("`{name}` is not {kind}"))
    }
}

/// A field that must be there.
pub(super) fn needed<T>(name: &str, value: Result<Option<T>, String>) -> Result<T, String> {
    value?.ok_or_else(|| format!("`{name}` is missing"))
}
