//! What is refused, or only warned of, is told with its place and what to do.

use super::{problems, with};
use crate::config::load;

/// Structure, words, references and conflicts, in one go.
#[test]
fn all_mistakes_of_a_file_are_told_at_once() {
    let text = "\
listeners:
  https:
    bind: 203.0.113.10
    idle_timout: 1h
  web:
    bind: [':443', 127.0.0.1:443]
    protocol: tsl
    default: {pol: app}
routes:
  - sni: app.example.com
    pool: ap
  - sni: [www.example.com, App.example.com]
    pool: app
  - {sni: '*.*.example.com', pool: app}
  - {pool: app, listeners: [htps]}
pools:
  app:
    balance: rr
    backends:
      - 10.0.0.3:8443
      - {address: '10.0.0.3:8443', weight: 300}
      - 10.0.0.3:8443
    health: {type: tcp, interval: 2, path: /x}
  app:
    backends: []
  old:
    backends: []
    health: {type: http, interval: 1s, timeout: 5s, port: 70000}
limits: {max_connections: many}
kernel:
  port_range: 32767-20000
  pin_dir: run
  interfaces:
log: {connections: all}
";
    let expected = "\
3:11: error: listeners.https.bind: 203.0.113.10 has no port; write 203.0.113.10:443
4:5: error: listeners.https.idle_timout: unknown key \"idle_timout\"; did you mean \"idle_timeout\"?
6:20: error: listeners.web.bind[1]: 127.0.0.1:443 is already bound by listener web in line 6
7:15: error: listeners.web.protocol: unknown value \"tsl\"; did you mean \"tls\"?
8:15: error: listeners.web.default.pol: unknown key \"pol\"; did you mean \"pool\"?
11:11: error: routes[0].pool: there is no pool \"ap\"; did you mean \"app\"?
12:28: error: routes[1].sni[1]: app.example.com is already routed in line 10
14:11: error: routes[2].sni: \"*.*.example.com\": a star stands for the whole first label only, as in *.example.com
15:5: error: routes[3]: the key `sni` is missing
18:14: error: pools.app.balance: unknown value \"rr\"; did you mean \"round_robin\"?
21:9: error: pools.app.backends[1]: a backend \"10.0.0.3:8443\" is already in this pool (line 20); give it another `name`
21:44: error: pools.app.backends[1].weight: expected a whole number from 0 to 256, found 300
22:9: error: pools.app.backends[2]: a backend \"10.0.0.3:8443\" is already in this pool (line 20); give it another `name`
23:35: error: pools.app.health.interval: 2 has no unit; write 2s for seconds, or 2ms
23:38: error: pools.app.health.path: this key needs `type: http` or `type: https`
24:3: error: pools.app: this key stands twice; the first is in line 17
27:15: error: pools.old.backends: the list is empty; a pool needs a backend
28:49: error: pools.old.health.timeout: the timeout (5s) is longer than the interval (1s): checks would overlap
28:59: error: pools.old.health.port: expected a whole number from 1 to 65535, found 70000
29:27: error: limits.max_connections: expected a whole number from 1 to 100000000, found \"many\"
31:15: error: kernel.port_range: 32767-20000: the first port must be smaller than the last
32:12: error: kernel.pin_dir: \"run\" is not an absolute path; it must begin with /
33:3: error: kernel.interfaces: this key has no value; write a list, or remove the key
34:20: error: log.connections: unknown value \"all\"; expected end, both or none";
    assert_eq!(problems(text).join("\n"), expected);
}

