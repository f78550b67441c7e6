//! PEM: finding the blocks in a key file, and what is in them.
//!
//! More lenient than RFC 7468 in one thing, the length of lines, and stricter than most readers in
//! the rest: the label of both boundaries is the same, base64 is canonical, and nothing that is
//! not base64 stands in a block. What may stand around a block is for the caller to say.
//!
//! Absent on purpose: headers (RFC 1421), which nothing but encrypted keys has.
//!
//! Source: RFC 7468.

use base64::{Engine, engine::general_purpose::STANDARD};
use zeroize::Zeroizing;

use crate::control::protocol::echo;

/// Why a text cannot be divided into PEM blocks, or a block not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PemError {
    /// A block without its last line, or with that of another.
    #[error(
        "the block `{label}` that begins in line {line} does not end with \
         `-----END {label}-----`\nhint: copy the file again, whole"
    )]
    Unfinished {
        /// What the block is called.
        label: String,
        /// Where it begins, from 1.
        line: usize,
    },
    /// What looks like `Proc-Type: …` within a block.
    #[error("the block has headers, as encrypted keys have; a key that can be used has none")]
    Headers,
    /// Not base64, or not in its canonical form.
    #[error("the block is not base64\nhint: copy the file again, whole")]
    Base64,
}

/// What a file is made of.
#[derive(Debug)]
pub(super) struct Pem<'a> {
    /// Its blocks, in order.
    pub(super) blocks: Vec<Block<'a>>,
    /// The first line that is neither blank nor part of a block, from 1.
    pub(super) text_at: Option<usize>,
}

/// From `-----BEGIN LABEL-----` to `-----END LABEL-----`.
#[derive(Debug)]
pub(super) struct Block<'a> {
    pub(super) label: &'a str,
    /// Where it begins, from 1.
    pub(super) line: usize,
    body: Vec<&'a str>,
}

impl<'a> Pem<'a> {
    /// Divides a text, whose length the caller has bounded.
    pub(super) fn parse(text: &'a str) -> Result<Self, PemError> {
        let (mut blocks, mut text_at) = (Vec::new(), None);
        let mut open: Option<Block<'a>> = None;
        for (index, line) in text.lines().enumerate() {
            let (line, number) = (line.trim_ascii(), index + 1);
            open = match (
                open,
                boundary(line, "-----BEGIN "),
                boundary(line, "-----END "),
            ) {
                (None, Some(label), _) => Some(Block {
                    label,
                    line: number,
                    body: Vec::new(),
                }),
                (None, None, _) => {
                    if !line.is_empty() {
                        text_at = text_at.or(Some(number));
                    }
                    None
                }
                (Some(block), None, Some(label)) if label == block.label => {
                    blocks.push(block);
                    None
                }
                (Some(block), Some(_), _) | (Some(block), None, Some(_)) => {
                    return Err(block.unfinished());
                }
                (Some(mut block), None, None) => {
                    block.body.push(line);
                    Some(block)
                }
            };
        }
        match open {
            Some(block) => Err(block.unfinished()),
            None => Ok(Self { blocks, text_at }),
        }
    }
}

impl Block<'_> {
    /// Whether its headers say that it is encrypted.
    pub(super) fn is_encrypted(&self) -> bool {
        self.body
            .iter()
            .any(|line| line.starts_with("Proc-Type:") && line.ends_with("ENCRYPTED"))
    }

    /// What it holds.
    pub(super) fn decode(&self) -> Result<Zeroizing<Vec<u8>>, PemError> {
        if self.body.iter().any(|line| line.contains(':')) {
            return Err(PemError::Headers);
        }
        // Never moved while it grows: a copy left behind could hold part of a secret.
        let length = self.body.iter().map(|line| line.len()).sum();
        let mut text = Zeroizing::new(String::with_capacity(length));
        for line in &self.body {
            text.push_str(line);
        }
        let mut bytes = Zeroizing::new(Vec::with_capacity(length));
        STANDARD
            .decode_vec(text.as_bytes(), &mut bytes)
            .map_err(|_| PemError::Base64)?;
        Ok(bytes)
    }

    fn unfinished(&self) -> PemError {
        PemError::Unfinished {
            label: echo(self.label),
            line: self.line,
        }
    }
}

