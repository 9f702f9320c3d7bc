//! Real peers behind the proxy: nginx, HAProxy, Redis and MariaDB as Debian ships them, each in a namespace of the lab.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::Value;
use tempfile::TempDir;

use crate::certs::Leaf;
use crate::lab::Host;
use crate::payload::{Fingerprint, fingerprint_file, write_file};
use crate::process::Process;
use crate::skip::find_program;
use crate::wait::{PATIENCE, wait_until};

/// A server that answers on its port; stopped when dropped.
#[derive(Debug)]
pub struct Backend {
    pub name: String,
    pub host: Host,
    pub port: u16,
    dir: TempDir,
    process: Option<Process>,
    arguments: Vec<String>,
}

impl Backend {
    /// nginx on `:443 ssl http2 proxy_protocol`: `/whoami` says as JSON what it saw, `/files/` serves, PUT on
    /// `/upload/` stores.
    pub fn nginx(name: &str, host: &Host, leaf: &Leaf) -> Result<Self> {
        let dir = directory(name)?;
        let root = dir.path();
        for sub in ["files", "upload", "tmp"] {
            std::fs::create_dir(root.join(sub))?;
        }
        let config = NGINX
            .replace("@DIR@", &root.display().to_string())
            .replace("@NAME@", name)
            .replace("@CRT@", &leaf.certificate.display().to_string())
            .replace("@KEY@", &leaf.key.display().to_string());
        let file = root.join("nginx.conf");
        std::fs::write(&file, config)?;
        let error_log = root.join("error.log");
        Self::start(name, host, 443, dir, &["nginx", "-c", text(&file)?, "-e", text(&error_log)?])
    }

    /// HAProxy on `:443 ssl accept-proxy`; every path answers as nginx's `/whoami` does.
    pub fn haproxy(name: &str, host: &Host, leaf: &Leaf) -> Result<Self> {
        let dir = directory(name)?;
        let config = HAPROXY.replace("@NAME@", name).replace("@PEM@", &leaf.combined.display().to_string());
        let file = dir.path().join("haproxy.cfg");
        std::fs::write(&file, config)?;
        Self::start(name, host, 443, dir, &["haproxy", "-db", "-f", text(&file)?])
    }

    /// Redis on `:6379`, in memory only.
    pub fn redis(name: &str, host: &Host) -> Result<Self> {
        let dir = directory(name)?;
        let work = dir.path().to_owned();
        let plain = ["redis-server", "--port", "6379", "--protected-mode", "no", "--save", "", "--dir", text(&work)?];
        Self::start(name, host, 6379, dir, &plain)
    }

    /// MariaDB on `:3306`, with no table and open to all. It speaks first.
    pub fn mariadb(name: &str, host: &Host) -> Result<Self> {
        let dir = directory(name)?;
        let data = dir.path().join("data");
        std::fs::create_dir(&data)?;
        let (data, socket) = (format!("--datadir={}", text(&data)?), dir.path().join("sql.sock"));
        let socket = format!("--socket={}", text(&socket)?);
        let plain = ["mariadbd", "--no-defaults", "--user=root", &data, &socket, "--port=3306", "--skip-grant-tables"];
        let small = ["--skip-name-resolve", "--skip-log-bin", "--innodb-log-file-size=4M"];
        Self::start(name, host, 3306, dir, &[&plain[..], &small].concat())
    }

    fn start(name: &str, host: &Host, port: u16, dir: TempDir, arguments: &[&str]) -> Result<Self> {
        let arguments = arguments.iter().map(|a| (*a).to_owned()).collect();
        let mut backend = Self { name: name.into(), host: host.clone(), port, dir, process: None, arguments };
        backend.restart()?;
        Ok(backend)
    }

    /// Starts it again after [`Backend::stop`].
    pub fn restart(&mut self) -> Result<()> {
        let (program, args) = self.arguments.split_first().context("a backend has a command")?;
        let path = find_program(program).with_context(|| format!("{program} is not installed"))?;
        let output = self.dir.path().join("output.log");
        self.process = None;
        self.process = Some(Process::spawn_logged(&self.name, self.host.ns.command(path).args(args), &output)?);
        let address = self.host.socket(self.port);
        wait_until(PATIENCE, &format!("{} accepts on {address}", self.name), || self.host.ns.connect(address).is_ok())
            .with_context(|| std::fs::read_to_string(&output).unwrap_or_default())
    }

