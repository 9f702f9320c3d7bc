//! The grammar, on a daemon made of fakes.

use super::commands::{Answer, KEYWORDS, run};
use super::words;
use crate::admin::fixture::Daemon;
use crate::config::SocketLevel;

/// What is answered, without the empty line.
async fn said(daemon: &Daemon, line: &str, level: SocketLevel) -> String {
    let words = words::commands(line).remove(0);
    let admin = daemon.admin.clone();
    let answer =
        tokio::task::spawn_blocking(move || run(&words, admin, level, "alice".into())).await.expect("no panic");
    match answer {
        Answer::Text(text) => text,
        other @ (Answer::TogglePrompt | Answer::Quit | Answer::Level(_) | Answer::Timeout(_)) => format!("{other:?}"),
    }
}

#[tokio::test]
async fn wrong_commands_get_haproxys_own_complaints() {
    let daemon = Daemon::start(None);
    for (line, expected) in [
        ("set server", "Require 'backend/server'.\n"),
        ("set server app", "Require 'backend/server'.\n"),
        ("set server app/", "Require 'backend/server'.\n"),
        ("set server nope/x state drain", "No such backend.\n"),
        ("set server app/x state drain", "No such server.\n"),
        ("set server app/192.0.2.7:443 state", "'set server <srv> state' expects 'ready', 'drain' and 'maint'.\n"),
        ("set server app/192.0.2.7:443 weight", "Require <weight> or <weight%>.\n"),
        ("set server app/192.0.2.7:443 weight 257", "Absolute weight can only be between 0 and 256 inclusive.\n"),
        ("set server app/192.0.2.7:443 state drain", ""),
        ("set weight app/192.0.2.7:443 50%", ""),
        ("disable server app/192.0.2.7:443", ""),
        ("get weight app/192.0.2.7:443", "1 (initial 1)\n"),
        ("show servers state nope", "Can't find backend.\n"),
        ("show stat nope -1 -1", "No such proxy.\n"),
        ("show sess 0x55", "Session not found.\n"),
        ("shutdown session", "Session pointer expected (use 'show sess').\n"),
        ("show cli level", "admin\n"),
        ("quit", "Quit"),
    ] {
        assert_eq!(said(&daemon, line, SocketLevel::Admin).await, expected, "{line}");
    }
}

#[tokio::test]
async fn unknown_commands_are_answered_with_those_that_are_near() {
    let daemon = Daemon::start(None);
    let near = said(&daemon, "shutdown everything", SocketLevel::Admin).await;
    assert!(near.starts_with("Unknown command, but maybe one of the following ones is a better match:\n"), "{near}");
    assert_eq!(near.lines().count(), 6, "two that begin so, and the session's own: {near}");
    let far = said(&daemon, "foo", SocketLevel::Admin).await;
    assert!(far.starts_with("Unknown command. Please enter one of the following commands only:\n"), "{far}");
    assert_eq!(far.lines().count(), KEYWORDS.len() + 1);
    assert!(far.contains("\n  show backend                            : list backends"), "{far}");
}

#[tokio::test]
async fn a_level_says_no_to_what_is_above_it() {
    let daemon = Daemon::start(None);
    for (line, level) in [
        ("set server app/192.0.2.7:443 state drain", SocketLevel::Operator),
        ("shutdown session 0x1", SocketLevel::Operator),
        ("show sess", SocketLevel::User),
    ] {
        assert_eq!(said(&daemon, line, level).await, "Permission denied\n", "{line}");
    }
    assert_eq!(said(&daemon, "operator", SocketLevel::User).await, "Level(User)", "nobody raises himself");
    assert!(!said(&daemon, "help", SocketLevel::User).await.contains("set server"));
    assert!(
        said(&daemon, "show sess", SocketLevel::Operator).await.starts_with("0x1: proto=tcpv4 src=192.0.2.100:40000")
    );
}

#[tokio::test]
async fn numbers_are_those_of_the_daemon() {
    let daemon = Daemon::start(None);
    let stat = said(&daemon, "show stat", SocketLevel::User).await;
    let rows: Vec<_> = stat.lines().skip(1).map(|line| line.split(',').collect::<Vec<_>>()).collect();
    let named: Vec<_> = rows.iter().map(|row| (row[0], row[1])).collect();
    let expected = [("public", "FRONTEND"), ("spare", "FRONTEND"), ("app", "192.0.2.7:443"), ("app", "BACKEND")];
    assert_eq!(named, expected);
    assert_eq!((rows[0][7], rows[0][10], rows[0][17]), ("4", "1", "OPEN"), "accepted, refused by rule, status");
    assert_eq!((rows[1][17], rows[2][17], rows[3][17]), ("STOP", "no check", "UP"));
    let only = said(&daemon, "show stat app 4 1", SocketLevel::User).await;
    assert_eq!(only.lines().count(), 2, "{only}");
    let state = said(&daemon, "show servers state app", SocketLevel::User).await;
    assert!(state.starts_with("1\n# be_id be_name srv_id "), "{state}");
    let fields: Vec<_> = state.lines().nth(2).expect("one server").split(' ').collect();
    assert_eq!(fields.len(), state.lines().nth(1).expect("a header").split(' ').count() - 1);
    assert_eq!((fields[1], fields[3], fields[5], fields[6]), ("app", "192.0.2.7:443", "2", "0"));
    let info = said(&daemon, "show info", SocketLevel::User).await;
    assert!(info.starts_with("Name: ingress\nVersion: ") && info.contains("\nCurrConns: 3\n"), "{info}");
}
