//! What can be said, and what it does. The words, the order in which they are checked and the complaints are HAProxy's.
//!
//! A command runs on a thread that may block. Its answer ends with a line end; the session adds the empty line.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::proxies::{Proxies, user_weight};
use super::table::{Format, Row};
use super::{help, info, show, stat, table};
use crate::admin::Admin;
use crate::balance::{AdminState, AdminWeight, BackendOrder, BackendView, OrderError};
use crate::config::SocketLevel;
use crate::flow::{FlowCommand, FlowFilter};
use crate::l4::outcome::EndReason;

/// One command of one session.
pub(super) struct Call {
    pub(super) admin: Arc<Admin>,
    pub(super) level: SocketLevel,
    /// Who says it.
    pub(super) by: String,
    /// Behind the keyword.
    pub(super) args: Vec<String>,
}

/// What becomes of a command.
#[derive(Debug, PartialEq)]
pub(super) enum Answer {
    Text(String),
    /// The session itself is meant.
    TogglePrompt,
    Quit,
    Level(SocketLevel),
    Timeout(Duration),
}

/// One keyword.
pub(super) struct Keyword {
    pub(super) words: &'static [&'static str],
    /// As `help` shows it.
    pub(super) usage: &'static str,
    pub(super) does: &'static str,
    pub(super) level: SocketLevel,
    run: fn(&Call) -> Answer,
}

/// The words of one command, done.
pub(super) fn run(words: &[String], admin: Arc<Admin>, level: SocketLevel, by: String) -> Answer {
    let Some(keyword) = KEYWORDS.iter().find(|keyword| is_prefix(keyword.words, words)) else {
        return Answer::Text(help::unknown(words, level));
    };
    if keyword.level > level {
        return said("Permission denied");
    }
    let args = words[keyword.words.len()..].to_vec();
    (keyword.run)(&Call { admin, level, by, args })
}

fn is_prefix(keyword: &[&str], words: &[String]) -> bool {
    keyword.len() <= words.len() && keyword.iter().zip(words).all(|(keyword, word)| keyword == word)
}

fn said(text: impl Into<String>) -> Answer {
    Answer::Text(text.into() + "\n")
}

impl Call {
    fn arg(&self, at: usize) -> Option<&str> {
        self.args.get(at).map(String::as_str)
    }

    fn format(&self) -> Format {
        let is = |word: &str| self.args.iter().any(|arg| arg == word);
        if is("json") {
            Format::Json
        } else if is("typed") {
            Format::Typed
        } else {
            Format::Plain
        }
    }

    /// Pool and backend of the first argument, which are there; else what HAProxy says.
    fn target(&self) -> Result<(String, BackendView), Answer> {
        let named = self.arg(0).and_then(|target| target.split_once('/')).filter(|(_, server)| !server.is_empty());
        let (pool, server) = named.ok_or_else(|| said("Require 'backend/server'."))?;
        let proxies = Proxies::of(&self.admin);
        let (_, pool) =
            proxies.pools().find(|(_, each)| each.name.as_str() == pool).ok_or_else(|| said("No such backend."))?;
        let found = proxies.servers(pool).into_iter().find(|each| each.view.name == server);
        let found = found.ok_or_else(|| said("No such server."))?;
        Ok((pool.name.to_string(), found.view))
    }

    fn order(&self, order: BackendOrder) -> Answer {
        let (pool, backend) = match self.target() {
            Ok((pool, view)) => (pool, view.name),
            Err(answer) => return answer,
        };
        match (self.admin.sources.administer)(&pool, &backend, order, &self.by) {
            Ok(done) => Answer::Text(done.warning.map(|warning| warning + "\n").unwrap_or_default()),
            // It was there a moment ago.
            Err(OrderError::NoPool(_)) => said("No such backend."),
            Err(OrderError::NoBackend { .. }) => said("No such server."),
            Err(error @ (OrderError::Full | OrderError::Empty)) => said(error.to_string()),
        }
    }

    fn state(&self, state: AdminState) -> Answer {
        self.order(BackendOrder { state: Some(state), weight: None })
    }

    fn weight(&self, word: Option<&str>) -> Answer {
        if let Err(answer) = self.target() {
            return answer;
        }
        let Some(word) = word else { return said("Require <weight> or <weight%>.") };
        match word.parse::<AdminWeight>() {
            Ok(weight) => self.order(BackendOrder { state: None, weight: Some(weight) }),
            Err(_) if word.strip_prefix('-').unwrap_or(word).starts_with(|c: char| c.is_ascii_digit()) => {
                match word.ends_with('%') {
                    true => said(format!("Relative weight can only be between 0% and {}%.", AdminWeight::MAX_PERCENT)),
                    false => said("Absolute weight can only be between 0 and 256 inclusive."),
                }
            }
            Err(_) => said("Empty weight string empty or preceded by garbage"),
        }
    }

