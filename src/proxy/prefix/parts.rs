//! The fields of a body that make its prompt, in the order in which they are rendered, and those that set it apart.
//!
//! Used by `prompt`, which meets them in whatever order they come. It keeps slices of the body.

use super::super::json::{Json, STRAY};
use super::chain::Chain;
use super::render::{self, Render};
use super::{Prefix, Settings, TOKEN_BYTES};
use http::HeaderValue;
use memchr::memmem::Finder;
use std::sync::LazyLock;

/// Fields that change how everything else is rendered, or for whom: prompts that differ in one have no key in common.
const SALTS: [&str; 8] = [
    "cache_salt",
    "chat_template",
    "chat_template_kwargs",
    "add_special_tokens",
    "mm_processor_kwargs",
    "truncate_prompt_tokens",
    "reasoning_effort",
    "previous_response_id",
];

/// What a salt begins with, so that it is never hashed as a text is: no text begins so, and no token ids do.
const SALT: [u8; TOKEN_BYTES] = [STRAY; TOKEN_BYTES];

/// Where messages come before the tools, they are not read ahead: it would be in vain. Tools are known by this word, as near
/// to the end of a body as this. (Where that is mistaken it costs time only, and so it does in a body that is shorter.)
static FIND_TOOL: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\"function\""));
const TOOL_BYTES: usize = 2048;

/// The fields of a body that its prefix is made of, as they stand there; empty where there is none, or null.
#[derive(Default)]
pub(in crate::proxy) struct Parts<'a> {
    salts: [&'a [u8]; SALTS.len()],
    tools: &'a [u8],
    functions: &'a [u8],
    documents: &'a [u8],
    system: &'a [u8],
    instructions: &'a [u8],
    messages: &'a [u8],
    prompt: &'a [u8],
    input: &'a [u8],
    /// All up to the end of the messages, rendered as they were read; `None` as soon as that may be wrong.
    ahead: Option<Render>,
}

impl<'a> Parts<'a> {
    /// Keeps a field if it is one of them. Of two equal keys the last counts.
    pub(in crate::proxy) fn keep(&mut self, key: &[u8], value: &'a [u8]) {
        let place = match key {
            b"tools" => &mut self.tools,
            b"functions" => &mut self.functions,
            b"documents" => &mut self.documents,
            b"system" => &mut self.system,
            b"instructions" => &mut self.instructions,
            b"messages" => &mut self.messages,
            b"prompt" => &mut self.prompt,
            b"input" => &mut self.input,
            _ => match self.salts.iter_mut().zip(SALTS).find(|(_, salt)| salt.as_bytes() == key) {
                Some((place, _)) => return *place = given(value),
                None => return,
            },
        };
        *place = given(value);
        self.ahead = None;
    }

    /// Reads and keeps the messages that stand here. They are rendered on the way, since that takes no longer than passing
    /// over them; if something follows that is rendered before them, that was in vain.
    pub(in crate::proxy) fn read_messages(&mut self, json: &mut Json<'a>, settings: &Settings) {
        let can_be_ahead = json.kind() == Some(b'[') && !render::are_token_ids(json.rest());
        if can_be_ahead && !ends_with_tools(json.rest()) {
            let head = self.head(settings.block_bytes, json.rest().len(), settings);
            let render = self.ahead.insert(head);
            if let Some(messages) = json.attempt(|json| render.items(json))
                && !render.is_broken()
            {
                self.messages = messages;
                return;
            }
        }
        self.keep(b"messages", json.skip());
    }

