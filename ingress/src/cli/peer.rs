//! `ingress peer`: makes a mesh of nodes, and shows it.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::anyhow;
use clap::Subcommand;
use serde_json::json;

use super::text::{Column, Table, age, plural};
use super::{Failure, Global, Outcome, ask, print_json};
use crate::admin::status::Status;
use crate::config::{self, Config, LoadError, PeersConfig};
use crate::peers::identity::Identity;
use crate::peers::invitation::{Token, invite};
use crate::peers::join::join;
use crate::peers::view::{PeerStatus, PeersStatus};

#[derive(Debug, Subcommand)]
pub(super) enum PeerVerb {
    /// Begin a mesh on this node, and print how the first other node joins it
    Init(InviteArgs),
    /// Print how one further node joins the mesh; on the node where `init` was run
    Invite(InviteArgs),
    /// Join the mesh that a token leads to
    Join {
        /// What `ingress peer init` or `invite` printed; `-` reads it from stdin, where no list of processes shows it
        token: String,
    },
    /// List the nodes of the mesh
    List,
    /// Shut a node out of the mesh, on all nodes
    Remove { name: String },
}

#[derive(Debug, clap::Args)]
pub(super) struct InviteArgs {
    /// For how long the token is good, in minutes
    #[arg(long, value_name = "MINUTES", default_value_t = 15, value_parser = clap::value_parser!(u64).range(1..=1440))]
    valid_for: u64,
}

pub(super) fn run(verb: PeerVerb, global: &Global, out: &mut impl Write) -> Outcome {
    match verb {
        PeerVerb::Init(args) => {
            let (config, peers) = configured(global)?;
            let identity = Identity::init(&config.state_dir, &peers.node).map_err(runtime)?;
            if !global.json() {
                writeln!(out, "{} begins a mesh; its certificate is {}", peers.node, identity.fingerprint())?;
            }
            invited(&args, &config, &peers, global, out)
        }
        PeerVerb::Invite(args) => {
            let (config, peers) = configured(global)?;
            invited(&args, &config, &peers, global, out)
        }
        PeerVerb::Join { token } => joined(&token, global, out),
        PeerVerb::List => list(global, out),
        PeerVerb::Remove { name } => {
            let _: serde_json::Value = ask(global)?.post("/v1/peers/remove", &json!({ "name": name }))?;
            Ok(writeln!(out, "{name} is shut out; nodes that are away hear of it when they are back")?)
        }
    }
}

fn configured(global: &Global) -> Result<(Config, PeersConfig), Failure> {
    let loaded = config::load(&global.config).map_err(|error: LoadError| Failure::Config(error.to_string()))?;
    let file = global.config.display();
    let missing = format!("{file}: there is no `peers`; write `peers: {{node: proxy-1, bind: 10.0.0.2:9877}}` first");
    let peers = loaded.config.peers.clone().ok_or(Failure::Config(missing))?;
    Ok((loaded.config, peers))
}

fn invited(args: &InviteArgs, config: &Config, peers: &PeersConfig, global: &Global, out: &mut impl Write) -> Outcome {
    let validity = Duration::from_secs(args.valid_for * 60);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let token = invite(&config.state_dir, &peers.node, peers.address, validity, now).map_err(runtime)?;
    let token = token.encode();
    if global.json() {
        return print_json(out, &json!({ "token": token, "valid_for": validity.as_secs() }));
    }
    writeln!(out, "on the other node, within {}, while this daemon runs:", plural(args.valid_for, "minute"))?;
    Ok(writeln!(out, "\n  ingress peer join {token}\n\nwhoever has this token can join in its place; it is good once")?)
}

fn joined(token: &str, global: &Global, out: &mut impl Write) -> Outcome {
    let (config, peers) = configured(global)?;
    let text = if token == "-" { io::read_to_string(io::stdin())? } else { token.to_owned() };
    let token = Token::parse(&text).map_err(|error| Failure::Usage(error.to_string()))?;
    let runtime_of_one = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let PeersConfig { node, address, .. } = &peers;
    let members = runtime_of_one.block_on(join(&config.state_dir, node, *address, &token)).map_err(runtime)?;
    let names: Vec<_> = members.others(node).map(|member| member.name.to_string()).collect();
    if global.json() {
        return print_json(out, &json!({ "node": node, "peers": names }));
    }
    Ok(writeln!(out, "{node} is in the mesh with {}; a running daemon notices within a second", names.join(", "))?)
}

fn list(global: &Global, out: &mut impl Write) -> Outcome {
    let status: Status = ask(global)?.get("/v1/status")?;
    let Some(peers) = status.peers else {
        return Err(Failure::Runtime(anyhow!("this node has no `peers` in its configuration")));
    };
    if global.json() {
        return print_json(out, &peers);
    }
    Ok(write(out, &peers)?)
}

/// Also a part of `ingress status`.
pub(super) fn write(out: &mut impl Write, status: &PeersStatus) -> io::Result<()> {
    let PeersStatus { node, bind, trouble, peers } = status;
    let bind: Vec<_> = bind.iter().map(SocketAddr::to_string).collect();
    writeln!(out, "peers    this node is {node}, on {}", bind.join(" "))?;
    if let Some(trouble) = trouble {
        writeln!(out, "         NOT IN THE MESH: {trouble}")?;
    }
    if peers.is_empty() {
        return Ok(());
    }
    let columns = [
        Column::Left("NAME"),
        Column::Left("ADDRESS"),
        Column::Left("CONNECTED"),
        Column::Right("BEHIND"),
        Column::Right("CLOCK"),
    ];
    let mut table = Table::new(columns);
    for PeerStatus { name, address, connected, waiting, clock_skew, .. } in peers {
        let connected = connected.map_or_else(|| "no".to_owned(), |for_| format!("for {}", age(for_)));
        let skew = clock_skew.map_or_else(|| "-".to_owned(), |skew| format!("{skew:+.3}s"));
        table.row([name.clone(), address.to_string(), connected, waiting.to_string(), skew]);
    }
    table.write(out, 9)?;
    for PeerStatus { name, connected, last_error, refused, .. } in peers {
        if let Some(error) = last_error.as_ref().filter(|_| connected.is_none()) {
            writeln!(out, "         {name}: {error}")?;
        }
        if *refused > 0 {
            let what = plural(*refused as u64, "entry");
            writeln!(out, "         {name}: {what} NOT TAKEN: the clocks differ by more than 5 minutes; set them")?;
        }
    }
    Ok(())
}

fn runtime(error: impl std::error::Error + Send + Sync + 'static) -> Failure {
    Failure::Runtime(error.into())
}
