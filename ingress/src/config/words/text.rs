//! Text that is handed on as it stands; only its length and its characters are bounded.

use super::{Argument, Body, HostHeader};
use crate::config::problems::quoted;

impl Argument {
    const LONGEST: usize = 4096;

    pub(super) fn parse(word: &str) -> Result<Self, String> {
        match word.len() {
            0..=Self::LONGEST if !word.contains('\0') => Ok(Self(word.to_owned())),
            _ => Err(format!(
                "{} cannot be a word of a command: at most {} bytes, none zero",
                quoted(word),
                Self::LONGEST
            )),
        }
    }
}

impl Body {
    const LONGEST: usize = 16 * 1024;

    pub(super) fn parse(word: &str) -> Result<Self, String> {
        match word.len() {
            0 => Err("the template is empty".to_owned()),
            1..=Self::LONGEST if !word.contains('\0') => Ok(Self(word.to_owned())),
            _ => Err(format!("the template is longer than {} KiB, or holds a zero byte", Self::LONGEST >> 10)),
        }
    }
}

impl HostHeader {
    pub(super) fn parse(word: &str) -> Result<Self, String> {
        if (1..=255).contains(&word.len()) && word.bytes().all(|b| b.is_ascii_graphic() && b != b'/') {
            return Ok(Self(word.to_owned()));
        }
        Err(format!("{} cannot stand in a Host header", quoted(word)))
    }
}