    /// Cuts what matches; how many that were. `None`: the daemon stops.
    fn cut(&self, filter: FlowFilter) -> Option<usize> {
        tracing::info!(?filter, by = self.by, "connections are ended by an operator");
        let (done, killed) = oneshot::channel();
        let command = FlowCommand::Cut { filter, reason: EndReason::Killed, done: Some(done) };
        self.admin.sources.commands.blocking_send(command).ok()?;
        killed.blocking_recv().ok()
    }
}

fn set_server(call: &Call) -> Answer {
    if let Err(answer) = call.target() {
        return answer;
    }
    match (call.arg(1), call.arg(2)) {
        (Some("state"), Some("ready")) => call.state(AdminState::Ready),
        (Some("state"), Some("drain")) => call.state(AdminState::Drain),
        (Some("state"), Some("maint")) => call.state(AdminState::Maint),
        (Some("state"), _) => said("'set server <srv> state' expects 'ready', 'drain' and 'maint'."),
        (Some("weight"), weight) => call.weight(weight),
        (Some("health"), _) => {
            said("ingress takes health from its checks only; use 'state ready', 'drain' or 'maint'.")
        }
        (_, _) => said("usage: set server <backend>/<server> state | weight"),
    }
}

fn get_weight(call: &Call) -> Answer {
    match call.target() {
        Ok((_, view)) => said(format!("{} (initial {})", user_weight(&view), view.weight)),
        Err(answer) => answer,
    }
}

fn show_stat(call: &Call) -> Answer {
    let proxies = Proxies::of(&call.admin);
    let mut rows = stat::rows(&proxies);
    let number = |at: usize| call.arg(at).and_then(|arg| arg.parse::<i64>().ok());
    if let (Some(proxy), Some(kinds), Some(server)) = (call.arg(0), number(1), number(2)) {
        let iid = match proxy.parse::<i64>() {
            Ok(id) => id,
            Err(_) => {
                let listeners = proxies.listeners().map(|(id, listener)| (id, listener.name.as_str()));
                let mut all = listeners.chain(proxies.pools().map(|(id, pool)| (id, pool.name.as_str())));
                let Some((id, _)) = all.find(|(_, name)| *name == proxy) else { return said("No such proxy.") };
                id.into()
            }
        };
        rows.retain(|row| {
            (iid < 0 || i64::from(row.iid) == iid)
                && (kinds < 0 || kinds & 1 << row.kind.number() != 0)
                && (server < 0 || i64::from(row.sid) == server)
        });
    }
    let has = |word: &str| call.args.iter().any(|arg| arg == word);
    let (up, no_maint) = (has("up"), has("no-maint"));
    let is_down = |row: &Row| row.status().starts_with("DOWN");
    rows.retain(|row| !(up && is_down(row)) && !((up || no_maint) && row.status().starts_with("MAINT")));
    Answer::Text(table::write(&rows, call.format()))
}

fn show_servers_state(call: &Call) -> Answer {
    let text = show::servers_state(&Proxies::of(&call.admin), call.arg(0));
    text.map_or_else(|| said("Can't find backend."), Answer::Text)
}

fn show_servers_conn(call: &Call) -> Answer {
    let text = show::servers_conn(&Proxies::of(&call.admin), call.arg(0));
    text.map_or_else(|| said("Can't find backend."), Answer::Text)
}

fn show_sess(call: &Call) -> Answer {
    let text = match call.arg(0) {
        None | Some("all") => show::sessions(&call.admin, None),
        Some(id) => session_id(id).and_then(|id| show::sessions(&call.admin, Some(id))),
    };
    text.map_or_else(|| said("Session not found."), Answer::Text)
}

/// `0x1f`, as `show sess` writes it.
fn session_id(word: &str) -> Option<u64> {
    u64::from_str_radix(word.strip_prefix("0x").unwrap_or(word), 16).ok()
}

fn shutdown_session(call: &Call) -> Answer {
    let Some(word) = call.arg(0) else { return said("Session pointer expected (use 'show sess').") };
    let cut = session_id(word).and_then(|id| call.cut(FlowFilter { id: Some(id), ..FlowFilter::default() }));
    if cut.is_some_and(|cut| cut > 0) {
        Answer::Text(String::new())
    } else {
        said("No such session (use 'show sess').")
    }
}

fn shutdown_sessions(call: &Call) -> Answer {
    let (pool, backend) = match call.target() {
        Ok((pool, view)) => (pool, view.name),
        Err(answer) => return answer,
    };
    let filter = FlowFilter { pool: Some(pool), backend: Some(backend), ..FlowFilter::default() };
    call.cut(filter).map_or_else(|| said("The daemon is stopping."), |_| Answer::Text(String::new()))
}

fn set_timeout(call: &Call) -> Answer {
    let Some("cli") = call.arg(0) else { return said("'set timeout' only supports 'cli'.") };
    let Some(word) = call.arg(1) else { return said("Expects an integer value.") };
    let digits = word.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &word[digits.len()..] {
        "ms" => Some(Duration::from_millis(1)),
        "" | "s" => Some(Duration::from_secs(1)),
        "m" => Some(Duration::from_secs(60)),
        "h" => Some(Duration::from_secs(3_600)),
        "d" => Some(Duration::from_secs(86_400)),
        _ => None,
    };
    match (digits.parse::<u32>().ok(), unit) {
        (Some(number), Some(unit)) if number > 0 => Answer::Timeout(unit.saturating_mul(number)),
        (_, _) => said("Invalid timeout value."),
    }
}

