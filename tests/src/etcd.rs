//! Real etcd members on the network of [`MeshLab`], and nodes that share them.
//!
//! ```text
//!  nodes a, b, c 10.0.0.1-3 --+-- [ switch ] --+-- etcd 10.0.0.110, .111, .112
//!  client, backend -----------+
//! ```

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::certs::Leaf;
use crate::lab::Host;
use crate::mesh::{MeshLab, NAMES};
use crate::process::Process;
use crate::registration::Caller;
use crate::wait::{PATIENCE, wait_until};

/// The nodes' network with a cluster in it.
#[derive(Debug)]
pub struct EtcdLab {
    // Before the network that they are in.
    pub members: Vec<Member>,
    pub net: MeshLab,
    client_leaf: Option<Leaf>,
}

/// One etcd.
#[derive(Debug)]
pub struct Member {
    pub host: Host,
    directory: PathBuf,
    words: Vec<String>,
    process: Option<Process>,
}

const CLIENT_PORT: u16 = 2379;
const PEER_PORT: u16 = 2380;
pub const SECOND_TOKEN: &str = "second-token-0123456789abcdef";

impl EtcdLab {
    /// `members` of etcd and `nodes` of ours, in plain HTTP.
    pub fn start(members: usize, nodes: usize) -> Result<Self> {
        let mut lab = Self::without_nodes(members, nodes, false)?;
        for n in 0..nodes {
            lab.net.launch(lab.config(n), n)?;
        }
        lab.wait_until_connected()?;
        Ok(lab)
    }

    /// A cluster, with TLS and certificates of clients where `tls` says so, and hosts for `nodes`.
    pub fn without_nodes(members: usize, nodes: usize, tls: bool) -> Result<Self> {
        let net = MeshLab::plugged(nodes)?;
        crate::secret::write(&net.dir.path().join("second"), SECOND_TOKEN)?;
        let hosts = (110..).take(members).map(|last| net.plug("etcd", last)).collect::<Result<Vec<_>>>()?;
        let scheme = if tls { "https" } else { "http" };
        let client_leaf = tls.then(|| net.authority.issue_without_common_name("node.example.com")).transpose()?;
        let cluster = hosts.iter().map(|host| format!("{0}=http://{0}:{PEER_PORT}", host.address)).collect::<Vec<_>>();
        let mut members = Vec::new();
        for host in hosts {
            let address = host.address.to_string();
            let (client, peer) =
                (format!("{scheme}://{address}:{CLIENT_PORT}"), format!("http://{address}:{PEER_PORT}"));
            let directory = net.dir.path().join(format!("etcd-{address}"));
            let mut words = vec![
                format!("--name={address}"),
                format!("--data-dir={}", directory.display()),
                format!("--listen-client-urls={client}"),
                format!("--advertise-client-urls={client}"),
                format!("--listen-peer-urls={peer}"),
                format!("--initial-advertise-peer-urls={peer}"),
                format!("--initial-cluster={}", cluster.join(",")),
            ];
            if tls {
                let leaf = net.authority.issue(&[&address])?;
                words.extend([
                    format!("--cert-file={}", leaf.certificate.display()),
                    format!("--key-file={}", leaf.key.display()),
                    format!("--trusted-ca-file={}", net.authority.certificate().display()),
                    "--client-cert-auth".to_owned(),
                ]);
            }
            members.push(Member { host, directory, words, process: None });
        }
        let mut lab = Self { members, net, client_leaf };
        lab.members.iter_mut().try_for_each(Member::spawn)?;
        lab.wait_until_healthy()?;
        Ok(lab)
    }

    pub fn wait_until_healthy(&self) -> Result<()> {
        wait_until(PATIENCE, "etcd is healthy", || self.etcdctl(&["endpoint", "health", "--cluster"]).is_ok())
    }

