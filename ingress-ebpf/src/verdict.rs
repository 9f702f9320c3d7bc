//! Everything that can happen to a packet, on one screen. Each verdict is a counter in `ingress_verdict`.

/// What a program decided about one packet. Numbers stay what they are: the counters outlive a daemon.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Not TCP, no flow entry, or a frame for another host: none of our business.
    Miss = 0,
    SplicedToBackend,
    SplicedToClient,
    /// Spliced, but its sequence numbers do not prove the sender: no state was changed.
    SplicedUnproven,
    /// The backend acknowledges part of the first flight, which our socket still has to complete.
    ToLocalSocket,
    /// A listener's SYN, timestamps and ECN removed.
    SynPrepared,
    /// A SYN of ours towards a backend, timestamps removed.
    SynPreparedOut,
    /// A SYN on a connection that is over: its entry is gone, the stack takes it; a listener's is prepared as any other.
    SynOnEnded,
    /// Answered with an RST: the connection has been cut.
    CutAnswered,
    /// Dropped: backend data before the first flight is acknowledged; it will be sent again.
    DropEarlyData,
    /// Dropped: a fragment of a live flow.
    DropFragment,
    /// Dropped: IP options on a live flow.
    DropIpOptions,
    /// Dropped: a TCP header that does not fit its packet, or an IP header that does not.
    DropMalformed,
    /// Dropped: the flow entry names a slot that is no longer its own.
    DropStale,
    /// Dropped: a SYN of the backend, or a SYN-ACK, that cannot belong to a live flow.
    DropSyn,
    /// Dropped: the time to live is used up.
    DropTtl,
    /// Dropped on egress: our host's stack spoke on a handed-off tuple.
    DropLocalStack,
    /// Dropped: a helper failed to change the packet.
    DropRewriteFailed,
    /// Not admitted: to a private port, on a public device.
    DropPrivatePort,
    /// Not admitted: where its ports are cannot be found, on a public device that guards private ports.
    DropUnreadable,
    /// Not admitted: a denied source, to a listener.
    DropDenied,
    /// Not admitted: TCP flags that no TCP sends, to a listener.
    DropBadFlags,
    /// Not admitted: one more new connection than its source may open now.
    DropSourceRate,
    /// A router's "packet too big" about a packet of a flow: on to the packet's sender, in the words of its own leg.
    TooBigReturned,
    /// Dropped: a "packet too big" that quotes nothing of a flow that is under way.
    DropTooBig,
    /// Dropped: its connection is on its way from a table of another layout, or from a relay; it will be sent again.
    DropMoving,
    /// Dropped: larger than the device on its way takes, whose MTU was lowered; its sender is told.
    DropNarrow,
}

impl Verdict {
    /// All, in the order of their numbers.
    pub const ALL: [Self; 27] = [
        Self::Miss,
        Self::SplicedToBackend,
        Self::SplicedToClient,
        Self::SplicedUnproven,
        Self::ToLocalSocket,
        Self::SynPrepared,
        Self::SynPreparedOut,
        Self::SynOnEnded,
        Self::CutAnswered,
        Self::DropEarlyData,
        Self::DropFragment,
        Self::DropIpOptions,
        Self::DropMalformed,
        Self::DropStale,
        Self::DropSyn,
        Self::DropTtl,
        Self::DropLocalStack,
        Self::DropRewriteFailed,
        Self::DropPrivatePort,
        Self::DropUnreadable,
        Self::DropDenied,
        Self::DropBadFlags,
        Self::DropSourceRate,
        Self::TooBigReturned,
        Self::DropTooBig,
        Self::DropMoving,
        Self::DropNarrow,
    ];

    /// Those of [`crate::admission::judge`].
    pub const ADMISSION: [Self; 6] = [
        Self::DropPrivatePort,
        Self::DropUnreadable,
        Self::DropDenied,
        Self::DropBadFlags,
        Self::DropSourceRate,
        Self::DropMalformed,
    ];

    /// What the kernel does with the packet.
    #[inline(always)]
    pub const fn action(self) -> Action {
        match self {
            Self::Miss | Self::ToLocalSocket | Self::SynPrepared | Self::SynPreparedOut | Self::SynOnEnded => {
                Action::Pass
            }
            Self::SplicedToBackend | Self::SplicedToClient | Self::SplicedUnproven | Self::TooBigReturned => {
                Action::Redirect
            }
            Self::CutAnswered => Action::Reflect,
            Self::DropEarlyData
            | Self::DropFragment
            | Self::DropIpOptions
            | Self::DropMalformed
            | Self::DropStale
            | Self::DropSyn
            | Self::DropTtl
            | Self::DropTooBig
            | Self::DropLocalStack
            | Self::DropRewriteFailed
            | Self::DropPrivatePort
            | Self::DropUnreadable
            | Self::DropDenied
            | Self::DropBadFlags
            | Self::DropSourceRate
            | Self::DropMoving
            | Self::DropNarrow => Action::Drop,
        }
    }

    /// The metric's label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Miss => "miss",
            Self::SplicedToBackend => "spliced_to_backend",
            Self::SplicedToClient => "spliced_to_client",
            Self::SplicedUnproven => "spliced_unproven",
            Self::ToLocalSocket => "to_local_socket",
            Self::SynPrepared => "syn_prepared",
            Self::SynPreparedOut => "syn_prepared_out",
            Self::SynOnEnded => "syn_on_ended",
            Self::CutAnswered => "cut_answered",
            Self::TooBigReturned => "too_big_returned",
            Self::DropEarlyData => "drop_early_data",
            Self::DropFragment => "drop_fragment",
            Self::DropIpOptions => "drop_ip_options",
            Self::DropMalformed => "drop_malformed",
            Self::DropStale => "drop_stale",
            Self::DropSyn => "drop_syn",
            Self::DropTtl => "drop_ttl",
            Self::DropTooBig => "drop_too_big",
            Self::DropLocalStack => "drop_local_stack",
            Self::DropRewriteFailed => "drop_rewrite_failed",
            Self::DropPrivatePort => "drop_private_port",
            Self::DropUnreadable => "drop_unreadable",
            Self::DropDenied => "drop_denied",
            Self::DropBadFlags => "drop_bad_flags",
            Self::DropSourceRate => "drop_source_rate",
            Self::DropMoving => "drop_moving",
            Self::DropNarrow => "drop_narrow",
        }
    }
}

/// What a verdict means to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// On to the next program on the hook, and to the stack.
    Pass,
    /// Out by the flow's device.
    Redirect,
    /// Back out by the device that it came from.
    Reflect,
    Drop,
}
