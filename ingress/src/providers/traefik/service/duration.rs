//! Times as Go writes them.

use std::time::Duration;

use serde_json::Value;

/// `10s`, `1m30s`, `1.5h`, or a number of seconds.
pub(super) fn read_duration(value: Option<&Value>, default_seconds: u64) -> Result<Duration, String> {
    let bad = |value: &Value| format!("{value} is not a time such as 10s");
    match value {
        None => Ok(Duration::from_secs(default_seconds)),
        Some(value) => {
            let seconds = match value.as_f64() {
                Some(seconds) => Some(seconds),
                None => value.as_str().and_then(read_text),
            };
            let time = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
            time.filter(|time| !time.is_zero() && *time <= LONGEST).ok_or_else(|| bad(value))
        }
    }
}

/// In seconds.
fn read_text(text: &str) -> Option<f64> {
    if let Ok(seconds) = text.parse() {
        return Some(seconds);
    }
    let mut total = 0.0;
    let mut rest = text;
    while !rest.is_empty() {
        let number = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (value, after) = rest.split_at(number);
        let unit = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(unit);
        let factor = match unit {
            "ms" => 0.001,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3_600.0,
            _ => return None,
        };
        total += value.parse::<f64>().ok()? * factor;
        rest = after;
    }
    (!text.is_empty()).then_some(total)
}

const LONGEST: Duration = Duration::from_secs(86_400);

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn times_are_read_as_go_writes_them() {
        for (value, millis) in [
            (json!("10s"), 10_000),
            (json!("1m30s"), 90_000),
            (json!("1.5h"), 5_400_000),
            (json!("250ms"), 250),
            (json!(5), 5_000),
            (json!("5"), 5_000),
        ] {
            assert_eq!(read_duration(Some(&value), 1), Ok(Duration::from_millis(millis)), "{value}");
        }
        let bad = [json!(""), json!("s"), json!("5x"), json!(-1), json!(0), json!(true), json!("NaN"), json!("9999h")];
        for value in bad {
            assert!(read_duration(Some(&value), 1).is_err(), "{value}");
        }
        assert_eq!(read_duration(None, 7), Ok(Duration::from_secs(7)));
    }
}
