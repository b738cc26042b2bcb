//! A Rust file as the names it uses. Comments and strings are no code, so a rule does not stumble over them.

use anyhow::{Result, anyhow};
use proc_macro2::{Delimiter, Group, TokenStream, TokenTree};

/// The names that a Rust file uses, in order.
#[derive(Debug, Default)]
pub(crate) struct Source {
    pub(crate) names: Vec<Name>,
}

/// A name with all its parts: `std::fs::File`, `sleep`, `todo!`. An import of several is several names, each in full. An attribute is
/// `#` and its first name: `#ignore`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Name {
    pub(crate) parts: Vec<String>,
    pub(crate) line: usize,
    /// It stands in a test: under `cfg(test)`, or in a file of tests.
    pub(crate) in_test: bool,
}

impl Source {
    /// Reads a file.
    ///
    /// # Errors
    /// It is not Rust.
    pub(crate) fn parse(path: &str, text: &str) -> Result<Source> {
        let tokens: TokenStream = text.parse().map_err(|error| anyhow!("{path} is not Rust: {error}"))?;
        let mut source = Source::default();
        source.walk(tokens, &[], is_test_file(path));
        Ok(source)
    }

    /// The names in which these parts follow one another.
    pub(crate) fn uses<'a>(&'a self, wanted: &'a str) -> impl Iterator<Item = &'a Name> {
        let wanted: Vec<&str> = wanted.split("::").collect();
        self.names.iter().filter(move |name| name.parts.windows(wanted.len()).any(|window| window == wanted.as_slice()))
    }

    fn walk(&mut self, tokens: TokenStream, prefix: &[String], in_test: bool) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        // What follows `#[cfg(test)]` is a test up to the end of its item.
        let mut item_of_test = false;
        let mut at = 0;
        while at < tokens.len() {
            let test = in_test || item_of_test;
            match &tokens[at] {
                TokenTree::Ident(_) => at = self.name(&tokens, at, prefix, test),
                TokenTree::Group(group) => {
                    let attribute =
                        at > 0 && is_punct(tokens.get(at - 1), '#') && group.delimiter() == Delimiter::Bracket;
                    if attribute {
                        item_of_test |= is_cfg_test(group);
                        self.attribute(group, test);
                    }
                    self.walk(group.stream(), &[], test);
                    item_of_test &= attribute || group.delimiter() != Delimiter::Brace;
                    at += 1;
                }
                TokenTree::Punct(punct) => {
                    item_of_test &= punct.as_char() != ';';
                    at += 1;
                }
                TokenTree::Literal(_) => at += 1,
            }
        }
    }

    /// Takes the name that begins at `at`; returns where it ends.
    fn name(&mut self, tokens: &[TokenTree], mut at: usize, prefix: &[String], in_test: bool) -> usize {
        let line = tokens[at].span().start().line;
        let mut parts = prefix.to_vec();
        loop {
            match tokens.get(at) {
                Some(TokenTree::Ident(ident)) => parts.push(ident.to_string()),
                // The rest of an import: each of its names begins with what was read so far.
                Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace => {
                    self.walk(group.stream(), &parts, in_test);
                    return at + 1;
                }
                // A star or type arguments.
                _ => break,
            }
            at += 1;
            if !(is_punct(tokens.get(at), ':') && is_punct(tokens.get(at + 1), ':')) {
                break;
            }
            at += 2;
        }
        if is_punct(tokens.get(at), '!') && !is_punct(tokens.get(at + 1), '=') {
            parts.last_mut().into_iter().for_each(|last| last.push('!'));
        }
        self.names.push(Name { parts, line, in_test });
        at
    }

    fn attribute(&mut self, group: &Group, in_test: bool) {
        for token in group.stream() {
            match token {
                TokenTree::Ident(name) => {
                    let line = name.span().start().line;
                    self.names.push(Name { parts: vec![format!("#{name}")], line, in_test });
                }
                // `cfg_attr(…, ignore)`.
                TokenTree::Group(inner) => self.attribute(&inner, in_test),
                TokenTree::Punct(_) | TokenTree::Literal(_) => {}
            }
        }
    }
}

/// Files that only `cargo test` and `cargo bench` build.
pub(crate) fn is_test_file(path: &str) -> bool {
    path.split('/').any(|part| matches!(part, "tests" | "benches" | "tests.rs"))
}

fn is_punct(token: Option<&TokenTree>, character: char) -> bool {
    matches!(token, Some(TokenTree::Punct(punct)) if punct.as_char() == character)
}

fn is_cfg_test(attribute: &Group) -> bool {
    let text: String = attribute.stream().to_string().split_whitespace().collect();
    text == "cfg(test)"
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the names of a file are those that the compiler would see, in full, and tests are known as such.
    fn check(text: &str, expected: &[&str]) {
        let source = Source::parse("crates/x/src/lib.rs", text).expect("it is Rust");
        let shown: Vec<String> = source
            .names
            .iter()
            .filter(|name| !matches!(name.parts[0].as_str(), "use" | "mod" | "fn" | "as"))
            .map(|name| format!("{}{}", name.parts.join("::"), if name.in_test { " test" } else { "" }))
            .collect();
        assert_eq!(shown, expected, "{text}");
    }

    #[test]
    fn names_are_read_in_full() {
        check("use std::fs;", &["std::fs"]);
        check("use std::{fs::{self, File}, net::*};", &["std::fs::self", "std::fs::File", "std::net"]);
        check("use std::fs as disk;", &["std::fs", "disk"]);
        check("fn f() { std::thread::sleep(x) }", &["f", "std::thread::sleep", "x"]);
        check("fn f() { a != b; todo!() }", &["f", "a", "b", "todo!"]);
    }

    #[test]
    fn comments_and_strings_are_no_code() {
        check("//! std::fs\n/* std::net */ fn f() { \"std::fs\"; r#\"tokio\"# }", &["doc", "f"]);
    }

    #[test]
    fn tests_are_known() {
        check("#[cfg(test)] mod t { a } b", &["#cfg", "#test", "cfg", "test", "t test", "a test", "b"]);
        check("#[cfg(test)] use a::b; c", &["#cfg", "#test", "cfg", "test", "a::b test", "c"]);
        check("#[cfg(not(test))] use a;", &["#cfg", "#not", "#test", "cfg", "not", "test", "a"]);
        assert!(Source::parse("crates/x/tests/it.rs", "a").expect("it is Rust").names[0].in_test);
    }
}
