//! Bytes → [`Prompt`]: what a request body says about itself. Pure.
//!
//! Called once per body. One pass without copying; strict about nothing: a body that is not JSON, or breaks off, yields
//! no prompt, and is forwarded unchanged in any case.

mod fields;
mod given;
mod text;

use super::json::Json;
use super::key::Secret;
use super::prefix::{self, Prefix};
use crate::state::tokens::{PromptKey, Tokens};
use bytes::Bytes;
use fields::Fields;
use http::HeaderValue;
use std::sync::Arc;

/// Bodies longer than this are parsed on a thread for blocking work, so that they do not hold up other requests.
pub const INLINE_BYTES_MAX: usize = 256 * 1024;

/// How much of a body is to be understood, beyond model and stream.
#[derive(Clone, Default)]
pub struct Reading {
    /// With what whole prompts are keyed; `None` = they are not.
    pub secret: Option<Secret>,
    /// Whether the text of prompts is keyed as well.
    pub text: bool,
    /// How prompts are cut into blocks; `None` = they are not.
    pub blocks: Option<prefix::Settings>,
}

impl Reading {
    /// The same for a body of this tenant.
    #[must_use]
    pub fn of_tenant(&self, tenant: Option<&HeaderValue>) -> Self {
        let mut reading = self.clone();
        if let Some(blocks) = &mut reading.blocks {
            blocks.tenant = tenant.cloned();
        }
        reading
    }
}

/// What is known of the prompt of a request.
#[derive(Clone, Debug, Default)]
pub struct Prompt {
    /// The `model` field, where it is a string. Shared, since decisions that are kept name it too.
    pub model: Option<Arc<str>>,
    /// Whether the answer is to be streamed.
    pub stream: bool,
    /// Whether the body is a JSON object, as far as it was looked at. In anything else there is no prompt.
    pub in_object: bool,
    /// The form of the prompt.
    pub form: Form,
    /// The `cache_salt` field, where it is a string.
    pub cache_salt: Option<String>,
    /// The prompt in blocks.
    pub prefix: Option<Prefix>,
    content: u128,
    text: Option<u128>,
}

/// The form of a prompt.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum Form {
    /// There is none, or it was not to be read.
    #[default]
    None,
    /// One prompt, which the tokenizer takes in the body as it is.
    Body,
    /// One prompt, which the tokenizer takes only by itself: its JSON string as it stands in the body.
    Alone(Bytes),
    /// One prompt of token ids.
    Tokens(Tokens),
    /// Several prompts.
    Several,
}

impl Prompt {
    /// The key of all that the tokens depend on, when the model is `model`: two bodies that an engine renders differently
    /// never share it.
    #[must_use]
    pub fn key(&self, secret: &Secret, model: &str) -> PromptKey {
        derive(secret, 0, model, self.content)
    }

    /// The key of the model and the text alone, by which accesses are counted; `None` where either is empty or the text was
    /// not to be keyed. Token ids count as text.
    #[must_use]
    pub fn text_key(&self, secret: &Secret, model: &str) -> Option<PromptKey> {
        let text = if matches!(self.form, Form::Tokens(_)) { Some(self.content) } else { self.text };
        text.filter(|_| !model.is_empty()).map(|text| derive(secret, 1, model, text))
    }
}

