use std::path::Path;

use proptest::prelude::*;

use super::import;
use crate::config::{Config, parse};
use crate::import::Draft;

fn draft(text: &str) -> Draft {
    import(&[("haproxy.cfg".to_owned(), text.to_owned())]).expect("a configuration of HAProxy")
}

fn config(draft: &Draft) -> Config {
    let text = draft.to_string();
    parse(&text, Path::new("ingress.yaml")).unwrap_or_else(|problems| panic!("{problems:#}\n{text}"))
}

fn told(draft: &Draft) -> Vec<String> {
    draft.left_out.iter().map(|left_out| format!("{}: {}", left_out.place, left_out.why)).collect()
}

const WHOLE: &str = "\
global
    maxconn 4096
    log /dev/log local0
defaults
    mode tcp
    option tcplog
    timeout connect 5s
    timeout client 10m
    timeout server 10m
    default-server inter 3s fall 2
frontend tls
    bind 192.0.2.1:443,[2001:db8::1]:443 interface eth0
    maxconn 2000
    tcp-request inspect-delay 3s
    tcp-request content accept if { req.ssl_hello_type 1 }
    acl app req.ssl_sni -i app.example.com www.example.com
    use_backend app if app
    default_backend rest
backend app
    balance leastconn
    option httpchk
    http-check send meth GET uri /healthz hdr Host app.example.com
    http-check expect status 200,204
    server a 10.0.0.1:8443 check check-ssl send-proxy-v2 weight 2
    server b 10.0.0.2:8443 check check-ssl send-proxy-v2 backup
backend rest
    server r 10.0.0.4:443
listen redis
    bind 127.0.0.1:6379
    server r1 10.0.0.7:6379 check on-marked-down shutdown-sessions
";

#[test]
fn a_whole_file_is_carried_over() {
    let draft = draft(WHOLE);
    assert_eq!(
        draft.to_string(),
        r#"# Not carried over, or not as it was:
#   haproxy.cfg:2: maxconn 4096: write limits.max_connections
listeners:
  tls:
    bind: ["192.0.2.1:443", "[2001:db8::1]:443"]
    device: eth0
    default: {pool: rest}
    hello_timeout: 3s
    idle_timeout: 10m
    max_connections: 2000
  redis:
    bind: "127.0.0.1:6379"
    protocol: tcp
    pool: redis
    idle_timeout: 10m
routes:
  - {sni: [app.example.com, www.example.com], pool: app}
pools:
  app:
    backends:
      - {address: "10.0.0.1:8443", weight: 2, name: a}
    fallback:
      - {address: "10.0.0.2:8443", name: b}
    balance: least_connections
    proxy_protocol: v2
    connect_timeout: 5s
    health:
      type: https
      interval: 3s
      timeout: 3s
      rise: 2
      fall: 2
      path: /healthz
      host: app.example.com
      expect: ["200", "204"]
  rest:
    backends:
      - {address: "10.0.0.4:443", name: r}
    connect_timeout: 5s
  redis:
    backends:
      - {address: "10.0.0.7:6379", name: r1}
    connect_timeout: 5s
    on_down: cut
    health:
      type: tcp
      interval: 3s
      timeout: 3s
      rise: 2
      fall: 2
"#
    );
    config(&draft);
}

#[test]
fn a_name_goes_where_the_first_rule_sends_it() {
    let draft = draft(
        "\
frontend tls
    bind :443
    use_backend a if { req.ssl_sni -m end .example.com }
    use_backend b if { req.ssl_sni x.example.com y.z.example.com }
    use_backend b if { req.ssl_sni one.example.org }
    use_backend a if { req.ssl_sni one.example.org two.example.org }
backend a
    server s 10.0.0.1:443
backend b
    server s 10.0.0.2:443
",
    );
    let routes: Vec<_> = draft.routes.iter().map(|route| (route.pool.as_str(), route.sni.join(" "))).collect();
    let expected = [("a", "*.example.com y.z.example.com"), ("b", "one.example.org"), ("a", "two.example.org")];
    assert_eq!(routes, expected.map(|(pool, names)| (pool, names.to_owned())));
    let told = told(&draft);
    for start in [
        "haproxy.cfg:3: `-m end .example.com`: *.example.com stands for exactly one label",
        "haproxy.cfg:4: x.example.com goes where line 3 sends it",
        "haproxy.cfg:4: y.z.example.com goes where line 3 sends it",
        "haproxy.cfg:6: one.example.org goes where line 5 sends it",
    ] {
        assert!(told.iter().any(|line| line.starts_with(start)), "{start}\n{told:#?}");
    }
    assert_eq!(told.len(), 4, "{told:#?}");
    config(&draft);
}

