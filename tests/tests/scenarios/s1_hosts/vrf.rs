//! A public device that is part of a VRF: a routing table of its own, which only those see who are bound to it.

use anyhow::{Context as _, Result, ensure};
use ingress_tests::require;
use ingress_tests::skip::{missing_device, skip_on_this_kernel};

use super::stage::Stage;

#[test]
fn listener_in_a_vrf_is_served_in_the_kernel() -> Result<()> {
    require!();
    if let Some(reason) = missing_device("vrf")? {
        return skip_on_this_kernel(&reason);
    }
    for (ipv6, device) in [(false, "red"), (true, "pub0")] {
        let stage = Stage::set(ipv6)?;
        let proxy = stage.proxy();
        proxy.ip_batch("link add red type vrf table 100\nlink set red up\nlink set pub0 master red\n")?;
        if ipv6 {
            // A device that becomes part of a VRF loses them.
            proxy.ip_batch(&format!("addr replace {}/120 dev pub0 nodad\n", stage.s1.lab.proxy.address))?;
        }
        // The main table leads to the client by a host that passes nothing on.
        stage.way_back("table 100")?;
        stage.default_route_by_the_private_nic()?;
        let mut node = stage.node_on(device)?;
        let what = || format!("IPv6 {ipv6}, device {device}");
        stage.call()?.finish().with_context(what)?;
        node.all_in_kernel().with_context(what)?;

        let status = node.status()?;
        let interfaces = status["kernel"]["interfaces"].as_array().context("interfaces")?;
        let names: Vec<_> = interfaces.iter().filter_map(|interface| interface["name"].as_str()).collect();
        ensure!(names.contains(&"pub0") && !names.contains(&"red"), "{names:?}");

        let mut talk = stage.call()?;
        talk.exchange()?;
        node.kill9()?;
        talk.exchange()?;
        node.launch()?;
        talk.finish().with_context(what)?;
    }
    Ok(())
}
