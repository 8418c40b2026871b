//! The parts of a prompt one after the other, with marks between them that no text can feign.
//!
//! Used by `prefix` alone. A message of the usual kind is rendered as it usually stands in a body: `"},{"role":"user","content":"`
//! and its text, in which no quote stands by itself. Otherwise a mark, which is a byte that does not occur in a text and one
//! that says what begins, precedes each part. What is not text goes in as it stands, after its length. Nothing is kept of it but
//! the fields of one object.

use super::super::json::{self, Json};
use super::super::key::Secret;
use super::TOKEN_BYTES;
use super::chain::Chain;
use super::fields::{Fields, Kind};
use std::borrow::Cow;

/// Does not occur in a text.
const MARK: u8 = json::STRAY;
/// What an image, or anything else that is no text, is rendered as: about 1024 tokens.
const BLOB_BYTES: usize = 4096;
/// So much of several messages goes in at once, while the processor still has it near.
const RUN_BYTES: usize = 16 * 1024;
/// Lists of parts within parts that are looked into: that of a message, and that of a tool's result in it.
const DEPTH_MAX: usize = 2;

/// The rendering of a prompt.
pub(super) struct Render {
    chain: Chain,
    /// With what blobs are keyed.
    secret: Secret,
    /// The next text follows the head of a message.
    is_headed: bool,
    broken: bool,
}

impl Render {
    pub(super) fn new(chain: Chain, secret: Secret) -> Self {
        Self { chain, secret, is_headed: false, broken: false }
    }

    /// What was rendered; `None` where something was met that is not understood.
    pub(super) fn finish(&mut self) -> Option<&mut Chain> {
        (!self.broken).then_some(&mut self.chain)
    }

    /// Whether something was met that is not understood.
    pub(super) fn is_broken(&self) -> bool {
        self.broken
    }

    /// One text, or a list of texts or messages, which stands here.
    pub(super) fn items(&mut self, json: &mut Json<'_>) {
        self.mark(b'P');
        if json.kind() != Some(b'[') {
            return self.content(json, 0);
        }
        json.array(|json| match json.kind() {
            Some(b'{') => self.message(json),
            _ => self.content(json, 0),
        });
    }

    /// The same for a value that has been passed over.
    pub(super) fn raw_items(&mut self, value: &[u8]) {
        self.read(value, Self::items);
    }