    /// Stops it at once; its connections are reset or closed, new ones refused.
    pub fn stop(&mut self) {
        self.process = None;
    }

    /// Puts a file of `bytes` random bytes under `/files/<name>`.
    pub fn publish(&self, name: &str, bytes: u64) -> Result<Fingerprint> {
        write_file(&self.published(name), bytes, bytes)
    }

    /// Where that file is.
    pub fn published(&self, name: &str) -> PathBuf {
        self.dir.path().join("files").join(name)
    }

    /// What a PUT to `/upload/<name>` left.
    pub fn uploaded(&self, name: &str) -> Result<Fingerprint> {
        fingerprint_file(&self.dir.path().join("upload").join(name))
    }

    /// nginx's access log: one object per finished request.
    pub fn requests(&self) -> Result<Vec<Value>> {
        let log = std::fs::read_to_string(self.dir.path().join("access.log"))?;
        log.lines().map(|line| serde_json::from_str(line).with_context(|| format!("access log: {line}"))).collect()
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.stop();
        if std::thread::panicking()
            && let Ok(log) = std::fs::read_to_string(self.dir.path().join("error.log"))
        {
            log.lines().rev().take(10).for_each(|line| eprintln!("{}: {line}", self.name));
        }
    }
}

fn directory(name: &str) -> Result<TempDir> {
    tempfile::Builder::new().prefix(&format!("ing-{name}-")).tempdir().context("making a backend's directory")
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("temporary directories have plain names")
}

/// One process, so that stopping it by its pid stops all of it.
const NGINX: &str = r#"
daemon off;
master_process off;
pid @DIR@/nginx.pid;
worker_rlimit_nofile 65536;
events { worker_connections 16384; }
http {
    log_format seen escape=json '{"client":"$proxy_protocol_addr","sni":"$ssl_server_name","uri":"$request_uri",'
                                '"status":$status,"sent":$body_bytes_sent}';
    access_log @DIR@/access.log seen;
    client_body_temp_path @DIR@/tmp;
    proxy_temp_path @DIR@/tmp/proxy;
    fastcgi_temp_path @DIR@/tmp/fastcgi;
    uwsgi_temp_path @DIR@/tmp/uwsgi;
    scgi_temp_path @DIR@/tmp/scgi;
    keepalive_timeout 600s;
    keepalive_requests 1000000;
    server {
        listen 443 ssl http2 proxy_protocol reuseport backlog=4096;
        listen [::]:443 ssl http2 proxy_protocol reuseport backlog=4096;
        ssl_certificate @CRT@;
        ssl_certificate_key @KEY@;
        set_real_ip_from 172.16.0.0/12;
        set_real_ip_from 2001:db8::/32;
        real_ip_header proxy_protocol;
        client_max_body_size 0;
        default_type application/json;
        location / {
            return 200 '{"backend":"@NAME@","client":"$proxy_protocol_addr","client_port":$proxy_protocol_port,"forwarded_for":"$proxy_add_x_forwarded_for","peer":"$realip_remote_addr","sni":"$ssl_server_name","host":"$host","protocol":"$server_protocol"}\n';
        }
        location /files/ { alias @DIR@/files/; }
        location /upload/ {
            alias @DIR@/upload/;
            dav_methods PUT;
        }
    }
}
"#;

const HAPROXY: &str = r#"
global
    maxconn 4096
    tune.ssl.default-dh-param 2048
defaults
    mode http
    timeout connect 5s
    timeout client 600s
    timeout server 600s
frontend tls
    bind :443 ssl crt @PEM@ alpn h2,http/1.1 accept-proxy
    http-request return status 200 content-type application/json lf-string '{"backend":"@NAME@","client":"%[src]","client_port":%[src_port],"called":"%[dst]","authority":"%[fc_pp_authority]","unique_id":"%[fc_pp_unique_id,hex]","sni":"%[ssl_fc_sni]"}'
"#;
