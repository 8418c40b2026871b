//! Bodies of answers as vLLM writes them: errors, lists, and what an answer to a completion or a chat is made of.
//!
//! Written by hand and not by a serialiser, since the order of keys and the nulls are part of what was recorded.

use serde_json::{Value, json};

use super::EngineOptions;
use crate::server::{Answer, quoted};

/// `system_fingerprint` of the recorded server.
pub(super) const FINGERPRINT: &str = "vllm-0.32.0-1997e1ed";

pub(super) fn refused(status: u16, kind: &str, message: &str, param: &Value) -> Answer {
    let message = quoted(message);
    Answer::json(
        status,
        format!(r#"{{"error":{{"message":{message},"type":"{kind}","param":{param},"code":{status}}}}}"#),
    )
}

pub(super) fn bad_request(message: &str, param: &Value) -> Answer {
    refused(400, "BadRequestError", message, param)
}

/// Answers the errors of a body that does not fit the schema, each a place and a text.
pub(super) fn invalid(errors: &[(String, String)]) -> Answer {
    let plural = if errors.len() == 1 { "" } else { "s" };
    let mut message = format!("{} validation error{plural}:", errors.len());
    for (_, text) in errors {
        message.push_str("\n  ");
        message.push_str(text);
    }
    refused(400, "Bad Request", &message, &errors.first().map_or(Value::Null, |(loc, _)| json!(loc)))
}

pub(super) fn no_such_model(model: &str, options: &EngineOptions) -> Answer {
    let message = format!("The model `{model}` does not exist. Valid aliases: {}.", options.model);
    refused(404, "NotFoundError", &message, &json!("model"))
}

pub(super) fn too_many_tokens(asked: u64, options: &EngineOptions) -> Answer {
    let message = format!(
        "max_tokens={asked} cannot be greater than max_model_len={}. Please request fewer output tokens. \
         (parameter=max_tokens, value={asked})",
        options.max_model_len
    );
    bad_request(&message, &json!("max_tokens"))
}

pub(super) fn scale_out_disabled() -> Answer {
    let message =
        "Scale-out endpoints are disabled. Restart vllm serve with --enable-scale-out to enable them.";
    refused(403, "PermissionDeniedError", message, &Value::Null)
}

pub(super) fn models(options: &EngineOptions, created: u64, permission: &str) -> Answer {
    let model = quoted(&options.model);
    let root = quoted(&options.root);
    let max_model_len = options.max_model_len;
    Answer::json(
        200,
        format!(
            r#"{{"object":"list","data":[{{"id":{model},"object":"model","created":{created},"owned_by":"vllm","root":{root},"parent":null,"max_model_len":{max_model_len},"permission":[{{"id":"modelperm-{permission}","object":"model_permission","created":{created},"allow_create_engine":false,"allow_sampling":true,"allow_logprobs":true,"allow_search_indices":false,"allow_view":true,"allow_fine_tuning":false,"organization":"*","group":null,"is_blocking":false}}]}}]}}"#
        ),
    )
}

/// Token counts of an answer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Usage {
    pub(super) prompt: usize,
    pub(super) completion: usize,
    /// Where the engine reports its prefix cache.
    pub(super) cached: Option<usize>,
}

impl Usage {
    fn details(self) -> Option<String> {
        self.cached.map(|cached| format!(r#"{{"cached_tokens":{cached}}}"#))
    }

    fn counts(self) -> String {
        let (prompt, completion) = (self.prompt, self.completion);
        let total = prompt + completion;
        format!(r#""prompt_tokens":{prompt},"total_tokens":{total},"completion_tokens":{completion}"#)
    }

    /// As in an answer that is not streamed.
    pub(super) fn whole(self) -> String {
        let details = self.details().unwrap_or_else(|| "null".to_owned());
        let counts = self.counts();
        format!(r#"{{{counts},"prompt_tokens_details":{details},"completion_tokens_details":null}}"#)
    }

    /// As in the last chunk of a stream.
    pub(super) fn chunk(self) -> String {
        let details =
            self.details().map_or_else(String::new, |it| format!(r#","prompt_tokens_details":{it}"#));
        format!("{{{}{details}}}", self.counts())
    }
}
