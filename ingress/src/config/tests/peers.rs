//! The keys of the mesh.

use std::path::Path;

use crate::config::{PeersConfig, parse};

fn peers(text: &str) -> Result<PeersConfig, String> {
    let text = format!("listeners: {{tls: {{bind: ':443'}}}}\npeers:\n{text}");
    match parse(&text, Path::new("ingress.yaml")) {
        Ok(config) => Ok(config.peers.expect("it is written")),
        Err(problems) => Err(problems.iter().map(ToString::to_string).next().unwrap_or_default()),
    }
}

#[test]
fn others_reach_a_node_where_it_listens_unless_it_says_otherwise() {
    let plain = peers("  node: proxy-1\n  bind: 10.0.0.2:9877\n").expect("good");
    assert_eq!((plain.node.as_str(), plain.address), ("proxy-1", "10.0.0.2:9877".parse().expect("an address")));
    let behind = peers("  node: proxy-1\n  bind: ':9877'\n  device: eth1\n  address: 10.0.0.9:9877\n").expect("good");
    assert_eq!((behind.bind.len(), behind.address), (2, "10.0.0.9:9877".parse().expect("an address")));
}

#[test]
fn what_nobody_could_reach_or_everybody_could_is_named_with_its_place() {
    for (text, expected) in [
        (
            "  node: proxy-1\n  bind: ':9877'\n",
            "4:9: error: peers.bind: this would listen on every network; write an address of the private one, or name its \
             `device`",
        ),
        (
            "  node: proxy-1\n  bind: ':9877'\n  device: eth1\n",
            "4:9: error: peers.bind: no other node can connect to this; write `address: 10.0.0.1:9877`",
        ),
        (
            "  node: proxy-1\n  bind: 10.0.0.2:9877\n  address: ':443'\n",
            "5:12: error: peers.address: no other node can connect to this; write `address: 10.0.0.1:9877`",
        ),
        ("  node: 'two words'\n  bind: 10.0.0.2:9877\n", "3:9: error: peers.node: "),
    ] {
        let found = peers(text).expect_err(text);
        assert!(found.starts_with(expected), "{found}");
    }
}