    /// Its role, its content, then all other fields in their order.
    fn message<'a>(&mut self, json: &mut Json<'a>) {
        let (mut role, mut content): (&[u8], &[u8]) = (b"", b"");
        let usual = self.usual_messages(json);
        let (mut others, mut rendered) = (None::<Fields<'_>>, usual.is_some());
        let start = usual.unwrap_or_else(|| json.position());
        let field = |json: &mut Json<'a>, key: Cow<'a, [u8]>| match &*key {
            b"content" if !role.is_empty() && !rendered => {
                rendered = true;
                self.head(role);
                self.content(json, 0);
            }
            b"role" if !rendered => role = json.skip(),
            b"content" if !rendered => content = json.skip(),
            _ => others.get_or_insert_default().push(key, json.skip()),
        };
        if usual.is_some() {
            json.fields(false, field);
        } else {
            json.object(field);
        }
        if !rendered {
            self.head(role);
            self.raw_content(content, 0);
        }
        self.is_headed = false;
        let Some(others) = others else { return };
        for (key, value) in others.all() {
            self.field(key, value);
        }
        if others.are_too_many {
            self.raw(b'o', json.since(start));
        }
    }

    /// Reads messages that stand there as they are rendered, one after the other and with nothing in between, up to the end of a
    /// content: they go in as one. Returns where the last of them begins; `None` where nothing was read.
    fn usual_messages(&mut self, json: &mut Json<'_>) -> Option<usize> {
        let mut begins = json.position();
        let (head, written_bytes) = usual_head(json.rest())?;
        json.advance(written_bytes);
        self.chain.append(head);
        let mut start = json.position();
        while json.pass_canonical()
            && let Some(next) = json.rest().strip_prefix(MESSAGE_END)
            && let Some((head, written_bytes)) = usual_head(next)
            && next.starts_with(head.get(MESSAGE_END.len()..).unwrap_or_default())
        {
            json.advance(MESSAGE_END.len());
            begins = json.position();
            json.advance(written_bytes);
            if begins - start > RUN_BYTES {
                self.chain.append(json.since(start));
                start = json.position();
            }
        }
        self.chain.append(json.since(start));
        json.canonical_rest(|piece| self.chain.append(piece));
        Some(begins)
    }

    /// What a message begins with, up to its content. Like most that is text it is rendered as it usually stands in a body.
    fn head(&mut self, role: &[u8]) {
        self.chain.append(br#""},{"role":"#);
        self.is_headed = true;
        self.raw_content(role, 0);
        self.chain.append(br#"","content":"#);
        self.is_headed = true;
    }

    /// What stands in the place of a content: a text, a list of parts, or something else. A text alone is a list of one.
    fn content(&mut self, json: &mut Json<'_>, depth: usize) {
        match json.kind() {
            Some(b'"') => self.text(json),
            Some(b'[') if depth < DEPTH_MAX => json.array(|json| match json.kind() {
                Some(b'{') => self.part(json, depth + 1),
                _ => self.content(json, depth + 1),
            }),
            _ => self.raw(b'v', json.skip()),
        }
    }

    /// The same for a value that has been passed over; nothing where there is none.
    pub(super) fn raw_content(&mut self, value: &[u8], depth: usize) {
        if !value.is_empty() {
            self.read(value, |this, json| this.content(json, depth));
        }
    }

    fn part(&mut self, json: &mut Json<'_>, depth: usize) {
        let (mut kind, mut rendered, mut fields) = (Kind::Other, false, Fields::default());
        let part = json.raw(|json| {
            json.object(|json, key| {
                if *key == *b"text" && kind == Kind::Text && !rendered && json.kind() == Some(b'"') {
                    rendered = true;
                    return self.text(json);
                }
                let value = json.skip();
                if *key == *b"type" {
                    kind = Kind::of(value);
                }
                fields.push(key, value);
            });
        });
        match (kind, fields.text()) {
            (Kind::Text, _) if rendered => {}
            (Kind::Text, Some(text)) => self.raw_content(text, depth),
            (Kind::Blob, _) => self.blob(part, &fields),
            _ => self.other_part(part, &fields, depth),
        }
    }

    /// A part that is neither text nor blob; what it contains, such as a tool's result, may be either.
    fn other_part(&mut self, part: &[u8], fields: &Fields<'_>, depth: usize) {
        self.mark(b'p');
        for (key, value) in fields.all() {
            if key == b"content" {
                self.raw_content(value, depth);
            } else {
                self.field(key, value);
            }
        }
        if fields.are_too_many {
            self.raw(b'o', part);
        }
        self.mark(b'e');
    }

    /// Something that is known by its hash.
    fn blob(&mut self, part: &[u8], fields: &Fields<'_>) {
        let mut hash = self.secret.hash();
        for (key, value) in fields.all() {
            hash.append_whole(key);
            hash.append_whole(value);
        }
        if fields.are_too_many {
            hash.append_whole(part);
        }
        self.mark(b'b');
        let hash = hash.finish().to_le_bytes();
        for _ in 0..BLOB_BYTES / hash.len() {
            self.chain.append(&hash);
        }
    }

    fn field(&mut self, key: &[u8], value: &[u8]) {
        self.raw(b'k', key);
        self.raw(b'v', value);
    }

    /// What is not text, after `mark`; nothing where there is none.
    pub(super) fn raw(&mut self, mark: u8, value: &[u8]) {
        if !value.is_empty() && value != b"null" {
            self.mark(mark);
            self.chain.append(&value.len().to_le_bytes());
            self.chain.append(value);
        }
    }

    fn text(&mut self, json: &mut Json<'_>) {
        if std::mem::take(&mut self.is_headed) {
            self.chain.append(b"\"");
        } else {
            self.mark(b't');
        }
        json.canonical(|piece| self.chain.append(piece));
    }

    pub(super) fn mark(&mut self, what: u8) {
        self.is_headed = false;
        self.chain.append(&[MARK, what]);
    }

    /// Token ids, or lists of them; returns how many.
    pub(super) fn token_ids(&mut self, value: &[u8]) -> usize {
        let (mut tokens, mut lists) = (0, 0);
        self.read(value, |this, json| {
            if !is_list_of_lists(value) {
                tokens = this.token_list(json);
                return;
            }
            json.array(|json| {
                if lists > 0 {
                    this.chain.append(&[MARK; TOKEN_BYTES]);
                }
                lists += 1;
                tokens += this.token_list(json);
            });
        });
        tokens
    }

    fn token_list(&mut self, json: &mut Json<'_>) -> usize {
        let mut tokens = 0;
        json.integers(|id| {
            tokens += 1;
            // The greatest number stands between lists, and no vocabulary is as large.
            self.broken |= id == u32::MAX;
            self.chain.append(&id.to_le_bytes());
        });
        tokens
    }

    fn read<'a>(&mut self, value: &'a [u8], read: impl FnOnce(&mut Self, &mut Json<'a>)) {
        let mut json = Json::new(value);
        read(self, &mut json);
        self.broken |= json.is_broken();
    }
}

/// What stands between the text of a message and the next one.
const MESSAGE_END: &[u8] = br#""},"#;
/// The roles of most messages, and what a message with a text is rendered with up to that: [`MESSAGE_END`], and what it begins
/// with where it is written without spaces.
const USUAL_HEADS: [(&[u8], &[u8]); 4] = [
    (b"user", br#""},{"role":"user","content":""#),
    (b"assistant", br#""},{"role":"assistant","content":""#),
    (b"tool", br#""},{"role":"tool","content":""#),
    (b"system", br#""},{"role":"system","content":""#),
];

/// What most messages begin with, up to the text of their content: how that is rendered, and the length of how it is written.
fn usual_head(message: &[u8]) -> Option<(&'static [u8], usize)> {
    let [start, middle]: [&[u8]; 2] = match message.get(8)? {
        b'"' => [br#"{"role":""#, br#"","content":""#],
        _ => [br#"{"role": ""#, br#"", "content": ""#],
    };
    let message = message.strip_prefix(start)?;
    let (role, head) = USUAL_HEADS.iter().find(|(role, _)| message.starts_with(role))?;
    let bytes = start.len() + role.len() + middle.len();
    message.get(role.len()..)?.starts_with(middle).then_some((head, bytes))
}

/// Whether a prompt is given as token ids, or lists of them.
pub(super) fn are_token_ids(value: &[u8]) -> bool {
    let first = first_element(value);
    first.is_some_and(|byte| matches!(byte, b'[' | b'-') || byte.is_ascii_digit())
}

fn is_list_of_lists(value: &[u8]) -> bool {
    first_element(value) == Some(b'[')
}

/// The byte that the first element of a list begins with.
fn first_element(value: &[u8]) -> Option<u8> {
    value.strip_prefix(b"[").and_then(|elements| Json::new(elements).kind())
}

#[cfg(test)]
mod tests {
    use super::super::Settings;
    use super::*;
    use crate::state::blocks::BlockKey;
    use serde_json::{Value, json};
    use std::collections::HashMap;
    use std::sync::Arc;

    /// What is rendered of a list, with a key for every byte, so that any difference shows.
    fn items(list: impl AsRef<[u8]>) -> Arc<[BlockKey]> {
        let settings = Settings::new(Secret::new([1, 2, 3, 4]), 1, usize::MAX);
        let mut render = Render::new(Chain::new(&settings, 1, 0), settings.secret);
        render.raw_items(list.as_ref());
        render.finish().unwrap().keys(0)
    }

    fn chat(messages: &Value) -> Arc<[BlockKey]> {
        items(messages.to_string())
    }

    /// All conversations of one or two small messages, each in one way of writing it.
    fn small_conversations() -> Vec<Vec<u8>> {
        let parts = [
            r#""a""#,
            r#""},{""#,
            r#"{"type":"x"}"#,
            r#"{"type":"x","k":1}"#,
            r#"{"type":"x","content":"a"}"#,
            r#"{"type":"x","content":[{"type":"x"}],"k":1}"#,
            r#"{"type":"x","content":[{"type":"x","k":1}]}"#,
            r#"{"type":"image"}"#,
            r#"{"type":"image","a":1,"b":2}"#,
            r#"{"type":"image","a\u0001\u0000\u0000\u0000\u0000\u0000\u0000\u00001b":2}"#,
        ];
        let pairs = parts.iter().flat_map(|a| parts.iter().map(move |b| format!("[{a},{b}]")));
        let contents: Vec<_> =
            parts.map(|part| format!("[{part}]")).into_iter().chain(pairs).chain(["[]".to_owned()]).collect();
        let mut messages = Vec::new();
        for role in ["", r#""role":"a","#, r#""role":"aa","#, r#""role":",","#] {
            for content in &contents {
                for others in ["", r#","k":1"#, r#","k":1,"type":"x""#] {
                    messages.push(format!(r#"{{{role}"content":{content}{others}}}"#).into_bytes());
                }
            }
        }
        // What is no UTF-8 cannot feign a mark.
        messages.extend([
            br#"{"content":[],"k":1,"j":2}"#.to_vec(),
            b"{\"content\":[],\"k\":1\xffkj\xffv2}".to_vec(),
        ]);
        let short = messages.iter().filter(|message| message.len() < 40);
        let two = short.clone().flat_map(|a| short.clone().map(move |b| [a.as_slice(), b",", b].concat()));
        messages.iter().cloned().chain(two).collect()
    }

    #[test]
    fn no_two_conversations_are_rendered_alike() {
        let mut seen = HashMap::new();
        for messages in small_conversations() {
            let keys = items([b"[", messages.as_slice(), b"]"].concat());
            let same = seen.insert(keys.last().copied(), messages.clone());
            let [messages, same] = [Some(messages), same]
                .map(|text| text.map(|text| String::from_utf8_lossy(&text).into_owned()));
            assert_eq!(same, None, "is rendered as {messages:?}");
        }
        assert!(seen.len() > 1000, "only {}", seen.len());
    }

    #[test]
    fn a_text_is_a_list_of_one_and_markers_of_caching_move_freely() {
        let plain = chat(&json!([{ "role": "user", "content": "hello" }]));
        for kind in ["text", "input_text", "output_text"] {
            let part = json!({ "type": kind, "text": "hello", "cache_control": { "type": "ephemeral" }, "annotations": [] });
            assert_eq!(chat(&json!([{ "role": "user", "content": [part] }])), plain, "{kind}");
            let part = json!({ "text": "hello", "type": kind });
            assert_eq!(chat(&json!([{ "content": [part], "role": "user" }])), plain, "{kind}");
        }
        let result = |part: Value| chat(&json!([{ "role": "user", "content": [part] }]));
        let marked = json!({ "type": "tool_result", "content": [{ "type": "text", "text": "42" }], "cache_control": {} });
        assert_eq!(result(json!({ "type": "tool_result", "content": "42" })), result(marked));
    }

    #[test]
    fn a_message_is_the_same_read_at_a_glance_or_not() {
        for role in ["user", "assistant", "system", "tool", "developer", "us\\u0065r", ""] {
            for content in [r#""say \"hi\"""#, "[]", r#"[{"type":"text","text":"a"}]"#, "null", "7"] {
                for rest in ["", r#","name":"n""#, r#","content":"again","role":"user""#] {
                    let written = [
                        format!(r#"{{"role":"{role}","content":{content}{rest}}}"#),
                        format!(r#"{{"role": "{role}", "content": {content}{rest}}}"#),
                        format!(r#"{{ "role":"{role}","content":{content}{rest}}}"#),
                        format!(r#"{{"role" :"{role}","content" : {content}{rest} }}"#),
                    ];
                    let keys = written.each_ref().map(|message| items(format!("[{message},1]")));
                    assert!(keys.iter().all(|other| *other == keys[0]), "{}", written[0]);
                }
            }
        }
    }

    #[test]
    fn messages_are_the_same_read_as_one_or_not() {
        let long = "x".repeat(RUN_BYTES / 2);
        let usual = [
            ("system", "be brief", ""),
            ("user", r#"say \"hi\"\n"#, ""),
            ("assistant", "hi", r#","name":"n""#),
            ("tool", "", ""),
            ("user", r"\u0041\/b", ""),
            ("assistant", &long, ""),
            ("user", &long, ""),
            ("assistant", &long, ""),
            ("assistant", "you're\u{ff}", ""),
            ("developer", "go on", ""),
            ("user", "on", ""),
        ];
        let list = |colon: &str, comma: &str| {
            let message = |(role, text, rest): &(&str, &str, &str)| {
                format!(r#"{{"role"{colon}"{role}"{comma}"content"{colon}"{text}"{rest}}}"#)
            };
            format!("[{}]", usual.iter().map(message).collect::<Vec<_>>().join(comma))
        };
        let compact = items(list(":", ","));
        assert_eq!(items(list(": ", ", ")), compact);
        assert_eq!(items(list(" :", " ,")), compact);
        assert_eq!(items(list(":", ",").replace("},", "},\n ")), compact);
        assert_eq!(items(list(":", ",").replace(",{", ", {")), compact);
        // Those without anything else are as long as they are written.
        let [short, long] =
            [1, 4].map(|count| list(":", ",").split_inclusive('}').take(count).collect::<String>() + "]");
        let long = long.replace(r#","name":"n""#, "");
        assert_eq!(items(&long).len() - items(&short).len(), long.len() - short.len());
    }

    #[test]
    fn an_image_is_its_hash_however_large_it_is() {
        let image = |url: &str| {
            let part = json!({ "type": "image_url", "image_url": { "url": url } });
            chat(&json!([{ "role": "user", "content": [part, { "type": "text", "text": "What is this?" }] }]))
        };
        let (small, large) = (image("a"), image(&"a".repeat(10_000)));
        assert!((4096..4200).contains(&small.len()), "{}", small.len());
        assert_eq!(small.len(), large.len());
        let shared = small.iter().zip(&*large).take_while(|(a, b)| a == b).count();
        assert!((1..40).contains(&shared), "all that is before it, and nothing from there on");
        assert_eq!(small, image("a"));
        let within = json!({ "type": "tool_result", "content": [{ "type": "image", "source": { "data": "a".repeat(10_000) } }] });
        assert!(chat(&json!([{ "role": "user", "content": [within] }])).len() < 4300);
    }

    #[test]
    fn more_fields_than_are_told_apart_are_still_told() {
        let fields: Vec<_> = (0..20).map(|n| format!(r#""field{n}":1"#)).collect();
        let part = r#"{"role":"user","content":[{"type":"#;
        for (before, after) in [
            (r#"{"role":"user""#.to_owned(), "}"),
            (format!(r#"{part}"x""#), "}]}"),
            (format!(r#"{part}"image""#), "}]}"),
        ] {
            let all = |last: u32| format!(r#"{before},{},"last":{last}{after}"#, fields.join(","));
            let read = |last| items(format!("[{}]", all(last)));
            assert_ne!(read(1).last(), read(2).last());
            assert_eq!(read(1), read(1));
        }
    }
}
