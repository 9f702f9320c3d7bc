//! HAProxy in TCP mode, with and without kernel splicing.

use std::time::Duration;

use super::{Log, Process, Running, STOP, Setting, per_backend, write};
use crate::bench::load::SERVER_NAME;
use crate::bench::load_command;
use crate::bench::program::Program;
use crate::bench::topology::PROXY_ADDRESS;

/// Room for probes and for connections that are still closing.
const SPARE: usize = 200;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Splice {
    Off,
    Auto,
}

pub(super) fn start(setting: &Setting<'_>, splice: Splice) -> anyhow::Result<Running> {
    let socket = setting.dir.join("syslog.sock");
    let mut command = load_command(&setting.topology.proxy, "log-sink");
    command.arg("--path").arg(&socket);
    let mut sink = Program::load("the syslog socket", command, &setting.dir.join("syslog.stderr"))?;
    sink.next_line(Duration::from_secs(5))?;

    let config = write(setting, "haproxy.cfg", &config(setting, splice, &socket.display().to_string()))?;
    let mut command = setting.topology.proxy.command("haproxy");
    command.args(["-db", "-f"]).arg(config);
    let program = Program::server("haproxy", command, &setting.dir.join("haproxy.log"), STOP)?;
    Ok(Running { process: Process::Proxy(program), log: Log::Syslog(sink) })
}

fn config(setting: &Setting<'_>, splice: Splice, syslog: &str) -> String {
    let (option, pipes) = match splice {
        Splice::Off => ("", ""),
        Splice::Auto => ("    option splice-auto\n", "    tune.pipesize 524288\n"),
    };
    let maxconn = setting.connections + SPARE;
    let threads = setting.threads;
    let servers = per_backend(|n, backend| format!("    server b{n} {backend} send-proxy-v2\n"));
    format!(
        "\
global
    nbthread {threads}
    maxconn {maxconn}
    log {syslog} local0 info
{pipes}
defaults
    mode tcp
    maxconn {maxconn}
    log global
    option tcplog
    option tcp-smart-accept
    option tcp-smart-connect
{option}    timeout connect 5s
    timeout client 1h
    timeout server 1h

frontend tls
    bind {PROXY_ADDRESS} backlog 65535
    tcp-request inspect-delay 5s
    tcp-request content accept if {{ req.ssl_hello_type 1 }}
    use_backend app if {{ req.ssl_sni -i {SERVER_NAME} }}

backend app
    balance roundrobin
{servers}"
    )
}
