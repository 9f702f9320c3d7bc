//! The vocabulary of routing: names, SNI, and what a provider may say about a route.

pub mod contribution;
pub mod provider;
pub mod rule;
pub mod table;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

pub use contribution::{Contribution, HttpRoute, Owner, Sticky, TcpEntry, Unserved, Why};
pub use provider::{Applied, News, ProviderUpdate};
pub use table::RouteTable;

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            pub fn new(name: impl Into<Arc<str>>) -> Self {
                Self(name.into())
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }
    };
}

name_type!(
    /// A listener's key in the configuration.
    ListenerName
);
name_type!(
    /// A pool's key in the configuration.
    PoolName
);
name_type!(
    /// What logs and metrics call a route: its first SNI pattern unless named.
    RouteName
);
name_type!(
    /// A provider's key in the configuration. What it says is called `name@provider`.
    ProviderName
);

/// A server name from a ClientHello: lower case ASCII, no trailing dot, 1 to 253 bytes (RFC 6066 section 3).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sni(Arc<str>);

/// `name` was not a DNS host name.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not a DNS host name")]
pub struct BadSni(pub String);

/// What a route matches: one name, or every name exactly one label below a suffix.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SniPattern {
    Exact(Sni),
    /// `*.example.com`; holds `example.com`.
    Wildcard(Sni),
}

/// What a provider says: connections for these names go to that pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteSpec {
    pub name: RouteName,
    pub sni: Vec<SniPattern>,
    pub pool: PoolName,
    /// Only on these listeners; empty: on every TLS listener.
    pub listeners: Vec<ListenerName>,
    /// Among the routes of one provider that claim the same name, the highest wins.
    pub priority: i64,
    pub on_remove: OnRemove,
}

/// What happens to a route's connections when the route is there no more. Beside `on_down`, which is about backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnRemove {
    /// They go on, for so long at most (`None`: until they end by themselves).
    Drain(Option<Duration>),
    /// They are reset at both ends at once.
    Cut,
}

impl OnRemove {
    /// Of routes on `tls` and `tcp` listeners: nobody can tell how long such a connection is worth keeping.
    pub const L4: Self = Self::Drain(None);
}

impl Sni {
    /// Lower-cases, drops one trailing dot and checks the form.
    pub fn parse(name: &str) -> Result<Self, BadSni> {
        let bad = || BadSni(name.chars().take(256).collect());
        let trimmed = name.strip_suffix('.').unwrap_or(name);
        if trimmed.is_empty() || trimmed.len() > 253 {
            return Err(bad());
        }
        let label_ok = |label: &str| {
            !label.is_empty()
                && label.len() <= 63
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        };
        if !trimmed.split('.').all(label_ok) {
            return Err(bad());
        }
        Ok(Self(trimmed.to_ascii_lowercase().into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Sni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Sni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

impl SniPattern {
    /// `example.com` or `*.example.com`; the star stands for exactly one label.
    pub fn parse(pattern: &str) -> Result<Self, BadSni> {
        match pattern.strip_prefix("*.") {
            Some(suffix) => Sni::parse(suffix).map(Self::Wildcard),
            None => Sni::parse(pattern).map(Self::Exact),
        }
    }
}

impl fmt::Display for SniPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(sni) => write!(f, "{sni}"),
            Self::Wildcard(suffix) => write!(f, "*.{suffix}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sni_is_lower_cased_and_loses_its_trailing_dot() {
        assert_eq!(Sni::parse("App.Example.COM.").map(|s| s.to_string()), Ok("app.example.com".into()));
    }

    #[test]
    fn sni_refuses_what_is_not_a_host_name() {
        for bad in ["", ".", "a..b", "a b", "ä.example", &"a".repeat(64), &"a.".repeat(200)] {
            assert!(Sni::parse(bad).is_err(), "{bad:?} was accepted");
        }
    }
}