    /// What a node's `etcd` says. Tokens `platform` and `second` may register.
    pub fn config(&self, n: usize) -> Value {
        let mut config = self.net.config_alone(n);
        let second = self.net.dir.path().join("second").display().to_string();
        config["providers"]["self"]["registration"]["tokens"]["second"] = json!({ "file": second });
        config["etcd"] = json!({ "node": NAMES[n], "endpoints": self.endpoints(), "timeout": "1s" });
        if let Some(leaf) = &self.client_leaf {
            config["etcd"]["tls"] = json!({
                "ca_file": self.net.authority.certificate(), "cert_file": leaf.certificate, "key_file": leaf.key,
            });
        }
        config
    }

    pub fn endpoints(&self) -> Vec<String> {
        let scheme = if self.client_leaf.is_some() { "https" } else { "http" };
        self.members.iter().map(|member| format!("{scheme}://{}", member.host.socket(CLIENT_PORT))).collect()
    }

    /// Another owner, at node `n`.
    pub fn second_caller(&self, n: usize) -> Caller {
        self.net.caller(n).with_token(SECOND_TOKEN)
    }

    /// `etcdctl`, from the client's host.
    pub fn etcdctl(&self, words: &[&str]) -> Result<String> {
        let mut command = self.net.client.ns.command("etcdctl");
        command.env("ETCDCTL_API", "3").arg(format!("--endpoints={}", self.endpoints().join(",")));
        command.args(["--dial-timeout=2s", "--command-timeout=5s"]);
        if let Some(Leaf { certificate, key, .. }) = &self.client_leaf {
            let ca = self.net.authority.certificate();
            command.arg(format!("--cacert={}", ca.display())).arg(format!("--cert={}", certificate.display()));
            command.arg(format!("--key={}", key.display()));
        }
        let output = command.args(words).output().context("starting etcdctl")?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "etcdctl {words:?}: {}", stderr.trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// What a node says of its etcd.
    pub fn status(&self, n: usize) -> Value {
        self.net.nodes[n].status().map(|status| status["etcd"].clone()).unwrap_or_default()
    }

    pub fn is_connected(&self, n: usize) -> bool {
        !self.status(n)["connected"].is_null()
    }

    pub fn wait_until_connected(&self) -> Result<()> {
        wait_until(PATIENCE * 2, "all nodes follow etcd", || {
            (0..self.net.nodes.len()).all(|n| self.is_connected(n) && self.status(n)["waiting"] == 0)
        })
    }

    pub fn wait_until_away(&self) -> Result<()> {
        wait_until(PATIENCE, "all nodes notice", || (0..self.net.nodes.len()).all(|n| !self.is_connected(n)))
    }

    /// Drops every packet between node `n` and etcd.
    pub fn cut_off(&self, n: usize) -> Result<()> {
        self.net.hosts[n].ns.nft(&format!(
            "table inet partition {{\n chain in {{ type filter hook input priority 0; tcp sport {CLIENT_PORT} drop; }}\n \
             chain out {{ type filter hook output priority 0; tcp dport {CLIENT_PORT} drop; }}\n}}\n"
        ))
    }

    pub fn heal(&self, n: usize) -> Result<()> {
        self.net.heal(n)
    }
}

impl Member {
    /// Also the restart after [`kill9`](Self::kill9), on the data that is there.
    pub fn spawn(&mut self) -> Result<()> {
        let mut command = self.host.ns.command("etcd");
        let log = self.directory.with_extension(format!("{}.log", self.words.len()));
        self.process = Some(Process::spawn_logged("etcd", command.args(&self.words), &log)?);
        Ok(())
    }

    pub fn kill9(&mut self) -> Result<()> {
        let mut process = self.process.take().context("etcd is not running")?;
        process.signal(Signal::SIGKILL)?;
        process.wait(PATIENCE).map(drop)
    }

    /// Loses all that it had.
    pub fn wipe(&self) -> Result<()> {
        std::fs::remove_dir_all(&self.directory).context("removing etcd's data")
    }
}
