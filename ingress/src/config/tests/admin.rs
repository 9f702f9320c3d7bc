//! The keys of `admin` that say more than one word.

use std::path::Path;

use crate::config::{HaproxySocketConfig, SocketLevel, parse};

fn socket(text: &str) -> Result<HaproxySocketConfig, String> {
    let text = format!("listeners: {{tls: {{bind: ':443'}}}}\nadmin:\n  haproxy_socket: {text}\n");
    match parse(&text, Path::new("ingress.yaml")) {
        Ok(config) => Ok(config.admin.haproxy_socket.expect("it is written")),
        Err(problems) => Err(problems.iter().map(ToString::to_string).next().unwrap_or_default()),
    }
}

#[test]
fn haproxys_socket_is_roots_own_unless_it_says_otherwise() {
    let plain = socket("{path: /run/haproxy/admin.sock}").expect("good");
    assert_eq!((plain.mode, plain.group, plain.level), (0o600, None, SocketLevel::Admin));
    for mode in ["0660", "660", "'0660'"] {
        let shared = socket(&format!("{{path: /run/x.sock, mode: {mode}, group: haproxy, level: operator}}"));
        let shared = shared.expect("good");
        assert_eq!(
            (shared.mode, shared.group.as_deref(), shared.level),
            (0o660, Some("haproxy"), SocketLevel::Operator)
        );
    }
}

#[test]
fn what_makes_no_socket_is_named_with_its_place() {
    for (text, expected) in [
        ("{path: admin.sock}", "absolute path"),
        ("{path: /run/x.sock, mode: 0888}", "write three octal digits, such as 0660"),
        ("{path: /run/x.sock, level: root}", "level"),
        ("{path: /run/ingress/admin.sock}", "3:26: error: admin.haproxy_socket.path: is `admin.socket` already"),
        ("{mode: 0660}", "path"),
    ] {
        let problem = socket(text).expect_err(text);
        assert!(problem.contains(expected), "{text}: {problem}");
    }
}
