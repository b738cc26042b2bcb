//! How bodies are read and written.
//!
//! Reading: one pass; fields that are not known are ignored, of duplicates the last counts, `null` is the same as absent. Nesting is limited to
//! [`DEPTH_MAX`] levels. Payloads are kept as the bytes that were sent. Writing: compact, in the order of the calls; payloads go out
//! as they came in.

use serde::de::{Deserialize, Deserializer, Error, Visitor};
use std::fmt;

/// Deepest nesting of objects and arrays in a body.
pub const DEPTH_MAX: usize = 128;

/// Whether JSON is nested deeper than [`DEPTH_MAX`]. A reader that skips values does not count levels, so they are counted first.
pub fn is_too_deep(json: &[u8]) -> bool {
    // Each level takes a byte.
    if json.len() <= DEPTH_MAX {
        return false;
    }
    let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
    for byte in json {
        if in_string {
            in_string = escaped || *byte != b'"';
            escaped = !escaped && *byte == b'\\';
        } else {
            match byte {
                b'"' => in_string = true,
                b'[' | b'{' => {
                    depth += 1;
                    if depth > DEPTH_MAX {
                        return true;
                    }
                }
                b']' | b'}' => depth = depth.saturating_sub(1),
                _ => {}
            }
        }
    }
    false
}

/// An integer: any JSON number with an integral value. Beyond 64 bits it saturates, so that a check of its range can refuse it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Int(pub i64);

/// A duration in seconds with up to three decimals, in milliseconds. It saturates beyond 64 bits, and may be negative.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seconds(pub i64);

impl<'de> Deserialize<'de> for Int {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Int, D::Error> {
        struct IntVisitor;
        impl Visitor<'_> for IntVisitor {
            type Value = Int;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an integer")
            }
            fn visit_i64<E: Error>(self, number: i64) -> Result<Int, E> {
                Ok(Int(number))
            }
            fn visit_u64<E: Error>(self, number: u64) -> Result<Int, E> {
                Ok(Int(i64::try_from(number).unwrap_or(i64::MAX)))
            }
            fn visit_f64<E: Error>(self, number: f64) -> Result<Int, E> {
                if number.fract() == 0.0 { Ok(Int(number as i64)) } else { Err(E::custom("expected an integer")) }
            }
        }
        deserializer.deserialize_any(IntVisitor)
    }
}

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Seconds, D::Error> {
        struct SecondsVisitor;
        impl Visitor<'_> for SecondsVisitor {
            type Value = Seconds;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of seconds")
            }
            fn visit_i64<E: Error>(self, number: i64) -> Result<Seconds, E> {
                Ok(Seconds(number.saturating_mul(1000)))
            }
            fn visit_u64<E: Error>(self, number: u64) -> Result<Seconds, E> {
                Ok(Seconds(i64::try_from(number).unwrap_or(i64::MAX).saturating_mul(1000)))
            }
            fn visit_f64<E: Error>(self, number: f64) -> Result<Seconds, E> {
                let ms = number * 1000.0;
                // A decimal fraction is rarely exact in binary; more than three decimals are off by far more than that.
                if (ms - ms.round()).abs() < 1e-6 * ms.abs().max(1.0) {
                    Ok(Seconds(ms.round() as i64))
                } else {
                    Err(E::custom("expected seconds with at most three decimals"))
                }
            }
        }
        deserializer.deserialize_any(SecondsVisitor)
    }
}

/// Declares a body that is read field by field. All fields are optional here; what is required is the route's business. Fields that are not
/// known are ignored; a body that ends with `..unknown` keeps the name of the first one in that field.
#[macro_export]
macro_rules! json_object {
    ($(#[$meta:meta])* $visibility:vis struct $name:ident<$lifetime:lifetime> {
        $($(#[$field_meta:meta])* $field:ident: $type:ty = $key:literal,)*
        $(..$unknown:ident)?
    }) => {
        $(#[$meta])*
        #[derive(Clone, Debug, Default)]
        $visibility struct $name<$lifetime> {
            $($(#[$field_meta])* pub $field: Option<$type>,)*
            $(
                /// The first field that is not known.
                pub $unknown: Option<$crate::json::Text<$lifetime>>,
            )?
            #[doc(hidden)]
            pub lifetime: std::marker::PhantomData<&$lifetime ()>,
        }

        impl<$lifetime> serde::de::Deserialize<$lifetime> for $name<$lifetime> {
            fn deserialize<D: serde::de::Deserializer<$lifetime>>(deserializer: D) -> Result<Self, D::Error> {
                struct ObjectVisitor;
                impl<$lifetime> serde::de::Visitor<$lifetime> for ObjectVisitor {
                    type Value = $name<$lifetime>;

                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        f.write_str("an object")
                    }

                    fn visit_map<A: serde::de::MapAccess<$lifetime>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                        let mut object = $name::default();
                        while let Some(key) = map.next_key::<$crate::json::Key<'_>>()? {
                            match &*key.0 {
                                $($key => object.$field = map.next_value()?,)*
                                _ => {
                                    $(object.$unknown.get_or_insert_with(|| $crate::json::Text(key.0.clone()));)?
                                    map.next_value::<serde::de::IgnoredAny>()?;
                                }
                            }
                        }
                        Ok(object)
                    }
                }
                deserializer.deserialize_map(ObjectVisitor)
            }
        }
    };
}

/// The name of a field, borrowed unless it contains escapes.
#[derive(Debug)]
pub struct Key<'a>(pub std::borrow::Cow<'a, str>);

impl<'de> Deserialize<'de> for Key<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Key<'de>, D::Error> {
        Text::deserialize(deserializer).map(|text| Key(text.0))
    }
}