fn show_level(call: &Call) -> Answer {
    said(call.level.as_str())
}

/// In the order in which `help` shows them.
pub(super) const KEYWORDS: &[Keyword] = &[
    Keyword {
        words: &["disable", "server"],
        usage: "disable server (DEPRECATED)",
        does: "disable a server for maintenance (use 'set server' instead)",
        level: SocketLevel::Admin,
        run: |call| call.state(AdminState::Maint),
    },
    Keyword {
        words: &["enable", "server"],
        usage: "enable server  (DEPRECATED)",
        does: "enable a disabled server (use 'set server' instead)",
        level: SocketLevel::Admin,
        run: |call| call.state(AdminState::Ready),
    },
    Keyword {
        words: &["get", "weight"],
        usage: "get weight <bk>/<srv>",
        does: "report a server's current weight",
        level: SocketLevel::User,
        run: get_weight,
    },
    Keyword {
        words: &["operator"],
        usage: "operator",
        does: "lower the level of the current CLI session to operator",
        level: SocketLevel::User,
        run: |call| Answer::Level(call.level.min(SocketLevel::Operator)),
    },
    Keyword {
        words: &["set", "server"],
        usage: "set server <bk>/<srv> [opts]",
        does: "change a server's state or weight",
        level: SocketLevel::Admin,
        run: set_server,
    },
    Keyword {
        words: &["set", "timeout"],
        usage: "set timeout [cli] <delay>",
        does: "change a timeout setting",
        level: SocketLevel::User,
        run: set_timeout,
    },
    Keyword {
        words: &["set", "weight"],
        usage: "set weight <bk>/<srv>  (DEPRECATED)",
        does: "change a server's weight (use 'set server' instead)",
        level: SocketLevel::Admin,
        run: |call| call.weight(call.arg(1)),
    },
    Keyword {
        words: &["show", "backend"],
        usage: "show backend",
        does: "list backends in the current running config",
        level: SocketLevel::User,
        run: |call| Answer::Text(show::backends(&Proxies::of(&call.admin))),
    },
    Keyword {
        words: &["show", "cli", "level"],
        usage: "show cli level",
        does: "display the level of the current CLI session",
        level: SocketLevel::User,
        run: show_level,
    },
    Keyword {
        words: &["show", "info"],
        usage: "show info [json|typed]*",
        does: "report information about the running process",
        level: SocketLevel::User,
        run: |call| Answer::Text(info::show(&call.admin, call.format())),
    },
    Keyword {
        words: &["show", "servers", "conn"],
        usage: "show servers conn [<backend>]",
        does: "dump server connections status (all or for a single backend)",
        level: SocketLevel::User,
        run: show_servers_conn,
    },
    Keyword {
        words: &["show", "servers", "state"],
        usage: "show servers state [<backend>]",
        does: "dump volatile server information (all or for a single backend)",
        level: SocketLevel::User,
        run: show_servers_state,
    },
    Keyword {
        words: &["show", "sess"],
        usage: "show sess [id]",
        does: "report the list of current sessions or dump this exact session",
        level: SocketLevel::Operator,
        run: show_sess,
    },
    Keyword {
        words: &["show", "stat"],
        usage: "show stat [json|no-maint|typed|up]*",
        does: "report counters for each proxy and server",
        level: SocketLevel::User,
        run: show_stat,
    },
    Keyword {
        words: &["show", "version"],
        usage: "show version",
        does: "show version of the current process",
        level: SocketLevel::User,
        run: |_| said(env!("CARGO_PKG_VERSION")),
    },
    Keyword {
        words: &["shutdown", "session"],
        usage: "shutdown session [id]",
        does: "kill a specific session",
        level: SocketLevel::Admin,
        run: shutdown_session,
    },
    Keyword {
        words: &["shutdown", "sessions", "server"],
        usage: "shutdown sessions server <bk>/<srv>",
        does: "kill sessions on a server",
        level: SocketLevel::Admin,
        run: shutdown_sessions,
    },
    Keyword {
        words: &["user"],
        usage: "user",
        does: "lower the level of the current CLI session to user",
        level: SocketLevel::User,
        run: |_| Answer::Level(SocketLevel::User),
    },
    Keyword {
        words: &["help"],
        usage: "help [<command>]",
        does: "list matching or all commands",
        level: SocketLevel::User,
        run: |call| Answer::Text(help::help(&call.args, call.level)),
    },
    Keyword {
        words: &["prompt"],
        usage: "prompt",
        does: "toggle interactive mode with prompt",
        level: SocketLevel::User,
        run: |_| Answer::TogglePrompt,
    },
    Keyword { words: &["quit"], usage: "quit", does: "disconnect", level: SocketLevel::User, run: |_| Answer::Quit },
];
