//! serde's complaints in an operator's words.

use std::fmt;

use serde::de::{self, Expected, Unexpected};

use crate::config::problems::{closest, quoted};
use crate::config::yaml::NodeId;

/// What serde found wrong, and where.
#[derive(Debug)]
pub(in crate::config) struct Error {
    pub(in crate::config) at: Option<At>,
    pub(in crate::config) message: String,
    pub(in crate::config) suggestion: Option<String>,
    pub(super) missing_key: Option<&'static str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::config) enum At {
    Value(NodeId),
    /// The key under which this value stands.
    Key(NodeId),
}

impl std::error::Error for Error {}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error {
    /// With the candidate that is close, or else with all of them.
    fn not_among(what: &str, written: &str, candidates: &'static [&'static str]) -> Self {
        let suggestion = closest(written, candidates.iter().copied()).map(str::to_owned);
        let mut error: Self = de::Error::custom(format_args!("{what} {}", quoted(written)));
        if suggestion.is_none() {
            error.message.push_str(&format!("; expected {}", OneOf(candidates)));
        }
        Self { suggestion, ..error }
    }
}

impl de::Error for Error {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self { at: None, message: message.to_string(), suggestion: None, missing_key: None }
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "serde's own words do for the rest")]
    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        let found = match found {
            Unexpected::Bool(value) => value.to_string(),
            Unexpected::Signed(value) => value.to_string(),
            Unexpected::Unsigned(value) => value.to_string(),
            Unexpected::Float(value) => value.to_string(),
            Unexpected::Str(text) => quoted(text),
            Unexpected::Seq => "a list".to_owned(),
            Unexpected::Map => "a mapping".to_owned(),
            other => other.to_string(),
        };
        de::Error::custom(format_args!("expected {expected}, found {found}"))
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        de::Error::invalid_type(found, expected)
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        Self::not_among("unknown key", field, expected)
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        Self::not_among("unknown value", variant, expected)
    }

    fn missing_field(field: &'static str) -> Self {
        Self { missing_key: Some(field), ..de::Error::custom(format_args!("the key `{field}` is missing")) }
    }
}

/// `a, b or c`.
pub(super) struct OneOf(pub(super) &'static [&'static str]);

impl fmt::Display for OneOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            [] => f.write_str("nothing"),
            [one] => f.write_str(one),
            [first @ .., last] => write!(f, "{} or {last}", first.join(", ")),
        }
    }
}
