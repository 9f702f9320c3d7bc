//! Policy routing (ip-rule(8), RTM_GETRULE): whether this host's rules tell one packet from another.

use std::io;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};

use super::dump::dump;

/// True if every packet to one destination is led to the same route, as by the three rules that each host has from the start.
pub(super) fn are_plain() -> io::Result<bool> {
    let all = dump(RouteNetlinkMessage::GetRule(RuleMessage::default()))?;
    Ok(all.iter().all(|answer| matches!(answer, RouteNetlinkMessage::NewRule(rule) if is_plain(rule))))
}

fn is_plain(rule: &RuleMessage) -> bool {
    /// What the kernel says where nothing is suppressed: -1.
    const NOTHING: u32 = u32::MAX;
    let RuleMessage { header, attributes, .. } = rule;
    header.action == RuleAction::ToTable
        && (header.src_len, header.dst_len, header.tos) == (0, 0, 0)
        && !header.flags.contains(RuleFlags::Invert)
        && attributes.iter().all(|attribute| {
            matches!(
                attribute,
                RuleAttribute::Table(_)
                    | RuleAttribute::Priority(_)
                    | RuleAttribute::Protocol(_)
                    | RuleAttribute::SuppressPrefixLen(NOTHING)
                    | RuleAttribute::SuppressIfGroup(NOTHING)
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(attributes: &[RuleAttribute]) -> RuleMessage {
        let mut rule = RuleMessage::default();
        rule.header.action = RuleAction::ToTable;
        rule.attributes = [&[RuleAttribute::Priority(32_766), RuleAttribute::Table(254)], attributes].concat();
        rule
    }

    #[test]
    fn a_rule_for_all_packets_is_plain_and_one_with_any_condition_is_not() {
        assert!(is_plain(&rule(&[RuleAttribute::SuppressPrefixLen(u32::MAX)])));
        for condition in [
            RuleAttribute::FwMark(1),
            RuleAttribute::Iifname("lo".to_owned()),
            RuleAttribute::Oifname("eth0".to_owned()),
            RuleAttribute::L3MDev(true),
            RuleAttribute::SuppressPrefixLen(0),
        ] {
            assert!(!is_plain(&rule(std::slice::from_ref(&condition))), "{condition:?}");
        }
        let mut from = rule(&[]);
        from.header.src_len = 24;
        let mut not = rule(&[]);
        not.header.flags = RuleFlags::Invert;
        let mut blackhole = rule(&[]);
        blackhole.header.action = RuleAction::Blackhole;
        assert!(![from, not, blackhole].iter().any(is_plain));
    }

    #[test]
    fn this_hosts_rules_can_be_read() {
        are_plain().expect("a netlink socket");
    }
}
