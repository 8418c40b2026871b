//! A tokenizer without a vocabulary file: about four bytes to a token, reversible, the same in every process.
//!
//! Single bytes have the ids that a byte-level vocabulary with five special tokens in front gives them; the few words
//! of the recorded answers have their recorded ids; all else is packed into ids above the vocabulary, so that
//! different text never shares an id. Chats are rendered with the template of the recorded model.

use serde_json::Value;

const BEGIN: u32 = 0;
const END: u32 = 1;
const USER: u32 = 2;
const ASSISTANT: u32 = 3;
const SYSTEM: u32 = 4;
const SPECIAL: [(u32, &str); 5] =
    [(BEGIN, "<s>"), (END, "</s>"), (USER, "<|user|>"), (ASSISTANT, "<|assistant|>"), (SYSTEM, "<|system|>")];

/// Merged tokens that occur in the recorded answers.
const MERGED: [(u32, &str); 3] = [(261, "he"), (329, "llo"), (347, " world")];
/// The recorded texts that are made of them.
const RECORDED: [(&str, &[u32]); 2] = [("hello world", &[261, 329, 347]), ("hello", &[261, 329])];

/// Ids from here on are packed bytes: two bits for the kind, 28 for the bytes.
const PACKED: u32 = 512;

/// The character that a byte-level vocabulary shows for a byte.
fn shown(byte: u8) -> char {
    match byte {
        b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => char::from(byte),
        _ => {
            let hidden = (0..byte).filter(|byte| !matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff));
            char::from_u32(256 + u32::try_from(hidden.count()).unwrap_or_default()).unwrap_or_default()
        }
    }
}

/// The id of a single byte: its place among the shown characters.
fn byte_id(byte: u8) -> u32 {
    let place = match byte {
        b'!'..=b'~' => u32::from(byte - b'!'),
        0xa1..=0xac => 94 + u32::from(byte - 0xa1),
        0xae..=0xff => 106 + u32::from(byte - 0xae),
        _ => 188 + u32::from(shown(byte)) - 256,
    };
    5 + place
}

/// The tokens of a text, without special ones.
pub(super) fn encode(text: &str) -> Vec<u32> {
    if let Some((_, ids)) = RECORDED.iter().find(|(recorded, _)| *recorded == text) {
        return ids.to_vec();
    }
    let mut ids = Vec::with_capacity(text.len() / 4 + 1);
    let mut rest = text.as_bytes();
    while !rest.is_empty() {
        let size = group(rest);
        let (bytes, more) = rest.split_at(size);
        ids.push(pack(bytes));
        rest = more;
    }
    ids
}

/// How many bytes at the start of `rest` make a token.
fn group(rest: &[u8]) -> usize {
    let four = rest.get(..4).unwrap_or(rest);
    if four.is_ascii() {
        four.len()
    } else if rest.len() >= 3 {
        3
    } else {
        1
    }
}

fn pack(bytes: &[u8]) -> u32 {
    let number = |bits| bytes.iter().fold(0, |number, byte| (number << bits) | u32::from(*byte));
    match bytes {
        [byte] => byte_id(*byte),
        [_, _, _] if !bytes.is_ascii() => PACKED + (3 << 28 | number(8)),
        _ => {
            let kind = u32::try_from(bytes.len()).unwrap_or_default() - 2;
            PACKED + (kind << 28 | number(7))
        }
    }
}

/// The bytes of one token; none for an id that no text has.
fn unpack(id: u32) -> Vec<u8> {
    if let Some((_, text)) = SPECIAL.iter().chain(&MERGED).find(|(own, _)| *own == id) {
        return text.as_bytes().to_vec();
    }
    let Some(packed) = id.checked_sub(PACKED) else {
        return (0..=u8::MAX).filter(|byte| byte_id(*byte) == id).collect();
    };
    let (kind, number) = (packed >> 28, packed & 0x0fff_ffff);
    let (count, bits) = match kind {
        0..=2 => (kind + 2, 7),
        3 => (3, 8),
        _ => return Vec::new(),
    };
    if number >> (count * bits) != 0 {
        return Vec::new();
    }
    let byte = |place: u32| u8::try_from((number >> (place * bits)) & ((1 << bits) - 1)).unwrap_or_default();
    (0..count).rev().map(byte).collect()
}

/// The text of the tokens.
pub(super) fn decode(ids: impl IntoIterator<Item = u32>) -> String {
    let bytes: Vec<u8> = ids.into_iter().flat_map(unpack).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A token as a byte-level vocabulary shows it.
pub(super) fn show(id: u32) -> String {
    match SPECIAL.iter().find(|(own, _)| *own == id) {
        Some((_, text)) => (*text).to_owned(),
        None => unpack(id).into_iter().map(shown).collect(),
    }
}

/// The tokens of a plain prompt.
pub(super) fn prompt(text: &str, special: bool) -> Vec<u32> {
    let mut ids = if special { vec![BEGIN] } else { Vec::new() };
    ids.extend(encode(text));
    ids
}

/// The tokens of a conversation.
pub(super) fn chat(messages: &[Value], generation_prompt: bool) -> Vec<u32> {
    let mut ids = Vec::new();
    for message in messages {
        ids.push(match message.get("role").and_then(Value::as_str) {
            Some("assistant") => ASSISTANT,
            Some("system" | "developer" | "tool") => SYSTEM,
            _ => USER,
        });
        if let Some(content) = message.get("content") {
            ids.extend(encode(&content_text(content)));
        }
        ids.push(END);
    }
    if generation_prompt {
        ids.push(ASSISTANT);
    }
    ids
}

/// The text of a message's content, which is a string or a list of parts.
fn content_text(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(parts) => parts.iter().filter_map(|part| part.get("text")?.as_str()).collect(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_comes_back_whole() {
        for text in
            ["", "a", "ab", "hello world", "The quick brown fox.\n\0", "déjà vu — 漢字かな 🦀", "é", "日"]
        {
            assert_eq!(decode(encode(text)), text, "{text:?}");
        }
    }

    #[test]
    fn english_takes_four_bytes_a_token() {
        assert_eq!(encode(&"lorem ipsum ".repeat(100)).len(), 300);
    }

    #[test]
    fn a_longer_text_keeps_the_tokens_of_its_start() {
        let (short, long) = ("x".repeat(64), "x".repeat(90));
        assert!(encode(&long).starts_with(&encode(&short)));
    }

    #[test]
    fn ids_are_distinct_and_fit_an_i32() {
        let texts = ["\0\0", "\0\0\0", "\0\0\0\0", "\u{7f}\u{7f}\u{7f}\u{7f}", "日", "\0"];
        let mut ids: Vec<_> = texts.iter().flat_map(|text| encode(text)).collect();
        assert!(ids.iter().all(|id| i32::try_from(*id).is_ok()));
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), texts.len());
    }

    #[test]
    fn single_bytes_have_the_ids_of_a_byte_level_vocabulary() {
        assert_eq!([byte_id(b'a'), byte_id(b'x'), byte_id(b'B'), byte_id(0x12)], [69, 92, 38, 211]);
    }

    #[test]
    fn an_id_that_no_text_has_decodes_to_nothing() {
        assert_eq!(decode([999_999, u32::MAX]), "");
    }
}