/// Text, borrowed unless it contains escapes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Text<'a>(pub std::borrow::Cow<'a, str>);

impl std::ops::Deref for Text<'_> {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for Text<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Text<'de>, D::Error> {
        struct TextVisitor;
        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }
            fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(text.into()))
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(text.to_owned().into()))
            }
        }
        deserializer.deserialize_str(TextVisitor)
    }
}

/// Appends a JSON object or array.
pub struct Writer<'a> {
    out: &'a mut Vec<u8>,
    is_first: bool,
    close: u8,
}

impl<'a> Writer<'a> {
    /// Begins an object.
    pub fn object(out: &'a mut Vec<u8>) -> Writer<'a> {
        out.push(b'{');
        Writer { out, is_first: true, close: b'}' }
    }

    /// Begins an array.
    pub fn array(out: &'a mut Vec<u8>) -> Writer<'a> {
        out.push(b'[');
        Writer { out, is_first: true, close: b']' }
    }

    /// Ends it.
    pub fn end(self) {
        self.out.push(self.close);
    }

    fn comma(&mut self) {
        if !self.is_first {
            self.out.push(b',');
        }
        self.is_first = false;
    }

    /// `name` is one of ours and needs no escapes.
    fn name(&mut self, name: &str) {
        self.comma();
        self.out.push(b'"');
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(b"\":");
    }

    /// A member with a string.
    pub fn text(&mut self, name: &str, text: &str) {
        self.name(name);
        write_text(text, self.out);
    }

    /// A member with a string that needs no escapes.
    pub fn plain(&mut self, name: &str, text: &str) {
        self.name(name);
        self.out.push(b'"');
        self.out.extend_from_slice(text.as_bytes());
        self.out.push(b'"');
    }

    /// A member with a number.
    pub fn number(&mut self, name: &str, number: u64) {
        self.name(name);
        write_number(number, self.out);
    }

    /// A member with true or false.
    pub fn flag(&mut self, name: &str, flag: bool) {
        self.raw(name, if flag { b"true" } else { b"false" });
    }

    /// A member with a time, milliseconds since the Unix epoch.
    pub fn time(&mut self, name: &str, ms: u64) {
        self.name(name);
        self.out.push(b'"');
        self.out.extend_from_slice(&crate::time::format(ms));
        self.out.push(b'"');
    }

    /// A member whose value is JSON already.
    pub fn raw(&mut self, name: &str, json: &[u8]) {
        self.name(name);
        self.out.extend_from_slice(json);
    }

    /// A member that `write` appends as one JSON value.
    pub fn value(&mut self, name: &str, write: impl FnOnce(&mut Vec<u8>)) {
        self.name(name);
        write(self.out);
    }

    /// An element of an array that `write` appends as one JSON value.
    pub fn element(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        self.comma();
        write(self.out);
    }
}

/// Appends a string with its escapes. `<`, `>` and `&` are written as they are.
pub fn write_text(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    let mut rest = text.as_bytes();
    while let Some(place) = rest.iter().position(|byte| *byte < 0x20 || matches!(byte, b'"' | b'\\')) {
        out.extend_from_slice(&rest[..place]);
        match rest[place] {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            control => {
                out.extend_from_slice(b"\\u00");
                out.extend([control >> 4, control & 0xf].map(|digit| b"0123456789abcdef"[usize::from(digit)]));
            }
        }
        rest = &rest[place + 1..];
    }
    out.extend_from_slice(rest);
    out.push(b'"');
}

/// Appends a number in decimal.
pub fn write_number(mut number: u64, out: &mut Vec<u8>) {
    let mut digits = [0; 20];
    let mut start = digits.len();
    loop {
        start -= 1;
        digits[start] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[start..]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::value::RawValue;

    json_object! {
        /// A body with a field of each kind.
        struct Sample<'a> {
            name: Text<'a> = "name",
            count: Int = "count",
            wait: Seconds = "waitSeconds",
            payload: &'a RawValue = "payload",
        }
    }

    fn read(json: &str) -> Result<Sample<'_>, serde_json::Error> {
        serde_json::from_str(json)
    }

    #[test]
    fn fields_are_read_by_the_rules() {
        let sample =
            read(r#"{"payload": {"a" : 1}, "unknown": [1, {}], "name": "x", "count": 2.0, "waitSeconds": 1.5}"#)
                .unwrap();
        assert_eq!(sample.name.as_deref(), Some("x"));
        assert_eq!((sample.count, sample.wait), (Some(Int(2)), Some(Seconds(1500))));
        assert_eq!(sample.payload.map(RawValue::get), Some(r#"{"a" : 1}"#));
        let last = read(r#"{"name": "first", "name": "last", "count": null}"#).unwrap();
        assert_eq!((last.name.as_deref(), last.count), (Some("last"), None));
        assert_eq!(read(r#"{"name": "t\u00e4st \"\\"}"#).unwrap().name.as_deref(), Some("täst \"\\"));
        assert!(read("{}").unwrap().payload.is_none());
    }

    #[test]
    fn what_breaks_the_rules_is_refused() {
        for bad in [
            "",
            "[]",
            "\"x\"",
            "{} x",
            "{\"name\": 1}",
            "{\"count\": \"1\"}",
            "{\"count\": 1.5}",
            "{\"count\": true}",
            "{\"waitSeconds\": \"1\"}",
            "{\"waitSeconds\": 1.0001}",
            "{\"waitSeconds\": [1]}",
            "{\"payload\": }",
            "{\"payload\": {\"a\": tru}}",
            "{'name': \"x\"}",
            "{\"name\": \"x\",}",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn absurd_numbers_saturate() {
        let sample = read(r#"{"count": 1e300, "waitSeconds": 1e300}"#).unwrap();
        assert_eq!((sample.count, sample.wait), (Some(Int(i64::MAX)), Some(Seconds(i64::MAX))));
        let sample = read(r#"{"count": -99999999999999999999, "waitSeconds": -1e300}"#).unwrap();
        assert_eq!((sample.count, sample.wait), (Some(Int(i64::MIN)), Some(Seconds(i64::MIN))));
        assert_eq!(read(r#"{"waitSeconds": 18446744073709551615}"#).unwrap().wait, Some(Seconds(i64::MAX)));
        for (text, ms) in
            [("0.001", 1), ("1e3", 1_000_000), ("-0.5", -500), ("0.1", 100), ("1234567.891", 1_234_567_891)]
        {
            assert_eq!(read(&format!("{{\"waitSeconds\": {text}}}")).unwrap().wait, Some(Seconds(ms)), "{text}");
        }
    }

    #[test]
    fn depth_is_counted_outside_strings() {
        let nested = |levels: usize| "[".repeat(levels) + &"]".repeat(levels);
        assert!(!is_too_deep(nested(DEPTH_MAX).as_bytes()));
        assert!(is_too_deep(nested(DEPTH_MAX + 1).as_bytes()));
        assert!(is_too_deep("[".repeat(100_000).as_bytes()));
        assert!(is_too_deep("{\"a\":".repeat(129).as_bytes()));
        assert!(!is_too_deep(format!("\"{}\"", "[".repeat(1000)).as_bytes()));
        assert!(!is_too_deep(format!("\"\\\"{}\"", "[".repeat(1000)).as_bytes()));
        assert!(!is_too_deep("[],".repeat(1000).as_bytes()));
    }

    #[test]
    fn what_is_written_reads_back() {
        let mut out = Vec::new();
        let mut object = Writer::object(&mut out);
        let text = "quote \" backslash \\ newline \n tab \t bell \u{7} null \0 <&> ü 🦀";
        object.text("text", text);
        object.number("number", u64::MAX);
        object.number("zero", 0);
        object.flag("flag", true);
        object.time("at", 0);
        object.raw("raw", b"{\"b\" :1}");
        object.value("list", |out| {
            let mut list = Writer::array(out);
            list.element(|out| write_text("a", out));
            list.element(|out| write_text("b", out));
            list.end();
        });
        object.end();
        let value: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(value["text"], text);
        assert_eq!(value["number"], u64::MAX);
        assert_eq!(value["zero"], 0);
        assert_eq!(value["at"], "1970-01-01T00:00:00.000Z");
        assert_eq!(value["list"], serde_json::json!(["a", "b"]));
        assert!(String::from_utf8(out).unwrap().contains("\"raw\":{\"b\" :1}"));
    }
}
