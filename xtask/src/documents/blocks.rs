//! The commands of the documents, as blocks with what a comment in front of them says about running them.
//!
//! ```text
//! <!-- run: WORDS -->        the next block is run as these words say
//! ```

use anyhow::{Context, Result, bail};

use crate::repository::root;

/// Commands, or settings, between fences.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Block {
    /// Line of the fence, from 1.
    pub(crate) line: usize,
    /// What stands behind the fence: `sh`, `ini`, …
    pub(crate) language: String,
    /// Of the comment in front of it; empty: there is none.
    pub(crate) how: String,
    pub(crate) text: String,
}

/// The blocks of a document.
///
/// # Errors
/// There is no such document, or it has a comment about running that no block follows.
pub(crate) fn blocks(path: &str) -> Result<Vec<Block>> {
    let text = std::fs::read_to_string(root().join(path)).with_context(|| format!("cannot read {path}"))?;
    blocks_of(&text).with_context(|| path.to_owned())
}

fn blocks_of(text: &str) -> Result<Vec<Block>> {
    let (mut blocks, mut how, mut open) = (Vec::new(), String::new(), None::<Block>);
    for (number, line) in text.lines().enumerate() {
        match (&mut open, line.trim().strip_prefix("```")) {
            (Some(_), Some("")) => blocks.extend(open.take()),
            (Some(block), _) => {
                block.text.push_str(line);
                block.text.push('\n');
            }
            (None, Some(language)) => {
                let how = std::mem::take(&mut how);
                open = Some(Block { line: number + 1, language: language.into(), how, text: String::new() });
            }
            (None, None) if line.starts_with("<!-- run: ") => {
                let words = line.strip_prefix("<!-- run: ").and_then(|rest| rest.strip_suffix(" -->"));
                how = words.with_context(|| format!("line {} does not end its comment", number + 1))?.into();
            }
            (None, None) if !how.is_empty() => bail!("no block follows the comment before line {}", number + 1),
            (None, None) => {}
        }
    }
    Ok(blocks)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a block has its lines, its language and the comment before it, and a comment without a block is noticed.
    #[test]
    fn blocks_have_what_stands_before_them() {
        let text = "words\n<!-- run: skip because -->\n```sh\na\n  b\n```\n\n```text\nc\n```\n";
        let block = |line, language: &str, how: &str, text: &str| Block {
            line,
            language: language.into(),
            how: how.into(),
            text: text.into(),
        };
        let expected = [block(3, "sh", "skip because", "a\n  b\n"), block(8, "text", "", "c\n")];
        assert_eq!(blocks_of(text).expect("it can be read"), expected);
        assert!(blocks_of("<!-- run: skip -->\nwords\n").is_err());
    }
}