impl Prompt {
    /// What to send to the tokenizer for the tokens of `body`, which this was read from; `None` where it has no part in them.
    #[must_use]
    pub fn tokenizer_body(&self, body: &Bytes, model: &str) -> Option<Bytes> {
        match &self.form {
            Form::Body => Some(body.clone()),
            Form::Alone(literal) => {
                let mut alone = br#"{"model":"#.to_vec();
                alone.extend(serde_json::to_vec(model).unwrap_or_default());
                alone.extend_from_slice(br#","prompt":"#);
                alone.extend_from_slice(literal);
                alone.push(b'}');
                Some(alone.into())
            }
            Form::None | Form::Tokens(_) | Form::Several => None,
        }
    }
}

fn derive(secret: &Secret, kind: u8, model: &str, content: u128) -> PromptKey {
    let mut hash = secret.hash();
    hash.append(&[kind]);
    hash.append(&content.to_le_bytes());
    hash.append(model.as_bytes());
    PromptKey(hash.finish())
}

/// Reads the body of a request to `path`. Of two equal keys the last counts, as in Python.
#[must_use]
pub fn parse(body: &[u8], path: &str, reading: &Reading) -> Prompt {
    let mut json = Json::new(body);
    let mut fields = Fields::new(path, reading);
    let is_object = json.kind() == Some(b'{');
    if is_object {
        json.object(|json, key| fields.read(json, &key));
    }
    fields.into_prompt(is_object && !json.is_broken())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHAT: &str = "/v1/chat/completions";
    const COMPLETIONS: &str = "/v1/completions";

    fn secret() -> Secret {
        Secret::new([1, 2, 3, 4])
    }

    fn read(path: &str, body: &str) -> Prompt {
        parse(body.as_bytes(), path, &Reading { secret: Some(secret()), text: true, blocks: None })
    }

    fn form(path: &str, body: &str) -> Form {
        read(path, body).form
    }

    /// What hotness counts for a body, next to what it counts for a plain prompt.
    fn has_text(path: &str, body: &str, text: &str) -> bool {
        let plain = serde_json::json!({ "prompt": text }).to_string();
        read(path, body).text_key(&secret(), "m") == read(COMPLETIONS, &plain).text_key(&secret(), "m")
    }

    fn key(path: &str, body: &str) -> PromptKey {
        read(path, body).key(&secret(), "m")
    }

    fn outline(body: &str) -> (Option<Arc<str>>, bool) {
        let prompt = parse(body.as_bytes(), CHAT, &Reading::default());
        assert_eq!(prompt.form, Form::None);
        (prompt.model, prompt.stream)
    }

    fn named(model: &str, stream: bool) -> (Option<Arc<str>>, bool) {
        (Some(model.into()), stream)
    }

    #[test]
    fn model_and_stream_are_found_wherever_they_stand() {
        let body = r#" {"messages":[{"role":"user","content":"\"model\":\"no\""}],"stream":true,"m\u006fdel":"org/a"}"#;
        assert_eq!(outline(body), named("org/a", true));
    }

    #[test]
    fn the_last_of_two_equal_keys_counts_as_in_python() {
        assert_eq!(outline(r#"{"model":"a","stream":true,"model":"b","stream":false}"#), named("b", false));
        let body = r#"{"messages":[{"content":"a"}],"messages":[{"content":"b"}]}"#;
        assert!(has_text(CHAT, body, "b"));
    }

    #[test]
    fn what_stood_before_an_error_is_kept_but_no_prompt() {
        for body in
            [r#"{"model":"a","temperature":NaN}"#, r#"{"model":"a","prompt":"x"#, r#"{"model":"a"} trailing"#]
        {
            assert_eq!(outline(body), named("a", false), "{body}");
        }
        for body in
            [r#"{"prompt":"x","y":"#, r#"{"messages":[{"content":"x"}"#, r#"{"messages":[{"content":"x"}}"#]
        {
            let prompt = read(CHAT, body);
            assert_eq!((prompt.form.clone(), prompt.text_key(&secret(), "m")), (Form::None, None), "{body}");
            assert!(!prompt.in_object, "{body}");
        }
    }

    #[test]
    fn what_is_no_name_is_no_model() {
        for model in ["1", "null", "[\"a\"]", "{\"a\":1}", "\"\"", "true", "1e400"] {
            assert_eq!(outline(&format!(r#"{{"model":{model}}}"#)).0, None, "{model}");
        }
        assert_eq!(outline(&format!(r#"{{"model":"{}"}}"#, "x".repeat(257))).0, None);
    }

    #[test]
    fn a_body_that_is_not_an_object_says_nothing() {
        for body in ["", "[]", "nonsense", "\u{feff}{}", "\"model\"", "4"] {
            assert_eq!(outline(body), (None, false), "{body}");
            assert_eq!(form(CHAT, body), Form::None, "{body}");
            assert!(!read(CHAT, body).in_object, "{body}");
        }
        assert!(read(CHAT, " {}").in_object);
    }

    #[test]
    fn deep_nesting_neither_fails_nor_overflows() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        for field in ["x", "messages", "prompt"] {
            let body = format!(r#"{{"{field}":{deep},"model":"a"}}"#);
            assert_eq!(read(CHAT, &body).model.as_deref(), Some("a"), "{field}");
        }
        let body = format!(r#"{{"messages":[{{"content":{deep}}},{{"content":"x"}}],"model":"a"}}"#);
        assert_eq!(read(CHAT, &body).form, Form::Body);
    }

    #[test]
    fn the_text_is_joined_with_newlines_and_trimmed_last() {
        for (path, body, text) in [
            (COMPLETIONS, r#"{"prompt":"  a b \n"}"#, "a b"),
            (COMPLETIONS, r#"{"prompt":["a",1,"b ",null]}"#, "a\nb"),
            (COMPLETIONS, r#"{"prompt":" ","messages":[{"content":"m"}]}"#, "m"),
            (CHAT, r#"{"messages":[{"content":" a "},{"role":"x"},{"content":"b"},{"content":7}]}"#, "a \nb"),
            (CHAT, r#"{"messages":[{"content":""},{"content":"b"},{"content":" "}]}"#, "b"),
            (CHAT, r#"{"prompt":"stray","messages":[{"content":"m"}]}"#, "m"),
            (CHAT, r#"{"prompt":"stray","messages":[]}"#, "stray"),
            (COMPLETIONS, r#"{"messages":[{"content":"m"}],"prompt":"p"}"#, "p"),
            (
                CHAT,
                r#"{"messages":[{"content":[{"type":"text","text":"a"},{"type":"image_url"},{"text":"b","type":"text"},{"type":"x","text":"no"}]},{"content":"c"}]}"#,
                "a\nb\nc",
            ),
            (CHAT, r#"{"messages":[{"content":"a\u0062\ud83d\ude00"}]}"#, "ab\u{1f600}"),
        ] {
            assert!(has_text(path, body, text), "{body}");
            assert!(!has_text(path, body, &format!("{text}x")), "{body}");
        }
    }

    #[test]
    fn nothing_is_counted_without_a_model_or_a_text() {
        assert_eq!(read(COMPLETIONS, r#"{"prompt":"a"}"#).text_key(&secret(), ""), None);
        for body in [
            r#"{"prompt":" \n "}"#,
            r#"{"messages":[{"content":""}]}"#,
            r#"{"input":"a"}"#,
            r#"{"prompt":4}"#,
        ] {
            let prompt = read(CHAT, body);
            assert_eq!((prompt.form.clone(), prompt.text_key(&secret(), "m")), (Form::None, None), "{body}");
        }
    }

    #[test]
    fn the_tokenizer_gets_the_body_where_it_would_read_the_same_prompt_in_it() {
        let alone = |literal: &'static str| Form::Alone(Bytes::from(literal));
        for (path, body, form_expected) in [
            (COMPLETIONS, r#"{"prompt":"a"}"#, Form::Body),
            (CHAT, r#"{"messages":[{"content":"a"}],"prompt":"b"}"#, Form::Body),
            (COMPLETIONS, r#"{"messages":[{"content":"a"}]}"#, Form::Body),
            (COMPLETIONS, r#"{"prompt":"b\n","messages":[{"content":"a"}]}"#, alone(r#""b\n""#)),
            (COMPLETIONS, r#"{"prompt":["a "]}"#, alone(r#""a ""#)),
            (COMPLETIONS, r#"{"prompt":["a","b"]}"#, Form::Several),
            (COMPLETIONS, r#"{"prompt":["a",1]}"#, Form::Several),
        ] {
            assert_eq!(form(path, body), form_expected, "{body}");
        }
        let body = Bytes::from(r#"{"prompt":["say \"a\" "]}"#);
        let prompt =
            parse(&body, COMPLETIONS, &Reading { secret: Some(secret()), text: false, blocks: None });
        assert_eq!(prompt.tokenizer_body(&body, "m\"").unwrap(), r#"{"model":"m\"","prompt":"say \"a\" "}"#);
    }

    #[test]
    fn token_ids_are_the_tokens() {
        let tokens = |ids: &[u32]| Form::Tokens(Tokens::from(ids));
        for (prompt, expected) in [
            ("[1,2, 3]", tokens(&[1, 2, 3])),
            ("[[1,2]]", tokens(&[1, 2])),
            ("[[1],[2]]", Form::Several),
            ("[1,[2]]", Form::Several),
            ("[[1],2]", Form::Several),
            ("[1,\"a\"]", Form::Several),
            ("[1,-2]", Form::Several),
            ("[1.5]", Form::None),
            ("[]", Form::None),
            ("[[]]", Form::None),
        ] {
            assert_eq!(form(COMPLETIONS, &format!(r#"{{"prompt":{prompt}}}"#)), expected, "{prompt}");
        }
        let prompt = read(COMPLETIONS, r#"{"prompt":[1,2]}"#);
        assert!(prompt.text_key(&secret(), "m").is_some());
    }

    #[test]
    fn bodies_that_are_rendered_differently_have_different_keys() {
        let bodies = [
            (CHAT, r#"{"messages":[{"role":"user","content":"a"}]}"#),
            (COMPLETIONS, r#"{"messages":[{"role":"user","content":"a"}]}"#),
            (CHAT, r#"{"messages":[{"role":"system","content":"a"}]}"#),
            (CHAT, r#"{"messages":[{"role":"user","content":"a"},{"role":"user","content":""}]}"#),
            (CHAT, r#"{"messages":[{"role":"user","content":"a"}],"tools":[]}"#),
            (CHAT, r#"{"messages":[{"role":"user","content":"a"}],"tools":[{"type":"function"}]}"#),
            (CHAT, r#"{"messages":[{"role":"user","content":"a"}],"chat_template_kwargs":{"x":1}}"#),
            (CHAT, r#"{"messages":[{"role":"user","content":"a"}],"cache_salt":"s"}"#),
            (CHAT, r#"{"messages":[{"role":"user","content":"a","tool_calls":[]}]}"#),
            (CHAT, r#"{"messages":[{"role":"user","content":"a\nb"}]}"#),
            (CHAT, r#"{"messages":[{"role":"user","content":"a"},{"role":"user","content":"b"}]}"#),
            (COMPLETIONS, r#"{"prompt":"a"}"#),
            (COMPLETIONS, r#"{"prompt":["a"]}"#),
            (COMPLETIONS, r#"{"prompt":"a","add_special_tokens":false}"#),
        ];
        for (n, (path, body)) in bodies.iter().enumerate() {
            for (other_path, other) in bodies.iter().take(n) {
                assert_ne!(key(path, body), key(other_path, other), "{body} and {other}");
            }
        }
        let prompt = read(CHAT, bodies[0].1);
        assert_ne!(prompt.key(&secret(), "base"), prompt.key(&secret(), "lora"));
        assert_ne!(prompt.key(&secret(), "base"), prompt.key(&Secret::new([0; 4]), "base"));
    }

    #[test]
    fn how_an_answer_is_sampled_makes_no_other_key() {
        let plain = key(CHAT, r#"{"messages":[{"content":"a"}]}"#);
        let body = r#"{"stream":true,"temperature":0.5,"messages":[{"content":"a"}],"model":"x","max_tokens":9,"user":"u"}"#;
        assert_eq!(key(CHAT, body), plain);
    }

    #[test]
    fn only_what_is_asked_for_is_keyed() {
        let body = br#"{"messages":[{"content":"a"}],"cache_salt":"s"}"#;
        let prompt = parse(body, CHAT, &Reading { secret: Some(secret()), text: false, blocks: None });
        assert_eq!((prompt.form.clone(), prompt.cache_salt.as_deref()), (Form::Body, Some("s")));
        assert_eq!(prompt.text_key(&secret(), "m"), None);
    }
}
