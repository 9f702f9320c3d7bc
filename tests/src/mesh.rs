//! A few proxy nodes on one private network, each in a namespace of its own, with a backend and a client beside them.
//!
//! ```text
//!  client 10.0.0.101 --+               +-- node a 10.0.0.1
//!                      +-- [ switch ] --+-- node b 10.0.0.2
//!  backend 10.0.0.100 -+               +-- node c 10.0.0.3
//! ```

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::backend::Backend;
use crate::certs::Authority;
use crate::client::Curl;
use crate::lab::Host;
use crate::netns::Namespace;
use crate::node::Node;
use crate::registration::Caller;
use crate::wait::{PATIENCE, wait_until};

/// The network, and its nodes as far as a scenario starts them.
#[derive(Debug)]
pub struct MeshLab {
    // Before their namespaces.
    pub nodes: Vec<Node>,
    web: Option<Backend>,
    pub hosts: Vec<Host>,
    pub backend: Host,
    pub client: Host,
    pub authority: Authority,
    pub dir: TempDir,
    switch: Namespace,
}

/// Names of the nodes, in the order of [`MeshLab::nodes`].
pub const NAMES: [&str; 3] = ["a", "b", "c"];
pub const TOKEN: &str = "platform-token-0123456789abcdef";
pub const API_PORT: u16 = 9876;
pub const PEER_PORT: u16 = 9877;
/// Every backend that is registered: the one server that there is.
pub const BACKEND: &str = "10.0.0.100:443";

impl MeshLab {
    /// `count` daemons that are no mesh yet.
    pub fn start(count: usize) -> Result<Self> {
        let mut lab = Self::plugged(count)?;
        for n in 0..count {
            lab.launch(lab.config(n), n)?;
        }
        Ok(lab)
    }