/// The label of a line that begins or ends a block.
fn boundary<'a>(line: &'a str, begin: &str) -> Option<&'a str> {
    let label = line.strip_prefix(begin)?.strip_suffix("-----")?;
    (!label.contains("--")).then_some(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(text: &str) -> Result<Vec<u8>, PemError> {
        let pem = Pem::parse(text)?;
        assert_eq!((pem.blocks.len(), pem.text_at), (1, None), "{text:?}");
        pem.blocks[0].decode().map(|bytes| bytes.to_vec())
    }

    #[test]
    fn lines_may_have_any_length_and_either_end() {
        for text in [
            "-----BEGIN A B-----\nZm9vYmFy\n-----END A B-----\n",
            "-----BEGIN A B-----\nZm9vYmFy\n-----END A B-----",
            "-----BEGIN A B-----\r\nZm9v\r\nYmFy\r\n-----END A B-----\r\n\r\n",
            "\n \t\n-----BEGIN A B-----\nZm\n9\nvYm\n\nFy\n-----END A B-----\n\n",
        ] {
            assert_eq!(bytes(text), Ok(b"foobar".to_vec()), "{text:?}");
        }
    }

    #[test]
    fn a_block_that_does_not_end_is_refused() {
        let unfinished = |label: &str, line| {
            Err(PemError::Unfinished {
                label: label.to_owned(),
                line,
            })
        };
        for (text, label, line) in [
            ("-----BEGIN A-----", "A", 1),
            ("-----BEGIN A-----\nZm9v\n", "A", 1),
            ("x\n-----BEGIN A-----\nZm9v\n-----END B-----\n", "A", 2),
            (
                "-----BEGIN A-----\nZm9v\n-----BEGIN A-----\n-----END A-----\n",
                "A",
                1,
            ),
            ("-----BEGIN A-----\nZm9v\n-----END A----\n", "A", 1),
            ("-----BEGIN \u{1b}[2J-----\n", "\\u{1b}[2J", 1),
        ] {
            assert_eq!(
                Pem::parse(text).map(drop),
                unfinished(label, line),
                "{text:?}"
            );
        }
    }

    #[test]
    fn what_is_not_canonical_base64_is_refused() {
        for body in [
            "Zm9v!", "Zm9", "Zm9vYg", "Zm9vYh==", "Zm9v====", "Zm_-", "Zm 9v", "Zg==Zg==", "-",
        ] {
            let text = format!("-----BEGIN A-----\n{body}\n-----END A-----\n");
            assert_eq!(bytes(&text), Err(PemError::Base64), "{body}");
        }
    }

    #[test]
    fn headers_are_told_from_base64() {
        let text =
            "-----BEGIN A-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: x\n\nZm9v\n-----END A-----\n";
        assert_eq!(bytes(text), Err(PemError::Headers));
        assert!(Pem::parse(text).unwrap().blocks[0].is_encrypted());
        assert_eq!(
            bytes("-----BEGIN A-----\nComment: x\n\nZm9v\n-----END A-----\n"),
            Err(PemError::Headers)
        );
    }

    #[test]
    fn text_around_blocks_and_their_number_are_told() {
        let block = "-----BEGIN A-----\nZm9v\n-----END A-----\n";
        let parts = |text: &str| {
            let pem = Pem::parse(text).unwrap();
            (pem.blocks.len(), pem.text_at)
        };
        assert_eq!(parts(""), (0, None));
        assert_eq!(parts("ssh-rsa AAAA\n"), (0, Some(1)));
        assert_eq!(parts(&format!("\n{block}x")), (1, Some(5)));
        assert_eq!(parts(&format!("# a\n{block}# b")), (1, Some(1)));
        assert_eq!(parts(&format!("{block}{block}")), (2, None));
        assert_eq!(parts("-----END A-----\n"), (0, Some(1)));
        assert_eq!(
            parts("-----BEGIN A-----Zm9v-----END A-----\n"),
            (0, Some(1))
        );
    }
}
