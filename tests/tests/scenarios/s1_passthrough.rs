//! S1's table: each name reaches its backend, which sees the client's address; nothing else gets through.

use std::io::{Read as _, Write as _};

use anyhow::{Result, ensure};
use ingress_tests::lab::LabOptions;
use ingress_tests::require;
use ingress_tests::s1::{S1, TABLE};
use ingress_tests::talk::accept;
use ingress_tests::wait::PATIENCE;
use ingress_tests::wire::{Ending, UNRECOGNIZED_NAME, client_hello, ending, proxy_v2, read_exactly};
use serde_json::json;

#[test]
fn each_name_reaches_its_backend_which_sees_the_client() -> Result<()> {
    require!("nginx", "curl");
    let s1 = S1::start_on(&LabOptions { clients: 2, ..LabOptions::default() })?;
    let node = s1.node()?;
    for (pool, host, names) in TABLE {
        for name in names {
            for (n, client) in s1.lab.clients.iter().enumerate() {
                let seen = s1.curl_from(n, name).get_json("/whoami")?;
                let proxy = s1.lab.private_address(&s1.lab.backends[host]);
                assert_eq!((&seen["backend"], &seen["sni"]), (&pool.into(), &(*name).into()), "{seen}");
                assert_eq!(seen["client"], client.address.to_string(), "in the PROXY header: {seen}");
                assert_eq!(seen["forwarded_for"], client.address.to_string(), "as applications are told: {seen}");
                assert_eq!(seen["peer"], proxy.to_string(), "on the wire: {seen}");
            }
        }
    }
    node.all_in_kernel()
}

#[test]
fn shipped_example_serves_its_table() -> Result<()> {
    require!("nginx", "curl");
    let s1 = S1::example(&LabOptions::default())?;
    let node = s1.example_node()?;
    for (pool, _, names) in s1.table {
        for name in names {
            let seen = s1.curl(name).get_json("/whoami")?;
            assert_eq!(seen["backend"], pool, "{seen}");
            assert_eq!(seen["client"], s1.lab.clients[0].address.to_string(), "{seen}");
        }
    }
    node.all_in_kernel()
}

#[test]
fn both_http_versions_and_the_client_port_get_through() -> Result<()> {
    require!("nginx", "curl");
    let s1 = S1::start()?;
    let node = s1.node()?;
    let one = s1.curl("fiscalismia.com").http1().get("/whoami")?;
    let two = s1.curl("fiscalismia.com").http2().get("/whoami")?;
    assert_eq!((one.http_version.as_str(), two.http_version.as_str()), ("1.1", "2"));
    for response in [one, two] {
        let seen: serde_json::Value = serde_json::from_slice(&response.body)?;
        assert_eq!(seen["client_port"], response.local_port);
    }
    node.all_in_kernel()
}

#[test]
fn backend_receives_the_proxy_header_and_then_the_clients_very_bytes() -> Result<()> {
    require!();
    let s1 = S1::without_backends(&LabOptions::default())?;
    let host = &s1.lab.backends[0];
    let listener = host.ns.listen(host.socket(443))?;
    let node = s1.node_with(s1.config_without_checks())?;

    let hello = client_hello(Some("fiscalismia.com"))?;
    let mut client = s1.lab.clients[0].ns.connect(s1.public())?;
    client.write_all(&hello)?;
    let (mut backend, _) = listener.accept()?;
    let mut expected = proxy_v2(client.local_addr()?, s1.public());
    expected.extend(&hello);
    assert_eq!(read_exactly(&mut backend, expected.len())?, expected);

    // Whatever follows is not looked at: these are no TLS records.
    let flow = node.wait_for_flow("the connection is in the kernel", |f| f["mode"] == "kernel")?;
    assert_eq!((&flow["sni"], &flow["pool"]), (&"fiscalismia.com".into(), &"web".into()));
    client.write_all(b"ping\0\xff")?;
    assert_eq!(read_exactly(&mut backend, 6)?, b"ping\0\xff");
    backend.write_all(b"pong\xff\0")?;
    assert_eq!(read_exactly(&mut client, 6)?, b"pong\xff\0");

    // Half-close travels, and the other direction goes on.
    client.shutdown(std::net::Shutdown::Write)?;
    assert_eq!(backend.read(&mut [0; 1])?, 0);
    backend.write_all(b"late")?;
    drop(backend);
    assert_eq!(ending(&mut client, PATIENCE)?, Ending::Closed(b"late".to_vec()));

    let end = node.wait_for_log("the end of the connection", |l| l["message"] == "connection ended")?;
    assert_eq!((&end["mode"], &end["end_reason"]), (&"kernel".into(), &"closed".into()), "{end}");
    assert_eq!(end["bytes_to_backend"], hello.len() as u64 + 6, "as the client counts, without the header: {end}");
    assert_eq!(end["bytes_to_client"], 10, "{end}");
    Ok(())
}

