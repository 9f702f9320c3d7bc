//! `config::parse`: any text is either a configuration whose references hold, or is told where it is wrong.

use std::path::Path;

use ingress::config::{Config, DefaultRoute, ListenerProtocol, Problems, parse};

pub fn check(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let file = Path::new("ingress.yaml");
    let parsed = parse(text, file);
    assert_eq!(parsed, parse(text, file), "parsed twice");
    match parsed {
        Ok(config) => check_references(&config),
        Err(problems) => check_problems(text, &problems),
    }
}

fn check_references(config: &Config) {
    for route in &config.routes {
        assert!(config.pools.contains_key(&route.pool), "route {} has a pool", route.name);
        assert!(!route.sni.is_empty(), "route {} has a name to match", route.name);
        for listener in &route.listeners {
            assert!(config.listeners.contains_key(listener), "route {} has its listeners", route.name);
        }
    }
    for (name, listener) in &config.listeners {
        assert!(!listener.bind.is_empty(), "listener {name} has an address");
        let pool = match &listener.protocol {
            ListenerProtocol::Tls { default: DefaultRoute::Pool(pool) } | ListenerProtocol::Tcp { pool } => pool,
            ListenerProtocol::Tls { default: DefaultRoute::Reject } => continue,
        };
        assert!(config.pools.contains_key(pool), "listener {name} has its pool");
    }
    let (first, last) = config.kernel.port_range;
    assert!(first <= last);
}

fn check_problems(text: &str, problems: &Problems) {
    assert!(problems.has_errors(), "refused without an error");
    assert!(problems.len() <= Problems::LIMIT);
    // An end of file that is missed stands one line below the last.
    let lines = text.split(['\n', '\r']).count() + 1;
    for problem in problems {
        assert!((1..=lines).contains(&problem.place.line), "{problem} is in the file");
        assert!(problem.place.column >= 1, "{problem} is in its line");
        assert!(!problem.message.is_empty());
    }
    assert!(format!("{problems}").len() <= format!("{problems:#}").len());
}
