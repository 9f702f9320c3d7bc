//! Where a packet leaves, and to whom.

use aya_ebpf::bindings::bpf_redir_neigh;
use aya_ebpf::helpers::{bpf_redirect, bpf_redirect_neigh};
use ingress_ebpf::connection::{Connection, Hop};
use ingress_ebpf::flow::Direction;

use super::maps::CONNECTIONS;

#[derive(Clone, Copy)]
pub(super) struct Exit {
    pub(super) device: u32,
    /// Of a connection's packets: its slot, and which way they go.
    // Not a pointer to its next hop: the verifier would follow a packet with one and a packet without through all that is done to them
    // until they leave.
    slot: u32,
    direction: u32,
}

impl Exit {
    /// Of packets that do not leave.
    pub(super) const NONE: Self = Self::by(0);

    #[inline(always)]
    pub(super) const fn by(device: u32) -> Self {
        Self { device, slot: u32::MAX, direction: 0 }
    }

    /// Of a connection's packets, in this direction.
    #[inline(always)]
    pub(super) fn of(connection: &Connection, slot: u32, direction: Direction) -> Self {
        Self { device: connection.ifindex[direction as usize & 1], slot, direction: direction as u32 }
    }

    /// To the neighbour on the packet's way.
    #[inline(always)]
    pub(super) fn by_neighbour(&self) -> i32 {
        if let Some(connection) = CONNECTIONS.get(self.slot) {
            let sender = if self.direction == Direction::ToBackend as u32 {
                &connection.from_client
            } else {
                &connection.from_backend
            };
            let hop = &raw const sender.hop;
            if sender.hop.family != 0 {
                // SAFETY: memory of a slot, laid out as the helper's parameters, which it reads.
                return unsafe {
                    bpf_redirect_neigh(
                        self.device,
                        hop.cast::<bpf_redir_neigh>().cast_mut(),
                        size_of::<Hop>() as i32,
                        0,
                    ) as i32
                };
            }
        }
        // SAFETY: no parameters: the helper finds the next hop by a route lookup on that device.
        unsafe { bpf_redirect_neigh(self.device, core::ptr::null_mut(), 0, 0) as i32 }
    }

    /// With the link-layer addresses that it has.
    #[inline(always)]
    pub(super) fn as_it_is(&self) -> i32 {
        // SAFETY: a plain call.
        unsafe { bpf_redirect(self.device, 0) as i32 }
    }
}

const _: () = assert!(size_of::<Hop>() == size_of::<bpf_redir_neigh>());
