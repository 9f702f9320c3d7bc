//! Large transfers both ways arrive as they were sent, in the kernel, whatever the path between looks like.

use std::time::Duration;

use anyhow::{Context as _, Result};
use ingress_tests::counters::tcp_counter;
use ingress_tests::lab::LabOptions;
use ingress_tests::node::Node;
use ingress_tests::payload::write_file;
use ingress_tests::require;
use ingress_tests::s1::S1;
use ingress_tests::wait::wait_until;

#[test]
fn large_files_pass_unchanged() -> Result<()> {
    require!("nginx", "curl");
    let s1 = S1::start()?;
    transfer_both_ways(&s1, &s1.node()?)
}

#[test]
fn large_files_pass_unchanged_without_offloads() -> Result<()> {
    require!("nginx", "curl", "ethtool");
    let s1 = S1::start_on(&LabOptions { offloads: false, ..LabOptions::default() })?;
    transfer_both_ways(&s1, &s1.node()?)
}

/// One computes checksums and segments in software, the others leave both to a device: packets reach the proxy in one form and
/// leave it in another.
#[test]
fn large_files_pass_unchanged_when_one_party_alone_has_no_offloads() -> Result<()> {
    require!("nginx", "curl", "ethtool");
    let s1 = S1::start()?;
    let node = s1.node()?;
    let (client, backend) = (&s1.lab.clients[0].ns, &s1.lab.backends[0].ns);
    let proxy = &s1.lab.proxy.ns;
    let parties =
        [("client", client, vec!["eth0"]), ("proxy", proxy, vec!["pub0", "priv0"]), ("backend", backend, vec!["eth0"])];
    for (name, ns, devices) in &parties {
        let switch = |to: &str| {
            let features = ["tx", "rx", "tso", "gso", "gro"].map(|feature| [feature, to]).concat();
            devices
                .iter()
                .try_for_each(|device| ns.run("ethtool", &[&["-K", device], &features[..]].concat()).map(drop))
        };
        switch("off")?;
        move_files(&s1, name).with_context(|| format!("without offloads at the {name}"))?;
        switch("on")?;
    }
    for ns in [client, backend] {
        assert_eq!(tcp_counter(ns, "Tcp", "InCsumErrors")?, 0);
    }
    node.all_in_kernel()
}

#[test]
fn large_files_pass_unchanged_into_a_network_with_a_small_mtu() -> Result<()> {
    require!("nginx", "curl");
    let s1 = S1::start_on(&LabOptions { private_mtu: 1420, ..LabOptions::default() })?;
    transfer_both_ways(&s1, &s1.node()?)
}

#[test]
fn relayed_pools_pass_large_files_unchanged_too() -> Result<()> {
    require!("nginx", "curl");
    let s1 = S1::start()?;
    let mut config = s1.config();
    config["pools"]["web"]["handoff"] = "never".into();
    let node = s1.node_with(config)?;
    move_files(&s1, "big")?;
    let connections = &node.status()?["connections"];
    assert_eq!(connections["relay_reasons"]["policy"], connections["relayed_total"], "{connections}");
    assert_eq!(connections["handed_off_total"], 0, "{connections}");
    Ok(())
}

#[test]
fn ended_connections_leave_nothing_in_conntrack() -> Result<()> {
    require!("nginx", "curl", "nft");
    let s1 = S1::start_on(&LabOptions { conntrack: true, ..LabOptions::default() })?;
    let node = s1.node_with(s1.config_without_checks())?;
    transfer_both_ways(&s1, &node)?;
    for _ in 0..20 {
        s1.curl("fiscalismia.com").get("/whoami")?;
    }
    node.all_in_kernel()?;
    // An entry that saw the handshake and never the FIN would stay for five days.
    let entries = || {
        let count = std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count").unwrap_or_default();
        count.trim().parse::<u32>().ok()
    };
    wait_until(Duration::from_secs(20), "conntrack forgets handed-off connections", || {
        s1.lab.proxy.ns.exec(entries).is_some_and(|n| n <= 4)
    })
}

fn transfer_both_ways(s1: &S1, node: &Node) -> Result<()> {
    move_files(s1, "big")?;
    node.all_in_kernel()
}

/// `name`: of the files, which may not be there yet.
fn move_files(s1: &S1, name: &str) -> Result<()> {
    let web = &s1.backends[0];
    let sent = web.publish(name, 64 << 20)?;
    for curl in [s1.curl("fiscalismia.com").http1(), s1.curl("fiscalismia.com").http2()] {
        assert_eq!(curl.download(&format!("/files/{name}"))?.finish(Duration::from_secs(60))?, sent);
    }
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("up");
    let sent = write_file(&file, 32 << 20, 5)?;
    assert_eq!(s1.curl("fiscalismia.com").http1().upload(&file, &format!("/upload/{name}"))?.status, 201);
    assert_eq!(web.uploaded(name)?, sent);
    Ok(())
}
