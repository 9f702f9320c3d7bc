//! Names and numbers that outlive a process: pins, maps, programs, packet tags.
//!
//! A map whose key, value or meaning changes takes a new name, but for `ingress_conns`, whose changes [`crate::layout`] knows.

/// Map names are at most 15 bytes, so that `bpftool map` shows them whole.
pub mod map {
    pub const FLOWS: &str = "ingress_flows";
    pub const CONNECTIONS: &str = "ingress_conns";
    /// Not in the object: the daemon makes it.
    pub const LAYOUT: &str = "ingress_layout";
    pub const LABELS: &str = "ingress_labels";
    pub const LISTENERS: &str = "ingress_listen";
    pub const NOTES: &str = "ingress_notes";
    pub const VERDICTS: &str = "ingress_verdict";
    pub const EVENTS: &str = "ingress_events";
    pub const POLICY: &str = "ingress_policy";
    pub const DEVICES: &str = "ingress_devices";
    pub const PORTS: &str = "ingress_ports";
    pub const DENY4: &str = "ingress_deny4";
    pub const DENY6: &str = "ingress_deny6";
    pub const SOURCES: &str = "ingress_sources";
    pub const DROPS: &str = "ingress_drops";

    /// Those of earlier builds that no build uses any more.
    pub const RETIRED: &[&str] = &["ingress_syns"];

    /// Those of the object that are pinned, in no particular order.
    pub const PINNED: &[&str] = &[
        FLOWS,
        CONNECTIONS,
        LABELS,
        LISTENERS,
        NOTES,
        VERDICTS,
        EVENTS,
        POLICY,
        DEVICES,
        PORTS,
        DENY4,
        DENY6,
        SOURCES,
        DROPS,
    ];
}

/// Names are at most 15 bytes, as those of maps.
pub mod program {
    /// On devices with Ethernet headers.
    pub const TC_IN: &str = "ingress_tc_in";
    pub const TC_OUT: &str = "ingress_tc_out";
    /// On devices that carry bare IP packets.
    pub const IP_IN: &str = "ingress_ip_in";
    pub const IP_OUT: &str = "ingress_ip_out";
    pub const XDP: &str = "ingress_xdp";
    /// The same for generic XDP.
    pub const XDP_GENERIC: &str = "ingress_xdp_skb";

    /// Those of tc.
    pub const TC: &[&str] = &[TC_IN, TC_OUT, IP_IN, IP_OUT];
}

/// `SO_PRIORITY` of a socket that connects to a backend, in its upper half: tc egress prepares its SYN for a handoff. The
/// priority carries the request because, unlike a firewall mark, it takes no part in routing and no operator's rule set uses
/// these values.
pub const PRIORITY_SYN: u32 = 0x4947_0000;
/// The bits of [`PRIORITY_SYN`] that are always the same.
pub const PRIORITY_TAG: u32 = 0xffff_0000;
/// Added to [`PRIORITY_SYN`]: the largest segment, bytes, that the backend may be told to send; 0 leaves it as it is.
/// (`TCP_MAXSEG` would also bound what we may send, and then nobody knows what the backend takes.)
pub const PRIORITY_SYN_SEGMENT: u32 = 0x3fff;
/// Added to [`PRIORITY_SYN`]: the client did not offer SACK, so the backend must not be offered it either.
pub const PRIORITY_SYN_NO_SACK: u32 = 0x4000;
/// Added to [`PRIORITY_SYN`]: send the SYN twice, so that the backend takes no RTT sample from this near handshake (Karn)
/// and its first sample is the client's true RTT.
pub const PRIORITY_SYN_TWICE: u32 = 0x8000;
/// `SO_PRIORITY` of the daemon's raw socket: tc egress lets its RSTs pass although they are sent on a handed-off tuple.
pub const PRIORITY_BYPASS: u32 = 0x4948_0000;
