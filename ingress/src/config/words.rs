//! Values that an operator writes as one word: durations, addresses, ranges, names. Each is parsed once, here, and says
//! what it expects when it is wrong.

mod address;
mod name;
mod number;
mod path;
mod text;

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

pub(super) use self::number::Count;
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
