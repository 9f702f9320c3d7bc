//! The daemon with so many routes in its file.

use std::time::Instant;

use anyhow::{Context as _, Result};
use ingress_tests::netns::Namespace;
use ingress_tests::node::Node;
use serde_json::{Value, json};

use super::{Changed, name, rss_mb, visit};

pub(super) struct Ours {
    namespace: Namespace,
    node: Node,
    routes: usize,
}

impl Ours {
    pub(super) fn start(routes: usize) -> Result<Self> {
        let namespace = Namespace::new("bench-control")?;
        namespace.ip_batch("link set lo up\n")?;
        let node = Node::start(&namespace, config(routes, "a"))?;
        Ok(Self { namespace, node, routes })
    }

    /// One route goes to another pool.
    pub(super) fn change(&self) -> Result<Changed> {
        self.node.write_config(config(self.routes, "b"))?;
        let began = Instant::now();
        self.node.reload_file()?;
        let reload_ms = began.elapsed().as_secs_f64() * 1e3;
        let compile_ms = self.node.metric("ingress_config_publication_seconds", &[])? * 1e3;
        let rss_mb = rss_mb(self.node.pid().context("the daemon runs")?)?;
        Ok(Changed { compile_ms, reload_ms, rss_mb })
    }

    pub(super) fn first_byte_us(&self) -> Result<f64> {
        visit::first_byte_us(&self.namespace, self.routes)
    }
}

fn config(routes: usize, first: &str) -> Value {
    let route = |n| json!({ "sni": name(n), "pool": if n == 0 { first } else { "a" } });
    json!({
        "listeners": { "tls": { "bind": ["127.0.0.1:443"] } },
        "routes": (0..routes).map(route).collect::<Vec<_>>(),
        "pools": { "a": { "backends": ["127.0.0.1:8443"] }, "b": { "backends": ["127.0.0.1:9443"] } },
        "kernel": { "enabled": false },
    })
}
