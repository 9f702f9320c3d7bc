//! Whether what we attached still stands. Whoever has the rights may take it away: `bpftool link detach`, `tc qdisc del`, and
//! with the bpf file system all that is pinned there.

use std::io;
use std::path::Path;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcHandle, TcMessage};

use super::dump::dump;
use super::loader::CLSACT_HANDLE;
use super::pinned_link;
use super::view::InterfaceStatus;
use super::xdp::Rung;

/// False: a program that `status` claims is not on its device any more. What cannot be asked counts as standing.
pub(super) fn stands(pin_dir: &Path, status: &InterfaceStatus) -> bool {
    let InterfaceStatus { ifindex, attached, admission, .. } = status;
    let link = |pin: &Path| pinned_link::device(pin).is_ok_and(|device| device == *ifindex);
    let tc = match attached.as_str() {
        "tcx" => ["in", "out"].iter().all(|hook| link(&pin_dir.join(format!("link_{ifindex}_{hook}")))),
        "clsact" => [INGRESS, EGRESS].into_iter().all(|hook| has_our_filter(*ifindex, hook).unwrap_or(true)),
        _ => true,
    };
    let mode = admission.as_ref().map_or("", |admission| admission.mode.as_str());
    let rung = [Rung::Native, Rung::Generic].into_iter().find(|rung| rung.as_str() == mode);
    tc && rung.is_none_or(|rung| link(&rung.pin(pin_dir, *ifindex)))
}

/// Asks for the filters of one clsact hook (RTM_GETTFILTER).
fn has_our_filter(ifindex: u32, hook: u32) -> io::Result<bool> {
    let index = i32::try_from(ifindex).map_err(io::Error::other)?;
    let mut question = TcMessage::with_index(index);
    question.header.parent = TcHandle::from(hook);
    let ours = TcHandle::from(u32::from(CLSACT_HANDLE));
    let answers = dump(RouteNetlinkMessage::GetTrafficFilter(question))?;
    Ok(answers
        .iter()
        .any(|answer| matches!(answer, RouteNetlinkMessage::NewTrafficFilter(filter) if filter.header.handle == ours)))
}

/// `TC_H_CLSACT` with `TC_H_MIN_INGRESS` and `TC_H_MIN_EGRESS` (linux/pkt_sched.h).
const INGRESS: u32 = 0xffff_fff2;
const EGRESS: u32 = 0xffff_fff3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_without_filters_has_none_of_ours_and_one_without_claims_lacks_nothing() {
        assert!(!has_our_filter(1, INGRESS).expect("loopback can be asked"));
        let status = InterfaceStatus {
            name: "lo".to_owned(),
            ifindex: 1,
            attached: "none".to_owned(),
            why: None,
            admission: None,
        };
        let nowhere = Path::new("/nowhere");
        assert!(stands(nowhere, &status));
        assert!(!stands(nowhere, &InterfaceStatus { attached: "tcx".to_owned(), ..status.clone() }));
        assert!(!stands(nowhere, &InterfaceStatus { attached: "clsact".to_owned(), ..status }));
    }
}
