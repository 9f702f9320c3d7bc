//! `hooks`: who is told what happens.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::decode::Located;
use crate::config::defaults;
use crate::config::words::{AbsolutePath, Argument, Body, Count, EnvName, HttpUrl, NamePattern, Time};
use crate::events::EventKind;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a hook: a mapping with `webhook` or `command`")]
pub(in crate::config) struct FileHook {
    /// POST the message to a URL.
    pub(in crate::config) webhook: Option<Located<FileWebhook>>,
    /// Run a program, as the daemon's user, with the message on stdin.
    pub(in crate::config) command: Option<Located<FileCommand>>,
    /// What it is told; everything otherwise.
    #[serde(default)]
    pub(in crate::config) events: Vec<EventKind>,
    /// Only backends of these pools.
    #[serde(default)]
    pub(in crate::config) pools: Vec<NamePattern>,
    /// Only these routes, by their names.
    #[serde(default)]
    pub(in crate::config) routes: Vec<NamePattern>,
    /// What happens within this time, and is of one kind, is one message: a reload that adds 10,000 routes is one.
    #[serde(default = "default_gather")]
    pub(in crate::config) gather: Time,
    /// A message that cannot be delivered is tried again for so long, less and less often.
    #[serde(default = "default_retry_for")]
    pub(in crate::config) retry_for: Time,
    /// Messages that wait at most. More push the oldest out.
    #[serde(default = "default_queue")]
    pub(in crate::config) queue: Count<1, 100_000>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a mapping with the key `url` or `url_file`")]
pub(in crate::config) struct FileWebhook {
    /// Where to POST; `http://` or `https://`, without user and password.
    pub(in crate::config) url: Option<Located<HttpUrl>>,
    /// File with the URL, where the URL itself is a secret, as those of chat services are. Only its owner and group may
    /// read it. Read at each message.
    pub(in crate::config) url_file: Option<AbsolutePath>,
    /// What messages are signed with, so that the receiver knows who sent them.
    pub(in crate::config) secret: Option<Located<FileSecret>>,
    /// File with the token that is sent as `Authorization: Bearer`. Only its owner and group may read it. Read at
    /// each message.
    pub(in crate::config) token_file: Option<AbsolutePath>,
    /// File with the certificates (PEM) to trust instead of the system's.
    pub(in crate::config) ca_file: Option<AbsolutePath>,
    /// For the whole answer.
    #[serde(default = "default_webhook_timeout")]
    pub(in crate::config) timeout: Located<Time>,
    /// The body: the message's own JSON (`event`), or one line of text as chat services take it. `slack` is for Mattermost,
    /// Rocket.Chat and Matrix (hookshot) too.
    #[serde(default)]
    pub(in crate::config) format: FileFormat,
    /// The body in place of `format`.
    pub(in crate::config) template: Option<Located<Body>>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::config) enum FileFormat {
    #[default]
    Event,
    Slack,
    Discord,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a mapping with the key `file` or `env`")]
pub(in crate::config) struct FileSecret {
    /// File with the secret; one a line, if several are good while they are exchanged. Only its owner and group may read it.
    /// Read at each message.
    pub(in crate::config) file: Option<AbsolutePath>,
    /// Environment variable with the secret.
    pub(in crate::config) env: Option<EnvName>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a mapping with the key `argv`")]
pub(in crate::config) struct FileCommand {
    /// The program's absolute path, and its words. There is no shell.
    pub(in crate::config) argv: Vec<Located<Argument>>,
    /// Then it is killed, with all that it started, and tried again.
    #[serde(default = "default_command_timeout")]
    pub(in crate::config) timeout: Located<Time>,
}

default_functions! {
    default_gather() -> Time = Time(defaults::HOOK_GATHER);
    default_retry_for() -> Time = Time(defaults::HOOK_RETRY_FOR);
    default_queue() -> Count<1, 100_000> = Count(defaults::HOOK_QUEUE);
    default_webhook_timeout() -> Located<Time> = Located::unwritten(Time(defaults::WEBHOOK_TIMEOUT));
    default_command_timeout() -> Located<Time> = Located::unwritten(Time(defaults::COMMAND_TIMEOUT));
}
