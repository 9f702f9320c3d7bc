//! The keys of the shared store.

use std::path::Path;

use crate::config::{EtcdConfig, EtcdLogin, TokenSource, parse};

fn etcd(text: &str) -> Result<EtcdConfig, String> {
    let text = format!("listeners: {{tls: {{bind: ':443'}}}}\netcd:\n{text}");
    match parse(&text, Path::new("ingress.yaml")) {
        Ok(config) => Ok(config.etcd.expect("it is written")),
        Err(problems) => Err(problems.iter().map(ToString::to_string).next().unwrap_or_default()),
    }
}

#[test]
fn endpoints_prefix_and_login_are_taken_as_they_are_written() {
    let text = "  node: a\n  endpoints: ['https://10.0.0.11:2379/', 'https://etcd.example.com:2379']\n  prefix: /site/\n  \
                username: ingress\n  password_env: ETCD_PASSWORD\n  tls: {ca_file: /ca, cert_file: /c, key_file: /k}\n";
    let found = etcd(text).expect("good");
    assert_eq!(found.endpoints, ["https://10.0.0.11:2379", "https://etcd.example.com:2379"]);
    assert_eq!((found.prefix.as_str(), found.timeout.as_secs()), ("/site", 2));
    let password = TokenSource::Env("ETCD_PASSWORD".into());
    assert_eq!(found.login, Some(EtcdLogin { username: "ingress".into(), password }));
    assert!(found.identity.is_some() && found.ca_file.is_some());
    let plain = etcd("  node: a\n  endpoints: http://10.0.0.11:2379\n").expect("good");
    assert_eq!((plain.prefix.as_str(), plain.login), ("/ingress", None));
}

#[test]
fn what_cannot_work_is_named_with_its_place() {
    let good = "  node: a\n  endpoints: http://10.0.0.11:2379\n";
    for (text, expected) in [
        (
            "  node: a\n  endpoints: http://10.0.0.11:2379/v3\n",
            "4:14: error: etcd.endpoints: write scheme, host and port only, such as https://10.0.0.11:2379",
        ),
        ("  node: a\n  endpoints: []\n", "4:14: error: etcd.endpoints: the list is empty; name the client URL"),
        (&format!("{good}  username: u\n"), "5:13: error: etcd.username: this user has no password; write"),
        (&format!("{good}  password_env: P\n"), "5:3: error: etcd.password_env: a password without `username`"),
        (
            &format!("{good}  tls: {{cert_file: /c}}\n"),
            "5:8: error: etcd.tls: `cert_file` and `key_file` belong together",
        ),
        (&format!("{good}  prefix: /\n"), "5:11: error: etcd.prefix: this would be all of etcd"),
        (
            &format!("{good}peers: {{node: a, bind: '10.0.0.1:9877'}}\n"),
            "2:1: error: etcd: there is `peers` too; registrations have one home: write one of the two",
        ),
    ] {
        let found = etcd(text).expect_err(text);
        assert!(found.starts_with(expected), "{found}\n{expected}");
    }
}
