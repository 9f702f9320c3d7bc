//! Deployment S1 whole: its table of names, an nginx for each backend, and the configuration that joins them.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::backend::Backend;
use crate::certs::{Authority, Leaf};
use crate::client::Curl;
use crate::lab::{Lab, LabOptions, S1_BACKENDS};
use crate::node::Node;

/// One pool: its name, the index of its backend in [`Lab::backends`], the names that lead to it.
pub type Row = (&'static str, usize, &'static [&'static str]);

/// S1's table.
pub const TABLE: [Row; 4] = [
    ("web", 0, &["fiscalismia.com"]),
    ("api", 1, &["backend.fiscalismia.com"]),
    ("demo", 2, &["demo.fiscalismia.com", "backend.demo.fiscalismia.com"]),
    ("monitoring", 3, &["monitoring.fiscalismia.com"]),
];

/// The same table as `examples/sni-passthrough` ships it.
pub const EXAMPLE: [Row; 4] = [
    ("app", 0, &["app.example.com"]),
    ("backend", 1, &["backend.example.com"]),
    ("demo", 2, &["demo.example.com", "backend.demo.example.com"]),
    ("monitoring", 3, &["monitoring.example.com"]),
];

/// Lab and certificates, backends as far as a scenario starts them. The daemon is not part of it: see [`S1::node`].
#[derive(Debug)]
pub struct S1 {
    // Before `lab`: processes end before their namespaces.
    pub backends: Vec<Backend>,
    pub lab: Lab,
    pub table: [Row; 4],
    authority: Authority,
    _dir: TempDir,
}

impl S1 {
    /// The plain S1 network with an nginx on each backend.
    pub fn start() -> Result<Self> {
        Self::start_on(&LabOptions::default())
    }

    pub fn start_on(options: &LabOptions) -> Result<Self> {
        Self::without_backends(options)?.with_nginx()
    }

    /// The network and backends of `examples/sni-passthrough`; [`S1::example_node`] runs that very file.
    pub fn example(options: &LabOptions) -> Result<Self> {
        let mut s1 = Self::without_backends(options)?;
        s1.table = EXAMPLE;
        s1.with_nginx()
    }

    fn with_nginx(mut self) -> Result<Self> {
        for (pool, host, _) in self.table {
            let leaf = self.leaf(pool)?;
            self.backends.push(Backend::nginx(pool, &self.lab.backends[host], &leaf)?);
        }
        Ok(self)
    }

    /// For scenarios that bring other peers than nginx.
    pub fn without_backends(options: &LabOptions) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("ing-s1-").tempdir()?;
        let authority = Authority::new(dir.path())?;
        Ok(Self { backends: Vec::new(), lab: Lab::build(options)?, table: TABLE, authority, _dir: dir })
    }

    /// With one backend, which the scenario itself plays: it gets what comes to the listener.
    pub fn with_one_backend(options: LabOptions) -> Result<(Self, TcpListener)> {
        let s1 = Self::without_backends(&LabOptions { backends: vec![S1_BACKENDS[0]], ..options })?;
        let host = &s1.lab.backends[0];
        let listener = host.ns.listen(host.socket(443))?;
        Ok((s1, listener))
    }

    /// A certificate for all names of a pool.
    pub fn leaf(&self, pool: &str) -> Result<Leaf> {
        let (_, _, names) = self.table.iter().find(|(p, ..)| *p == pool).with_context(|| format!("no pool {pool}"))?;
        self.authority.issue(names)
    }

    /// A certificate of the same authority for other names, or addresses.
    pub fn certificate(&self, names: &[&str]) -> Result<Leaf> {
        self.authority.issue(names)
    }

    /// The CA that clients trust.
    pub fn ca(&self) -> PathBuf {
        self.authority.certificate()
    }

    pub fn backend(&mut self, pool: &str) -> Result<&mut Backend> {
        self.backends.iter_mut().find(|b| b.name == pool).with_context(|| format!("no backend {pool}"))
    }

    /// The TLS listener as clients reach it.
    pub fn public(&self) -> SocketAddr {
        self.lab.public(443)
    }

    /// Requests from the first client for `name`.
    pub fn curl(&self, name: &str) -> Curl {
        self.curl_from(0, name)
    }

    pub fn curl_from(&self, client: usize, name: &str) -> Curl {
        Curl::new(&self.lab.clients[client].ns, self.public(), name, self.ca())
    }

    /// The daemon on S1's configuration.
    pub fn node(&self) -> Result<Node> {
        self.node_with(self.config())
    }

    pub fn node_with(&self, config: Value) -> Result<Node> {
        Node::start(&self.lab.proxy.ns, config)
    }

    /// The daemon on the shipped example, unchanged but for the paths of this node.
    pub fn example_node(&self) -> Result<Node> {
        let mut node = Node::prepare(&self.lab.proxy.ns)?;
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/sni-passthrough/ingress.yaml");
        let shipped = std::fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        node.write_shipped_config(&shipped)?;
        node.launch()?;
        Ok(node)
    }

    /// Without health checks and PROXY headers: backends of the pool `web` get clients' bytes and nothing else.
    pub fn config_of_bytes(&self) -> Value {
        let mut config = self.config_without_checks();
        config["pools"]["web"]["proxy_protocol"] = "none".into();
        config
    }

    /// Without health checks: every connection that a backend sees is a client's.
    pub fn config_without_checks(&self) -> Value {
        let mut config = self.config();
        for (pool, ..) in self.table {
            // Indexing would make a pool where this lab has no backend for it.
            if let Some(pool) = config["pools"].get_mut(pool).and_then(Value::as_object_mut) {
                pool.remove("health");
            }
        }
        config
    }

    /// S1's configuration for this lab; scenarios change what they are about.
    pub fn config(&self) -> Value {
        let mut pools = serde_json::Map::new();
        let mut routes = Vec::new();
        for (pool, host, names) in self.table {
            let Some(host) = self.lab.backends.get(host) else { continue };
            pools.insert(
                pool.into(),
                json!({
                    "backends": [host.socket(443).to_string()],
                    "proxy_protocol": "v2",
                    "health": { "type": "tcp", "interval": "10s", "timeout": "1s", "rise": 2, "fall": 3 },
                }),
            );
            routes.push(json!({ "sni": names, "pool": pool }));
        }
        json!({
            "listeners": {
                "tls": { "bind": [self.public().to_string()], "device": "pub0", "protocol": "tls", "default": "reject" },
            },
            "routes": routes,
            "pools": pools,
            "admin": { "http": {} },
            "kernel": {},
            "log": { "connections": "both" },
        })
    }
}
