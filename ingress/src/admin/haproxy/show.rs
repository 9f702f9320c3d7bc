//! The other lists: servers and their states, backends, sessions.

use std::fmt::Write as _;

use super::proxies::Proxies;
use super::stat::check_health;
use crate::admin::Admin;
use crate::balance::AdminState;
use crate::flow::FlowView;

/// `show servers state [<pool>]`. `None`: there is no such pool.
pub(super) fn servers_state(proxies: &Proxies, pool: Option<&str>) -> Option<String> {
    let mut out = STATE_HEADER.to_owned();
    each_server(proxies, pool, |id, server| {
        let view = &server.view;
        let running = if server.is_running() { 2 } else { 0 };
        let resolution = if server.is_resolved() { 0 } else { 0x20 };
        let admin = resolution
            | match view.admin_state() {
                AdminState::Ready => 0,
                AdminState::Maint => 0x01,
                AdminState::Drain => 0x08,
            };
        let checked = server.pool.config.health.as_ref();
        let status = server.verdict().map_or(1, |verdict| verdict.number);
        let result = match &view.last_check {
            _ if checked.is_none() => 0,
            None => 0,
            Some(check) if check.ok => 3,
            Some(_) => 2,
        };
        let state = if checked.is_some() { 6 } else { 0 };
        let check_port = checked.and_then(|health| health.port).unwrap_or_default();
        let (ip, fqdn, port) = server.address();
        let (pool, name, sid) = (&server.pool.name, &view.name, server.sid);
        let (user, initial, since) = (server.user_weight(), view.weight, view.since as u64);
        let health = check_health(server);
        // Into a String: nothing can fail.
        let _ = writeln!(
            out,
            "{id} {pool} {sid} {name} {ip} {running} {admin} {user} {initial} {since} {status} {result} {health} {state} \
             0 0 0 {fqdn} {port} - 0 {check_port} - - 0"
        );
    })?;
    Some(out)
}

/// `show servers conn [<pool>]`. We keep no idle connections to backends, so those columns are 0.
pub(super) fn servers_conn(proxies: &Proxies, pool: Option<&str>) -> Option<String> {
    let mut out = CONN_HEADER.to_owned();
    each_server(proxies, pool, |id, server| {
        let (ip, _, port) = server.address();
        let (pool, name, sid, used) = (&server.pool.name, &server.view.name, server.sid, server.view.in_flight);
        let _ = writeln!(out, "{pool}/{name} {id}/{sid} {ip} {port} - 0 {used} 0 0 0 0 0 0 0");
    })?;
    Some(out)
}

fn each_server(
    proxies: &Proxies,
    wanted: Option<&str>,
    mut show: impl FnMut(u32, &super::proxies::Server<'_>),
) -> Option<()> {
    let mut found = wanted.is_none().then_some(());
    for (id, pool) in proxies.pools().filter(|(_, pool)| wanted.is_none_or(|wanted| pool.name.as_str() == wanted)) {
        found = Some(());
        proxies.servers(pool).iter().for_each(|server| show(id, server));
    }
    found
}

pub(super) fn backends(proxies: &Proxies) -> String {
    let names: String = proxies.pools().map(|(_, pool)| format!("{}\n", pool.name)).collect();
    format!("# name\n{names}")
}

/// `show sess [<id>]`: connections as `ingress flows` lists them. `None`: there is none of that id.
pub(super) fn sessions(admin: &Admin, wanted: Option<u64>) -> Option<String> {
    let mut flows = admin.sources.kernel.flows();
    flows.extend(admin.sources.connections.flows());
    flows.retain(|flow| wanted.is_none_or(|id| id == flow.id));
    if wanted.is_some() && flows.is_empty() {
        return None;
    }
    let mut out = String::new();
    flows.iter().for_each(|flow| session(flow, &mut out));
    Some(out)
}

fn session(flow: &FlowView, out: &mut String) {
    let FlowView { id, client, listener, pool, backend, age, idle, mode, .. } = flow;
    let proto = if client.is_ipv4() { "tcpv4" } else { "tcpv6" };
    let _ = writeln!(
        out,
        "{id:#x}: proto={proto} src={client} fe={listener} be={pool} srv={backend} ts=00 epoch=0 age={} calls=0 rate=0 cpu=0 \
         lat=0 rq[f=000000h,i=0,an=00h,rx=,wx=,ax=] rp[f=000000h,i=0,an=00h,rx=,wx=,ax=] scf=[8,0h,fd=-1] \
         scb=[8,0h,fd=-1] exp= rc=0 c_exp= mode={mode} idle={}",
        time(*age),
        time(*idle)
    );
}

/// `1h2m3s`, as HAProxy writes times.
fn time(seconds: f64) -> String {
    let seconds = seconds as u64;
    let units = [(seconds / 86_400, "d"), (seconds / 3_600 % 24, "h"), (seconds / 60 % 60, "m"), (seconds % 60, "s")];
    let said: String = units.iter().filter(|(n, _)| *n > 0).map(|(n, unit)| format!("{n}{unit}")).collect();
    if said.is_empty() { "0s".to_owned() } else { said }
}

const STATE_HEADER: &str = "1\n# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight \
     srv_time_since_last_change srv_check_status srv_check_result srv_check_health srv_check_state srv_agent_state \
     bk_f_forced_id srv_f_forced_id srv_fqdn srv_port srvrecord srv_use_ssl srv_check_port srv_check_addr srv_agent_addr \
     srv_agent_port\n";
const CONN_HEADER: &str = "# bkname/svname bkid/svid addr port - purge_delay used_cur used_max need_est unsafe_nb safe_nb idle_lim \
     idle_cur idle_per_thr[1]\n";
