//! Hooks: who is told what happens.

use std::path::PathBuf;
use std::time::Duration;

use super::TokenSource;
use crate::events::{EventFilter, Template};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookConfig {
    pub target: HookTarget,
    pub filter: EventFilter,
    /// What happens within this time of one event, and is of its kind, is one message.
    pub gather: Duration,
    /// From the event on; then the message is given up.
    pub retry_for: Duration,
    /// Messages that may wait; more push the oldest out. At least 1.
    pub queue: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HookTarget {
    Webhook(WebhookConfig),
    Command(CommandConfig),
}

/// An HTTP POST of JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebhookConfig {
    pub url: WebhookUrl,
    /// What messages are signed with.
    pub secret: Option<TokenSource>,
    pub token_file: Option<PathBuf>,
    /// Trusted instead of the system's certificates.
    pub ca_file: Option<PathBuf>,
    /// For the whole answer.
    pub timeout: Duration,
    pub body: WebhookBody,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WebhookUrl {
    Plain(String),
    /// Chat services put the secret into the URL.
    File(PathBuf),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WebhookBody {
    /// The message as it is.
    Event,
    /// `{"text": ...}`: Slack, Mattermost, Rocket.Chat, Matrix by hookshot.
    Slack,
    /// `{"content": ...}`
    Discord,
    Template(Template),
}

/// A program that gets the message on stdin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandConfig {
    /// The program's absolute path, then its words. No shell.
    pub argv: Vec<String>,
    /// Then it is killed, with all that it started.
    pub timeout: Duration,
}

impl HookTarget {
    /// The key under which it is written.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Webhook(_) => "webhook",
            Self::Command(_) => "command",
        }
    }

    /// For people. Paths and queries of URLs may hold secrets; arguments of commands may, too.
    pub fn place(&self) -> String {
        match self {
            Self::Webhook(webhook) => match &webhook.url {
                WebhookUrl::Plain(url) => {
                    let end = url.match_indices('/').nth(2).map_or(url.len(), |(at, _)| at);
                    url[..end].split('?').next().unwrap_or_default().to_owned()
                }
                WebhookUrl::File(path) => format!("the URL in {}", path.display()),
            },
            Self::Command(command) => command.argv.first().cloned().unwrap_or_default(),
        }
    }
}