    /// The prompt in blocks; `None` where there is none, or it cannot be read. `chat`: the engine renders messages.
    pub(in crate::proxy) fn prefix(
        &mut self,
        chat: bool,
        model: Option<&str>,
        settings: &Settings,
    ) -> Option<Prefix> {
        let given = [self.prompt, self.input].into_iter().find(|value| is_prompt(value));
        let messages = Some(self.messages).filter(|value| value.starts_with(b"["));
        let (source, is_ahead) = match (messages, given) {
            (Some(messages), given) if chat || given.is_none() => (messages, self.ahead.is_some()),
            (_, given) => (given?, false),
        };
        let ids = render::are_token_ids(source);
        let block_bytes =
            if ids { settings.block_bytes / TOKEN_BYTES * TOKEN_BYTES } else { settings.block_bytes };
        let salt = self.salt([u8::from(chat), u8::from(ids)], model, settings);
        let (mut late, mut tokens) = (None, None);
        let render = match &mut self.ahead {
            Some(render) if is_ahead => render,
            _ if ids => {
                let chain = Chain::new(settings, block_bytes, source.len());
                let render = late.insert(Render::new(chain, settings.secret));
                tokens = Some(render.token_ids(source));
                render
            }
            _ => {
                let render = late.insert(self.head(block_bytes, source.len(), settings));
                render.raw_items(source);
                render
            }
        };
        let chain = render.finish()?;
        let keys = chain.keys(salt);
        Some(Prefix { keys, bytes: chain.bytes(), tokens, block_bytes, unkeyed: chain.unkeyed() })
    }

    /// What is rendered before the prompt itself.
    fn head(&self, block_bytes: usize, bytes_expected: usize, settings: &Settings) -> Render {
        let chain = Chain::new(settings, block_bytes, bytes_expected);
        let mut render = Render::new(chain, settings.secret);
        for (mark, value) in [(b'T', self.tools), (b'F', self.functions), (b'D', self.documents)] {
            render.raw(mark, value);
        }
        for (mark, value) in [(b'S', self.system), (b'I', self.instructions)] {
            render.mark(mark);
            render.raw_content(value, 0);
        }
        render
    }

    /// What all prompts share that can have something in common with this one.
    fn salt(&self, kind: [u8; 2], model: Option<&str>, settings: &Settings) -> u64 {
        let mut hash = settings.secret.hash();
        hash.append(&SALT);
        hash.append(&kind);
        hash.append_whole(model.unwrap_or_default().as_bytes());
        hash.append_whole(settings.tenant.as_ref().map(HeaderValue::as_bytes).unwrap_or_default());
        for (number, salt) in (0_u8..).zip(self.salts).filter(|(_, salt)| !salt.is_empty()) {
            hash.append(&[number]);
            hash.append_whole(salt);
        }
        hash.so_far()
    }
}

/// A value, empty where it is null.
fn given(value: &[u8]) -> &[u8] {
    if value == b"null" { b"" } else { value }
}

fn ends_with_tools(body: &[u8]) -> bool {
    let end = body.len().checked_sub(TOOL_BYTES).and_then(|start| body.get(start..));
    end.is_some_and(|end| FIND_TOOL.find(end).is_some())
}

fn is_prompt(value: &[u8]) -> bool {
    value.starts_with(b"\"") || value.starts_with(b"[")
}

#[cfg(test)]
mod tests {
    use super::super::super::key::Secret;
    use super::*;
    use crate::proxy::prompt::{self, Reading};
    use proptest::prelude::*;
    use proptest::sample::{Index, select};
    use serde_json::{Value, json};

    const CHAT: &str = "/v1/chat/completions";
    const COMPLETIONS: &str = "/v1/completions";

    fn settings(block_bytes: usize) -> Settings {
        Settings::new(Secret::new([1, 2, 3, 4]), block_bytes, 100_000)
    }

    fn read_with(settings: Settings, path: &str, body: impl AsRef<[u8]>) -> Option<Prefix> {
        let reading = Reading { secret: None, text: false, blocks: Some(settings) };
        prompt::parse(body.as_ref(), path, &reading).prefix
    }

    /// Reads with a key for every byte, so that any difference shows.
    fn read(path: &str, body: impl AsRef<[u8]>) -> Prefix {
        read_with(settings(1), path, body).expect("a prefix")
    }