#[test]
fn what_is_not_carried_over_is_named_with_its_line() {
    let text = "\
resolvers dns
    nameserver a 10.0.0.1:53
frontend tls
    bind :443 accept-proxy
    bind :444 ssl crt a.pem
    bind \"${ADDRESS}:445\"
    tcp-request connection reject if { src 10.0.0.0/8 }
    use_backend %[req.ssl_sni,map(a.map)] if { req.ssl_sni -m found }
    use_backend web if { req.ssl_sni web.example.com }
    use_backend nowhere if { req.ssl_sni nowhere.example.com }
    use_backend app if { req.ssl_sni app.example.com }
    stick-table type ip size 1m
backend app
    balance uri
    server a 10.0.0.1:443 track b/c
    server b 10.0.0.2:443 ssl verify none
    server c 10.0.0.3
backend web
    mode http
    server w 10.0.0.4:80
backend unused
    server u 10.0.0.5:80
frontend www
    mode http
    bind :80
";
    let draft = draft(text);
    let told = told(&draft).join("\n");
    for (line, why) in [
        (1, "section resolvers dns"),
        (4, "accept_proxy_from"),
        (5, "needs TLS termination"),
        (6, "environment"),
        (7, "tcp-request connection reject"),
        (8, "a map or an expression"),
        (9, "mode http needs HTTP"),
        (10, "no such backend"),
        (12, "stick-table type ip size 1m"),
        (14, "balance uri"),
        (15, "track b/c"),
        (16, "TLS to the server"),
        (17, "no port"),
        (21, "nothing that was carried over leads there"),
        (23, "www: mode http needs HTTP"),
    ] {
        let place = format!("haproxy.cfg:{line}: ");
        assert!(told.lines().any(|l| l.starts_with(&place) && l.contains(why)), "{place}{why}\n{told}");
    }
    assert_eq!(config(&draft).pools.len(), 1);
}

#[test]
fn defaults_hold_for_the_sections_behind_them_and_names_choose_others() {
    let draft = draft(
        "\
defaults slow
    timeout client 5m
defaults
    timeout client 1m
    mode http
listen a
    mode tcp
    bind 127.0.0.1:1
    server s 10.0.0.1:1
listen b from slow
    bind 127.0.0.1:2
    server s 10.0.0.1:2
",
    );
    let idle: Vec<_> = draft.listeners.iter().map(|l| l.idle_timeout.map(|time| time.as_secs())).collect();
    assert_eq!(idle, [Some(60), Some(300)]);
}

#[test]
fn a_text_that_is_none_is_refused_with_its_line() {
    let refused = |text: &str| import(&[("a.cfg".to_owned(), text.to_owned())]).expect_err("refused");
    assert!(refused("global\n\nfrontend 'x").starts_with("a.cfg:3: a quote"));
    assert!(refused("listeners:\n").starts_with("a.cfg:1: `listeners:` stands in no section"));
    assert!(refused("frontend\n").starts_with("a.cfg:1: a name"));
    assert!(refused("listen a from b\n").starts_with("a.cfg:1: there is no `defaults b`"));
}

proptest! {
    /// Whatever stands there, it is read or refused; and what is read becomes text that the parser can answer.
    #[test]
    fn no_text_panics(text in "\\PC{0,200}", words in proptest::collection::vec((0..WORDS.len(), any::<bool>()), 0..120)) {
        drop(import(&[("a".to_owned(), text)]));
        let mut lines = String::from("frontend f\n");
        for (word, ends) in words {
            lines.push_str(WORDS[word]);
            lines.push(if ends { '\n' } else { ' ' });
        }
        if let Ok(draft) = import(&[("a".to_owned(), WHOLE.to_owned()), ("b".to_owned(), lines)]) {
            drop(parse(&draft.to_string(), Path::new("ingress.yaml")));
        }
    }
}

const WORDS: &[&str] = &[
    "frontend",
    "backend",
    "listen",
    "defaults",
    "from",
    "f",
    "acl",
    "use_backend",
    "if",
    "unless",
    "{",
    "}",
    "!",
    "or",
    "req.ssl_sni",
    "-m",
    "end",
    "dom",
    ".example.com",
    "a.example.com",
    "-i",
    "--",
    "bind",
    ":443",
    "[::]:1",
    "interface",
    "server",
    "s",
    "10.0.0.1:1",
    "check",
    "weight",
    "300",
    "port",
    "inter",
    "-1",
    "default_backend",
    "option",
    "httpchk",
    "http-check",
    "expect",
    "status",
    "200-",
    "send",
    "hdr",
    "timeout",
    "client",
    "99999999d",
    "balance",
    "no",
    "tcp-request",
    "content",
    "accept",
    "inspect-delay",
    "\"\"",
    "\u{e9}",
    "@",
    ":",
    "*:0",
    "backup",
    "proxy-v2-options",
    "send-proxy-v2",
];