    /// The network alone, with hosts for `count` nodes.
    pub fn plugged(count: usize) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("ing-mesh-").tempdir()?;
        crate::secret::write(&dir.path().join("token"), TOKEN)?;
        let switch = Namespace::new("switch")?;
        switch.ip_batch("link add private type bridge\nlink set private up\n")?;
        let hosts = (1..).zip(NAMES).take(count).map(|(n, name)| plug(&switch, name, n));
        let hosts: Vec<_> = hosts.collect::<Result<_>>()?;
        let (backend, client) = (plug(&switch, "backend", 100)?, plug(&switch, "client", 101)?);
        let authority = Authority::new(dir.path())?;
        Ok(Self { nodes: Vec::new(), web: None, hosts, backend, client, authority, dir, switch })
    }

    /// Another host on the network, at 10.0.0.`last`.
    pub fn plug(&self, role: &str, last: u8) -> Result<Host> {
        plug(&self.switch, role, last)
    }

    /// Starts the daemon of host `n`; the hosts before it have theirs.
    pub fn launch(&mut self, config: Value, n: usize) -> Result<()> {
        self.nodes.push(Node::start(&self.hosts[n].ns, config)?);
        Ok(())
    }

    /// `count` daemons that are a mesh, made as an operator makes one.
    pub fn joined(count: usize) -> Result<Self> {
        let lab = Self::start(count)?;
        let mut token = lab.token(&["peer", "init"])?;
        for n in 1..count {
            if n > 1 {
                token = lab.token(&["peer", "invite"])?;
            }
            lab.wait_until_listening(0)?;
            lab.nodes[n].verb(&["peer", "join", &token])?;
        }
        lab.wait_until_connected(PATIENCE)?;
        Ok(lab)
    }

    /// What `ingress peer init` or `invite` prints on the first node.
    pub fn token(&self, words: &[&str]) -> Result<String> {
        self.token_of(0, words)
    }

    pub fn token_of(&self, n: usize, words: &[&str]) -> Result<String> {
        let token = self.nodes[n].json(words)?["token"].as_str().map(str::to_owned);
        token.context("a token")
    }

    pub fn config(&self, n: usize) -> Value {
        let mut config = self.config_alone(n);
        let bind = self.hosts[n].socket(PEER_PORT).to_string();
        // Each answer waits for the disks of all nodes, which here are one, and busy.
        config["peers"] = json!({ "node": NAMES[n], "bind": bind, "ack_timeout": "10s" });
        config
    }

    /// Of a node that shares nothing with others.
    pub fn config_alone(&self, n: usize) -> Value {
        let Host { address, .. } = &self.hosts[n];
        json!({
            "listeners": { "tls": { "bind": [format!("{address}:443")] } },
            "providers": { "self": { "registration": {
                "bind": format!("{address}:{API_PORT}"),
                "sources": "10.0.0.0/24",
                "upstreams": "10.0.0.0/24",
                "tokens": { "platform": { "file": self.dir.path().join("token").display().to_string() } },
            } } },
            "admin": { "http": {} },
            "kernel": { "enabled": false },
        })
    }

    /// A server that every name of `names` can lead to.
    pub fn serve(&mut self, names: &[&str]) -> Result<()> {
        let leaf = self.authority.issue(names)?;
        self.web = Some(Backend::nginx("web", &self.backend, &leaf)?);
        Ok(())
    }

    /// Somebody who registers, at node `n`.
    pub fn caller(&self, n: usize) -> Caller {
        let api = self.hosts[n].socket(API_PORT);
        Caller { ns: self.client.ns.clone(), api, token: Some(TOKEN.to_owned()) }
    }

    /// A client's requests through node `n`.
    pub fn curl(&self, n: usize, name: &str) -> Curl {
        Curl::new(&self.client.ns, self.hosts[n].socket(443), name, self.authority.certificate())
    }

    /// Host -> first backend, as node `n` lists them.
    pub fn listed(&self, n: usize) -> Result<Vec<(String, String)>> {
        let answer = self.caller(n).get("/routes")?;
        let routes = answer.body["routes"].as_array().cloned().context("a list")?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Ok(routes.iter().map(|r| (text(&r["host"]), text(&r["backends"][0]["address"]))).collect())
    }

    /// Waits until all nodes list the same; what that is.
    pub fn wait_until_same(&self) -> Result<Vec<(String, String)>> {
        wait_until(PATIENCE, "all nodes list the same", || {
            let lists: Vec<_> = (0..self.nodes.len()).map(|n| self.listed(n).ok()).collect();
            lists.iter().all(|list| list.is_some() && *list == lists[0])
        })?;
        self.listed(0)
    }

    pub fn wait_until_listening(&self, n: usize) -> Result<()> {
        let address: SocketAddr = self.hosts[n].socket(PEER_PORT);
        wait_until(PATIENCE, "the node listens for peers", || self.client.ns.connect(address).is_ok())
    }

    /// Waits until each node has a link to each other one.
    pub fn wait_until_connected(&self, patience: std::time::Duration) -> Result<()> {
        wait_until(patience, "all nodes are connected", || {
            self.nodes.iter().all(|node| self.links(node) + 1 == self.nodes.len())
        })
    }

    /// Peers that a node is connected to.
    pub fn links(&self, node: &Node) -> usize {
        let status = node.status().unwrap_or_default();
        let peers = status["peers"]["peers"].as_array().cloned().unwrap_or_default();
        peers.iter().filter(|peer| !peer["connected"].is_null()).count()
    }

    /// Drops every packet between node `n` and its peers; callers and clients still reach it.
    pub fn cut_off(&self, n: usize) -> Result<()> {
        self.hosts[n].ns.nft(&format!(
            "table inet partition {{\n chain in {{ type filter hook input priority 0; tcp dport {PEER_PORT} drop; tcp sport {PEER_PORT} drop; }}\n \
             chain out {{ type filter hook output priority 0; tcp dport {PEER_PORT} drop; tcp sport {PEER_PORT} drop; }}\n}}\n"
        ))
    }

    pub fn heal(&self, n: usize) -> Result<()> {
        self.hosts[n].ns.nft("delete table inet partition\n")
    }
}

fn plug(switch: &Namespace, role: &str, last: u8) -> Result<Host> {
    let (ns, address) = (Namespace::new(role)?, Ipv4Addr::new(10, 0, 0, last));
    switch.ip_batch(&format!(
        "link add p{last} type veth peer name eth0 netns {}\nlink set p{last} master private\nlink set p{last} up\n",
        ns.name()
    ))?;
    ns.ip_batch(&format!("addr add {address}/24 dev eth0\nlink set eth0 up\n"))?;
    Ok(Host { ns, address: address.into() })
}
