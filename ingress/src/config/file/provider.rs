//! `providers`: where further routes come from.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::FileOnRemove;
use super::pool::{FileHealth, FileOnDown};
use super::registration::FileRegistration;
use crate::config::decode::{Located, OneOrMany};
use crate::config::defaults;
use crate::config::words::{AbsolutePath, Bind, Count, HttpUrl, Ip, Name, Time};

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(
    deny_unknown_fields,
    expecting = "a provider: a mapping with `registry`, `file`, `http_poll` or `registration`"
)]
pub(in crate::config) struct FileProvider {
    /// A YAML file that lists hosts and ports with their backends, the same on every node.
    pub(in crate::config) registry: Option<Located<FileRegistry>>,
    /// Traefik's dynamic configuration in files.
    pub(in crate::config) file: Option<Located<FileTraefik>>,
    /// Traefik's dynamic configuration from a URL that is asked again and again.
    pub(in crate::config) http_poll: Option<Located<FileHttpPoll>>,
    /// Backends say themselves what they serve, over an HTTP API on the private network.
    pub(in crate::config) registration: Option<Located<FileRegistration>>,
    /// Who wins a name that several claim: first the routes of this file, then the provider of the highest priority, then
    /// the first by name.
    #[serde(default = "default_priority")]
    pub(in crate::config) priority: Count<0, 1000>,
    /// Keep what it said last on disk, for a start at which its source does not answer: `{max_age: 24h}`, or `off`.
    #[serde(default)]
    pub(in crate::config) last_good: FileLastGood,
    /// Its source may fail for so long before `hooks` are told that it is stale.
    #[serde(default = "default_stale_after")]
    pub(in crate::config) stale_after: Time,
    /// What happens to the connections of a route that it no longer names, as in `routes`.
    #[serde(default)]
    pub(in crate::config) on_remove: FileOnRemove,
    /// What happens to a backend's connections when its checks say that it is down, as in `pools`.
    #[serde(default)]
    pub(in crate::config) on_down: FileOnDown,
    /// Checks of its backends, where the source says nothing of them.
    pub(in crate::config) health: Option<Located<FileHealth>>,
}

#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(untagged)]
pub(in crate::config) enum FileLastGood {
    Word(LastGoodWord),
    Kept(KeptFor),
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::config) enum LastGoodWord {
    Off,
}

#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct KeptFor {
    /// What was last confirmed longer ago is not used.
    pub(in crate::config) max_age: Time,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a registry: a mapping with the key `path`")]
pub(in crate::config) struct FileRegistry {
    /// The file. It is read again whenever it, or a file that it includes, changes.
    pub(in crate::config) path: AbsolutePath,
    /// Addresses of this host on which the ports of the registry are opened.
    #[serde(default = "default_registry_bind")]
    pub(in crate::config) bind: OneOrMany<Ip>,
    /// Checks of single `tcp` services, by their name there, in place of the provider's `health`. So a Redis is followed:
    /// `{redis-main: {type: redis, ...}}`.
    #[serde(default)]
    pub(in crate::config) checks: BTreeMap<Name, Located<FileHealth>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a mapping with the key `path`")]
pub(in crate::config) struct FileTraefik {
    /// A YAML or JSON file, or a directory of them. Read again whenever one changes.
    pub(in crate::config) path: AbsolutePath,
    /// What Traefik's entry points are here, by their name there: a listener, or `{bind: ":6379"}` for a port that takes
    /// everything. Without this, every route holds on all `tls` listeners.
    #[serde(default)]
    pub(in crate::config) entry_points: BTreeMap<Name, Located<FileEntryPoint>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a mapping with the key `url`")]
pub(in crate::config) struct FileHttpPoll {
    /// What to GET; `http://` or `https://`, without user and password.
    pub(in crate::config) url: Located<HttpUrl>,
    /// From one question to the next; longer while they fail.
    #[serde(default = "default_poll_interval")]
    pub(in crate::config) interval: Located<Time>,
    /// For the whole answer.
    #[serde(default = "default_poll_timeout")]
    pub(in crate::config) timeout: Located<Time>,
    /// File with the token that is sent as `Authorization: Bearer`. Only its owner and group may read it. Read at each question.
    pub(in crate::config) token_file: Option<AbsolutePath>,
    /// File with the certificates (PEM) to trust instead of the system's.
    pub(in crate::config) ca_file: Option<AbsolutePath>,
    /// What Traefik's entry points are here, by their name there: a listener, or `{bind: ":6379"}` for a port that takes
    /// everything. Without this, every route holds on all `tls` listeners.
    #[serde(default)]
    pub(in crate::config) entry_points: BTreeMap<Name, Located<FileEntryPoint>>,
}

#[derive(Clone, Debug, JsonSchema)]
#[schemars(untagged)]
pub(in crate::config) enum FileEntryPoint {
    Listener(Name),
    Open(OpenPort),
}

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct OpenPort {
    /// Address and port, or a list of them.
    pub(in crate::config) bind: OneOrMany<Located<Bind>>,
}

impl Default for FileLastGood {
    fn default() -> Self {
        Self::Kept(KeptFor { max_age: Time(defaults::LAST_GOOD_MAX_AGE) })
    }
}

default_functions! {
    default_poll_interval() -> Located<Time> = Located::unwritten(Time(defaults::POLL_INTERVAL));
    default_poll_timeout() -> Located<Time> = Located::unwritten(Time(defaults::POLL_TIMEOUT));
    default_stale_after() -> Time = Time(defaults::STALE_AFTER);
    default_priority() -> Count<0, 1000> = Count(0);
    default_registry_bind() -> OneOrMany<Ip> = OneOrMany(defaults::ALL_ADDRESSES.map(Ip).to_vec());
}

word_or_mapping!(FileEntryPoint, "the name of a listener, or a mapping with the key `bind`", Listener, Open);
word_or_mapping!(FileLastGood, "`off` or `{max_age: 24h}`", Word, Kept);
