//! Requests as both of LMCache's servers check them: the fields of a body, or the 422 that says what is wrong with it.

use serde_json::{Map, Value};

use crate::server::{Answer, Request, error_offset};

/// What a field must hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Text,
    Tokens,
    Pair,
    Number,
}

/// A body whose fields were checked.
#[derive(Debug)]
pub(crate) struct Fields(Map<String, Value>);

impl Fields {
    /// Reads a body that has to hold these fields.
    pub(crate) fn read(request: &Request, required: &[(&str, Kind)]) -> Result<Self, Answer> {
        Self::read_with(request, required, &[])
    }

    /// Reads a body that has to hold some fields and may hold others.
    pub(crate) fn read_with(
        request: &Request,
        required: &[(&str, Kind)],
        optional: &[(&str, Kind)],
    ) -> Result<Self, Answer> {
        let raw = String::from_utf8_lossy(&request.body);
        if !request.head.header("content-type").is_some_and(|value| value.starts_with("application/json")) {
            let error = error(
                "model_attributes_type",
                r#""body""#,
                "Input should be a valid dictionary or object to extract fields from",
                &Value::from(&*raw).to_string(),
            );
            return Err(unprocessable(&[error]));
        }
        let fields: Map<String, Value> = serde_json::from_slice(&request.body).map_err(|error| {
            let at = error_offset(&error);
            let name = error.to_string().contains("key must be a string");
            let why = if name { "Expecting property name enclosed in double quotes" } else { "Expecting value" };
            unprocessable(&[format!(
                r#"{{"type":"json_invalid","loc":["body",{at}],"msg":"JSON decode error","input":{{}},"ctx":{{"error":"{why}"}}}}"#
            )])
        })?;
        let given = optional.iter().filter(|(name, _)| fields.contains_key(*name));
        let errors: Vec<String> = required
            .iter()
            .chain(given)
            .filter_map(|(name, kind)| check(name, *kind, fields.get(*name), &raw))
            .collect();
        if errors.is_empty() { Ok(Self(fields)) } else { Err(unprocessable(&errors)) }
    }

    /// A field that was required as text.
    pub(crate) fn text(&self, name: &str) -> &str {
        self.0.get(name).and_then(Value::as_str).unwrap_or_default()
    }

    /// A number that may be left out.
    pub(crate) fn number(&self, name: &str) -> Option<u64> {
        self.0.get(name).and_then(Value::as_u64)
    }

    /// The answer that a body gets whose fields do not go together.
    pub(crate) fn refuse(&self, why: &str) -> Answer {
        let input = Value::Object(self.0.clone());
        unprocessable(&[format!(
            r#"{{"type":"value_error","loc":["body"],"msg":"Value error, {why}","input":{input},"ctx":{{"error":{{}}}}}}"#
        )])
    }

    /// A list of tokens, each as a number that differs for different tokens.
    pub(crate) fn tokens(&self, name: &str) -> Vec<i64> {
        let number = |token: &Value| {
            let bits = |float: f64| float.to_bits().cast_signed();
            token
                .as_i64()
                .or_else(|| token.as_u64().map(u64::cast_signed))
                .or_else(|| token.as_f64().map(bits))
                .unwrap_or_default()
        };
        self.0.get(name).and_then(Value::as_array).into_iter().flatten().map(number).collect()
    }

    /// The first of the two texts of a field, which names an instance.
    pub(crate) fn first(&self, name: &str) -> &str {
        self.0.get(name).and_then(|pair| pair.get(0)?.as_str()).unwrap_or_default()
    }
}

fn check(name: &str, kind: Kind, value: Option<&Value>, raw: &str) -> Option<String> {
    let loc = format!(r#""body","{name}""#);
    let Some(value) = value else {
        return Some(error("missing", &loc, "Field required", &compact(raw)));
    };
    match kind {
        Kind::Text if !value.is_string() => {
            Some(error("string_type", &loc, "Input should be a valid string", &value.to_string()))
        }
        Kind::Number if !value.is_u64() => {
            Some(error("int_type", &loc, "Input should be a valid integer", &value.to_string()))
        }
        Kind::Tokens | Kind::Pair if !value.is_array() => {
            Some(error("list_type", &loc, "Input should be a valid list", &value.to_string()))
        }
        Kind::Tokens => {
            let (index, token) =
                value.as_array()?.iter().enumerate().find(|(_, token)| !token.is_number())?;
            let loc = format!("{loc},{index}");
            Some(error("int_type", &loc, "Input should be a valid integer", &token.to_string()))
        }
        _ => None,
    }
}

fn error(kind: &str, loc: &str, message: &str, input: &str) -> String {
    format!(r#"{{"type":"{kind}","loc":[{loc}],"msg":"{message}","input":{input}}}"#)
}

fn unprocessable(errors: &[String]) -> Answer {
    Answer::json(422, format!(r#"{{"detail":[{}]}}"#, errors.join(",")))
}

/// A JSON text without the spaces between its tokens; its keys keep their order.
fn compact(raw: &str) -> String {
    let (mut inside, mut escaped) = (false, false);
    let keep = |character: &char| {
        if inside {
            inside = escaped || *character != '"';
            escaped = !escaped && *character == '\\';
            return true;
        }
        inside = *character == '"';
        !character.is_whitespace()
    };
    raw.chars().filter(keep).collect()
}

#[cfg(test)]
mod tests {
    use super::compact;

    #[test]
    fn spaces_go_and_strings_stay() {
        assert_eq!(compact(r#"{ "a b" : "c \" d\\" , "e": [ 1, 2 ] }"#), r#"{"a b":"c \" d\\","e":[1,2]}"#);
    }
}
