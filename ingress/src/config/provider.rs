//! Where further routes come from.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::{HealthConfig, OnDown, RegistrationConfig};
use crate::route::{ListenerName, OnRemove};

/// Where further routes come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProviderConfig {
    pub source: ProviderSource,
    /// Who wins a name that several claim: the file, then the highest, then the first by name.
    pub priority: u32,
    /// How old what it said last may be at a start, when the source does not answer. `None`: it is not kept on disk.
    pub last_good: Option<Duration>,
    /// Its source may fail for so long before hooks are told.
    pub stale_after: Duration,
    pub on_remove: OnRemove,
    pub on_down: OnDown,
    /// Checks of its backends, where the source names none.
    pub health: Option<HealthConfig>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProviderSource {
    Registry(RegistryConfig),
    File(TraefikConfig),
    HttpPoll(HttpPollConfig),
    Registration(RegistrationConfig),
}

/// Traefik's dynamic configuration in files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraefikConfig {
    /// A file or a directory.
    pub path: PathBuf,
    pub entry_points: BTreeMap<String, EntryPoint>,
}

/// Traefik's dynamic configuration from a URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpPollConfig {
    pub url: String,
    pub interval: Duration,
    /// For the whole answer.
    pub timeout: Duration,
    pub token_file: Option<PathBuf>,
    /// Trusted instead of the system's certificates.
    pub ca_file: Option<PathBuf>,
    pub entry_points: BTreeMap<String, EntryPoint>,
}

/// What Traefik calls an entry point, in our words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryPoint {
    Listener(ListenerName),
    /// A port that takes everything.
    Open(Vec<SocketAddr>),
}

/// A YAML file that lists hosts and ports with their backends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistryConfig {
    pub path: PathBuf,
    /// Where its ports are opened.
    pub bind: Vec<IpAddr>,
    /// Of single `tcp` services, by name, in place of the provider's `health`.
    pub checks: BTreeMap<String, HealthConfig>,
}

impl ProviderSource {
    /// The key under which it is written.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Registry(_) => "registry",
            Self::File(_) => "file",
            Self::HttpPoll(_) => "http_poll",
            Self::Registration(_) => "registration",
        }
    }

    /// For people: where it reads.
    pub fn place(&self) -> String {
        match self {
            Self::Registry(registry) => registry.path.display().to_string(),
            Self::File(file) => file.path.display().to_string(),
            Self::Registration(api) => {
                let (bind, device) = (api.bind.iter().map(ToString::to_string), api.device.as_deref());
                bind.collect::<Vec<_>>().join(", ") + &device.map_or_else(String::new, |device| format!(" on {device}"))
            }
            // A query may hold a secret.
            Self::HttpPoll(poll) => poll.url.split('?').next().unwrap_or_default().to_owned(),
        }
    }
}
