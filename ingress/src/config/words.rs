//! Values that an operator writes as one word: durations, addresses, ranges, names. Each is parsed once, here, and says
//! what it expects when it is wrong.

mod address;

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use super::problems::quoted;
use super::{BackendAddress, PathMatch};
use crate::route::{Sni, SniPattern};

/// Declares a type that is written as one word: how its schema names and describes it, and which Rust value it holds.
/// The type itself brings `parse` (the message says what is wrong with the word) and `Display`.
macro_rules! word {
    (@types) => { "string" };
    (@types $or_type:literal) => { ["string", $or_type] };
    ($(#[$doc:meta])* $name:ident($inner:ty), $expecting:literal, $pattern:literal $(, $or_type:literal)?) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash)]
        pub(super) struct $name(pub(super) $inner);

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Word;

                impl Visitor<'_> for Word {
                    type Value = $name;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($expecting)
                    }

                    fn visit_str<E: de::Error>(self, word: &str) -> Result<$name, E> {
                        $name::parse(word.trim()).map_err(E::custom)
                    }
                }

                deserializer.deserialize_str(Word)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                schemars::json_schema!({
                    "type": word!(@types $($or_type)?),
                    "description": $expecting,
                    "pattern": $pattern,
                })
            }
        }
    };
}

word!(
    /// `1m30s`.
    Time(Duration),
    "a time such as 500ms, 5s, 1m30s or 1h",
    r"^([0-9]+(ms|s|m|h|d))+$"
);
word!(
    /// The addresses of one `bind` word: two for `:443`.
    Bind(Vec<SocketAddr>),
    "an address such as 203.0.113.10:443, [2001:db8::1]:443, or :443 for all addresses",
    r"^.*:[0-9]+$"
);
word!(
    Backend(BackendAddress),
    "an address such as 10.0.0.3:8443, [2001:db8::3]:8443 or app.internal:8443",
    r"^.+:[0-9]+$"
);
word!(Network(IpNet), "a network such as 10.0.0.0/8, or one address", r"^[0-9a-fA-F:.]+(/[0-9]+)?$");
word!(Ip(IpAddr), "an IP address such as 10.0.0.3 or 2001:db8::3", r"^[0-9a-fA-F:.]+$");
word!(Pattern(SniPattern), "a host name such as app.example.com, or *.example.com", r"^(\*\.)?[A-Za-z0-9._-]+$");
word!(HostName(Sni), "a host name such as app.example.com", r"^[A-Za-z0-9._-]+$");
word!(Ports((u16, u16)), "a range of ports such as 20000-32767", "^[0-9]+-[0-9]+$");
word!(
    Status((u16, u16)),
    "a status such as 200, or a range such as 200-399",
    "^[1-5][0-9]{2}(-[1-5][0-9]{2})?$",
    "integer"
);
word!(
    #[derive(PartialOrd, Ord)]
    Device(String),
    "a network device such as eth0",
    r"^[^/\s:]{1,15}$"
);
word!(EnvName(String), "the name of an environment variable such as INGRESS_STATS_USER", "^[A-Za-z_][A-Za-z0-9_]*$");
word!(AbsolutePath(PathBuf), "an absolute path", "^/");
word!(SocketPath(PathBuf), "an absolute path of at most 107 bytes", "^/.{0,106}$");
word!(FileMode(u32), "permissions in octal such as 0660", "^0?[0-7]{3}$", "integer");
word!(UrlPath(String), "a path such as /healthz", "^/[!-~]*$");
word!(PathPattern(PathMatch), "a path such as /ws, or /api/* for all below it", r"^/[^* ]*(/\*|\*)?$");
word!(HttpUrl(String), "a URL such as http://10.50.0.1:8081/v1/config", "^https?://[^@ ]+$");
word!(NamePattern(glob::Pattern), "a name such as web, or a pattern such as *@platform", "^[!-~]{1,200}$");
word!(Argument(String), "a word of a command", r"^[^\u0000]{0,4096}$");
word!(
    Body(String),
    "a Jinja template that makes JSON of a message, such as {\"text\": {{ text|tojson }}}",
    "^[^\\u0000]{1,16384}$"
);
word!(HostHeader(String), "a host such as app.example.com or app.example.com:8443", "^[!-~]{1,255}$");
word!(
    /// What the operator calls a listener, pool, route or backend; a label in logs and metrics.
    #[derive(PartialOrd, Ord)]
    Name(String),
    "a name of up to 63 letters, digits, `-`, `_` and `.`",
    r"^[A-Za-z0-9._*:\[\]-]{1,63}$"
);