#[test]
fn values_that_do_not_go_together_are_told() {
    for (from, to, expected) in [
        (
            "https: {bind: ':443'}",
            "https: {bind: ':443', protocol: tcp}",
            "3:35: error: listeners.https.protocol: a `tcp` listener needs a pool; add `pool: ...`",
        ),
        (
            "https: {bind: ':443'}",
            "https: {bind: ':443', pool: app}",
            "3:25: error: listeners.https.pool: a `tls` listener finds its pool by SNI; write `default: {pool: ...}` for \
             the rest",
        ),
        (
            "https: {bind: ':443'}",
            "https: {bind: ':443'}\n  redis: {bind: ':6379', protocol: tcp, pool: app, default: reject}",
            "4:52: error: listeners.redis.default: a `tcp` listener has no SNI and so no default; write `pool: ...`",
        ),
        (
            "pool: app}",
            "pool: app, listeners: [http]}",
            "5:51: error: routes[0].listeners[0]: there is no listener \"http\"; did you mean \"https\"?",
        ),
        (
            "pool: app}",
            "pool: app}\n  - {sni: [x.example.com, x.example.com], pool: app}",
            "6:27: error: routes[1].sni[1]: x.example.com is already routed in line 6",
        ),
        (
            "pool: app}",
            "pool: app, name: a}\n  - {sni: x.example.com, pool: app, name: a}",
            "6:43: error: routes[1].name: the route in line 5 is called a too; give this one another `name`",
        ),
        (
            "backends: [10.0.0.3:8443]",
            "backends: [10.0.0.3:8443], proxy_protocol: {version: v1, tlvs: [alpn]}",
            "7:73: error: pools.app.proxy_protocol.tlvs[0]: a v1 header cannot carry TLVs; write `version: v2`",
        ),
        (
            "backends: [10.0.0.3:8443]",
            "backends: [10.0.0.3:8443], connect_timeout: 0s",
            "7:53: error: pools.app.connect_timeout: must be longer than 0s",
        ),
        (
            "backends: [10.0.0.3:8443]",
            "backends: []",
            "7:19: error: pools.app.backends: the list is empty; a pool needs a backend",
        ),
        (
            "backends: [10.0.0.3:8443]",
            "backends: [10.0.0.3:8443], health: {interval: 5s}",
            "7:44: error: pools.app.health: the key `type` is missing",
        ),
        (
            "backends: [10.0.0.3:8443]",
            "backends: [10.0.0.3:8443], handoff: {rtt_below: 1s, when_idle: 1s}",
            "7:45: error: pools.app.handoff: needs either `rtt_below` or `when_idle`",
        ),
        ("sni: app.example.com, ", "sni: [], ", "5:11: error: routes[0].sni: the list is empty; name a host"),
    ] {
        assert_eq!(problems(&with(from, to)), [expected]);
    }
}

#[test]
fn routes_of_different_listeners_may_share_a_name() {
    let text = with("https: {bind: ':443'}", "a: {bind: ':443'}\n  b: {bind: ':444'}").replace(
        "- {sni: app.example.com, pool: app}",
        "- {sni: app.example.com, pool: app, listeners: [a]}\n  - {sni: app.example.com, pool: app, listeners: [b], name: b}",
    );
    assert_eq!(problems(&text), [""; 0]);
}

#[test]
fn the_same_address_on_two_devices_is_no_conflict() {
    let two = "a: {bind: ':443', device: eth0}\n  b: {bind: ':443', device: eth1}";
    assert_eq!(problems(&with("https: {bind: ':443'}", two)), [""; 0]);
    let one = "b: {bind: ':443', device: eth0}\n  a: {bind: '127.0.0.1:443', device: eth0}";
    let expected = "4:13: error: listeners.a.bind: 127.0.0.1:443 is already bound by listener b in line 3";
    assert_eq!(problems(&with("https: {bind: ':443'}", one)), [expected]);
}

#[test]
fn warnings_do_not_refuse_a_file() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("ingress.yaml");
    let text = with("https: {bind: ':443'}", "https: {bind: ':443', accept_proxy_from: [0.0.0.0/0]}")
        + "  unused: {backends: [{address: '10.0.0.4:1', weight: 0}]}\n\
           admin: {http: {bind: ':8404', basic_auth: {username_env: INGRESS_TEST_UNSET_A, password_env: PATH}}}";
    std::fs::write(&path, &text).expect("a file is written");
    let loaded = load(&path).expect("there are only warnings");
    assert_eq!(loaded.text, text);
    let warnings: Vec<_> = loaded.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(
        warnings,
        [
            "2:1: warning: the last line has no end; is the file whole?",
            "3:45: warning: listeners.https.accept_proxy_from[0]: everybody may claim any client address; name only the \
             networks of your own proxies",
            "8:3: warning: pools.unused: no route and no listener uses pool unused",
            "8:22: warning: pools.unused.backends: every backend has weight 0: the pool takes no connection",
            "9:58: warning: admin.http.basic_auth.username_env: the environment has no INGRESS_TEST_UNSET_A: nobody can \
             log in until it is set",
        ]
    );
}