/// Only whom the listener trusts may say who the client is (`accept_proxy_from`).
#[test]
fn proxy_header_of_a_client_is_refused() -> Result<()> {
    require!();
    let s1 = S1::without_backends(&LabOptions::default())?;
    let host = &s1.lab.backends[0];
    let backend = host.ns.listen(host.socket(443))?;
    let mut config = s1.config_without_checks();
    let plain = s1.lab.public(6379);
    config["listeners"]["plain"] = json!({ "bind": [plain.to_string()], "protocol": "tcp", "pool": "web" });
    let node = s1.node_with(config)?;
    let hello = client_hello(Some("fiscalismia.com"))?;
    let forged = proxy_v2("198.51.100.7:1".parse()?, s1.public());

    let mut client = s1.lab.clients[0].ns.connect(s1.public())?;
    client.write_all(&[forged.as_slice(), &hello].concat())?;
    let end = ending(&mut client, PATIENCE)?;
    assert!(matches!(end, Ending::Reset | Ending::Closed(_)), "{end:?}");
    let cause = r#"cause="untrusted_proxy_header""#;
    assert_eq!(node.metric("ingress_connections_refused_total", &[cause])?, 1.0);

    // Where no hello is read, it is the client's payload, behind a header of ours that names who it is.
    let mut client = s1.lab.clients[0].ns.connect(plain)?;
    client.write_all(&forged)?;
    let ours = proxy_v2(client.local_addr()?, plain);
    let mut at_backend = accept(&backend)?;
    assert_eq!(read_exactly(&mut at_backend, ours.len() + forged.len())?, [ours, forged].concat());
    node.all_in_kernel()
}

#[test]
fn unknown_name_and_missing_name_get_the_alert() -> Result<()> {
    require!("nginx", "openssl");
    let s1 = S1::start()?;
    let node = s1.node()?;
    for name in [Some("unknown.example.com"), Some("www.fiscalismia.com"), None] {
        let mut stream = s1.lab.clients[0].ns.connect(s1.public())?;
        stream.write_all(&client_hello(name)?)?;
        assert_eq!(ending(&mut stream, PATIENCE)?, Ending::Alert(UNRECOGNIZED_NAME), "{name:?}");
    }
    let words = ["-servername", "unknown.example.com"];
    let said = ingress_tests::client::s_client(&s1.lab.clients[0].ns, s1.public(), &words)?;
    ensure!(said.contains("unrecognized name"), "openssl s_client said: {said}");

    let refused = |cause: &str| node.metric("ingress_connections_refused_total", &[cause]);
    assert_eq!(refused("cause=\"unknown_sni\"")?, 3.0);
    assert_eq!(refused("cause=\"no_sni\"")?, 1.0);
    Ok(())
}

#[test]
fn default_pool_takes_what_no_route_claims() -> Result<()> {
    require!("nginx", "curl");
    let s1 = S1::start()?;
    let mut config = s1.config();
    config["listeners"]["tls"]["default"] = serde_json::json!({ "pool": "monitoring" });
    config["routes"][0]["sni"] = serde_json::json!(["*.fiscalismia.com"]);
    let node = s1.node_with(config)?;
    // The wildcard stands for one label; the exact name one route further wins over it.
    for (asked, expected) in [
        ("www.fiscalismia.com", "web"),
        ("backend.fiscalismia.com", "api"),
        ("a.b.fiscalismia.com", "monitoring"),
        ("fiscalismia.com", "monitoring"),
    ] {
        let seen = s1.curl(asked).arg("--insecure").get_json("/whoami")?;
        assert_eq!((&seen["backend"], &seen["sni"]), (&expected.into(), &asked.into()));
    }
    node.all_in_kernel()
}