impl Time {
    const LONGEST: Duration = Duration::from_secs(365 * 86_400);

    fn parse(word: &str) -> Result<Self, String> {
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
    fn parse(word: &str) -> Result<Self, String> {
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
    fn parse(word: &str) -> Result<Self, String> {
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

impl Device {
    /// What the kernel's `dev_valid_name` accepts.
    fn parse(word: &str) -> Result<Self, String> {
        let fits = (1..=15).contains(&word.len()) && word != "." && word != "..";
        if fits && !word.chars().any(|c| c == '/' || c == ':' || c.is_whitespace() || c.is_control()) {
            return Ok(Self(word.to_owned()));
        }
        Err(format!("{} cannot be the name of a network device (1 to 15 characters, no slash)", quoted(word)))
    }
}

impl EnvName {
    fn parse(word: &str) -> Result<Self, String> {
        let starts = word.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        if starts && word.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            return Ok(Self(word.to_owned()));
        }
        // The word may be the secret itself: it is not repeated.
        Err("this is not the name of an environment variable; write the name here, its value into the environment"
            .to_owned())
    }
}

impl HttpUrl {
    fn parse(word: &str) -> Result<Self, String> {
        let rest = word.strip_prefix("http://").or_else(|| word.strip_prefix("https://"));
        let Some(rest) = rest else { return Err(format!("{} does not begin with http:// or https://", quoted(word))) };
        let host = rest.split(['/', '?']).next().unwrap_or_default();
        if host.contains('@') {
            // Not repeated: it is a secret.
            return Err("the URL holds a user and password; write a `token_file`".to_owned());
        }
        if host.is_empty() || rest.contains('#') || !word.chars().all(|c| c.is_ascii_graphic()) {
            return Err(format!("{} is not a URL such as http://10.50.0.1:8081/v1/config", quoted(word)));
        }
        Ok(Self(word.to_owned()))
    }
}

impl AbsolutePath {
    fn parse(word: &str) -> Result<Self, String> {
        let path = Path::new(word);
        if path.is_absolute() && !word.contains('\0') {
            return Ok(Self(path.to_owned()));
        }
        Err(format!("{} is not an absolute path; it must begin with /", quoted(word)))
    }

    pub(super) fn new(path: &str) -> Self {
        Self(PathBuf::from(path))
    }
}

impl fmt::Display for AbsolutePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.display().fmt(f)
    }
}

impl FileMode {
    fn parse(word: &str) -> Result<Self, String> {
        let bits = (3..=4).contains(&word.len()).then(|| u32::from_str_radix(word, 8).ok()).flatten();
        let bits = bits.filter(|bits| *bits <= 0o777);
        bits.map(Self)
            .ok_or_else(|| format!("{} is no file mode; write three octal digits, such as 0660", quoted(word)))
    }
}

impl fmt::Display for FileMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

impl SocketPath {
    /// What fits into `sun_path`, with the zero byte at its end (unix(7)).
    const LONGEST: usize = 107;

    fn parse(word: &str) -> Result<Self, String> {
        let AbsolutePath(path) = AbsolutePath::parse(word)?;
        match word.len() {
            0..=Self::LONGEST => Ok(Self(path)),
            _ => Err(format!(
                "{} is longer than the {} bytes that a socket's path can have",
                quoted(word),
                Self::LONGEST
            )),
        }
    }
}

impl fmt::Display for SocketPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.display().fmt(f)
    }
}

