//! Times, ranges and counts.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize};

use super::{Ports, Status, Time};
use crate::config::problems::quoted;

impl Time {
    const LONGEST: Duration = Duration::from_secs(365 * 86_400);

    pub(super) fn parse(word: &str) -> Result<Self, String> {
        let bad = || format!("{} is not a time; write 500ms, 5s, 1m30s or 1h", quoted(word));
        if !word.is_empty() && word.bytes().all(|b| b.is_ascii_digit()) {
            return Err(format!("{word} has no unit; write {word}s for seconds, or {word}ms"));
        }
        let mut total = Duration::ZERO;
        let mut rest = word;
        while !rest.is_empty() {
            let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            let (number, after) = rest.split_at(digits);
            let letters = after.len() - after.trim_start_matches(|c: char| c.is_ascii_alphabetic()).len();
            let (unit, after) = after.split_at(letters);
            let number: u64 = number.parse().map_err(|_| bad())?;
            let millis = match unit {
                "ms" => 1,
                "s" => 1_000,
                "m" => 60_000,
                "h" => 3_600_000,
                "d" => 86_400_000,
                _ => return Err(bad()),
            };
            total = total.saturating_add(Duration::from_millis(number.saturating_mul(millis)));
            rest = after;
        }
        match total {
            _ if word.is_empty() => Err(bad()),
            total if total > Self::LONGEST => Err(format!("{} is longer than 365d", quoted(word))),
            total => Ok(Self(total)),
        }
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut millis = self.0.as_millis();
        if millis == 0 {
            return f.write_str("0s");
        }
        for (unit, length) in [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)] {
            if millis >= length {
                write!(f, "{}{unit}", millis / length)?;
                millis %= length;
            }
        }
        Ok(())
    }
}

impl Ports {
    pub(super) fn parse(word: &str) -> Result<Self, String> {
        let bad = || format!("{} is not a range of ports; write 20000-32767", quoted(word));
        let (low, high) = word.split_once('-').ok_or_else(bad)?;
        let (low, high): (u16, u16) = (low.trim().parse().map_err(|_| bad())?, high.trim().parse().map_err(|_| bad())?);
        match (low, high) {
            _ if low >= high => Err(format!("{word}: the first port must be smaller than the last")),
            _ if low < 1024 => Err(format!("{word}: ports below 1024 belong to the host's own programs")),
            range => Ok(Self(range)),
        }
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.0.0, self.0.1)
    }
}

impl Status {
    pub(super) fn parse(word: &str) -> Result<Self, String> {
        let (low, high) = word.split_once('-').unwrap_or((word, word));
        match (low.trim().parse(), high.trim().parse()) {
            (Ok(low), Ok(high)) if 100 <= low && low <= high && high <= 599 => Ok(Self((low, high))),
            _ => Err(format!("{} is not a status or a range of them; write 200 or 200-399", quoted(word))),
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (low, high) = self.0;
        if low == high { write!(f, "{low}") } else { write!(f, "{low}-{high}") }
    }
}

/// A whole number from `MIN` to `MAX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(in crate::config) struct Count<const MIN: u32, const MAX: u32>(pub(in crate::config) u32);

impl<'de, const MIN: u32, const MAX: u32> Deserialize<'de> for Count<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Number<const MIN: u32, const MAX: u32>;

        impl<const MIN: u32, const MAX: u32> Visitor<'_> for Number<MIN, MAX> {
            type Value = Count<MIN, MAX>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a whole number from {MIN} to {MAX}")
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Count<MIN, MAX>, E> {
                match u32::try_from(number) {
                    Ok(number) if (MIN..=MAX).contains(&number) => Ok(Count(number)),
                    Ok(_) | Err(_) => Err(E::invalid_value(de::Unexpected::Signed(number), &self)),
                }
            }
        }

        deserializer.deserialize_u32(Number)
    }
}

impl<const MIN: u32, const MAX: u32> JsonSchema for Count<MIN, MAX> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        format!("Count_{MIN}_{MAX}").into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        schemars::json_schema!({ "type": "integer", "minimum": MIN, "maximum": MAX })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_and_written_with_units() {
        for (word, millis) in [("500ms", 500), ("5s", 5_000), ("1m30s", 90_000), ("1h", 3_600_000), ("0s", 0)] {
            let time = Time::parse(word).expect("a time");
            assert_eq!(time.0.as_millis(), millis);
            assert_eq!(time.to_string(), word);
        }
        for bad in ["", "s", "5x", "-5s", "5 s", "1.5s", "99999999999999999999s", "5s3", "400d"] {
            assert!(Time::parse(bad).is_err(), "{bad:?} was accepted");
        }
        assert_eq!(Time::parse("5"), Err("5 has no unit; write 5s for seconds, or 5ms".into()));
    }

    #[test]
    fn ranges_are_ordered_and_within_bounds() {
        assert_eq!(Ports::parse("20000-32767"), Ok(Ports((20_000, 32_767))));
        for bad in ["", "20000", "3-2", "80-2000", "5000-5000", "1-99999"] {
            assert!(Ports::parse(bad).is_err(), "{bad:?} was accepted");
        }
        assert_eq!(Status::parse("200-399"), Ok(Status((200, 399))));
        assert_eq!(Status::parse("204"), Ok(Status((204, 204))));
        for bad in ["", "99", "600", "399-200", "2xx"] {
            assert!(Status::parse(bad).is_err(), "{bad:?} was accepted");
        }
    }
}
