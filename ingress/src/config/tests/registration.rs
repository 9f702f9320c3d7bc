//! The keys of the registration API.

use crate::config::load;

/// Warnings too.
fn problems(text: &str) -> Vec<String> {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("ingress.yaml");
    std::fs::write(&path, text).expect("a file");
    let problems = match load(&path) {
        Ok(loaded) => loaded.warnings,
        Err(crate::config::LoadError::Problems(problems)) => problems,
        Err(error) => panic!("{error}"),
    };
    problems.iter().map(ToString::to_string).collect()
}

const GOOD: &str = "listeners: {tls: {bind: ':443'}}
providers:
  platform:
    registration:
      bind: 10.0.0.2:9876
      sources: 10.0.0.0/16
      upstreams: 10.0.0.0/16
      tokens: {servers: {env: REGISTRATION_TOKEN}}
";

#[test]
fn what_would_be_open_to_everybody_or_to_nobody_is_named() {
    assert_eq!(problems(GOOD), [""; 0]);
    for (from, to, expected) in [
        (
            "10.0.0.2:9876",
            "':9876'",
            "5:13: error: providers.platform.registration.bind: this would listen on every network; write an address of \
             the private one, or name its `device`",
        ),
        (
            "10.0.0.2:9876",
            "203.0.113.1:9876",
            "5:13: warning: providers.platform.registration.bind: this is not an address of a private network: the API \
             belongs behind one",
        ),
        (
            "bind: 10.0.0.2:9876",
            "bind: 10.0.0.2:443",
            "5:13: error: providers.platform.registration.bind: 10.0.0.2:443 is already bound by listener tls in line 1",
        ),
        (
            "sources: 10.0.0.0/16",
            "sources: 0.0.0.0/0",
            "6:16: warning: providers.platform.registration.sources: this is every address; name only networks of your own",
        ),
        (
            "{servers: {env: REGISTRATION_TOKEN}}",
            "{}",
            "8:15: error: providers.platform.registration.tokens: there is no token, so nobody could register; write \
             `tokens: {name: {file: ...}}`",
        ),
        (
            "{env: REGISTRATION_TOKEN}",
            "{}",
            "8:25: error: providers.platform.registration.tokens.servers: this token has no source; write `file: /path`, \
             or `env: NAME`",
        ),
        (
            "{env: REGISTRATION_TOKEN}",
            "{env: REGISTRATION_TOKEN, file: /run/token}",
            "8:26: error: providers.platform.registration.tokens.servers.env: a token has one source; write `file` or `env`",
        ),
        (
            "      tokens:",
            "      templates: {full: {headers: {X-Token: token}}}\n      tokens:",
            "8:25: error: providers.platform.registration.templates.full: this template leads nowhere; write `routes` or \
             `passthrough`",
        ),
        (
            "      tokens:",
            "      templates: {full: {routes: [{port: 1}, {path: /*, port: 2}]}}\n      tokens:",
            "8:53: error: providers.platform.registration.templates.full.routes[1].path: this path stands in this template \
             already",
        ),
        (
            "    registration:",
            "    last_good: off\n    registration:",
            "4:5: error: providers.platform.last_good: registrations are kept until they end; this key has no meaning here",
        ),
    ] {
        let found = problems(&GOOD.replace(from, to));
        assert_eq!(found.first().map(String::as_str), Some(expected), "{found:?}");
    }
}

#[test]
fn every_address_is_fine_on_a_device() {
    assert_eq!(problems(&GOOD.replace("10.0.0.2:9876", "':9876'\n      device: eth1")), [""; 0]);
}
