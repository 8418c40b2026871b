//! The text of a JSON string in the one form in which it could have been written: RFC 8785, 3.2.2.2, without the quotes.
//!
//! For whoever wants no more than its hash. Most strings are written so already, with an escape for what needs one and for
//! nothing else; then they are given on as they stand, however many escapes they have.

use super::Json;
use super::scan;
use super::text::{ESCAPE, Gathered, QUOTE, RUN_BYTES_MAX, unescape};

impl Json<'_> {
    /// Reads the string that stands here. Two strings are given on in the same bytes, however they are cut, exactly if their
    /// texts are the same. What is no UTF-8 stays as it is, but for [`super::STRAY`], which like half a surrogate pair becomes
    /// U+FFFD. (An escape that JSON does not have may lose its backslash: no engine takes it.)
    pub fn canonical(&mut self, piece: impl FnMut(&[u8])) {
        if !self.take(QUOTE) {
            return self.give_up();
        }
        self.canonical_rest(piece);
    }

    /// Passes over as much of a string, whose first quote has been passed, as is written in canonical form; whether that is all
    /// but the last quote.
    pub fn pass_canonical(&mut self) -> bool {
        let Some(length) = scan::canonical_length(self.rest()) else {
            self.give_up();
            return false;
        };
        self.at += length;
        self.rest().first() == Some(&QUOTE)
    }

    /// Reads the rest of a string in the same way.
    pub fn canonical_rest(&mut self, mut piece: impl FnMut(&[u8])) {
        let text = self.rest();
        // Only what is written otherwise comes in small pieces.
        let mut gathered: Option<Gathered> = None;
        let mut at = 0;
        loop {
            let rest = text.get(at..).unwrap_or_default();
            // Escapes come in rows.
            let is_other = matches!(rest, [ESCAPE, b'u' | b'/', ..]);
            let length = if is_other { Some(0) } else { scan::canonical_length(rest) };
            let Some(length) = length else { return self.give_up() };
            let (run, rest) = rest.split_at(length);
            at += length;
            let (character, length) = match rest.first() {
                Some(&QUOTE) => {
                    match &mut gathered {
                        Some(gathered) => gathered.run(run, &mut piece),
                        None if run.is_empty() => {}
                        None => piece(run),
                    }
                    break;
                }
                Some(&ESCAPE) => unescape(rest),
                _ => (char::REPLACEMENT_CHARACTER, 1),
            };
            let gathered = gathered.get_or_insert_with(Gathered::new);
            gathered.run(run, &mut piece);
            write(character, gathered, &mut piece);
            at += length;
        }
        if let Some(mut gathered) = gathered {
            gathered.give_on(&mut piece);
        }
        self.at += at + 1;
    }
}

fn write(character: char, gathered: &mut Gathered, piece: &mut impl FnMut(&[u8])) {
    let short = match character {
        '"' => b"\\\"",
        '\\' => b"\\\\",
        '\u{8}' => b"\\b",
        '\u{c}' => b"\\f",
        '\n' => b"\\n",
        '\r' => b"\\r",
        '\t' => b"\\t",
        '\0'..'\u{20}' => {
            return gathered.run(format!("\\u{:04x}", u32::from(character)).as_bytes(), piece);
        }
        _ => return gathered.run(character.encode_utf8(&mut [0; 4]).as_bytes(), piece),
    };
    gathered.run(short, piece);
}

impl Gathered {
    /// Adds `run`, or gives it on at once where it is long.
    fn run(&mut self, run: &[u8], piece: &mut impl FnMut(&[u8])) {
        if run.len() > RUN_BYTES_MAX {
            self.give_on(piece);
            piece(run);
            return;
        }
        if !self.has_room_for(run.len()) {
            self.give_on(piece);
        }
        self.push(run);
    }
}

#[cfg(test)]
mod tests {
    use super::super::STRAY;
    use super::*;
    use proptest::prelude::*;

    fn read(written: &[u8]) -> Vec<u8> {
        let mut text = Vec::new();
        let mut json = Json::new(written);
        json.canonical(|piece| text.extend_from_slice(piece));
        assert!(json.is_broken() || json.rest().is_empty(), "{}", written.escape_ascii());
        text
    }

    /// A text as JSON with all that can be written as an escape, by chance.
    fn escaped(text: &str, chance: &[bool]) -> String {
        let mut chance = chance.iter().cycle();
        let plain = |c: char| serde_json::to_string(&c).unwrap().trim_matches('"').to_owned();
        let unicode = |c: char| {
            c.encode_utf16(&mut [0; 2]).iter().fold(String::new(), |all, unit| format!("{all}\\u{unit:04X}"))
        };
        let written = text.chars().map(|c| match (c, chance.next()) {
            ('/', Some(true)) => "\\/".to_owned(),
            ('"', Some(false)) => "\\\"".to_owned(),
            (_, Some(true)) => unicode(c),
            _ => plain(c),
        });
        format!("\"{}\"", written.collect::<String>())
    }

    proptest! {
        #[test]
        fn it_is_what_serde_writes_however_it_was_written(
            text in "([a-z]{250,260}|[\"/\\\\]|\\PC|[\u{0}-\u{20}]|é|\u{1f600}){0,40}",
            chance in prop::collection::vec(any::<bool>(), 1..50),
        ) {
            // Which writes exactly the form of RFC 8785.
            let canonical = serde_json::to_string(&text).unwrap();
            let inner = canonical.get(1..canonical.len() - 1).unwrap().as_bytes();
            prop_assert_eq!(read(canonical.as_bytes()), inner);
            prop_assert_eq!(read(escaped(&text, &chance).as_bytes()), inner);
        }

        #[test]
        fn a_string_that_does_not_end_ends_the_reading(text: String) {
            let written = serde_json::to_string(&text).unwrap();
            for length in 0..written.len() {
                let mut json = Json::new(written.as_bytes().get(..length).unwrap());
                json.canonical(|_| {});
                prop_assert!(json.is_broken(), "{length} of {written}");
            }
        }
    }

    #[test]
    fn a_text_that_is_written_so_already_is_one_piece() {
        let text = r#"say \"no\"\n\tand C:\\path "#.repeat(1000);
        let mut pieces = Vec::new();
        Json::new(format!("\"{text}\"").as_bytes()).canonical(|piece| pieces.push(piece.to_vec()));
        assert_eq!(pieces, [text.into_bytes()]);
    }

    #[test]
    fn an_end_or_an_escape_is_found_wherever_it_stands() {
        for before in 0..600 {
            for (escape, canonical) in
                [("", ""), (r"\n", r"\n"), (r#"\\\""#, r#"\\\""#), (r"\/", "/"), (r"\u0041", "A")]
            {
                let [before, after] = [before, 600 - before].map(|count| "x".repeat(count));
                let written = format!("\"{before}{escape}{after}\"");
                assert_eq!(
                    read(written.as_bytes()),
                    format!("{before}{canonical}{after}").as_bytes(),
                    "{written}"
                );
            }
        }
    }

    #[test]
    fn what_is_no_text_is_replaced_as_elsewhere() {
        for (written, text) in [
            (&b"\"a\\ud83dx\""[..], "a\u{fffd}x"),
            (b"\"\\x\\u12\"", "\\x\u{fffd}12"),
            (b"\"\xff\\n\xff\"", "\u{fffd}\\n\u{fffd}"),
        ] {
            assert_eq!(read(written), text.as_bytes(), "{}", written.escape_ascii());
        }
        assert!(!read(b"\"\xff\xfe\"").contains(&STRAY));
    }
}
