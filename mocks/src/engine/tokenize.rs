//! `/tokenize` and `/detokenize`: the two forms of a request, their answers and their errors as recorded.

use serde_json::{Map, Value, json};

use super::answers::{bad_request, invalid, refused};
use super::{EngineOptions, tokenizer};
use crate::server::{Answer, Request, error_offset};

/// Reads the body as a JSON object, or says what is wrong with it.
pub(super) fn object(request: &Request) -> Result<Map<String, Value>, Answer> {
    let content_type = request.head.header("content-type").unwrap_or_default();
    if !content_type.starts_with("application/json") {
        let message = "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed";
        return Err(refused(400, "Bad Request", message, &Value::Null));
    }
    serde_json::from_slice(&request.body).map_err(|error| {
        let at = error_offset(&error);
        invalid(&[(
            format!("body.{at}"),
            format!(
                "{{'type': 'json_invalid', 'loc': 'body.{at}', 'msg': 'JSON decode error', \
                 'input': '<dict of 0 items>', 'ctx': {{'error': 'Expecting value'}}}}"
            ),
        )])
    })
}

fn missing(field: &str, body: &Map<String, Value>) -> (String, String) {
    let (loc, items) = (format!("body.{field}"), body.len());
    let text = format!(
        "{{'type': 'missing', 'loc': '{loc}', 'msg': 'Field required', 'input': '<dict of {items} items>'}}"
    );
    (loc, text)
}

/// A value as vLLM's messages show it.
fn shown(value: &Value) -> String {
    match value {
        Value::Array(items) => format!("<list of {} items>", items.len()),
        Value::Object(fields) => format!("<dict of {} items>", fields.len()),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

pub(super) fn tokenize(request: &Request, options: &EngineOptions) -> Answer {
    tokens(request, options).map_or_else(
        |answer| answer,
        |(tokens, strings)| {
            let strings = strings.then(|| tokens.iter().map(|id| tokenizer::show(*id)).collect::<Vec<_>>());
            let answer = format!(
                r#"{{"count":{},"max_model_len":{},"tokens":{},"token_strs":{}}}"#,
                tokens.len(),
                options.max_model_len,
                json!(tokens),
                json!(strings),
            );
            Answer::json(200, answer)
        },
    )
}

/// The tokens, and whether their strings are wanted.
fn tokens(request: &Request, options: &EngineOptions) -> Result<(Vec<u32>, bool), Answer> {
    let body = object(request)?;
    let flag = |name, default| body.get(name).and_then(Value::as_bool).unwrap_or(default);
    let strings = flag("return_token_strs", false);
    let Some(messages) = body.get("messages") else {
        let text = match body.get("prompt") {
            Some(Value::String(text)) => text,
            Some(other) => {
                let loc = "body.prompt".to_owned();
                let text = format!(
                    "{{'type': 'string_type', 'loc': '{loc}', 'msg': 'Input should be a valid string', \
                     'input': '{}'}}",
                    shown(other)
                );
                return Err(invalid(&[(loc, text), missing("messages", &body)]));
            }
            None => return Err(invalid(&[missing("prompt", &body), missing("messages", &body)])),
        };
        options.check_model(body.get("model").and_then(Value::as_str))?;
        return Ok((tokenizer::prompt(text, flag("add_special_tokens", true)), strings));
    };
    let generation_prompt = flag("add_generation_prompt", true);
    if generation_prompt && flag("continue_final_message", false) {
        let message = "Cannot set both `continue_final_message` and `add_generation_prompt` to True.";
        return Err(bad_request(message, &Value::Null));
    }
    options.check_model(body.get("model").and_then(Value::as_str))?;
    if body.get("chat_template").is_some_and(|template| !template.is_null()) {
        let message = "Chat template is passed with request, but --trust-request-chat-template is not set. \
                       Refused request with untrusted chat template.";
        return Err(bad_request(message, &Value::Null));
    }
    let messages = messages.as_array().map(Vec::as_slice).unwrap_or_default();
    if messages.is_empty() {
        let message = "Cannot apply chat template to an empty conversation. Provide at least one message.";
        return Err(bad_request(message, &Value::Null));
    }
    if messages.iter().any(has_image) {
        return Err(bad_request(&format!("{} is not a multimodal model", options.model), &Value::Null));
    }
    Ok((tokenizer::chat(messages, generation_prompt), strings))
}

fn has_image(message: &Value) -> bool {
    let parts = message.get("content").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    parts.iter().any(|part| part.get("type").and_then(Value::as_str).is_some_and(|kind| kind != "text"))
}

pub(super) fn detokenize(request: &Request, options: &EngineOptions) -> Answer {
    text(request, options)
        .map_or_else(|answer| answer, |text| Answer::json(200, json!({ "prompt": text }).to_string()))
}

fn text(request: &Request, options: &EngineOptions) -> Result<String, Answer> {
    let body = object(request)?;
    let Some(tokens) = body.get("tokens").and_then(Value::as_array) else {
        return Err(invalid(&[missing("tokens", &body)]));
    };
    if let Some((at, token)) =
        tokens.iter().enumerate().find(|(_, token)| token.as_i64().is_some_and(|id| id < 0))
    {
        let loc = format!("body.tokens.{at}");
        let text = format!(
            "{{'type': 'greater_than_equal', 'loc': '{loc}', 'msg': 'Input should be greater than or equal to 0', \
             'input': '{token}', 'ctx': {{'ge': 0}}}}"
        );
        return Err(invalid(&[(loc, text)]));
    }
    options.check_model(body.get("model").and_then(Value::as_str))?;
    let ids = tokens.iter().filter_map(|token| u32::try_from(token.as_u64()?).ok());
    Ok(tokenizer::decode(ids))
}