impl UrlPath {
    fn parse(word: &str) -> Result<Self, String> {
        if word.starts_with('/') && word.bytes().all(|b| b.is_ascii_graphic()) {
            return Ok(Self(word.to_owned()));
        }
        Err(format!("{} is not a path of a URL; it must begin with / and hold no spaces", quoted(word)))
    }
}

impl PathPattern {
    fn parse(word: &str) -> Result<Self, String> {
        let UrlPath(path) = UrlPath::parse(word)?;
        let below = path.strip_suffix('*').filter(|path| path.ends_with('/'));
        let matched = below.map_or_else(|| PathMatch::Exact(path.clone()), |path| PathMatch::Below(path.to_owned()));
        let (PathMatch::Exact(plain) | PathMatch::Below(plain)) = &matched;
        if plain.contains(['*', '?', '#']) {
            return Err(format!("{} is not a path; write /ws, or /api/* for all below it", quoted(word)));
        }
        Ok(Self(matched))
    }
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            PathMatch::Exact(path) => f.write_str(path),
            PathMatch::Below(path) => write!(f, "{path}*"),
        }
    }
}

impl NamePattern {
    fn parse(word: &str) -> Result<Self, String> {
        let bad = |why: &str| format!("{} is not a name or pattern: {why}", quoted(word));
        if !(1..=200).contains(&word.len()) || !word.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(bad("it has 1 to 200 printable characters and no space"));
        }
        glob::Pattern::new(word).map(Self).map_err(|error| bad(error.msg))
    }
}

impl Argument {
    const LONGEST: usize = 4096;

    fn parse(word: &str) -> Result<Self, String> {
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

    fn parse(word: &str) -> Result<Self, String> {
        match word.len() {
            0 => Err("the template is empty".to_owned()),
            1..=Self::LONGEST if !word.contains('\0') => Ok(Self(word.to_owned())),
            _ => Err(format!("the template is longer than {} KiB, or holds a zero byte", Self::LONGEST >> 10)),
        }
    }
}

impl HostHeader {
    fn parse(word: &str) -> Result<Self, String> {
        if (1..=255).contains(&word.len()) && word.bytes().all(|b| b.is_ascii_graphic() && b != b'/') {
            return Ok(Self(word.to_owned()));
        }
        Err(format!("{} cannot stand in a Host header", quoted(word)))
    }
}

impl Name {
    /// Patterns and addresses are names too: they stand for routes and backends that were given none.
    fn parse(word: &str) -> Result<Self, String> {
        let fits = |c: char| c.is_ascii_alphanumeric() || "-_.*:[]".contains(c);
        if (1..=63).contains(&word.len()) && word.chars().all(fits) {
            return Ok(Self(word.to_owned()));
        }
        Err(format!("{} cannot be a name: up to 63 letters, digits, `-`, `_` and `.`", quoted(word)))
    }
}

/// `Display` of the inner value.
macro_rules! display_inner {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    )*};
}
display_inner!(
    Network,
    Pattern,
    HostName,
    Device,
    EnvName,
    UrlPath,
    HttpUrl,
    NamePattern,
    Argument,
    Body,
    HostHeader,
    Name
);

/// A whole number from `MIN` to `MAX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Count<const MIN: u32, const MAX: u32>(pub(super) u32);

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

    #[test]
    fn socket_paths_fit_into_the_kernels_address() {
        assert!(SocketPath::parse(&format!("/{}", "a".repeat(106))).is_ok());
        assert!(SocketPath::parse(&format!("/{}", "a".repeat(107))).is_err());
        assert!(SocketPath::parse("run/admin.sock").is_err());
    }

    #[test]
    fn a_password_in_place_of_a_variable_is_not_repeated() {
        let message = EnvName::parse("hunter2!").expect_err("not a variable");
        assert!(!message.contains("hunter2"), "{message}");
    }
}