    /// How many blocks two prompts have in common, each with at least ten.
    fn shared(a: &Prefix, b: &Prefix) -> usize {
        assert!(a.keys.len().min(b.keys.len()) >= 10, "too short to tell");
        a.keys.iter().zip(b.keys.iter()).take_while(|(a, b)| a == b).count()
    }

    fn text() -> impl Strategy<Value = String> {
        "[abmctkvpeoPSI\"\\\\\n\u{e9}]{0,4}"
    }

    /// A part of a content; one of `depth` 0 has none within.
    fn part(depth: usize) -> BoxedStrategy<Value> {
        let plain = prop_oneof![
            text().prop_map(|text| json!({ "type": "text", "text": text })),
            text().prop_map(|url| json!({ "type": "image_url", "image_url": url })),
            (text(), text()).prop_map(|(key, value)| json!({ "type": "x", key: value })),
        ];
        if depth == 0 {
            return plain.boxed();
        }
        let with_content = |key: &'static str| {
            (content(depth - 1), text())
                .prop_map(move |(content, value)| json!({ "type": "x", "content": content, key: value }))
        };
        prop_oneof![plain, with_content("k"), with_content("v")].boxed()
    }

    fn content(depth: usize) -> BoxedStrategy<Value> {
        prop::collection::vec(part(depth), 1..3).prop_map(Value::from).boxed()
    }

    fn message() -> impl Strategy<Value = Value> {
        let others = prop::collection::vec((select(vec!["name", "tool_calls", "k"]), text()), 0..3);
        (text(), content(1), others).prop_map(|(role, content, others)| {
            let mut message = json!({ "role": role, "content": content });
            for (key, value) in others {
                message[key] = json!([value]);
            }
            message
        })
    }

    fn messages() -> impl Strategy<Value = Vec<Value>> {
        prop::collection::vec(message(), 1..4)
    }

    /// `object` with `moved` at other places; all other fields stay in their order.
    fn reordered(object: &Value, moved: &[&str], places: &[Index]) -> String {
        let mut fields: Vec<_> = object.as_object().unwrap().iter().collect();
        for (key, place) in moved.iter().zip(places) {
            let at = fields.iter().position(|(name, _)| name == key).unwrap();
            let field = fields.remove(at);
            fields.insert(place.index(fields.len() + 1), field);
        }
        let fields: Vec<_> =
            fields.iter().map(|(key, value)| format!("\n {} : {value} ", json!(key))).collect();
        format!("{{{}}}", fields.join(","))
    }

    proptest! {
        #[test]
        fn a_conversation_that_grows_keeps_all_its_blocks(messages in messages(), later in messages(), block_bytes in 1_usize..100) {
            let body = |messages: &[Value]| json!({ "model": "m", "messages": messages, "tools": [{ "name": "f" }] }).to_string();
            let turn = read_with(settings(block_bytes), CHAT, body(&messages)).unwrap();
            let next = read_with(settings(block_bytes), CHAT, body(&[messages, later].concat())).unwrap();
            prop_assert_eq!(turn.keys.len(), turn.bytes / block_bytes);
            prop_assert_eq!(next.keys.get(..turn.keys.len()), Some(&*turn.keys));
            prop_assert!(next.bytes > turn.bytes);
        }

        #[test]
        fn the_order_of_fields_does_not_matter(messages in messages(), places: [[Index; 4]; 4]) {
            let body = json!({ "model": "m", "messages": messages, "tools": [1], "seed": 7, "cache_salt": "s" });
            let messages: Vec<_> =
                messages.iter().zip(&places).map(|(message, places)| reordered(message, &["role", "content"], places)).collect();
            let moved = reordered(&body, &["tools", "model", "messages", "cache_salt"], &places[3]);
            let moved = moved.replace(&body["messages"].to_string(), &format!("[{}]", messages.join(" , ")));
            prop_assert_eq!(read(CHAT, &moved), read(CHAT, body.to_string()));
        }

        #[test]
        fn how_a_text_is_escaped_does_not_matter(content: String) {
            let plain = json!({ "messages": [{ "role": "user", "content": content }] }).to_string();
            let escape = |c: char| c.encode_utf16(&mut [0; 2]).iter().fold(String::new(), |all, unit| format!("{all}\\u{unit:04X}"));
            let escaped: String = content.chars().map(escape).collect();
            let escaped = format!(r#"{{"messages":[{{"role":"\u0075ser","c\u006fntent":"{escaped}"}}]}}"#);
            prop_assert_eq!(read(CHAT, &plain), read(CHAT, &escaped));
        }

        #[test]
        fn no_body_makes_it_fail(body in "(\\{\"(messages|prompt|input|system)\":)?[\\[\\]{}\",:a1\\\\ -]{0,40}\\}?") {
            for path in [CHAT, COMPLETIONS] {
                if let Some(prefix) = read_with(settings(4), path, &body) {
                    prop_assert_eq!(prefix.keys.len(), prefix.bytes / 4);
                }
            }
        }
    }

    #[test]
    fn where_messages_stand_makes_no_difference_to_what_is_found() {
        let reading = Reading { blocks: Some(settings(4)), ..Reading::default() };
        let tool = r#"{"type":"function","function":{"name":"f"}}"#;
        for messages in [
            r#"[{"role":"user","content":"hello"}]"#,
            r#"[{"role":"user","content":"he\nllo"},"x"]"#,
            r#"["]"]"#,
            r#"[1"]"]"#,
            r#"[{"content":"x"} {"content":"y"}]"#,
            r#"[{"content":"x"]}"#,
            "[[1,2],[3]]",
            "[]",
            "null",
        ] {
            let fields = |order: [&str; 3]| format!("{{{}}}", order.join(","));
            let [field, tools, model] = [
                format!(r#""messages":{messages}"#),
                format!(r#""tools":[{tool}]"#),
                r#""model":"m""#.to_owned(),
            ];
            let found = |order| {
                let body = fields(order);
                let prompt = prompt::parse(body.as_bytes(), CHAT, &reading);
                let plain = prompt::parse(body.as_bytes(), CHAT, &Reading::default());
                assert_eq!((&prompt.model, prompt.in_object), (&plain.model, plain.in_object), "{body}");
                prompt.prefix
            };
            let last = found([&tools, &model, &field]);
            assert_eq!(found([&field, &model, &tools]), last, "{messages}");
            assert_eq!(found([&model, &field, &tools]), last, "{messages}");
        }
    }

    #[test]
    fn what_salts_leaves_nothing_in_common() {
        let body = |field: &str| {
            format!(r#"{{"messages":[{{"role":"user","content":"{}"}}]{field}}}"#, "x".repeat(100))
        };
        let plain = read_with(settings(8), CHAT, body("")).unwrap();
        for key in ["model"].into_iter().chain(SALTS) {
            let salted =
                |value: &str| read_with(settings(8), CHAT, body(&format!(r#","{key}":{value}"#))).unwrap();
            assert_eq!(shared(&plain, &salted("\"a\"")), 0, "{key}");
            assert_eq!(shared(&salted("\"b\""), &salted("\"a\"")), 0, "{key}");
            assert_eq!(plain, salted("null"), "{key}");
        }
        assert_eq!(shared(&plain, &read_with(settings(8), COMPLETIONS, body("")).unwrap()), 0);
        let of = |tenant| {
            let reading = Reading { blocks: Some(settings(8)), ..Reading::default() };
            reading.of_tenant(Some(&HeaderValue::from_static(tenant))).blocks.unwrap()
        };
        let [a, b] = ["a", "b"].map(|tenant| read_with(of(tenant), CHAT, body("")).unwrap());
        assert_eq!((shared(&plain, &a), shared(&a, &b)), (0, 0));
        let other = Settings::new(Secret::new([0; 4]), 8, 100_000);
        assert_eq!(shared(&plain, &read_with(other, CHAT, body("")).unwrap()), 0);
        // A field that moves into the next is another one.
        let salts = |a: &str, b: &str| body(&format!(r#","chat_template":{a},"chat_template_kwargs":{b}"#));
        assert_ne!(read(CHAT, salts("12", "3")), read(CHAT, salts("1", "23")));
    }

    #[test]
    fn what_stands_before_the_messages_is_rendered_before_them() {
        let long = "x".repeat(100);
        let with = |path: &str, field: &str| {
            read_with(settings(8), path, format!(r#"{{"input":"{long}","messages":["{long}"]{field}}}"#))
                .unwrap()
        };
        let plain = with(CHAT, "");
        for field in ["tools", "functions", "documents", "system", "instructions"] {
            for value in ["[1]", "[2]", "\"a\"", "[{\"type\":\"text\",\"text\":\"b\"}]"] {
                let more = with(CHAT, &format!(r#","{field}":{value}"#));
                assert!(shared(&plain, &more) == 0 && more.bytes > plain.bytes, "{field}: {value}");
            }
            assert_eq!(plain, with(CHAT, &format!(r#","{field}":null"#)), "{field}");
        }
        assert_ne!(with(CHAT, r#","system":"a""#), with(CHAT, r#","instructions":"a""#));
        let input = |field: &str| read("/v1/responses", format!("{{{field}}}"));
        assert_ne!(
            input(r#""instructions":["x","a"],"input":"b""#),
            input(r#""instructions":["x"],"input":["a","b"]"#)
        );
    }

    #[test]
    fn a_field_that_nobody_renders_makes_no_difference() {
        let plain = read(CHAT, r#"{"messages":[{"role":"user","content":"hello"}]}"#);
        let body = r#"{"trace_id":"7","messages":[{"name":null,"role":"user","content":"hello","cache_control":{}}],
            "stream":true,"temperature":0.5,"max_tokens":9,"user":"u","tools":null,"tool_choice":"auto","chat_template":null}"#;
        assert_eq!(read(CHAT, body), plain);
    }

    #[test]
    fn the_prompt_is_where_the_endpoint_looks_for_it() {
        let alone = |path: &str, field: &str| read(path, format!("{{{field}}}"));
        let (messages, prompt, input) = (
            r#""messages":[{"role":"user","content":"m"}]"#,
            r#""prompt":"some prompt""#,
            r#""input":"some input""#,
        );
        for (path, body, expected) in [
            (CHAT, format!("{{{prompt},{messages}}}"), messages),
            (COMPLETIONS, format!("{{{messages},{prompt}}}"), prompt),
            ("/v1/messages", format!("{{{messages}}}"), messages),
            ("/v1/responses", format!("{{{input}}}"), input),
            ("/v1/embeddings", format!(r#"{{{input},"prompt":null}}"#), input),
            (CHAT, format!(r#"{{{prompt},"messages":null}}"#), prompt),
        ] {
            assert_eq!(read(path, &body), alone(path, expected), "{path} {body}");
        }
        let items =
            r#"{"input":[{"type":"message","role":"user","content":[{"type":"input_text","text":"hi"}]}]}"#;
        assert!(read("/v1/responses", items).bytes < items.len());
        let list = |list: &str| read(COMPLETIONS, format!(r#"{{"prompt":{list}}}"#));
        assert_eq!(list(r#""some text""#), list(r#"["some text"]"#));
        assert_ne!(list(r#"["some text","a"]"#), list(r#"["some texta"]"#));
        assert_ne!(list(r#"["some text","a","b"]"#), list(r#"["some text","ab"]"#));
    }

    #[test]
    fn token_ids_are_exact_and_have_keys_of_their_own() {
        let read = |prompt: &str| read_with(settings(18), COMPLETIONS, format!(r#"{{"prompt":{prompt}}}"#));
        let ids = |range: std::ops::Range<u32>| json!(range.collect::<Vec<_>>()).to_string();
        let ten = read(&ids(0..10)).unwrap();
        assert_eq!((ten.bytes, ten.tokens, ten.block_bytes, ten.keys.len()), (40, Some(10), 16, 2));
        assert_eq!((ten.tokens(9.0), ten.block_tokens(9.0)), (10, 4));
        assert_eq!(Some(&ten), read(&format!("[{}]", ids(0..10))).as_ref(), "a list of one list");
        assert_eq!(read(&ids(0..100)).unwrap().keys.get(..2), Some(&*ten.keys));
        let lists =
            |lists: &str| read_with(settings(4), COMPLETIONS, format!(r#"{{"prompt":{lists}}}"#)).unwrap();
        assert_eq!(lists("[[1, 2],[3]]").tokens, Some(3));
        assert_ne!(lists("[[1,2],[3]]").keys, lists("[[1],[2,3]]").keys);
        assert_ne!(lists("[1,2,3]").keys, lists("[[1],[2,3]]").keys);
        let as_text =
            read(r#""\u0000\u0000\u0000\u0000\u0001\u0000\u0000\u0000\u0002\u0000\u0000\u0000""#).unwrap();
        assert_ne!(as_text.keys.first(), ten.keys.first());
        assert_eq!(read_with(settings(18), "/v1/embeddings", r#"{"input":[5,6]}"#).unwrap().tokens, Some(2));
        for broken in [
            "[1,-2]",
            "[-1]",
            "[1.5]",
            "[4294967295]",
            "[99999999999]",
            "[1,\"a\"]",
            "[[1],2]",
            "[1,[2]]",
            "[1,,2]",
        ] {
            assert_eq!(read(broken), None, "{broken}");
        }
    }

    #[test]
    fn what_is_no_prompt_has_no_prefix() {
        for body in [
            "{}",
            "[]",
            "",
            "null",
            r#"{"prompt":4}"#,
            r#"{"prompt":null}"#,
            r#"{"messages":"x"}"#,
            r#"{"query":"x"}"#,
            r#"{"prompt":"x"#,
            r#"{"prompt":"x","y":"#,
            r#"{"messages":[{"content":"x"}}"#,
            r#"{"messages":[{"content":"x"]}"#,
            r#"{"messages":[{"role":"user" "content":"x"}]}"#,
            r#"{"messages":[{"content":[{"type":"text","text":"x"]]}]}"#,
        ] {
            assert_eq!(read_with(settings(4), CHAT, body), None, "{body}");
        }
        assert_eq!(prompt::parse(br#"{"prompt":"x"}"#, COMPLETIONS, &Reading::default()).prefix, None);
    }

    #[test]
    fn blocks_beyond_the_bound_are_counted() {
        let body = |bytes: usize| format!(r#"{{"prompt":"{}"}}"#, "x".repeat(bytes));
        let read = |bytes, blocks_max| {
            read_with(Settings { blocks_max, ..settings(64) }, COMPLETIONS, body(bytes)).unwrap()
        };
        let (all, some) = (read(1000, 100), read(1000, 5));
        assert_eq!((all.keys.len(), all.unkeyed), (15, 0));
        assert_eq!((some.keys.len(), some.unkeyed, some.bytes), (5, 10, all.bytes));
        assert_eq!(all.keys.get(..5), Some(&*some.keys));
    }

    #[test]
    fn deep_nesting_neither_fails_nor_overflows() {
        let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
        for body in [
            format!(r#"{{"messages":[{{"role":"u","content":{deep}}}]}}"#),
            format!(r#"{{"prompt":["a",{deep}]}}"#),
            format!(r#"{{"prompt":"a","system":{deep}}}"#),
        ] {
            assert!(read_with(settings(64), CHAT, &body).unwrap().bytes > 200_000);
        }
    }
}
