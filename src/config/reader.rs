//! The tree of the file → typed values: a serde deserializer whose errors know their line and path.
//!
//! Used by [`Config::parse`](super::Config::parse) only. Stricter than YAML libraries tend to be: a quoted number is
//! text, a key that stands twice is an error, and nothing is skipped.

use std::fmt::Display;

use serde::de::value::StrDeserializer;
use serde::de::{self, DeserializeSeed, Deserializer, Expected, IntoDeserializer, Unexpected, Visitor};
use serde::forward_to_deserialize_any;

use super::error::{Fault, key_shown};
use super::tree::{Data, Key, Node, Scalar};

/// Reads a value from a node.
pub(super) fn read<'a, T: de::Deserialize<'a>>(node: &'a Node) -> Result<T, Fault> {
    T::deserialize(Reader(node)).map_err(|fault| place(fault, node))
}

#[derive(Clone, Copy)]
struct Reader<'a>(&'a Node);

/// Adds the line and, for a refused value, how it was written.
fn place(fault: Fault, node: &Node) -> Fault {
    fault.about(&node.shown()).at(node.line)
}

impl<'a> Reader<'a> {
    fn entries(self, allowed: impl FnOnce() -> String) -> Result<Entries<'a>, Fault> {
        match &self.0.data {
            Data::Map(entries) => {
                for (n, (key, _)) in entries.iter().enumerate() {
                    if let Some((first, _)) = entries.iter().take(n).find(|(first, _)| first.text == key.text)
                    {
                        let message = format!("given twice, first on line {}", first.line);
                        return Err(Fault::new(message).at(key.line).under_key(&key.text));
                    }
                }
                Ok(Entries { rest: entries.iter(), value: None })
            }
            Data::Scalar(scalar) if scalar.is_null() => Ok(Entries { rest: [].iter(), value: None }),
            // The text may be a key and its secret that lack the space between them: do not show it.
            Data::Scalar(_) => Err(Fault::refused(allowed()).about("a single value")),
            Data::List(_) => Err(Fault::refused(allowed())),
        }
    }
}

impl<'de> Deserializer<'de> for Reader<'de> {
    type Error = Fault;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.0.data {
            Data::Scalar(scalar) => visit_scalar(scalar, visitor),
            Data::List(_) => self.deserialize_seq(visitor),
            Data::Map(_) => self.deserialize_map(visitor),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.0.data {
            Data::Scalar(scalar) if !scalar.is_null() => visitor.visit_borrowed_str(&scalar.text),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.0.data {
            Data::Scalar(scalar) if scalar.is_null() => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.0.data {
            Data::List(items) => visitor.visit_seq(Items(items.iter().enumerate())),
            Data::Scalar(scalar) if scalar.is_null() => visitor.visit_seq(Items([].iter().enumerate())),
            Data::Scalar(_) => Err(Fault::refused("a list").about("a single value")),
            Data::Map(_) => Err(Fault::refused("a list")),
        }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_map(self.entries(|| "a mapping".to_owned())?)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        visitor.visit_map(self.entries(|| format!("a mapping with the keys {}", fields.join(", ")))?)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        match &self.0.data {
            Data::Scalar(scalar) if !scalar.is_null() => {
                visitor.visit_enum(scalar.text.as_str().into_deserializer())
            }
            _ => Err(Fault::refused(variants.join(", "))),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        visitor.visit_newtype_struct(self)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char bytes byte_buf unit unit_struct tuple tuple_struct
        identifier ignored_any
    }
}

/// Gives a scalar the type that YAML gives it.
fn visit_scalar<'de, V: Visitor<'de>>(scalar: &'de Scalar, visitor: V) -> Result<V::Value, Fault> {
    let text = scalar.text.as_str();
    if scalar.is_null() {
        visitor.visit_unit()
    } else if !scalar.plain {
        visitor.visit_borrowed_str(text)
    } else if let "true" | "True" | "TRUE" = text {
        visitor.visit_bool(true)
    } else if let "false" | "False" | "FALSE" = text {
        visitor.visit_bool(false)
    } else if let Ok(number) = text.parse::<u64>() {
        visitor.visit_u64(number)
    } else if let Some(number) = text.parse::<f64>().ok().filter(|number| number.is_finite()) {
        visitor.visit_f64(number)
    } else {
        visitor.visit_borrowed_str(text)
    }
}

struct Items<'a>(std::iter::Enumerate<std::slice::Iter<'a, Node>>);

impl<'de> de::SeqAccess<'de> for Items<'de> {
    type Error = Fault;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Fault> {
        let Some((index, node)) = self.0.next() else {
            return Ok(None);
        };
        seed.deserialize(Reader(node)).map(Some).map_err(|fault| place(fault, node).under_index(index))
    }
}

struct Entries<'a> {
    rest: std::slice::Iter<'a, (Key, Node)>,
    value: Option<(&'a Key, &'a Node)>,
}

impl<'de> de::MapAccess<'de> for Entries<'de> {
    type Error = Fault;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Fault> {
        let Some((key, value)) = self.rest.next() else {
            return Ok(None);
        };
        self.value = Some((key, value));
        let text: StrDeserializer<'de, Fault> = key.text.as_str().into_deserializer();
        seed.deserialize(text).map(Some).map_err(|fault| fault.at(key.line))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Fault> {
        let (key, node) = self.value.take().ok_or_else(|| Fault::new("a value was read before its key"))?;
        seed.deserialize(Reader(node)).map_err(|fault| place(fault, node).under_key(&key.text))
    }
}

impl Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self:?}")
    }
}

impl std::error::Error for Fault {}

impl de::Error for Fault {
    fn custom<T: Display>(message: T) -> Self {
        Fault::new(message.to_string())
    }

    fn invalid_type(_found: Unexpected<'_>, allowed: &dyn Expected) -> Self {
        match allowed.to_string().as_str() {
            "a boolean" => Fault::refused("true or false"),
            allowed => Fault::refused(allowed),
        }
    }

    fn invalid_value(_found: Unexpected<'_>, allowed: &dyn Expected) -> Self {
        Fault::refused(allowed.to_string())
    }

    fn unknown_variant(found: &str, allowed: &'static [&'static str]) -> Self {
        Fault::refused(format!("{}{}", allowed.join(", "), did_you_mean(found, allowed, "; ")))
    }

    fn unknown_field(found: &str, known: &'static [&'static str]) -> Self {
        let mut message = format!("{} is not a known key", key_shown(found));
        match found.split_once(':') {
            Some((key, _)) if known.contains(&key) => {
                message.push_str(": a space is missing after the colon");
            }
            _ => message.push_str(&did_you_mean(found, known, ", ")),
        }
        Fault::new(format!("{message} (known: {})", known.join(", ")))
    }

    fn missing_field(field: &'static str) -> Self {
        Fault::new(format!("the key {field} is missing"))
    }
}

/// Names the closest known word, if there is a close one. Numbers are too close to each other to guess.
fn did_you_mean(found: &str, known: &[&str], before: &str) -> String {
    let found = found.to_ascii_lowercase();
    let distance = |name: &str| strsim::damerau_levenshtein(&found, name);
    let closest = known.iter().map(|name| (distance(name), name)).min();
    match closest {
        Some((distance, name))
            if distance <= 2 && distance < name.len() && !found.starts_with(char::is_numeric) =>
        {
            format!("{before}did you mean {name}?")
        }
        _ => String::new(),
    }
}
