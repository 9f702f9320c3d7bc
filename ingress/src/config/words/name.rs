//! Names, and patterns of them.

use super::{Device, EnvName, Name, NamePattern};
use crate::config::problems::quoted;

impl Name {
    /// Patterns and addresses are names too: they stand for routes and backends that were given none.
    pub(super) fn parse(word: &str) -> Result<Self, String> {
        let fits = |c: char| c.is_ascii_alphanumeric() || "-_.*:[]".contains(c);
        if (1..=63).contains(&word.len()) && word.chars().all(fits) {
            return Ok(Self(word.to_owned()));
        }
        Err(format!("{} cannot be a name: up to 63 letters, digits, `-`, `_` and `.`", quoted(word)))
    }
}

impl NamePattern {
    pub(super) fn parse(word: &str) -> Result<Self, String> {
        let bad = |why: &str| format!("{} is not a name or pattern: {why}", quoted(word));
        if !(1..=200).contains(&word.len()) || !word.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(bad("it has 1 to 200 printable characters and no space"));
        }
        glob::Pattern::new(word).map(Self).map_err(|error| bad(error.msg))
    }
}

impl Device {
    /// What the kernel's `dev_valid_name` accepts.
    pub(super) fn parse(word: &str) -> Result<Self, String> {
        let fits = (1..=15).contains(&word.len()) && word != "." && word != "..";
        if fits && !word.chars().any(|c| c == '/' || c == ':' || c.is_whitespace() || c.is_control()) {
            return Ok(Self(word.to_owned()));
        }
        Err(format!("{} cannot be the name of a network device (1 to 15 characters, no slash)", quoted(word)))
    }
}

impl EnvName {
    pub(super) fn parse(word: &str) -> Result<Self, String> {
        let starts = word.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        if starts && word.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            return Ok(Self(word.to_owned()));
        }
        // The word may be the secret itself: it is not repeated.
        Err("this is not the name of an environment variable; write the name here, its value into the environment"
            .to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_in_place_of_a_variable_is_not_repeated() {
        let message = EnvName::parse("hunter2!").expect_err("not a variable");
        assert!(!message.contains("hunter2"), "{message}");
    }
}
