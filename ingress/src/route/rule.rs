//! Conditions on a request, as routers of other proxies state them. Kept in the model whether or not anything can judge
//! them yet; `providers::traefik` reads them.

use std::fmt;

use super::SniPattern;

/// A condition with its combinations. `And` and `Or` have at least two parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rule {
    Match(Matcher),
    And(Vec<Rule>),
    Or(Vec<Rule>),
    Not(Box<Rule>),
}

/// One condition on one property of a request or connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Matcher {
    Host(SniPattern),
    HostRegexp(String),
    /// `None`: any name, and none (`*`).
    HostSni(Option<SniPattern>),
    HostSniRegexp(String),
    Path(String),
    PathPrefix(String),
    PathRegexp(String),
    Header {
        name: String,
        value: String,
    },
    HeaderRegexp {
        name: String,
        value: String,
    },
    Method(String),
    /// `value`: `None` where any will do.
    Query {
        name: String,
        value: Option<String>,
    },
    ClientIp(String),
}

impl Matcher {
    /// As rules write it.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Host(_) => "Host",
            Self::HostRegexp(_) => "HostRegexp",
            Self::HostSni(_) => "HostSNI",
            Self::HostSniRegexp(_) => "HostSNIRegexp",
            Self::Path(_) => "Path",
            Self::PathPrefix(_) => "PathPrefix",
            Self::PathRegexp(_) => "PathRegexp",
            Self::Header { .. } => "Header",
            Self::HeaderRegexp { .. } => "HeaderRegexp",
            Self::Method(_) => "Method",
            Self::Query { .. } => "Query",
            Self::ClientIp(_) => "ClientIP",
        }
    }
}

/// In Traefik's rule language.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |f: &mut fmt::Formatter<'_>, parts: &[Self], between: &str| {
            for (n, part) in parts.iter().enumerate() {
                if n > 0 {
                    f.write_str(between)?;
                }
                part.grouped(f)?;
            }
            Ok(())
        };
        match self {
            Self::Match(matcher) => matcher.fmt(f),
            Self::And(parts) => list(f, parts, " && "),
            Self::Or(parts) => list(f, parts, " || "),
            Self::Not(rule) => {
                f.write_str("!")?;
                rule.grouped(f)
            }
        }
    }
}

impl Rule {
    fn grouped(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Match(_) | Self::Not(_) => fmt::Display::fmt(self, f),
            Self::And(_) | Self::Or(_) => write!(f, "({self})"),
        }
    }
}

impl fmt::Display for Matcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}(", self.name())?;
        match self {
            Self::Host(pattern) | Self::HostSni(Some(pattern)) => write!(f, "`{pattern}`")?,
            Self::HostSni(None) => f.write_str("`*`")?,
            Self::HostRegexp(text)
            | Self::HostSniRegexp(text)
            | Self::Path(text)
            | Self::PathPrefix(text)
            | Self::PathRegexp(text)
            | Self::Method(text)
            | Self::ClientIp(text) => quote(f, text)?,
            Self::Query { name, value: None } => quote(f, name)?,
            Self::Header { name, value }
            | Self::HeaderRegexp { name, value }
            | Self::Query { name, value: Some(value) } => {
                quote(f, name)?;
                f.write_str(", ")?;
                quote(f, value)?;
            }
        }
        f.write_str(")")
    }
}

/// A Go string: raw where it can be.
fn quote(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    if !text.contains(['`', '\r']) {
        return write!(f, "`{text}`");
    }
    f.write_str("\"")?;
    for c in text.chars() {
        match c {
            '"' | '\\' => write!(f, "\\{c}")?,
            '\n' => f.write_str("\\n")?,
            '\r' => f.write_str("\\r")?,
            c => write!(f, "{c}")?,
        }
    }
    f.write_str("\"")
}
