//! nginx's stream module with `ssl_preread`. It sends PROXY v1; there is no v2 in it.

use std::process::Command;

use anyhow::Context;

use super::{Log, Process, Running, STOP, Setting, per_backend, write};
use crate::bench::load::SERVER_NAME;
use crate::bench::program::Program;
use crate::bench::topology::PROXY_ADDRESS;

/// Where Debian puts the module.
const MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

pub(super) fn version() -> anyhow::Result<String> {
    if !std::path::Path::new(MODULE).exists() {
        anyhow::bail!("{MODULE} is missing: apt-get install libnginx-mod-stream");
    }
    // nginx prints its version on stderr.
    let output = Command::new("nginx").arg("-v").output().context("running nginx -v")?;
    Ok(String::from_utf8_lossy(&output.stderr).trim().trim_start_matches("nginx version: ").to_owned())
}

pub(super) fn start(setting: &Setting<'_>) -> anyhow::Result<Running> {
    let config = write(setting, "nginx.conf", &config(setting))?;
    let mut command = setting.topology.proxy.command("nginx");
    command.arg("-p").arg(setting.dir).arg("-c").arg(config).args(["-e", "nginx.log"]);
    let program = Program::server("nginx", command, &setting.dir.join("nginx.stderr"), STOP)?;
    Ok(Running { process: Process::Proxy(program), log: Log::File(setting.dir.join("access.log")) })
}

fn config(setting: &Setting<'_>) -> String {
    let threads = setting.threads;
    // Two for each proxied connection.
    let connections = 2 * setting.connections + 1_000;
    let servers = per_backend(|_, backend| format!("        server {backend};\n"));
    let reuseport = if threads > 1 { " reuseport" } else { "" };
    format!(
        "\
load_module {MODULE};
daemon off;
user root;
pid nginx.pid;
worker_processes {threads};
error_log nginx.log warn;

events {{
    worker_connections {connections};
    multi_accept on;
}}

stream {{
    log_format line '$remote_addr:$remote_port [$time_iso8601] $ssl_preread_server_name $upstream_addr '
                    '$status $bytes_received $bytes_sent $session_time';
    access_log access.log line buffer=64k flush=1s;

    map $ssl_preread_server_name $pool {{
        {SERVER_NAME} app;
    }}
    upstream app {{
{servers}    }}
    server {{
        listen {PROXY_ADDRESS} backlog=65535{reuseport};
        ssl_preread on;
        proxy_pass $pool;
        proxy_protocol on;
        proxy_connect_timeout 5s;
        proxy_timeout 1h;
    }}
}}
"
    )
}
